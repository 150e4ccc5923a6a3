"""What tests of the bridge compare."""

import numpy as np
from tiny_models import randomize

TOLERANCE = 1e-5  # of the largest output: float32 sums in another order


def sample(model, batch=2, seed=0):
    """Random inputs for a Keras 3 or tf_keras model, structured as its inputs are."""
    generator = np.random.default_rng(seed)
    arrays = [
        generator.uniform(-1, 1, (batch, *[size or 7 for size in each.shape[1:]])).astype("float32")
        for each in model.inputs
    ]
    return arrays if len(arrays) > 1 else arrays[0]


def outputs(model, inputs):
    """All outputs in inference mode, flat, as arrays."""
    import keras

    if not isinstance(inputs, list):
        made = model(inputs, training=False)
    else:
        made = model([np.asarray(each) for each in inputs], training=False)
    return [np.asarray(each) for each in keras.tree.flatten(made)]


def largest_difference(one, other, inputs):
    """The largest difference between two models' outputs, as a share of the largest output; infinite for others'
    shapes."""
    pairs = list(zip(outputs(one, inputs), outputs(other, inputs), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return np.inf
    return max(float(np.abs(a - b).max() / max(1e-6, np.abs(a).max())) for a, b in pairs)


def randomized(model, seed=0):
    randomize(model, seed)
    return model
