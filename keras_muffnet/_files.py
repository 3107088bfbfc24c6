"""Atomic writes of files."""

import contextlib
import csv
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence


@contextlib.contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Gives a path to write to, and renames it to `path` once all went well.

    The path given has the name of `path` and lies in a new folder beside it;
    a file or a folder may be written there. A file at `path` is replaced; a
    folder there is not.

    Args:
        path: where the file or folder is to be. Its parent folder is made.

    Raises:
        FileExistsError: before anything is written, if `path` is a folder.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise FileExistsError(f"{str(path)!r} is there already, and a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = pathlib.Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        yield aside / path.name
        os.replace(aside / path.name, path)
    except OSError as error:
        # A full disk does not say of itself where it was met. Without a number
        # the error is its own text, which a file name would replace.
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def locked(
    folder: str | os.PathLike[str], refusal: Exception | None = None
) -> Iterator[None]:
    """Keeps other processes that ask for the same from a folder.

    The lock ends with the process, however that ends.

    Args:
        folder: what to lock; it must exist.
        refusal: is raised at once, where another process has the folder. By
            default that process is waited for.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        wait = 0 if refusal is None else fcntl.LOCK_NB
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | wait)
        except BlockingIOError as error:
            if refusal is None:
                raise
            raise refusal from error
        yield
    finally:
        os.close(descriptor)


def read_csv(
    path: str | os.PathLike[str], fields: Sequence[str]
) -> list[dict[str, str]]:
    """Reads a table that `write_csv` wrote; no rows where there is no file.

    Args:
        path: the file.
        fields: names of the columns, in order.

    Raises:
        ValueError: if the file has other columns, or a row has.
    """
    if not os.path.exists(path):
        return []
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    names = list(reader.fieldnames or ())
    if names != list(fields) or any(
        None in row or None in row.values() for row in rows
    ):
        raise ValueError(
            f"{str(path)!r} must be a table of the columns "
            f"{', '.join(fields)}. Received: {', '.join(names) or 'nothing'}"
            + (", and rows of another length" if names == list(fields) else "")
        )
    return rows


def write_csv(
    path: str | os.PathLike[str],
    rows: Iterable[Mapping[str, object]],
    fields: Sequence[str],
) -> None:
    """Writes a table as CSV, aside and then renamed.

    Args:
        path: the file.
        rows: values by the names of columns.
        fields: names of the columns, in order.
    """
    with written_aside(path) as aside, open(aside, "w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_version(
    base_path: str | os.PathLike[str],
    write: Callable[[pathlib.Path], object],
) -> pathlib.Path:
    """Writes the next version of a model below a TF Serving base path.

    Args:
        base_path: folder of the versions; it may not exist yet.
        write: fills the folder that it is given. That one lies aside, under a
            name that no server takes for a version.

    Returns:
        The folder `base_path/N`. N is one above the largest version that is
        there when all is written, or 1: of two that write at a time each gets
        a number of its own.
    """
    base_path = pathlib.Path(base_path)
    base_path.mkdir(parents=True, exist_ok=True)
    aside = pathlib.Path(tempfile.mkdtemp(prefix=".writing-", dir=base_path))
    try:
        folder = aside / "version"
        folder.mkdir()
        write(folder)
        while True:
            version = base_path / str(1 + max(_versions(base_path), default=0))
            try:
                # Of an existing folder that is not empty it is an error.
                folder.rename(version)
                return version
            except OSError:
                if not version.exists():
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _versions(base_path: pathlib.Path) -> list[int]:
    names = [entry.name for entry in base_path.iterdir()]
    return [int(n) for n in names if n.isascii() and n.isdecimal()]
