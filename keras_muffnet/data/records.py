"""TFRecord files of labeled images: reading needs no TensorFlow."""

import contextlib
import os
import pathlib
import re
import struct
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_muffnet._arguments import positive_integer
from keras_muffnet._files import written_aside
from keras_muffnet._optional import load_optional
from keras_muffnet.data.examples import Examples
from keras_muffnet.data.examples import Source
from keras_muffnet.data.examples import file_stamp
from keras_muffnet.data.examples import listed
from keras_muffnet.data.examples import missing_split
from keras_muffnet.data.examples import split_named

# The keys that TensorFlow's own image records have.
IMAGE_KEY = "image/encoded"
LABEL_KEY = "image/class/label"
CLASSES_FILE = "classes.txt"
# The number of a file, and how many there are, as TensorFlow names both.
_SHARD = re.compile(r"[^-]+-(\d+)-of-(\d+)(\..*)?")


def record_positions(path: str) -> np.ndarray:
    """Finds the records of a file by its length fields alone.

    Returns:
        int64 `(n, 2)`: where each record's content starts, and its length.

    Raises:
        ValueError: naming the file, if it ends within a record.
    """
    size = os.path.getsize(path)
    positions: list[tuple[int, int]] = []
    with open(path, "rb") as file:
        at = 0
        while at < size:
            # Length, its checksum, content, its checksum.
            header = file.read(8)
            (length,) = struct.unpack("<Q", header.ljust(8, b"\xff"))
            if at + 16 + length > size:
                raise ValueError(
                    "`source` must hold whole TFRecord files. Received: "
                    f"{path!r}, which ends within record {len(positions)}"
                )
            positions.append((at + 12, length))
            at += 16 + length
            file.seek(at)
    return np.array(positions, np.int64).reshape(-1, 2)


def parse_example(
    record: bytes, image_key: str, label_key: str
) -> tuple[bytes, int]:
    """Reads an image and its label from a serialized `tf.train.Example`.

    Raises:
        ValueError: if the record is not an `Example` or lacks one of the two.
    """
    found = parse_features(record, (image_key, label_key))
    images, labels = found.get(image_key), found.get(label_key)
    if not (
        isinstance(images, list)
        and images
        and isinstance(labels, np.ndarray)
        and labels.dtype == np.int64
        and len(labels)
    ):
        raise ValueError(
            f"a record of an image at {image_key!r} and a label at "
            f"{label_key!r} was expected"
        )
    return images[0], int(labels[0])


def parse_features(
    record: bytes, keys: Sequence[str]
) -> dict[str, list[bytes] | np.ndarray]:
    """Reads features of a serialized `tf.train.Example`.

    Returns:
        Of each key that is there: byte strings, float32 `(n,)` or int64
        `(n,)`. A feature of no kind has none, nor has what is not an `Example`.
    """
    found: dict[str, list[bytes] | np.ndarray] = {}
    wanted = {key.encode(): key for key in keys}
    # What is not a protocol buffer gives nothing, or fails in one of these.
    with contextlib.suppress(StopIteration, IndexError, TypeError):
        for features in _fields(memoryview(record), 1):
            for entry in _fields(features, 1):
                key = bytes(next(_fields(entry, 1)))
                if key in wanted:
                    found[wanted[key]] = _values(next(_fields(entry, 2)))
    return found


def _values(feature: memoryview) -> list[bytes] | np.ndarray:
    """The values of a feature: 1 is byte strings, 2 floats, 3 integers."""
    for values in _fields(feature, 2):
        # Written packed, as one string, or one by one.
        packed = b"".join(map(bytes, _fields(values, 1)))
        return np.frombuffer(packed, "<f4").astype(np.float32)
    for values in _fields(feature, 3):
        numbers: list[int] = []
        for value in _fields(values, 1):
            if isinstance(value, int):
                numbers.append(value)
                continue
            at = 0
            while at < len(value):
                number, at = _varint(value, at)
                numbers.append(number)
        return np.array(numbers, np.uint64).astype(np.int64)
    for values in _fields(feature, 1):
        return [bytes(value) for value in _fields(values, 1)]
    return []


def _fields(message: memoryview, wanted: int) -> Iterator[Any]:
    """The values of a field of a protocol buffer: views or integers."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, kind = tag >> 3, tag & 7
        value: int | memoryview
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            value = message[at : at + length]
            if len(value) < length:
                raise IndexError
            at += length
        elif kind in (1, 5):
            value = message[at : at + (8 if kind == 1 else 4)]
            at += len(value)
        else:
            raise IndexError
        if field == wanted:
            yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


class RecordExamples(Examples):
    """Images in TFRecord files, read at their offsets."""

    def __init__(
        self,
        files: Sequence[str],
        positions: Sequence[np.ndarray],
        classes: int,
        keys: tuple[str, str] = (IMAGE_KEY, LABEL_KEY),
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

    def stamp(self, position: int) -> str:
        file, record = self._file(position)
        # Once a file: there may be a million records.
        return "" if record else file_stamp(self.files[file])

    def key(self, position: int) -> str:
        file, record = self._file(position)
        return f"{os.path.basename(self.files[file])}/{record}"

    def record(self, position: int) -> bytes:
        """Reads a record as it is."""
        file, record = self._file(position)
        offset, length = self.positions[file][record]
        with open(self.files[file], "rb") as opened:
            opened.seek(offset)
            return opened.read(length)

    def read(self, position: int) -> tuple[bytes, int]:
        image, label = parse_example(self.record(position), *self.keys)
        if not 0 <= label < self.classes:
            raise ValueError(
                f"its label is {label}, not of the {self.classes} classes, "
                f"0 to {self.classes - 1}"
            )
        return image, label


def holds_records(root: str) -> bool:
    """Whether a folder has a list of classes and files of a split."""
    names = os.listdir(root)
    return CLASSES_FILE in names and any(
        split_named(name.partition("-")[0]) and "-" in name for name in names
    )


def open_records(root: str) -> Source:
    """Opens a folder of TFRecord files."""
    text = (pathlib.Path(root) / CLASSES_FILE).read_text("utf-8-sig")
    names = tuple(line for line in text.splitlines() if line)
    if not names:
        raise ValueError(
            "`source` must name its classes. Received: "
            f"{os.path.join(root, CLASSES_FILE)!r}, which is empty"
        )

    files: dict[str, list[str]] = {}
    for file in sorted(pathlib.Path(root).glob("*-*")):
        if found := split_named(file.name.partition("-")[0]):
            files.setdefault(found, []).append(str(file))
    splits = [name for name in ("train", "val", "test") if name in files]
    for name in splits:
        _check_shards(root, files[name])

    def split(name: str) -> Examples:
        if name not in files:
            raise missing_split(root, splits, name)
        positions = [record_positions(file) for file in files[name]]
        return RecordExamples(files[name], positions, len(names))

    return Source(root, names, tuple(splits), split)


def _check_shards(root: str, files: Sequence[str]) -> None:
    """Raises unless the files of a split are one complete set.

    Files that all lack `-of-N` in their names are taken as one.
    """
    names = [os.path.basename(file) for file in files]
    matches = [_SHARD.fullmatch(name) for name in names]
    if not any(matches):
        return
    found = [(int(m[1]), int(m[2])) for m in matches if m]
    count = found[0][1]
    if len(found) < len(files) or sorted(found) != [
        (i, count) for i in range(count)
    ]:
        raise ValueError(
            "`source` must hold one complete set of files, 0 to N-1 of N, for "
            f"each split. Received: {root!r}, with {listed(names)}"
        )


def write_records(
    source: Source,
    folder: str | os.PathLike[str],
    split: str,
    shards: int = 1,
) -> list[pathlib.Path]:
    """Writes a split as TFRecords that `open_source` reads. Needs TensorFlow.

    The encoded images are copied as they are. Record i of the split goes to
    file `i % shards`. Other files of the split, of an earlier call with
    another number of shards, are removed at the end.

    ```python
    from keras_muffnet import data

    source = data.open_source("photos")
    data.write_records(source, "records", "train", shards=2)
    ```

    Args:
        source: where the images come from.
        folder: of the files `SPLIT-00000-of-00004.tfrecord` and so on, and of
            `classes.txt`, a class name a line.
        split: of the source; the files have its name.
        shards: how many files.

    Returns:
        The files.

    Raises:
        ImportError: if TensorFlow is not installed.
        ValueError: if the source has no such split, or its images are not
            encoded (the digits).
    """
    tf = load_optional("tensorflow", "tensorflow")
    shards = positive_integer("shards", shards)
    examples = source.split(split)
    folder = pathlib.Path(folder)
    paths = [
        folder / f"{split}-{i:05}-of-{shards:05}.tfrecord"
        for i in range(shards)
    ]
    for shard, path in enumerate(paths):
        with (
            written_aside(path) as aside,
            tf.io.TFRecordWriter(str(aside)) as writer,
        ):
            for i in range(shard, len(examples), shards):
                image, label = examples.read(i)
                feature = {
                    IMAGE_KEY: tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[image])
                    ),
                    LABEL_KEY: tf.train.Feature(
                        int64_list=tf.train.Int64List(value=[label])
                    ),
                }
                features = tf.train.Features(feature=feature)
                example = tf.train.Example(features=features)
                writer.write(example.SerializeToString())
    own = split_named(split)
    for path in folder.glob("*-of-*"):
        name = path.name.partition("-")[0]
        if (
            path not in paths
            and (name == split or (own and split_named(name) == own))
            and _SHARD.fullmatch(path.name)
        ):
            path.unlink()
    with written_aside(folder / CLASSES_FILE) as aside:
        text = "".join(f"{name}\n" for name in source.class_names)
        aside.write_text(text, encoding="utf-8")
    return paths
