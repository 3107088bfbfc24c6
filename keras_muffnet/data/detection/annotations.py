"""Images with boxes: Pascal VOC and COCO folders and TensorFlow Datasets.

A source gives encoded images and what their annotations say, by position.
`checked` then holds it against the image: no format is trusted.

Boxes are float32 `(x_min, y_min, x_max, y_max)` in pixels, in continuous
coordinates: an image of width W spans 0 to W.
"""

import collections
import dataclasses
import glob
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from keras_muffnet._optional import load_optional
from keras_muffnet.data import records
from keras_muffnet.data import sources

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
        difficult: as Pascal VOC flags what is hard to recognise.
        crowd: as COCO flags a group of objects in one box.
        area: of the object in pixels, where the annotation tells it.
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
        size: height and width in pixels, where it tells them.
        normalised: whether boxes are in shares of the image instead.
        objects: in the annotation's order; those with a problem of their own
            are that.
    """

    size: tuple[int, int] | None
    objects: list[RawObject | Problem]
    normalised: bool = False


class Objects(NamedTuple):
    """The good objects of an image.

    Attributes:
        boxes: float32 `(n, 4)`, within the image.
        classes: int64 `(n,)`.
        difficult: bool `(n,)`.
        crowd: bool `(n,)`.
        area: float32 `(n,)`, of the objects in pixels; of the boxes where the
            annotation does not tell.
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
        told, found = (
            f"{width} x {height}" for height, width in (description.size, size)
        )
        raise ValueError(
            f"its annotation is of a picture of {told} pixels (width x "
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
        if description.normalised:
            box *= limits
        inside = np.clip(box, 0, limits).astype(np.float32)
        told = ", ".join(f"{number:g}" for number in box)
        if not np.isfinite(box).all():
            bad.append(Problem(item.name, f"its box is ({told})"))
        elif box[0] >= box[2] or box[1] >= box[3]:
            bad.append(Problem(item.name, f"its box ({told}) has no area"))
        elif inside[0] >= inside[2] or inside[1] >= inside[3]:
            reason = f"its box ({told}) is outside of {width} x {height} pixels"
            bad.append(Problem(item.name, reason))
        else:
            if np.abs(inside - box).max() > TOLERANCE:
                reason = f"its box ({told}) reaches out of the image"
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
            ValueError: telling why there is none, without the image's name.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class DetectionSource:
    """Images with boxes, in splits. Made by `open_detection_source`.

    Attributes:
        name: as it was given to `open_detection_source`.
        class_names: a name for each class, from 0; there is no background.
        first_pixel: of Pascal VOC folders, the coordinate of the first pixel.
    """

    name: str
    class_names: tuple[str, ...]
    _split: Callable[[str], DetectionExamples] = dataclasses.field(repr=False)
    first_pixel: int | None = None

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


def open_detection_source(
    source: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    images: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
    first_pixel: int | None = None,
) -> DetectionSource:
    """Opens images with boxes. Only TensorFlow Datasets needs TensorFlow.

    Args:
        source: one of

            - a Pascal VOC folder, of `JPEGImages/`, `Annotations/` and
              `ImageSets/Main/`; its splits are the lists there: `"train"`,
              `"val"`, `"trainval"`, `"test"`. Of a folder of such folders they
              are called `"VOC2007/trainval"`. Lists are joined by a plus sign:
              `"VOC2007/trainval+VOC2012/trainval"`.
            - a COCO folder: of `annotations/instances_train*.json` and so on,
              or of `train/_annotations.coco.json` beside the images. The
              splits are `"train"`, `"val"`, `"test"`, or longer parts of the
              name as `"train2017"`. Without annotations of its own, `"test"`
              gives `"val"`.
            - a COCO .json file, which is then split `"train"`, or a mapping of
              the names of splits to such files.
            - `"tfds:NAME"`: an object detection data set of TensorFlow
              Datasets, such as `coco/2017` and `voc/2007`; its boxes are taken
              as they are.
        images: of COCO, the folder in which the names of images start. None
            looks beside the annotations, in a folder named as the split, and
            in `images/`.
        class_names: the classes, in their order; an object of another one is
            then a bad annotation. None takes those of the data set: the
            categories of COCO by id, and of a VOC folder the names in the
            annotations of its training images, sorted.
        first_pixel: of VOC folders, 1 if coordinates count pixels from 1 and
            name the last one inside, as Pascal VOC does (x_min 1 and x_max W
            span an image of width W), or 0 if they are edges from 0. None is 0
            if a 0 is found in the annotations of the training images, else 1.
            Either way a box whose x_min is its x_max has no area: annotation
            tools write a mere click so.

    Raises:
        ImportError: if the package that the source needs is not installed.
        ValueError: if an argument is not as above, or annotations cannot be
            read as a whole.
    """
    if class_names is not None:
        class_names = tuple(class_names)
        if not class_names or len(set(class_names)) < len(class_names):
            raise ValueError(
                "`class_names` must hold different names. Received: "
                f"class_names={class_names}"
            )
    if first_pixel not in (None, 0, 1):
        raise ValueError(
            "`first_pixel` must be 0, 1 or None. Received: "
            f"first_pixel={first_pixel!r}"
        )
    if isinstance(source, str) and source.startswith("tfds:"):
        return _open_tfds(source, class_names)
    if isinstance(source, Mapping) and source:
        files = {name: os.fspath(path) for name, path in source.items()}
        name = ", ".join(files.values())
        return _open_coco(name, files, images, class_names)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if os.path.isfile(path) and path.lower().endswith(".json"):
            return _open_coco(path, {"train": path}, images, class_names)
        if folders := _voc_folders(path):
            return _open_voc(path, folders, class_names, first_pixel)
        if files := _coco_files(path):
            return _open_coco(path, files, images, class_names)
    raise ValueError(
        "`source` must be a folder in the layout of Pascal VOC (with "
        "ImageSets/Main) or COCO (with annotations/instances_*.json or "
        "*/_annotations.coco.json), a COCO .json file or a mapping of splits "
        f"to such files, or 'tfds:NAME'. Received: source={source!r}"
    )


# Pascal VOC


class _VocImage(NamedTuple):
    folder: str
    id: str
    repeated: bool

    @property
    def annotation(self) -> str:
        return os.path.join(self.folder, "Annotations", f"{self.id}.xml")


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
        self.files: dict[str, dict[str, str]] = {}
        for folder in {item.folder for item in items}:
            inside = os.path.join(folder, "JPEGImages")
            names = sorted(os.listdir(inside)) if os.path.isdir(inside) else []
            self.files[folder] = {
                os.path.splitext(name)[0]: name
                for name in names
                if name.lower().endswith(sources.SUFFIXES)
            }

    def __len__(self) -> int:
        return len(self.items)

    def name(self, position: int) -> str:
        item = self.items[position]
        file = self.files[item.folder].get(item.id, f"{item.id}.jpg")
        return os.path.join(item.folder, "JPEGImages", file)

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
            # one. Told before it is taken for a pixel.
            told = ", ".join(texts)
            return Problem(name, f"its box ({told}) has no area")
        x_min, y_min, x_max, y_max = box
        first = self.first_pixel
        return RawObject(
            name,
            (x_min - first, y_min - first, x_max, y_max),
            self.labels[class_name],
            difficult=difficult == "1",
        )


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


def _voc_folders(path: str) -> dict[str, str]:
    """Folders with lists, by what comes before the slash in a split's name."""

    def has_lists(folder: str) -> bool:
        return os.path.isdir(os.path.join(folder, "ImageSets", "Main"))

    if has_lists(path):
        return {"": path}
    if not os.path.isdir(path):
        return {}
    names = sorted(os.listdir(path))
    return {n: p for n in names if has_lists(p := os.path.join(path, n))}


def _open_voc(
    path: str,
    folders: dict[str, str],
    class_names: tuple[str, ...] | None,
    first_pixel: int | None,
) -> DetectionSource:
    lists = {
        f"{prefix}/{os.path.basename(file)[: -len('.txt')]}".lstrip("/"): file
        for prefix, root in folders.items()
        for file in glob.glob(f"{glob.escape(root)}/ImageSets/Main/*.txt")
    }

    def listed(name: str) -> list[_VocImage]:
        items: list[_VocImage] = []
        known: set[tuple[str, str]] = set()
        for part in map(str.strip, name.split("+")):
            if part not in lists:
                raise ValueError(
                    f"`split` must be of {sorted(lists)}, or several joined by "
                    f"'+', for {path!r}. Received: split={name!r}"
                )
            folder = folders[part.rpartition("/")[0]]
            with open(lists[part], encoding="utf-8-sig") as file:
                ids = [line.strip() for line in file if line.strip()]
            for id_ in ids:
                repeated = (folder, id_) in known
                items.append(_VocImage(folder, id_, repeated))
                known.add((folder, id_))
        return items

    names: set[str] = set()
    lowest = 1.0
    if class_names is None or first_pixel is None:
        for item in _voc_training(folders, lists, listed):
            try:
                elements = _parse_voc(item.annotation).findall("object")
            except ValueError:
                continue  # told of where the split is read
            for element in elements:
                names.add((element.findtext("name") or "").strip())
                for text in _voc_box(element)[:2]:
                    try:
                        lowest = min(lowest, float(text))
                    except ValueError:
                        continue  # told of, too
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
    return DetectionSource(
        path,
        found,
        lambda name: VocExamples(listed(name), found, first),
        first,
    )


def _voc_training(
    folders: dict[str, str],
    lists: dict[str, str],
    listed: Callable[[str], list[_VocImage]],
) -> list[_VocImage]:
    """The training images of all folders, as far as there are lists."""
    items = []
    for prefix in folders:
        for name in ("trainval", "train"):
            split = f"{prefix}/{name}".lstrip("/")
            if split in lists:
                items += listed(split)
                break
    return items


# COCO


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
            name = str(image.get("file_name"))
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
        name = str(self.images[position].get("file_name"))
        return os.path.join(self.folder, name)

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


def _hashable(value: Any) -> bool:
    return isinstance(value, (int, str))


def _parse_coco(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
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


def _coco_files(path: str) -> dict[str, str]:
    """Annotation files by the names of their splits."""
    root = glob.escape(path)
    files = {}
    for file in sorted(glob.glob(f"{root}/annotations/instances_*.json")):
        files[os.path.basename(file)[len("instances_") : -len(".json")]] = file
    for file in sorted(glob.glob(f"{root}/*/_annotations.coco.json")):
        files[os.path.basename(os.path.dirname(file))] = file
    return files


def _open_coco(
    name: str,
    files: dict[str, str],
    images: str | os.PathLike[str] | None,
    class_names: tuple[str, ...] | None,
) -> DetectionSource:
    def file_of(split: str) -> tuple[str, str]:
        wanted = (split, "val") if split == "test" else (split,)
        for start in wanted:
            if start in files:
                return start, files[start]
            longer = [key for key in files if key.startswith(start)]
            if len(longer) == 1:
                return longer[0], files[longer[0]]
        raise ValueError(
            f"`split` must be of {sorted(files)} or start one of them alone, "
            f"for {name!r}. Received: split={split!r}"
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

    return DetectionSource(name, found, split)


# TensorFlow Datasets


class TfdsExamples(DetectionExamples):
    """Images in the TFRecord files of TensorFlow Datasets."""

    KEYS = (
        "image",
        "image/id",
        "image/filename",
        "objects/area",
        "objects/bbox",
        "objects/is_crowd",
        "objects/is_difficult",
        "objects/label",
    )

    def __init__(
        self,
        files: Sequence[str],
        positions: Sequence[np.ndarray],
        labels: Sequence[int | None],
        names: Sequence[str],
    ):
        super().__init__()
        self.records = sources.RecordExamples(files, positions, len(labels))
        # From the data set's label to ours.
        self.labels = labels
        self.names = names

    def __len__(self) -> int:
        return len(self.records)

    def name(self, position: int) -> str:
        return self.records.name(position)

    def _features(self, position: int) -> dict[str, Any]:
        return records.parse_features(self.records.record(position), self.KEYS)

    def id(self, position: int) -> str | int:
        features = self._features(position)
        for key in ("image/id", "image/filename"):
            for value in features.get(key, ()):
                return value.decode() if key != "image/id" else int(value)
        return position

    def read(self, position: int) -> bytes:
        for image in self._features(position).get("image", ()):
            return image
        raise ValueError("the record has no image")

    def describe(self, position: int) -> Description:
        features = self._features(position)
        boxes, labels, area, crowd, difficult = (
            np.asarray(features.get(f"objects/{key}", ()), kind)
            for key, kind in (
                ("bbox", np.float64),
                ("label", np.int64),
                ("area", np.float64),
                ("is_crowd", bool),
                ("is_difficult", bool),
            )
        )
        if len(boxes) != 4 * len(labels):
            raise ValueError(
                f"it has {len(labels)} labels and {len(boxes)} numbers of boxes"
            )
        objects: list[RawObject | Problem] = []
        for i, label in enumerate(labels.tolist()):
            name = f"{self.name(position)}, object {i}"
            if not 0 <= label < len(self.labels):
                objects.append(Problem(name, f"its label is {label}"))
                continue
            ours = self.labels[label]
            if ours is None:
                reason = f"its class is {self.names[label]!r}, not listed"
                objects.append(Problem(name, reason))
                continue
            y_min, x_min, y_max, x_max = boxes[4 * i : 4 * i + 4].tolist()
            objects.append(
                RawObject(
                    name,
                    (x_min, y_min, x_max, y_max),
                    ours,
                    difficult=i < len(difficult) and bool(difficult[i]),
                    crowd=i < len(crowd) and bool(crowd[i]),
                    area=float(area[i]) if i < len(area) else None,
                )
            )
        return Description(None, objects, normalised=True)


def _open_tfds(
    source: str, class_names: tuple[str, ...] | None
) -> DetectionSource:
    tfds = load_optional("tensorflow_datasets", "datasets")
    builder = sources.tfds_named(source)
    features = dict(builder.info.features.items())
    inner = getattr(features.get("objects"), "feature", None) or {}
    try:
        kinds = [features.get("image"), inner["bbox"], inner["label"]]
    except (KeyError, TypeError):
        kinds = [None] * 3
    if not (
        isinstance(kinds[0], tfds.features.Image)
        and kinds[0].np_dtype == np.uint8
        and isinstance(kinds[1], tfds.features.BBoxFeature)
        and isinstance(kinds[2], tfds.features.ClassLabel)
    ):
        raise ValueError(
            "`source` must be a data set of 8-bit images with objects of a "
            f"bbox and a label. Received: source={source!r}, of "
            f"{sorted(features)}"
        )
    names = tuple(kinds[2].names)
    found = class_names or names
    if missing := [name for name in found if name not in names]:
        raise ValueError(
            f"`class_names` must be of {source!r}. Received: {missing}"
        )
    labels = [found.index(n) if n in found else None for n in names]
    builder.download_and_prepare()

    def split(name: str) -> DetectionExamples:
        files, positions = sources.tfds_records(builder, source, name)
        return TfdsExamples(files, positions, labels, names)

    return DetectionSource(source, found, split)
