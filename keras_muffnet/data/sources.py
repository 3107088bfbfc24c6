"""Opens labelled images: digits, folders, archives, TFRecords, TFDS."""

import os

from keras_muffnet.data.digits import open_digits
from keras_muffnet.data.examples import Source
from keras_muffnet.data.folders import ARCHIVES
from keras_muffnet.data.folders import open_archive
from keras_muffnet.data.folders import open_folder
from keras_muffnet.data.records import CLASSES_FILE
from keras_muffnet.data.records import open_records
from keras_muffnet.data.tfds import open_tfds


def open_source(source: str | os.PathLike[str]) -> Source:
    """Opens labelled images. Only TensorFlow Datasets needs TensorFlow.

    Args:
        source: one of

            - `"digits"`: scikit-learn's digits; see `load_digits`.
            - a folder of `train/` and `test/` or `val/`, each with a folder a
              class, as `load_images` reads it.
            - an archive of such a folder: a .zip or .tar, or one of .tar.gz,
              .tar.bz2 and .tar.xz. It is read into memory, still encoded.
            - a folder of TFRecord files, `train-*` and `test-*`, `val-*` or
              `validation-*`, of examples with the image, encoded, at
              `image/encoded` and its label at `image/class/label`, and with
              `classes.txt`, a class name a line. `write_records` writes it.
            - `"tfds:NAME"`: an image classification data set of TensorFlow
              Datasets. It is downloaded once, to `~/tensorflow_datasets` or
              where `TFDS_DATA_DIR` says.

    Raises:
        ImportError: if the package that the source needs is not installed.
        ValueError: if `source` is not as above.
    """
    if isinstance(source, str) and source == "digits":
        return open_digits()
    if isinstance(source, str) and source.startswith("tfds:"):
        return open_tfds(source)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if os.path.isfile(path) and path.lower().endswith(ARCHIVES):
            return open_archive(path)
        if os.path.isdir(path):
            if os.path.exists(os.path.join(path, CLASSES_FILE)):
                return open_records(path)
            return open_folder(path)
    raise ValueError(
        "`source` must be 'digits', 'tfds:NAME', an existing folder or an "
        f"archive ({', '.join(ARCHIVES)}). Received: source={source!r}"
    )
