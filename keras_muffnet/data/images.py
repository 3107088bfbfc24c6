"""Labeled images in memory, and batches of arrays."""

import math
import os
import warnings
from typing import TYPE_CHECKING
from typing import NamedTuple

import keras
import numpy as np

from keras_muffnet._arguments import positive_integer
from keras_muffnet._optional import load_optional
from keras_muffnet.data.batches import fits_in_memory
from keras_muffnet.data.batches import skips
from keras_muffnet.data.digits import DigitsExamples
from keras_muffnet.data.examples import Source
from keras_muffnet.data.geometry import Geometry
from keras_muffnet.data.reading import make_reader
from keras_muffnet.data.reading import refuse_bad
from keras_muffnet.data.sources import open_source
from keras_muffnet.preprocessing import MEAN
from keras_muffnet.preprocessing import STD

if TYPE_CHECKING:
    import tensorflow as tf

Shape = tuple[int, int, int]


class ImageSet(NamedTuple):
    """Images in memory, with their labels.

    Attributes:
        images: uint8 `(n, height, width, channels)`.
        labels: int64 `(n,)`, positions in `class_names`.
        class_names: a name for each label.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def load_images(
    source: str | os.PathLike[str] | Source,
    split: str,
    size: tuple[int, int],
    *,
    channels: int = 3,
    limit: int | None = None,
    seed: int = 0,
    on_bad_image: str = "raise",
    crop: float | None = None,
) -> ImageSet:
    """Loads labeled images of one size into memory.

    Pixels are those of `keras_muffnet.data.decoding`; images of another size
    are resized without keeping their aspect ratio. They stay in the order of
    the source, which in a folder is class by class.

    ```python
    from keras_muffnet import data

    photos = data.load_images("photos", "test", size=(32, 32))
    photos.images.shape  # (12, 32, 32, 3)
    ```

    Args:
        source: of `open_source`, or what it opens: a folder, an archive,
            `"digits"` or `"tfds:NAME"`.
        split: of `Source.splits`; `"test"` gives `"val"` where there is no
            test split. For TensorFlow Datasets also a slice of its own split,
            such as `"train[:10%]"`.
        size: height and width in pixels; equal for the digits.
        channels: 3 for RGB, 1 for gray.
        limit: the most images to load. They are drawn before any is decoded,
            each with the same chance, so that classes keep their shares but
            for chance. None loads all.
        seed: of the draw.
        on_bad_image: `"raise"`, or `"skip"` to leave bad images out, with a
            warning that names the first.
        crop: None resizes images as a whole; else see
            `keras_muffnet.preprocessing.Preprocessing`, that of a model being
            what `preprocessing_of` finds. None for the digits, which are all
            of one size.

    Raises:
        ImportError: if the package that the source needs is not installed.
        ValueError: if an argument is not as above; if an image is damaged or
            has no label, which is named; or if the images would take more
            than half of the machine's memory.
    """
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(
            f"`size` must be a height and a width. Received: size={size!r}"
        )
    height, width = (
        positive_integer(f"size[{i}]", side) for i, side in enumerate(size)
    )
    if channels not in (1, 3):
        raise ValueError(
            f"`channels` must be 1 or 3. Received: channels={channels!r}"
        )
    if limit is not None:
        limit = positive_integer("limit", limit)
    skip = skips("on_bad_image", on_bad_image)
    if crop is not None and not 0 < crop <= 1:
        raise ValueError(
            f"`crop` must be None or in (0, 1]. Received: crop={crop}"
        )
    shape = (height, width, channels)
    if not isinstance(source, Source):
        source = open_source(source)
    examples = source.split(split)
    picked = _pick(len(examples), shape, limit, seed)
    examples = examples.take(picked)
    if isinstance(examples, DigitsExamples):
        if crop is not None:
            raise ValueError(
                "`crop` must be None for the digits, which are all of one "
                f"size. Received: crop={crop}"
            )
        pixels, labels = examples.arrays((height, width))
        return ImageSet(pixels[..., :channels], labels, source.class_names)
    images = np.empty((len(picked), *shape), np.uint8)
    geometry = Geometry((height, width), center=crop, channels=channels)
    labels, bad = make_reader().scan(examples, geometry, images)
    if bad and skip:
        first = min(bad)
        warnings.warn(
            f"{len(bad)} bad images of the split {split!r} are left out, the "
            f"first {examples.name(first)!r} ({bad[first]})",
            stacklevel=2,
        )
        good = np.setdiff1d(np.arange(len(labels)), [*bad])
        images, labels = images[good], labels[good]
    else:
        refuse_bad(examples, bad)
    return ImageSet(images, labels, source.class_names)


def _pick(count: int, shape: Shape, limit: int | None, seed: int) -> np.ndarray:
    picked = np.arange(count)
    if limit is not None and limit < count:
        rng = np.random.default_rng(seed)
        picked = np.sort(rng.choice(count, limit, replace=False))
    needed = len(picked) * math.prod(shape)
    if not fits_in_memory(needed):
        raise ValueError(
            "`limit` must keep the images within half of this machine's "
            f"memory; {len(picked)} images of {shape} take "
            f"{needed / 2**30:.1f} GiB. Received: limit={limit!r}"
        )
    return picked


def make_dataset(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    shuffle_seed: int | None = None,
    mean: float = MEAN,
    std: float = STD,
) -> "tf.data.Dataset":
    """Makes batches of scaled images and labels from arrays.

    ```python
    from keras_muffnet import data

    photos = data.load_images("photos", "train", size=(32, 32))
    dataset = data.make_dataset(
        photos.images, photos.labels, batch_size=8, shuffle_seed=0
    )
    model.fit(dataset)
    ```

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
