"""Networks that plans are made for in several tests; the same every time."""

import keras
from architectures import randomise

layers = keras.layers
WIDTHS = {"stem": 32, "wide": 48, "odd": 20, "small": 8}


def chain():
    """Four convolutions one after another, each a group of its own."""
    made = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            *(layers.Conv2D(width, 3, padding="same", name=name) for name, width in WIDTHS.items()),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, name="head", activation="softmax"),
        ],
        name="chain",
    )
    return randomise(made)


def four_blocks():
    """Four residual blocks; the third adds hardly anything."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", name="stem")(inputs)
    for number, wide in enumerate((32, 32, 32, 48), start=1):
        name = f"block_{number}"
        y = layers.Conv2D(wide, 1, activation="relu", name=f"{name}_expand")(x)
        x = layers.Add(name=f"{name}_add")([x, layers.Conv2D(16, 1, name=f"{name}_project")(y)])
    made = randomise(keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)), name="net"))
    idle = made.get_layer("block_3_project")
    idle.set_weights([1e-3 * weight for weight in idle.get_weights()])
    return made
