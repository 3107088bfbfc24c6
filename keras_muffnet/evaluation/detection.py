"""What a detector finds, in the figures of COCO and of Pascal VOC."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from keras_muffnet._files import written_aside
from keras_muffnet._optional import load_optional
from keras_muffnet.detection.evaluation import find_objects
from keras_muffnet.detection.evaluation import mean_precision
from keras_muffnet.detection.metrics import coco_figures
from keras_muffnet.detection.metrics import voc_average_precision
from keras_muffnet.evaluation.detectors import Detector
from keras_muffnet.plots import plot_boxes


@dataclasses.dataclass(frozen=True)
class DetectionEvaluation:
    """Figures of a detector on images with boxes.

    Attributes:
        class_names: a name for each class.
        images: number of images.
        objects: number of objects in them.
        coco: COCO's twelve figures, by name.
        voc: Pascal VOC's average precision at an IoU of 0.5, of the whole
            area: of each class by its name, and as "mean" that of the classes
            that have objects. NaN for a class without objects.
        voc_11_points: the same at 11 points.
    """

    class_names: tuple[str, ...]
    images: int
    objects: int
    coco: dict[str, float]
    voc: dict[str, float]
    voc_11_points: dict[str, float]
    _shown: list[tuple[Any, Any, Any]]

    def write(
        self,
        folder: str | os.PathLike[str],
        threshold: float = 0.4,
        **about: Any,
    ) -> None:
        """Writes `evaluation.json` and a sheet of images, `boxes.png`.

        An older sheet is removed where this one has no images.

        Args:
            folder: where to; it may not exist yet.
            threshold: score from which boxes are drawn.
            **about: what else the JSON is to hold: the model, the images.

        Raises:
            ImportError: if matplotlib or Pillow is not installed.
            OSError: if a file cannot be written.
        """
        folder = pathlib.Path(folder)

        def known(values: dict[str, float]) -> dict[str, float | None]:
            return {k: v if v == v else None for k, v in values.items()}

        figures = {
            **about,
            "images": self.images,
            "coco": known(self.coco),
            "voc": known(self.voc),
            "voc_11_points": known(self.voc_11_points),
        }
        with written_aside(folder / "evaluation.json") as aside:
            aside.write_text(json.dumps(figures, indent=2) + "\n")
        (folder / "boxes.png").unlink(missing_ok=True)
        if self._shown:
            self._draw(threshold, folder / "boxes.png")

    def _draw(self, threshold: float, path: pathlib.Path) -> None:
        """Draws images, in their own aspect, with what was found."""
        pillow = load_optional("PIL.Image", "arrays")
        pixels, drawn = [], []
        for image, truth, answer in self._shown:
            height, width = truth.size
            picture = pillow.fromarray(np.rint(image).astype(np.uint8))
            pixels.append(np.asarray(picture.resize((width, height))))
            sure = answer.scores >= threshold
            drawn.append([values[sure] for values in answer])
        boxes, scores, classes = zip(*drawn, strict=True)
        plot_boxes(pixels, boxes, classes, scores, self.class_names, path)


def evaluate_detector(
    detector: Detector, feed: Any, pictures: int = 12
) -> DetectionEvaluation:
    """Compares what a detector finds with what is there.

    ```python
    from keras_muffnet import data, evaluation

    cells = evaluation.load_detector("bccd")
    feed = data.make_detection_feed(
        data.open_detection_source("cells", class_names=cells.class_names),
        size=cells.size,
        batch_size=4,
        train_split="trainval",
        mean=0,
        std=1,
    )
    result = evaluation.evaluate_detector(cells, feed)
    print(result.voc["mean"])
    ```

    Args:
        detector: of `load_detector`.
        feed: `keras_muffnet.data.DetectionFeed` of pixels in [0, 255], of the
            detector's size. Its test images are taken.
        pictures: how many images the sheet is to have.

    Raises:
        ValueError: if the feed scales pixels or gives another size, if the
            detector finds objects of a class that the images do not have or
            gives scores that are no numbers, or if `pictures` is negative.
        ImportError: if pycocotools is not installed.
    """
    if pictures < 0:
        raise ValueError(
            f"`pictures` must be 0 or more. Received: pictures={pictures}"
        )
    mean, std = feed.preprocessing.mean, feed.preprocessing.std
    if (mean, std) != (0, 1):
        raise ValueError(
            "`feed` must give pixels in [0, 255], made with mean=0 and std=1. "
            f"Received: a feed of mean={mean} and std={std}"
        )
    truths = feed.ground_truth()
    shown: list[Any] = []

    def detect(batch: tuple[Any, Any]) -> Any:
        images = batch[0]
        if images.shape[1:] != (*detector.size, 3):
            raise ValueError(
                "`feed` must give images of the detector's size, (n, height, "
                f"width, 3) with {detector.size}. Received: {images.shape}"
            )
        shown.extend(images[: max(0, pictures - len(shown))])
        found = detector.detect(images)
        if np.isnan(found.scores).any():
            raise ValueError(
                "`detector` must give numbers. Received: scores that are NaN"
            )
        return found

    found = find_objects(detect, feed.evaluation(), truths, detector.size)
    count = len(feed.class_names)
    highest = max((int(f.classes.max(initial=-1)) for f in found), default=-1)
    if highest >= count:
        raise ValueError(
            f"`feed` must have the detector's classes. Received: {count} "
            f"classes, and objects of class number {highest} were found"
        )
    named: list[dict[str, float]] = []
    for points in (False, True):
        precisions = voc_average_precision(
            truths, found, count, eleven_points=points
        )
        by_class = zip(feed.class_names, map(float, precisions), strict=True)
        named.append({"mean": mean_precision(precisions), **dict(by_class)})
    return DetectionEvaluation(
        tuple(feed.class_names),
        len(truths),
        sum(len(truth.boxes) for truth in truths),
        coco_figures(truths, found, count),
        voc=named[0],
        voc_11_points=named[1],
        _shown=list(zip(shown, truths, found, strict=False)),
    )
