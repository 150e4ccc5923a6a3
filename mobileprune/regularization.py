"""Callbacks that prepare a cut while a network trains: what they press towards zero can go afterwards for little.

All act on the weights just after each optimizer step, not on the loss, as AdamW does with weight decay (Loshchilov &
Hutter 2019, arXiv:1711.05101). So they need no change of the model or the loss and work with any optimizer and loop,
zeros are exact, and what is zero stays zero: masks are not touched. Each step is the proximal operator of the penalty
times the learning rate of the optimizer step before it. With plain SGD that is proximal gradient descent on loss +
penalty; with momentum it is so approximately. Adam divides gradients by their size and so moves every weight by about
the learning rate: there a strength is not a factor of the loss but a share of such a step, from about 0.01 to 1,
whatever the scale of the loss.
"""

import abc
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from mobileprune.channel_groups import ChannelGraph
from mobileprune.constraints import constraints
from mobileprune.errors import PlanError, SettingsError
from mobileprune.pruning_plan import PruningPlan, removed_roots
from mobileprune.pruning_wrapper import numbers_of
from mobileprune.unit_weights import Press, Units, Wanted, live_layers, plain_model, units_of


class Regularizer(keras.callbacks.Callback, abc.ABC):
    """What the callbacks of this module share: they are told of each batch and act after it.

    Where they are in training follows from the optimizer's own count of batches, so a run that goes on from a
    checkpoint of the model with its optimizer goes on exactly. With `steps_per_execution` they act between executions,
    once for all their steps.

    In a loop of your own call `set_model(model)`, `on_train_begin()`, after each batch `on_train_batch_end(batch)` (any
    number will do) and at the end `on_train_end()`. Where the model is not compiled, give the optimizer, too.

    Args:
        optimizer: whose learning rate counts; the model's own by default.
    """

    def __init__(self, optimizer: Any = None) -> None:
        super().__init__()
        self._given = optimizer
        self._seen = 0
        self._press = Press([])

    def on_train_begin(self, logs: Any = None) -> None:
        self._press = Press(self._find(ChannelGraph(plain_model(self.model))))
        self._seen = self._batches()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # Another callback may have restored a backup since training began.
        self._seen = self._batches()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = self._batches()
        rates = [(step, rate) for step in range(self._seen, now) if (rate := self._rate(step)) is not None]
        self._seen = now
        if rates:
            self._act(rates)

    def on_train_end(self, logs: Any = None) -> None:
        # An optimizer that averages weights has just written the averages over the zeros.
        if getattr(self._optimizer(), "use_ema", False):
            self._press.zero_again()

    def norms(self) -> dict[str, np.ndarray]:
        """The norm of each unit's pressed weights, by channel group, shape (units,); 0 for what is gone."""
        return self._press.norms()

    @abc.abstractmethod
    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, without the optimizer."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Regularizer":
        """The inverse of `get_config`."""
        return cls(**config)

    @abc.abstractmethod
    def _find(self, graph: ChannelGraph) -> list[Units]:
        """The units to press, with their weights."""

    @abc.abstractmethod
    def _act(self, rates: Sequence[tuple[int, float]]) -> None:
        """Does what is due for these batches, each with the learning rate of its optimizer step."""

    def _optimizer(self) -> Any:
        optimizer = self._given or getattr(self.model, "optimizer", None)
        if optimizer is None:
            raise SettingsError(
                f"{type(self).__name__} follows the learning rate of an optimizer, and {self.model.name!r} has none: "
                "compile it, or give optimizer=."
            )
        return getattr(optimizer, "inner_optimizer", optimizer)

    def _batches(self) -> int:
        return int(numbers_of(self._optimizer()._iterations))  # the public number counts accumulated batches as one

    def _rate(self, step: int) -> float | None:
        """The learning rate of a batch; None where its gradient was only put by."""
        optimizer = self._optimizer()
        if (step + 1) % (optimizer.gradient_accumulation_steps or 1):
            return None
        rate = optimizer._learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return float(rate(step))
        return float(numbers_of(rate))


class _Lasso(Regularizer):
    """Presses all groups that may lose channels."""

    def __init__(
        self, strength: float, keep: Sequence[str] = (), prune_only: Sequence[str] = (), optimizer: Any = None
    ) -> None:
        super().__init__(optimizer)
        if not 0 < strength < math.inf:
            raise SettingsError(f"strength={strength} presses nothing. Give a number above 0, 0.1 for example.")
        self.strength, self.keep, self.prune_only = float(strength), list(keep), list(prune_only)

    def get_config(self) -> dict[str, Any]:
        return {"strength": self.strength, "keep": self.keep, "prune_only": self.prune_only}

    def _free(self, graph: ChannelGraph, wanted: Wanted) -> list[Units]:
        limits = constraints(graph, round_to=1, keep=self.keep, prune_only=self.prune_only)
        layers = live_layers(self.model)
        found = [units_of(graph, group, layers, wanted) for group in limits.free]
        if not any(found):
            raise PlanError(
                f"{type(self).__name__} finds no weights of {self.model.name!r} to press. Which channels may go, and "
                "why others may not, is in channel_groups(model)."
            )
        return [units for units in found if units is not None]

    def _act(self, rates: Sequence[tuple[int, float]]) -> None:
        self._press.shrink(self.strength * sum(rate for _, rate in rates))


@keras.saving.register_keras_serializable(package="mobileprune")
class GroupLasso(_Lasso):
    """Brings whole units of channel groups to exactly zero: strength × Σ √(weights of a unit) × ‖weights of a unit‖.

    A unit's weights are all that are coupled to it and multiply: the kernels that make and read it, batch-norm scales,
    depthwise kernels; not biases. When they are zero, nothing reads the unit any more and cutting it changes no output
    (but see "not exact" groups). Its root of the number of weights makes units of all sizes alike (Wen et al. 2016,
    "Learning Structured Sparsity", arXiv:1608.03665; over coupled layers as in "DepGraph", arXiv:2301.12900).

    After each step every weight is multiplied by max(0, 1 - rate × strength × √n / ‖unit‖), the proximal operator. A
    kernel between two groups belongs to a unit of each and is multiplied by both factors, computed from the same
    weights; to first order in the learning rate that is a gradient step on the sum of both penalties.

    Args:
        strength: 0.02 is a start for Adam and a thousand steps: the typical weight of a unit that training does not
            defend shrinks by strength × rate in a step, so with 0.1 weights of 0.1 vanish in 1,000 steps of rate 0.001.
            With SGD it is compared with the gradient: a unit vanishes whose typical gradient is below it.
        keep, prune_only: as in `plan_channels`; groups that may lose no channel are not pressed.
        optimizer: see `Regularizer`.

    Raises:
        SettingsError: a strength that cannot be meant, or no optimizer.
        PlanError: no group may lose channels, or a pattern matches no layer.

    Example:
        >>> model.fit(x, y, callbacks=[GroupLasso(0.02)])                                      # doctest: +SKIP
        >>> plan_channels(model, macs=0.5, importance="l2", normalise="max")                    # doctest: +SKIP
    """

    def _find(self, graph: ChannelGraph) -> list[Units]:
        return self._free(graph, _multiplies)


@keras.saving.register_keras_serializable(package="mobileprune")
class BatchNormL1(_Lasso):
    """Brings batch-norm scales of channels to exactly zero: strength × Σ |scale| (Liu et al. 2017, arXiv:1708.06519).

    A channel whose scale is zero is a constant, activation(offset). It is what `importance="batch_norm_scale"` removes
    first; `compensate="mean"` or `"least_squares"` moves the constant into the next bias. Each scale is pressed alone.

    Args:
        strength: see `GroupLasso`.
        keep, prune_only, optimizer: see `GroupLasso`.

    Raises:
        SettingsError: a strength that cannot be meant, or no optimizer.
        PlanError: no batch-norm scale follows channels that may go, or a pattern matches no layer.

    Example:
        >>> model.fit(x, y, callbacks=[BatchNormL1(0.1)])                                      # doctest: +SKIP
        >>> plan_channels(model, macs=0.5, importance="batch_norm_scale", normalise="none")     # doctest: +SKIP
    """

    def _find(self, graph: ChannelGraph) -> list[Units]:
        found = self._free(graph, _is_batch_norm_scale)
        return [alone for units in found for alone in units.each_alone()]


@keras.saving.register_keras_serializable(package="mobileprune")
class GrowingRegularization(Regularizer):
    """Presses the units that a plan removes harder and harder, until they are near zero: GReg-1.

    The penalty ½ λ ‖unit‖² has a factor λ that grows from 0 (Wang et al. 2021, "Neural Pruning via Growing
    Regularization", arXiv:2012.09243), so that the others take over slowly what these units do. After each step their
    weights are divided by 1 + rate × λ, the proximal operator; biases stay. λ of a batch follows from the optimizer's
    count of batches. Then cut by the same plan.

    Args:
        plan: which units; of `plan_channels`, for this architecture.
        growth: what λ gains each time. By default 0.1 every 10 batches: with a learning rate of 0.001 units have 1/150
            of their size after 1,000 batches if nothing pulls at them.
        every: batches between two gains.
        begin_step: the optimizer's count of batches from which on λ grows.
        ceiling: where λ stops.
        optimizer: see `Regularizer`.

    Raises:
        SettingsError: a number that cannot be meant, or no optimizer.
        PlanError: the plan does not fit the model or removes nothing.

    Example:
        >>> plan = plan_channels(model, macs=0.5)                                               # doctest: +SKIP
        >>> model.fit(x, y, callbacks=[GrowingRegularization(plan)])                            # doctest: +SKIP
        >>> smaller = prune_channels(model, plan)                                               # doctest: +SKIP
    """

    def __init__(
        self,
        plan: PruningPlan,
        growth: float = 0.1,
        every: int = 10,
        begin_step: int = 0,
        ceiling: float = math.inf,
        optimizer: Any = None,
    ) -> None:
        super().__init__(optimizer)
        if not 0 < growth < math.inf or every < 1 or begin_step < 0 or not ceiling > 0:
            raise SettingsError(
                f"{growth=}, {every=}, {begin_step=}, {ceiling=} cannot be meant: growth and ceiling are above 0, "
                "every is at least 1 and begin_step at least 0."
            )
        self.plan, self.growth, self.every = plan, float(growth), int(every)
        self.begin_step, self.ceiling = int(begin_step), float(ceiling)

    def factor(self, step: int) -> float:
        """λ of a batch, counted from 0."""
        return min(self.ceiling, self.growth * (max(0, step - self.begin_step) // self.every))

    def get_config(self) -> dict[str, Any]:
        return {
            "plan": self.plan.to_json(),
            "growth": self.growth,
            "every": self.every,
            "begin_step": self.begin_step,
            "ceiling": None if math.isinf(self.ceiling) else self.ceiling,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GrowingRegularization":
        ceiling = math.inf if config["ceiling"] is None else config["ceiling"]
        return cls(**{**config, "plan": PruningPlan.from_json(config["plan"]), "ceiling": ceiling})

    def _find(self, graph: ChannelGraph) -> list[Units]:
        going = removed_roots(graph, self.plan)
        if not len(going):
            raise PlanError("The plan removes no channels, so there is nothing to press.")
        layers = live_layers(self.model)
        found = []
        for group in graph.groups:
            chosen = np.isin(group.roots, going)
            if chosen.any():
                found.append(units_of(graph, group, layers, _multiplies, chosen))
        return [units for units in found if units is not None]

    def _act(self, rates: Sequence[tuple[int, float]]) -> None:
        kept = math.prod(1 / (1 + rate * self.factor(step)) for step, rate in rates)
        self._press.scale(kept)


def _multiplies(_: Any, name: str) -> bool:
    return name not in ("bias", "beta")


def _is_batch_norm_scale(layer: Any, name: str) -> bool:
    return name == "gamma" and isinstance(layer, keras.layers.BatchNormalization)
