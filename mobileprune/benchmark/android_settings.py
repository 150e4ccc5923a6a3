"""How a phone is to be used for a comparison."""

import dataclasses

from mobileprune.benchmark.android_results import DELEGATES
from mobileprune.errors import SettingsError, known_names

RUNNERS = ("benchmark_model", "app")


@dataclasses.dataclass(frozen=True)
class AndroidSettings:
    """How a phone is used.

    Attributes:
        serial: which phone; None for what the environment variable `ANDROID_SERIAL` names, or else the only one.
        threads: of each interpreter.
        rounds: how often every file gets its turn, each in a process of its own.
        seconds: for how long each file's invocations are timed, all rounds together. Starts and warm-ups come on top.
        seed: of the order and the bootstrap.
        timeout_s: seconds that a turn, or bringing a file to the phone, may take.
        runner: `"benchmark_model"`, LiteRT's program, or `"app"`, the demo app's headless mode.
        benchmark_model: that program for the phone's ABI: a path, or a URL that ends in `#sha256=…`.
        accelerator: `"cpu"` (XNNPACK) or `"gpu"`.
        keep: whether files stay on the phone, where another comparison finds them.
        cool_s: seconds that may be spent on waiting for the phone to cool, in all.
        cool_c: the battery's temperature in degrees Celsius above which the phone is hot, whatever Android says.
        reconnect_s: seconds to wait for a phone that was unplugged, each time.
    """

    serial: str | None = None
    threads: int = 1
    rounds: int = 20
    seconds: float = 10.0
    seed: int = 0
    timeout_s: float = 120.0
    runner: str = "benchmark_model"
    benchmark_model: str | None = None
    accelerator: str = "cpu"
    keep: bool = False
    cool_s: float = 300.0
    cool_c: float = 40.0
    reconnect_s: float = 60.0

    def check(self) -> None:
        """Raises a SettingsError for what cannot be meant."""
        if self.runner not in RUNNERS:
            raise SettingsError(f"Unknown runner {self.runner!r}. Known: {known_names(RUNNERS)}.")
        if self.accelerator not in DELEGATES:
            raise SettingsError(f"Unknown accelerator {self.accelerator!r}. Known: {known_names(DELEGATES)}.")
        for name in ("threads", "rounds", "seconds", "timeout_s"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name}={getattr(self, name):g} is not positive.")
        for name in ("cool_s", "reconnect_s"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name}={getattr(self, name):g} is negative.")
        if self.runner == "benchmark_model" and self.benchmark_model is None:
            raise SettingsError(
                "The runner benchmark_model needs LiteRT's program for the phone: benchmark_model= takes its path, or "
                "a URL that ends in #sha256= and its checksum. The other runner is 'app'."
            )
