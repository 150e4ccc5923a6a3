"""Runs a `.tflite` with one input and shows what every op computed: float values, dequantized where they are integers.

The interpreter lives in this process, as the quantizer's own calibration does: for files that were made here, not for
those of strangers.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from mobileprune.errors import ConversionError
from mobileprune.noise import captured_noise, described
from mobileprune.tflite_graph import GraphTensor, read_graph

_INTEGERS = ("INT8", "UINT8", "INT16")


class Activations:
    """A loaded file whose tensors can all be read after each run; as large as all activations of one input.

    Args:
        content: a `.tflite` with one input of fixed batch.
        wanted: indices of the tensors to read; by default all that are computed, and the input.

    Attributes:
        graph: the file, read.
        tensors: the tensors that are read, in the order of the file.

    Raises:
        ConversionError: the runtime cannot run the file.
    """

    def __init__(self, content: bytes, wanted: set[int] | None = None) -> None:
        self.graph = read_graph(content)
        computed = {index for op in self.graph.ops for index in op.outputs}
        computed |= {tensor.index for tensor in self.graph.inputs}
        self.tensors = [
            self.graph.tensors[index]
            for index in sorted(computed if wanted is None else wanted)
            if self.graph.tensors[index].dtype in ("FLOAT32", *_INTEGERS)
        ]
        with captured_noise() as said:
            try:
                self._interpreter = Interpreter(
                    model_content=content, num_threads=os.cpu_count() or 1, experimental_preserve_all_tensors=True
                )
                self._interpreter.allocate_tensors()
            except (ValueError, RuntimeError) as error:
                raise ConversionError(f"The runtime cannot load the file: {described(error, said())}") from error
        self._input = self._interpreter.get_input_details()[0]

    @property
    def batch(self) -> int:
        """How many images one run takes."""
        return max(1, int(self._input["shape"][0]))

    def run(self, images: np.ndarray) -> Iterator[tuple[GraphTensor, np.ndarray]]:
        """Runs `batch` float32 images and yields each tensor with its values, float32 of the tensor's shape."""
        given = images
        if self._input["dtype"] != np.float32:
            tensor = self.graph.inputs[0]
            limits = np.iinfo(self._input["dtype"])
            steps = np.rint(images / np.float32(tensor.scales[0])) + tensor.zero_points[0]
            given = steps.clip(limits.min, limits.max).astype(self._input["dtype"])
        self._interpreter.set_tensor(self._input["index"], given)
        try:
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise ConversionError(f"The file cannot be run: {described(error)}") from error
        for tensor in self.tensors:
            yield tensor, _dequantized(self._interpreter.get_tensor(tensor.index), tensor)


def _dequantized(values: Any, tensor: GraphTensor) -> np.ndarray:
    if tensor.dtype == "FLOAT32":
        return np.asarray(values)
    restored: np.ndarray = (values.astype(np.float32) - tensor.zero_points[0]) * np.float32(tensor.scales[0])
    return restored
