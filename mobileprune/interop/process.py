"""Imports tf_keras and the TensorFlow Model Optimization toolkit, and leaves the process as it was found.

The toolkit sets `TF_USE_LEGACY_KERAS=1` for good when it is imported. Child processes inherit that, and a `tf.keras`
that nobody has looked at yet becomes tf_keras. Everything of mobileprune that needs either asks here.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from mobileprune.errors import InteropError

_VARIABLE = "TF_USE_LEGACY_KERAS"
_LOCK = threading.RLock()


def tf_keras() -> Any:
    """The module tf_keras, which is Keras 2.

    Raises:
        InteropError: it cannot be imported.
    """
    with _as_found("tf_keras", "pip install tf-keras"):
        import tf_keras as module
    return module


def tfmot() -> Any:
    """The module `tensorflow_model_optimization.sparsity.keras`.

    Raises:
        InteropError: it cannot be imported.
    """
    tf_keras()
    # On Python 3.12 and newer it finds `distutils`, which it imports, in setuptools.
    with _as_found("tensorflow_model_optimization", "pip install tensorflow-model-optimization setuptools"):
        import tensorflow_model_optimization as module

        return module.sparsity.keras


@contextlib.contextmanager
def _as_found(name: str, remedy: str) -> Iterator[None]:
    """Restores the variable afterwards; before, makes `tf.keras` decide what it is."""
    with _LOCK:
        import tensorflow as tf

        _ = tf.keras.Model  # a lazy module: it reads the variable once, at the first look
        before = os.environ.get(_VARIABLE)
        try:
            yield
        except ImportError as error:
            raise InteropError(f"{name} cannot be imported: {error}. Try: {remedy}.") from error
        finally:
            if before is None:
                os.environ.pop(_VARIABLE, None)
            else:
                os.environ[_VARIABLE] = before
