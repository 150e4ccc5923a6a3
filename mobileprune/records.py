"""The records that pass between stages: frozen, small, and at home in JSON.

They hold facts only; what computes them lives in the stage that is named in each docstring.
"""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Literal

from mobileprune.errors import VerificationError
from mobileprune.json_record import Record


@dataclasses.dataclass(frozen=True)
class Preprocess(Record):
    """The contract that turns an encoded image into the model's input, here and on the phone.

    decode → apply the EXIF orientation → convert to `color` → `fit` → resize → `(x - mean) / std`.

    Attributes:
        height: input height in pixels.
        width: input width in pixels.
        color: `"RGB"` or `"grayscale"` (ITU-R 601-2 luma, one channel).
        resize: the interpolation; `"bilinear"` samples at half-pixel centres.
        antialias: whether the bilinear filter widens when it shrinks an image.
        fit: `"stretch"` resizes the whole image; `"crop"` first cuts the largest centred rectangle of the input's
            aspect ratio.
        mean: subtracted from each channel of the 0 to 255 values.
        std: divides each channel afterwards.
        exif: whether the EXIF orientation is honoured.
    """

    height: int
    width: int
    color: Literal["RGB", "grayscale"] = "RGB"
    resize: Literal["bilinear"] = "bilinear"
    antialias: bool = True
    fit: Literal["stretch", "crop"] = "stretch"
    mean: tuple[float, ...] = (127.5,)
    std: tuple[float, ...] = (127.5,)
    exif: bool = True

    @property
    def channels(self) -> int:
        return 3 if self.color == "RGB" else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return (self.height, self.width, self.channels)


@dataclasses.dataclass(frozen=True)
class Latency(Record):
    """How long one file took on one device; measured by `benchmark`. Times in milliseconds, memory in bytes.

    Attributes:
        device: what it ran on: `host (AMD EPYC)`, `emulated arm64 (…)`, a phone.
        runtime: the runtime with its version.
        threads: of the interpreter.
        accelerator: what computed: `XNNPACK`, or `none` for the runtime's own kernels.
        p50_ms: the median invocation.
        p90_ms: 90% take at most so long.
        p99_ms: 99% take at most so long.
        runs: how many invocations these three are of.
        init_ms: creating the interpreter and allocating its tensors.
        peak_memory_bytes: what the file added to its process, at most.
        ratio: this file's time over the baseline's beside it, the median over rounds; where files were compared, of the
            fastest bursts of each pair of processes, see `benchmark.comparison`. None where there was no baseline.
        ratio_low: the lower end of its interval.
        ratio_high: the upper end.
        confidence: how often such an interval holds what it estimates. With one process a file that is the ratio of
            these two processes, which another pair of processes would not repeat.
        first_ms: the first invocation, which also packs weights; None where nobody asked.
        restarts: how many processes ran the file, one after another.
        rounds: how many turns it had in all.
        drift: by what share its times rose (or, negative, fell) from the first round to the last; None where there were
            too few rounds to say.
        outliers: share of invocations far above the rest of their burst, which were interrupted.
        histogram: quantiles of single invocations at 2.5%, 7.5%, …, 97.5%, in milliseconds; empty where nobody kept
            them.
    """

    device: str
    runtime: str
    threads: int
    accelerator: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int
    init_ms: float
    peak_memory_bytes: int
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    confidence: float | None = None
    first_ms: float | None = None
    restarts: int = 1
    rounds: int | None = None
    drift: float | None = None
    outliers: float | None = None
    histogram: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class ClassChanges(Record):
    """What a file changes for labelled images, against the Keras model that it came from. Shares, 0 to 1.

    Attributes:
        images: how many have a label.
        accuracy_before: of the Keras model.
        accuracy: of the file.
        churn: images whose top-1 class changed, from whatever to whatever.
        lost: images that the model has right and the file wrong.
        won: images that the model has wrong and the file right.
        worst_class: the class whose recall fell most, by name, or `output 3` where nobody named it.
        worst_class_drop: how far it fell; negative when every class gained.
    """

    images: int
    accuracy_before: float
    accuracy: float
    churn: float
    lost: float
    won: float
    worst_class: str
    worst_class_drop: float


@dataclasses.dataclass(frozen=True)
class Verification(Record):
    """How a file's outputs compare with those of the Keras model it came from; made by `verify`.

    Attributes:
        images: how many images were compared.
        agreement: share of images with the same top-1 class, 0 to 1.
        max_abs_error: largest absolute difference of any output.
        mean_abs_error: mean absolute difference over all outputs.
        snr_db: signal-to-noise ratio of the outputs in decibels.
        runtime: the runtime that ran the file, with its version.
        failures: the tolerances that were exceeded, as sentences; empty when the file passed.
        classes: what it changes for labelled images; None where no labels were given.
    """

    images: int
    agreement: float
    max_abs_error: float
    mean_abs_error: float
    snr_db: float
    runtime: str
    failures: tuple[str, ...] = ()
    classes: ClassChanges | None = None

    @property
    def passed(self) -> bool:
        """Whether every figure is there and within its tolerance."""
        return not (self.failures or self.missing())

    def missing(self) -> tuple[str, ...]:
        """The figures that are not there: a file of which something is not known has not passed."""
        figures = {name: getattr(self, name) for name in ("agreement", "max_abs_error", "mean_abs_error", "snr_db")}
        if self.classes is not None:
            figures |= {f"classes.{name}": value for name, value in self.classes.to_json().items()}
        numbers = {name: value for name, value in figures.items() if not isinstance(value, str)}
        missing = [name for name, value in numbers.items() if value is None or not math.isfinite(value)]
        return (*missing, *(() if self.images else ("images",)))

    def raise_if_failed(self) -> None:
        """Raises VerificationError with every exceeded tolerance and every missing figure."""
        missing = [f"The verification has no {name}: that is no pass." for name in self.missing()]
        if self.failures or missing:
            raise VerificationError(" ".join([*self.failures, *missing]))


@dataclasses.dataclass(frozen=True)
class RuntimeCheck(Record):
    """What came of running a file on one runtime; made by `runtime_checks`.

    Attributes:
        runtime: the runtime with its version.
        passed: whether it ran the file and answered what the Keras model answers, within the recipe's tolerance.
        reason: why not; empty where it passed.
        agreement: share of images with the same top-1 class, 0 to 1; None where the file did not run.
        max_abs_error: largest absolute difference of any output; None where the file did not run.
    """

    runtime: str
    passed: bool
    reason: str = ""
    agreement: float | None = None
    max_abs_error: float | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """One `.tflite` of one model, still in memory.

    Attributes:
        model: which model it came from (`base`, `s80`, `c50`, …).
        recipe: how it was quantized (`float32`, `int8`, …).
        content: the bytes that ship.
        precisions: what a recipe with rules gives its ops; empty for the built-in ones.
    """

    model: str
    recipe: str
    content: bytes = dataclasses.field(repr=False)
    precisions: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    @property
    def file_name(self) -> str:
        """What errors call it: `base_int8.tflite`, or the model as it is where there is no recipe."""
        return f"{self.model}_{self.recipe}.tflite" if self.recipe else self.model

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Writes the bytes atomically and returns the path."""
        from mobileprune.files import write_bytes

        return write_bytes(Path(path), self.content)
