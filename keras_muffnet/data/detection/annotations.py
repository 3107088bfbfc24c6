"""Images with boxes: what annotations say, held against the image.

A source gives encoded images and what their annotations say, by position.
`checked` then holds it against the image: no format is trusted.

Boxes are float32 `(x_min, y_min, x_max, y_max)` in pixels, in continuous
coordinates: an image of width W spans 0 to W.
"""

import dataclasses
import functools
import os
import re
import warnings
from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_muffnet.data.examples import STANDS_IN
from keras_muffnet.data.examples import check_fraction
from keras_muffnet.data.examples import held_out
from keras_muffnet.data.examples import missing_split
from keras_muffnet.data.examples import refuse_held_out
from keras_muffnet.data.examples import split_named

# Pixels that a box may reach out of its image without being said to: what
# rounding does.
TOLERANCE = 0.1


class Problem(NamedTuple):
    """Something wrong with an annotation.

    Attributes:
        name: the file and the object in it.
        reason: what is wrong.
    """

    name: str
    reason: str


class RawObject(NamedTuple):
    """An object as its annotation has it.

    Attributes:
        name: the file and the object in it.
        box: `(x_min, y_min, x_max, y_max)` in pixels, unchecked.
        label: position of its class in the source's `class_names`.
        difficult: as Pascal VOC flags what is hard to recognize.
        crowd: as COCO flags a group of objects in one box.
        area: of the object in pixels, where the annotation has it.
    """

    name: str
    box: tuple[float, float, float, float]
    label: int
    difficult: bool = False
    crowd: bool = False
    area: float | None = None


class Description(NamedTuple):
    """What an annotation says of an image.

    Attributes:
        size: height and width in pixels, where it has them.
        normalized: whether boxes are in shares of the image instead.
        objects: in the annotation's order; those with a problem of their own
            are that.
    """

    size: tuple[int, int] | None
    objects: list[RawObject | Problem]
    normalized: bool = False


class Objects(NamedTuple):
    """The good objects of an image.

    Attributes:
        boxes: float32 `(n, 4)`, within the image.
        classes: int64 `(n,)`.
        difficult: bool `(n,)`.
        crowd: bool `(n,)`.
        area: float32 `(n,)`, of the objects in pixels; of the boxes where the
            annotation does not say.
        names: the file and the object in it.
    """

    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    names: tuple[str, ...]


def checked(
    description: Description, size: tuple[int, int]
) -> tuple[Objects, list[Problem], list[Problem]]:
    """Holds annotations against their image.

    A box that lies partly outside of the image is clipped.

    Args:
        description: what the annotations say.
        size: height and width of the image.

    Returns:
        The good objects, the bad ones, and those that were clipped by more
        than `TOLERANCE`, which are among the good ones too.

    Raises:
        ValueError: if the annotations are for an image of another size.
    """
    if description.size is not None and description.size != size:
        expected, found = (
            f"{width} x {height}" for height, width in (description.size, size)
        )
        raise ValueError(
            f"its annotation is of a picture of {expected} pixels (width x "
            f"height), and it has {found}"
        )
    height, width = size
    limits = np.array([width, height, width, height], np.float64)
    good: list[RawObject] = []
    boxes: list[np.ndarray] = []
    bad: list[Problem] = []
    clipped: list[Problem] = []
    for item in description.objects:
        if isinstance(item, Problem):
            bad.append(item)
            continue
        box = np.array(item.box, np.float64)
        if description.normalized:
            box *= limits
        inside = np.clip(box, 0, limits).astype(np.float32)
        corners = ", ".join(f"{number:g}" for number in box)
        if not np.isfinite(box).all():
            bad.append(Problem(item.name, f"its box is ({corners})"))
        elif box[0] >= box[2] or box[1] >= box[3]:
            bad.append(Problem(item.name, f"its box ({corners}) has no area"))
        elif inside[0] >= inside[2] or inside[1] >= inside[3]:
            reason = (
                f"its box ({corners}) is outside of {width} x {height} pixels"
            )
            bad.append(Problem(item.name, reason))
        else:
            if np.abs(inside - box).max() > TOLERANCE:
                reason = f"its box ({corners}) reaches out of the image"
                clipped.append(Problem(item.name, reason))
            good.append(item)
            boxes.append(inside)
    array = np.array(boxes, np.float32).reshape(-1, 4)
    own = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])
    area = [
        own[i] if item.area is None else item.area
        for i, item in enumerate(good)
    ]
    objects = Objects(
        array,
        np.array([item.label for item in good], np.int64),
        np.array([item.difficult for item in good], bool),
        np.array([item.crowd for item in good], bool),
        np.array(area, np.float32),
        tuple(item.name for item in good),
    )
    return objects, bad, clipped


class DetectionExamples:
    """The encoded images of a split and their annotations, by position.

    Attributes:
        problems: those of annotations that belong to no image.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, position: int) -> str:
        """What an error calls the image: its path, or file and record."""
        raise NotImplementedError

    def id(self, position: int) -> str | int:
        """What the data set calls the image."""
        raise NotImplementedError

    def read(self, position: int) -> bytes:
        """Reads an image, still encoded.

        Raises:
            OSError: if it is not there.
        """
        raise NotImplementedError

    def describe(self, position: int) -> Description:
        """Reads the annotation of an image.

        Raises:
            ValueError: if it is missing or bad; the text does not name it.
        """
        raise NotImplementedError


class _Taken(DetectionExamples):
    """Some of other examples."""

    def __init__(self, examples: DetectionExamples, positions: np.ndarray):
        super().__init__()
        self.examples = examples
        self.positions = positions
        self.problems = examples.problems

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, position: int) -> str:
        return self.examples.name(int(self.positions[position]))

    def id(self, position: int) -> str | int:
        return self.examples.id(int(self.positions[position]))

    def read(self, position: int) -> bytes:
        return self.examples.read(int(self.positions[position]))

    def describe(self, position: int) -> Description:
        return self.examples.describe(int(self.positions[position]))


@dataclasses.dataclass(frozen=True)
class DetectionSource:
    """Images with boxes, in splits. Made by `open_detection_source`.

    Attributes:
        name: as it was given to `open_detection_source`.
        class_names: a name for each class, from 0; there is no background.
        first_pixel: of Pascal VOC folders, the coordinate of the first pixel.
        splits: those that there are, `"train"`, `"val"` and `"test"` first.
    """

    name: str
    class_names: tuple[str, ...]
    _split: Callable[[str], DetectionExamples] = dataclasses.field(repr=False)
    first_pixel: int | None = None
    splits: tuple[str, ...] = ()

    def split(self, name: str) -> DetectionExamples:
        """Opens a split.

        Raises:
            ValueError: if there is none of that name, or it has no image.
        """
        examples = self._split(name)
        if len(examples) == 0:
            raise ValueError(
                f"`source` must hold images. Received: {self.name!r}, whose "
                f"split {name!r} has none"
            )
        return examples


def split_of(source: str, splits: Sequence[str], name: str) -> str:
    """The split that a name means, among those that there are.

    Raises:
        ValueError: if there is none.
    """
    for wanted in (name, split_named(name), STANDS_IN.get(name)):
        if wanted in splits:
            return str(wanted)
    raise missing_split(source, splits, name)


def hold_out(
    source: DetectionSource, fraction: float, seed: int
) -> DetectionSource:
    """Makes a split `"val"` of a part of the training images."""
    check_fraction(fraction, source.name, source.splits)

    @functools.cache
    def parts() -> tuple[DetectionExamples, np.ndarray]:
        all_of_it = "trainval" if "trainval" in source.splits else "train"
        train = source.split(all_of_it)
        # Paths differ from place to place, and the folder says nothing.
        keys = [os.path.basename(train.name(i)) for i in range(len(train))]
        return train, held_out(keys, [0] * len(keys), fraction, seed)

    def split(name: str) -> DetectionExamples:
        if name == "test" and "test" not in source.splits:
            name = "val"
        if name not in ("train", "val"):
            refuse_held_out(name)
            return source._split(name)
        train, held = parts()
        return _Taken(train, np.flatnonzero(held == (name == "val")))

    others = [s for s in source.splits if s != "trainval"]
    splits = ["train", "val", *others]
    return dataclasses.replace(
        source, splits=tuple(dict.fromkeys(splits)), _split=split
    )


def warn_of_near_names(source: str, names: Sequence[str]) -> None:
    """Warns of class names that differ in case or spaces only."""
    near: dict[str, list[str]] = {}
    for name in names:
        plain = re.sub(r"[\W_]+", "", name).casefold()
        near.setdefault(plain, []).append(name)
    for same in near.values():
        if len(same) > 1:
            alike = " and ".join(map(repr, same))
            warnings.warn(
                f"{source!r}: the classes {alike} are probably one",
                stacklevel=3,
            )
