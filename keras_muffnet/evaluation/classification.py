"""What a classifier gets right, class by class, and its surest mistakes."""

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_muffnet._files import written_aside
from keras_muffnet.plots import plot_confusion
from keras_muffnet.plots import plot_predictions


class Mistake(NamedTuple):
    """An image that was taken for another class.

    Attributes:
        position: of the image among those evaluated, from 0.
        pixels: uint8 `(height, width, 3)`.
        label: its class.
        scores: probabilities, `(classes,)`.
    """

    position: int
    pixels: np.ndarray
    label: int
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures of a classifier on labeled images.

    Attributes:
        class_names: a name for each class.
        confusion: int64 `(classes, classes)`: how many images of the row's
            class were taken for the column's.
        top_5_hits: of how many images the class is among the best five.
        mistakes: the surest ones, surest first.
    """

    class_names: tuple[str, ...]
    confusion: np.ndarray
    top_5_hits: int
    mistakes: list[Mistake]

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def top_1(self) -> float:
        """Share of images whose best class is theirs."""
        return float(self.confusion.trace() / self.images)

    @property
    def top_5(self) -> float:
        """Share of images whose class is among the best five."""
        return self.top_5_hits / self.images

    @property
    def per_class(self) -> np.ndarray:
        """Of each class the share that was found; NaN for one without images.

        float64 `(classes,)`.
        """
        images = self.confusion.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return self.confusion.diagonal() / images

    def write(self, folder: str | os.PathLike[str], **about: Any) -> None:
        """Writes the figures and two pictures to a folder.

        `evaluation.json`, `per_class.csv`, `confusion.png`, and where there
        are mistakes `mistakes.png`; else an older one is removed.

        Args:
            folder: where to; it may not exist yet.
            **about: what else the JSON is to hold: the model, the images.

        Raises:
            ImportError: if matplotlib is not installed.
            OSError: if a file cannot be written.
        """
        folder = pathlib.Path(folder)
        figures = {
            **about,
            "images": self.images,
            "top_1": self.top_1,
            "top_5": self.top_5,
        }
        with written_aside(folder / "evaluation.json") as aside:
            aside.write_text(json.dumps(figures, indent=2) + "\n")
        with (
            written_aside(folder / "per_class.csv") as aside,
            open(aside, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(("class", "images", "accuracy"))
            counts = self.confusion.sum(axis=1)
            writer.writerows(
                zip(self.class_names, counts, self.per_class, strict=True)
            )
        plot_confusion(
            self.confusion, self.class_names, folder / "confusion.png"
        )
        (folder / "mistakes.png").unlink(missing_ok=True)
        if self.mistakes:
            plot_predictions(
                np.stack([m.pixels for m in self.mistakes]),
                np.array([m.label for m in self.mistakes]),
                np.stack([m.scores for m in self.mistakes]),
                self.class_names,
                folder / "mistakes.png",
            )


def evaluate(
    predict: Callable[[np.ndarray], np.ndarray],
    batches: Any,
    class_names: Sequence[str],
    mistakes: int = 32,
) -> Evaluation:
    """Compares a classifier's answers with the labels.

    ```python
    from keras_muffnet import data, evaluation

    photos = data.load_images("photos", "test", size=(32, 32))
    predictor = evaluation.load_predictor("model.keras")
    result = evaluation.evaluate(
        predictor.predict, [(photos.images, photos.labels)], photos.class_names
    )
    print(result.top_1, result.confusion)
    ```

    Args:
        predict: from pixels to probabilities; see `classifiers.Predictor`.
        batches: pairs of pixels in [0, 255], `(n, height, width, 3)`, and
            integer labels `(n,)`: an iterable, or a `keras.utils.PyDataset`.
        class_names: a name for each class.
        mistakes: how many are kept.

    Raises:
        ValueError: if the model has another number of classes or gives scores
            that are no numbers, if `mistakes` is negative, or if there are no
            images.
    """
    if mistakes < 0:
        raise ValueError(
            f"`mistakes` must be 0 or more. Received: mistakes={mistakes}"
        )
    classes = len(class_names)
    confusion = np.zeros((classes, classes), np.int64)
    top_5_hits = seen = 0
    kept: list[Mistake] = []
    for pixels, labels in _pairs(batches):
        scores = predict(pixels)
        if scores.shape[-1] != classes:
            raise ValueError(
                f"`predict` must give a score to each of {classes} classes. "
                f"Received: scores of shape {scores.shape}"
            )
        if np.isnan(scores).any():
            count = int(np.isnan(scores).any(axis=-1).sum())
            raise ValueError(
                "`predict` must give numbers. Received: NaN for "
                f"{count} of {len(scores)} images"
            )
        best = np.argsort(-scores, axis=-1, kind="stable")[:, :5]
        np.add.at(confusion, (labels, best[:, 0]), 1)
        top_5_hits += int((best == labels[:, None]).sum())
        wrong = np.flatnonzero(best[:, 0] != labels)
        kept += [
            Mistake(seen + int(k), pixels[k], int(labels[k]), scores[k])
            for k in wrong
        ]
        kept = sorted(kept, key=lambda m: -m.scores.max())[:mistakes]
        seen += len(labels)
    if not seen:
        raise ValueError("`batches` must hold images. Received: none")
    kept = [m._replace(pixels=np.rint(m.pixels).astype(np.uint8)) for m in kept]
    return Evaluation(tuple(class_names), confusion, top_5_hits, kept)


def _pairs(batches: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if isinstance(batches, keras.utils.PyDataset):
        batches = map(batches.__getitem__, range(len(batches)))
    for pixels, labels in batches:
        yield (
            ops.convert_to_numpy(pixels).astype(np.float32),
            ops.convert_to_numpy(labels).astype(np.int64),
        )
