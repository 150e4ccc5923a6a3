"""A training that ends as if its process had been killed."""

import keras


class Killed(Exception):
    """Stands for SIGKILL: nothing of the training runs after it."""


class KillAt(keras.callbacks.Callback):
    """Kills the training after so many of this call's batches."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            raise Killed
