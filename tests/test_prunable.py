import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparse_models import KERNEL_LAYERS

from mobileprune.errors import SparsityError
from mobileprune.masks import Pattern
from mobileprune.prunable import (
    Kernel,
    check_prunable,
    kernels_of,
    prunable_weights,
    register_prunable,
    variable_at,
)
from mobileprune.pruning_wrapper import PruneLowMagnitude
from mobileprune.schedules import ConstantSparsity

layers = keras.layers
HALF = ConstantSparsity(0.5, 0, frequency=1)


@given(
    st.permutations(range(4)), st.integers(0, 4), st.integers(0, 4), st.lists(st.integers(1, 4), min_size=4, max_size=4)
)
def test_taps_and_back_is_the_same_array(axes, one, other, shape):
    first, last = sorted((one, other))
    kernel = Kernel("kernel", tuple(axes[:first]), tuple(axes[first:last]))
    values = np.arange(np.prod(shape)).reshape(shape)
    taps = kernel.to_taps(values)
    assert taps.shape[1:] == tuple(
        int(np.prod([shape[at] for at in some])) for some in (axes[:first], axes[first:last])
    )
    np.testing.assert_array_equal(kernel.from_taps(taps, values.shape), values)


def test_taps_by_hand():
    values = np.arange(24).reshape(2, 3, 4)
    assert Kernel("x").to_taps(values).tolist() == values.tolist()
    assert Kernel("x", (-1,), (-2,)).to_taps(values).tolist() == values.transpose(0, 2, 1).tolist()
    assert Kernel("x", (0, 1), (2,)).to_taps(values).tolist() == values.reshape(1, 6, 4).tolist()


def contracted(layer, path, shape):
    """How many of a kernel's weights one output reads, by an independent rule for each kind of layer."""
    if "Transpose" in type(layer).__name__:
        return shape[-1]
    if isinstance(layer, layers.MultiHeadAttention | layers.GroupQueryAttention):
        return int(np.prod(shape[:-1])) if "output" in path else shape[0]
    if isinstance(layer, layers.EinsumDense):
        return shape[0]
    return shape[-2]


def groups_of_inputs(layer, path, values, group):
    """Each output's weights in groups of consecutive inputs: an array (any, group)."""
    reads = contracted(layer, path, values.shape)
    if "Transpose" in type(layer).__name__:
        values = np.moveaxis(values, -1, 0)
        by_input = values.reshape(reads, -1)
    elif values.ndim > 3 or (values.ndim == 3 and type(layer).__name__ in ("Conv1D", "SeparableConv1D")):
        by_input = np.moveaxis(values, -2, 0).reshape(reads, -1)
    else:
        by_input = values.reshape(reads, -1)
    usable = reads - reads % group
    return by_input[:usable].reshape(usable // group, group, -1).transpose(0, 2, 1).reshape(-1, group)


N_OF_M = ["Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"]
N_OF_M += ["SeparableConv2D", "Dense", "EinsumDense", "MultiHeadAttention", "GroupQueryAttention", "LSTM"]


@pytest.mark.parametrize("name", N_OF_M)
def test_of_two_inputs_of_an_output_one_stays_whatever_the_layer(name):
    model = KERNEL_LAYERS[name]()
    layer = next(layer for layer in model.layers if kernels_of(layer))
    wrapper = PruneLowMagnitude(layer, HALF, sparsity_m_by_n=(1, 2))
    wrapper.build()
    wrapper.update_masks(1)
    for path, weights in prunable_weights(layer).items():
        holder = layer.cell if name == "LSTM" else layer
        groups = groups_of_inputs(holder, path, np.asarray(weights), 2)
        assert len(groups)
        assert (np.count_nonzero(groups, axis=1) == 1).all()


def test_heads_are_read_as_one_output_axis():
    model = KERNEL_LAYERS["MultiHeadAttention"]()
    layer = model.layers[-1]
    assert layer._query_dense.kernel.shape == (8, 2, 4)
    wrapper = PruneLowMagnitude(layer, HALF, block_size=(2, 8))
    wrapper.build()
    wrapper.update_masks(1)
    query = np.asarray(layer._query_dense.kernel).reshape(4, 2 * 8) != 0
    assert sorted(query.sum(axis=1)) == [0, 0, 16, 16]
    output = np.asarray(layer._output_dense.kernel).reshape(4, 2 * 8) != 0
    assert sorted(output.sum(axis=1)) == [0, 0, 16, 16]


@pytest.mark.parametrize(
    ("equation", "shape", "inputs", "outputs"),
    [
        ("ab,bc->ac", 3, (0,), (1,)),
        ("abc,cde->abde", (None, 2, 3), (0,), (1, 2)),
        ("abcd,cde->abe", (None, 3), (0, 1), (2,)),
        ("abc,bcd->abd", (2, 3), (1,), (2,)),
        ("...x,xy->...y", 3, (0,), (1,)),
        ("ab, cb -> ac", 3, (1,), (0,)),
    ],
)
def test_an_equation_says_which_axes_are_read(equation, shape, inputs, outputs):
    (kernel,) = kernels_of(layers.EinsumDense(equation, shape))
    assert (kernel.inputs, kernel.outputs) == (inputs, outputs)


def test_kernels_of_every_stock_layer():
    """All weights of rank two and more, but depthwise ones and those that are no kernels."""
    for name, make in KERNEL_LAYERS.items():
        for layer in make().layers:
            if not isinstance(layer, keras.Layer):
                continue
            every = {id(weights) for weights in layer.weights if len(weights.shape) > 1 and "bias" not in weights.name}
            every -= {id(weights) for weights in layer.weights if "depthwise" in weights.name}
            assert {id(weights) for weights in prunable_weights(layer).values()} == every, name


class Twice(keras.layers.Layer):
    def build(self, shape):
        self.projections = [self.add_weight(shape=(shape[-1], 4), name=f"p{at}") for at in range(2)]

    def call(self, x):
        return keras.ops.matmul(x, self.projections[0]) + keras.ops.matmul(x, self.projections[1])


def test_layers_of_the_users_are_plain_until_registered():
    layer = Twice(name="mine")
    assert kernels_of(layer) == ()
    with pytest.raises(SparsityError, match=r"Twice 'mine' has no weights to prune\. Known: .*@register_prunable"):
        check_prunable(layer)

    @register_prunable("projections.0", Kernel("projections.1", (-1,), (-2,)))
    class Known(Twice):
        pass

    class Derived(Known):
        pass

    assert kernels_of(layer) == ()
    for kind in (Known, Derived):
        layer = kind()
        layer.build((None, 6))
        check_prunable(layer)
        assert [kernel.inputs for kernel in kernels_of(layer)] == [(-2,), (-1,)]
        assert list(prunable_weights(layer).values()) == layer.projections


def test_a_name_that_is_no_weight_is_refused():
    @register_prunable("colour")
    class Wrong(Twice):
        pass

    layer = Wrong(name="wrong")
    layer.build((None, 6))
    with pytest.raises(SparsityError, match="Wrong 'wrong' has no weight 'colour'"):
        prunable_weights(layer)
    with pytest.raises(SparsityError, match="Build the layer first"):
        prunable_weights(layers.Dense(3))
    with pytest.raises(SparsityError, match="Name at least one"):
        register_prunable()


@pytest.mark.parametrize("path", ["projections.7", "projections.first", "name", "projections", "colour.3", "name.3"])
def test_a_path_that_leads_nowhere_is_refused(path):
    layer = Twice()
    layer.build((None, 6))
    with pytest.raises(SparsityError, match="has no weight"):
        variable_at(layer, path)


def test_n_of_m_patterns_and_the_check_of_the_groups_can_fail():
    dense = layers.Dense(4)
    dense.build((None, 6))
    PruneLowMagnitude(dense, HALF).build()
    groups = groups_of_inputs(dense, "kernel", np.asarray(dense.kernel), 2)
    assert groups.shape == (12, 2)
    assert (np.count_nonzero(groups, axis=1) == 2).all()
    assert Pattern(sparsity_m_by_n=(1, 2)).sparsity(0.9) == 0.5
