"""The law of recipes, as functions that any model can be given to.

Each recipe makes a file that says what the model says, or is refused with a reason, and the reason is true. What can be
looked up is looked up: ops of which the quantizer is said to make no integer ones are in the file and compute in float,
and none of their kind computes in integers; shares of zeros are counted again; a verification's ratio is computed again
from what the file answers.
"""

import dataclasses
import math
import re
import warnings

import numpy as np

from mobileprune.calibration import calibrate
from mobileprune.errors import MobilePruneError
from mobileprune.layer_names import float_layers
from mobileprune.recipes import RECIPES, quantize
from mobileprune.records import Variant
from mobileprune.runtime_checks import verify_runtimes
from mobileprune.tflite_graph import read_graph
from mobileprune.tflite_runner import TfliteRunner
from mobileprune.verify import verify

_LEFT = re.compile(r"makes no integer ops of these: ([\w, ]+)")
_ZEROS = re.compile(r"(\d+)% of the weights are zero")
_RATIO = re.compile(r"the outputs have (-?[\d.]+) dB")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one recipe.

    Attributes:
        recipe: its name.
        reason: why there is no such file, or why it was not verified; empty for one that was.
        untrue: why the reason is unclear or wrong; empty for a true one.
        snr_db: signal-to-noise ratio of the file's outputs; None where none was run.
        agreement: share of images of the same top-1 class.
        float_ops: kinds of op that compute in float in a file of integer activations, with how many.
        runtimes: for each further runtime why the file did not pass there; empty where it did.
    """

    recipe: str
    reason: str = ""
    untrue: str = ""
    snr_db: float | None = None
    agreement: float | None = None
    float_ops: dict[str, int] = dataclasses.field(default_factory=dict)
    runtimes: dict[str, str] = dataclasses.field(default_factory=dict)


def measured_ranges(content, calibration):
    """`calibrate`, without its warning that a few dozen images are few."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return calibrate(content, calibration)


def outcome(content, recipe, ranges, expected, images, *, runtimes=(), runtime_images=8, timeout_s=600.0):
    """Makes one recipe's file of a float flatbuffer and verifies it; whatever is raised is the outcome.

    Args:
        content: the float32 `.tflite`.
        recipe: a name.
        ranges: what `calibrate` measured.
        expected: the model's outputs (N, outputs) for `images`.
        images: float32 (N, H, W, C).
        runtimes: names of further runtimes, which get the first `runtime_images` images of a file that was verified.
    """
    found = {"recipe": recipe}
    variant = None
    try:
        variant = Variant("zoo", recipe, quantize(content, recipe, ranges))
        found["float_ops"] = float_kinds(variant.content) if RECIPES[recipe].needs_calibration else {}
        report = verify(expected, variant, images, timeout_s=timeout_s)
        found |= {"snr_db": report.snr_db, "agreement": report.agreement, "reason": " ".join(report.failures)}
        if found["reason"]:
            found["untrue"] = untrue_failure(found["reason"], variant, expected, images, timeout_s)
            return Outcome(**found)
        some = slice(runtime_images)
        checks = verify_runtimes(expected[some], variant, images[some], runtimes, timeout_s=timeout_s)
        found["runtimes"] = {
            name: "" if check.passed else check.reason for name, check in zip(runtimes, checks.values(), strict=True)
        }
    except Exception as error:  # noqa: BLE001 - any error is an outcome, and all but the project's own are defects
        found["reason"] = " ".join(f"{error}".split())
        found["untrue"] = untrue_refusal(error, content, recipe, ranges)
    return Outcome(**found)


def untrue_refusal(error, content, recipe, ranges):
    """Why an error is no clear and true reason; empty if it is one."""
    said = " ".join(str(error).split())
    if not isinstance(error, MobilePruneError):
        return f"{type(error).__name__} is no MobilePruneError"
    if not said:
        return "nothing was said"
    if named := _LEFT.search(said):
        # The same precision with float input and output, which nothing left in float can prevent.
        twin = quantize(content, dataclasses.replace(RECIPES[recipe], name="twin", io="float32"), ranges)
        return untrue_kinds(named[1].split(", "), twin)
    if shares := _ZEROS.search(said):
        actual = read_graph(content).zero_fraction()
        return "" if round(100 * actual) == int(shares[1]) else f"{actual:.0%} of the weights are zero"
    return ""


def untrue_kinds(kinds, content):
    """Why ops of these kinds cannot be what the quantizer left in float in a file; empty if they can."""
    left = {op.index: op.op for op in float_layers(content)}
    for kind in kinds:
        if kind not in left.values():
            return f"no {kind} computes in float"
        if any(op.name == kind and op.index not in left for op in read_graph(content).ops):
            return f"another {kind} computes in integers"
    return ""


def untrue_failure(said, variant, expected, images, timeout_s=600.0):
    """Why what `verify` said of the outputs is wrong; empty if it is right, or speaks of something else."""
    claimed = _RATIO.search(said)
    if claimed is None:
        return ""
    with TfliteRunner(variant.content, 2, timeout_s) as runner:
        actual = runner.run(images).reshape(len(images), -1).astype(np.float64)
    noise = math.sqrt(np.mean((actual - expected) ** 2))
    ratio = 20 * math.log10(math.sqrt(np.var(expected, axis=0).mean()) / noise)
    return "" if abs(ratio - float(claimed[1])) < 0.1 else f"the outputs have {ratio:.1f} dB"


def float_kinds(content):
    """Kinds of op that compute in float, with how many."""
    kinds = [op.op for op in float_layers(content)]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}
