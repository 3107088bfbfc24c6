"""Labelled images in folders, archives, TFRecords and TensorFlow Datasets.

A source gives the encoded images of a split by position, in any order. Both
feeds read from it, so that they see the same examples under the same numbers.
"""

import dataclasses
import lzma
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_muffnet._optional import load_optional
from keras_muffnet.data import records
from keras_muffnet.data.digits import load_digits

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


class Examples:
    """The encoded images of a split, by position from 0."""

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, position: int) -> str:
        """What an error calls the image: its path, or file and record."""
        raise NotImplementedError

    def read(self, position: int) -> tuple[bytes, int]:
        """Reads an image, still encoded, and its label.

        Raises:
            ValueError: telling what is wrong, without the image's name.
        """
        raise NotImplementedError


class FileExamples(Examples):
    """Images that are files."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int]):
        self.paths = paths
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, position: int) -> str:
        return self.paths[position]

    def read(self, position: int) -> tuple[bytes, int]:
        with open(self.paths[position], "rb") as file:
            return file.read(), self.labels[position]


class ArchiveExamples(Examples):
    """Images read out of an archive into memory, still encoded."""

    def __init__(
        self, names: Sequence[str], labels: Sequence[int], files: dict
    ):
        self.names = names
        self.labels = labels
        self.files = files

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, position: int) -> str:
        return self.names[position]

    def read(self, position: int) -> tuple[bytes, int]:
        return self.files[self.names[position]], self.labels[position]


class RecordExamples(Examples):
    """Images in TFRecord files, read at their offsets."""

    def __init__(
        self,
        files: Sequence[str],
        positions: Sequence[np.ndarray],
        classes: int,
        keys: tuple[str, str] = (records.IMAGE_KEY, records.LABEL_KEY),
    ):
        self.files = files
        self.positions = positions
        self.starts = np.cumsum([0, *map(len, positions)])
        self.classes = classes
        self.keys = keys

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _file(self, position: int) -> tuple[int, int]:
        file = int(np.searchsorted(self.starts, position, "right")) - 1
        return file, position - int(self.starts[file])

    def name(self, position: int) -> str:
        file, record = self._file(position)
        return f"{self.files[file]}, record {record}"

    def record(self, position: int) -> bytes:
        """Reads a record as it is."""
        file, record = self._file(position)
        offset, length = self.positions[file][record]
        with open(self.files[file], "rb") as opened:
            opened.seek(offset)
            return opened.read(length)

    def read(self, position: int) -> tuple[bytes, int]:
        image, label = records.parse_example(self.record(position), *self.keys)
        if not 0 <= label < self.classes:
            raise ValueError(
                f"its label is {label}, not of the {self.classes} classes, "
                f"0 to {self.classes - 1}"
            )
        return image, label


class DigitsExamples(Examples):
    """scikit-learn's digits, which are never encoded."""

    def __init__(self, split: str):
        self.split = split

    def __len__(self) -> int:
        return 360 if self.split == "test" else 1437

    def name(self, position: int) -> str:
        return f"digits, {self.split} {position}"

    def arrays(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Gives uint8 `(n, height, width, 3)` and int64 `(n,)`."""
        if size[0] != size[1]:
            raise ValueError(
                f"`size` must be square for the digits. Received: size={size}"
            )
        return load_digits(size[0])[self.split == "test"]

    def read(self, position: int) -> tuple[bytes, int]:
        raise ValueError(
            "`source` must hold encoded images. Received: the digits, which "
            "are arrays"
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """Labelled images, split into training and test images.

    Made by `open_source`.

    Attributes:
        name: as it was given to `open_source`.
        class_names: a name for each label.
    """

    name: str
    class_names: tuple[str, ...]
    _split: Callable[[str], Examples] = dataclasses.field(repr=False)

    def split(self, name: str) -> Examples:
        """Opens a split.

        Raises:
            ValueError: if there is none of that name, or it lacks an image,
                in all or in a class folder.
        """
        examples = self._split(name)
        if len(examples) == 0:
            raise ValueError(
                f"`source` must hold images. Received: {self.name!r}, whose "
                f"split {name!r} has none"
            )
        return examples


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
        names = tuple(str(digit) for digit in range(10))
        return Source("digits", names, _digits_split)
    if isinstance(source, str) and source.startswith("tfds:"):
        return _open_tfds(source)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if os.path.isfile(path) and path.lower().endswith(ARCHIVES):
            return _open_archive(path)
        if os.path.isdir(path):
            if os.path.exists(os.path.join(path, records.CLASSES_FILE)):
                return _open_records(path)
            return _open_folder(path)
    raise ValueError(
        "`source` must be 'digits', 'tfds:NAME', an existing folder or an "
        f"archive ({', '.join(ARCHIVES)}). Received: source={source!r}"
    )


def _digits_split(split: str) -> Examples:
    if split not in ("train", "test"):
        raise ValueError(
            f"`split` must be 'train' or 'test'. Received: split={split!r}"
        )
    return DigitsExamples(split)


class Tree:
    """Folders of classes, on disk or in an archive."""

    def __init__(self, root: str, entries: Callable[[str], list[str] | None]):
        self.root = root
        # The visible names in a folder, sorted; None if it is no folder.
        self.entries = entries

    def class_names(self, split: str) -> list[str]:
        """The classes of a split: its folders."""
        folder = f"{self.root}/{split}"
        inside = self.entries(folder)
        if inside is None:
            raise ValueError(
                "`source` must hold train/ and the folder of the split (for "
                f"'test', val/ will do). Received: {folder!r}, which is not "
                "there"
            )
        paths = [f"{folder}/{name}" for name in inside]
        strays = [path for path in paths if self.entries(path) is None]
        if len(strays) == len(paths):
            raise ValueError(
                "`source` must hold, in the folder of a split, a folder for "
                f"each class. Received: {folder!r}, which has none"
            )
        refuse_strays(strays)
        return inside

    def files(self, split: str) -> tuple[list[str], list[int], list[str]]:
        """The files of a split, their labels and the names of all classes.

        What has not the suffix of an image is among the files.
        """
        if split not in ("train", "test", "val"):
            raise ValueError(
                "`split` must be 'train', 'test' or 'val' for a folder. "
                f"Received: split={split!r}"
            )
        if split == "test" and self.entries(f"{self.root}/test") is None:
            has_val = self.entries(f"{self.root}/val") is not None
            split = "val" if has_val else split
        folder = f"{self.root}/{split}"
        names = self.class_names("train")
        present = self.class_names(split)
        if more := [name for name in present if name not in names]:
            raise ValueError(
                f"`source` must have the classes of {folder!r} in its train/ "
                f"too. Received: {listed(more)}"
            )
        files: list[str] = []
        labels: list[int] = []
        for name in present:
            of_class = self.entries(f"{folder}/{name}")
            if not of_class:
                raise ValueError(
                    "`source` must hold an image of each class. Received: "
                    f"{f'{folder}/{name}'!r}, which is empty"
                )
            files += [f"{folder}/{name}/{file}" for file in of_class]
            labels += [names.index(name)] * len(of_class)
        return files, labels, names


def folder_tree(root: str) -> Tree:
    """The tree of a folder on disk."""

    def entries(folder: str) -> list[str] | None:
        if not os.path.isdir(folder):
            return None
        return sorted(n for n in os.listdir(folder) if not n.startswith("."))

    return Tree(os.path.normpath(root), entries)


def refuse_strays(strays: Sequence[str]) -> None:
    """Raises for what lies where only images and folders of them may."""
    if strays:
        raise ValueError(
            "`source` must hold nothing but images in the folders of classes: "
            f"{', '.join(SUFFIXES)}. Received: {listed(strays)}"
        )


def listed(names: Sequence[str]) -> str:
    """How many there are, and the first five."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)}: {', '.join(map(repr, names[:5]))}{more}"


def _open_folder(root: str) -> Source:
    tree = folder_tree(root)

    def split(name: str) -> Examples:
        files, labels, _ = tree.files(name)
        return FileExamples(files, labels)

    return Source(root, tuple(tree.class_names("train")), split)


def _open_archive(path: str) -> Source:
    try:
        files = dict(_archived(path))
    except (
        OSError,
        EOFError,
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"`source` must be a whole archive. Received: {path!r}, which "
            f"cannot be read: {error}"
        ) from None
    folders: dict[str, set[str]] = {}
    for name in files:
        parts = name.split("/")
        for depth in range(len(parts)):
            folder = "/".join([path, *parts[:depth]])
            folders.setdefault(folder, set()).add(parts[depth])

    def entries(folder: str) -> list[str] | None:
        names = folders.get(folder)
        return None if names is None else sorted(names)

    # What was packed is often the folder itself rather than what is in it.
    tops = sorted(folders.get(path, ()))
    inner = len(tops) == 1 and tops[0] not in ("train", "test", "val")
    tree = Tree(f"{path}/{tops[0]}" if inner else path, entries)
    named = {f"{path}/{name}": content for name, content in files.items()}

    def split(name: str) -> Examples:
        names, labels, _ = tree.files(name)
        return ArchiveExamples(names, labels, named)

    return Source(path, tuple(tree.class_names("train")), split)


def _archived(path: str) -> Iterator[tuple[str, bytes]]:
    """The visible files of an archive."""

    def visible(name: str) -> str | None:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        hidden = any(part.startswith(".") for part in parts)
        return None if hidden else "/".join(parts)

    if path.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as zipped:
            for entry in zipped.infolist():
                if not entry.is_dir() and (name := visible(entry.filename)):
                    yield name, zipped.read(entry)
        return
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None and (name := visible(member.name)):
                yield name, content.read()


def _open_records(root: str) -> Source:
    text = (pathlib.Path(root) / records.CLASSES_FILE).read_text()
    names = tuple(line for line in text.splitlines() if line)
    if not names:
        raise ValueError(
            "`source` must name its classes. Received: "
            f"{os.path.join(root, records.CLASSES_FILE)!r}, which is empty"
        )

    def split(name: str) -> Examples:
        stands_in = ("test", "val", "validation") if name == "test" else (name,)
        for prefix in stands_in:
            found = sorted(pathlib.Path(root).glob(f"{prefix}-*"))
            if found:
                files = [str(file) for file in found]
                positions = [records.record_positions(file) for file in files]
                return RecordExamples(files, positions, len(names))
        raise ValueError(
            f"`source` must hold TFRecord files {f'{name}-*'!r} for the split "
            f"{name!r}. Received: {root!r}, which has none"
        )

    return Source(root, names, split)


def tfds_named(source: str) -> Any:
    """The builder of a data set of TensorFlow Datasets, not prepared yet."""
    tfds = load_optional("tensorflow_datasets", "datasets")
    try:
        return tfds.builder(source.removeprefix("tfds:"), try_gcs=False)
    except (AssertionError, ValueError) as error:
        # Behind the first line it lists a thousand names.
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            "`source` must name a data set of TensorFlow Datasets after "
            f"'tfds:'. Received: source={source!r}: {reason}"
        ) from None


def tfds_builder(source: str) -> tuple[Any, list[str], tuple[str, ...]]:
    """Prepares a data set of TensorFlow Datasets.

    Returns:
        Its builder, the keys of image and label, and the class names.
    """
    tfds = load_optional("tensorflow_datasets", "datasets")
    builder = tfds_named(source)
    features = dict(builder.info.features.items())
    keys = list(builder.info.supervised_keys or [])
    kinds = [features.get(key) for key in keys]
    if not (
        len(kinds) == 2
        and isinstance(kinds[0], tfds.features.Image)
        and kinds[0].np_dtype == np.uint8
        and isinstance(kinds[1], tfds.features.ClassLabel)
    ):
        raise ValueError(
            "`source` must be a data set of 8-bit images, each with a class. "
            f"Received: source={source!r}, of {kinds}"
        )
    builder.download_and_prepare()
    return builder, keys, tuple(kinds[1].names)


def tfds_split(builder: Any, source: str, split: str) -> Any:
    """A split of TensorFlow Datasets, or a slice of one."""
    try:
        return builder.info.splits[split]
    except (KeyError, ValueError):
        raise ValueError(
            f"`split` must be of {sorted(builder.info.splits)}, or a slice "
            f"such as 'train[:10%]', for {source!r}. Received: split={split!r}"
        ) from None


def tfds_records(
    builder: Any, source: str, split: str
) -> tuple[list[str], list[np.ndarray]]:
    """The files of a split, and the positions in each of its records."""
    files, positions = [], []
    for shard in tfds_split(builder, source, split).file_instructions:
        if ".tfrecord" not in os.path.basename(shard.filename):
            raise ValueError(
                "`source` must be prepared as TFRecords (file_format="
                f"'tfrecord'). Received: {source!r}, which has "
                f"{shard.filename!r}"
            )
        files.append(shard.filename)
        found = records.record_positions(shard.filename)[shard.skip :]
        positions.append(found[: shard.take] if shard.take > 0 else found)
    return files, positions


def _open_tfds(source: str) -> Source:
    builder, keys, names = tfds_builder(source)

    def split(name: str) -> Examples:
        files, positions = tfds_records(builder, source, name)
        return RecordExamples(files, positions, len(names), (keys[0], keys[1]))

    return Source(source, names, split)
