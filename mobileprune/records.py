"""The records that pass between stages: frozen, small, and at home in JSON.

They hold facts only; what computes them lives in the stage that is named in each docstring.
"""

import dataclasses
import hashlib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from mobileprune.errors import OutputError, VerificationError

Json = dict[str, Any]


class Record:
    """JSON round trip for frozen dataclasses: nested records, tuples and optional fields."""

    def to_json(self) -> Json:
        """The record as plain JSON types; tuples become lists."""
        fields = dataclasses.fields(typing.cast(Any, self))
        return {field.name: _plain(getattr(self, field.name)) for field in fields}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The record that `to_json` wrote.

        Raises:
            OutputError: a field is missing, or one is not known.
        """
        hints = typing.get_type_hints(cls)
        names = {field.name for field in dataclasses.fields(typing.cast(Any, cls))}
        unknown = sorted(set(data) - names)
        if unknown:
            raise OutputError(f"{cls.__name__} has no field {unknown[0]!r}; it has {', '.join(sorted(names))}.")
        try:
            return cls(**{name: _typed(hints[name], value) for name, value in data.items()})
        except TypeError as error:
            raise OutputError(f"Not a complete {cls.__name__}: {error}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _typed(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None or hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _typed(next(kind for kind in arguments if kind is not type(None)), value)
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value)
    if origin is tuple:
        return tuple(_typed(arguments[0], item) for item in value)
    if origin is dict:
        return {key: _typed(arguments[1], item) for key, item in value.items()}
    return value


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

    `ratio` is the median over rounds of this file's time over the baseline's in the same round; `ratio_low` and
    `ratio_high` bound it with 95% confidence (bootstrap). They are None where there was no baseline.
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
class Stage(Record):
    """One finished stage of a run. `accuracy` is measured on validation data; None where a stage has none."""

    name: str
    seconds: float
    model: str | None = None
    epochs: int | None = None
    accuracy: float | None = None
    macs: int | None = None
    params: int | None = None
    sparsity: float | None = None


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
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Writes the bytes atomically and returns the path."""
        from mobileprune.files import write_bytes

        return write_bytes(Path(path), self.content)


@dataclasses.dataclass(frozen=True)
class Port(Record):
    """One input or output of a file: its dtype and, for integers, `real = scale * (stored - zero_point)`."""

    dtype: str
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int | None = None


@dataclasses.dataclass(frozen=True)
class VariantRecord(Record):
    """What a manifest says of one variant: the bytes, where they came from, and all that was measured on them.

    Attributes:
        file: its name in the run's folder.
        model: `base`, `s80`, `c50`, `c50_s80`, `control`, ….
        recipe: how it was quantized.
        bytes: its size.
        gzip_bytes: its size as a compressed download.
        sha256: of the bytes.
        macs: multiply-accumulates of one inference.
        params: parameters of the Keras model that it came from.
        sparsity: share of zeros among the weights in the file, 0 to 1.
        input: what it takes.
        output: what it answers.
        verified: how it compares with that Keras model.
        verified_runtimes: the runtimes that this was done with, and that the file passed on.
        runtimes: what came of each runtime that it was tried on, those included that it failed on.
        accuracy: on the test split, 0 to 1; None without labels.
        validation_accuracy: the same on the validation split, which recommendations read.
        agreement: share of test images with the top-1 class of the unpruned Keras model; None where accuracy is
            measured.
        validation_agreement: the same on the validation images, which recommendations read.
        latency: one entry for each device.
    """

    file: str
    model: str
    recipe: str
    bytes: int
    gzip_bytes: int
    sha256: str
    macs: int
    params: int
    sparsity: float
    input: Port
    output: Port
    verified: Verification
    verified_runtimes: tuple[str, ...]
    accuracy: float | None = None
    validation_accuracy: float | None = None
    agreement: float | None = None
    validation_agreement: float | None = None
    latency: tuple[Latency, ...] = ()
    runtimes: tuple[RuntimeCheck, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rejected(Record):
    """A file that was made and did not ship, and why."""

    file: str
    reason: str


@dataclasses.dataclass(frozen=True)
class ModelPort(Record):
    """A Keras model's input or output; `kind` says of an output whether it holds logits or probabilities."""

    shape: tuple[int, ...]
    dtype: str
    kind: str | None = None


@dataclasses.dataclass(frozen=True)
class Manifest(Record):
    """Everything measured in a run; the report and the Android app read this and nothing else.

    Attributes:
        schema: version of this layout.
        mobileprune: version of the library.
        versions: versions of what it stands on.
        host: processor, cores, operating system and Python.
        command: the settings of the run that differ from the defaults, as flags.
        dataset: name, source, images in each split, skipped images.
        labels: class names; index i of an output is `labels[i]`.
        preprocess: from an encoded image to the input.
        input: the Keras model's input.
        output: its output.
        stages: what was done, in order.
        variants: the files that passed.
        rejected: the files that did not.
        recommended: the file for each goal (`smallest`, `fastest`, `most_accurate`), chosen on validation data.
    """

    schema: int
    mobileprune: str
    versions: dict[str, str]
    host: dict[str, Any]
    command: str
    dataset: dict[str, Any]
    labels: tuple[str, ...]
    preprocess: Preprocess
    input: ModelPort
    output: ModelPort
    stages: tuple[Stage, ...]
    variants: tuple[VariantRecord, ...]
    rejected: tuple[Rejected, ...] = ()
    recommended: dict[str, str] = dataclasses.field(default_factory=dict)

    def variant(self, model: str, recipe: str) -> VariantRecord | None:
        """The variant of that model and recipe, or None if there is none."""
        return next((entry for entry in self.variants if (entry.model, entry.recipe) == (model, recipe)), None)
