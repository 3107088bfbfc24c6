"""TensorProto on one side, arrays on the other."""

import math
from typing import Any

import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.dtypes import as_dtype

from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.options import Limits

_MAX_RANK = 254

# A message of a few bytes may declare any shape, all of one value.
_MAX_REPEATED = 64 * 2**20  # bytes of a tensor with values that repeat

# The field that holds a dtype's values.
_FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT8: "int_val",
    types_pb2.DT_INT16: "int_val",
    types_pb2.DT_INT32: "int_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_UINT8: "int_val",
    types_pb2.DT_UINT16: "int_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_BFLOAT16: "half_val",
    types_pb2.DT_COMPLEX64: "scomplex_val",
    types_pb2.DT_COMPLEX128: "dcomplex_val",
    types_pb2.DT_STRING: "string_val",
}
# Held as the integers of their bits.
_HALVES = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)


def to_array(
    name: str, proto: Any, max_bytes: int = Limits.tensor
) -> np.ndarray:
    """Reads a tensor.

    Args:
        name: The input's name, for errors.
        proto: A `TensorProto` with its values in `tensor_content` or in the
            dtype's own field. Of fewer values than elements the last repeats;
            of none all are zero.
        max_bytes: What the array may take.

    Returns:
        An array; strings are an object array of `bytes`.

    Raises:
        ServingError: The message is not a tensor, or too large a one.
    """
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if (
        proto.dtype not in _FIELDS
        or proto.tensor_shape.unknown_rank
        or len(shape) > _MAX_RANK
        or min(shape, default=0) < 0
    ):
        raise _parse_error(name)
    count = math.prod(shape)
    dtype = as_dtype(proto.dtype).as_numpy_dtype
    size = count * np.dtype(dtype).itemsize
    if size > max_bytes:
        raise _parse_error(
            name, f"expected at most {max_bytes} bytes, received {size}"
        )
    if proto.tensor_content and proto.dtype != types_pb2.DT_STRING:
        if len(proto.tensor_content) != size:
            raise _parse_error(name)
        array = np.frombuffer(proto.tensor_content, dtype)
    else:
        values = _read_values(proto, dtype)
        if len(values) > count:
            raise _parse_error(name)
        array = values
        if len(values) < count:
            if size > _MAX_REPEATED:
                raise _parse_error(
                    name,
                    f"expected {count} values, received {len(values)}; values "
                    f"repeat in tensors of at most {_MAX_REPEATED} bytes",
                )
            array = np.empty(count, values.dtype)
            array[: len(values)] = values
            # A slice, since NumPy would cut zeros off the end of bytes.
            array[len(values) :] = values[-1:] if len(values) else _zero(dtype)
    try:
        return array.reshape(shape)
    except ValueError:
        # More dimensions than NumPy has.
        raise _parse_error(name) from None


def _read_values(proto: Any, dtype: Any) -> np.ndarray:
    values = getattr(proto, _FIELDS[proto.dtype])
    if proto.dtype == types_pb2.DT_STRING:
        array = np.empty(len(values), object)
        array[:] = list(values)
        return array
    if proto.dtype in _HALVES:
        return np.array(values, np.uint32).astype(np.uint16).view(dtype)
    if proto.dtype in (types_pb2.DT_COMPLEX64, types_pb2.DT_COMPLEX128):
        # An odd number is half a value, which is none.
        pairs = np.array(values[: len(values) // 2 * 2], dtype=float)
        return (pairs[0::2] + 1j * pairs[1::2]).astype(dtype)
    if _FIELDS[proto.dtype] == "int_val":
        # What does not fit wraps around.
        return np.array(values, np.int32).astype(dtype)
    return np.array(values, dtype)


def _zero(dtype: Any) -> Any:
    return b"" if dtype is object else dtype(0)


def _parse_error(name: str, why: str = "") -> ServingError:
    why = why and f": {why}"
    return invalid_argument(f"tensor parsing error: {name}{why}")


def write(array: np.ndarray, proto: Any, *, as_content: bool = False) -> None:
    """Writes a tensor, its values in the dtype's own field.

    Args:
        array: An array of any dtype that a model can give; strings are an
            object array of `bytes`.
        proto: The empty `TensorProto` to fill.
        as_content: Whether the values go into `tensor_content` instead, but
            for strings.
    """
    kind = types_pb2.DT_STRING
    if array.dtype != object:
        kind = as_dtype(array.dtype).as_datatype_enum
    proto.dtype = kind
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if as_content and kind != types_pb2.DT_STRING:
        proto.tensor_content = array.tobytes()
        return
    flat = array.ravel()
    if kind in _HALVES:
        flat = flat.view(np.uint16)
    elif flat.dtype.kind == "c":
        flat = np.stack([flat.real, flat.imag], axis=-1).ravel()
    getattr(proto, _FIELDS[kind]).extend(flat.tolist())
