"""Labeled images, encoded, by position.

A source gives the encoded images of a split by position, in any order. Both
feeds read from it, so that they see the same examples under the same numbers.
"""

import dataclasses
import functools
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

# The names that folders, lists and files of a split have, in lower case.
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def split_named(name: str) -> str | None:
    """Which of "train", "val" and "test" a name means, in any case."""
    for split, names in _SPLIT_NAMES.items():
        if name.lower() in names:
            return split
    return None


class Examples:
    """The encoded images of a split, by position from 0."""

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, position: int) -> str:
        """What an error calls the image: its path, or file and record."""
        raise NotImplementedError

    def key(self, position: int) -> str:
        """A name that stays where the data set moves or grows."""
        raise NotImplementedError

    def read(self, position: int) -> tuple[bytes, int]:
        """Reads an image, still encoded, and its label.

        Raises:
            ValueError: if it cannot be read; the text does not name it.
        """
        raise NotImplementedError

    def label(self, position: int) -> int:
        """Reads a label alone."""
        return self.read(position)[1]

    def stamp(self, position: int) -> str:
        """What changes with the image's file: its size and time.

        Empty where the images come from no file.
        """
        return ""

    def take(self, positions: np.ndarray) -> "Examples":
        """The examples at some positions."""
        return _Taken(self, positions)


class _Taken(Examples):
    """Some of other examples."""

    def __init__(self, examples: Examples, positions: np.ndarray):
        self.examples = examples
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, position: int) -> str:
        return self.examples.name(int(self.positions[position]))

    def key(self, position: int) -> str:
        return self.examples.key(int(self.positions[position]))

    def read(self, position: int) -> tuple[bytes, int]:
        return self.examples.read(int(self.positions[position]))

    def label(self, position: int) -> int:
        return self.examples.label(int(self.positions[position]))

    def stamp(self, position: int) -> str:
        return self.examples.stamp(int(self.positions[position]))


@dataclasses.dataclass(frozen=True)
class Source:
    """Labeled images in splits.

    Made by `open_source`. The splits are called `"train"`, `"val"` and
    `"test"`, whatever the folders are called. Choose models on `"val"` where
    it is there; measure on `"test"` once, at the end.

    Attributes:
        name: as it was given to `open_source`.
        class_names: a name for each label.
        splits: those that there are, of `"train"`, `"val"` and `"test"` and
            in this order; after them what else TensorFlow Datasets has.
    """

    name: str
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    _split: Callable[[str], Examples] = dataclasses.field(repr=False)

    def split(self, name: str) -> Examples:
        """Opens a split.

        Args:
            name: of `splits`. `"test"` gives `"val"` where there is no test
                split. TensorFlow Datasets also takes slices of its own
                splits, such as `"train[:10%]"`.

        Raises:
            ValueError: if there is none of that name, or it has no image.
        """
        if name == "test" and "test" not in self.splits:
            name = "val" if "val" in self.splits else name
        examples = self._split(name)
        if len(examples) == 0:
            raise ValueError(
                f"`source` must hold images. Received: {self.name!r}, whose "
                f"split {name!r} has none"
            )
        return examples


def missing_split(source: str, splits: Sequence[str], name: str) -> ValueError:
    """The error for a split that a source does not have."""
    hint = (
        "; validation_split (--validation-split) takes a part of the training "
        "images as 'val'"
        if "val" not in splits and name in ("val", "test")
        else ""
    )
    return ValueError(
        f"`split` must be of {listed(splits)}, which {source!r} has{hint}. "
        f"Received: split={name!r}"
    )


# What is given for a split that is not there.
STANDS_IN = {"test": "val", "trainval": "train"}


def split_given(name: str, splits: Sequence[str]) -> str:
    """Returns the name of the split that a source gives.

    Args:
        name: the split asked for; of Pascal VOC also `"VOC2007/test"`, and
            several joined by a plus sign.
        splits: those that there are.
    """

    def given(part: str) -> str:
        folder, slash, last = part.rpartition("/")
        other = f"{folder}{slash}{STANDS_IN.get(last, last)}"
        return part if part in splits or other not in splits else other

    return "+".join(given(part.strip()) for part in name.split("+"))


def images_of(split: str) -> str:
    """What the images of a split are called in a report."""
    kinds = {"train": "training", "val": "validation"}
    return f"{kinds.get(split, split)} images"


def check_fraction(fraction: float, source: str, splits: Sequence[str]) -> None:
    """Raises if a part of the training images cannot be held out."""
    if (
        not isinstance(fraction, (int, float))
        or isinstance(fraction, bool)
        or not 0 < fraction < 1
    ):
        raise ValueError(
            "`validation_split` must be between 0 and 1. Received: "
            f"validation_split={fraction!r}"
        )
    if "val" in splits:
        raise ValueError(
            "`validation_split` must be None where there are validation "
            f"images. Received: validation_split={fraction} for {source!r}, "
            f"with the splits {listed(splits)}"
        )


def refuse_held_out(name: str) -> None:
    """Raises for a split that has images that are held out.

    Args:
        name: of a split that is not `"train"` or `"val"`: `"trainval"`, the
            lists and files of training images, slices of them.
    """
    if "train" in name or name == "all":
        raise ValueError(
            "`split` must be 'train', 'val' or one without training images "
            "where validation_split holds a part of these out. Received: "
            f"split={name!r}"
        )


def hold_out(source: Source, fraction: float, seed: int) -> Source:
    """Makes a split `"val"` of a part of the training images."""
    check_fraction(fraction, source.name, source.splits)

    @functools.cache
    def parts() -> tuple[Examples, np.ndarray]:
        train = source.split("train")
        count = range(len(train))
        return train, held_out(
            [train.key(i) for i in count],
            [train.label(i) for i in count],
            fraction,
            seed,
        )

    def split(name: str) -> Examples:
        if name not in ("train", "val"):
            refuse_held_out(name)
            return source._split(name)
        train, held = parts()
        return train.take(np.flatnonzero(held == (name == "val")))

    first, *others = source.splits
    return dataclasses.replace(
        source, splits=(first, "val", *others), _split=split
    )


def held_out(
    keys: Sequence[str], labels: Sequence[int], fraction: float, seed: int
) -> np.ndarray:
    """Chooses the images that are held out, by a hash of seed and name.

    Each image is chosen by itself, with the same chance in each class: adding
    images moves none of the others to the other side. Of a class of two
    images or more, at least one is on each side.

    Args:
        keys: a name for each image, which does not change.
        labels: of the images.
        fraction: of the images, which are held out.
        seed: other ones hold out other images.

    Returns:
        bool `(n,)`.
    """
    draws = np.array([_draw(key, seed) for key in keys], np.float64)
    held = draws < fraction
    array = np.asarray(labels)
    for label in np.unique(array):
        of_class = np.flatnonzero(array == label)
        if len(of_class) < 2:
            held[of_class] = False
        elif not held[of_class].any():
            held[of_class[np.argmin(draws[of_class])]] = True
        elif held[of_class].all():
            held[of_class[np.argmax(draws[of_class])]] = False
    return held


def _draw(key: str, seed: int) -> float:
    """A number in [0, 1) that follows from a name and a seed."""
    # A Mac writes accents as characters of their own.
    key = unicodedata.normalize("NFC", key)
    text = f"{seed}/{key}".encode("utf-8", "surrogateescape")
    first = hashlib.sha256(text).digest()[:8]
    return int.from_bytes(first, "big") / 2**64


def balanced_class_weights(examples: Examples) -> dict[int, float]:
    """Weights that give each class the same part in the loss.

    ```python
    from keras_muffnet import data

    examples = data.open_source("photos").split("train")
    data.balanced_class_weights(examples)  # {0: 1.0, 1: 1.0, 2: 1.0}
    ```

    Args:
        examples: of `Source.split`.

    Returns:
        By label, for `model.fit(class_weight=...)`: the number of images over
        the number of classes that have images and the images of the class.
        The mean over all images is 1.
    """
    counts = Counter(examples.label(i) for i in range(len(examples)))
    return {
        label: len(examples) / (len(counts) * count)
        for label, count in sorted(counts.items())
    }


def file_stamp(path: str) -> str:
    """Size and time of a file, or that it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return "missing"
    return f"{found.st_size}/{found.st_mtime_ns}"


def listed(names: Sequence[str]) -> str:
    """How many there are, and the first five."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)}: {', '.join(map(repr, names[:5]))}{more}"


def joined(parts: Sequence[str]) -> str:
    """Joins by commas, and by "and" before the last."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
