"""One version of a SavedModel, loaded and ready to run."""

import os
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument


@dataclass(frozen=True)
class Signature:
    """One way to call a model.

    Attributes:
        inputs: The dtype's name of each input, such as `"float32"`.
        outputs: The names of the outputs.
        run: Takes one array for each input, in order, and returns one value
            for each output.
    """

    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    run: Callable[..., list[Any]]


class Servable:
    """One version of a SavedModel, in a graph and a session of its own.

    The v1 loader is used because a session raises the graph's own error, with
    its code, and does not compare a request with the signature's static
    shapes: a fully convolutional network takes images of any size.

    Args:
        path: The version's folder. It is only read.
        name: The model's name.
        version: The version's number.

    Attributes:
        signature_defs: Every signature as the JSON form of its `SignatureDef`.

    Raises:
        ValueError: The folder holds no SavedModel with the tag `serve`.
    """

    def __init__(self, path: str | os.PathLike, name: str, version: int):
        self.name = name
        self.version = version
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with self._session.graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(
                    self._session, [tf.saved_model.SERVING], os.fspath(path)
                )
            # What has no inputs is an initializer, which has run.
            self._signatures = {
                key: _make_signature(self._session, signature_def)
                for key, signature_def in meta_graph.signature_def.items()
                if signature_def.inputs
            }
        except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
            self._session.close()
            raise ValueError(
                f"Expected a SavedModel with the tag 'serve' in {path}. "
                f"Received: {' '.join(str(error).split())}"
            ) from error
        self.signature_defs = {
            key: json_format.MessageToDict(
                signature_def,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )
            for key, signature_def in meta_graph.signature_def.items()
        }

    def signature(self, key: str) -> Signature:
        """Returns the signature named `key`.

        Raises:
            ServingError: The model has no such signature, or it takes no
                inputs.
        """
        if key not in self.signature_defs:
            raise invalid_argument(
                f'Serving signature name: "{key}" not found in signature def'
            )
        if key not in self._signatures:
            raise invalid_argument(
                f"Failed to get input map for signature: {key}"
            )
        return self._signatures[key]

    def run(
        self, signature: Signature, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Runs the graph once. Many threads may do so at a time.

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
        try:
            values = signature.run(*arrays)
        except tf.errors.OpError as error:
            raise ServingError(Code(error.error_code), error.message) from error
        return dict(zip(signature.outputs, map(_to_array, values), strict=True))

    def close(self) -> None:
        """Cancels what is running and frees the session.

        A loop of very cheap operations does not notice; TensorFlow then waits
        for it to end.
        """
        self._session.close()


def _make_signature(
    session: tf.compat.v1.Session, signature_def: SignatureDef
) -> Signature:
    inputs = dict(sorted(signature_def.inputs.items()))
    outputs = dict(sorted(signature_def.outputs.items()))
    options = config_pb2.CallableOptions(
        feed=[info.name for info in inputs.values()],
        fetch=[info.name for info in outputs.values()],
    )
    # `Session.make_callable` has no public form that takes feeds without
    # checking their shapes.
    run = session._make_callable_from_options(options)
    dtypes = {
        name: tf.dtypes.as_dtype(info.dtype).name
        for name, info in inputs.items()
    }
    return Signature(dtypes, tuple(outputs), run)


def _to_array(value: Any) -> np.ndarray:
    # A session returns a scalar string as bytes, which NumPy would hold
    # without its trailing zeros unless told to keep the object.
    return np.asarray(value, dtype=object if isinstance(value, bytes) else None)
