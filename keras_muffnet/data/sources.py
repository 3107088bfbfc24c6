"""Opens labeled images: digits, folders, archives, TFRecords, TFDS."""

import os

from keras_muffnet.data.digits import open_digits
from keras_muffnet.data.examples import Source
from keras_muffnet.data.examples import hold_out
from keras_muffnet.data.folders import ARCHIVES
from keras_muffnet.data.folders import open_archive
from keras_muffnet.data.folders import open_folder
from keras_muffnet.data.records import holds_records
from keras_muffnet.data.records import open_records
from keras_muffnet.data.tfds import open_tfds


def open_source(
    source: str | os.PathLike[str],
    *,
    validation_split: float | None = None,
    seed: int = 0,
    nested: str | None = None,
) -> Source:
    """Opens labeled images. Only TensorFlow Datasets needs TensorFlow.

    Folders of splits are recognized in any case, and as `training`, `valid`,
    `validation` and `testing` too; one folder around all is stepped into.
    Classes are those of `train/`, sorted by name; other splits may lack some,
    which is warned of. Images are JPEG, PNG, GIF (the first frame), BMP,
    WebP, TIFF, AVIF and HEIC files; see `keras_muffnet.data.decoding` for the
    pixels. What is clearly not an image, such as `Thumbs.db`, README,
    a text or a hidden file, is left out with a warning that counts it. Any
    other file in the folder of a class is a bad image. A folder that is a
    link to one around it is not read again.

    ```python
    from keras_muffnet import data

    source = data.open_source("photos", validation_split=0.25)
    source.class_names  # ('daisy', 'rose', 'tulip')
    source.splits  # ('train', 'val', 'test')
    ```

    Args:
        source: one of

            - `"digits"`: scikit-learn's digits; see `load_digits`.
            - a folder of `train/` and, if there are, `val/` and `test/`, each
              with a folder a class, named as the class.
            - a folder of folders of classes, which are training images.
            - a folder of images with a CSV file beside it or in it: one
              column of files, with or without suffix, and one of labels,
              under a header such as `file,label` or `id,breed`. All files it
              lists must be there: an image matches where its path ends in
              what the row states, or the row's path in that of the image.
              It may have a column `split`, or there may
              be one for each split: `train.csv`, `test_labels.csv`.
            - an archive of such a folder: a .zip or .tar, or one of .tar.gz,
              .tar.bz2 and .tar.xz. It is read into memory, still encoded.
            - a folder of TFRecord files, `train-*` and `test-*`, `val-*` or
              `validation-*`, of examples with the image, encoded, at
              `image/encoded` and its label at `image/class/label`, and with
              `classes.txt`, a class name a line. `write_records` writes it.
            - `"tfds:NAME"`: an image classification data set of TensorFlow
              Datasets. It is downloaded once, to `~/tensorflow_datasets` or
              where `TFDS_DATA_DIR` says.
        validation_split: the part of the training images that is held out as
            the split `"val"`, of each class about the same. Which ones
            follows from `seed` and their names in the folder of the split, so
            that images that are added move no other one. None holds out none.
        seed: of the images held out.
        nested: what folders in the folder of a class are: `"top"` for more
            images of the class, at any depth, as for Keras and torchvision;
            `"path"` where each folder with images is a class, named as
            `"animals/cat"`. None takes none. For folders and archives of
            images alone.

    Raises:
        ImportError: if the package that the source needs is not installed.
        ValueError: if an argument is not as above, or there are validation
            images for `validation_split` already.
    """
    opened = _open(source, nested)
    if validation_split is None:
        return opened
    return hold_out(opened, validation_split, seed)


def _open(source: str | os.PathLike[str], nested: str | None) -> Source:
    if isinstance(source, str) and source == "digits":
        _refuse_nested(nested, "the digits")
        return open_digits()
    if isinstance(source, str) and source.startswith("tfds:"):
        _refuse_nested(nested, "TensorFlow Datasets")
        return open_tfds(source)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if os.path.isfile(path) and path.lower().endswith(ARCHIVES):
            return open_archive(path, nested)
        if os.path.isdir(path):
            if holds_records(path):
                _refuse_nested(nested, "TFRecord files")
                return open_records(path)
            return open_folder(path, nested)
    raise ValueError(
        "`source` must be 'digits', 'tfds:NAME', an existing folder or an "
        f"archive ({', '.join(ARCHIVES)}). Received: source={source!r}"
    )


def _refuse_nested(nested: str | None, kind: str) -> None:
    if nested is not None:
        raise ValueError(
            f"`nested` must be None for {kind}, which have no folders of "
            f"classes. Received: nested={nested!r}"
        )
