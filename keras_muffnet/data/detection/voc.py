"""Images with boxes in folders in the layout of Pascal VOC."""

import glob
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

from keras_muffnet.data.detection.annotations import Description
from keras_muffnet.data.detection.annotations import DetectionExamples
from keras_muffnet.data.detection.annotations import DetectionSource
from keras_muffnet.data.detection.annotations import Problem
from keras_muffnet.data.detection.annotations import RawObject
from keras_muffnet.data.examples import split_named
from keras_muffnet.data.layout import SUFFIXES


class _List(NamedTuple):
    """Images and annotations in two folders, or in one.

    Attributes:
        images: the folder of the images.
        annotations: the folder of the annotations.
        file: lists what belongs to the split; None for all.
    """

    images: str
    annotations: str
    file: str | None = None


class _VocImage(NamedTuple):
    images: str
    annotations: str
    id: str
    repeated: bool

    @property
    def annotation(self) -> str:
        return os.path.join(self.annotations, f"{self.id}.xml")


class VocExamples(DetectionExamples):
    """Images of Pascal VOC folders."""

    def __init__(
        self,
        items: Sequence[_VocImage],
        class_names: Sequence[str],
        first_pixel: int,
    ):
        super().__init__()
        self.items = items
        self.labels = {name: i for i, name in enumerate(class_names)}
        self.first_pixel = first_pixel
        # The image of an id may have any suffix.
        self.files = {
            folder: _images_in(folder)
            for folder in {item.images for item in items}
        }

    def __len__(self) -> int:
        return len(self.items)

    def name(self, position: int) -> str:
        item = self.items[position]
        file = self.files[item.images].get(item.id, f"{item.id}.jpg")
        return os.path.join(item.images, file)

    def id(self, position: int) -> str:
        return self.items[position].id

    def read(self, position: int) -> bytes:
        with open(self.name(position), "rb") as file:
            return file.read()

    def describe(self, position: int) -> Description:
        item = self.items[position]
        if item.repeated:
            raise ValueError("it is listed a second time")
        root = _parse_voc(item.annotation)
        size = None
        if root.find("size") is not None:
            texts = [root.findtext(f"size/{k}") for k in ("height", "width")]
            try:
                height, width = (int(float(text or "")) for text in texts)
            except (ValueError, OverflowError):
                raise ValueError(
                    f"its annotation {item.annotation!r} has a size of {texts}"
                ) from None
            size = height, width
        objects = [
            self._object(f"{item.annotation}, object {i}", element)
            for i, element in enumerate(root.findall("object"))
        ]
        return Description(size, objects)

    def _object(self, name: str, element: ET.Element) -> RawObject | Problem:
        class_name = (element.findtext("name") or "").strip()
        if class_name not in self.labels:
            return Problem(name, f"its class is {class_name!r}, not listed")
        texts = _voc_box(element)
        try:
            box = [float(text) for text in texts]
        except ValueError:
            return Problem(name, f"its box is {texts}")
        difficult = (element.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            return Problem(name, f"its difficult is {difficult!r}, not 0 or 1")
        if box[0] >= box[2] or box[1] >= box[3]:
            # Annotation tools write a mere click as a box whose corners are
            # one. Reported before it is taken for a pixel.
            corners = ", ".join(texts)
            return Problem(name, f"its box ({corners}) has no area")
        x_min, y_min, x_max, y_max = box
        first = self.first_pixel
        return RawObject(
            name,
            (x_min - first, y_min - first, x_max, y_max),
            self.labels[class_name],
            difficult=difficult == "1",
        )


def _images_in(folder: str) -> dict[str, str]:
    """Images by their names without suffix."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return {
        os.path.splitext(name)[0]: name
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    }


def _annotations_in(folder: str) -> list[str]:
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [
        name[: -len(".xml")]
        for name in names
        if name.lower().endswith(".xml") and not name.startswith(".")
    ]


def _voc_box(element: ET.Element) -> list[str]:
    sides = ("xmin", "ymin", "xmax", "ymax")
    texts = [element.findtext(f"bndbox/{side}") for side in sides]
    return [(text or "").strip() for text in texts]


def _parse_voc(path: str) -> ET.Element:
    try:
        return ET.parse(path).getroot()
    except OSError as error:
        reason = error.strerror
    except ET.ParseError as error:
        reason = str(error)
    raise ValueError(f"its annotation {path!r} cannot be read: {reason}")


def voc_lists(path: str) -> dict[str, _List]:
    """The lists of images in a folder, by the names of splits.

    They are in `ImageSets/Main`, of the folder or of folders in it, which
    then come first in the name; or all images of a folder are one: the folder
    itself, or those in it that are called as a split.
    """

    def has_lists(folder: str) -> bool:
        return os.path.isdir(os.path.join(folder, "ImageSets", "Main"))

    if not os.path.isdir(path):
        return {}
    names = sorted(os.listdir(path))
    roots = {n: p for n in names if has_lists(p := os.path.join(path, n))}
    if has_lists(path):
        roots = {"": path}
    lists = {
        f"{prefix}/{os.path.basename(file)[: -len('.txt')]}".lstrip("/"): _List(
            os.path.join(root, "JPEGImages"),
            os.path.join(root, "Annotations"),
            file,
        )
        for prefix, root in roots.items()
        for file in glob.glob(f"{glob.escape(root)}/ImageSets/Main/*.txt")
    }
    if lists:
        return lists
    for name in names:
        split = split_named(name)
        if split and (found := _pairs(os.path.join(path, name))):
            lists[split] = found
    if lists:
        return lists
    return {"train": found} if (found := _pairs(path)) else {}


def _pairs(folder: str) -> _List | None:
    """Where images and annotations are in a folder without lists."""
    found = {}
    for kind, inside, names in (
        ("images", _images_in, ("JPEGImages", "images", "Images", "")),
        ("annotations", _annotations_in, ("Annotations", "annotations", "")),
    ):
        for name in names:
            place = os.path.join(folder, name) if name else folder
            if inside(place):
                found[kind] = place
                break
    return _List(**found) if len(found) == 2 else None


def open_voc(
    path: str,
    lists: dict[str, _List],
    class_names: tuple[str, ...] | None,
    first_pixel: int | None,
) -> DetectionSource:
    """Opens lists of images with annotations."""

    def listed(name: str) -> list[_VocImage]:
        items: list[_VocImage] = []
        known: set[tuple[str, str]] = set()
        for part in map(str.strip, name.split("+")):
            prefix, _, last = part.rpartition("/")
            stand_in = {"test": "val", "trainval": "train"}.get(last, last)
            if part not in lists:
                part = f"{prefix}/{stand_in}".lstrip("/")
            if part not in lists:
                raise ValueError(
                    f"`split` must be of {sorted(lists)}, or several joined by "
                    f"'+', for {path!r}; validation_split (--validation-split) "
                    "takes a part of the training images as 'val'. Received: "
                    f"split={name!r}"
                )
            images, annotations, file = lists[part]
            for id_ in _ids(lists[part]) if file is None else _lines(file):
                repeated = (annotations, id_) in known
                items.append(_VocImage(images, annotations, id_, repeated))
                known.add((annotations, id_))
        return items

    names: set[str] = set()
    lowest = 1.0
    if class_names is None or first_pixel is None:
        for item in _voc_training(lists, listed):
            try:
                elements = _parse_voc(item.annotation).findall("object")
            except ValueError:
                continue  # reported where the split is read
            for element in elements:
                names.add((element.findtext("name") or "").strip())
                for text in _voc_box(element)[:2]:
                    try:
                        lowest = min(lowest, float(text))
                    except ValueError:
                        continue  # reported, too
    if class_names is None:
        class_names = tuple(sorted(names - {""}))
        if not class_names:
            raise ValueError(
                "`source` must name a class in the annotations of its training "
                "images (or pass class_names). Received: "
                f"{path!r}, which does not"
            )
    if first_pixel is None:
        first_pixel = 0 if lowest < 1 else 1
    found, first = class_names, first_pixel
    standard = [n for n in ("train", "val", "test") if n in lists]
    return DetectionSource(
        path,
        found,
        lambda name: VocExamples(listed(name), found, first),
        first,
        (*standard, *sorted(set(lists) - set(standard))),
    )


def _lines(file: str) -> list[str]:
    """The ids in a list, some of which have the suffix of a file."""
    with open(file, encoding="utf-8-sig") as opened:
        lines = [line.strip() for line in opened if line.strip()]
    suffixes = (*SUFFIXES, ".xml")
    return [
        os.path.splitext(os.path.basename(line.replace("\\", "/")))[0]
        if line.lower().endswith(suffixes)
        else line
        for line in lines
    ]


def _ids(pairs: _List) -> list[str]:
    """All that has an image or an annotation."""
    found = {*_images_in(pairs.images), *_annotations_in(pairs.annotations)}
    return sorted(found)


def _voc_training(
    lists: dict[str, _List],
    listed: Callable[[str], list[_VocImage]],
) -> list[_VocImage]:
    """The training images of all folders, as far as there are lists."""
    items = []
    for prefix in sorted({name.rpartition("/")[0] for name in lists}):
        for name in ("trainval", "train"):
            split = f"{prefix}/{name}".lstrip("/")
            if split in lists:
                items += listed(split)
                break
    return items
