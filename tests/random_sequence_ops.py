"""More steps of random networks: over rows, columns and positions as if they were time; in 3-D; channels first."""

import keras
from random_ops import step

layers, ops = keras.layers, keras.ops


def _recurrent(pick, units):
    """A recurrent layer over a sequence, (batch, steps, channels) to (batch, steps, units)."""
    kind = pick.of(layers.LSTM, layers.GRU, layers.SimpleRNN)
    options = {"go_backwards": pick.of(True, False), "unroll": True, "use_bias": pick.of(True, False)}
    return kind(units, return_sequences=True, **options)


@step
def recurrent_over_rows(x, pick):
    """Rows are steps, and all that is in a row is read at each."""
    _, height, width, channels = x.shape
    y = layers.Reshape((height, width * channels))(x)
    y = _recurrent(pick, width * pick.of(4, 6))(y)
    return layers.Reshape((height, width, -1))(y)


@step
def recurrent_over_columns(x, pick):
    """As in text recognition: each column is a step of a sequence of its own height."""
    _, height, width, channels = x.shape
    y = layers.Reshape((width, height * channels))(layers.Permute((2, 1, 3))(x))
    y = layers.TimeDistributed(layers.Dense(pick.width(), activation="relu"))(_recurrent(pick, pick.width())(y))
    return layers.Add()([layers.Conv2D(y.shape[-1], 1)(x), layers.Reshape((1, width, y.shape[-1]))(y)])


@step
def bidirectional(x, pick):
    _, height, width, channels = x.shape
    kind = pick.of(layers.LSTM, layers.GRU, layers.SimpleRNN)
    mode = pick.of("concat", "sum", "mul", "ave", None)
    layer = layers.Bidirectional(kind(pick.of(4, 8), return_sequences=True, unroll=True), merge_mode=mode)
    y = layer(layers.Reshape((height * width, channels))(x))
    y = layers.Subtract()(y) if mode is None else y
    return layers.Reshape((height, width, -1))(y)


@step
def recurrent_states(x, pick):
    """A second layer begins with the first one's states; its last step gates all positions."""
    _, height, width, channels = x.shape
    units, sequence = pick.width(), layers.Reshape((height * width, channels))(x)
    kind = pick.of(layers.LSTM, layers.GRU)
    y, *states = kind(units, return_sequences=True, return_state=True, unroll=True)(sequence)
    last = kind(units, unroll=True)(y, initial_state=states)
    return layers.Multiply()([layers.Conv2D(units, 1)(x), layers.Reshape((1, 1, units))(last)])


@step
def stacked_cells(x, pick):
    _, height, width, channels = x.shape
    kinds = (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell)
    cells = [pick.of(*kinds)(pick.of(4, 8)) for _ in range(2)]
    y = layers.RNN(cells, return_sequences=True, unroll=True)(layers.Reshape((height * width, channels))(x))
    return layers.Reshape((height, width, -1))(y)


@step
def time_distributed(x, pick):
    made = pick.width()
    layer = pick.of(
        layers.Dense(made, activation="relu"),
        layers.Conv1D(made, 3, padding="same"),
        layers.SeparableConv1D(made, 3, padding="same"),
        layers.BatchNormalization(),
        layers.MaxPooling1D(2, padding="same"),
        layers.PReLU(),
        layers.LSTM(made, return_sequences=True, unroll=True),
        layers.ZeroPadding1D(1),
    )
    return layers.TimeDistributed(layer)(x)


@step
def model_over_time(x, pick):
    inputs = keras.Input(x.shape[2:])
    y = layers.BatchNormalization()(layers.Conv1D(pick.width(), 3, padding="same", activation="relu")(inputs))
    y = layers.Add()([y, layers.Dense(y.shape[-1])(y)])
    return layers.TimeDistributed(keras.Model(inputs, y))(x)


@step
def conv3d(x, pick):
    """Rows in pairs are a third dimension."""
    x = layers.ZeroPadding2D(((0, x.shape[1] % 2), (0, 0)))(x)
    _, height, width, channels = x.shape
    y = layers.Reshape((2, height // 2, width, channels))(x)
    y = layers.Conv3D(2 * pick.of(2, 4), pick.of(1, 3), padding="same", groups=pick.of(1, 2 - channels % 2))(y)
    y = pick.of(
        layers.MaxPooling3D(2, strides=1, padding="same"),
        layers.BatchNormalization(),
        layers.Conv3DTranspose(pick.width(), 3, padding="same", activation="relu"),
        layers.SpatialDropout3D(0.0),
    )(y)
    return layers.Reshape((height, width, y.shape[-1]))(y)


@step
def conv_lstm(x, pick):
    return layers.ConvLSTM1D(pick.of(4, 8), 3, padding="same", return_sequences=True)(x)


@step
def channels_first_convs(x, pick):
    first = {"data_format": "channels_first"}
    y = ops.transpose(x, (0, 3, 1, 2))
    y = layers.BatchNormalization(axis=1)(layers.Conv2D(pick.width(), 3, padding="same", **first)(y))
    y = pick.of(
        layers.DepthwiseConv2D(3, padding="same", **first),
        layers.SeparableConv2D(pick.width(), 3, padding="same", **first),
        layers.Conv2DTranspose(pick.width(), 3, padding="same", **first),
        layers.AveragePooling2D(2, padding="same", **first),
        layers.UpSampling2D(2, **first),
        layers.GroupNormalization(-1, axis=1),
    )(y)
    if pick.of(True, False):
        gate = layers.GlobalMaxPooling2D(keepdims=True, **first)(y)
        y = layers.Multiply()([y, layers.Conv2D(y.shape[1], 1, activation="sigmoid", **first)(gate)])
    return layers.Permute((2, 3, 1))(y)
