"""Images with boxes as YOLO has them: a text file for each image.

Classes and splits are those of data.yaml, or as labelImg has them: the classes
in a classes.txt beside the text files, the splits by folder.
"""

import os
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from keras_muffnet._optional import load_optional
from keras_muffnet.data.detection.annotations import Description
from keras_muffnet.data.detection.annotations import DetectionExamples
from keras_muffnet.data.detection.annotations import DetectionSource
from keras_muffnet.data.detection.annotations import Problem
from keras_muffnet.data.detection.annotations import RawObject
from keras_muffnet.data.detection.annotations import split_of
from keras_muffnet.data.examples import split_named
from keras_muffnet.data.layout import SUFFIXES

_YAML = (".yaml", ".yml")
_CLASSES = "classes.txt"


class YoloExamples(DetectionExamples):
    """Images, each with a text file of a row an object."""

    def __init__(
        self, images: Sequence[str], labels: Sequence[int | None], names: Any
    ):
        super().__init__()
        self.images = images
        # From the file's number of a class to ours.
        self.labels = labels
        self.names = names

    def __len__(self) -> int:
        return len(self.images)

    def name(self, position: int) -> str:
        return self.images[position]

    def id(self, position: int) -> str:
        return os.path.splitext(os.path.basename(self.images[position]))[0]

    def read(self, position: int) -> bytes:
        with open(self.images[position], "rb") as file:
            return file.read()

    def describe(self, position: int) -> Description:
        for path in _label_files(self.images[position]):
            try:
                with open(path, encoding="utf-8-sig") as file:
                    rows = [line.split() for line in file]
                break
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"its annotation {path!r} cannot be read: {error}"
                ) from None
        else:
            return Description(None, [])  # nothing to be seen on it
        objects = [
            self._object(f"{path}, row {number}", row)
            for number, row in enumerate(rows, 1)
            if row
        ]
        return Description(None, objects, normalized=True)

    def _object(self, name: str, row: Sequence[str]) -> RawObject | Problem:
        try:
            label, *numbers = int(float(row[0])), *map(float, row[1:])
        except (ValueError, OverflowError):
            return Problem(name, f"it is {' '.join(row)!r:.100}")
        if not 0 <= label < len(self.labels):
            return Problem(
                name,
                f"its class is {label}, not of 0 to {len(self.labels) - 1}",
            )
        ours = self.labels[label]
        if ours is None:
            reason = f"its class is {self.names[label]!r}, not listed"
            return Problem(name, reason)
        if len(numbers) in (4, 5):  # a detector adds its score
            x, y, width, height = numbers[:4]
            box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        elif len(numbers) >= 6 and len(numbers) % 2 == 0:
            # The corners of an outline.
            xs, ys = numbers[0::2], numbers[1::2]
            box = min(xs), min(ys), max(xs), max(ys)
        else:
            return Problem(name, f"it has {len(numbers)} numbers, not 4")
        return RawObject(name, box, ours)


def _label_files(image: str) -> list[str]:
    """Where the boxes of an image may be."""
    parts = f"{os.path.splitext(image)[0]}.txt".split(os.sep)
    found = [os.sep.join(parts)]
    if "images" in parts[:-1]:
        at = len(parts) - 2 - parts[-2::-1].index("images")
        found.insert(0, os.sep.join([*parts[:at], "labels", *parts[at + 1 :]]))
    return found


def yolo_file(path: str) -> str | None:
    """The data.yaml that a path names, or that lies in a folder."""
    if path.lower().endswith(_YAML) and os.path.isfile(path):
        return path
    if not os.path.isdir(path):
        return None
    names = [n for n in sorted(os.listdir(path)) if n.lower().endswith(_YAML)]
    for name in sorted(names, key=lambda n: not n.startswith("data.")):
        with open(os.path.join(path, name), encoding="utf-8-sig") as file:
            if any(line.startswith("names") for line in file):
                return os.path.join(path, name)
    return None


def open_yolo(
    file: str, class_names: tuple[str, ...] | None
) -> DetectionSource:
    """Opens the images that a data.yaml lists."""
    yaml = load_optional("yaml", "detection")
    try:
        with open(file, encoding="utf-8-sig") as opened:
            content = yaml.safe_load(opened)
        names = content["names"]
        if isinstance(names, Mapping):
            names = [names[i] for i in range(len(names))]
        names = tuple(str(name).strip() for name in names)
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            "`source` must have a list of names in its data.yaml. Received: "
            f"{file!r}, which cannot be read: {reason}"
        ) from None
    entries: dict[str, list[str]] = {}
    for split in ("train", "val", "test"):
        for key in (split, "valid") if split == "val" else (split,):
            entry = content.get(key)
            if isinstance(entry, str):
                entry = [entry]
            if isinstance(entry, list) and entry:
                entries.setdefault(split, [str(item) for item in entry])

    def images(entry: str) -> list[str]:
        return _images(file, str(content.get("path") or ""), entry)

    return _source(file, names, class_names, entries, images)


def labelimg_classes(path: str) -> list[str]:
    """All classes.txt in a folder and those in it, as labelImg writes them."""
    return [
        os.path.join(inside, _CLASSES)
        for inside, _, names in _walked(path)
        if _CLASSES in names
    ]


def open_labelimg(
    path: str, files: Sequence[str], class_names: tuple[str, ...] | None
) -> DetectionSource:
    """Opens images whose classes are in classes.txt, and splits in folders."""
    lists = {file: _lines(file) for file in files}
    first, names = next(iter(lists.items()))
    if not names:
        raise ValueError(
            f"`source` must have classes in its {_CLASSES}. Received: "
            f"{first!r}, which has none"
        )
    for file, others in lists.items():
        if others != names:
            raise ValueError(
                "`source` must have the same classes in each classes.txt. "
                f"Received: {names} in {first!r}, {others} in {file!r}"
            )
    splits: dict[str, list[str]] = {s: [] for s in ("train", "val", "test")}
    for place in (path, os.path.join(path, "images")):
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else []:
            folder = os.path.join(place, name)
            split = split_named(name)
            if split is not None and os.path.isdir(folder):
                splits[split].append(folder)
    found = {split: there for split, there in splits.items() if there}
    found = found or {"train": [path]}
    return _source(path, tuple(names), class_names, found, _images_in)


def _source(
    name: str,
    names: tuple[str, ...],
    class_names: tuple[str, ...] | None,
    entries: Mapping[str, Sequence[str]],
    images: Callable[[str], list[str]],
) -> DetectionSource:
    """A source of the classes `names`, with the images of each entry."""
    found = class_names or names
    labels = [found.index(n) if n in found else None for n in names]

    def split(wanted: str) -> DetectionExamples:
        entry = entries[split_of(name, list(entries), wanted)]
        listed = [image for item in entry for image in images(item)]
        return YoloExamples(listed, labels, names)

    return DetectionSource(name, found, split, splits=tuple(entries))


def _lines(file: str) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            return [line.strip() for line in opened if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`source` must have lists in UTF-8. Received: {file!r}: {error}"
        ) from None


def _images(file: str, root: str, entry: str) -> list[str]:
    """The images of an entry: a folder, or a text file that lists them."""
    folder = os.path.dirname(os.path.abspath(file))
    entry = entry.replace("\\", "/")
    bare = entry
    while bare.startswith(("../", "./")):
        # Roboflow writes paths from a folder that is not there.
        bare = bare.partition("/")[2]
    tried = [
        os.path.normpath(os.path.join(folder, root, entry)),
        os.path.normpath(os.path.join(folder, entry)),
        os.path.normpath(os.path.join(folder, root, bare)),
        os.path.normpath(os.path.join(folder, bare)),
    ]
    path = next((path for path in tried if os.path.exists(path)), None)
    if path is None:
        raise ValueError(
            f"`source` must hold what its data.yaml lists. Received: {file!r}, "
            f"with {entry!r}, which is not at {tried[0]!r}"
        )
    if os.path.isdir(path):
        return _images_in(path)
    around = os.path.dirname(path)
    return [
        os.path.normpath(os.path.join(around, line.replace("\\", "/")))
        for line in _lines(path)
    ]


def _images_in(folder: str) -> list[str]:
    """All images of a folder and those in it."""
    return [
        os.path.join(inside, name)
        for inside, folders, names in _walked(folder)
        for name in sorted(names)
        if name.lower().endswith(SUFFIXES)
        and not name.startswith(".")
        and folders.sort() is None  # the order of folders, too
    ]


def _walked(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, which leaves out in silence what it may not read."""

    def refuse(error: OSError) -> None:
        raise error

    return os.walk(folder, onerror=refuse)
