"""Weights that ship with the package: what they fit, and their files.

`keras_muffnet/weights/` holds, for each network, its weights in float16, a
model card, the log of its run and the picture of that; and `catalogue.json`,
which `tools/publish_weights.py` writes.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib

FOLDER = pathlib.Path(__file__).parent / "weights"
CATALOGUE = "catalogue.json"


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Weights of one name, for one or more networks.

    Attributes:
        class_names: a name for each class, in the order of the scores.
        stem: what the networks start with; see `keras_muffnet.MuffNet`.
        size: height and width in pixels of the images they were trained on.
        sha256: checksum of each network's file, by its width multiplier.
    """

    class_names: tuple[str, ...]
    stem: str
    size: int
    sha256: dict[float, str]


def published_weights() -> dict[str, PublishedWeights]:
    """Returns all weights that ship, by name."""
    return _read_catalogue(FOLDER / CATALOGUE)


@functools.cache
def _read_catalogue(path: pathlib.Path) -> dict[str, PublishedWeights]:
    return {
        name: PublishedWeights(
            tuple(entry["class_names"]),
            entry["stem"],
            entry["size"],
            {float(alpha): sha for alpha, sha in entry["sha256"].items()},
        )
        for name, entry in json.loads(path.read_text()).items()
    }


def weights_file(name: str, alpha: float) -> pathlib.Path:
    """Returns the file of published weights, which it has checked.

    Args:
        name: one of `published_weights()`.
        alpha: width multiplier of the network.

    Raises:
        ValueError: if there are none of that name for that network.
        OSError: if the file is damaged or missing.
    """
    sha256 = published_weights()[name].sha256
    if alpha not in sha256:
        raise ValueError(
            f"`alpha` must be one of {', '.join(map(str, sorted(sha256)))} for "
            f"the published weights {name!r}. Received: alpha={alpha!r}"
        )
    path = FOLDER / f"{file_stem(name, alpha)}.weights.h5"
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256[alpha]:
        raise OSError(
            f"The published weights {str(path)!r} are damaged: their SHA-256 "
            f"is not {sha256[alpha]}. Install the package again"
        )
    return path


def file_stem(name: str, alpha: float) -> str:
    """Returns what the names of the files of a network start with."""
    return f"{name}_{float(alpha)}"
