"""Opens images with boxes: Pascal VOC, COCO, TensorFlow Datasets."""

import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from keras_muffnet.data.detection.annotations import DetectionSource
from keras_muffnet.data.detection.annotations import hold_out
from keras_muffnet.data.detection.annotations import warn_of_near_names
from keras_muffnet.data.detection.coco import coco_files
from keras_muffnet.data.detection.coco import open_coco
from keras_muffnet.data.detection.tfds import open_detection_tfds
from keras_muffnet.data.detection.voc import open_voc
from keras_muffnet.data.detection.voc import voc_lists
from keras_muffnet.data.detection.yolo import labelimg_classes
from keras_muffnet.data.detection.yolo import open_labelimg
from keras_muffnet.data.detection.yolo import open_yolo
from keras_muffnet.data.detection.yolo import yolo_file


def open_detection_source(
    source: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    images: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
    first_pixel: int | None = None,
    validation_split: float | None = None,
    seed: int = 0,
) -> DetectionSource:
    """Opens images with boxes. Only TensorFlow Datasets needs TensorFlow.

    ```python
    from keras_muffnet import data

    source = data.open_detection_source("cells")
    source.class_names  # ('Platelets', 'RBC', 'WBC')
    ```

    Args:
        source: one of

            - a Pascal VOC folder, of `JPEGImages/`, `Annotations/` and
              `ImageSets/Main/`; its splits are the lists there: `"train"`,
              `"val"`, `"trainval"`, `"test"`. Of a folder of such folders they
              are called `"VOC2007/trainval"`. Lists are joined by a plus sign:
              `"VOC2007/trainval+VOC2012/trainval"`. Without lists all are
              training images; images and annotations may be in one folder,
              and in folders called as splits.
            - a COCO folder: of `annotations/instances_train*.json` and so on,
              or of `train/_annotations.coco.json` beside the images. The
              splits are `"train"`, `"val"`, `"test"`, or longer parts of the
              name as `"train2017"`.
            - a COCO .json file, which is then split `"train"`, or a mapping of
              the names of splits to such files.
            - a YOLO data.yaml, or its folder: it names classes and the folders
              or lists of the images of each split. Boxes are in text files
              beside the images or under `labels/` instead of `images/`.
              Needs PyYAML.
            - a folder of images with YOLO's text files and labelImg's
              classes.txt beside these; folders called as splits in it, or in
              its `images/`, are the splits.
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
        validation_split: the part of the images of `"train"` that is held out
            as the split `"val"`, chosen by `seed` and the images' names, so
            that images that are added move no other one. Other splits of
            training images, such as `"trainval"`, are refused then. None holds
            out none.
        seed: of the images held out.

    Without a split of its own, `"test"` gives `"val"` and `"trainval"` gives
    `"train"`. Class names that differ in case or spaces only are warned of.

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
    opened = _open(source, images, class_names, first_pixel)
    warn_of_near_names(opened.name, opened.class_names)
    if validation_split is None:
        return opened
    return hold_out(opened, validation_split, seed)


def _open(
    source: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    images: str | os.PathLike[str] | None,
    class_names: tuple[str, ...] | None,
    first_pixel: int | None,
) -> DetectionSource:
    def refuse(kind: str, **arguments: Any) -> None:
        for name, value in arguments.items():
            if value is not None:
                raise ValueError(
                    f"`{name}` must be None for {kind}. Received: "
                    f"{name}={value!r}, source={source!r}"
                )

    if isinstance(source, str) and source.startswith("tfds:"):
        refuse("TensorFlow Datasets", images=images, first_pixel=first_pixel)
        return open_detection_tfds(source, class_names)
    if isinstance(source, Mapping) and source:
        refuse("COCO", first_pixel=first_pixel)
        files = {name: os.fspath(path) for name, path in source.items()}
        name = ", ".join(files.values())
        return open_coco(name, files, images, class_names)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if os.path.isfile(path) and path.lower().endswith(".json"):
            refuse("COCO", first_pixel=first_pixel)
            return open_coco(path, {"train": path}, images, class_names)
        if file := yolo_file(path):
            refuse("YOLO", images=images, first_pixel=first_pixel)
            return open_yolo(file, class_names)
        if lists := voc_lists(path):
            refuse("Pascal VOC", images=images)
            return open_voc(path, lists, class_names, first_pixel)
        if files := coco_files(path):
            refuse("COCO", first_pixel=first_pixel)
            return open_coco(path, files, images, class_names)
        if os.path.isdir(path) and (classes := labelimg_classes(path)):
            refuse("YOLO", images=images, first_pixel=first_pixel)
            return open_labelimg(path, classes, class_names)
    raise ValueError(
        "`source` must be a folder in the layout of Pascal VOC (images and "
        ".xml files), COCO (with annotations/instances_*.json or "
        "*/_annotations.coco.json) or YOLO (with data.yaml or classes.txt), a "
        "COCO .json file or a mapping of splits to such files, or "
        "'tfds:NAME'. Received: "
        f"source={source!r}"
    )
