import keras
import pytest
from xnnpack_models import network, pointwise

from mobileprune.errors import SparsityError
from mobileprune.pruning_policy import PruneForLatencyOnXNNPack
from mobileprune.schedules import ConstantSparsity
from mobileprune.sparse_ready import sparse_ready
from mobileprune.sparsify import prune_low_magnitude

layers = keras.layers
POLICY = PruneForLatencyOnXNNPack()


@pytest.mark.parametrize(
    ("layer", "allowed"),
    [
        (layers.Conv2D(8, 1), True),
        (layers.Conv2D(8, 1, padding="same", use_bias=False, activation="relu"), True),
        (layers.Conv2D(8, 3), False),
        (layers.Conv2D(8, 1, strides=2), False),
        (layers.Conv2D(8, 1, groups=2), False),
        (layers.Conv2D(8, 1, data_format="channels_first"), False),
        (layers.DepthwiseConv2D(1), False),
        (layers.SeparableConv2D(8, 1), False),
        (layers.Dense(8), False),
        (layers.ReLU(), False),
    ],
)
def test_only_1x1_convolutions_are_pruned(layer, allowed):
    assert POLICY.allow_pruning(layer) is allowed


def padded_as_stock_networks_are(x):
    return layers.Conv2D(16, 3, 2, padding="same")(x)


def test_a_network_is_refused_with_what_is_in_the_way_and_accepted_once_it_is_rewritten():
    model = network(first=padded_as_stock_networks_are)
    with pytest.raises(SparsityError, match=r"0 of 2 1x1 convolutions.*CONV_2D 0 .*'same' at stride 2.*sparse_ready"):
        POLICY.ensure_model_supports_pruning(model)
    POLICY.ensure_model_supports_pruning(sparse_ready(model).model)


def test_a_network_that_is_partly_there_is_refused():
    with pytest.raises(SparsityError, match="MAX_POOL_2D"):
        POLICY.ensure_model_supports_pruning(network(lambda x: pointwise(layers.MaxPooling2D()(x), 8)))


def test_a_network_without_1x1_convolutions_is_refused():
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(inputs))))
    with pytest.raises(SparsityError, match="0 of 0 1x1 convolutions"):
        POLICY.ensure_model_supports_pruning(model)


def test_wrapped_models_are_judged_like_plain_ones():
    POLICY.ensure_model_supports_pruning(prune_low_magnitude(network(), ConstantSparsity(0.5, 0)))
