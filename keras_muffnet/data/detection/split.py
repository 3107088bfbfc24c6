"""The images of a split with boxes: looked at, decoded, refused if bad."""

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import numpy as np

from keras_muffnet._optional import load_optional
from keras_muffnet.data.decoding import image_sizes
from keras_muffnet.data.decoding import resized_with_pillow
from keras_muffnet.data.decoding import rgb_with_pillow
from keras_muffnet.data.detection.annotations import DetectionExamples
from keras_muffnet.data.detection.annotations import Objects
from keras_muffnet.data.detection.annotations import Problem
from keras_muffnet.data.detection.annotations import checked
from keras_muffnet.data.detection.augmentation import LEAST_SCALE
from keras_muffnet.data.reading import in_threads
from keras_muffnet.data.reading import progress_bar

_CHUNK = 64


class SplitImage(NamedTuple):
    """A good image and its good objects.

    Attributes:
        position: in its examples.
        size: height and width in pixels, as its boxes have it.
        objects: all of them.
        trained: which of them are targets, bool `(n,)`.
        lying: whether the boxes are on the image as the file holds it, and
            not on the upright one.
    """

    position: int
    size: tuple[int, int]
    objects: Objects
    trained: np.ndarray
    lying: bool


@dataclasses.dataclass
class Split:
    """The good images of a split; `pixels` are those kept in memory."""

    examples: DetectionExamples
    images: list[SplitImage]
    skipped_images: list[Problem]
    skipped_objects: list[Problem]
    clipped: list[Problem]
    pixels: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def objects(self) -> int:
        """How many good objects there are."""
        return sum(len(image.objects.classes) for image in self.images)


def decoded(
    examples: DetectionExamples,
    image: SplitImage,
    size: tuple[int, int],
    whole: bool,
) -> np.ndarray | Problem:
    """Decodes an image: in its own size if it is to be augmented.

    A JPEG so large that its smallest crop is shrunk all the same is decoded
    at a part of its size.
    """
    least = [math.ceil(side / LEAST_SCALE) for side in size]
    try:
        encoded = examples.read(image.position)
        pixels = rgb_with_pillow(
            encoded,
            (least[0], least[1]) if whole else None,
            upright=not image.lying,
        )
        return np.asarray(
            pixels if whole else resized_with_pillow(pixels, size)
        )
    except (OSError, ValueError) as error:
        return _problem(examples, image.position, error)


def scan_split(
    examples: DetectionExamples,
    skip: bool,
    max_objects: int | None,
    train_difficult: bool,
    train_crowd: bool,
) -> Split:
    """Looks at all annotations of a split and at the sizes of its images."""
    split = Split(examples, [], [], list(examples.problems), [])
    load_optional("PIL.Image", "arrays")

    def look(position: int) -> tuple[Any, ...] | Problem:
        try:
            # First, so that a missing image is reported as such.
            encoded = examples.read(position)
            description = examples.describe(position)
            upright, stored = image_sizes(encoded)
            # Some tools draw boxes on the image as the file holds it.
            lying = description.size == stored != upright
            size = stored if lying else upright
            return size, lying, *checked(description, size)
        except (OSError, ValueError) as error:
            return _problem(examples, position, error)

    for position, found in _each(examples, range(len(examples)), look):
        if isinstance(found, Problem):
            split.skipped_images.append(found)
            continue
        size, lying, objects, bad, clipped = found
        trained = np.ones(len(objects.classes), bool)
        if not train_difficult:
            trained &= ~objects.difficult
        if not train_crowd:
            trained &= ~objects.crowd
        if max_objects is not None:
            surplus = trained & (np.cumsum(trained) > max_objects)
            reason = f"it is one more than max_objects={max_objects}"
            for row in np.flatnonzero(surplus):
                bad.append(Problem(objects.names[row], reason))
            trained &= ~surplus
        split.skipped_objects += bad
        split.clipped += clipped
        split.images.append(SplitImage(position, size, objects, trained, lying))
    if not skip:
        _refuse_bad(split.skipped_images, split.skipped_objects)
    return split


def decode_all(
    split: Split, size: tuple[int, int], whole: bool, keep: bool, skip: bool
) -> None:
    """Decodes all images of a split, and leaves those out that cannot be."""

    def decode(index: int) -> np.ndarray | Problem:
        return decoded(split.examples, split.images[index], size, whole)

    good: list[SplitImage] = []
    for index, found in _each(split.examples, range(len(split.images)), decode):
        if isinstance(found, Problem):
            split.skipped_images.append(found)
            continue
        if keep:
            split.pixels[len(good)] = found
        good.append(split.images[index])
    split.images = good
    if not skip:
        _refuse_bad(split.skipped_images, [])


def _each(
    examples: DetectionExamples, numbers: range, work: Callable[[int], Any]
) -> Iterator[tuple[int, Any]]:
    """Does something for each number, in threads, and shows progress."""
    steps = range(math.ceil(len(numbers) / _CHUNK))
    progress = progress_bar(len(numbers))

    def tasks(step: int) -> list[tuple[int]]:
        return [(n,) for n in numbers[step * _CHUNK : (step + 1) * _CHUNK]]

    for step, results in zip(
        steps, in_threads(work, tasks, steps), strict=True
    ):
        yield from zip((n for (n,) in tasks(step)), results, strict=True)
        if progress:
            progress.update(min((step + 1) * _CHUNK, len(numbers)))


def _problem(
    examples: DetectionExamples, position: int, error: Exception
) -> Problem:
    reason = getattr(error, "strerror", None) or str(error)
    return Problem(examples.name(position), reason)


def _refuse_bad(images: list[Problem], objects: list[Problem]) -> None:
    if images or objects:
        raise refusal(images, objects)


def refusal(images: list[Problem], objects: list[Problem]) -> ValueError:
    """Names the first five."""
    problems = [f"{name!r}: {reason}" for name, reason in [*images, *objects]]
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return ValueError(
        "`source` must hold whole images and boxes of its classes within them "
        "(or pass on_bad_annotation='skip'). Received: "
        f"{len(images)} bad images and {len(objects)} bad objects: "
        f"{'; '.join(problems[:5])}{more}"
    )
