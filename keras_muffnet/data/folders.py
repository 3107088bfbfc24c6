"""Labelled images in folders and archives, a folder a class."""

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

from keras_muffnet.data.examples import Examples
from keras_muffnet.data.examples import Source
from keras_muffnet.data.examples import listed

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


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


def open_folder(root: str) -> Source:
    """Opens a folder of splits."""
    tree = folder_tree(root)

    def split(name: str) -> Examples:
        files, labels, _ = tree.files(name)
        return FileExamples(files, labels)

    return Source(root, tuple(tree.class_names("train")), split)


def open_archive(path: str) -> Source:
    """Reads an archive of splits into memory, still encoded."""
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
