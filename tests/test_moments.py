import keras
import numpy as np
import pytest
from architectures import randomise

from mobileprune import moments
from mobileprune.linear import linear_maps
from mobileprune.moments import Moments, measure

layers, ops = keras.layers, keras.ops


def map_of(layer, shape, seed=0):
    tensor = keras.Input(shape)
    randomise(keras.Model(tensor, layer(tensor)), seed)
    (map,) = linear_maps(layer, layer._inbound_nodes[-1])
    return map


def batches(shape, sizes=(5, 5, 3), seed=0):
    generator = np.random.default_rng(seed)
    return [[ops.convert_to_tensor(generator.normal(1, 2, (size, *shape)).astype("float32")) for size in sizes]]


def by_numpy(map, inputs, wanted, originals, outputs=None):
    """Sums over all rows of all batches, in double precision."""
    x = np.concatenate([np.asarray(map.rows([batch]), np.float64) for batch in inputs[0]])
    y = np.concatenate([np.asarray(wanted.apply([batch]), np.float64) for batch in originals[0]])
    if outputs is not None:
        y = y.reshape(len(y), -1)[:, outputs].reshape(len(y), map.groups, -1)
    return Moments(
        len(x),
        x.sum(0),
        np.einsum("ngk,ngl->gkl", x, x),
        y.sum(0),
        np.einsum("ngk,ngm->gkm", x, y),
        (y**2).sum(0),
    )


def same(one, other):
    names = ("x", "xx", "y", "xy", "yy")
    return one.count == other.count and all(
        np.allclose(getattr(one, name), getattr(other, name), 1e-4, 1e-2) for name in names
    )


def test_same_notices_a_forgotten_batch_and_one_wrong_sum():
    map, inputs = map_of(layers.Dense(3), (4,)), batches((4,))
    whole = by_numpy(map, inputs, map, inputs)
    last = [inputs[0][-1:]]
    assert same(whole, whole)
    assert not same(whole, by_numpy(map, last, map, last))
    assert not same(whole, Moments(whole.count, whole.x, whole.xx + 1, whole.y, whole.xy, whole.yy))


LAYERS = {
    "dense": (lambda: layers.Dense(3), (4,)),
    "dense of rank 3": (lambda: layers.Dense(3), (7, 4)),
    "conv": (lambda: layers.Conv2D(3, 3, padding="same"), (5, 6, 4)),
    "groups": (lambda: layers.Conv2D(6, 2, groups=2), (5, 6, 4)),
    "separable": (lambda: layers.SeparableConv2D(3, 3), (5, 6, 4)),
    "transposed": (lambda: layers.Conv2DTranspose(3, 2), (5, 6, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_the_sums_over_all_rows_of_all_batches(name):
    build, shape = LAYERS[name]
    map, inputs = map_of(build(), shape), batches(shape)
    assert same(measure(map, inputs, map, inputs), by_numpy(map, inputs, map, inputs))


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_wanted_comes_from_another_model_on_its_own_inputs(name):
    build, shape = LAYERS[name]
    mine, other = map_of(build(), shape), map_of(build(), shape, seed=1)
    inputs, originals = batches(shape), batches(shape, seed=2)
    assert same(measure(mine, inputs, other, originals), by_numpy(mine, inputs, other, originals))


def test_only_the_outputs_that_are_left_are_wanted():
    wide, narrow = map_of(layers.Dense(6), (4,)), map_of(layers.Dense(2), (3,))
    inputs, originals = batches((3,)), batches((4,), seed=2)
    found = measure(narrow, inputs, wide, originals, np.array([4, 1]))
    assert same(found, by_numpy(narrow, inputs, wide, originals, [4, 1]))
    assert not same(found, by_numpy(narrow, inputs, wide, originals, [1, 4]))


def test_outputs_that_are_left_are_counted_through_all_groups():
    wide = map_of(layers.Conv2D(8, 2, groups=2), (5, 6, 4))
    narrow = map_of(layers.Conv2D(4, 2, groups=2), (5, 6, 2))
    inputs, originals = batches((5, 6, 2)), batches((5, 6, 4), seed=2)
    found = measure(narrow, inputs, wide, originals, np.array([0, 2, 4, 6]))
    assert same(found, by_numpy(narrow, inputs, wide, originals, [0, 2, 4, 6]))
    assert found.xy.shape == (2, 4, 2)


def test_pieces_of_a_batch_sum_up(monkeypatch):
    map, inputs = map_of(layers.Conv2D(3, 3), (5, 6, 4)), batches((5, 6, 4))
    monkeypatch.setattr(moments, "_VALUES_AT_ONCE", 30 * 36 * 2)
    seen = []
    rows = map.rows
    object.__setattr__(map, "rows", lambda piece: seen.append(len(piece[0])) or rows(piece))
    found = measure(map, inputs, map, inputs)
    assert max(seen) == 2
    object.__setattr__(map, "rows", rows)
    assert same(found, by_numpy(map, inputs, map, inputs))


def cross_attention(queries, values):
    inputs = [keras.Input((queries, 4)), keras.Input((values, 4))]
    layer = layers.MultiHeadAttention(2, 3)
    randomise(keras.Model(inputs, layer(*inputs)))
    return layer


@pytest.mark.parametrize(("queries", "values"), [(30, 4), (4, 30)])
def test_pieces_of_tensors_of_different_lengths_stay_together(queries, values, monkeypatch):
    layer = cross_attention(queries, values)
    inputs = [batches((size, 4), (6,), seed=size)[0] for size in (queries, values)]
    maps = linear_maps(layer, layer._inbound_nodes[-1])
    whole = [measure(map, inputs, map, inputs) for map in maps]
    monkeypatch.setattr(moments, "_VALUES_AT_ONCE", 4 * 6 * 6)
    pieces = [measure(map, inputs, map, inputs) for map in maps]
    assert all(same(one, other) for one, other in zip(whole, pieces, strict=True))


def test_fewer_rows_are_taken_when_there_are_more_than_the_budget(monkeypatch):
    map, inputs = map_of(layers.Dense(3), (40, 4)), batches((40, 4), (8, 8, 4))
    monkeypatch.setattr(moments, "_LEAST_ROWS", 200)
    found = measure(map, inputs, map, inputs)
    assert found.count == 80 + 80 + 40
    whole = by_numpy(map, inputs, map, inputs)
    assert whole.count == 800
    np.testing.assert_allclose(found.x / found.count, whole.x / whole.count, atol=0.5)
    np.testing.assert_allclose(found.xx / found.count, whole.xx / whole.count, atol=1.5)


def test_rows_are_a_sample_of_the_whole_batch_and_the_seed_chooses(monkeypatch):
    map = map_of(layers.Dense(1), (1,))
    inputs = [[ops.convert_to_tensor(np.arange(1000, dtype="float32")[:, None])]]
    monkeypatch.setattr(moments, "_LEAST_ROWS", 100)
    found = [measure(map, inputs, map, inputs, seed=seed) for seed in (0, 0, 1)]
    assert [one.count for one in found] == [100] * 3
    means = [float(one.x[0, 0]) / 100 for one in found]
    assert means[0] == means[1] != means[2]
    assert all(350 < mean < 650 for mean in means)
    np.testing.assert_allclose(found[0].y, map.matrix()[0] * found[0].x + map.offset() * 100, rtol=1e-3)


def test_no_row_is_taken_twice(monkeypatch):
    map = map_of(layers.Dense(1), (1,))
    inputs = [[ops.convert_to_tensor(np.arange(100, dtype="float32")[:, None])]]
    monkeypatch.setattr(moments, "_LEAST_ROWS", 99)
    found = measure(map, inputs, map, inputs)
    left_out = sum(range(100)) - float(found.x[0, 0])
    assert left_out in range(100)
    assert float(found.xx[0, 0, 0]) == sum(number**2 for number in range(100)) - left_out**2


def test_a_wide_matrix_gets_a_larger_budget(monkeypatch):
    monkeypatch.setattr(moments, "_LEAST_ROWS", 10)
    for width in (1, 4):
        map, inputs = map_of(layers.Dense(2), (300, width)), batches((300, width), (4,))
        assert measure(map, inputs, map, inputs).count == 48 * width


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_sums_are_not_taken_in_the_precision_of_the_activations(policy):
    """A thousand squares of 20 are more than a float16 can say."""
    map = map_of(layers.Dense(2, dtype=policy), (4,))
    values = np.random.default_rng(0).normal(20, 1, (1000, 4)).astype(np.float16)
    inputs = [[ops.convert_to_tensor(values, map.layer.compute_dtype)]]
    found = measure(map, inputs, map, inputs)
    exact = np.asarray(inputs[0][0], np.float64)
    np.testing.assert_allclose(found.xx[0], exact.T @ exact, rtol=1e-5)
    np.testing.assert_allclose(found.y, exact.sum(0) @ map.matrix()[0] + 1000 * map.offset(), rtol=1e-3)


def test_centred_raw_and_variance_by_numpy():
    map, inputs = map_of(layers.Dense(3), (4,)), batches((4,), (50, 30))
    found = measure(map, inputs, map, inputs)
    x = np.concatenate([np.asarray(batch) for batch in inputs[0]]).astype(np.float64)
    y = x @ map.matrix()[0] + map.offset()
    xx, xy = found.centred()
    both = np.cov(np.concatenate([x, y], 1), rowvar=False, bias=True)
    np.testing.assert_allclose(xx[0], both[:4, :4], atol=1e-3)
    np.testing.assert_allclose(xy[0], both[:4, 4:], atol=1e-3)
    np.testing.assert_allclose(found.variance(), y.var(0).sum(), rtol=1e-3)
    raw_xx, raw_xy = found.raw()
    np.testing.assert_allclose(raw_xx[0], x.T @ x / 80, rtol=1e-4)
    np.testing.assert_allclose(raw_xy[0], x.T @ y / 80, rtol=1e-3, atol=1e-3)


def test_rounding_never_makes_a_variance_negative():
    one = np.ones((1, 1))
    assert Moments(3, one, one[None], 3 * one, one[None], 2.9999 * one).variance() == 0


def test_values_far_from_zero_keep_how_they_differ():
    map = map_of(layers.Dense(1), (2,))
    rows = np.random.default_rng(0).normal(size=(512, 2)) + 3000
    inputs = [[ops.convert_to_tensor(rows.astype("float32"))]]
    covariance, _ = measure(map, inputs, map, inputs).centred()
    np.testing.assert_allclose(covariance[0], np.cov(rows.T, bias=True), atol=1e-3)


def test_moments_of_scaled_outputs():
    layer = layers.Dense(3)
    inputs = keras.Input((4,))
    layer(inputs)
    (map,) = linear_maps(layer, layer._inbound_nodes[-1])
    rows = [[np.random.default_rng(0).normal(size=(20, 4)).astype("float32")]]
    sums = measure(map, rows, map, rows)
    assert sums.scaled(1.0) is sums
    layer.kernel.assign(0.5 * np.asarray(layer.kernel))
    half = measure(map, rows, map, rows)
    for name in ("count", "x", "xx", "y", "xy", "yy"):
        np.testing.assert_allclose(getattr(sums.scaled(0.5), name), getattr(half, name), rtol=1e-5, atol=1e-6)
