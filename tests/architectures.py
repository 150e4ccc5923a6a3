"""Small networks of many shapes, for laws that must hold on all of them."""

import keras
import numpy as np

layers = keras.layers


def sequential_convnet():
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(16, 3, padding="same", name="stem"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(24, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="sigmoid"),
            layers.Dense(5, activation="softmax"),
        ],
        name="sequential_convnet",
    )


def residual():
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    for _ in range(2):
        y = layers.BatchNormalization()(x)
        y = layers.Conv2D(24, 3, padding="same")(layers.Activation("softplus")(y))
        y = layers.Conv2D(16, 1)(layers.ReLU()(y))
        x = layers.Add()([x, y])
    shortcut = layers.Conv2D(32, 1, strides=2)(x)
    y = layers.Conv2D(32, 3, strides=2, padding="same")(x)
    x = layers.ReLU()(layers.Add()([shortcut, y]))
    outputs = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="residual")


def inverted_residual():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    for _ in range(2):
        y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(48, 1, use_bias=False)(x)))
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
        y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(16, 1, use_bias=False)(y))
        x = layers.Add()([x, y])
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2)(x)
    outputs = layers.Dense(5)(layers.GlobalMaxPooling2D()(x))
    return keras.Model(inputs, outputs, name="inverted_residual")


def concatenation():
    inputs = keras.Input((12, 12, 3))
    stem = layers.Conv2D(16, 3, padding="same")(inputs)
    branches = [
        layers.Conv2D(16, 1, activation="relu")(stem),
        layers.Conv2D(8, 3, padding="same", activation="elu")(stem),
        layers.AveragePooling2D(3, strides=1, padding="same")(stem),
    ]
    x = layers.BatchNormalization()(layers.Concatenate()(branches))
    x = layers.Conv2D(24, 3, strides=2)(x)
    x = layers.Concatenate()([x, layers.Cropping2D(((1, 0), (1, 0)))(layers.MaxPooling2D()(stem))])
    outputs = layers.Dense(5)(layers.Flatten()(x))
    return keras.Model(inputs, outputs, name="concatenation")


def squeeze_and_excite():
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(32, 3, activation="swish")(inputs)
    s = layers.Reshape((1, 1, 32))(layers.GlobalAveragePooling2D()(x))
    s = layers.Conv2D(16, 1, activation="relu")(s)
    s = layers.Conv2D(32, 1, activation="sigmoid")(s)
    x = layers.Multiply()([x, s])
    x = layers.Conv2D(16, 1)(x)
    outputs = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="squeeze_and_excite")


def grouped_and_transposed():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(32, 3, padding="same")(inputs)
    x = layers.Conv2D(32, 3, padding="same", groups=2, activation="relu")(x)
    x = layers.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.SeparableConv2D(24, 3, padding="same", depth_multiplier=2)(layers.UpSampling2D()(x))
    outputs = layers.Conv2D(2, 1)(x)
    return keras.Model(inputs, outputs, name="grouped_and_transposed")


def channel_shuffle():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(32, 1)(inputs)
    x = layers.Reshape((8, 8, 2, 16))(x)
    x = layers.Permute((1, 2, 4, 3))(x)
    x = layers.Reshape((8, 8, 32))(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Conv2D(24, 1, groups=2)(x)
    outputs = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name="channel_shuffle")


def shared_and_two_headed():
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    tower = layers.Conv2D(16, 3, name="tower")
    norm = layers.BatchNormalization(name="tower_norm")
    a, b = norm(tower(left)), norm(tower(right))
    x = layers.Subtract()([a, b])
    boxes = layers.Conv2D(4, 1, name="boxes")(x)
    x = layers.Dense(16, activation="tanh")(layers.Flatten()(layers.Conv1D(8, 3)(layers.Reshape((36, 16))(x))))
    return keras.Model([left, right], {"boxes": boxes, "scores": layers.Dense(3, name="scores")(x)}, name="shared")


ARCHITECTURES = {
    build.__name__: build
    for build in (
        sequential_convnet,
        residual,
        inverted_residual,
        concatenation,
        squeeze_and_excite,
        grouped_and_transposed,
        channel_shuffle,
        shared_and_two_headed,
    )
}


def randomise(model, seed=0):
    """Gives every weight and every batch-norm statistic another value: fresh ones are all alike and hide mistakes."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        if not np.issubdtype(np.asarray(variable).dtype, np.floating):
            continue
        low, high = (0.5, 1.5) if "variance" in variable.path or "gamma" in variable.path else (-0.5, 0.5)
        variable.assign(generator.uniform(low, high, variable.shape).astype("float32"))
    _finish_normalisations(model)
    return model


def randomise_deep(model, images, seed=0):
    """The same for networks of many layers, which would forget their inputs on the way through so much noise.

    Kernels keep the size of what passes, and batch norms have the statistics of `images`: all different, too.
    """
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        shape, name = tuple(variable.shape), variable.path.rsplit("/", 1)[-1]
        if not variable.dtype.startswith("float"):
            continue
        if len(shape) > 1:
            fan_in = np.prod(shape[:2]) if "depthwise" in variable.path else np.prod(shape[:-1])
            variable.assign(generator.normal(0, 1.4 / np.sqrt(fan_in), shape))
        elif "variance" in name or "gamma" in name:
            variable.assign(generator.uniform(0.5, 1.5, shape))
        else:
            variable.assign(generator.normal(0, 0.1, shape))
    _finish_normalisations(model)
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def _finish_normalisations(model):
    # They compute with copies of their weights, renewed only by this call and by loading.
    for layer in model._flatten_layers():
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()


def random_inputs(model, batch=3, seed=0):
    """Inputs for a model of one or several inputs, batch first; those of an integer type are small numbers."""
    generator = np.random.default_rng(seed)
    inputs = []
    for tensor in model.inputs:
        shape = (batch, *tensor.shape[1:])
        drawn = generator.integers(0, 9, shape) if "int" in tensor.dtype else generator.normal(size=shape)
        inputs.append(drawn.astype(tensor.dtype))
    return inputs
