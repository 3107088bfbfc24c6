"""Labelled images in memory, and batches of arrays."""

import functools
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import NamedTuple

import keras
import numpy as np

from keras_muffnet._arguments import positive_integer
from keras_muffnet._optional import load_optional
from keras_muffnet.data import folders
from keras_muffnet.data import tfds as datasets
from keras_muffnet.data.digits import load_digits
from keras_muffnet.data.examples import listed
from keras_muffnet.data.reading import progress_bar
from keras_muffnet.preprocessing import MEAN
from keras_muffnet.preprocessing import STD

if TYPE_CHECKING:
    import tensorflow as tf

Shape = tuple[int, int, int]
# From the number of images to the sorted positions of those to load.
Pick = Callable[[int], np.ndarray]


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
    source: str | os.PathLike[str],
    split: str,
    size: tuple[int, int],
    *,
    channels: int = 3,
    limit: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """Loads labelled images of one size into memory.

    Images of another size are resized bilinearly with antialiasing, without
    keeping their aspect ratio. They stay in the order of the source, which in
    a folder is class by class.

    Args:
        source: one of

            - `"digits"`: scikit-learn's digits; see `load_digits`.
            - a folder that holds `train/` and `test/` or `val/`, each with a
              folder a class, named as the class, of JPEG, PNG, GIF (its first
              frame) and BMP (24 or 32 bits) files. What is hidden, its
              name starting with a dot, is passed over. Classes are those of
              `train/`, sorted by name; the other splits may lack some.
            - `"tfds:NAME"`: an image classification data set of TensorFlow
              Datasets. It is downloaded once, to `~/tensorflow_datasets` or
              where `TFDS_DATA_DIR` says.
        split: `"train"`, `"test"` or, in a folder, `"val"`; a folder without
            `test/` gives `val/` for `"test"`. For TensorFlow Datasets a name
            or slice of a split as it has them: `"validation"`,
            `"train[:10%]"`.
        size: height and width in pixels; equal for the digits.
        channels: 3 for RGB, 1 for grey.
        limit: the most images to load. They are drawn before any is decoded,
            each with the same chance, so that classes keep their shares but
            for chance. None loads all.
        seed: of the draw.

    Raises:
        ImportError: if the package that the source needs is not installed.
        ValueError: if an argument is not as above; if a class folder is
            empty, or something in it is no image or a damaged one (nothing is
            left out silently); if an image has no label; or if the images
            would take more than half of the machine's memory.
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
    shape = (height, width, channels)
    pick = functools.partial(_pick, shape=shape, limit=limit, seed=seed)
    if isinstance(source, str) and source == "digits":
        return _from_digits(split, shape, pick)
    if isinstance(source, str) and source.startswith("tfds:"):
        return _from_tfds(source, split, shape, pick)
    if not isinstance(source, (str, os.PathLike)) or not os.path.isdir(source):
        raise ValueError(
            "`source` must be 'digits', 'tfds:NAME' or an existing folder. "
            f"Received: source={source!r}"
        )
    return _from_folder(os.fspath(source), split, shape, pick)


def _pick(count: int, shape: Shape, limit: int | None, seed: int) -> np.ndarray:
    picked = np.arange(count)
    if limit is not None and limit < count:
        rng = np.random.default_rng(seed)
        picked = np.sort(rng.choice(count, limit, replace=False))
    needed = len(picked) * math.prod(shape)
    # Windows does not tell; there numpy raises what it cannot hold.
    if hasattr(os, "sysconf"):
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        if needed > half:
            raise ValueError(
                "`limit` must keep the images within half of this machine's "
                f"memory, {half / 2**30:.1f} GiB; {len(picked)} images of "
                f"{shape} take {needed / 2**30:.1f} GiB. Received: "
                f"limit={limit!r}"
            )
    return picked


def _from_digits(split: str, shape: Shape, pick: Pick) -> ImageSet:
    if split not in ("train", "test"):
        raise ValueError(
            f"`split` must be 'train' or 'test'. Received: split={split!r}"
        )
    if shape[0] != shape[1]:
        raise ValueError(
            f"`size` must be square for the digits. Received: size={shape[:2]}"
        )
    picked = pick(360 if split == "test" else 1437)
    images, labels = load_digits(shape[0])[split == "test"]
    names = tuple(str(digit) for digit in range(10))
    return ImageSet(images[picked, ..., : shape[2]], labels[picked], names)


def _from_folder(root: str, split: str, shape: Shape, pick: Pick) -> ImageSet:
    load_optional("tensorflow", "tensorflow")
    import tensorflow as tf

    files, labels, names = folders.folder_tree(root).files(split)
    folders.refuse_strays(
        [file for file in files if not file.lower().endswith(folders.SUFFIXES)]
    )
    picked = pick(len(files))
    encoded = [os.fsencode(files[i]) for i in picked]
    records = tf.data.Dataset.from_tensor_slices(
        (encoded, np.array(labels, np.int64)[picked])
    )
    images, loaded, found = _decode(records, len(picked), shape, files=True)
    if not found.all():
        raise ValueError(
            "`source` must hold whole JPEG, PNG, GIF or 24-bit BMP images. "
            "Received files that cannot be read and decoded: "
            + listed([files[i] for i in picked[~found]])
        )
    return ImageSet(images, loaded, tuple(names))


def _from_tfds(source: str, split: str, shape: Shape, pick: Pick) -> ImageSet:
    tfds = load_optional("tensorflow_datasets", "datasets")
    import tensorflow as tf

    builder, keys, names = datasets.tfds_builder(source)
    count = datasets.tfds_split(builder, source, split).num_examples
    picked = pick(count)
    records = builder.as_dataset(
        split=split,
        as_supervised=True,
        decoders={keys[0]: tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    if len(picked) < count:
        kept = np.isin(np.arange(count), picked)
        records = records.enumerate()
        records = records.filter(lambda index, _: tf.gather(kept, index))
        records = records.map(lambda _, record: record)
    images, labels, _ = _decode(records, len(picked), shape, files=False)
    if (labels < 0).any():
        raise ValueError(
            "`split` must have a label for each image. Received: "
            f"split={split!r} of {source!r}, which has images without"
        )
    return ImageSet(images, labels, names)


def _decode(
    records: "tf.data.Dataset", count: int, shape: Shape, files: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decodes pairs of an image, encoded or its file, and a label.

    Returns:
        The images, the labels, and which of them there are: a file that
        cannot be decoded is passed over.
    """
    import tensorflow as tf

    height, width, channels = shape

    def resized(image: "tf.Tensor") -> "tf.Tensor":
        image = tf.image.resize(image, (height, width), antialias=True)
        return tf.cast(tf.round(image), tf.uint8)

    def decoded(
        index: "tf.Tensor", record: "tuple[tf.Tensor, tf.Tensor]"
    ) -> "tuple[tf.Tensor, tf.Tensor, tf.Tensor]":
        image, label = record
        image = tf.io.read_file(image) if files else image
        # TensorFlow would take the indices into a palette for greys.
        bmp = tf.strings.substr(image, 0, 2) == b"BM"
        indexed = tf.strings.substr(image, 28, 1) == b"\x08"
        tf.debugging.Assert(~(bmp & indexed), ["BMP with a palette"])
        # Always as RGB: not every format is decoded to grey.
        image = tf.io.decode_image(image, channels=3, expand_animations=False)
        image.set_shape((None, None, 3))
        if channels == 1:
            image = tf.image.rgb_to_grayscale(image)
        fits = tf.reduce_all(tf.shape(image)[:2] == (height, width))
        image = tf.cond(fits, lambda: image, lambda: resized(image))
        return index, image, label

    dataset = records.enumerate().map(decoded, os.cpu_count() or 1)
    if files:
        dataset = dataset.ignore_errors()
    options = tf.data.Options()
    options.autotune.enabled = False  # as in make_dataset
    dataset = dataset.batch(32).prefetch(2).with_options(options)
    images = np.empty((count, *shape), np.uint8)
    labels = np.empty(count, np.int64)
    found = np.zeros(count, bool)
    progress = progress_bar(count)
    for index, batch, batch_labels in dataset.as_numpy_iterator():
        images[index], labels[index] = batch, batch_labels
        found[index] = True
        if progress:
            progress.update(int(index[-1]) + 1)
    return images, labels, found


def make_dataset(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    shuffle_seed: int | None = None,
    mean: float = MEAN,
    std: float = STD,
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
