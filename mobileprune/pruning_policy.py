"""Which layers to make sparse for which runtime."""

from typing import Any

import keras

from mobileprune.convert import to_float_flatbuffer
from mobileprune.errors import SparsityError
from mobileprune.graph import inline_nested, is_channels_last
from mobileprune.pruning_wrapper import PruneLowMagnitude
from mobileprune.sparse_path import sparse_path
from mobileprune.sparsify import strip_pruning


class PruneForLatencyOnXNNPack:
    """Makes sparse what XNNPACK's sparse kernels run on ARM, and nothing else: 1x1 convolutions.

    Depthwise convolutions, the stem and dense layers stay dense: they have no sparse kernels, and zeros in them would
    only cost accuracy. Separable convolutions stay dense, too: their 1x1 part cannot be chosen without the other.

    The name and the two methods are those of the TensorFlow Model Optimization Toolkit, whose policy refuses every
    stock network; this one accepts what `mobileprune.sparse_ready` makes of them.

    Example:
        >>> policy = PruneForLatencyOnXNNPack()
        >>> policy.ensure_model_supports_pruning(sparse_ready(model).model)  # doctest: +SKIP
        >>> [layer.name for layer in model.layers if policy.allow_pruning(layer)]  # doctest: +SKIP
        ['conv_pw_1', 'conv_pw_2', ...]
    """

    def allow_pruning(self, layer: Any) -> bool:
        """Whether a layer is a 1x1 convolution without stride and groups."""
        return (
            type(layer) is keras.layers.Conv2D
            and layer.kernel_size == (1, 1)
            and layer.strides == (1, 1)
            and layer.groups == 1
            and is_channels_last(layer)
        )

    def ensure_model_supports_pruning(self, model: Any) -> None:
        """Refuses a model whose 1x1 convolutions cannot get to the sparse kernels; converts it to see, which takes
        seconds.

        Args:
            model: a built Sequential or functional model with inputs of known size; its weights do not matter, and
                sparsity wrappers may be there.

        Raises:
            SparsityError: with the ops that are in the way.
            ModelError, ConversionError: it cannot be converted; see `mobileprune.convert`.
        """
        if any(isinstance(layer, PruneLowMagnitude) for layer in inline_nested(model).layers):
            model = strip_pruning(inline_nested(model))
        found = sparse_path(to_float_flatbuffer(model))
        if found.reachable == found.convolutions > 0 and not found.faults_if_sparse:
            return
        ways = [*found.faults_if_sparse, *found.obstacles]
        shown = "; ".join(map(str, ways[:4])) + (f"; and {len(ways) - 4} more" if len(ways) > 4 else "")
        raise SparsityError(
            f"{model.name!r} would not be faster on XNNPACK with sparse weights: {found.reachable} of "
            f"{found.convolutions} 1x1 convolutions can run on sparse kernels. In the way: {shown}. Rewrite the model "
            "with sparse_ready first; prune without this policy for a smaller file alone."
        )
