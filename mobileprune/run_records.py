"""What a run keeps: its stages and files, and the manifest that holds everything that was measured of them."""

import dataclasses
from typing import Any

from mobileprune.json_record import Record
from mobileprune.records import Latency, Preprocess, RuntimeCheck, Verification


@dataclasses.dataclass(frozen=True)
class LayerFacts(Record):
    """What a layer with weights consists of; made by `inspect`.

    Attributes:
        name: in nested models its path.
        kind: its class.
        channels: how many it creates, 0 if none.
        macs: multiply-accumulates of one inference at batch 1.
        params: its parameters.
        sparsity: share of zeros among the weights that masks may zero, 0 to 1.
    """

    name: str
    kind: str
    channels: int
    macs: int
    params: int
    sparsity: float


@dataclasses.dataclass(frozen=True)
class Epoch(Record):
    """A finished pass over the training images, counted from 1; None where a figure was not measured or no number.

    `loss` and `accuracy` are means over the epoch, while the weights changed; the others are of its end, on the
    validation images.
    """

    epoch: int
    loss: float | None = None
    accuracy: float | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None


@dataclasses.dataclass(frozen=True)
class Stage(Record):
    """One finished stage of a run. `accuracy` is measured on validation data; None where a stage has none.

    `layers` are those of the model that it made, `curve` how it trained: both bounded, empty where there are none.
    """

    name: str
    seconds: float
    model: str | None = None
    epochs: int | None = None
    accuracy: float | None = None
    macs: int | None = None
    params: int | None = None
    sparsity: float | None = None
    layers: tuple[LayerFacts, ...] = ()
    curve: tuple[Epoch, ...] = ()


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
        minimum_runtime: the oldest runtime that has every op of the file in the version that its types need.
        float_ops: of a file of integer activations, the ops that compute in float, with their Keras layers.
        notes: what else is to be said of it, as sentences.
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
    minimum_runtime: str = ""
    float_ops: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
