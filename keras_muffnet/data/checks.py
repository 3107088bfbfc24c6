"""What looks wrong with images though all can be read: warned of."""

import itertools
import warnings
from collections.abc import Mapping

import numpy as np

from keras_muffnet.data.decoding import image_sizes
from keras_muffnet.data.examples import Examples
from keras_muffnet.data.examples import listed
from keras_muffnet.data.folders import FileExamples

# Of sets with more images, no two splits are compared.
MOST = 100_000
# How many images are measured: some evenly, and as many of the largest files.
_MEASURED = 50
_FAR_LARGER = 100


def warn_of_images(splits: Mapping[str, Examples]) -> None:
    """Warns of the same image in two splits and of one far larger than others.

    Looks at folders and archives alone. Images are the same if their files
    are, to the byte. Large is an image of 100 times the pixels that others
    have; of the files, the largest and some others are measured.

    Args:
        splits: the examples by the names of their splits.
    """
    files = {
        name: examples
        for name, examples in splits.items()
        if isinstance(examples, FileExamples)
    }
    for (first, one), (second, other) in itertools.combinations(
        files.items(), 2
    ):
        if one.paths[0] == other.paths[0]:
            continue  # one split under two names
        if len(one) + len(other) <= MOST and (same := _same(one, other)):
            warnings.warn(
                f"the same images are in {first!r} and {second!r}: "
                f"{listed(same)}",
                stacklevel=3,
            )
    for name, examples in files.items():
        if large := _far_larger(examples):
            warnings.warn(
                f"images in {name!r} have {_FAR_LARGER} times as many pixels "
                f"as others: {listed(large)}",
                stacklevel=3,
            )


def _same(one: FileExamples, other: FileExamples) -> list[str]:
    """The images of the second that are in the first, too."""
    sizes = [
        [examples.size(i) for i in range(len(examples))]
        for examples in (one, other)
    ]
    both = set(sizes[0]) & set(sizes[1])
    # Few files of a size end alike; those alone are compared.
    ends: dict[tuple[int, bytes], list[int]] = {}
    for i, size in enumerate(sizes[0]):
        if size in both:
            ends.setdefault((size, one.end(i)), []).append(i)
    return [
        other.name(i)
        for i, size in enumerate(sizes[1])
        if size in both
        and any(
            one.read(k)[0] == other.read(i)[0]
            for k in ends.get((size, other.end(i)), ())[:100]
        )
    ]


def _far_larger(examples: FileExamples) -> list[str]:
    count = len(examples)
    some = np.unique(np.linspace(0, count - 1, _MEASURED).astype(int))
    sizes = np.array([examples.size(i) for i in range(count)])
    largest = np.argsort(-sizes, kind="stable")[:_MEASURED]
    pixels: dict[int, int] = {}
    for i in np.union1d(some, largest).tolist():
        try:
            height, width = image_sizes(examples.read(i)[0])[0]
        except ImportError:
            return []
        except (OSError, ValueError):
            continue  # reported where it is decoded
        pixels[i] = height * width
    usual = [pixels[i] for i in some.tolist() if i in pixels]
    if not usual:
        return []
    bound = _FAR_LARGER * np.median(usual)
    return [examples.name(i) for i, n in pixels.items() if n >= bound]
