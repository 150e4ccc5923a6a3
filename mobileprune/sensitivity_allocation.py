"""From measured sensitivities to how much of each part goes: channels, zeros or bits where they are missed least.

Losses of parts are taken to add up, as they do while all are small; what buys most for its loss goes first. That is
best for a sum of convex losses (Shoham & Gersho 1988, "Efficient Bit Allocation for an Arbitrary Set of Quantizers"),
so each part's loss is replaced by the largest convex function below it.
"""

import glob
from collections.abc import Sequence

import numpy as np

from mobileprune.errors import SettingsError, known_names
from mobileprune.mixed_recipe import Recipe, Rule
from mobileprune.ranking import Ranking
from mobileprune.second_order import shares_of_least_loss
from mobileprune.sensitivity_record import PartSensitivity, Sensitivity, SensitivityPoint

LOSSES = ("divergence", "accuracy", "agreement", "snr_db")
_FLOAT_BITS = 32
_PRECISIONS = {16: "float16", 8: "dynamic_int8", 4: "dynamic_int4"}


def channel_rankings(sensitivity: Sensitivity, by: str | None = None) -> dict[str, Ranking]:
    """Rankings for `plan_channels(importance=…)`: insensitive groups lose their channels first, for any target.

    A plan divides each loss by the MACs (or parameters) that the channel takes with it, so that what goes first costs
    least for what it saves. Channels go in the order in which they went in the analysis.

    Args:
        sensitivity: of `kind="channels"`.
        by: which figure is the loss: `"divergence"` (where outputs are classes the default), `"accuracy"`,
            `"agreement"`, or `"snr_db"`, the noise as a share of the signal.

    Raises:
        SettingsError: of another kind, or without that figure.

    Example:
        >>> plan_channels(model, macs=0.5, importance=channel_rankings(sensitivity))        # doctest: +SKIP
    """
    _check_kind(sensitivity, "channels")
    measure = _measure(sensitivity, by)
    return {part.name: _ranking(part, _losses(sensitivity, part, measure)) for part in sensitivity.parts}


def sparsity_shares(sensitivity: Sensitivity, sparsity: float, by: str | None = None) -> dict[str, float]:
    """The share of zeros of each layer, for `prune_one_shot(sparsity=…)`, so that all together have `sparsity`.

    For `prune_low_magnitude` make a schedule of each: `{layer: ConstantSparsity(share, 0) for layer, share in …}`.

    Args:
        sensitivity: of `kind="sparsity"`. Layers that it does not hold stay dense.
        sparsity: share of zeros over all its weights, at most the largest ratio that was measured.
        by: see `channel_rankings`.

    Returns:
        Shares by the layer's path, as a pattern that matches nothing else.

    Raises:
        SettingsError: of another kind, without that figure, or more zeros than were measured.

    Example:
        >>> prune_one_shot(model, sparsity_shares(sensitivity, 0.8), images)                # doctest: +SKIP
    """
    _check_kind(sensitivity, "sparsity")
    measure = _measure(sensitivity, by)
    order = np.argsort(sensitivity.amounts)
    levels = [sensitivity.amounts[place] for place in order]
    if not 0 <= sparsity <= levels[-1]:
        raise SettingsError(f"sparsity={sparsity:g}: what was measured reaches from 0 to {levels[-1]:g}.")
    losses = [[_losses(sensitivity, part, measure)[place] for place in order] for part in sensitivity.parts]
    shares = shares_of_least_loss([part.size for part in sensitivity.parts], levels, losses, sparsity)
    return {glob.escape(part.name): share for part, share in zip(sensitivity.parts, shares, strict=True)}


def mixed_bits(sensitivity: Sensitivity, bits: float, by: str | None = None, name: str = "mixed_bits") -> Recipe:
    """A recipe for `convert` in which weights take `bits` bits on average, fewer where they are missed least.

    A layer keeps float32, or gets one of the numbers of bits that were measured: 16 (`float16`), 8 (`dynamic_int8`) or
    4 (`dynamic_int4`; an op without a kernel for it gets 8).

    Args:
        sensitivity: of `kind="quantization"`. Layers that it does not hold stay float32.
        bits: of a weight, on average over all weights that it holds; at most 32.
        by: see `channel_rankings`.
        name: the recipe's.

    Raises:
        SettingsError: of another kind, without that figure, bits that no recipe has, or fewer than were measured.

    Example:
        >>> convert(model, [mixed_bits(sensitivity, 6.0)])                                  # doctest: +SKIP
    """
    _check_kind(sensitivity, "quantization")
    measure = _measure(sensitivity, by)
    known = sorted({int(amount) for amount in sensitivity.amounts})
    for each in known:
        if each not in _PRECISIONS:
            raise SettingsError(
                f"No recipe has weights of {each} bits. Measure bits of {known_names(map(str, _PRECISIONS))}."
            )
    if not known[0] <= bits <= _FLOAT_BITS:
        raise SettingsError(f"bits={bits:g}: what was measured reaches from {known[0]} to {_FLOAT_BITS}.")
    total = sum(part.size for part in sensitivity.parts)
    chosen = dict.fromkeys((part.name for part in sensitivity.parts), _FLOAT_BITS)
    used = float(_FLOAT_BITS * total)
    steps = [
        (price, part, number)
        for part in sensitivity.parts
        for price, number in _bit_steps(part, _losses(sensitivity, part, measure))
    ]
    for _, part, number in sorted(steps, key=lambda step: step[0]):
        if used <= bits * total:
            break
        used -= part.size * (chosen[part.name] - number)
        chosen[part.name] = number
    rules = tuple(
        Rule(precision, layer=glob.escape(layer))
        for layer, number in chosen.items()
        for precision in ([_PRECISIONS[8]] if number < 8 else [])
        + ([_PRECISIONS[number]] if number in _PRECISIONS else [])
    )
    return Recipe(name, f"weights of {used / total:.2f} bits on average, by sensitivity", "float32", rules=rules)


def _ranking(part: PartSensitivity, losses: Sequence[float]) -> Ranking:
    """What each channel of a group costs, in the order in which they went."""
    share, loss = _convex([point.taken for point in part.points], losses)
    if len(share) < 2:
        raise SettingsError(f"No ratio was large enough to take a channel of {part.name!r}. Analyse larger ratios.")
    slopes = np.diff(loss) / np.diff(share)
    # Channels behind the last measured one cost as much as those before it.
    middle = (np.arange(part.size) + 0.5) / part.size
    each = slopes[np.minimum(np.searchsorted(share[1:], middle), len(slopes) - 1)] / part.size
    return Ranking(np.array(part.order), each, absolute=True)


def _bit_steps(part: PartSensitivity, losses: Sequence[float]) -> list[tuple[float, int]]:
    """From float to ever fewer bits: the loss for each bit that a step saves, and the bits that are left."""
    saved = [_FLOAT_BITS - point.taken for point in part.points]
    share, loss = _convex(saved, losses)
    prices = np.diff(loss) / (np.diff(share) * part.size)
    return [(float(price), int(_FLOAT_BITS - at)) for price, at in zip(prices, share[1:], strict=True)]


def _convex(amounts: Sequence[float], losses: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the largest convex curve through the origin that lies nowhere above the points and never falls."""
    lowest: dict[float, float] = {}
    for amount, loss in sorted(zip(amounts, losses, strict=True)):
        lowest.setdefault(amount, loss)
    points = [(0.0, 0.0), *((amount, max(loss, 0.0)) for amount, loss in lowest.items() if amount > 0)]
    # More can never be said to cost less.
    rising = np.minimum.accumulate([loss for _, loss in points[::-1]])[::-1]
    hull: list[tuple[float, float]] = []
    for (amount, _), loss in zip(points, rising, strict=True):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (amount, loss)):
            hull.pop()
        hull.append((amount, float(loss)))
    return np.array([amount for amount, _ in hull]), np.array([loss for _, loss in hull])


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def _losses(sensitivity: Sensitivity, part: PartSensitivity, by: str) -> list[float]:
    return [_loss(sensitivity, point, by) for point in part.points]


def _loss(sensitivity: Sensitivity, point: SensitivityPoint, by: str) -> float:
    if by == "snr_db":
        return float(10 ** (-point.snr_db / 10))
    value = float(getattr(point, by))
    if by == "divergence":
        return value
    return (sensitivity.accuracy if by == "accuracy" and sensitivity.accuracy is not None else 1.0) - value


def _measure(sensitivity: Sensitivity, by: str | None) -> str:
    points = [point for part in sensitivity.parts for point in part.points]
    there = [name for name in LOSSES if all(getattr(point, name) is not None for point in points)]
    if by is None:
        return there[0]
    if by not in there:
        raise SettingsError(f"by={by!r}: this analysis has {known_names(there)}.")
    return by


def _check_kind(sensitivity: Sensitivity, kind: str) -> None:
    if sensitivity.kind != kind:
        raise SettingsError(f"This is a sensitivity of kind {sensitivity.kind!r}; kind={kind!r} is needed.")
    if not sensitivity.parts or not all(part.points for part in sensitivity.parts):
        raise SettingsError("The sensitivity analysis is empty.")
