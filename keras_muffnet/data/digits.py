"""The handwritten digits that come with scikit-learn."""

import functools

import numpy as np

from keras_muffnet._optional import load_optional
from keras_muffnet.data.examples import Examples
from keras_muffnet.data.examples import Source
from keras_muffnet.data.examples import missing_split

_SPLITS = ("train", "test")

Split = tuple[np.ndarray, np.ndarray]


def load_digits(size: int = 32) -> tuple[Split, Split]:
    """Loads scikit-learn's 1,797 scanned digits. Nothing is downloaded.

    The scans are 8x8 with 17 levels of gray; they are resized bilinearly and
    repeated into three channels. A fifth of each class, always the same, is
    the test split.

    ```python
    from keras_muffnet import data

    (x_train, y_train), (x_test, y_test) = data.load_digits(size=32)
    x_train.shape  # (1437, 32, 32, 3)
    ```

    Args:
        size: height and width of the images in pixels.

    Returns:
        `(images, labels)` of the training split (1,437 images), then of the
        test split (360): uint8 `(n, size, size, 3)` and int64 `(n,)`.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    datasets = load_optional("sklearn.datasets", "examples")
    model_selection = load_optional("sklearn.model_selection", "examples")
    scans, labels = datasets.load_digits(return_X_y=True)
    pixels = scans.reshape(-1, 8, 8, 1) * (255 / 16)
    images = np.rint(_resized(pixels, size)).astype(np.uint8)
    images = images.repeat(3, axis=-1)
    x_train, x_test, y_train, y_test = model_selection.train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return (x_train, y_train), (x_test, y_test)


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes bilinearly in float32, to the bit as `tf.image.resize` does."""
    length = images.shape[1]
    at = np.arange(size, dtype=np.float32) + np.float32(0.5)
    at = at * np.float32(length / size) - np.float32(0.5)
    low = np.floor(at)
    share = (at - low).astype(np.float32)
    before = np.clip(low, 0, length - 1).astype(int)
    after = np.clip(np.ceil(at), 0, length - 1).astype(int)
    images = images.astype(np.float32)

    def mixed(axis: int, shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
        first, second = x.take(before, axis), x.take(after, axis)
        return first + (second - first) * share.reshape(shape)

    return mixed(1, (-1, 1, 1), mixed(2, (-1, 1), images))


@functools.lru_cache(maxsize=2)
def _cached_digits(size: int) -> tuple[Split, Split]:
    return load_digits(size)


class DigitsExamples(Examples):
    """scikit-learn's digits, which are never encoded."""

    def __init__(self, split: str, positions: np.ndarray | None = None):
        self.split = split
        if positions is None:
            positions = np.arange(360 if split == "test" else 1437)
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, position: int) -> str:
        return f"digits, {self.key(position)}"

    def key(self, position: int) -> str:
        return f"{self.split} {self.positions[position]}"

    def label(self, position: int) -> int:
        return int(self.arrays((8, 8))[1][position])

    def take(self, positions: np.ndarray) -> "DigitsExamples":
        return DigitsExamples(self.split, self.positions[positions])

    def arrays(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Gives uint8 `(n, height, width, 3)` and int64 `(n,)`."""
        if size[0] != size[1]:
            raise ValueError(
                f"`size` must be square for the digits. Received: size={size}"
            )
        images, labels = _cached_digits(size[0])[self.split == "test"]
        return images[self.positions], labels[self.positions]

    def read(self, position: int) -> tuple[bytes, int]:
        raise ValueError(
            "`source` must hold encoded images. Received: the digits, which "
            "are arrays"
        )


def open_digits() -> Source:
    """Opens scikit-learn's digits as a source."""
    names = tuple(str(digit) for digit in range(10))
    return Source("digits", names, _SPLITS, _digits_split)


def _digits_split(split: str) -> Examples:
    if split not in _SPLITS:
        raise missing_split("digits", _SPLITS, split)
    return DigitsExamples(split)
