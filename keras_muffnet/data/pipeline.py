"""tf.data pipelines of labelled images."""

from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_muffnet._optional import load_optional

if TYPE_CHECKING:
    import tensorflow as tf


def make_dataset(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    shuffle_seed: int | None = None,
    mean: float = 128.0,
    std: float = 128.0,
) -> "tf.data.Dataset":
    """Makes batches of scaled images and labels from arrays.

    Args:
        images: pixels in [0, 255], `(n, height, width, channels)`.
        labels: integers `(n,)`.
        batch_size: images a batch; the last batch may be smaller.
        shuffle_seed: shuffles anew each epoch, in an order that follows from
            this seed. None keeps the order.
        mean: pixel value that becomes 0.
        std: what pixels are divided by, less the mean. The defaults scale as
            `keras_muffnet.preprocess_input` does.

    Returns:
        A `tf.data.Dataset` of `(images, labels)`, the images scaled and of
        Keras's float type. It feeds Keras on any backend.

    Raises:
        ImportError: if TensorFlow is not installed.
        ValueError: if there are no images, or not a label for each.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(
            "`images` must hold at least one image and `labels` a label for "
            f"each. Received: {len(images)} images and {len(labels)} labels"
        )
    load_optional("tensorflow", "tensorflow")
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    if shuffle_seed is not None:
        dataset = dataset.shuffle(len(images), seed=shuffle_seed)
    # There is nothing to tune here, and on two cores the tuning was seen to
    # hold up the first batch of an epoch for up to twenty seconds.
    options = tf.data.Options()
    options.autotune.enabled = False

    def scale(
        images: "tf.Tensor", labels: "tf.Tensor"
    ) -> "tuple[tf.Tensor, tf.Tensor]":
        # In TensorFlow, whatever backend Keras has.
        return (tf.cast(images, keras.config.floatx()) - mean) / std, labels

    dataset = dataset.batch(batch_size).map(scale).prefetch(2)
    return dataset.with_options(options)
