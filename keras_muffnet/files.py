"""Files that are either whole or not there."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator


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
    finally:
        shutil.rmtree(aside, ignore_errors=True)
