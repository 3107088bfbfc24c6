"""Predict requests and answers: JSON on one side, arrays on the other.

A request is in row form, `{"instances": [..]}`, one element for each example,
or in columnar form, `{"inputs": ..}`, whole tensors. The answer has the same
form. dtypes are given by NumPy's names, and `"string"` for bytes, which are
held in object arrays.
"""

import base64
import codecs
import json
import math
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson

from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument

DEFAULT_SIGNATURE = "serving_default"

# Clients know these dtypes by other names than NumPy's.
_SERVING_NAMES = {"float16": "half", "float32": "float", "float64": "double"}

_FLOATS = ("float32", "float64")

# dtype: the dtype whose range a number in the request must keep to. What then
# does not fit a narrow integer wraps around.
_INTEGERS = {
    "int8": "int32",
    "uint8": "int32",
    "int16": "int32",
    "int32": "int32",
    "int64": "int64",
    "uint32": "uint32",
    "uint64": "uint64",
}

_WRITABLE = {*_FLOATS, *_INTEGERS, "bool", "object"}

_MAX_RANK = 32  # what every release of NumPy can hold
_MAX_SHOWN = 200  # characters of a value in an error's text


def parse(body: bytes) -> dict[str, Any]:
    """Reads a request's body.

    Args:
        body: JSON in UTF-8. `NaN`, `Infinity` and `-Infinity` are numbers, and
            text behind the object is ignored.

    Returns:
        The JSON object.

    Raises:
        ServingError: The body is no JSON, or no JSON object.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    if not body.strip():
        raise invalid_argument("JSON Parse error: The document is empty")
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        request = _parse_leniently(body)
    if not isinstance(request, dict):
        raise invalid_argument(f"JSON Value: {_shown(request)} Is not object")
    return request


def _parse_leniently(body: bytes) -> Any:
    """Reads what orjson refuses and TensorFlow Serving takes."""
    try:
        text = body.decode()
        start = len(text) - len(text.lstrip(" \t\n\r"))
        return _DECODER.raw_decode(text, start)[0]
    except UnicodeDecodeError as error:
        raise _parse_error("Invalid UTF-8", error.start) from error
    except json.JSONDecodeError as error:
        raise _parse_error(error.msg, error.pos) from error
    except RecursionError as error:
        raise _parse_error("Nested too deeply", 0) from error


def _parse_float(token: str) -> float:
    value = float(token)
    if math.isinf(value):
        raise invalid_argument(
            f"JSON Parse error: Number too big: {_shorten(token)}"
        )
    return value


def _parse_int(token: str) -> int | float:
    # No integer dtype takes more than twenty characters, and Python refuses
    # to read thousands.
    return int(token) if len(token) <= 20 else _parse_float(token)


_DECODER = json.JSONDecoder(parse_float=_parse_float, parse_int=_parse_int)


def _parse_error(what: str, offset: int) -> ServingError:
    return invalid_argument(f"JSON Parse error: {what} at offset: {offset}")


def signature_name(request: Mapping[str, Any]) -> str:
    """Returns the name of the signature that a request asks for.

    Raises:
        ServingError: The name is no string.
    """
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {_shown(name)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name or DEFAULT_SIGNATURE


def is_row_form(request: Mapping[str, Any]) -> bool:
    """Returns whether a request is in row form, not columnar.

    Raises:
        ServingError: It has both `inputs` and `instances`, or neither.
    """
    if "inputs" in request and "instances" in request:
        raise invalid_argument(
            "JSON Value: Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist"
        )
    if "inputs" not in request and "instances" not in request:
        raise invalid_argument("Missing 'inputs' or 'instances' key")
    return "instances" in request


def decode(
    request: Mapping[str, Any], dtypes: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Makes a request's tensors.

    Args:
        request: The JSON object, in either form.
        dtypes: The dtype's name of each input, at least one.

    Returns:
        An array for each input: `[batch, ..]` in row form, any shape in
        columnar form.

    Raises:
        ServingError: The request does not fit the inputs.
    """
    if is_row_form(request):
        return _decode_rows(request["instances"], dtypes)
    return _decode_columns(request["inputs"], dtypes)


def _decode_columns(
    value: Any, dtypes: Mapping[str, str]
) -> dict[str, np.ndarray]:
    if not _is_object(value):
        if len(dtypes) > 1:
            raise invalid_argument(
                "'inputs' is a plain value/list, but expecting an object with "
                f"keys: {','.join(dtypes)}"
            )
        return {name: _to_array(value, dtypes[name]) for name in dtypes}
    for name in dtypes:
        if name not in value:
            raise invalid_argument(
                f"Missing named input: {name} in 'inputs' object."
            )
    return {name: _to_array(value[name], dtypes[name]) for name in dtypes}


def _decode_rows(rows: Any, dtypes: Mapping[str, str]) -> dict[str, np.ndarray]:
    if not isinstance(rows, list):
        raise invalid_argument(
            f"JSON Value: {_shown(rows)} Expecting 'instances' to be an "
            "list/array"
        )
    if not rows:
        raise invalid_argument("No values in 'instances' array")
    if _is_object(rows[0]):
        _check_named_rows(rows, dtypes)
        return {
            name: _stack([row[name] for row in rows], dtype, f"key: {name} ")
            for name, dtype in dtypes.items()
        }
    if len(dtypes) > 1:
        raise invalid_argument(
            "'instances' is a plain list, but expecting list of objects as "
            f"multiple input tensors required: {','.join(dtypes)}"
        )
    for index, row in enumerate(rows):
        if _is_object(row):
            raise invalid_argument(
                "Expecting value/list but got object at item "
                f"{index} of input list"
            )
    return {name: _stack(rows, dtype) for name, dtype in dtypes.items()}


def _check_named_rows(rows: list, dtypes: Mapping[str, str]) -> None:
    for index, row in enumerate(rows):
        if not _is_object(row):
            raise invalid_argument(
                f"Expecting object but got list at item {index} of input list"
            )
        for name in row:
            if name not in dtypes:
                raise invalid_argument(
                    f"Failed to process element: {index} key: {name} of "
                    "'instances' list. Error: INVALID_ARGUMENT: JSON object: "
                    f"does not have named input: {name}"
                )
        if len(row) != len(dtypes):
            raise invalid_argument(
                f"Failed to process element: {index} of 'instances' list. "
                f"JSON object: {_shown(row)} keys must be equal to: "
                f"{','.join(dtypes)}"
            )


def _stack(rows: list, dtype: str, key: str = "") -> np.ndarray:
    try:
        return _to_array(rows, dtype)
    except ServingError:
        # Go through the rows one by one, to name the one at fault.
        shape = None
        for index, row in enumerate(rows):
            try:
                array = _to_array(row, dtype)
                shape = array.shape if shape is None else shape
                _check_same_shape(shape, array.shape)
            except ServingError as error:
                raise invalid_argument(
                    f"Failed to process element: {index} {key}of 'instances' "
                    f"list. Error: {error.code.name}: {error}"
                ) from error
        raise


def _check_same_shape(expected: tuple, received: tuple) -> None:
    if math.prod(expected) != math.prod(received):
        raise invalid_argument(
            f"Expecting tensor size: {math.prod(expected)} but got: "
            f"{math.prod(received)}"
        )
    if expected != received:
        raise invalid_argument(
            f"Expecting shape {_shape_text(expected)} but got: "
            f"{_shape_text(received)}"
        )


def _shape_text(shape: tuple) -> str:
    return f"[{','.join(map(str, shape))}]"


def _to_array(value: Any, dtype: str) -> np.ndarray:
    shape, leaves = _flatten(value)
    if dtype == "string":
        leaves = [_to_bytes(leaf) for leaf in leaves]
        return np.array(leaves, dtype=object).reshape(shape)
    if dtype == "bool":
        _check_leaves(leaves, {bool}, dtype)
        return np.array(leaves, dtype=bool).reshape(shape)
    if dtype in _INTEGERS:
        _check_leaves(leaves, {int}, dtype)
        return _to_integers(leaves, dtype).reshape(shape)
    if dtype in _FLOATS:
        _check_leaves(leaves, {int, float}, dtype)
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            return np.array(leaves, dtype=dtype).reshape(shape)
    raise ServingError(
        Code.UNIMPLEMENTED,
        f"Conversion of JSON Value: {_shown(value)} to type: "
        f"{_SERVING_NAMES.get(dtype, dtype)}",
    )


def _flatten(value: Any) -> tuple[list[int], list]:
    """Returns the shape of nested lists, and what they hold, in order."""
    shape: list[int] = []
    level = [value]
    while level and isinstance(level[0], list):
        size = len(level[0])
        for kind in set(map(type, level)) - {list}:
            stray = next(item for item in level if type(item) is kind)
            raise invalid_argument(
                f"JSON Value: {_shown(stray)} found at incorrect level: "
                f"{len(shape) + 1}. Expected a list of {size} there"
            )
        for other in set(map(len, level)) - {size}:
            raise invalid_argument(
                f"Encountered list at unexpected size: {other} at level: "
                f"{len(shape)} expected size: {size}"
            )
        shape.append(size)
        level = list(chain.from_iterable(level))
    if list in set(map(type, level)) or len(shape) > _MAX_RANK:
        raise invalid_argument(
            f"Encountered list at unexpected level: {len(shape)} expected < "
            f"{min(len(shape), _MAX_RANK)}"
        )
    return shape, level


def _check_leaves(leaves: list, kinds: set[type], dtype: str) -> None:
    # By exact type, because a bool is an int to `isinstance`.
    if not kinds.issuperset(map(type, leaves)):
        wrong = next(leaf for leaf in leaves if type(leaf) not in kinds)
        raise _type_error(wrong, dtype)


def _to_integers(leaves: list[int], dtype: str) -> np.ndarray:
    limits = np.iinfo(_INTEGERS[dtype])
    for extreme in (min(leaves, default=0), max(leaves, default=0)):
        if not limits.min <= extreme <= limits.max:
            raise _type_error(extreme, dtype)
    return np.array(leaves, dtype=limits.dtype).astype(dtype)


def _to_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise invalid_argument(
                "JSON Parse error: The surrogate pair in string is invalid"
            ) from error
    if not isinstance(value, dict):
        raise _type_error(value, "string")
    if not _is_base64(value):
        raise invalid_argument(
            f"JSON Value: {_shown(value)} not formatted correctly for base64 "
            "data"
        )
    digits = "".join(value["b64"].split())
    try:
        padding = "=" * (-len(digits) % 4)
        return base64.b64decode(digits + padding, validate=True)
    except ValueError as error:
        raise invalid_argument("Unable to base64 decode") from error


def _is_base64(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and list(value) == ["b64"]
        and isinstance(value["b64"], str)
    )


def _is_object(value: Any) -> bool:
    """Returns whether a value names tensors; base64 data is one itself."""
    return isinstance(value, dict) and not _is_base64(value)


def _type_error(value: Any, dtype: str) -> ServingError:
    if isinstance(value, bool):
        kind = str(value)
    elif isinstance(value, (int, float)):
        kind = "Number"
    else:
        kind = {type(None): "Null", str: "String"}.get(type(value), "Object")
    return invalid_argument(
        f"JSON Value: {_shown(value)} Type: {kind} is not of expected type: "
        f"{_SERVING_NAMES.get(dtype, dtype)}"
    )


def _shown(value: Any) -> str:
    try:
        return _shorten(json.dumps(value))
    except RecursionError:
        return "..."


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def encode(outputs: Mapping[str, np.ndarray], rows: bool) -> bytes:
    """Writes a request's answer.

    Args:
        outputs: An array for each output; `[batch, ..]` where `rows` is set.
        rows: Whether to answer in row form, not columnar.

    Returns:
        JSON. Numbers read back as the same number of their dtype; those that
        are not finite are the bare tokens `NaN`, `Infinity`, `-Infinity`.

    Raises:
        ServingError: An output's dtype has no JSON form, or, for rows, the
            outputs do not have one batch size.
    """
    for array in outputs.values():
        dtype = array.dtype.name
        if dtype not in _WRITABLE:
            raise invalid_argument(
                "Failed to write JSON value for tensor type: "
                f"{_SERVING_NAMES.get(dtype, dtype)}"
            )
    if not rows:
        return b'{"outputs":%b}' % _write_tensors(outputs)
    batch = _batch_size(outputs)
    if len(outputs) == 1:
        return b'{"predictions":%b}' % _write_tensors(outputs)
    objects = (
        # A slice, because an element of a vector would be no array.
        _write_tensors(
            {
                name: array[row : row + 1].reshape(array.shape[1:])
                for name, array in outputs.items()
            }
        )
        for row in range(batch)
    )
    return b'{"predictions":[%b]}' % b",".join(objects)


def _batch_size(outputs: Mapping[str, np.ndarray]) -> int:
    batch = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid_argument(
                f"Tensor name: {name} has no shape information"
            )
        batch = len(array) if batch is None else batch
        if len(array) != batch:
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: "
                f"{len(array)} expecting: {batch}"
            )
    return batch or 0


def _write_tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Writes a lone tensor bare, several as an object."""
    texts = {name: _write_tensor(name, tensors[name]) for name in tensors}
    if len(texts) == 1:
        return next(iter(texts.values()))
    pairs = (orjson.dumps(name) + b":" + texts[name] for name in texts)
    return b"{%b}" % b",".join(pairs)


def _write_tensor(name: str, array: np.ndarray) -> bytes:
    if array.dtype == object:
        return _write_strings(array, as_base64=name.endswith("_bytes"))
    # `[()]` makes a scalar of an array of rank 0, which orjson refuses.
    text = orjson.dumps(array[()], option=orjson.OPT_SERIALIZE_NUMPY)
    if array.dtype.name not in _FLOATS or np.isfinite(array).all():
        return text
    # Each number that is not finite has become a null, in order.
    tokens = iter(json.dumps(x) for x in array[~np.isfinite(array)].tolist())
    return re.sub(b"null", lambda null: next(tokens).encode(), text)


def _write_strings(array: np.ndarray, as_base64: bool) -> bytes:
    cells: list[Any] = []
    for value in array.ravel():
        if as_base64:
            cells.append({"b64": base64.b64encode(value).decode()})
        else:
            # Escaped bytes pass through to the answer unchanged where they
            # are no UTF-8.
            cells.append(value.decode(errors="surrogateescape"))
    nested = np.array(cells, dtype=object).reshape(array.shape).tolist()
    text = json.dumps(nested, ensure_ascii=False)
    return text.encode(errors="surrogateescape")
