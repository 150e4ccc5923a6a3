import keras
import numpy as np
import pytest
from architectures import ARCHITECTURES, random_inputs, randomise
from op_architectures import OPS
from zoo_architectures import ZOO

from mobileprune.equalize import equalize
from mobileprune.schedules import ConstantSparsity
from mobileprune.sparsify import prune_low_magnitude, prune_now, sparsity

layers = keras.layers
NETWORKS = {**ARCHITECTURES, **ZOO, **OPS}
# Nothing in them passes factors: softmax, swish, normalisation over channels, or arithmetic without a rule here.
UNTOUCHED = {
    *("squeeze_and_excite", "vit_constant_positions", "vit_learned_positions", "cross_attention", "mlp_mixer"),
}


def difference(model, other, inputs, training=False):
    """The largest difference of two models' outputs, as a share of the largest output."""
    answers = [keras.tree.flatten(each(inputs, training=training)) for each in (model, other)]
    pairs = [tuple(map(np.asarray, pair)) for pair in zip(*answers, strict=True)]
    return max(np.abs(one - two).max() / max(np.abs(one).max(), 1e-6) for one, two in pairs)


def changed(model, other):
    """Names of the layers whose weights differ."""
    pairs = zip(model._flatten_layers(), other._flatten_layers(), strict=True)
    return {
        one.name
        for one, two in pairs
        if not isinstance(one, keras.Model)
        and any(not np.array_equal(a, b) for a, b in zip(one.get_weights(), two.get_weights(), strict=True))
    }


def called(model):
    inputs = random_inputs(model)
    return inputs if len(inputs) > 1 else inputs[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_stay(name):
    model = randomise(NETWORKS[name]())
    balanced = equalize(model)
    print(name, len(changed(model, balanced)))
    assert difference(model, balanced, called(model)) < 1e-4
