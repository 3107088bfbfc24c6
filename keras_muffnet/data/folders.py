"""Labeled images in folders and archives."""

import contextlib
import functools
import lzma
import os
import posixpath
import tarfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from keras_muffnet.data.examples import Examples
from keras_muffnet.data.examples import Source
from keras_muffnet.data.examples import file_stamp
from keras_muffnet.data.examples import listed
from keras_muffnet.data.examples import missing_split
from keras_muffnet.data.layout import Layout
from keras_muffnet.data.layout import arrange
from keras_muffnet.data.layout import is_hidden

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")

# Bytes at the end of files that are compared first.
_END = 512


class FileExamples(Examples):
    """Images that are files."""

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        keys: Sequence[str] | None = None,
    ):
        self.paths = paths
        self.labels = labels
        self.keys = keys or paths

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, position: int) -> str:
        return self.paths[position]

    def key(self, position: int) -> str:
        return self.keys[position]

    def size(self, position: int) -> int:
        """How many bytes the image has, encoded."""
        return os.path.getsize(self.paths[position])

    def end(self, position: int) -> bytes:
        """The last bytes of the image, encoded."""
        with open(self.paths[position], "rb") as file:
            file.seek(max(0, self.size(position) - _END))
            return file.read()

    def read(self, position: int) -> tuple[bytes, int]:
        with open(self.paths[position], "rb") as file:
            return file.read(), self.labels[position]

    def label(self, position: int) -> int:
        return self.labels[position]

    def stamp(self, position: int) -> str:
        return file_stamp(self.paths[position])

    def take(self, positions: np.ndarray) -> "FileExamples":
        return FileExamples(*self._taken(positions))

    def _taken(
        self, positions: np.ndarray
    ) -> tuple[list[str], list[int], list[str]]:
        return (
            [self.paths[i] for i in positions],
            [self.labels[i] for i in positions],
            [self.keys[i] for i in positions],
        )


class ArchiveExamples(FileExamples):
    """Images read out of an archive into memory, still encoded."""

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        keys: Sequence[str],
        files: Mapping[str, bytes],
    ):
        super().__init__(paths, labels, keys)
        self.files = files

    def size(self, position: int) -> int:
        return len(self.files[self.paths[position]])

    def end(self, position: int) -> bytes:
        return self.files[self.paths[position]][-_END:]

    def read(self, position: int) -> tuple[bytes, int]:
        return self.files[self.paths[position]], self.labels[position]

    def stamp(self, position: int) -> str:
        return str(zlib.crc32(self.files[self.paths[position]]))

    def take(self, positions: np.ndarray) -> "ArchiveExamples":
        return ArchiveExamples(*self._taken(positions), self.files)


def open_folder(root: str, nested: str | None = None) -> Source:
    """Opens a folder of splits, of classes, or of images and a CSV file."""
    root = os.path.normpath(root)
    names, hidden = list_folder(root)

    def read(name: str) -> bytes:
        with open(f"{root}/{name}", "rb") as file:
            return file.read()

    layout = arrange(root, names, read, nested)
    return _source(root, layout, hidden, FileExamples)


def list_folder(root: str) -> tuple[list[str], list[str]]:
    """Lists a folder with all that is in it.

    Returns:
        The files, from the folder and with slashes, of empty folders their
        name and a slash; and what was passed over: hidden ones, and folders
        that are links to one around them.
    """
    names: list[str] = []
    passed_over: list[str] = []

    def walk(folder: str, prefix: str, around: tuple[str, ...]) -> None:
        visible = False
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if is_hidden(entry.name):
                passed_over.append(name)
                continue
            visible = True
            if not entry.is_dir():
                names.append(name)
                continue
            # Two folders may be links to each other.
            real = os.path.realpath(entry.path)
            if real in around:
                passed_over.append(name)
            else:
                walk(entry.path, f"{name}/", (*around, real))
        if prefix and not visible:
            names.append(prefix)

    walk(root, "", (os.path.realpath(root),))
    return names, passed_over


def open_archive(path: str, nested: str | None = None) -> Source:
    """Reads an archive of such a folder into memory, still encoded."""
    hidden: list[str] = []
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    try:
        for name, read in _archived(path):
            parts = [part for part in name.split("/") if part not in ("", ".")]
            name = "/".join(parts)
            if any(map(is_hidden, parts)):
                hidden.append(name)
            elif isinstance(read, str):
                links[name] = read
            else:
                files[name] = read()
    except (
        OSError,
        EOFError,
        NotImplementedError,  # a compression that is not known
        RuntimeError,  # a password
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"`source` must be a whole archive. Received: {path!r}, which "
            f"cannot be read: {error}"
        ) from None
    for name in links:
        target = links[name]
        for _ in links:
            if target not in links:
                break
            target = links[target]
        if target not in files:
            raise ValueError(
                "`source` must hold the files that its links name. Received: "
                f"{path!r}, with {name!r}, a link to {links[name]!r}, which is "
                "no file in it"
            )
        files[name] = files[target]
    layout = arrange(path, list(files), files.__getitem__, nested)
    named = {f"{path}/{name}": content for name, content in files.items()}

    def make(
        paths: Sequence[str], labels: Sequence[int], keys: Sequence[str]
    ) -> Examples:
        return ArchiveExamples(paths, labels, keys, named)

    return _source(path, layout, hidden, make)


def _archived(path: str) -> Iterator[tuple[str, Callable[[], bytes] | str]]:
    """The names of files in an archive, each with what reads it.

    Of a link that is the path in the archive that it names.
    """
    if path.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as zipped:
            for entry in zipped.infolist():
                name = entry.filename
                if not entry.flag_bits & 0x800:
                    # Not marked as UTF-8, which it is all the same from a Mac
                    # and from Linux.
                    with contextlib.suppress(UnicodeError):
                        name = name.encode("cp437").decode()
                # Some programs on Windows write its separators.
                name = name.replace("\\", "/")
                if not name.endswith("/"):
                    yield name, functools.partial(zipped.read, entry)
        return
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            name = member.name.replace("\\", "/")
            if member.islnk():
                yield name, posixpath.normpath(member.linkname)
                continue
            if member.issym():
                folder = posixpath.dirname(name)
                target = posixpath.join(folder, member.linkname)
                yield name, posixpath.normpath(target)
                continue
            content = archive.extractfile(member)
            if content is not None:
                yield name, content.read


def _source(
    root: str,
    layout: Layout,
    hidden: Sequence[str],
    make: Callable[[list[str], list[int], list[str]], Examples],
) -> Source:
    """Makes a source of what was found, and warns of what looks wrong."""
    if left_out := [*layout.left_out, *hidden]:
        kinds = Counter(os.path.basename(name) for name in left_out)
        shown = [
            f"{name!r}" if count == 1 else f"{name!r} ({count} times)"
            for name, count in kinds.most_common(5)
        ]
        warnings.warn(
            f"{root!r}: left out {len(left_out)} files that are not images of "
            f"a class: {', '.join(shown)}{', ...' if len(kinds) > 5 else ''}",
            stacklevel=5,
        )
    names = layout.class_names
    if len(names) == 1:
        warnings.warn(
            f"{root!r} has one class only, {names[0]!r}", stacklevel=5
        )
    for name, (_, labels, _) in layout.splits.items():
        present = set(labels)
        missing = [n for i, n in enumerate(names) if i not in present]
        if missing:
            warnings.warn(
                f"{root!r}: no image in {name!r} of {listed(missing)}",
                stacklevel=5,
            )

    def split(name: str) -> Examples:
        if name not in layout.splits:
            raise missing_split(root, [*layout.splits], name)
        paths, labels, keys = layout.splits[name]
        return make([f"{root}/{path}" for path in paths], labels, keys)

    return Source(root, names, tuple(layout.splits), split)
