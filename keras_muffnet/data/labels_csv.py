"""Labels in CSV files: a file's name and its class in each row."""

import csv
import io
import os
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

from keras_muffnet.data.examples import listed
from keras_muffnet.data.examples import split_named

_FILE_COLUMNS = (
    *("file", "filename", "file_name", "filepath", "file_path", "image"),
    *("image_id", "image_name", "image_path", "imageid", "img", "id"),
    *("name", "path"),
)
_LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "classname", "category"),
    *("target", "breed", "species", "class_id", "label_id", "y"),
)
_SPLIT_COLUMNS = ("split", "set", "subset")

# The file and the label of each row, by split.
Pairs = dict[str, list[tuple[str, str]]]
# Names of files, labels and splits, a row each.
_Rows = list[tuple[str, str, str | None]]


def sorted_classes(names: Iterable[str]) -> list[str]:
    """Classes in their order: by number where all are numbers."""
    names = list(names)
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def read_labels(
    root: str,
    tables: Mapping[str, bytes],
    images: Sequence[str],
    folders: Mapping[str, str],
) -> Pairs | None:
    """Reads the labels of images.

    Args:
        root: what comes before the paths, for errors.
        tables: the content of each CSV file, by path.
        images: paths of all images.
        folders: of splits, by their names.

    Returns:
        For each split the images and their classes' names; None if no file
        has a column of files and one of labels.

    Raises:
        ValueError: naming the file and what is wrong in it.
    """
    found: dict[str, tuple[str, _Rows]] = {}
    for path, content in tables.items():
        rows = _parse(f"{root}{path}", content)
        stem = os.path.splitext(os.path.basename(path))[0].lower()
        words = stem.replace("-", "_").split("_")
        if rows is None or "submission" in words:
            continue
        # train.csv, test_labels.csv; or in the folder of the split.
        parts = [path.split("/")[0], *words]
        splits = [s for s in map(split_named, parts) if s]
        split = splits[0] if splits else "train"
        index = _Index(_within(images, folders.get(split)))
        if not any(index.find(row[0]) for row in rows):
            continue
        if split in found:
            raise ValueError(
                f"`source` must hold one CSV file of labels for {split!r}. "
                f"Received: {found[split][0]!r} and {root + path!r}"
            )
        found[split] = root + path, rows
    if "train" not in found:
        return None
    pairs: Pairs = {}
    for split, (path, rows) in found.items():
        index = _Index(_within(images, folders.get(split)))
        labels: dict[str, tuple[str, str]] = {}
        missing = []
        for file, label, own in rows:
            matches = index.find(file)
            if not matches:
                missing.append(file)
                continue
            if len(matches) > 1:
                raise ValueError(
                    "`source` must have one image for each file of a CSV file. "
                    f"Received: {path!r}, with {file!r}, which matches "
                    f"{listed(matches)}"
                )
            [image] = matches
            of_split = split if own is None else split_named(own)
            if not label or of_split is None:
                raise ValueError(
                    f"`source` must have a label, and 'train', 'val' or 'test' "
                    "in a column of splits, for each file of a CSV file. "
                    f"Received: {path!r}, with {label!r} and {own!r} for "
                    f"{file!r}"
                )
            known = labels.setdefault(image, (of_split, label))
            if known != (of_split, label):
                raise ValueError(
                    "`source` must have one label for each file of a CSV "
                    f"file. Received: {path!r}, with {known[1]!r} and "
                    f"{label!r} for {file!r}"
                )
        if missing:
            raise ValueError(
                "`source` must hold the files that a CSV file lists. Received: "
                f"{path!r}, with files that are not there: {listed(missing)}"
            )
        for image, (of_split, label) in labels.items():
            pairs.setdefault(of_split, []).append((image, label))
    if "train" not in pairs:
        raise ValueError(
            "`source` must have training images in its CSV file. Received: "
            f"{found['train'][0]!r}, which has none"
        )
    return pairs


def _within(images: Sequence[str], folder: str | None) -> list[str]:
    if folder is None:
        return list(images)
    return [image for image in images if image.startswith(f"{folder}/")]


class _Index:
    """Finds images by what a row says of their path."""

    def __init__(self, images: Sequence[str]):
        # By name, and by name without suffix.
        self.whole: dict[str, list[str]] = {}
        self.stems: dict[str, list[str]] = {}
        for image in images:
            base = os.path.basename(image)
            self.whole.setdefault(base, []).append(image)
            self.stems.setdefault(os.path.splitext(base)[0], []).append(image)

    def find(self, file: str) -> list[str]:
        """Returns the images that a row may mean.

        Args:
            file: a path with or without suffix. It may start below the data
                folder or above it.

        Returns:
            The image of that path alone, if there is one; else all images
            whose path ends in `file`, or in whose path `file` ends.
        """
        base = os.path.basename(file)
        found = self.whole.get(base, [])
        if file in found:
            return [file]
        matches = [image for image in found if _same_end(image, file)]
        if matches:
            return matches
        return [
            image
            for image in self.stems.get(base, [])
            if _same_end(os.path.splitext(image)[0], file)
        ]


def _same_end(path: str, other: str) -> bool:
    """Whether one of two paths is the end of the other."""
    return f"/{path}".endswith(f"/{other}") or f"/{other}".endswith(f"/{path}")


def _parse(path: str, content: bytes) -> _Rows | None:
    """The rows of a table, if it has columns of files and labels."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", "replace")
    header_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=header_line.count)
    try:
        table = [
            [cell.strip() for cell in row]
            for row in csv.reader(io.StringIO(text), delimiter=delimiter)
            if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise ValueError(
            f"`source` must hold CSV files that can be read. Received: "
            f"{path!r}: {error}"
        ) from None
    if len(table) < 2:
        return None
    header = [cell.lower().replace(" ", "_") for cell in table[0]]

    def column(names: Sequence[str]) -> int | None:
        return next((header.index(n) for n in names if n in header), None)

    file, label = column(_FILE_COLUMNS), column(_LABEL_COLUMNS)
    if file is not None and label is None and len(header) == 2:
        label = 1 - file
    if file is None or label is None or file == label:
        return None
    split = column(_SPLIT_COLUMNS)
    rows: _Rows = []
    for number, row in enumerate(table[1:], 2):
        if len(row) != len(header):
            raise ValueError(
                "`source` must have as many cells in each row of a CSV file. "
                f"Received: {path!r}, with {len(row)} in row {number} and "
                f"{len(header)} in the first"
            )
        name = row[file].replace("\\", "/").removeprefix("./")
        rows.append((name, row[label], None if split is None else row[split]))
    return rows
