"""Reads and decodes many images at a time: with TensorFlow, or in threads.

Both readers have the same methods, so that a feed need not know which it has.
"""

import concurrent.futures
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import keras
import numpy as np

from keras_muffnet._optional import load_optional
from keras_muffnet.data.decoding import decode_with_pillow
from keras_muffnet.data.examples import Examples
from keras_muffnet.data.folders import FileExamples
from keras_muffnet.data.geometry import Geometry
from keras_muffnet.data.graph_decoding import decode_with_tensorflow
from keras_muffnet.data.layout import SUFFIXES

if TYPE_CHECKING:
    import tensorflow as tf

# From a step to positions of images, and a crop for each or none.
Chunk = Callable[[int], tuple[np.ndarray, np.ndarray | None]]
Bad = dict[int, str]
WORKERS = os.cpu_count() or 1
_CHUNK = 256


def refuse_bad(examples: Examples, bad: Bad) -> None:
    """Raises if there are bad images, naming the first five."""
    if not bad:
        return
    shown = [
        f"{examples.name(position)!r} ({reason})"
        for position, reason in list(bad.items())[:5]
    ]
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    raise ValueError(
        "`source` must hold whole images, with labels of its classes (or pass "
        f"on_bad_image='skip'). Received: {len(bad)}: {', '.join(shown)}{more}"
    )


def progress_bar(count: int) -> "keras.utils.Progbar | None":
    """Returns a bar for many images on a terminal, and elsewhere None."""
    if count <= 2000 or not sys.stdout.isatty():
        return None
    return keras.utils.Progbar(count, unit_name="image")


class Reader:
    """What both readers share."""

    def scan(
        self,
        examples: Examples,
        geometry: Geometry,
        into: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Bad]:
        """Decodes every image once.

        Args:
            examples: the images.
            geometry: how they get their size.
            into: uint8 `(n, height, width, 3)` to be filled, or None.

        Returns:
            The labels, int64 `(n,)`, and what is wrong with which image. The
            pixels and labels of bad images are of no use.
        """
        labels = np.full(len(examples), -1, np.int64)
        bad = not_images(examples)
        good = np.setdiff1d(np.arange(len(examples)), [*bad])
        progress = progress_bar(len(good))
        steps = range(-(-len(good) // _CHUNK))

        def chunk(step: int) -> tuple[np.ndarray, None]:
            return good[step * _CHUNK : (step + 1) * _CHUNK], None

        for position, image, label in self.decoded(
            examples, geometry, chunk, steps, bad
        ):
            labels[position] = label
            if into is not None:
                into[position] = image
            if progress:
                progress.update(int(np.searchsorted(good, position)) + 1)
        return labels, dict(sorted(bad.items()))

    def decoded(
        self,
        examples: Examples,
        geometry: Geometry,
        chunk: Chunk,
        steps: range,
        bad: Bad,
    ) -> Iterator[tuple[int, np.ndarray, int]]:
        """Gives position, pixels and label of each good image, in order.

        What is wrong with the others is put into `bad`.
        """
        raise NotImplementedError


def not_images(examples: Examples) -> Bad:
    """Files that need not be opened to be refused."""
    if not isinstance(examples, FileExamples):
        return {}
    reason = f"its name ends in none of {', '.join(SUFFIXES)}"
    names = map(examples.name, range(len(examples)))
    return {
        position: reason
        for position, name in enumerate(names)
        if not name.lower().endswith(SUFFIXES)
    }


class PillowReader(Reader):
    """Decodes in threads, with Pillow. Needs no TensorFlow."""

    def __init__(self) -> None:
        load_optional("PIL.Image", "arrays")

    def decoded(
        self,
        examples: Examples,
        geometry: Geometry,
        chunk: Chunk,
        steps: range,
        bad: Bad,
    ) -> Iterator[tuple[int, np.ndarray, int]]:
        for positions, results in self._chunks(
            examples, geometry, chunk, steps
        ):
            for position, result in zip(positions, results, strict=True):
                if isinstance(result, Exception):
                    bad[int(position)] = str(result)
                else:
                    yield int(position), *result

    def batches(
        self, examples: Examples, geometry: Geometry, chunk: Chunk, steps: range
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Gives the images and labels of each step.

        Raises:
            ValueError: naming the bad images of the step.
        """
        for positions, results in self._chunks(
            examples, geometry, chunk, steps
        ):
            found = dict(zip(positions.tolist(), results, strict=True))
            wrong = {
                position: str(result)
                for position, result in found.items()
                if isinstance(result, Exception)
            }
            refuse_bad(examples, wrong)
            images, labels = zip(*results, strict=True)
            yield np.stack(images), np.array(labels, np.int64)

    def _chunks(
        self, examples: Examples, geometry: Geometry, chunk: Chunk, steps: range
    ) -> Iterator[tuple[np.ndarray, list[Any]]]:
        def decode(
            position: int, crop: np.ndarray | None
        ) -> tuple[np.ndarray, int] | Exception:
            try:
                encoded, label = examples.read(position)
                return decode_with_pillow(encoded, geometry, crop), label
            except (OSError, ValueError) as error:
                return error

        chunks = {}

        def tasks(step: int) -> list[tuple[int, np.ndarray | None]]:
            positions, crops = chunks[step] = chunk(step)
            return [
                (int(p), None if crops is None else crops[i])
                for i, p in enumerate(positions)
            ]

        worked = in_threads(decode, tasks, steps)
        for step, results in zip(steps, worked, strict=True):
            yield chunks.pop(step)[0], results


def in_threads(
    work: Callable[..., Any],
    tasks: Callable[[int], Sequence[tuple]],
    steps: range,
) -> Iterator[list[Any]]:
    """Does the tasks of each step in threads, two steps ahead.

    Args:
        work: called with what a task holds.
        tasks: of a step.
        steps: in their order.

    Returns:
        For each step the results of its tasks, in their order.
    """
    pool = concurrent.futures.ThreadPoolExecutor(WORKERS)
    ahead: list[list[concurrent.futures.Future]] = []
    try:
        for step in steps:
            ahead.append([pool.submit(work, *task) for task in tasks(step)])
            if len(ahead) == 3:
                yield [task.result() for task in ahead.pop(0)]
        for running in ahead:
            yield [task.result() for task in running]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class TensorFlowReader(Reader):
    """Decodes in a tf.data pipeline."""

    def __init__(self) -> None:
        load_optional("tensorflow", "tensorflow")

    def decoded(
        self,
        examples: Examples,
        geometry: Geometry,
        chunk: Chunk,
        steps: range,
        bad: Bad,
    ) -> Iterator[tuple[int, np.ndarray, int]]:
        images = self._images(examples, geometry, chunk, steps).batch(_CHUNK)
        expected = [int(p) for step in steps for p in chunk(step)[0]]
        arrived: set[int] = set()
        for positions, pixels, labels in with_options(
            images.prefetch(2)
        ).as_numpy_iterator():
            arrived.update(positions.tolist())
            yield from zip(positions.tolist(), pixels, labels, strict=True)
        for position in expected:
            if position not in arrived:
                bad[position] = _reason(examples, position, geometry)

    def dataset(
        self,
        examples: Examples,
        geometry: Geometry,
        chunk: Chunk,
        steps: range,
        batch_size: int,
    ) -> "tf.data.Dataset":
        """Gives a data set of the images and labels of each step.

        Iterating it raises `tf.errors.InvalidArgumentError`, whose text names
        them, where images are bad.
        """
        import tensorflow as tf

        def check(step: int, arrived: np.ndarray) -> np.ndarray:
            # An image that fails leaves a gap, and all after it move up.
            expected = chunk(step)[0]
            gone = np.setdiff1d(expected, arrived).tolist()
            wrong = {p: _reason(examples, p, geometry) for p in gone}
            refuse_bad(examples, wrong)
            return np.array(len(expected), np.int64)

        def checked(
            step: "tf.Tensor", batch: "tuple[tf.Tensor, ...]"
        ) -> "tuple[tf.Tensor, tf.Tensor]":
            positions, images, labels = batch
            count = tf.numpy_function(check, [step, positions], tf.int64)
            count.set_shape(())
            return images[:count], labels[:count]

        images = self._images(examples, geometry, chunk, steps)
        # So that a batch that lost images is one all the same, and checked.
        pixels = tf.zeros((*geometry.size, 3), tf.uint8)
        none = tf.constant(-1, tf.int64)
        filler = none, pixels, none
        fillers = tf.data.Dataset.from_tensors(filler).repeat(batch_size)
        images = images.concatenate(fillers)
        numbers = tf.data.Dataset.range(steps.start, steps.stop)
        dataset = tf.data.Dataset.zip(numbers, images.batch(batch_size))
        dataset = dataset.map(checked)
        return dataset.apply(
            tf.data.experimental.assert_cardinality(len(steps))
        )

    def _images(
        self, examples: Examples, geometry: Geometry, chunk: Chunk, steps: range
    ) -> "tf.data.Dataset":
        """Gives position, pixels and label; passes over bad images."""
        import tensorflow as tf

        crops_too = bool(steps) and chunk(steps.start)[1] is not None
        types = (tf.int64, tf.float64) if crops_too else (tf.int64,)

        def positions(step: "tf.Tensor") -> "tuple[tf.Tensor, ...]":
            def numbers(step: int) -> list[np.ndarray]:
                found, crops = chunk(step)
                return [found] if crops is None else [found, crops]

            given = tf.numpy_function(numbers, [step], types)
            given[0].set_shape((None,))
            if crops_too:
                given[1].set_shape((None, None, 4))
            return tuple(given)

        read = _read_with_tensorflow(examples)

        def decode(
            position: "tf.Tensor", crop: "tf.Tensor | None" = None
        ) -> "tuple[tf.Tensor, tf.Tensor, tf.Tensor]":
            encoded, label = read(position)
            return (
                position,
                decode_with_tensorflow(encoded, geometry, crop),
                label,
            )

        dataset = tf.data.Dataset.range(steps.start, steps.stop)
        dataset = dataset.map(positions).unbatch()
        return dataset.map(decode, num_parallel_calls=WORKERS).ignore_errors()


def _read_with_tensorflow(examples: Examples) -> Callable:
    import tensorflow as tf

    if type(examples) is FileExamples:
        paths = tf.constant([os.fsencode(path) for path in examples.paths])
        labels = tf.constant(examples.labels, tf.int64)
        return lambda at: (tf.io.read_file(paths[at]), labels[at])

    def read(position: int) -> tuple[np.ndarray, np.ndarray]:
        encoded, label = examples.read(int(position))
        # NumPy's own strings would lose zeros at the end.
        return np.array(encoded, object), np.array(label, np.int64)

    def read_one(position: "tf.Tensor") -> "list[tf.Tensor]":
        given = tf.numpy_function(read, [position], (tf.string, tf.int64))
        for tensor in given:
            tensor.set_shape(())
        return given

    return read_one


def _reason(examples: Examples, position: int, geometry: Geometry) -> str:
    """What is wrong with an image that TensorFlow passed over."""
    import tensorflow as tf

    try:
        encoded, _ = examples.read(position)
        if importlib.util.find_spec("PIL") is not None:
            # It has the shorter texts, the same without TensorFlow.
            decode_with_pillow(encoded, geometry)
        decode_with_tensorflow(tf.constant(encoded), geometry)
    except (OSError, ValueError) as error:
        return str(error)
    except tf.errors.OpError as error:
        return told_by_tensorflow(error)
    return "it could not be read at first"


def told_by_tensorflow(error: Exception) -> str:
    """What an error of TensorFlow says, in a line, without its graph.

    An error that Python raised in a `tf.data` pipeline, such as that of a bad
    image, comes as its own text again.
    """
    text = str(getattr(error, "message", error))
    if found := re.search(r"^(?:\w*Error): (.*)", text, re.MULTILINE):
        return found[1].strip()
    first = text.partition(" [Op:")[0].rpartition("}} ")[2]
    return " ".join(first.partition("\n")[0].split())


def make_reader(
    backend: str | None = None,
) -> TensorFlowReader | PillowReader:
    """Makes the reader of a `backend`; see `make_feed`."""
    if backend is None:
        has_tensorflow = importlib.util.find_spec("tensorflow") is not None
        backend = "tf.data" if has_tensorflow else "arrays"
    if backend == "tf.data":
        return TensorFlowReader()
    if backend == "arrays":
        return PillowReader()
    raise ValueError(
        "`backend` must be 'tf.data', 'arrays' or None. Received: "
        f"backend={backend!r}"
    )


def with_options(dataset: "tf.data.Dataset") -> "tf.data.Dataset":
    """Turns autotuning off, which on two cores held up batches for seconds."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
