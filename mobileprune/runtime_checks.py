"""Does a file say what its model says on each runtime that an app may carry? A crash is an answer, too.

Files are made for the newest runtime and read by older ones, which know fewer versions of the ops. Some refuse a file;
worse, some take it and answer noise: TensorFlow Lite 2.16.1 does so with 4-bit weights. docs/runtimes.md has the table.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from mobileprune.benchmark.arm64 import arm64_missing, run_on_arm64
from mobileprune.benchmark.arm64_setup import installation
from mobileprune.errors import InterpreterError, SettingsError, VerificationError, known_names
from mobileprune.records import RuntimeCheck, Variant
from mobileprune.runtimes import INTERPRETERS, find_interpreter, interpreter_missing
from mobileprune.tflite_runner import TfliteRunner
from mobileprune.verify import Tolerance, compare, reference_outputs, tolerance_of

ARM64 = "arm64"
RUNTIMES = (*INTERPRETERS, ARM64)


def runtime_missing(name: str) -> str | None:
    """Why a runtime cannot be used here, in one sentence with the way out; None if it can.

    Args:
        name: `"litert"`, `"litert_reference"`, `"tflite_2.16.1"` or `"arm64"`; see `mobileprune.runtimes`.

    Raises:
        SettingsError: there is no runtime of that name; the message lists them.

    Example:
        >>> runtime_missing("litert") is None
        True
    """
    if name not in RUNTIMES:
        raise SettingsError(f"There is no runtime {name!r}; known: {known_names(RUNTIMES)}.")
    return arm64_missing() if name == ARM64 else interpreter_missing(name)


def usable_runtimes() -> tuple[str, ...]:
    """The names of the runtimes that are set up here.

    Example:
        >>> usable_runtimes()  # doctest: +SKIP
        ('litert', 'litert_reference', 'tflite_2.16.1', 'arm64')
    """
    return tuple(name for name in RUNTIMES if runtime_missing(name) is None)


def verify_runtimes(
    reference: Any,
    variant: Variant,
    images: np.ndarray,
    runtimes: Iterable[str] = ("litert",),
    *,
    threads: int = 2,
    timeout_s: float = 60.0,
    arm64_images: int = 8,
    arm64_timeout_s: float = 300.0,
    tolerance: Tolerance | None = None,
) -> dict[str, RuntimeCheck]:
    """Runs a variant's bytes on several runtimes, each in processes of its own, and compares what they answer.

    Args:
        reference: the Keras model, any callable from images to outputs, or the outputs (N, outputs) themselves.
        variant: the file and its recipe.
        images: float32 (N, H, W, C), N at least 2.
        runtimes: names; `usable_runtimes()` are all that are set up here.
        threads: for each interpreter.
        timeout_s: for each request to one: loading, or 32 images.
        arm64_images: how many of the images ARM64 gets, where it is emulated and hundreds of times slower.
        arm64_timeout_s: for all of them.
        tolerance: in place of the recipe's own, the same on every runtime.

    Returns:
        For each name what came of it. A file that crashed, hung, was refused or answered something else has not passed,
        and `reason` says what happened. Nothing is raised for it.

    Raises:
        SettingsError: a runtime is not known or not set up here; nothing has been run then.
        VerificationError: the images cannot be meant, the reference says nothing (see `verify`), or there is no
            tolerance for the recipe.

    Example:
        >>> checks = verify_runtimes(model, variant, images, usable_runtimes())  # doctest: +SKIP
        >>> [name for name, check in checks.items() if not check.passed]  # doctest: +SKIP
        ['tflite_2.16.1']
    """
    names = tuple(dict.fromkeys(runtimes))
    for name in names:
        if reason := runtime_missing(name):
            raise SettingsError(reason)
    if images.dtype != np.float32 or not np.isfinite(images).all():  # no fault of the file
        raise VerificationError("The images are not float32, or hold NaN or infinity. Give what the Keras model takes.")
    if arm64_images < 2:
        raise SettingsError(f"arm64_images is {arm64_images}; at least 2 are needed.")
    if tolerance is None:
        tolerance = tolerance_of(variant)
    expected = reference_outputs(reference, images)
    checks = {}
    for name in names:
        count = min(len(images), arm64_images) if name == ARM64 else len(images)
        try:
            if name == ARM64:
                actual = _on_arm64(variant, images[:count], threads, arm64_timeout_s)
            else:
                with TfliteRunner(variant.content, threads, timeout_s, name=_file(variant), runtime=name) as runner:
                    actual = runner.run(images)
        except InterpreterError as error:
            checks[name] = RuntimeCheck(_title(name), passed=False, reason=" ".join(str(error).split()))
            continue
        report = compare(expected[:count], actual, tolerance, name=_file(variant))
        checks[name] = RuntimeCheck(
            runtime=_title(name),
            passed=report.passed,
            reason=" ".join(report.failures),
            agreement=report.agreement,
            max_abs_error=report.max_abs_error,
        )
    return checks


def _on_arm64(variant: Variant, images: np.ndarray, threads: int, timeout_s: float) -> np.ndarray:
    name = _file(variant)
    outputs = run_on_arm64(variant.content, images, threads=threads, timeout_s=timeout_s, name=name).outputs
    if len(outputs) != 1:
        raise InterpreterError(f"{name} has {len(outputs)} outputs; only files with one can be compared.")
    return outputs[0].reshape(len(images), -1)


def _title(name: str) -> str:
    """What records call a runtime that is set up."""
    if name != ARM64:
        return find_interpreter(name).title
    found = installation()
    if isinstance(found, str):
        raise SettingsError(found)
    return f"{found.runtime} on {found.device}"


def _file(variant: Variant) -> str:
    return f"{variant.model}_{variant.recipe}.tflite"
