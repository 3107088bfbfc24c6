"""Requests that TF Serving sends to a version before it serves it."""

import pathlib
from collections.abc import Mapping

import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto

# Where TF Serving looks for them, in `assets.extra`.
_FILE = "tf_serving_warmup_requests"

# Numbers of the fields, from tensorflow_serving/apis/prediction_log.proto,
# predict.proto and model.proto. Written by hand, so that exporting needs no
# package that only serving needs.
_LOG_PREDICT, _PREDICT_REQUEST = 6, 1
_REQUEST_MODEL, _REQUEST_INPUTS, _MODEL_SIGNATURE = 1, 2, 3
_MAP_KEY, _MAP_VALUE = 1, 2


def write_warm_up(
    folder: pathlib.Path, inputs: Mapping[str, Mapping[str, TensorProto]]
) -> None:
    """Writes one request a signature, as a TFRecord of `PredictionLog`.

    Args:
        folder: the folder `assets.extra` of a version.
        inputs: for each signature the tensor of each of its inputs.
    """
    with tf.io.TFRecordWriter(str(folder / _FILE)) as writer:
        for signature, tensors in inputs.items():
            request = _field(
                _REQUEST_MODEL, _field(_MODEL_SIGNATURE, signature.encode())
            )
            for name, tensor in tensors.items():
                value = tensor.SerializeToString()
                request += _field(
                    _REQUEST_INPUTS,
                    _field(_MAP_KEY, name.encode()) + _field(_MAP_VALUE, value),
                )
            log = _field(_LOG_PREDICT, _field(_PREDICT_REQUEST, request))
            writer.write(log)


def _field(number: int, content: bytes) -> bytes:
    """A protocol buffer's field of bytes: tag, length, content."""
    length, rest = b"", len(content)
    while rest > 127:
        length += bytes([rest & 127 | 128])
        rest >>= 7
    return bytes([number << 3 | 2]) + length + bytes([rest]) + content
