"""Networks over time and space: recurrent layers, three dimensions, channels first, embeddings."""

import keras

layers, ops = keras.layers, keras.ops


def crnn():
    """Text recognition: convolutions, columns as time steps, two bidirectional LSTMs, a character for each step."""
    inputs = keras.Input((8, 16, 1))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D()(x)
    x = layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(x))
    x = layers.MaxPooling2D((2, 1))(layers.ReLU()(x))
    x = layers.Reshape((8, 2 * 16))(layers.Permute((2, 1, 3))(x))
    x = layers.Dense(16, activation="relu")(x)
    x = layers.Bidirectional(layers.LSTM(12, return_sequences=True))(x)
    x = layers.Bidirectional(layers.LSTM(12, return_sequences=True))(x)
    return keras.Model(inputs, layers.Dense(7, activation="softmax")(x), name="crnn")


def bilstm_tagger():
    """A label for each word; short sentences are padded with zeros, which are masked."""
    inputs = keras.Input((9,), dtype="int32")
    x = layers.Embedding(10, 16, mask_zero=True)(inputs)
    x = layers.SpatialDropout1D(0.0)(x)
    x = layers.Bidirectional(layers.LSTM(12, return_sequences=True))(x)
    x = layers.TimeDistributed(layers.Dense(16, activation="tanh"))(x)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(4))(x), name="bilstm_tagger")


def convnet_3d():
    inputs = keras.Input((6, 8, 8, 2))
    x = layers.Conv3D(8, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.MaxPooling3D()(x)
    y = layers.Conv3D(16, 3, padding="same", activation="relu")(x)
    x = layers.Add()([layers.Conv3D(16, 1)(x), y])
    x = layers.Conv3D(12, 1, groups=2)(layers.AveragePooling3D((1, 2, 2))(layers.ZeroPadding3D((0, 1, 1))(x)))
    x = layers.Conv3DTranspose(8, 2, strides=2)(layers.SpatialDropout3D(0.0)(x))
    x = layers.Cropping3D(1)(layers.UpSampling3D(2)(x))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling3D()(x)), name="convnet_3d")


def channels_first():
    first = {"data_format": "channels_first"}
    inputs = keras.Input((3, 10, 10))
    x = layers.Conv2D(16, 3, padding="same", **first)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(axis=1)(x))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, **first)(x)
    x = layers.PReLU(shared_axes=[2, 3])(layers.SeparableConv2D(16, 3, padding="same", **first)(x))
    x = layers.Add()([x, layers.Conv2D(16, 1, activation="sigmoid", **first)(x)])
    gate = layers.GlobalAveragePooling2D(keepdims=True, **first)(x)
    x = layers.Multiply()([x, layers.Conv2D(16, 1, activation="sigmoid", **first)(gate)])
    x = layers.Concatenate(axis=1)([layers.MaxPooling2D(**first)(x), layers.AveragePooling2D(2, **first)(x)])
    x = layers.Conv2DTranspose(8, 3, strides=2, **first)(layers.ZeroPadding2D(**first)(x))
    x = layers.Conv2D(8, 3, groups=2, **first)(layers.Cropping2D(2, **first)(x))
    x = layers.MaxPooling2D(4, **first)(layers.UpSampling2D(**first)(x))
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten(**first)(x)), name="channels_first")


def recurrent_kinds():
    """Every kind of cell, with states passed on, backwards, and cells stacked by hand."""
    inputs = keras.Input((6, 5))
    x = layers.GRU(12, return_sequences=True)(inputs)
    x = layers.SimpleRNN(8, return_sequences=True, go_backwards=True)(x)
    x, hidden, carry = layers.LSTM(12, return_sequences=True, return_state=True, unroll=True)(x)
    x = layers.LSTM(12, return_sequences=True)(x, initial_state=[hidden, carry])
    x = layers.RNN([layers.GRUCell(8, reset_after=False), layers.LSTMCell(8)], return_sequences=True)(x)
    x = layers.RNN(layers.SimpleRNNCell(8), return_sequences=True)(x)
    last = layers.GRU(8, use_bias=False)(x)
    outputs = layers.Dense(5)(layers.Concatenate()([last, carry, layers.GlobalMaxPooling1D()(x)]))
    return keras.Model(inputs, outputs, name="recurrent_kinds")


def merged_directions():
    inputs = keras.Input((6, 5))
    kinds = (("sum", layers.GRU), ("mul", layers.LSTM), ("ave", layers.SimpleRNN))
    x = [layers.Bidirectional(cell(8, return_sequences=True), merge_mode=mode)(inputs) for mode, cell in kinds]
    x = layers.Dense(12, activation="relu")(layers.Concatenate()(x))
    forward, backward = layers.Bidirectional(layers.GRU(8, return_sequences=True), merge_mode=None)(x)
    x = layers.Concatenate()([layers.Conv1D(8, 1)(forward), backward])
    x, *states = layers.Bidirectional(layers.LSTM(8, return_sequences=True, return_state=True))(x)
    x = layers.Bidirectional(layers.LSTM(8))(x, initial_state=states)
    return keras.Model(inputs, layers.Dense(5)(x), name="merged_directions")


def video():
    """A convolutional network on every picture, a recurrent one over them; then ConvLSTM over the pictures."""
    inputs = keras.Input((4, 8, 8, 2))
    frame = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(12, activation="relu"),
        ]
    )
    x = layers.GRU(12)(layers.TimeDistributed(frame)(inputs))
    y = layers.TimeDistributed(layers.Conv2D(8, 3, padding="same", activation="relu"))(inputs)
    y = layers.TimeDistributed(layers.MaxPooling2D())(layers.TimeDistributed(layers.BatchNormalization())(y))
    y = layers.ConvLSTM2D(8, 3, padding="same", return_sequences=True)(y)
    y = layers.TimeDistributed(layers.Flatten())(layers.ConvLSTM2D(6, 2, return_sequences=True)(y))
    y = layers.GlobalAveragePooling1D()(layers.TimeDistributed(layers.Dense(8))(y))
    return keras.Model(inputs, layers.Dense(5)(layers.Concatenate()([x, y])), name="video")


def masked_words():
    """What masks reach: embeddings that are added up, normalised and averaged over the words that are there."""
    words, places = keras.Input((7,), dtype="int32"), keras.Input((7,), dtype="int32")
    x = layers.Embedding(10, 16, mask_zero=True)(words)
    x = layers.Add()([x, layers.Embedding(9, 16)(places)])
    x = layers.GRU(12, return_sequences=True)(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling1D()(layers.Dense(12, activation="relu")(x))
    return keras.Model([words, places], layers.Dense(3)(x), name="masked_words")


SEQUENCES = {
    build.__name__: build
    for build in (
        crnn,
        bilstm_tagger,
        convnet_3d,
        channels_first,
        recurrent_kinds,
        merged_directions,
        video,
        masked_words,
    )
}
