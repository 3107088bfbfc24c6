"""Loads a version of a model, by the runtime that its folder asks for."""

import os
import pathlib

from keras_muffnet.model_server.batching import Batcher
from keras_muffnet.model_server.metrics import Metrics
from keras_muffnet.model_server.options import LoadOptions
from keras_muffnet.model_server.servable import Servable


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
            file, `"auto"` for a SavedModel where there is one.
        batcher: Joins requests of several callers, if given.
        metrics: Counts what TensorFlow runs, if given.
        options: How a SavedModel is loaded.

    Raises:
        ValueError: The folder holds no such model.
        ImportError: The runtime is not installed.
        ServingError: A warm-up request failed.
    """
    is_litert = runtime == "litert" or (
        runtime == "auto"
        and (
            options.prefer_tflite
            or not pathlib.Path(path, "saved_model.pb").exists()
        )
        and any(pathlib.Path(path).glob("*.tflite"))
    )
    # Here, because each needs a package that the other does not.
    if is_litert:
        from keras_muffnet.model_server.litert_runtime import load_litert

        return load_litert(path, name, version)
    from keras_muffnet.model_server.tensorflow_runtime import load_saved_model
    from keras_muffnet.model_server.warmup import warm_up

    servable = load_saved_model(path, name, version, batcher, metrics, options)
    try:
        if options.warm_up:
            warm_up(servable, path, options.warm_up_iterations)
    except BaseException:
        servable.close()
        raise
    return servable
