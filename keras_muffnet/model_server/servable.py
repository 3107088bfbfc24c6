"""One version of a model, loaded and ready to run."""

import os
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_muffnet.model_server.batching import Batcher
from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.metrics import Metrics


@dataclass(frozen=True)
class Signature:
    """One way to call a model.

    Attributes:
        inputs: The dtype's name of each input, such as `"float32"`.
        outputs: The names of the outputs.
        run: Takes one array for each input, in order, and returns one array
            for each output. Strings are object arrays of `bytes`. Raises
            `ServingError`. Many threads may call it at a time.
    """

    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    run: Callable[..., list[np.ndarray]]


@dataclass(frozen=True)
class Servable:
    """One version of a model, whatever runs it.

    Attributes:
        name: The model's name.
        version: The version's number.
        signatures: The signatures that can be run, by name.
        signature_defs: Every signature as the JSON form of its `SignatureDef`.
        close: Cancels what is running, where that is possible, and frees the
            model.
    """

    name: str
    version: int
    signatures: Mapping[str, Signature]
    signature_defs: Mapping[str, Mapping[str, Any]]
    close: Callable[[], None]

    def signature(self, key: str) -> Signature:
        """Returns the signature named `key`, for a request in JSON.

        Raises:
            ServingError: The model has no such signature, or it takes no
                inputs.
        """
        if key not in self.signature_defs:
            raise invalid_argument(
                f'Serving signature name: "{key}" not found in signature def'
            )
        signature = self.signatures.get(key)
        if signature is None or not signature.inputs:
            raise invalid_argument(
                f"Failed to get input map for signature: {key}"
            )
        return signature

    def run(
        self, signature: Signature, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Runs the model once. Many threads may do so at a time.

        Args:
            signature: One of this servable's signatures.
            inputs: An array for each of its inputs, of that input's dtype and
                any shape. Strings are object arrays of `bytes`.

        Returns:
            An array for each output, in the order of the outputs' names.

        Raises:
            ServingError: An operation failed; it has that operation's code.
        """
        arrays = [inputs[name] for name in signature.inputs]
        values = signature.run(*arrays)
        return dict(zip(signature.outputs, values, strict=True))


def load(
    path: str | os.PathLike[str],
    name: str,
    version: int,
    *,
    runtime: str = "auto",
    batcher: Batcher | None = None,
    metrics: Metrics | None = None,
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

    Raises:
        ValueError: The folder holds no such model.
        ImportError: The runtime is not installed.
        ServingError: A warm-up request failed.
    """
    is_litert = runtime == "litert" or (
        runtime == "auto"
        and not pathlib.Path(path, "saved_model.pb").exists()
        and any(pathlib.Path(path).glob("*.tflite"))
    )
    # Here, because each needs a package that the other does not.
    if is_litert:
        from keras_muffnet.model_server.litert_runtime import load_litert

        return load_litert(path, name, version)
    from keras_muffnet.model_server.tensorflow_runtime import load_saved_model
    from keras_muffnet.model_server.warmup import warm_up

    servable = load_saved_model(path, name, version, batcher, metrics)
    try:
        warm_up(servable, path)
    except BaseException:
        servable.close()
        raise
    return servable
