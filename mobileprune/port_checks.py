"""Inputs and outputs of a file against what its recipe promises and the preprocessing contract implies.

A wrong scale or zero point of an *input* shows in no comparison of outputs: whoever feeds the file quantizes by what
the file says, and the runtime computes by the same. What it costs is range: values beyond the ends are cut off. So the
range is what is checked, against the range of numbers that the contract can give.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from mobileprune.calibration_data import contract_range
from mobileprune.errors import VerificationError, known_names
from mobileprune.records import Preprocess
from mobileprune.runner_facts import TensorFacts

# What every recipe takes and answers.
PORT_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("float32", "float16", "float32_sparse", "float16_sparse", "int8_float_io"), "float32"),
        **dict.fromkeys(("dynamic_int8", "dynamic_int4", "weight_only_int8"), "float32"),
        "int8": "int8",
        "uint8_io": "uint8",
        "int16x8": "int16",
    }
)
# Calibration images need not reach black and white; this share of the contract's range may lie beyond the file's.
INPUT_CUT = 0.1
# A file whose range is so many times the contract's was calibrated on other numbers.
INPUT_WIDER = 2.5
# Single outputs may go beyond what calibration saw, by this share of the reference's range.
OUTPUT_CUT = 0.3


def check_ports(
    inputs: Sequence[TensorFacts],
    outputs: Sequence[TensorFacts],
    *,
    recipe: str | None = None,
    contract: Preprocess | None = None,
    expected: np.ndarray | None = None,
    names: Sequence[str] = (),
    name: str = "the file",
    ids: bool = False,
) -> list[str]:
    """Every way in which a file's inputs and outputs are not what they should be, as sentences.

    Args:
        inputs: the inputs as the runtime sees them.
        outputs: the outputs.
        recipe: whose dtypes are promised; None leaves them unchecked.
        contract: what images become; None leaves the input's size and range unchecked.
        expected: the reference's outputs (N, outputs); None leaves number and range of the outputs unchecked.
        names: of the classes; empty leaves their number unchecked.
        name: what sentences call the file.
        ids: whether the network takes whole numbers that it looks up, of words for example: no recipe changes those.

    Raises:
        VerificationError: nobody promised anything for that recipe.
    """
    if len(inputs) != 1 or len(outputs) != 1:
        return [f"{name} has {len(inputs)} inputs and {len(outputs)} outputs; one of each can be checked."]
    (taken,), (answered,) = inputs, outputs
    failures = []
    for kind, port in (("input", taken), ("output", answered)):
        if ids and port is taken:
            if np.dtype(port.dtype).kind != "i" or port.scale is not None:
                failures.append(f"{name}: the input is {port.dtype}; the network takes ids, which are int32 or int64.")
            continue
        if recipe is not None and port.dtype != promised_dtype(recipe):
            failures.append(f"{name}: the {kind} is {port.dtype}; {recipe} promises {promised_dtype(recipe)}.")
        failures += [f"{name}: the {kind} {said}" for said in _quantization_faults(port)]
    if contract is not None and taken.shape[1:] != contract.shape:
        failures.append(f"{name} takes {taken.shape[1:]}; the preprocessing gives {contract.shape}.")
    if names and len(names) != math.prod(answered.shape[1:]):
        failures.append(f"{name} has {math.prod(answered.shape[1:])} outputs, but {len(names)} labels are named.")
    if failures:
        return failures
    covered = stored_range(taken)
    if contract is not None and covered is not None:
        failures += _input_range_faults(covered, contract_range(contract), taken, name)
    answers = stored_range(answered)
    if expected is not None and answers is not None:
        wanted = (float(expected.min()), float(expected.max()))
        if (cut := _cut(answers, wanted)) > OUTPUT_CUT:
            failures.append(
                f"{name}: the output can hold {_shown(answers)} (scale {answered.scale:.4g}, zero point "
                f"{answered.zero_point}), and the model answers {_shown(wanted)}: {cut:.0%} of that is cut off."
            )
    return failures


def promised_dtype(recipe: str) -> str:
    """The dtype of a recipe's input and output.

    Raises:
        VerificationError: nobody promised one.
    """
    if recipe not in PORT_DTYPES:
        raise VerificationError(f"What does recipe {recipe!r} take? Known: {known_names(PORT_DTYPES)}.")
    return PORT_DTYPES[recipe]


def stored_range(port: TensorFacts) -> tuple[float, float] | None:
    """The smallest and largest number that an integer input or output can hold; None for a float one."""
    if port.scale is None or port.zero_point is None or np.dtype(port.dtype).kind not in "iu":
        return None
    limits = np.iinfo(port.dtype)
    return (int(limits.min) - port.zero_point) * port.scale, (int(limits.max) - port.zero_point) * port.scale


def _quantization_faults(port: TensorFacts) -> list[str]:
    kind = np.dtype(port.dtype).kind
    if kind == "f":
        return []
    if kind not in "iu":
        return [f"is {port.dtype}; a file for images takes and answers numbers."]
    if port.scale is None or port.zero_point is None or not (math.isfinite(port.scale) and port.scale > 0):
        return [f"is {port.dtype} with scale {port.scale} and zero point {port.zero_point}; both are needed."]
    limits = np.iinfo(port.dtype)
    if not limits.min <= port.zero_point <= limits.max:
        return [f"has zero point {port.zero_point}, which no {port.dtype} can hold."]
    return []


def _input_range_faults(
    covered: tuple[float, float], needed: tuple[float, float], port: TensorFacts, name: str
) -> list[str]:
    said = (
        f"{name}: the input can hold {_shown(covered)} (scale {port.scale:.4g}, zero point {port.zero_point}), and the "
        f"preprocessing gives {_shown(needed)}: "
    )
    if (times := (covered[1] - covered[0]) / (needed[1] - needed[0])) > INPUT_WIDER:
        return [f"{said}{times:.3g} times less. Is the normalisation that of the calibration images?"]
    if (cut := _cut(covered, needed)) > INPUT_CUT:
        return [f"{said}{cut:.0%} of that is cut off. Is the normalisation that of the calibration images?"]
    return []


def _cut(held: tuple[float, float], wanted: tuple[float, float]) -> float:
    """Which share of `wanted` lies outside `held`."""
    outside = max(0.0, held[0] - wanted[0]) + max(0.0, wanted[1] - held[1])
    width = wanted[1] - wanted[0]
    return min(1.0, outside / width) if width > 0 else 0.0


def _shown(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.4g} to {ends[1]:.4g}"
