"""One part of a dataset, as arrays or as batches for training, and the four parts together.

Images are held as uint8 or read from disk on demand, and become float32 batch by batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mobileprune.errors import SettingsError
from mobileprune.image_folder import Skipped
from mobileprune.preprocess import Pixels, normalise
from mobileprune.records import Preprocess

Labels = npt.NDArray[np.int64]
Images = npt.NDArray[np.float32]

# Shifts are at most this share of the input's side: 2 pixels of 32, 14 of 224.
_SHIFT_SHARE = 1 / 16


@dataclass(frozen=True, eq=False)
class Split:
    """One of a dataset's four parts. The order is fixed and mixes the classes: they take turns.

    Attributes:
        name: `train`, `validation`, `calibration` or `test`.
        labels: int64 of shape (N,), class indices; no image is read for them.
        preprocess: the contract that the images pass through.
        pixels: gives uint8 pixels of shape (n, height, width, channels) for n indices.
    """

    name: str
    labels: Labels
    preprocess: Preprocess
    pixels: Callable[[Labels], Pixels] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def steps(self, batch_size: int) -> int:
        """How many batches one pass has; the last one may be smaller."""
        return -(-len(self) // _checked_batch_size(batch_size))

    def images(self, limit: int | None = None) -> Images:
        """The first `limit` images, or all, in memory.

        Args:
            limit: at most so many; as classes take turns, few images already cover all classes.

        Returns:
            float32 of shape (n, height, width, channels), normalised.

        Raises:
            DatasetError: an image cannot be read any more.

        Example:
            >>> load_dataset("fashion_mnist").calibration.images(100).shape
            (100, 32, 32, 1)
        """
        if limit is not None and limit < 0:
            raise SettingsError(f"The {self.name} split was asked for {limit} images; ask for 0 or more.")
        count = len(self) if limit is None else min(limit, len(self))
        return normalise(self.pixels(np.arange(count)), self.preprocess)

    def numpy_batches(self, batch_size: int) -> Iterator[tuple[Images, Labels]]:
        """Batches in the split's order, without TensorFlow: float32 (n, h, w, c) images and int64 (n,) labels."""
        _checked_batch_size(batch_size)
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self)))
            yield normalise(self.pixels(indices), self.preprocess), self.labels[indices]

    def batches(
        self, batch_size: int, *, shuffle_seed: int | None = None, augment: bool = False, epoch: int = 0
    ) -> Any:
        """Batches for training, as a `tf.data.Dataset` with prefetch and known length.

        With `shuffle_seed` each pass has its own order, which depends on the seed and the number of the pass alone:
        the first pass is number `epoch`, and the number grows when a pass has delivered its last batch. Training that
        was interrupted after k epochs thus continues with `epoch=k` as if it had not been. A pass that is abandoned
        early (Keras looks at one batch before `fit`) does not count.

        Args:
            batch_size: images in a batch; the last one may be smaller.
            shuffle_seed: None keeps the split's order.
            augment: flip half of the images left to right and shift each by up to 1/16 of its sides, edge pixels
                repeated; drawn anew in each pass, reproducible by seed. For the train split only.
            epoch: number of the first pass.

        Returns:
            A dataset of (float32 (n, height, width, channels), int64 (n,)).

        Raises:
            SettingsError: `augment` on another split than train, a batch size below 1 or a negative seed.

        Example:
            >>> model.fit(data.train.batches(64, shuffle_seed=0, augment=True), epochs=5)
        """
        # TensorFlow takes seconds to import, and much that needs only names and labels never trains.
        import tensorflow as tf

        if augment and self.name != "train":
            raise SettingsError(f"The {self.name} split must not be augmented; augment only train.")
        steps, seed = self.steps(batch_size), checked_seed(shuffle_seed or 0)
        mean, std = np.asarray(self.preprocess.mean, np.float32), np.asarray(self.preprocess.std, np.float32)
        passes = _Passes(epoch)
        options = tf.data.Options()
        # It would put a prefetch behind `deliver`, which must not run ahead of the consumer.
        options.experimental_optimization.inject_prefetch = False

        def order() -> tuple[np.int64, Labels]:
            if shuffle_seed is None:
                return np.int64(passes.number), np.arange(len(self))
            return np.int64(passes.number), np.random.default_rng([seed, passes.number]).permutation(len(self))

        def read(step: Any, number: Any, indices: Any) -> Any:
            images, labels = tf.numpy_function(
                lambda chosen: (self.pixels(chosen), self.labels[chosen]), [indices], (tf.uint8, tf.int64)
            )
            images.set_shape((None, *self.preprocess.shape))
            labels.set_shape((None,))
            if augment:
                images = _augment(images, tf.stack([tf.constant(seed, tf.int64), number * steps + step]))
            return step, (tf.cast(images, tf.float32) - mean) / std, labels

        def deliver(step: Any, images: Any, labels: Any) -> Any:
            # Runs when the consumer takes the batch, not when prefetch prepares it: only then has a pass ended.
            ended = tf.cond(
                tf.equal(step, steps - 1),
                lambda: tf.numpy_function(passes.end, [], tf.int64),
                lambda: tf.zeros((), tf.int64),
            )
            with tf.control_dependencies([ended]):
                return tf.identity(images), labels

        def numbered(number: Any, indices: Any) -> Any:
            some = tf.data.Dataset.from_tensor_slices(tf.ensure_shape(indices, (None,))).batch(batch_size)
            return some.enumerate().map(lambda step, chosen: (step, number, chosen))

        return (
            tf.data.Dataset.from_tensors(0)
            .map(lambda _: tuple(tf.numpy_function(order, [], (tf.int64, tf.int64))))
            .flat_map(numbered)
            .map(read, num_parallel_calls=2, deterministic=True)
            .prefetch(tf.data.AUTOTUNE)
            .map(deliver)
            .apply(tf.data.experimental.assert_cardinality(steps))
            .with_options(options)
        )


class _Passes:
    """Counts the completed passes over a dataset."""

    def __init__(self, number: int) -> None:
        self.number = number

    def end(self) -> np.int64:
        self.number += 1
        return np.int64(self.number)


def _augment(images: Any, seed: Any) -> Any:
    """Flips and shifts a batch by gathering rows and columns, which costs two copies and no loop over images."""
    import tensorflow as tf

    height, width = images.shape[1:3]
    most = [max(1, round(height * _SHIFT_SHARE)), max(1, round(width * _SHIFT_SHARE))]
    draws = tf.random.stateless_uniform((tf.shape(images)[0], 3), seed)
    down = tf.cast(tf.floor(draws[:, :1] * (2 * most[0] + 1)), tf.int32) - most[0]
    right = tf.cast(tf.floor(draws[:, 1:2] * (2 * most[1] + 1)), tf.int32) - most[1]
    rows = tf.clip_by_value(tf.range(height)[None] + down, 0, height - 1)
    columns = tf.clip_by_value(tf.range(width)[None] + right, 0, width - 1)
    columns = tf.where(draws[:, 2:] < 0.5, width - 1 - columns, columns)
    return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _checked_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise SettingsError(f"The batch size is {batch_size}; choose 1 or more.")
    return batch_size


def checked_seed(seed: int) -> int:
    if seed < 0:
        raise SettingsError(f"The seed is {seed}; choose 0 or more.")
    return seed


@dataclass(frozen=True, eq=False)
class Dataset:
    """Four splits and all that must travel with a model trained on them.

    Attributes:
        name: `fashion_mnist`, or a folder's own name; fit for a file name.
        labels: class names; index i of an output is `labels[i]`.
        preprocess: the contract.
        train: for the weights.
        validation: for every choice, such as early stopping.
        calibration: for quantization ranges and statistics.
        test: for the final accuracy and nothing else.
        skipped: images that were left out, with reasons.
        source: a sentence that says where the data came from.
        digest: changes when any image, label or split does.
    """

    name: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    train: Split
    validation: Split
    calibration: Split
    test: Split
    skipped: tuple[Skipped, ...]
    source: str
    digest: str = ""

    def limited(self, images: int) -> "Dataset":
        """The same dataset with at most the first `images` images of each split; classes take turns, so all stay."""

        def cut(split: Split) -> Split:
            return replace(split, labels=split.labels[:images])

        return replace(
            self,
            train=cut(self.train),
            validation=cut(self.validation),
            calibration=cut(self.calibration),
            test=cut(self.test),
        )
