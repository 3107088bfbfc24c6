"""The handwritten digits that come with scikit-learn."""

import numpy as np
import tensorflow as tf

from keras_muffnet.optional import load_optional

Split = tuple[np.ndarray, np.ndarray]


def load_digits(size: int = 32) -> tuple[Split, Split]:
    """Loads scikit-learn's 1,797 scanned digits. Nothing is downloaded.

    The scans are 8x8 with 17 levels of grey; they are resized bilinearly and
    repeated into three channels. A fifth of each class, always the same, is
    the test split.

    Args:
        size: height and width of the images in pixels.

    Returns:
        `(images, labels)` of the training split (1,437 images), then of the
        test split (360): uint8 `(n, size, size, 3)` and int64 `(n,)`.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    datasets = load_optional("sklearn.datasets", "all")
    model_selection = load_optional("sklearn.model_selection", "all")
    scans, labels = datasets.load_digits(return_X_y=True)
    pixels = scans.reshape(-1, 8, 8, 1) * (255 / 16)
    resized = tf.image.resize(pixels, (size, size), method="bilinear")
    images = np.rint(resized).astype(np.uint8).repeat(3, axis=-1)
    x_train, x_test, y_train, y_test = model_selection.train_test_split(
        images, labels, test_size=0.2, random_state=0, stratify=labels
    )
    return (x_train, y_train), (x_test, y_test)
