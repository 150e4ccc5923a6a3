"""The law of block removal, as functions that any model can be given to.

A model without blocks says what the whole one says when each of these blocks is the identity. What that is, is computed
here call by call from Keras' own records, knowing nothing of how the smaller model was made.
"""

import keras
import numpy as np

from mobileprune.graph import functional_graph, is_nested, nodes


def as_identity(model, inputs, exits):
    """The outputs of a model in inference mode when some tensors are replaced.

    Args:
        model: built; nested models are stepped through.
        inputs: a list of arrays.
        exits: (path of what writes the tensor, path of what writes the one that is read instead).
    """
    return [np.asarray(tensor) for tensor in _through(functional_graph(model), inputs, dict(exits), "")]


def _through(graph, inputs, exits, prefix):
    known, written = {}, {}
    for tensor, array in zip(graph.inputs, inputs, strict=True):
        known[id(tensor)] = keras.ops.cast(array, tensor.dtype)
        written[prefix + tensor._keras_history.operation.name] = known[id(tensor)]
    for node in nodes(graph):
        if isinstance(node.operation, keras.layers.InputLayer):
            continue
        path = prefix + node.operation.name
        if is_nested(node.operation):
            read = [known[id(tensor)] for tensor in node.input_tensors]
            made = _through(functional_graph(node.operation), read, exits, f"{path}/")
        else:
            args, kwargs = node.arguments.fill_in(known)
            made = keras.tree.flatten(node.operation(*args, **kwargs))
        if path in exits:
            made = [written[exits[path]]]
        written.update((f"{path}:{index}" if len(made) > 1 else path, each) for index, each in enumerate(made))
        known.update(zip((id(tensor) for tensor in node.output_tensors), made, strict=True))
    return [known[id(tensor)] for tensor in graph.outputs]


def ends_of(blocks):
    """For `as_identity`."""
    return [(block.exit, block.entry) for block in blocks]


def answers(model, inputs):
    """The outputs of a model as a flat list of arrays."""
    found = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    return [np.asarray(tensor) for tensor in keras.tree.flatten(found)]


def difference(expected, found):
    """The largest difference, as a share of the largest output; infinite where shapes differ."""
    if [each.shape for each in expected] != [each.shape for each in found]:
        return float("inf")
    return max(
        float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-9))
        for one, other in zip(expected, found, strict=True)
    )
