"""Loads a version of a model, by the runtime that its folder asks for."""

import dataclasses
import functools
import importlib.util
import io
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_muffnet.model_server.batching import Batcher
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.metrics import Metrics
from keras_muffnet.model_server.options import LoadOptions
from keras_muffnet.model_server.servable import Servable
from keras_muffnet.model_server.servable import Signature

logger = logging.getLogger(__name__)

# Of the largest number of an answer, what another runtime may differ by.
_TOLERANCE = 1e-3


def load(
    path: str | os.PathLike[str],
    name: str,
    version: int,
    *,
    runtime: str = "auto",
    batcher: Batcher | None = None,
    metrics: Metrics | None = None,
    options: LoadOptions = LoadOptions(),  # noqa: B008 (frozen)
) -> Servable:
    """Loads a version, and runs its warm-up requests.

    Args:
        path: The version's folder. It is only read.
        name: The model's name.
        version: The version's number.
        runtime: `"tensorflow"` for a SavedModel, `"litert"` for a `.tflite`
            file, `"auto"` for what there is. Of a version that holds both
            LiteRT runs the signatures and the shapes that it can, if it gives
            the same answers.
        batcher: Joins requests of several callers, if given.
        metrics: Counts what TensorFlow runs, if given.
        options: How a SavedModel is loaded.

    Raises:
        ValueError: The folder holds no such model.
        ImportError: The runtime is not installed.
        ServingError: A warm-up request failed.
    """
    folder = pathlib.Path(path)
    has_saved_model = (folder / "saved_model.pb").exists()
    has_file = any(folder.glob("*.tflite"))
    alone = has_file and (options.prefer_tflite or not has_saved_model)
    if runtime == "auto" and has_file and not alone:
        return _load_both(path, name, version, batcher, metrics, options)
    # Here, because each needs a package that the other does not.
    if runtime == "litert" or (runtime == "auto" and alone):
        from keras_muffnet.model_server.litert_runtime import load_litert

        return load_litert(path, name, version)
    from keras_muffnet.model_server.tensorflow_runtime import load_saved_model
    from keras_muffnet.model_server.warmup import warm_up

    own = None
    if batcher is not None and options.batching_per_version:
        own = batcher = _read_batcher(folder, batcher, metrics)
    try:
        servable = load_saved_model(
            path, name, version, batcher, metrics, options
        )
    except BaseException:
        if own is not None:
            own.close()
        raise
    if own is not None:
        close = functools.partial(_close_both, own, servable)
        servable = dataclasses.replace(servable, close=close)
    try:
        if options.warm_up:
            warm_up(servable, path, options.warm_up_iterations)
    except BaseException:
        servable.close()
        raise
    return servable


def _read_batcher(
    folder: pathlib.Path, common: Batcher, metrics: Metrics | None
) -> Batcher | None:
    """Makes a version's own batcher, if it is to have one."""
    from keras_muffnet.model_server.configuration import (
        read_batching_parameters,
    )

    path = folder / "batching_params.pbtxt"
    if not path.exists():
        return None
    parameters = dataclasses.replace(
        read_batching_parameters(path),
        # As TensorFlow Serving, whose models share the threads.
        num_batch_threads=common.parameters.num_batch_threads,
        thread_pool_name=common.parameters.thread_pool_name,
    )
    return Batcher(parameters, metrics)


def _close_both(batcher: Batcher, servable: Servable) -> None:
    batcher.close()
    servable.close()


def _load_both(
    path: str | os.PathLike[str],
    name: str,
    version: int,
    batcher: Batcher | None,
    metrics: Metrics | None,
    options: LoadOptions,
) -> Servable:
    """Loads a SavedModel, and for what it can the `.tflite` file beside it."""
    if importlib.util.find_spec("tensorflow") is None:
        return load(path, name, version, runtime="litert")
    saved = load(
        path,
        name,
        version,
        runtime="tensorflow",
        batcher=batcher,
        metrics=metrics,
        options=options,
    )
    try:
        litert = load(path, name, version, runtime="litert")
    except (ImportError, ValueError) as error:
        logger.info(
            "%s, version %s, runs by TensorFlow: %s", name, version, error
        )
        return saved
    except BaseException:
        saved.close()
        raise
    signatures = dict(saved.signatures)
    for key, fast in litert.signatures.items():
        slow = signatures.get(key)
        shape = _input_shape(litert.signature_defs[key])
        if slow is not None and _answer_alike(fast, slow, shape):
            signatures[key] = _prefer(fast, slow, shape)
            logger.info("%s, version %s: LiteRT runs %s", name, version, key)

    def close() -> None:
        litert.close()
        saved.close()

    return dataclasses.replace(saved, signatures=signatures, close=close)


def _input_shape(signature_def: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of the one input, -1 for what is free."""
    (tensor,) = signature_def["inputs"].values()
    return tuple(int(dim["size"]) for dim in tensor["tensor_shape"]["dim"])


def _fits(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    return array.ndim == len(shape) and all(
        size == n or (n == -1 and size)
        for size, n in zip(array.shape, shape, strict=True)
    )


def _prefer(
    fast: Signature, slow: Signature, shape: tuple[int, ...]
) -> Signature:
    """Runs `fast`, or `slow` for inputs that only that may take."""

    def run(array: np.ndarray) -> list[np.ndarray]:
        return (fast if _fits(array, shape) else slow).run(array)

    return dataclasses.replace(slow, run=run)


def _answer_alike(
    fast: Signature, slow: Signature, shape: tuple[int, ...]
) -> bool:
    """Whether two signatures have one form, and one answer to one image.

    A file that somebody put there may scale pixels otherwise, lack the
    softmax, or be quantized.
    """
    if fast.inputs != slow.inputs or fast.outputs != slow.outputs:
        return False
    rng = np.random.default_rng(0)
    if "string" in fast.inputs.values():
        from PIL import Image

        file = io.BytesIO()
        noise = rng.integers(0, 256, (32, 48, 3), np.uint8)
        Image.fromarray(noise).save(file, "PNG")
        array = np.array([file.getvalue()], object)
    else:
        array = rng.uniform(-1, 1, [max(n, 1) for n in shape])
        array = array.astype(np.float32)
    try:
        answers = zip(fast.run(array), slow.run(array), strict=True)
    except ServingError:
        return False
    return all(
        a.shape == b.shape
        # Names of classes may change places where their scores are equal.
        and (
            a.dtype == object
            or np.allclose(a, b, rtol=0, atol=_TOLERANCE * np.abs(b).max())
        )
        for a, b in answers
    )
