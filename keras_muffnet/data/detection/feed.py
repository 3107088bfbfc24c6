"""Batches of images with boxes, for `model.fit` on any Keras backend.

Decoding and augmentation are done with Pillow and NumPy in threads; no
TensorFlow is needed but for opening TensorFlow Datasets. Batch k of epoch e
follows from the seed, e and k.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import numpy as np

from keras_muffnet._arguments import positive_integer
from keras_muffnet.data.augmentation import permutation
from keras_muffnet.data.batches import Batches
from keras_muffnet.data.batches import check_batches
from keras_muffnet.data.batches import check_count
from keras_muffnet.data.batches import check_step
from keras_muffnet.data.batches import fits_in_memory
from keras_muffnet.data.batches import skips
from keras_muffnet.data.detection.annotations import DetectionSource
from keras_muffnet.data.detection.annotations import Problem
from keras_muffnet.data.detection.augmentation import SSDAugmentation
from keras_muffnet.data.detection.split import Split
from keras_muffnet.data.detection.split import decode_all
from keras_muffnet.data.detection.split import decoded
from keras_muffnet.data.detection.split import refusal
from keras_muffnet.data.detection.split import scan_split
from keras_muffnet.data.examples import file_stamp
from keras_muffnet.data.examples import images_of
from keras_muffnet.data.examples import joined
from keras_muffnet.data.examples import split_given
from keras_muffnet.data.reading import in_threads
from keras_muffnet.preprocessing import MEAN
from keras_muffnet.preprocessing import STD
from keras_muffnet.preprocessing import Preprocessing


class GroundTruth(NamedTuple):
    """The objects of a test image, for evaluation.

    Attributes:
        id: what the data set calls the image.
        size: height and width of the original image in pixels.
        boxes: float32 `(n, 4)`, in pixels of the original image.
        classes: int64 `(n,)`.
        difficult: bool `(n,)`, of Pascal VOC.
        crowd: bool `(n,)`, of COCO.
        area: float32 `(n,)`, of the objects in pixels, by which COCO calls
            them small, medium and large; of the boxes where none is given.
    """

    id: str | int
    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    area: np.ndarray


class DetectionFeed:
    """Training, validation and test batches. Made by `make_detection_feed`.

    Attributes:
        class_names: a name for each class.
        train_size: how many images an epoch draws from; 0 without a
            training split.
        validation_size: how many images `validation` gives; 0 where these
            are the test images.
        test_size: how many images `evaluation` gives.
        test_split: name of their split: "val" where "test" gives these.
        steps_per_epoch: whole batches in an epoch; which images are left over
            differs by epoch.
        preprocessing: how images are made ready, for a model to keep.
        max_objects: rows of the targets of an image.
        skipped: what was left out, of all splits: images, then objects, each
            with its name and the reason.
        clipped: objects of all splits whose boxes reached out of their image.
    """

    def __init__(
        self,
        source: DetectionSource,
        train: Split | None,
        validation: Split,
        test: Split,
        test_split: str,
        size: tuple[int, int],
        batch_size: int,
        max_objects: int,
        seed: int,
        augmentation: SSDAugmentation | None,
        mean: float,
        std: float,
        data_format: str,
    ):
        self.class_names = source.class_names
        self.train_size = 0 if train is None else len(train.images)
        self.validation_size = (
            0 if validation is test else len(validation.images)
        )
        self.test_size = len(test.images)
        self.test_split = test_split
        self.steps_per_epoch = self.train_size // batch_size
        self.preprocessing = Preprocessing(None, mean, std, self.class_names)
        self.max_objects = max_objects
        self._splits = [test]
        if validation is not test:
            self._splits.insert(0, validation)
        if train is not None:
            self._splits.insert(0, train)
        self._skipped_images = [
            problem for s in self._splits for problem in s.skipped_images
        ]
        self.skipped = (
            *self._skipped_images,
            *(problem for s in self._splits for problem in s.skipped_objects),
        )
        self.clipped = tuple(box for s in self._splits for box in s.clipped)
        self._source = source
        self._train = train
        self._validation = validation
        self._test = test
        self._size = size
        self._batch_size = batch_size
        self._seed = seed
        self._augmentation = augmentation
        self._mean = mean
        self._std = std
        self._data_format = data_format

    def report(self) -> str:
        """Says in a line what there is and what was skipped and clipped."""
        images = len(self._skipped_images)
        objects = len(self.skipped) - images
        sizes = [f"{self.test_size} {images_of(self.test_split)}"]
        if self.validation_size:
            sizes.insert(0, f"{self.validation_size} validation")
        if self.train_size:
            sizes.insert(0, f"{self.train_size} training")
        counts = [str(split.objects()) for split in self._splits]
        names = "; ".join(f"{n}: {reason}" for n, reason in self.skipped[:5])
        more = "; ..." if len(self.skipped) > 5 else ""
        first = self._source.first_pixel
        return (
            f"{joined(sizes)}, with {joined(counts)} objects"
            + (f" (coordinates from {first})" if first is not None else "")
            + f"; {images} bad images and {objects} bad objects skipped"
            + (f" ({names}{more})" if names else "")
            + f"; {len(self.clipped)} boxes clipped"
        )

    def epoch(self, epoch: int, start_step: int = 0) -> Batches:
        """Gives the training batches of an epoch.

        Args:
            epoch: from 0.
            start_step: the first batch given, of `steps_per_epoch`.

        Returns:
            A `keras.utils.PyDataset` of scaled images, float32 `(n, height,
            width, 3)`, or channels first; and targets, float32
            `(n, max_objects, 5)`, of rows `(class, x_min, y_min, x_max,
            y_max)` in pixels of these images. Rows without an object are
            `(-1, 0, 0, 0, 0)` and come last.

        Raises:
            ValueError: if there is no such epoch or step, or no training
                split.
        """
        check_step(epoch, start_step, self.steps_per_epoch)
        assert self._train is not None
        order = permutation(self._seed, epoch, self.train_size)
        steps = range(start_step, self.steps_per_epoch)
        return self._batches(self._train, order, steps, epoch)

    def fingerprint(self, contents: bool = False) -> str:
        """Returns a text that other images or boxes, or changed ones, have not.

        Args:
            contents: reads all images, instead of asking for the sizes and
                times of their files.
        """
        digest = hashlib.sha256()
        for split in self._splits:
            for image in split.images:
                name = split.examples.name(image.position)
                digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
                if contents:
                    encoded = split.examples.read(image.position)
                    digest.update(hashlib.sha256(encoded).digest())
                else:
                    digest.update(file_stamp(name).encode())
                for values in image.objects:
                    digest.update(np.asarray(values).tobytes())
        return digest.hexdigest()

    def validation(self) -> Batches:
        """Gives the images that epochs are compared on, as `evaluation` does.

        The test images where there is no validation split.
        """
        return self._once(self._validation)

    def evaluation(self) -> Batches:
        """Gives each test image once, in the order of the source.

        Returns:
            Batches as those of `epoch`, of whole images that are not
            augmented. The last may be smaller.
        """
        return self._once(self._test)

    def ground_truth(self, validation: bool = False) -> list[GroundTruth]:
        """All objects of the test images, in the order of `evaluation`.

        Args:
            validation: takes the images of `validation` instead.
        """
        split = self._validation if validation else self._test
        return [
            GroundTruth(
                split.examples.id(image.position),
                image.size,
                *image.objects[:5],
            )
            for image in split.images
        ]

    def _once(self, split: Split) -> Batches:
        count = len(split.images)
        steps = range(math.ceil(count / self._batch_size))
        return self._batches(split, np.arange(count), steps)

    def _batches(
        self,
        split: Split,
        order: np.ndarray,
        steps: range,
        epoch: int | None = None,
    ) -> Batches:
        """Batches of images of a split; with an epoch, augmented."""

        def tasks(step: int) -> list[tuple[int]]:
            start = step * self._batch_size
            return [(int(i),) for i in order[start : start + self._batch_size]]

        def work(index: int) -> tuple[np.ndarray, np.ndarray]:
            return self._example(split, index, epoch)

        def ready() -> Iterator[tuple[Any, Any]]:
            for examples in in_threads(work, tasks, steps):
                images, targets = map(np.stack, zip(*examples, strict=True))
                if self._data_format == "channels_first":
                    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
                yield images, targets

        return Batches(ready, len(steps))

    def _example(
        self, split: Split, index: int, epoch: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        image = split.images[index]
        augmentation = self._augmentation if epoch is not None else None
        pixels = split.pixels.get(index)
        if pixels is None:
            whole = augmentation is not None
            found = decoded(split.examples, image, self._size, whole)
            if isinstance(found, Problem):
                raise refusal([found], [])
            pixels = found
        # What was decoded may be smaller than the original.
        scale = np.divide(pixels.shape[:2], image.size)[[1, 0, 1, 0]]
        boxes = image.objects.boxes[image.trained] * scale
        classes = image.objects.classes[image.trained]
        if augmentation is not None:
            key = (self._seed, epoch or 0, image.position)
            x, boxes, kept = augmentation(
                pixels, boxes, key, self._size, self._mean, self._std
            )
            classes = classes[kept]
        else:
            x = (pixels.astype(np.float32) - self._mean) / self._std
        targets = np.zeros((self.max_objects, 5), np.float32)
        targets[:, 0] = -1
        targets[: len(classes), 0] = classes
        targets[: len(classes), 1:] = boxes
        return x, targets


def make_detection_feed(
    source: DetectionSource,
    *,
    size: tuple[int, int],
    batch_size: int,
    max_objects: int | None = None,
    seed: int = 0,
    augment: bool | SSDAugmentation = True,
    train_split: str | None = "train",
    test_split: str = "test",
    val_split: str | None = None,
    on_bad_annotation: str = "raise",
    train_difficult: bool = True,
    train_crowd: bool = False,
    cache: bool | None = None,
    mean: float = MEAN,
    std: float = STD,
    data_format: str | None = None,
) -> DetectionFeed:
    """Makes batches of images with boxes from a source.

    Every image and annotation is looked at first. An image is bad if it is
    missing or damaged, if its annotation does not parse or is for a picture of
    another size, or in a Pascal VOC folder is missing, and if it is the second
    one of its id. An object is bad if its box has no area, is
    wholly outside of the image or no box at all, if its class is not of the
    source's, if it is the second one of its id or one more than `max_objects`.
    A box partly outside is clipped, listed in `DetectionFeed.clipped` and no
    error. Images without objects are good.

    ```python
    from keras_muffnet import data

    feed = data.make_detection_feed(
        data.open_detection_source("cells"),
        size=(300, 300),
        batch_size=4,
        train_split="trainval",
    )
    images, objects = feed.epoch(0)[0]
    ```

    Args:
        source: of `open_detection_source`.
        size: height and width of the batches' images in pixels. The aspect is
            not kept.
        batch_size: images a batch.
        max_objects: rows of the targets of an image. None takes the most
            objects that an image has, of all splits.
        seed: of the order and the augmentation.
        augment: training images as SSD does it, or by one's own recipe. False
            resizes them as test images.
        train_split: name of the training split; None for a feed that only
            evaluates.
        test_split: name of the test split.
        val_split: name of the split that `DetectionFeed.validation` gives, to
            compare epochs on; None for the test images.
        on_bad_annotation: `"raise"`, or `"skip"` to leave bad images and
            objects out and list them in `DetectionFeed.skipped`. With
            `"raise"`, damaged pixels of images that are not kept in memory are
            an error in the epoch.
        train_difficult: has targets for objects that Pascal VOC calls
            difficult, as SSD and gluon-cv do. Evaluation leaves them out by
            their flag.
        train_crowd: has targets for COCO's crowds, whose box is that of no
            single object. gluon-cv has; most detectors do not.
        cache: keeps decoded images in memory. None does where they fit in half
            of the machine's memory.
        mean: pixel value that becomes 0.
        std: what pixels are divided by, less the mean. The defaults scale as
            `keras_muffnet.preprocess_input` does.
        data_format: of the images; None for Keras's.

    Raises:
        ImportError: if Pillow is not installed.
        ValueError: if an argument is not as above, the source lacks a split,
            or an image or object is bad: the first five are named.
    """
    if not isinstance(source, DetectionSource):
        raise ValueError(
            "`source` must come from open_detection_source(). Received: "
            f"{source!r}"
        )
    size, batch_size, data_format = check_batches(
        size, batch_size, seed, data_format
    )
    if max_objects is not None:
        max_objects = positive_integer("max_objects", max_objects)
    if not isinstance(augment, (bool, SSDAugmentation)):
        raise ValueError(
            "`augment` must be True, False or an SSDAugmentation. Received: "
            f"augment={augment!r}"
        )
    skip = skips("on_bad_annotation", on_bad_annotation)
    augmentation = SSDAugmentation() if augment is True else augment or None
    names = [train_split, val_split, test_split]
    opened = [source.split(name) for name in names if name is not None]
    splits = [
        scan_split(examples, skip, max_objects, train_difficult, train_crowd)
        for examples in opened
    ]
    random = [False] * len(splits)
    if train_split is not None:
        random[0] = augmentation is not None
    if cache is None:
        needed = sum(
            3 * math.prod(image.size if whole else size)
            for split, whole in zip(splits, random, strict=True)
            for image in split.images
        )
        cache = fits_in_memory(needed)
    for split, whole in zip(splits, random, strict=True):
        if cache or skip:
            decode_all(split, size, whole, cache, skip)
        if not split.images:
            raise ValueError(
                "`source` must hold a good image in each split. Received: "
                f"all are bad, the first {split.skipped_images[0]}"
            )
        if not sum(int(image.trained.sum()) for image in split.images):
            left = [*split.skipped_objects, *split.skipped_images]
            first = f", the first {left[0]}" if left else ""
            raise ValueError(
                "`source` must hold a good object in each split. Received: "
                f"{len(split.images)} images without any, and {len(left)} bad "
                f"ones{first}"
            )
    test = splits[-1]
    validation = test if val_split is None else splits[-2]
    train = None if train_split is None else splits[0]
    if train is not None:
        check_count(batch_size, len(train.images), "good training")
    if max_objects is None:
        counts = [i.trained.sum() for s in splits for i in s.images]
        max_objects = max(1, *map(int, counts))
    return DetectionFeed(
        source,
        train,
        validation,
        test,
        split_given(test_split, source.splits),
        size,
        batch_size,
        max_objects,
        seed,
        augmentation,
        mean,
        std,
        data_format,
    )
