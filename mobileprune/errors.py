"""What went wrong, where, and what to do next.

Every error that a user can cause derives from :class:`MobilePruneError`; the command line prints its message on one
line and exits with code 2. Anything else is a defect of mobileprune and shows its traceback.
"""

from collections.abc import Iterable


class MobilePruneError(Exception):
    """Base of all errors that bad input or a bad environment can cause."""


class MobilePruneWarning(UserWarning):
    """Something works, but less well than it could; the command line prints its message on one line."""


class DatasetError(MobilePruneError):
    """The data cannot be read, or is not what the job needs."""


class ModelError(MobilePruneError):
    """The model cannot be loaded, or holds something that no stage can work with."""


class SparsityError(MobilePruneError):
    """A sparsity schedule or a wrapper that could never do what it says."""


class InteropError(MobilePruneError):
    """Something has no equivalent on the other side of the bridge between Keras 3 and Keras 2."""


class PlanError(MobilePruneError):
    """A pruning plan or target that the model cannot meet."""


class ConversionError(MobilePruneError):
    """The converter or the quantizer refused the model."""


class InterpreterError(MobilePruneError):
    """The process that ran a `.tflite` crashed, hung or answered rubbish."""


class WorkerError(MobilePruneError):
    """A process that shared a long job ended before its part was done."""


class VerificationError(MobilePruneError):
    """A file does not say what the model it came from says."""


class OutputError(MobilePruneError):
    """A result could not be written, or what an earlier run left behind cannot be used."""


class SettingsError(MobilePruneError):
    """A flag or argument has a value that cannot be meant."""


def known_names(names: Iterable[str], limit: int = 40) -> str:
    """Lists `names` for an error message, cut after `limit`.

    Example:
        >>> known_names(["float16", "int8"])
        'float16, int8'
    """
    listed = list(names)
    shown = ", ".join(listed[:limit])
    return shown if len(listed) <= limit else f"{shown}, … ({len(listed)} in all)"
