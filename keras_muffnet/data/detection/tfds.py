"""Images with boxes of TensorFlow Datasets."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_muffnet._optional import load_optional
from keras_muffnet.data.detection.annotations import Description
from keras_muffnet.data.detection.annotations import DetectionExamples
from keras_muffnet.data.detection.annotations import DetectionSource
from keras_muffnet.data.detection.annotations import Problem
from keras_muffnet.data.detection.annotations import RawObject
from keras_muffnet.data.examples import split_named
from keras_muffnet.data.records import RecordExamples
from keras_muffnet.data.records import parse_features
from keras_muffnet.data.tfds import tfds_named
from keras_muffnet.data.tfds import tfds_records


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
        self.records = RecordExamples(files, positions, len(labels))
        # From the data set's label to ours.
        self.labels = labels
        self.names = names

    def __len__(self) -> int:
        return len(self.records)

    def name(self, position: int) -> str:
        return self.records.name(position)

    def _features(self, position: int) -> dict[str, Any]:
        return parse_features(self.records.record(position), self.KEYS)

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
        return Description(None, objects, normalized=True)


def open_detection_tfds(
    source: str, class_names: tuple[str, ...] | None
) -> DetectionSource:
    """Opens a data set of TensorFlow Datasets."""
    tfds = load_optional("tensorflow_datasets", "datasets")
    builder = tfds_named(source)
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
        files, positions = tfds_records(builder, source, name)
        return TfdsExamples(files, positions, labels, names)

    own = {split_named(name) or name: name for name in builder.info.splits}
    return DetectionSource(
        source,
        found,
        lambda name: split(own.get(name, name)),
        splits=tuple(own),
    )
