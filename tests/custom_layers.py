"""Layers that a user might write. They know nothing of mobileprune, so that saved models load without it."""

import keras


@keras.saving.register_keras_serializable("tests")
class ScaleChannels(keras.layers.Layer):
    """One factor for each channel, as ConvNeXt's LayerScale; its width is that of its input."""

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gamma")

    def call(self, x):
        return x * self.gamma


@keras.saving.register_keras_serializable("tests")
class AddPositions(keras.layers.Layer):
    """A learned vector for each token, added to it."""

    def build(self, input_shape):
        self.positions = self.add_weight(shape=input_shape[1:], initializer="normal", name="positions")

    def call(self, x):
        return x + self.positions


@keras.saving.register_keras_serializable("tests")
class MixNeighbours(keras.layers.Layer):
    """Multiplies each channel with the next one. No rule is ever registered for it: its channels must stay."""

    def call(self, x):
        return x * keras.ops.roll(x, 1, axis=-1)

    def compute_output_shape(self, input_shape):
        return input_shape
