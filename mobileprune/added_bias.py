"""Where Keras adds a bias along another axis than the layer means.

On TensorFlow, Keras 3.15 hands an addition to `bias_add` as soon as what is added has one axis longer than 1, and that
is as long as the other tensor's last axis or its axis 1. Which axis the bias lies along is not asked, so some widths
make it fall on the wrong one: of convolutions whose channels come first, of attention with heads one column wide. A cut
that leaves such widths would change the answers; one that such widths are cut into would, too.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mobileprune.channel_calls import Ids

# An axis: the channels that lie along it, or how long it is.
Axis = Ids | int


@dataclasses.dataclass(frozen=True)
class AddedBias:
    """A bias and what it is added to, their axes in order; the bias's are the last ones of the output's.

    Example:
        >>> channels = np.arange(8)
        >>> added = AddedBias("conv", (channels, 1, 1), (1, channels, 5, 4))
        >>> added.misplaced(np.ones(8, bool)), added.misplaced(np.arange(8) < 4)
        (False, True)
    """

    layer: str
    bias: tuple[Axis, ...]
    output: tuple[Axis, ...]

    @property
    def channels(self) -> list[Ids]:
        """All channels that it depends on."""
        return [axis for axis in (*self.bias, *self.output) if not isinstance(axis, int)]

    def misplaced(self, alive: np.ndarray | None = None) -> bool:
        """Whether Keras adds it along the wrong axis when these channels are left, booleans by id; by default all."""

        def sizes(axes: Sequence[Axis]) -> list[int]:
            return [
                axis if isinstance(axis, int) else len(axis) if alive is None else int(np.count_nonzero(alive[axis]))
                for axis in axes
            ]

        bias, output = sizes(self.bias), sizes(self.output)
        long = [axis for axis, size in enumerate(bias) if size > 1]
        if len(long) != 1 or len(output) < 2:
            return False
        meant = len(output) - len(bias) + long[0]
        taken = next((axis for axis in (len(output) - 1, 1) if output[axis] == bias[long[0]]), meant)
        return taken != meant
