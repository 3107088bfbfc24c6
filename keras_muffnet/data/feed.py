"""Batches for `model.fit`, the same whatever they come from.

Batch k of epoch e follows from the seed, e and k: a run that resumes from a
checkpoint sees what a run never stopped would have seen.
"""

import hashlib
import math
from collections.abc import Callable
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any

import keras
import numpy as np

from keras_muffnet.data.augmentation import Augmentation
from keras_muffnet.data.augmentation import Draws
from keras_muffnet.data.augmentation import permutation
from keras_muffnet.data.batches import Batches
from keras_muffnet.data.batches import check_batches
from keras_muffnet.data.batches import check_count
from keras_muffnet.data.batches import check_step
from keras_muffnet.data.batches import fits_in_memory
from keras_muffnet.data.batches import skips
from keras_muffnet.data.checks import warn_of_images
from keras_muffnet.data.examples import Source
from keras_muffnet.data.examples import images_of
from keras_muffnet.data.examples import joined
from keras_muffnet.data.examples import split_given
from keras_muffnet.data.geometry import Geometry
from keras_muffnet.data.reading import TensorFlowReader
from keras_muffnet.data.reading import make_reader
from keras_muffnet.data.reading import with_options
from keras_muffnet.data.split import Split
from keras_muffnet.data.transforms import Transform
from keras_muffnet.data.transforms import compiled
from keras_muffnet.preprocessing import MEAN
from keras_muffnet.preprocessing import STD
from keras_muffnet.preprocessing import Preprocessing

if TYPE_CHECKING:
    import tensorflow as tf

Batch = tuple[np.ndarray, np.ndarray, Draws]


class Feed:
    """Training and test batches. Made by `make_feed`.

    Attributes:
        class_names: a name for each label.
        train_size: how many images an epoch draws from; 0 without a
            training split.
        validation_size: how many images `validation` gives; 0 where these
            are the test images.
        test_size: how many images `evaluation` gives.
        test_split: name of their split: "val" where "test" gives these.
        steps_per_epoch: whole batches in an epoch; which images are left over
            differs by epoch.
        skipped: bad images left out, of both splits, each with the reason.
        preprocessing: how test images are made ready, for a model to keep.
    """

    def __init__(
        self,
        train: Split | None,
        validation: Split,
        test: Split,
        test_split: str,
        class_names: tuple[str, ...],
        recipe: Augmentation,
        transform: Transform,
        batch_size: int,
        seed: int,
        shard: tuple[int, int],
        fill: bool,
        balanced: bool,
    ):
        self.class_names = class_names
        self.train_size = 0 if train is None else len(train)
        self.validation_size = 0 if validation is test else len(validation)
        self.test_size = len(test)
        self.test_split = test_split
        self.steps_per_epoch = self.train_size // batch_size
        self.skipped = tuple(test.skipped)
        if train is not None:
            self.skipped = (*train.skipped, *self.skipped)
        if validation is not test:
            self.skipped += tuple(validation.skipped)
        self.preprocessing = Preprocessing(
            test.geometry.center, transform.mean, transform.std, class_names
        )
        self._train = train
        self._validation = validation
        self._test = test
        self._recipe = recipe
        # Traced once, not once an epoch.
        self._transform = compiled(transform)
        self._batch_size = batch_size
        self._seed = seed
        self._shard = shard
        self._fill = fill
        # Of the training images, where classes have weights.
        self._weights: np.ndarray | None = None
        if balanced and train is not None:
            self._weights = train.balanced_weights()

    def report(self) -> str:
        """Says in a line how many images there are and were skipped."""
        names = ", ".join(repr(name) for name, _ in self.skipped[:5])
        more = ", ..." if len(self.skipped) > 5 else ""
        parts = [f"{self.test_size} {images_of(self.test_split)}"]
        if self.validation_size:
            parts.insert(0, f"{self.validation_size} validation")
        if self.train_size:
            parts.insert(0, f"{self.train_size} training")
        return f"{joined(parts)}; {len(self.skipped)} bad ones skipped" + (
            f": {names}{more}" if names else ""
        )

    def fingerprint(self, contents: bool = False) -> str:
        """Returns a text that other images, or changed ones, have not.

        Args:
            contents: reads all images, instead of asking for the sizes and
                times of their files.
        """
        digest = hashlib.sha256()
        for split in (self._train, self._validation, self._test):
            if split is None:
                continue
            for position in split.positions.tolist():
                examples = split.examples
                parts = [examples.key(position), examples.stamp(position)]
                if contents:
                    image, label = examples.read(position)
                    found = hashlib.sha256(image).hexdigest()
                    parts[1:] = [found, str(label)]
                text = "\0".join(parts) + "\n"
                digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def epoch(
        self, epoch: int, start_step: int = 0
    ) -> "tf.data.Dataset | Batches":
        """Gives the training batches of an epoch.

        Args:
            epoch: from 0.
            start_step: the first batch given, of `steps_per_epoch`.

        Returns:
            For Keras on TensorFlow, fed by tf.data, a `tf.data.Dataset`;
            otherwise a `keras.utils.PyDataset`. Both have a length and give
            scaled images, `(n, height, width, 3)`, or channels first, of
            Keras's float type; labels, integers `(n,)` or float one-hot
            `(n, classes)`; and with `class_weight` float32 weights `(n,)`.

        Raises:
            ValueError: if there is no such epoch or step, or no training
                split.
        """
        check_step(epoch, start_step, self.steps_per_epoch)
        train = self._train
        assert train is not None
        index, shards = self._shard
        rows = self._batch_size // shards
        order = permutation(self._seed, epoch, self.train_size)

        def chosen(step: int) -> np.ndarray:
            start = int(step) * self._batch_size + index * rows
            return order[start : start + rows]

        def draws(step: int) -> Draws:
            rows = chosen(step)
            found = self._recipe.draw(
                self._seed,
                epoch,
                int(step),
                train.positions[rows],
                train.geometry.size,
            )
            if self._weights is not None:
                found = {**found, "weights": self._weights[rows]}
            return found

        def crops(positions: np.ndarray) -> np.ndarray | None:
            if self._recipe.area is None:
                return None
            return self._recipe.draw_crops(self._seed, epoch, positions)

        steps = range(start_step, self.steps_per_epoch)
        return self._batches(train, chosen, crops, draws, steps, rows)

    def validation(self) -> "tf.data.Dataset | Batches":
        """Gives each image that epochs are compared on; see `evaluation`.

        The test images where there is no validation split.
        """
        return self._once(self._validation)

    def evaluation(self) -> "tf.data.Dataset | Batches":
        """Gives each test image once, in the order of the source.

        Returns:
            Batches as those of `epoch`, not augmented. The last may be
            smaller. Filled up (see `make_feed`) it is not, and all batches
            have a third part, float32 weights `(n,)`: 0 for what fills up,
            and for the images what makes the mean over all rows theirs.
        """
        return self._once(self._test)

    def _once(self, split: Split) -> "tf.data.Dataset | Batches":
        index, shards = self._shard
        size, images = self._batch_size, len(split)
        steps = range(math.ceil(images / size))
        rows = size // shards
        # What fills up is taken from the start again.
        count = len(steps) * size if self._fill else images
        order = np.arange(count)

        def numbers(step: int) -> np.ndarray:
            start = int(step) * size + index * rows
            return order[start : start + rows]

        def weights(step: int) -> np.ndarray:
            among = numbers(step) < images
            return (among * (count / images)).astype(np.float32)

        return self._batches(
            split,
            lambda step: numbers(step) % images,
            lambda positions: None,
            lambda step: {"weights": weights(step)} if self._fill else {},
            steps,
            rows,
        )

    def _batches(
        self,
        split: Split,
        chosen: Callable[[int], np.ndarray],
        crops: Callable[[np.ndarray], np.ndarray | None],
        draws: Callable[[int], Draws],
        steps: range,
        size: int,
    ) -> "tf.data.Dataset | Batches":
        def chunk(step: int) -> tuple[np.ndarray, np.ndarray | None]:
            positions = split.positions[chosen(step)]
            return positions, crops(positions)

        def cached(step: int) -> tuple[np.ndarray, np.ndarray]:
            rows = chosen(step)
            assert split.arrays is not None
            images, labels = split.arrays
            return images[rows], labels[rows]

        reader, in_memory = split.reader, split.arrays is not None
        read = split.examples, split.geometry, chunk, steps
        if (
            isinstance(reader, TensorFlowReader)
            and keras.backend.backend() == "tensorflow"
        ):
            dataset = (
                _call_each(cached, steps)
                if in_memory
                else reader.dataset(*read, size)
            )
            return _augmented(dataset, draws, steps, self._transform)

        def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            if in_memory:
                return map(cached, steps)
            if isinstance(reader, TensorFlowReader):
                dataset = reader.dataset(*read, size).prefetch(2)
                return with_options(dataset).as_numpy_iterator()
            return reader.batches(*read)

        def ready() -> Iterator[tuple[Any, ...]]:
            for step, (images, labels) in zip(steps, pairs(), strict=True):
                yield self._transform(images, labels, draws(step))

        return Batches(ready, len(steps))


def _call_each(call: Callable, steps: range) -> "tf.data.Dataset":
    """Calls a NumPy function of the step, in tf.data."""
    import tensorflow as tf

    example = keras.tree.flatten(call(steps.start))
    # The last batch may be smaller.
    smaller = len(keras.tree.flatten(call(steps[-1]))[0]) != len(example[0])

    def called(step: "tf.Tensor") -> "tuple[tf.Tensor, ...]":
        given = tf.numpy_function(
            lambda step: keras.tree.flatten(call(step)),
            [step],
            [tf.as_dtype(array.dtype) for array in example],
        )
        for tensor, array in zip(given, example, strict=True):
            count = None if smaller else array.shape[0]
            tensor.set_shape((count, *array.shape[1:]))
        return tuple(given)

    return tf.data.Dataset.range(steps.start, steps.stop).map(called)


def _augmented(
    images: "tf.data.Dataset",
    draws: Callable[[int], Draws],
    steps: range,
    transform: Callable,
) -> "tf.data.Dataset":
    """Augments in tf.data, with Keras on TensorFlow."""
    import tensorflow as tf

    names = sorted(draws(steps.start))
    if not names:
        dataset = images.map(lambda x, y: transform(x, y, {}))
        return with_options(dataset.prefetch(2))

    def drawn(step: int) -> list[np.ndarray]:
        found = draws(step)
        return [found[name] for name in names]

    def augment(
        batch: "tuple[tf.Tensor, tf.Tensor]", numbers: "tuple[tf.Tensor, ...]"
    ) -> "tuple[tf.Tensor, ...]":
        x, y = batch
        found = dict(zip(names, numbers, strict=True))
        x = tf.ensure_shape(x, (numbers[0].shape[0], *x.shape[1:]))
        return transform(x, y, found)

    dataset = tf.data.Dataset.zip(images, _call_each(drawn, steps))
    dataset = dataset.map(augment, num_parallel_calls=2)
    return with_options(dataset.prefetch(2))


def make_feed(
    source: Source,
    augmentation: Augmentation,
    *,
    size: tuple[int, int],
    batch_size: int,
    seed: int = 0,
    one_hot: bool = False,
    train_split: str | None = "train",
    test_split: str = "test",
    val_split: str | None = None,
    class_weight: str | None = None,
    on_bad_image: str = "raise",
    cache: bool | None = None,
    backend: str | None = None,
    mean: float = MEAN,
    std: float = STD,
    data_format: str | None = None,
    shard: tuple[int, int] = (0, 1),
    fill: bool = False,
) -> Feed:
    """Makes batches for `model.fit` from a source.

    ```python
    from keras_muffnet import data

    source = data.open_source("photos")
    feed = data.make_feed(source, data.IMAGENET, size=(32, 32), batch_size=8)
    model.fit(
        feed.epoch(0), validation_data=feed.evaluation(), shuffle=False
    )
    ```

    Args:
        source: of `open_source`.
        augmentation: of training images: `CIFAR`, `IMAGENET`, `PLAIN` or one's
            own.
        size: height and width of the images in pixels.
        batch_size: images a batch, of all shards together.
        seed: of the order and the augmentation.
        one_hot: gives float labels `(n, classes)`. Mixup and cutmix need them.
        train_split: name of the training split; None for a feed that only
            evaluates.
        test_split: name of the test split. For a folder without `test/`,
            `"test"` gives `val/`.
        val_split: name of the split that `Feed.validation` gives, to compare
            epochs on. None gives the test split.
        class_weight: `"balanced"` gives training images weights by which each
            class has the same part in the loss; an image mixed by mixup or
            cutmix has the weight of the one it is mixed into. None gives no
            weights.
        on_bad_image: `"raise"`, or `"skip"` to leave bad images out and list
            them in `Feed.skipped`. Bad are files that are not whole images, and
            images whose label is out of range.
            Images that are not kept in memory are read once more for it.
        cache: keeps decoded images in memory. None does where they fit in half
            of the machine's memory. Random crops by area (`IMAGENET`) are
            taken from the file each time, whatever is said here.
        backend: `"tf.data"`; `"arrays"`, which needs Pillow and no TensorFlow;
            or None for tf.data where TensorFlow is installed.
        mean: pixel value that becomes 0.
        std: what pixels are divided by, less the mean.
        data_format: of the images; None for Keras's.
        shard: which of how many processes this is. It reads its rows of each
            batch alone, augmented as they would be in one process, but mixed
            among themselves, and with RandAugment's strengths its own.
        fill: fills the last test batch up with images of weight 0, so that
            several devices can share it; see `Feed.evaluation`. Shards need
            it.

    Raises:
        ImportError: if a package that is needed is not installed.
        ValueError: if an argument is not as above, the source lacks a split,
            or an image is bad, which is named with its path.
    """
    if not isinstance(source, Source):
        raise ValueError(
            f"`source` must come from open_source(). Received: {source!r}"
        )
    if not isinstance(augmentation, Augmentation):
        raise ValueError(
            "`augmentation` must be an Augmentation. Received: "
            f"augmentation={augmentation!r}"
        )
    size, batch_size, data_format = check_batches(
        size, batch_size, seed, data_format
    )
    if augmentation.mixes and not one_hot:
        raise ValueError(
            "`one_hot` must be True for mixup and cutmix, which mix labels. "
            f"Received: one_hot={one_hot}"
        )
    if class_weight not in (None, "balanced"):
        raise ValueError(
            "`class_weight` must be 'balanced' or None. Received: "
            f"class_weight={class_weight!r}"
        )
    skip = skips("on_bad_image", on_bad_image)
    index, shards = shard
    if not 0 <= index < shards or batch_size % shards:
        raise ValueError(
            "`shard` must be (index, count), index below count, and count "
            f"divide the batch size. Received: shard={shard}, "
            f"batch_size={batch_size}"
        )
    if shards > 1 and not fill:
        raise ValueError(
            "`fill` must be True where there are shards, which all get as many "
            f"test images. Received: fill={fill}, shard={shard}"
        )
    reader = make_reader(backend)
    test = source.split(test_split)
    val = test if val_split is None else source.split(val_split)
    opened = {val_split or test_split: val, test_split: test}
    train = None
    if train_split is not None:
        train = source.split(train_split)
        check_count(batch_size, len(train))
        opened = {train_split: train, **opened}
    elif class_weight is not None:
        raise ValueError(
            "`class_weight` must be None without a training split. "
            f"Received: class_weight={class_weight!r}"
        )
    warn_of_images(opened)
    if cache is None:
        count = len(test) + (0 if val is test else len(val))
        count += 0 if train is None else len(train)
        cache = fits_in_memory(3 * count * math.prod(size))
    train_images = None
    if train is not None:
        random = augmentation.area is not None
        geometry = Geometry(size, augmentation.aspect if random else None)
        train_images = Split(
            train, geometry, reader, cache and not random, skip
        )
        check_count(batch_size, len(train_images), "good training")
    geometry = Geometry(size, center=augmentation.test_crop)
    test_images = Split(test, geometry, reader, cache, skip)
    val_images = test_images
    if val is not test:
        val_images = Split(val, geometry, reader, cache, skip)
    transform = Transform(
        augmentation,
        mean,
        std,
        len(source.class_names) if one_hot else 0,
        data_format,
    )
    return Feed(
        train_images,
        val_images,
        test_images,
        split_given(test_split, source.splits),
        source.class_names,
        augmentation,
        transform,
        batch_size,
        seed,
        (index, shards),
        fill,
        class_weight == "balanced",
    )
