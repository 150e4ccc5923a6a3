"""Tiny models to make sparse: two dense layers, and one model for every stock layer with kernels."""

import keras
import numpy as np

layers = keras.layers


def dense(**settings):
    """Six inputs, a layer `first` of 48 weights and a layer `second` of 32."""
    return keras.Sequential(
        [
            keras.Input((6,), name="image"),
            layers.Dense(8, name="first", **settings),
            layers.Dense(4, name="second", **settings),
        ],
        name="dense",
    )


def batches(count, size=4, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count * size, 6)), generator.normal(size=(count * size, 4))


def fit(model, count, callbacks=(), optimizer=None, seed=0, epochs=1, **settings):
    """Trains on `count` batches of 4, always the same; a compiled model is not compiled anew."""
    if not model.compiled:
        model.compile(optimizer or keras.optimizers.Adam(0.05), "mse", **{"run_eagerly": True, **settings})
    x, y = batches(count, seed=seed)
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, epochs=epochs, callbacks=list(callbacks))
    return model


def _alone(layer, shape, dtype="float32"):
    image = keras.Input(shape, dtype=dtype)
    return keras.Model(image, layer(image))


def _attention(layer, width):
    query, value = keras.Input((5, 8)), keras.Input((7, width))
    return keras.Model([query, value], layer(query, value))


def _stacked_cells():
    cells = layers.StackedRNNCells([layers.LSTMCell(4), layers.GRUCell(4), layers.SimpleRNNCell(4)])
    return _alone(layers.RNN(cells), (5, 4))


def _given_states():
    first, second = keras.Input((5, 4)), keras.Input((2, 4))
    _, hidden, carry = layers.LSTM(4, return_state=True)(first)
    return keras.Model([first, second], layers.LSTM(4)(second, initial_state=[hidden, carry]))


def _masked_tokens():
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(12, 6, mask_zero=True)(tokens)
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True))(x)
    x = layers.TimeDistributed(layers.Dense(4))(x)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    return keras.Model(tokens, layers.LSTM(4)(x))


def _masking():
    series = keras.Input((5, 4))
    return keras.Model(series, layers.SimpleRNN(4)(layers.Dense(4)(layers.Masking()(series))))


KERNEL_LAYERS = {
    "Conv1D": lambda: _alone(layers.Conv1D(4, 3), (6, 3)),
    "Conv2D": lambda: _alone(layers.Conv2D(4, 3), (5, 5, 3)),
    "Conv2D, grouped": lambda: _alone(layers.Conv2D(4, 3, groups=2), (5, 5, 4)),
    "Conv3D": lambda: _alone(layers.Conv3D(4, 2), (3, 3, 3, 2)),
    "Conv1DTranspose": lambda: _alone(layers.Conv1DTranspose(4, 3), (6, 3)),
    "Conv2DTranspose": lambda: _alone(layers.Conv2DTranspose(4, 3), (4, 4, 3)),
    "Conv3DTranspose": lambda: _alone(layers.Conv3DTranspose(4, 2), (3, 3, 3, 2)),
    "SeparableConv1D": lambda: _alone(layers.SeparableConv1D(4, 3), (6, 3)),
    "SeparableConv2D": lambda: _alone(layers.SeparableConv2D(4, 3), (5, 5, 3)),
    "Dense": lambda: _alone(layers.Dense(4), (6,)),
    "EinsumDense": lambda: _alone(layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 3)), (5, 4)),
    "Embedding": lambda: _alone(layers.Embedding(12, 4), (5,), "int32"),
    "MultiHeadAttention": lambda: _attention(layers.MultiHeadAttention(2, 4), 6),
    "GroupQueryAttention": lambda: _attention(layers.GroupQueryAttention(4, 4, 2), 8),
    "LSTM": lambda: _alone(layers.LSTM(4), (5, 3)),
    "GRU": lambda: _alone(layers.GRU(4), (5, 3)),
    "SimpleRNN": lambda: _alone(layers.SimpleRNN(4), (5, 3)),
    "ConvLSTM2D": lambda: _alone(layers.ConvLSTM2D(3, 2), (2, 3, 3, 2)),
    "Bidirectional": lambda: _alone(layers.Bidirectional(layers.LSTM(4)), (5, 3)),
    "StackedRNNCells": _stacked_cells,
    "TimeDistributed": lambda: _alone(layers.TimeDistributed(layers.Dense(4)), (5, 3)),
    "states given": _given_states,
    "masked tokens": _masked_tokens,
    "Masking": _masking,
}


def inputs_for(model, batch=2, seed=0):
    """Random inputs as Keras takes them; the last places of sequences are empty, so that masks matter."""
    generator = np.random.default_rng(seed)
    made = []
    for tensor in model.inputs:
        shape = (batch, *tensor.shape[1:])
        whole = tensor.dtype.startswith("int")
        values = generator.integers(1, 12, shape) if whole else generator.normal(size=shape).astype("float32")
        if whole or values.ndim == 3:
            values[0, -2:] = 0
        made.append(values)
    return made if len(made) > 1 else made[0]
