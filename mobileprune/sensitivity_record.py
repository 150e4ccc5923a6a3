"""What a sensitivity analysis found: for each part of a network and each amount, what is left of its answers."""

import dataclasses
from pathlib import Path

from mobileprune.errors import OutputError
from mobileprune.files import read_json, write_json
from mobileprune.json_record import Record

# Shares of images nearer to each other than this tell nothing apart.
_HARDLY = 0.05


@dataclasses.dataclass(frozen=True)
class SensitivityPoint(Record):
    """What the network answers when one part of it is changed by one amount.

    Attributes:
        amount: what was asked for: a share of the channels or weights that go, or a number of bits.
        taken: what it came to: the share of the channels (of which there are whole ones only), or the bits (depthwise
            kernels have no fewer than 8).
        agreement: share of images with the same top-1 class as before, 0 to 1; None where outputs are no classes.
        accuracy: share of images whose class is right, 0 to 1; None without labels.
        divergence: mean Kullback-Leibler divergence of the class probabilities from those before, in nats; 0 where
            nothing changed. It tells apart what agreement on few images calls alike. None where outputs are no classes.
        snr_db: signal-to-noise ratio of the outputs in decibels, at most 200.
    """

    amount: float
    taken: float
    agreement: float | None
    accuracy: float | None
    divergence: float | None
    snr_db: float


@dataclasses.dataclass(frozen=True)
class PartSensitivity(Record):
    """How sensitive one channel group or layer is.

    Attributes:
        name: of the channel group (see `mobileprune.channel_groups`), or the path of the layer.
        size: its channels, or its weights.
        points: one for each amount, in the order in which they were asked for.
        order: the channels in the order in which they went; empty where nothing has one.
        rebuilt: whether the network was rebuilt for each amount, because no zeros stand for missing channels.
    """

    name: str
    size: int
    points: tuple[SensitivityPoint, ...]
    order: tuple[int, ...] = ()
    rebuilt: bool = False


@dataclasses.dataclass(frozen=True)
class Sensitivity(Record):
    """What becomes of a network's answers when one part of it at a time is changed; made by `analyse_sensitivity`.

    Attributes:
        model: the model's name.
        kind: `"channels"`, `"sparsity"` or `"quantization"`.
        images: how many images were looked at.
        accuracy: of the unchanged model, 0 to 1; None without labels.
        importance: how channels were ranked; empty for the other kinds.
        parts: in the order of the graph.
    """

    model: str
    kind: str
    images: int
    accuracy: float | None
    importance: str
    parts: tuple[PartSensitivity, ...]

    @property
    def measure(self) -> str:
        """The figure that says most to people: `accuracy` with labels, else `agreement`, else `snr_db`."""
        if self.accuracy is not None:
            return "accuracy"
        return "snr_db" if any(point.agreement is None for part in self.parts for point in part.points) else "agreement"

    @property
    def telling(self) -> str:
        """What to show: `measure`, or `snr_db` where that hardly moves, as under eight bits in one layer."""
        found = [getattr(point, self.measure) for part in self.parts for point in part.points]
        return "snr_db" if found and max(found) - min(found) < _HARDLY else self.measure

    @property
    def amounts(self) -> tuple[float, ...]:
        """The amounts that were asked for."""
        return tuple(point.amount for point in self.parts[0].points) if self.parts else ()

    def save(self, path: str | Path) -> Path:
        """Writes the record as JSON and returns the path."""
        return write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "Sensitivity":
        """Reads what `save` wrote.

        Raises:
            OutputError: it cannot be read, or is something else.
        """
        data = read_json(Path(path))
        try:
            return cls.from_json(data)
        except OutputError as error:
            raise OutputError(f"{path} is no sensitivity analysis: {error}") from error
