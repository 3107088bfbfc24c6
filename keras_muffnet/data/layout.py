"""What names of files and folders say: splits, classes, what is not an image.

Works on names alone, so that a folder and an archive of it are read alike.
"""

import os
import unicodedata
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

from keras_muffnet.data import labels_csv
from keras_muffnet.data.examples import listed
from keras_muffnet.data.examples import split_named

SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
)
# What lies beside images and is left out, with a line that counts it.
_BESIDE_SUFFIXES = (
    *(".cfg", ".csv", ".css", ".db", ".doc", ".docx", ".htm", ".html"),
    *(".ini", ".ipynb", ".js", ".json", ".lnk", ".log", ".md", ".pdf"),
    *(".py", ".rst", ".rtf", ".tsv", ".txt", ".url", ".xls", ".xlsx"),
    *(".xml", ".yaml", ".yml"),
)
_BESIDE_NAMES = ("readme", "license", "licence", "copying", "notice")
_HIDDEN_FOLDERS = (
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "system volume information",
)
NESTED = ("top", "path")

# A folder by its names: another folder, or None for a file.
Folder = dict[str, "Folder | None"]


class Labeled(NamedTuple):
    """The images of a split.

    Attributes:
        paths: from the root of the source.
        labels: of the images.
        keys: paths from the folder of the split.
    """

    paths: list[str]
    labels: list[int]
    keys: list[str]


class Layout(NamedTuple):
    """What a folder or an archive holds.

    Attributes:
        class_names: a name for each label.
        splits: by "train", "val" and "test".
        left_out: paths of what was left out.
    """

    class_names: tuple[str, ...]
    splits: dict[str, Labeled]
    left_out: list[str]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is passed over."""
    return name.startswith(".") or name.lower() in _HIDDEN_FOLDERS


def lies_beside(name: str) -> bool:
    """Whether a file is clearly not an image: `Thumbs.db`, README."""
    stem, suffix = os.path.splitext(name.lower())
    return suffix in _BESIDE_SUFFIXES or (
        stem.startswith(_BESIDE_NAMES) and suffix not in SUFFIXES
    )


def is_image(name: str) -> bool:
    """Whether a name has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def arrange(
    name: str,
    paths: Sequence[str],
    read: Callable[[str], bytes],
    nested: str | None = None,
) -> Layout:
    """Finds splits and classes.

    Args:
        name: of the source, for errors.
        paths: of all visible files, from the source's root and with slashes;
            that of an empty folder ends in one.
        read: gives the content of a file, for the labels in a CSV file.
        nested: see `open_source`.

    Raises:
        ValueError: naming what is not as `open_source` describes.
    """
    if nested not in (None, *NESTED):
        raise ValueError(
            f"`nested` must be None, 'top' or 'path'. Received: {nested!r}"
        )
    root: Folder = {}
    for path in paths:
        *above, file = path.split("/")
        folder = root
        for part in above:
            inside = folder.setdefault(part, {})
            folder = {} if inside is None else inside
        if file:
            folder[file] = None
    *around, inner = [
        _Arranger(name, prefix, folder, read, nested)
        for prefix, folder in _levels(root)
    ]
    if not inner.has_train_classes():
        for arranger in around:
            # Labels beside the one folder come before the names in it.
            if _holds_csv(arranger.root) and (layout := arranger.by_csv({})):
                return layout
    return inner.layout()


def _levels(root: Folder) -> Iterator[tuple[str, Folder]]:
    """Steps into the one folder that is around all data.

    Yields the prefix of paths in each folder, and the folder.
    """
    prefix = ""
    while True:
        yield prefix, root
        folders = _folders(root)
        if len(folders) != 1 or any(
            is_image(name) for name, inside in root.items() if inside is None
        ):
            return
        [(name, inside)] = folders
        if split_named(name) or not (_folders(inside) or _holds_csv(inside)):
            return
        prefix, root = f"{prefix}{name}/", inside


def _holds_csv(folder: Folder) -> bool:
    return any(name.lower().endswith(".csv") for name in folder)


def _folders(folder: Folder) -> list[tuple[str, Folder]]:
    return [(n, inside) for n, inside in folder.items() if inside is not None]


def _files(folder: Folder, prefix: str) -> Iterator[str]:
    """All files within a folder, at any depth, sorted by folder."""
    for name, inside in sorted(folder.items()):
        if inside is None:
            yield f"{prefix}{name}"
        else:
            yield from _files(inside, f"{prefix}{name}/")


def class_name(folder: str) -> str:
    """The class that a folder is called after, as text of any encoding."""
    try:
        folder.encode()
    except UnicodeEncodeError:
        # Bytes of an older encoding than UTF-8: what Western Windows has.
        raw = folder.encode("utf-8", "surrogateescape")
        folder = raw.decode("cp1252", "replace")
    return unicodedata.normalize("NFC", folder)


class _Arranger:
    def __init__(
        self,
        name: str,
        prefix: str,
        root: Folder,
        read: Callable[[str], bytes],
        nested: str | None,
    ):
        self.name = name
        self.prefix = prefix
        self.root = root
        self.read = read
        self.nested = nested
        self.left_out: list[str] = []

    def has_train_classes(self) -> bool:
        """Whether there is a folder of the training split with folders."""
        return any(
            split_named(name) == "train" and _folders(inside)
            for name, inside in _folders(self.root)
        )

    def layout(self) -> Layout:
        folders = dict(_folders(self.root))
        found: dict[str, str] = {}
        for name in sorted(folders):
            if split := split_named(name):
                if split in found:
                    raise ValueError(
                        f"`source` must hold one folder for {split!r}. "
                        f"Received: {self.quoted(found[split])} and "
                        f"{self.quoted(name)}"
                    )
                found[split] = name
        others = sorted(set(folders) - set(found.values()))
        if self.has_train_classes():
            return self.by_splits(found)
        if layout := self.by_csv(found):
            return layout
        if found and not others:
            wanted = (
                "a folder for each class in the folder of a split, or a CSV "
                "file of files and labels beside it"
                if "train" in found
                else "train/ beside the folder of another split"
            )
            raise ValueError(
                f"`source` must hold {wanted}. Received: "
                f"{self.quoted(found.get('train', 'train'))}, which "
                f"{'has none' if 'train' in found else 'is not there'}"
            )
        if found and "train" not in found:
            split = found[min(found)]
            if _folders(folders[split]):
                raise ValueError(
                    "`source` must hold train/ beside the folder of another "
                    f"split. Received: {self.quoted('train')}, which is not "
                    f"there, but {self.quoted(split)}"
                )
        if not folders:
            raise ValueError(
                "`source` must hold a folder for each class, or folders for "
                "the splits with a folder for each class, or a CSV file of "
                f"files and labels. Received: {self.name!r}, which has none"
            )
        classes = self.classes("", self.root)
        return self.labeled({"train": classes}, {"train": ""})

    def quoted(self, path: str) -> str:
        """A path within the source, in quotes, for errors."""
        return repr(f"{self.name}/{self.prefix}{path}")

    def by_splits(self, found: dict[str, str]) -> Layout:
        for name, inside in sorted(self.root.items()):
            if name not in found.values():
                path = f"{self.prefix}{name}"
                self.left_out += (
                    [path] if inside is None else _files(inside, f"{path}/")
                )
        splits: dict[str, dict[str, list[str]]] = {}
        for split in ("train", "val", "test"):
            if split in found:
                folder = self.root[found[split]]
                assert folder is not None
                splits[split] = self.classes(f"{found[split]}/", folder)
        train, *rest = splits
        for split in rest:
            more = sorted(set(splits[split]) - set(splits[train]))
            if more:
                raise ValueError(
                    "`source` must have the classes of "
                    f"{self.quoted(found[split])} in its train/ too. Received: "
                    f"{listed(more)}"
                )
        return self.labeled(splits, found)

    def classes(self, prefix: str, folder: Folder) -> dict[str, list[str]]:
        """The images of each class in a folder of a split."""
        found: dict[str, list[str]] = {}
        strays: list[str] = []
        for name, inside in sorted(folder.items()):
            path = f"{prefix}{name}"
            if inside is not None:
                for class_path, files in self.class_files(path, name, inside):
                    found.setdefault(class_name(class_path), []).extend(files)
            elif lies_beside(name):
                self.left_out.append(f"{self.prefix}{path}")
            else:
                strays.append(path)
        if strays:
            raise ValueError(
                "`source` must hold, in the folder of a split, nothing but "
                "images in the folders of classes. Received: "
                f"{listed([f'{self.name}/{self.prefix}{s}' for s in strays])}"
            )
        for name, files in found.items():
            if not files:
                raise ValueError(
                    "`source` must hold an image of each class. Received: "
                    f"{self.quoted(prefix + name)}, which is empty"
                )
        return found

    def class_files(
        self, path: str, name: str, folder: Folder
    ) -> Iterator[tuple[str, list[str]]]:
        """The images of a class folder, and of classes within it."""
        files = []
        deeper: list[tuple[str, list[str]]] = []
        for inner, inside in sorted(folder.items()):
            full = f"{self.prefix}{path}/{inner}"
            if inside is not None:
                if self.nested is None and any(_files(inside, "")):
                    raise ValueError(
                        "`nested` must say what folders within the folder of a "
                        "class are: 'top' for more images of that class, "
                        "'path' for classes of their own (or let there be "
                        "none). Received: nested=None and "
                        f"{self.quoted(f'{path}/{inner}')}"
                    )
                deeper += self.class_files(
                    f"{path}/{inner}", f"{name}/{inner}", inside
                )
            elif lies_beside(inner):
                self.left_out.append(full)
            else:
                files.append(full)
        if self.nested != "path":
            for _, more in deeper:
                files += more
            yield name, files
            return
        if files or not deeper:
            yield name, files
        yield from deeper

    def labeled(
        self,
        splits: dict[str, dict[str, list[str]]],
        folders: dict[str, str],
    ) -> Layout:
        names = sorted(splits["train"])
        numbers = {name: i for i, name in enumerate(names)}
        found = {}
        for split, classes in splits.items():
            start = len(self.prefix) + len(folders[split])
            paths = [path for files in classes.values() for path in files]
            found[split] = Labeled(
                paths,
                [numbers[n] for n, files in classes.items() for _ in files],
                [path[start:].lstrip("/") for path in paths],
            )
        return Layout(tuple(names), found, self.left_out)

    def by_csv(self, found: dict[str, str]) -> Layout | None:
        """Labels in CSV files beside folders of images, or in them."""
        tables = [
            path
            for path in _files(self.root, "")
            if path.lower().endswith(".csv") and path.count("/") <= 1
        ]
        if not tables:
            return None
        images = [p for p in _files(self.root, "") if is_image(p)]
        result = labels_csv.read_labels(
            self.quoted("")[1:-1],
            {path: self.read(f"{self.prefix}{path}") for path in tables},
            images,
            found,
        )
        if result is None:
            return None
        used = {path for pairs in result.values() for path, _ in pairs}
        self.left_out += [
            f"{self.prefix}{path}"
            for path in _files(self.root, "")
            if path not in used
        ]
        names = labels_csv.sorted_classes(
            {label for _, label in result["train"]}
        )
        numbers = {name: i for i, name in enumerate(names)}
        splits = {}
        for split in ("train", "val", "test"):
            if pairs := sorted(result.get(split, ())):
                more = sorted({label for _, label in pairs} - set(names))
                if more:
                    raise ValueError(
                        f"`source` must have the classes of {split!r} in its "
                        f"training images too. Received: {listed(more)}"
                    )
                splits[split] = Labeled(
                    [f"{self.prefix}{path}" for path, _ in pairs],
                    [numbers[label] for _, label in pairs],
                    [path for path, _ in pairs],
                )
        return Layout(tuple(names), splits, self.left_out)
