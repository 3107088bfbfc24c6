"""Checkpoints of a run: written atomically, and damage is detected."""

import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_muffnet._files import written_aside

Arrays = dict[str, np.ndarray]
_PROGRESS = "progress"
_DIGEST_SIZE = 32


class Checkpoint(NamedTuple):
    """A moment of a run.

    Attributes:
        epoch: number of whole epochs done.
        step: number of steps done in the next one.
        progress: what else there is to know, as JSON has it.
        arrays: values of the variables.
    """

    epoch: int
    step: int
    progress: dict[str, Any]
    arrays: Arrays


class Checkpoints:
    """The last checkpoints of a run, in a folder of their own.

    A checkpoint is what `numpy.savez` writes, and behind it its SHA-256. It
    appears when it is whole.

    Args:
        folder: of the checkpoints; it may not exist yet. What a killed run
            left half written there is removed.
        keep: how many of the last are kept.
    """

    def __init__(self, folder: pathlib.Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        for aside in folder.glob(".writing-*"):
            shutil.rmtree(aside, ignore_errors=True)

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, then removes those that are too many.

        Raises:
            OSError: if it cannot be written. The earlier ones stay.
        """
        content = encode(checkpoint)
        name = f"{checkpoint.epoch:05d}-{checkpoint.step:07d}.checkpoint"
        path = self.folder / name
        with written_aside(path) as aside, open(aside, "wb") as file:
            file.write(content)
            file.write(hashlib.sha256(content).digest())
            file.flush()
            # On the disk before the older ones go.
            os.fsync(file.fileno())
        for old in self._files()[: -self.keep]:
            old.unlink()

    def load_last(self, report: Callable[[str], object]) -> Checkpoint | None:
        """Reads the last whole checkpoint; None if the run has none yet.

        Args:
            report: is called with each damaged one. It is renamed, to end in
                `.damaged`.

        Raises:
            ValueError: if there are some, and all are damaged.
        """
        files = self._files()
        damaged = []
        while files:
            path = files.pop()
            try:
                checkpoint = _read(path)
            except (OSError, ValueError) as error:
                report(f"Damaged checkpoint passed over: {path}: {error}")
                damaged.append(path)
                continue
            # Out of the way of the ones to come.
            for path in damaged:
                path.replace(path.with_suffix(".damaged"))
            return checkpoint
        if damaged:
            raise ValueError(
                "`output` must hold a whole checkpoint or none. Received: "
                f"{str(self.folder)!r}, whose {len(damaged)} are all damaged; "
                "to begin anew, give another folder"
            )
        return None

    def any(self) -> bool:
        """Whether there is a checkpoint, whole or damaged."""
        return bool(self._files())

    def _files(self) -> list[pathlib.Path]:
        return sorted(self.folder.glob("*.checkpoint"))


def _read(path: pathlib.Path) -> Checkpoint:
    whole = path.read_bytes()
    content, digest = whole[:-_DIGEST_SIZE], whole[-_DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum differs")
    return decode(content)


def encode(checkpoint: Checkpoint) -> bytes:
    """Makes a string of bytes of a checkpoint."""
    epoch, step, progress, arrays = checkpoint
    text = json.dumps({"epoch": epoch, "step": step, **progress})
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        **{_PROGRESS: np.frombuffer(text.encode(), np.uint8)},
        **arrays,
    )
    return buffer.getvalue()


def decode(content: bytes) -> Checkpoint:
    """Reads what `encode` made."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    progress = json.loads(arrays.pop(_PROGRESS).tobytes())
    return Checkpoint(
        progress.pop("epoch"), progress.pop("step"), progress, arrays
    )


def collect_variables(model: keras.Model) -> Arrays:
    """Copies the variables of a compiled model and of its optimizer."""
    return {
        f"{group}-{number}": ops.convert_to_numpy(variable)
        for group, variables in _variables(model).items()
        for number, variable in enumerate(variables)
    }


def assign_variables(model: keras.Model, arrays: Arrays) -> None:
    """Gives a model like that of `collect_variables` the values from there."""
    for group, variables in _variables(model).items():
        for number, variable in enumerate(variables):
            variable.assign(arrays[f"{group}-{number}"])


def _variables(model: keras.Model) -> dict[str, list[keras.Variable]]:
    return {"model": model.variables, "optimizer": model.optimizer.variables}
