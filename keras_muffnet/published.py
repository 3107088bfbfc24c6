"""Weights that ship with the package: what they fit, and their files.

`keras_muffnet/weights/` holds, for each network, its weights in float16, a
model card, the log of its run and the picture of that; and two catalogs, of
classifiers and of detectors, which `tools/publish_weights.py` writes.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib

FOLDER = pathlib.Path(__file__).parent / "weights"
CATALOG = "catalog.json"
DETECTORS = "detectors.json"


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Weights of one name, for one or more networks.

    Attributes:
        class_names: a name for each class, in the order of the scores.
        stem: what the networks start with; see `keras_muffnet.MuffNet`.
        size: height and width in pixels of the images they were trained on.
        sha256: checksum of each network's file, by its width multiplier.
        crop: how images get that size; see `preprocessing.Preprocessing`.
    """

    class_names: tuple[str, ...]
    stem: str
    size: int
    sha256: dict[float, str]
    crop: float | None = None


@dataclasses.dataclass(frozen=True)
class PublishedDetector:
    """A detector, MuffNet with SSD's head.

    Attributes:
        class_names: a name for each class, in order.
        size: height and width in pixels of its images.
        alpha: width multiplier of MuffNet.
        extra_filters: see `keras_muffnet.detection.SSD`.
        scales: the same.
        sha256: checksum of its file.
    """

    class_names: tuple[str, ...]
    size: int
    alpha: float
    extra_filters: tuple[int, ...]
    scales: tuple[float, ...]
    sha256: str


def published_weights() -> dict[str, PublishedWeights]:
    """Returns all weights of classifiers that ship, by name.

    ```python
    from keras_muffnet import published_weights

    published_weights()["cifar10"].class_names[3]  # 'cat'
    ```
    """
    return _read_catalog(FOLDER / CATALOG)


@functools.cache
def _read_catalog(path: pathlib.Path) -> dict[str, PublishedWeights]:
    return {
        name: PublishedWeights(
            tuple(entry["class_names"]),
            entry["stem"],
            entry["size"],
            {float(alpha): sha for alpha, sha in entry["sha256"].items()},
            entry.get("crop"),
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
    return _checked(file_stem(name, alpha), sha256[alpha])


def published_detectors() -> dict[str, PublishedDetector]:
    """Returns all detectors that ship, by name.

    `keras_muffnet.detection.pretrained_ssd` builds one.

    ```python
    from keras_muffnet import published_detectors

    published_detectors()["bccd"].class_names  # ('Platelets', 'RBC', 'WBC')
    ```
    """
    return _read_detectors(FOLDER / DETECTORS)


@functools.cache
def _read_detectors(path: pathlib.Path) -> dict[str, PublishedDetector]:
    return {
        name: PublishedDetector(
            tuple(entry["class_names"]),
            entry["size"],
            entry["alpha"],
            tuple(entry["extra_filters"]),
            tuple(entry["scales"]),
            entry["sha256"],
        )
        for name, entry in json.loads(path.read_text()).items()
    }


def detector_file(name: str) -> pathlib.Path:
    """Returns the weights of a published detector, which it has checked.

    Args:
        name: one of `published_detectors()`.

    Raises:
        OSError: if the file is damaged or missing.
    """
    return _checked(name, published_detectors()[name].sha256)


def _checked(stem: str, sha256: str) -> pathlib.Path:
    path = FOLDER / f"{stem}.weights.h5"
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise OSError(
            f"The published weights {str(path)!r} are damaged: their SHA-256 "
            f"is not {sha256}. Install the package again"
        )
    return path


def file_stem(name: str, alpha: float) -> str:
    """Returns what the names of the files of a network start with."""
    return f"{name}_{float(alpha)}"
