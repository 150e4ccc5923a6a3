"""Metadata inside a `.tflite`: what the network is, what its input means, what its outputs are called.

The layout is TensorFlow Lite's standard one, which MediaPipe and TensorFlow Lite's support library read: a flatbuffer
in the file's buffer `TFLITE_METADATA` (see `mobileprune.metadata_schema`), and the labels in `labels.txt`, attached to
the file as a zip archive. The runtime sees neither.

Normalisation is that of the float model, `(x - mean) / std` of pixels from 0 to 255, whatever the file takes: that is
the standard's convention, and readers combine it with the scale and zero point of a quantized input. What the standard
has no field for (antialiasing, crop or stretch, EXIF) is attached as `preprocess.json`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mobileprune import metadata_schema as layout
from mobileprune.errors import ModelError, OutputError, SettingsError
from mobileprune.json_record import Record
from mobileprune.preprocess import check_contract
from mobileprune.records import Preprocess
from mobileprune.tflite_extras import METADATA_NAME, attached_files, metadata_entry
from mobileprune.tflite_graph import GraphTensor, TfliteGraph, read_graph
from mobileprune.tflite_rewrite import packed, set_metadata, unpacked

LABELS_FILE = "labels.txt"
CONTRACT_FILE = "preprocess.json"
MAX_TEXT = 10_000
# The output's name says which of the two it is; the standard has no other place for it.
OUTPUT_NAMES = {"probabilities": "probability", "logits": "logit"}


@dataclasses.dataclass(frozen=True)
class Metadata(Record):
    """What a `.tflite` says of itself.

    Attributes:
        name: of the model.
        preprocess: from an encoded image to the input; None where a file's metadata has no image as its input.
        labels: class names; index i of an output is `labels[i]`. Empty where there are none.
        output: whether the outputs are probabilities or logits; None where a file does not say.
        description: what the model is for.
        version: of the model, as its author counts.
        author: who made it.
        license: under which it may be used, a name or a text.
    """

    name: str
    preprocess: Preprocess | None
    labels: tuple[str, ...] = ()
    output: Literal["probabilities", "logits"] | None = None
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""


def add_metadata(content: bytes, metadata: Metadata) -> bytes:
    """The same file with metadata; what it had before is replaced, attached files included.

    The same arguments give the same bytes. Other rewrites of the file (`with_versions`, `with_uint8_io`,
    `encode_sparse`) keep the metadata.

    Args:
        content: a `.tflite` with one input, an image, and one output.
        metadata: what to say. `preprocess` is needed, and `output`.

    Raises:
        ModelError: the file has other inputs or outputs, or is none.
        SettingsError: the metadata does not match the file: the size or colours of the input, the number of labels; or
            a text cannot be stored.

    Example:
        >>> metadata = Metadata("cats", manifest.preprocess, labels=manifest.labels, output="logits")  # doctest: +SKIP
        >>> content = add_metadata(variant.content, metadata)  # doctest: +SKIP
        >>> read_metadata(content).labels  # doctest: +SKIP
        ('cat', 'no cat')
    """
    graph = read_graph(content)
    image, scores = _ends(graph)
    contract = _check(metadata, image, scores)
    files = {CONTRACT_FILE: (json.dumps(contract.to_json(), indent=2) + "\n").encode()}
    if metadata.labels:
        files[LABELS_FILE] = "".join(f"{label}\n" for label in metadata.labels).encode()
    model = unpacked(content)
    set_metadata(model, METADATA_NAME, layout.pack(_tables(metadata, contract, image)))
    return packed(model, files)


def read_metadata(content: bytes) -> Metadata | None:
    """What a `.tflite` says of itself, or None where it says nothing. Nothing is written to a disk.

    Args:
        content: a `.tflite` by this or another writer. Of several inputs the first image counts, of several outputs the
            first with labels.

    Raises:
        ModelError: not a `.tflite`; or its metadata is damaged, too large, or contradicts the file.
    """
    graph = read_graph(content)
    data = metadata_entry(content)
    if data is None:
        return None
    tables = layout.unpack(data)
    files = attached_files(content)
    subgraph: dict[str, Any] = next(iter(tables.get("subgraph_metadata", [])), {})
    output, labels = _read_labels(subgraph.get("output_tensor_metadata", []), files)
    kinds: dict[str, Any] = {name: kind for kind, name in OUTPUT_NAMES.items()}
    return Metadata(
        name=tables.get("name", ""),
        preprocess=_read_contract(subgraph.get("input_tensor_metadata", []), graph, files),
        labels=labels,
        output=kinds.get(output),
        **{field: tables.get(field, "") for field in ("description", "version", "author", "license")},
    )


def _ends(graph: TfliteGraph) -> tuple[GraphTensor, GraphTensor]:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ModelError(
            f"The file has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs; metadata can describe one "
            "image and its classes."
        )
    return graph.inputs[0], graph.outputs[0]


def _check(metadata: Metadata, image: GraphTensor, scores: GraphTensor) -> Preprocess:
    if metadata.preprocess is None:
        raise SettingsError("The metadata has no preprocess; say how an image becomes the input.")
    contract = check_contract(metadata.preprocess)
    if image.shape[1:] != contract.shape:
        raise SettingsError(
            f"The preprocessing makes images of shape {contract.shape}, but the file takes {image.shape}. "
            "Give the contract of this model."
        )
    if metadata.output not in OUTPUT_NAMES:
        raise SettingsError(f"The metadata has output={metadata.output!r}; known: {', '.join(OUTPUT_NAMES)}.")
    classes = scores.shape[-1] if scores.shape else 0
    if metadata.labels and len(metadata.labels) != classes:
        raise SettingsError(
            f"There are {len(metadata.labels)} labels for the {classes} outputs. Give one for each, in their order."
        )
    for label in metadata.labels:
        if not label.strip() or label != label.strip() or len(label.splitlines()) != 1:
            raise SettingsError(f"{label!r} cannot be a label: they stand one a line in a file. Rename it.")
    texts = (metadata.name, metadata.description, metadata.version, metadata.author, metadata.license, *metadata.labels)
    for text in texts:
        if len(text) > MAX_TEXT or "\0" in text or not _encodable(text):
            raise SettingsError(f"{text[:40]!r} … cannot be stored: {len(text)} characters, or ones that no text has.")
    return contract


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tables(metadata: Metadata, contract: Preprocess, image: GraphTensor) -> dict[str, Any]:
    """The metadata in the standard's tables."""
    labels = {
        "name": LABELS_FILE,
        "description": "The classes, one a line, in the order of the outputs.",
        "type": layout.TENSOR_AXIS_LABELS,
    }
    taken: dict[str, Any] = {
        "name": "image",
        "description": f"An image of {contract.height} × {contract.width} pixels, {contract.color}, "
        f"fit={contract.fit}, {contract.resize}{' with antialiasing' if contract.antialias else ''}.",
        "content": {
            "content_properties": {
                "kind": "ImageProperties",
                "color_space": layout.RGB if contract.color == "RGB" else layout.GRAYSCALE,
                "default_size": {"width": contract.width, "height": contract.height},
            }
        },
        "process_units": [
            {"options": {"kind": "NormalizationOptions", "mean": list(contract.mean), "std": list(contract.std)}}
        ],
        "stats": _input_stats(contract, image),
    }
    given: dict[str, Any] = {
        "name": OUTPUT_NAMES[str(metadata.output)],
        "description": f"The classes' {metadata.output}.",
        "content": {"content_properties": {"kind": "FeatureProperties"}},
    }
    if metadata.output == "probabilities":
        given["stats"] = {"max": [1.0], "min": [0.0]}
    if metadata.labels:
        given["associated_files"] = [labels]
    return {
        "name": metadata.name,
        "description": metadata.description,
        "version": metadata.version,
        "subgraph_metadata": [{"input_tensor_metadata": [taken], "output_tensor_metadata": [given]}],
        "author": metadata.author,
        "license": metadata.license,
        "associated_files": [
            {
                "name": CONTRACT_FILE,
                "description": "From an encoded image to the input, in full.",
                "type": layout.DESCRIPTIONS,
            }
        ],
        "min_parser_version": layout.PARSER_VERSION,
    }


def _input_stats(contract: Preprocess, image: GraphTensor) -> dict[str, list[float]]:
    """What the input tensor holds at least and at most: pixels where they go in as they are."""
    if image.dtype == "UINT8":
        return {"max": [255.0], "min": [0.0]}
    pairs = list(
        zip(*(np.broadcast_to(each, contract.channels) for each in (contract.mean, contract.std)), strict=True)
    )
    ends = [sorted(((0.0 - mean) / std, (255.0 - mean) / std)) for mean, std in pairs]
    if len(contract.mean) == len(contract.std) == 1:
        ends = ends[:1]
    return {"max": [float(high) for _, high in ends], "min": [float(low) for low, _ in ends]}


def _read_labels(outputs: list[dict[str, Any]], files: Mapping[str, bytes]) -> tuple[str, tuple[str, ...]]:
    """The name and the labels of the first output with labels; else the name of the first."""
    for tensor in outputs:
        for file in tensor.get("associated_files", []):
            if file.get("type") == layout.TENSOR_AXIS_LABELS:
                name = file.get("name", "")
                if name not in files:
                    raise ModelError(f"The metadata names {name[:60]!r} as the labels; no such file is attached.")
                return tensor.get("name", ""), tuple(_text(name, files[name]).splitlines())
    return (outputs[0].get("name", "") if outputs else ""), ()


def _read_contract(inputs: list[dict[str, Any]], graph: TfliteGraph, files: Mapping[str, bytes]) -> Preprocess | None:
    for place, tensor in enumerate(inputs):
        content = tensor.get("content", {}).get("content_properties", {})
        if content.get("kind") != "ImageProperties":
            continue
        if place >= len(graph.inputs) or len(graph.inputs[place].shape) != 4:
            raise ModelError(f"The metadata describes input {place} as an image; the file has no such input.")
        options = [unit.get("options", {}) for unit in tensor.get("process_units", [])]
        normalise: dict[str, Any] = next((each for each in options if each.get("kind") == "NormalizationOptions"), {})
        _, height, width, _ = graph.inputs[place].shape
        stated = Preprocess(
            height,
            width,
            "grayscale" if content.get("color_space") == layout.GRAYSCALE else "RGB",
            mean=tuple(normalise.get("mean", (0.0,))),
            std=tuple(normalise.get("std", (1.0,))),
        )
        try:
            check_contract(stated)
        except SettingsError as error:
            raise ModelError(f"The metadata of the .tflite cannot be carried out: {error}") from error
        return _completed(stated, files[CONTRACT_FILE]) if CONTRACT_FILE in files else stated
    return None


def _completed(stated: Preprocess, data: bytes) -> Preprocess:
    """The attached contract, if it says what the standard fields say."""
    try:
        contract = check_contract(Preprocess.from_json(json.loads(_text(CONTRACT_FILE, data))))
        agrees = contract.shape == stated.shape and all(
            len(full) == len(short) and all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(full, short, strict=True))
            for full, short in ((contract.mean, stated.mean), (contract.std, stated.std))
        )
    except (ValueError, TypeError, AttributeError, RecursionError, OutputError, SettingsError) as error:
        raise ModelError(f"{CONTRACT_FILE}, attached to the .tflite, is no contract: {error}") from error
    if not agrees:
        raise ModelError(
            f"{CONTRACT_FILE}, attached to the .tflite, contradicts its metadata: {contract.shape}, mean "
            f"{contract.mean}, std {contract.std} against {stated.shape}, {stated.mean}, {stated.std}. Add it anew."
        )
    return contract


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{name!r}, attached to the .tflite, is not UTF-8 text: {error}.") from error
