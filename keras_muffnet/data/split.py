"""The images of a split that a feed gives."""

import numpy as np

from keras_muffnet.data.digits import DigitsExamples
from keras_muffnet.data.examples import Examples
from keras_muffnet.data.examples import balanced_class_weights
from keras_muffnet.data.geometry import Geometry
from keras_muffnet.data.reading import PillowReader
from keras_muffnet.data.reading import TensorFlowReader
from keras_muffnet.data.reading import not_images
from keras_muffnet.data.reading import refuse_bad


class Split:
    """The images of a split that are good, in memory or to be streamed.

    Args:
        examples: the images.
        geometry: how they get their size.
        reader: decodes them.
        cached: keeps them in memory, decoded.
        skip: leaves bad images out; else they are an error, met here if the
            images are cached and in the epoch if not.
    """

    def __init__(
        self,
        examples: Examples,
        geometry: Geometry,
        reader: TensorFlowReader | PillowReader,
        cached: bool,
        skip: bool,
    ):
        self.examples = examples
        self.geometry = geometry
        self.reader = reader
        self.skipped: list[tuple[str, str]] = []
        self.positions = np.arange(len(examples))
        # Pixels and labels, in memory.
        self.arrays: tuple[np.ndarray, np.ndarray] | None = None
        if isinstance(examples, DigitsExamples):
            if geometry.aspect or geometry.center:
                raise ValueError(
                    "`augmentation` must have no area and no test_crop for "
                    "the digits, which are all of one size. Received: "
                    f"{geometry}"
                )
            self.arrays = examples.arrays(geometry.size)
        elif cached:
            images = np.empty((len(examples), *geometry.size, 3), np.uint8)
            labels, bad = reader.scan(examples, geometry, images)
            self._leave_out(bad, skip)
            if bad:
                images, labels = images[self.positions], labels[self.positions]
            self.arrays = images, labels
        elif skip:
            # Read once more: which are good must be known before the order of
            # the first epoch is drawn.
            _, bad = reader.scan(examples, geometry)
            self._leave_out(bad, skip)
        else:
            refuse_bad(examples, not_images(examples))

    def _leave_out(self, bad: dict[int, str], skip: bool) -> None:
        if not skip:
            refuse_bad(self.examples, bad)
        self.skipped = [(self.examples.name(p), r) for p, r in bad.items()]
        self.positions = np.setdiff1d(self.positions, list(bad))
        if not len(self.positions):
            raise ValueError(
                "`source` must hold a good image. Received: all "
                f"{len(bad)} are bad, the first {self.skipped[0]}"
            )

    def __len__(self) -> int:
        return len(self.positions)

    def balanced_weights(self) -> np.ndarray:
        """Weights of the images by which each class counts the same."""
        examples = self.examples.take(self.positions)
        by_label = balanced_class_weights(examples)
        labels = [examples.label(i) for i in range(len(examples))]
        return np.array([by_label[label] for label in labels], np.float32)
