"""Does a file still say what the Keras model says? Two sets of outputs in, the agreement and every exceeded limit out.

How large an error is fair follows from the recipe, relative to the *spread* of the reference: the standard deviation
of each output over the images, pooled. Measured on randomised convnets and on EfficientNet-Lite0 with ImageNet weights
(60 crops of photographs, 60 others for calibration), runtime LiteRT 2.3.0:

| recipe | signal-to-noise ratio | largest error / range | limit on the first | on the second |
|---|---|---|---|---|
| float32, float32_sparse | 113 to 121 dB | 0.000001 | 60 dB | 0.001 |
| float16, float16_sparse | 44 to 73 dB | 0.0002 to 0.007 | 30 dB | 0.05 |
| dynamic_int8, weight_only_int8 | 16 to 43 dB | 0.006 to 0.2 | 10 dB | 0.5 |
| int8, int8_float_io, uint8_io, int16x8 | 16 to 41 dB | 0.02 to 0.32 | 10 dB | 0.5 |
| dynamic_int4 | -0.1 to 9 dB; -3 dB on EfficientNet-Lite0 | 0.19 to 0.56 | 0 dB | 0.6 |

`dynamic_int4` keeps a network's answers or does not: EfficientNet-Lite0 so made is right on 5% of the crops, and its
limits refuse that. A recipe with rules may change what the loosest of its precisions may.

Two exchanged classes of six give 2 dB, an output scale that is wrong by a half 6 dB, a wrong input normalisation less.

Outputs alone do not tell everything: `mobileprune.port_checks` looks at what the file takes and answers,
`mobileprune.class_changes` at what becomes of labelled images, `mobileprune.verify_files` begins at encoded images.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from mobileprune.class_changes import class_changes, exchanged_classes, falling_classes
from mobileprune.errors import VerificationError, known_names
from mobileprune.port_checks import PORT_DTYPES, check_ports
from mobileprune.records import Preprocess, Variant, Verification
from mobileprune.tflite_runner import TfliteRunner

# Identical outputs have no noise; JSON has no infinity.
HIGHEST_SNR_DB = 200.0
# Fewer images say nothing of one single output.
IMAGES_FOR_CORRELATION = 16


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What a recipe may change.

    Attributes:
        snr_db: lowest signal-to-noise ratio of the outputs, in decibels.
        max_error: largest error of any output, as a share of the range of the reference's outputs.
        agreement: lowest share of equal top-1 classes among the *decisive* images, those whose two best reference
            outputs are further apart than noise at `snr_db` explains.
        correlation: lowest correlation over the images of any single output with its reference. It finds two exchanged
            classes among a thousand, which all other figures overlook.
        class_drop: largest loss of recall of any class, where chance does not explain it.
    """

    snr_db: float
    max_error: float
    agreement: float
    correlation: float
    class_drop: float = 0.3

    def decisive_margin(self, spread: float) -> float:
        """The top-1 margin that noise at `snr_db` cannot overturn: three standard deviations of the difference of two
        outputs. Below it a flip is the price of the recipe and not a fault."""
        return float(3 * math.sqrt(2) * spread * 10 ** (-self.snr_db / 20))


_FLOAT32 = Tolerance(snr_db=60.0, max_error=0.001, agreement=0.999, correlation=0.99, class_drop=0.02)
_FLOAT16 = Tolerance(snr_db=30.0, max_error=0.05, agreement=0.995, correlation=0.9, class_drop=0.1)
_EIGHT_BITS = Tolerance(snr_db=10.0, max_error=0.5, agreement=0.99, correlation=0.5)
_FOUR_BITS = Tolerance(snr_db=0.0, max_error=0.6, agreement=0.9, correlation=0.5, class_drop=0.5)
TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {
        "float32": _FLOAT32,
        "float16": _FLOAT16,
        "dynamic_int8": _EIGHT_BITS,
        "int8": _EIGHT_BITS,
        "int8_float_io": _EIGHT_BITS,
        "uint8_io": _EIGHT_BITS,
        "int16x8": _EIGHT_BITS,
        "dynamic_int4": _FOUR_BITS,
        "weight_only_int8": _EIGHT_BITS,
        "float32_sparse": _FLOAT32,
        "float16_sparse": _FLOAT16,
    }
)


def verify(
    reference: Any,
    variant: Variant,
    images: np.ndarray,
    *,
    threads: int = 2,
    timeout_s: float = 60.0,
    tolerance: Tolerance | None = None,
    contract: Preprocess | None = None,
    labels: np.ndarray | None = None,
    names: Sequence[str] = (),
) -> Verification:
    """Runs a variant's bytes in a process of their own and compares its outputs with the reference's.

    Args:
        reference: the Keras model, any callable from images to outputs, or the outputs (N, outputs) themselves: compute
            them once with `reference_outputs` for many variants of one model.
        variant: the file and its recipe.
        images: float32 (N, H, W, C), or int32 (N, words) where the network takes ids. N is at least 2; 100 or more make
            the agreement worth reading.
        threads: for the interpreter.
        timeout_s: for each request to it.
        tolerance: in place of the recipe's own.
        contract: what the images went through; the range of an integer input must cover what it can give.
        labels: integers (N,), the classes of the images; gives the record its `classes`.
        names: of the classes, in the order of the outputs.

    Returns:
        The record; `failures` has a sentence for each limit exceeded. Values that are NaN or infinite, and outputs of
        another shape, count as 0 in the figures, and are failures.

    Raises:
        DatasetError: labels that no output can mean.
        InterpreterError: the file crashed, hung or could not be loaded at all.
        VerificationError: the reference says nothing: too few images, NaN, or the same for every image; or there is no
            tolerance for the recipe.

    Example:
        >>> outputs = reference_outputs(model, images)  # doctest: +SKIP
        >>> for variant in variants:  # doctest: +SKIP
        ...     verify(outputs, variant, images).raise_if_failed()
    """
    if tolerance is None:
        tolerance = tolerance_of(variant)
    expected = reference_outputs(reference, images)
    name = f"{variant.model}_{variant.recipe}.tflite"
    with TfliteRunner(variant.content, threads, timeout_s, name=name) as runner:
        actual = runner.run(images)
        facts = runner.facts
    promised = variant.recipe if variant.recipe in PORT_DTYPES else None  # `tolerance` may be given for any other
    failures = check_ports(
        facts.inputs,
        facts.outputs,
        recipe=promised,
        contract=contract,
        expected=expected,
        names=names,
        name=name,
        ids=images.dtype.kind == "i",
    )
    report = compare(expected, actual, tolerance, name=name, runtime=facts.runtime)
    failures += report.failures
    classes = None
    if labels is not None:
        if actual.shape == expected.shape:
            classes = class_changes(expected, actual, labels, names)
            failures += [
                f"{name}: {said}" for said in falling_classes(expected, actual, labels, tolerance.class_drop, names)
            ]
        failures += exchanged_classes(expected, labels, names)
    return dataclasses.replace(report, failures=tuple(failures), classes=classes)


def tolerance_of(variant: Variant) -> Tolerance:
    """What a variant's recipe may change; of a recipe with rules, the loosest of each limit of its precisions.

    Raises:
        VerificationError: there is no tolerance for the recipe.
    """
    for name in variant.precisions or (variant.recipe,):
        if name not in TOLERANCES:
            raise VerificationError(
                f"There is no tolerance for recipe {name!r}; there is for {known_names(TOLERANCES)}. Give tolerance=."
            )
    allowed = [TOLERANCES[name] for name in variant.precisions or (variant.recipe,)]
    return Tolerance(
        snr_db=min(each.snr_db for each in allowed),
        max_error=max(each.max_error for each in allowed),
        agreement=min(each.agreement for each in allowed),
        correlation=min(each.correlation for each in allowed),
        class_drop=max(each.class_drop for each in allowed),
    )


def reference_outputs(reference: Any, images: np.ndarray) -> np.ndarray:
    """The reference's outputs as float32 (N, outputs), from a Keras model, a callable or outputs already computed."""
    outputs: Any
    if isinstance(reference, np.ndarray):
        outputs = reference
    elif hasattr(reference, "predict"):
        outputs = reference.predict(images, batch_size=32, verbose=0)
    elif callable(reference):
        outputs = np.asarray(reference(images))
    else:
        raise VerificationError(f"A {type(reference).__name__} is no reference: give a model, a callable or outputs.")
    if not isinstance(outputs, np.ndarray):
        raise VerificationError("The reference has several outputs; only models with one can be compared.")
    if len(outputs) != len(images):
        raise VerificationError(f"The reference has outputs for {len(outputs)} images; there are {len(images)}.")
    return outputs.reshape(len(images), -1).astype(np.float32, copy=False)


def compare(
    expected: np.ndarray, actual: np.ndarray, tolerance: Tolerance, *, name: str = "the file", runtime: str = ""
) -> Verification:
    """The agreement of two sets of outputs (N, outputs).

    Raises:
        VerificationError: `expected` says nothing; see `verify`.
    """
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    spread = _spread(expected)
    failures = []
    if actual.shape != expected.shape:
        failures.append(f"{name} answers in shape {actual.shape}, the model in {expected.shape}.")
        actual = np.zeros_like(expected)
    elif not (finite := np.isfinite(actual)).all():
        broken = int((~finite).any(axis=1).sum())
        failures.append(f"{name} answers NaN or infinity for {broken} of {len(actual)} images.")
        actual = np.where(finite, actual, 0.0)
    elif (actual == actual[0]).all():
        failures.append(f"{name} answers the same for all {len(actual)} images.")
    error = np.abs(actual - expected)
    noise = math.sqrt(float(np.mean(error**2)))
    snr_db = HIGHEST_SNR_DB if noise == 0 else min(HIGHEST_SNR_DB, 20 * math.log10(spread / noise))
    same = expected.argmax(axis=1) == actual.argmax(axis=1)
    failures = failures or _exceeded(expected, actual, same, snr_db, spread, tolerance, name)
    return Verification(
        images=len(expected),
        agreement=float(same.mean()),
        max_abs_error=float(error.max()),
        mean_abs_error=float(error.mean()),
        snr_db=snr_db,
        runtime=runtime,
        failures=tuple(failures),
    )


def _spread(expected: np.ndarray) -> float:
    if expected.ndim != 2 or len(expected) < 2:
        raise VerificationError(f"The reference's outputs have shape {expected.shape}; 2 or more images are needed.")
    finite = np.isfinite(expected)
    if not finite.all():
        broken = int((~finite).any(axis=1).sum())
        raise VerificationError(f"The model itself answers NaN or infinity for {broken} of {len(expected)} images.")
    spread = math.sqrt(float(expected.var(axis=0).mean()))
    # Rounding alone moves float32 outputs by about 1e-7 of their size.
    if spread <= 1e-6 * float(np.abs(expected).max()):
        raise VerificationError(
            f"The model itself answers the same for all {len(expected)} images: its outputs differ by "
            f"{float(np.ptp(expected, axis=0).max()):.3g} at most. Check its weights and the images."
        )
    return spread


def _exceeded(
    expected: np.ndarray,
    actual: np.ndarray,
    same: np.ndarray,
    snr_db: float,
    spread: float,
    tolerance: Tolerance,
    name: str,
) -> list[str]:
    failures = []
    if snr_db < tolerance.snr_db:
        failures.append(f"{name}: the outputs have {snr_db:.1f} dB; at least {tolerance.snr_db:g} dB are needed.")
    share = float(np.abs(actual - expected).max() / np.ptp(expected))
    if share > tolerance.max_error:
        failures.append(
            f"{name}: an output is off by {share:.3g} of the range; at most {tolerance.max_error:g} is allowed."
        )
    if expected.shape[1] > 1:
        best = np.sort(expected, axis=1)
        decisive = best[:, -1] - best[:, -2] > tolerance.decisive_margin(spread)
        if decisive.any() and (agreement := float(same[decisive].mean())) < tolerance.agreement:
            failures.append(
                f"{name}: on {int(decisive.sum())} images with a clear class, {agreement:.1%} keep it; "
                f"{tolerance.agreement:.1%} are needed."
            )
    if len(expected) >= IMAGES_FOR_CORRELATION:
        correlations = _correlations(expected, actual, spread)
        worst = int(correlations.argmin())
        if correlations[worst] < tolerance.correlation:
            failures.append(
                f"{name}: output {worst} follows the model's with a correlation of {correlations[worst]:.2f}; "
                f"{tolerance.correlation:g} is needed."
            )
    return failures


def _correlations(expected: np.ndarray, actual: np.ndarray, spread: float) -> np.ndarray:
    """Pearson's correlation of each output over the images; 1 for outputs that the images hardly move."""
    expected, actual = expected - expected.mean(axis=0), actual - actual.mean(axis=0)
    sizes = np.linalg.norm(expected, axis=0), np.linalg.norm(actual, axis=0)
    moving = sizes[0] > 0.3 * spread * math.sqrt(len(expected))
    product = np.where(moving, np.maximum(sizes[0] * sizes[1], np.finfo(np.float64).tiny), 1.0)
    return np.where(moving, (expected * actual).sum(axis=0) / product, 1.0)
