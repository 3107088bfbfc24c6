"""Images with boxes of COCO annotation files."""

import collections
import glob
import json
import os
import re
from collections.abc import Sequence
from typing import Any

from keras_muffnet.data.detection.annotations import Description
from keras_muffnet.data.detection.annotations import DetectionExamples
from keras_muffnet.data.detection.annotations import DetectionSource
from keras_muffnet.data.detection.annotations import Problem
from keras_muffnet.data.detection.annotations import RawObject
from keras_muffnet.data.examples import split_named


class CocoExamples(DetectionExamples):
    """Images of a COCO annotation file."""

    def __init__(
        self, path: str, class_names: Sequence[str], folders: Sequence[str]
    ):
        super().__init__()
        self.path = path
        content = _parse_coco(path)
        self.images = content["images"]
        labels = {name: i for i, name in enumerate(class_names)}
        self.categories = {
            id_: (name, labels.get(name))
            for id_, name in _coco_categories(path, content).items()
        }
        # Which image each id means, and its annotations.
        self.positions: dict[Any, int] = {}
        for i, image in enumerate(self.images):
            if not (isinstance(image, dict) and _hashable(image.get("id"))):
                raise ValueError(
                    "`source` must have an id and a file_name for each image. "
                    f"Received: {path!r}, image {i}: {image!r}"
                )
            self.positions.setdefault(image["id"], i)
        self.annotations: dict[int, list[RawObject | Problem]] = (
            collections.defaultdict(list)
        )
        known: set[Any] = set()
        for i, annotation in enumerate(content["annotations"]):
            self._sort_in(i, annotation, known)
        # The folder that has the first image there is one of.
        self.folder = folders[0]
        for image in self.images[:100]:
            name = _file_name(image)
            for folder in folders:
                if os.path.exists(os.path.join(folder, name)):
                    self.folder = folder
                    return

    def _sort_in(self, i: int, annotation: Any, known: set) -> None:
        if not isinstance(annotation, dict):
            name = f"{self.path}, annotation {i} of the list"
            self.problems.append(Problem(name, f"it is {annotation!r}"))
            return
        id_ = annotation.get("id", f"{i} of the list")
        name = f"{self.path}, annotation {id_}"
        of_image = annotation.get("image_id")
        if not _hashable(of_image) or of_image not in self.positions:
            reason = f"its image_id {of_image!r} is that of no image"
            self.problems.append(Problem(name, reason))
            return
        item = self._object(name, annotation)
        if not _hashable(id_) or id_ in known:
            item = Problem(name, "its id is that of another annotation too")
        else:
            known.add(id_)
        self.annotations[self.positions[of_image]].append(item)

    def _object(self, name: str, annotation: dict) -> RawObject | Problem:
        category = annotation.get("category_id")
        if not _hashable(category) or category not in self.categories:
            return Problem(name, f"its category_id is {category!r}, not listed")
        class_name, label = self.categories[category]
        if label is None:
            return Problem(name, f"its class is {class_name!r}, not listed")
        given = annotation.get("bbox")
        try:
            x, y, width, height = map(float, given)  # type: ignore[arg-type]
            area = annotation.get("area")
            area = None if area is None else float(area)
        except (TypeError, ValueError):
            return Problem(name, f"its bbox is {given!r}")
        crowd = annotation.get("iscrowd", 0)
        if crowd not in (0, 1):
            return Problem(name, f"its iscrowd is {crowd!r}, not 0 or 1")
        return RawObject(
            name,
            (x, y, x + width, y + height),
            label,
            crowd=bool(crowd),
            area=area,
        )

    def __len__(self) -> int:
        return len(self.images)

    def name(self, position: int) -> str:
        return os.path.join(self.folder, _file_name(self.images[position]))

    def id(self, position: int) -> str | int:
        return self.images[position]["id"]

    def read(self, position: int) -> bytes:
        with open(self.name(position), "rb") as file:
            return file.read()

    def describe(self, position: int) -> Description:
        image = self.images[position]
        if self.positions[image["id"]] != position:
            raise ValueError(
                f"its id {image['id']!r} in {self.path!r} is that of an image "
                "before"
            )
        size = image.get("height"), image.get("width")
        if size == (None, None):
            return Description(None, self.annotations.get(position, []))
        if not all(isinstance(side, int) for side in size):
            raise ValueError(
                f"its height and width in {self.path!r} are {size}"
            )
        return Description(size, self.annotations.get(position, []))


def _file_name(image: dict) -> str:
    # Windows' separators are a part of a name elsewhere.
    return str(image.get("file_name")).replace("\\", "/")


def _hashable(value: Any) -> bool:
    return isinstance(value, (int, str))


def _parse_coco(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except OSError as error:
        reason = error.strerror
    except ValueError as error:
        reason = str(error)
    else:
        lists = ("images", "annotations", "categories")
        if isinstance(content, dict) and all(
            isinstance(content.get(name), list) for name in lists
        ):
            return content
        reason = f"it has no lists {', '.join(lists)}"
    raise ValueError(
        f"`source` must be COCO annotations. Received: {path!r}, which cannot "
        f"be read: {reason}"
    )


def _coco_categories(path: str, content: dict) -> dict[Any, str]:
    """Names by id, in the order of the ids, which may have gaps."""
    try:
        pairs = [(c["id"], str(c["name"])) for c in content["categories"]]
        pairs.sort()
    except (KeyError, TypeError):
        raise ValueError(
            "`source` must have an id and a name for each category. Received: "
            f"{path!r}, of {content['categories']!r:.200}"
        ) from None
    for values in zip(*pairs, strict=True):
        counts = collections.Counter(values)
        if repeated := [value for value, n in counts.items() if n > 1]:
            raise ValueError(
                "`source` must have different ids and names for its "
                f"categories. Received: {path!r}, with several {repeated}"
            )
    return dict(pairs)


def coco_files(path: str) -> dict[str, str]:
    """Annotation files by the names of their splits."""
    root = glob.escape(path)
    files = {}
    for file in sorted(glob.glob(f"{root}/annotations/instances_*.json")):
        files[os.path.basename(file)[len("instances_") : -len(".json")]] = file
    for file in sorted(glob.glob(f"{root}/*/_annotations.coco.json")):
        files[os.path.basename(os.path.dirname(file))] = file
    if not files:
        # By the name alone: train.json, val_annotations.json.
        for folder in (path, os.path.join(path, "annotations")):
            for file in sorted(glob.glob(f"{glob.escape(folder)}/*.json")):
                stem = os.path.splitext(os.path.basename(file))[0].lower()
                if split := split_named(re.split(r"[_\W]", stem)[0]):
                    files.setdefault(split, file)
    return files


def open_coco(
    name: str,
    files: dict[str, str],
    images: str | os.PathLike[str] | None,
    class_names: tuple[str, ...] | None,
) -> DetectionSource:
    """Opens COCO annotation files, by the names of their splits."""

    def file_of(split: str) -> tuple[str, str]:
        stands_in = {"test": ["val"], "trainval": ["train"], "val": ["valid"]}
        wanted = [split, *stands_in.get(split, [])]
        for start in wanted:
            if start in files:
                return start, files[start]
            longer = [key for key in files if key.startswith(start)]
            if len(longer) == 1:
                return longer[0], files[longer[0]]
        raise ValueError(
            f"`split` must be of {sorted(files)} or start one of them alone, "
            f"for {name!r}; validation_split (--validation-split) takes a part "
            "of the training images as 'val'. Received: "
            f"split={split!r}"
        )

    if class_names is None:
        # All of the same data set have the same ones; those of the training
        # images count.
        training = [key for key in files if key.startswith("train")]
        file = files[training[0] if training else min(files)]
        class_names = tuple(_coco_categories(file, _parse_coco(file)).values())
        if not class_names:
            raise ValueError(
                "`source` must have a category. Received: "
                f"{file!r}, which has none"
            )
    found = class_names

    def split(wanted: str) -> DetectionExamples:
        key, file = file_of(wanted)
        if images is not None:
            return CocoExamples(file, found, [os.fspath(images)])
        beside = os.path.dirname(file)
        root = os.path.dirname(beside)
        folders = [
            os.path.join(root, key),
            os.path.join(root, "images", key),
            os.path.join(root, "images"),
            beside,
            os.path.join(beside, "images"),
            root,
        ]
        return CocoExamples(file, found, folders)

    standard = [
        start
        for start in ("train", "val", "test")
        if any(key.startswith(start) for key in files)
    ]
    others = [key for key in files if not key.startswith(tuple(standard))]
    return DetectionSource(
        name, found, split, splits=(*standard, *sorted(others))
    )
