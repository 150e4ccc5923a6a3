"""Weight sparsity on Keras 3 models: wrap, train with a callback, strip.

The names and their meaning are those of the TensorFlow Model Optimization toolkit.
"""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from mobileprune.errors import ModelError, SparsityError, known_names
from mobileprune.fake_quant import QuantizedKernel
from mobileprune.graph import clone, functional_graph, same_layer
from mobileprune.masks import zero_fraction
from mobileprune.prunable import kernels_of, prunable_weights, variable_at
from mobileprune.pruning_wrapper import PruneLowMagnitude, numbers_of, update_masks, wrapped_layers
from mobileprune.schedules import ConstantSparsity, PruningSchedule, as_schedule

Schedules = Any | Mapping[str, Any]


def prune_low_magnitude(
    to_prune: Any,
    pruning_schedule: Schedules | None = None,
    block_size: tuple[int, int] = (1, 1),
    block_pooling_type: str = "AVG",
    pruning_policy: Any = None,
    sparsity_m_by_n: tuple[int, int] | None = None,
    *,
    nested: bool = False,
    allocation: str = "uniform",
    **kwargs: Any,
) -> Any:
    """Wraps a layer, or every layer with kernels of a model, so that training makes it sparse.

    Args:
        to_prune: a layer, a list of layers, or a built Sequential or functional model (left as it is). Models nested in
            it are wrapped inside.
        pruning_schedule: one schedule, ours or the TensorFlow Model Optimization toolkit's, or a mapping from wildcard
            patterns of layer names to schedules (None leaves the layer dense; the first pattern that matches counts;
            layers that none matches stay dense). By default a constant 50%.
        block_size: (inputs, outputs) of the blocks that are kept or removed as a whole, in every tap of a convolution.
        block_pooling_type: `"AVG"` or `"MAX"`, what stands for the magnitude of a block.
        pruning_policy: an object whose `allow_pruning(layer)` says which layers are wrapped, and whose
            `ensure_model_supports_pruning(model)` may refuse the model.
        sparsity_m_by_n: (m, n): m of each n consecutive inputs are zero; schedules say only when masks are updated.
        nested: zeros that the model already has stay, and masks only ever lose weights.
        allocation: `"uniform"`, `"global"` or `"erk"`: how the sparsity is shared among layers of one schedule.
        **kwargs: for the wrapper, when layers are wrapped.

    Returns:
        The wrapped layer or layers, or a new uncompiled model. Train it with `UpdatePruningStep` among the callbacks.

    Raises:
        SparsityError: there is nothing to prune, or a value cannot be meant.
        ModelError: the model, or one nested in it, is subclassed or not built.

    Example:
        >>> schedule = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=1000)
        >>> sparse = prune_low_magnitude(keras.layers.Dense(4), schedule)
        >>> sparse.name
        'prune_low_magnitude_dense'
    """
    schedule = ConstantSparsity(0.5, begin_step=0) if pruning_schedule is None else pruning_schedule
    settings: dict[str, Any] = {
        "block_size": block_size,
        "block_pooling_type": block_pooling_type,
        "sparsity_m_by_n": sparsity_m_by_n,
        "nested": nested,
        "allocation": allocation,
    }
    if isinstance(to_prune, list | tuple):
        return [
            prune_low_magnitude(one, schedule, pruning_policy=pruning_policy, **settings, **kwargs) for one in to_prune
        ]
    if not isinstance(to_prune, keras.Layer):
        raise SparsityError(f"{to_prune!r} is neither a Keras layer nor a model.")
    if not isinstance(to_prune, keras.Model):
        if isinstance(to_prune, PruneLowMagnitude | keras.layers.InputLayer) or not _allowed(pruning_policy, to_prune):
            return to_prune
        chosen = _schedule_for(to_prune.name, schedule)
        return to_prune if chosen is None else PruneLowMagnitude(to_prune, chosen, **settings, **kwargs)
    if kwargs:
        raise SparsityError(f"There is no argument {', '.join(map(repr, kwargs))} when a model is wrapped.")
    if pruning_policy is not None:
        pruning_policy.ensure_model_supports_pruning(to_prune)

    def wrap(layer: Any, copy: Any) -> Any:
        names.append(layer.name)
        chosen = _schedule_for(layer.name, schedule) if _allowed(pruning_policy, layer) else None
        return copy if chosen is None else PruneLowMagnitude(copy, chosen, **settings)

    names: list[str] = []
    wrapped = _wrap(to_prune, wrap, nested)
    for pattern in schedule if isinstance(schedule, Mapping) else ():
        if not fnmatch.filter(names, pattern):
            raise SparsityError(
                f"No layer with kernels in {to_prune.name!r} is called {pattern!r}. Known: {known_names(names)}."
            )
    return wrapped


def hold_zeros(model: Any) -> Any:
    """Wraps a model so that the zeros it has now stay through any later training; `strip_pruning` takes it off.

    Train with `UpdatePruningStep` when the optimizer averages weights (`use_ema`): Keras writes the averages at the
    very end, past the masks.

    Example:
        >>> held = hold_zeros(pruned); held.compile(...); held.fit(...)             # doctest: +SKIP
        >>> pruned = strip_pruning(held)                                            # doctest: +SKIP
    """
    return _wrap(model, lambda layer, copy: PruneLowMagnitude(copy, None, nested=True), keeps_zeros=True)


def strip_pruning(model: Any) -> Any:
    """The plain model inside a wrapped one: same outputs, same layer names as before wrapping, exact zeros.

    Returns:
        A new uncompiled model without any mobileprune layer.

    Raises:
        ModelError: the model, or one nested in it, is subclassed or not built.
        SparsityError: a wrapped layer is inside another layer than a model.
    """
    stripped, pairs = _copied(model, lambda layer: layer.layer if isinstance(layer, PruneLowMagnitude) else layer)
    if held := wrapped_layers(stripped):
        raise SparsityError(
            f"{held[0].name!r} is inside another layer and cannot be taken off there. Wrap the outer layer instead: "
            "prune_low_magnitude(keras.layers.TimeDistributed(layer))."
        )
    for old, new in pairs:
        if not isinstance(old, PruneLowMagnitude):
            new.set_weights(old.get_weights())
            continue
        new.set_weights(old.layer.get_weights())
        for kernel, _, mask in old.pruned_weights():
            variable = variable_at(new, kernel.path)
            # Not a product: that leaves negative zeros, whose sign bits make files compress worse.
            variable.assign(np.where(numbers_of(mask) > 0, numbers_of(variable), 0))
    return stripped


def prune_now(model: Any) -> Any:
    """Brings a wrapped model to its schedules' final sparsity at once, without training; returns `model`."""
    last: dict[int, list[PruneLowMagnitude]] = {}
    for layer in wrapped_layers(model):
        if layer.pruning_schedule is not None:
            last.setdefault(layer.pruning_schedule.last_step, []).append(layer)
    for step, wrapped in last.items():
        update_masks(wrapped, step)
    return model


def sparsity(model: Any) -> float:
    """Share of exact zeros among all weights that masks may zero (see `prunable`), wrapped, nested or not."""
    inner = {id(layer): layer for layer in _leaves(model)}.values()
    return zero_fraction([numbers_of(weights) for layer in inner for weights in prunable_weights(layer).values()])


def _leaves(model: Any) -> list[Any]:
    found = []
    for layer in model.layers:
        found += _leaves(layer) if isinstance(layer, keras.Model) else [layer]
    found = [layer.layer if isinstance(layer, QuantizedKernel) else layer for layer in found]
    return [layer.layer if isinstance(layer, PruneLowMagnitude) else layer for layer in found]


def _wrap(model: Any, wrap: Callable[[Any, Any], Any], keeps_zeros: bool) -> Any:
    if wrapped_layers(model):
        raise SparsityError(f"{model.name!r} holds wrapped layers already: strip_pruning it first.")
    result, pairs = _copied(
        model, lambda layer: layer, lambda layer, copy: wrap(layer, copy) if kernels_of(copy) else copy
    )
    for old, new in pairs:
        if not isinstance(new, PruneLowMagnitude):
            new.set_weights(old.get_weights())
            continue
        new.layer.set_weights(old.get_weights())
        if keeps_zeros:
            new.mask_zeros()
    if not wrapped_layers(result):
        raise SparsityError(f"Nothing to prune in {model.name!r}: no layer with kernels has a schedule.")
    return result


def _copied(
    model: Any, plain: Callable[[Any], Any], changed: Callable[[Any, Any], Any] = lambda layer, copy: copy
) -> tuple[Any, list[tuple[Any, Any]]]:
    """A new model with `changed(layer, copy of plain(layer))` for each layer, nested ones too; all pairs (old, new)."""
    pairs: list[tuple[Any, Any]] = []
    if not isinstance(model, keras.Model):
        raise ModelError(f"{model!r} is no Keras model.")

    def copied(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            functional_graph(layer)
            return clone(layer, copied)
        if isinstance(layer, keras.layers.Lambda):
            return layer  # without weights, and its function cannot be made anew from a configuration safely
        try:
            copy = same_layer(plain(layer))
        except (TypeError, ValueError, NotImplementedError) as error:
            why = " ".join(str(error).strip().partition("\n\n")[0].split())  # the rest is Keras' example
            raise ModelError(
                f"{type(layer).__name__} {layer.name!r} cannot be made anew from its get_config(): {why}"
            ) from error
        if not isinstance(layer, keras.Layer):
            return copy  # a call of keras.ops
        build_config = plain(layer).get_build_config()
        if build_config and kernels_of(copy):
            # Built like the original: a wrapper cannot tell which of several inputs is which.
            copy.build_from_config(build_config)
        pairs.append((layer, changed(layer, copy)))
        return pairs[-1][1]

    try:
        return clone(model, copied), pairs
    except ValueError as error:
        raise ModelError(f"{model.name!r} cannot be put together with other layers: {error}") from error


def _allowed(policy: Any, layer: Any) -> bool:
    return policy is None or bool(policy.allow_pruning(layer))


def _schedule_for(name: str, schedules: Schedules) -> PruningSchedule | None:
    if not isinstance(schedules, Mapping):
        return as_schedule(schedules)
    found = next((schedule for pattern, schedule in schedules.items() if fnmatch.fnmatchcase(name, pattern)), None)
    return None if found is None else as_schedule(found)
