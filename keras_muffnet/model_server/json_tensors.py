"""Predict requests and answers: JSON on one side, arrays on the other.

A request is in row form, `{"instances": [..]}`, one element for each example,
or in columnar form, `{"inputs": ..}`, whole tensors. The answer has the same
form. dtypes are given by NumPy's names, and `"string"` for bytes, which are
held in object arrays.
"""

import base64
import gc
import json
import math
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson

from keras_muffnet.model_server import json_numbers
from keras_muffnet.model_server import lenient_json
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument

DEFAULT_SIGNATURE = "serving_default"

# Clients know these dtypes by other names than NumPy's.
_SERVING_NAMES = {"float16": "half", "float32": "float", "float64": "double"}

_FLOATS = ("float32", "float64")

# dtype: the types of what it takes. By exact type, because a bool is an int.
_KINDS: dict[str, set[type]] = {
    "bool": {bool},
    **{dtype: {int} for dtype in json_numbers.INTEGERS},
    **{dtype: {int, float} for dtype in _FLOATS},
}

_WRITABLE = {*_KINDS, "object"}

_KIND_NAMES = {
    type(None): "Null",
    int: "Number",
    float: "Number",
    str: "String",
    list: "Array",
    dict: "Object",
}

# Of a request that becomes Python's objects, some hundred bytes each.
_MAX_CONTAINERS = 2**24
_MAX_SHOWN = 200  # characters of a value in an error's text


def parse(body: bytes, numbers: bool = False) -> dict[str, Any]:
    """Reads a request's body.

    Args:
        body: JSON as rapidjson takes it, see `lenient_json`.
        numbers: Whether a large array may become `json_numbers.Numbers`,
            which is faster; `decode` takes both.

    Returns:
        The JSON object, with the first of members of one name.

    Raises:
        ServingError: The body is not JSON, or no JSON object, or of more lists
            and objects than the memory should hold.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    if numbers and (request := json_numbers.parse(body)) is not None:
        return request
    if len(body) > _MAX_CONTAINERS:
        containers = body.count(b"[") + body.count(b"{")
        if containers > _MAX_CONTAINERS:
            raise invalid_argument(
                f"Expected at most {_MAX_CONTAINERS} lists and objects. "
                f"Received: {containers}"
            )
    try:
        request = _loads_fast(body)
    except orjson.JSONDecodeError:
        request = lenient_json.loads(body)
    else:
        if _may_repeat_keys(body, request):
            request = lenient_json.loads(body)
    if not isinstance(request, dict):
        raise invalid_argument(f"JSON Value: {shown(request)} Is not object")
    return request


def _loads_fast(body: bytes) -> Any:
    # The millions of lists of large tensors start the garbage collector again
    # and again, which takes as long as reading them.
    enabled = gc.isenabled()
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        if enabled:
            gc.enable()


def _may_repeat_keys(body: bytes, request: Any) -> bool:
    """Returns whether an object may have lost a member to a duplicate key.

    Each member takes one colon, and other colons stand in strings alone. So
    none was lost if the members and strings at hand explain all colons. They
    are gone through level by level, and large tensors are seldom reached.
    """
    if b"\\" in body and re.search(rb"\\u003[aA]", body):
        return True  # a string may hold a colon in disguise
    colons = np.frombuffer(body, np.uint8) == ord(":")
    unexplained = int(np.count_nonzero(colons))  # far faster than `count`
    level = [request]
    while unexplained and level:
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                unexplained -= len(value)
                inner.extend(value)
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
            elif isinstance(value, str):
                unexplained -= value.count(":")
        level = inner
    return unexplained > 0


def signature_name(request: Mapping[str, Any]) -> str:
    """Returns the name of the signature that a request asks for.

    Raises:
        ServingError: The name is not a string.
    """
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {shown(name)} not formatted correctly. "
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
    rows = is_row_form(request)
    value = request["instances" if rows else "inputs"]
    if isinstance(value, json_numbers.Numbers):
        if len(dtypes) == 1:
            ((name, dtype),) = dtypes.items()
            array = value.to_array(dtype)
            if array is not None:
                return {name: array}
        value = value.tolist()
    return (_decode_rows if rows else _decode_columns)(value, dtypes)


def _decode_columns(
    value: Any, dtypes: Mapping[str, str]
) -> dict[str, np.ndarray]:
    if not _is_object(value):
        if len(dtypes) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as "
                "multiple input tensors required as per tensorinfo_map. "
                f"Expected keys: {','.join(dtypes)}"
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
            f"JSON Value: {shown(rows)} Expecting 'instances' to be an "
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
                f"JSON object: {shown(row)} keys must be equal to: "
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
    shape, leaves, kinds = _flatten(value)
    if dtype == "string":
        leaves = [to_bytes(leaf) for leaf in leaves]
        return np.array(leaves, dtype=object).reshape(shape)
    if dtype not in _KINDS:
        raise ServingError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {shown(leaves[0] if leaves else value)}"
            f" to type: {serving_name(dtype)}",
        )
    if not kinds <= _KINDS[dtype]:
        wrong = next(leaf for leaf in leaves if type(leaf) not in _KINDS[dtype])
        raise _type_error(wrong, dtype)
    if dtype in json_numbers.INTEGERS:
        return _to_integers(leaves, dtype).reshape(shape)
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        return np.fromiter(leaves, dtype, len(leaves)).reshape(shape)


def _flatten(value: Any) -> tuple[list[int], list, set[type]]:
    """Returns the shape of nested lists, what they hold, and the types."""
    shape: list[int] = []
    level = [value]
    kinds = {type(value)}
    while (
        list in kinds
        and type(level[0]) is list
        and len(shape) <= json_numbers.MAX_RANK
    ):
        size = len(level[0])
        for kind in kinds - {list}:
            stray = next(item for item in level if type(item) is kind)
            raise invalid_argument(
                f"JSON Value: {shown(stray)} found at incorrect level: "
                f"{len(shape) + 1}. Expected a list of {size} there"
            )
        for other in set(map(len, level)) - {size}:
            raise invalid_argument(
                f"Encountered list at unexpected size: {other} at level: "
                f"{len(shape)} expected size: {size}"
            )
        shape.append(size)
        level = list(chain.from_iterable(level))
        kinds = set(map(type, level))
    if list in kinds or len(shape) > json_numbers.MAX_RANK:
        raise invalid_argument(
            f"Encountered list at unexpected level: {len(shape)} expected < "
            f"{min(len(shape), json_numbers.MAX_RANK)}"
        )
    return shape, level, kinds


def _to_integers(leaves: list[int], dtype: str) -> np.ndarray:
    limits = np.iinfo(json_numbers.INTEGERS[dtype])
    for extreme in (min(leaves, default=0), max(leaves, default=0)):
        if not limits.min <= extreme <= limits.max:
            raise _type_error(extreme, dtype)
    return np.array(leaves, dtype=limits.dtype).astype(dtype)


def to_bytes(value: Any) -> bytes:
    """Makes bytes of a string or of base64 data.

    Raises:
        ServingError: The value is neither.
    """
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if not isinstance(value, dict):
        raise _type_error(value, "string")
    if not is_base64(value):
        raise invalid_argument(
            f"JSON Value: {shown(value)} not formatted correctly for base64 "
            "data"
        )
    try:
        # Whatever is not ASCII is wrong; split() without arguments drops
        # white space.
        padded = b"".join(value["b64"].encode("ascii").split())
        digits = padded.rstrip(b"=")
        padding = b"=" * (-len(digits) % 4)
        if padded not in (digits, digits + padding):
            raise ValueError("wrong padding")
        return base64.b64decode(digits + padding, validate=True)
    except ValueError as error:
        raise invalid_argument("Unable to base64 decode") from error


def is_base64(value: Any) -> bool:
    """Returns whether a value is an object that holds base64 data alone."""
    return (
        isinstance(value, dict)
        and list(value) == ["b64"]
        and isinstance(value["b64"], str)
    )


def _is_object(value: Any) -> bool:
    """Returns whether a value names tensors; base64 data is one itself."""
    return isinstance(value, dict) and not is_base64(value)


def _type_error(value: Any, dtype: str) -> ServingError:
    return invalid_argument(
        f"JSON Value: {shown(value)} Type: {kind_name(value)} is not of "
        f"expected type: {serving_name(dtype)}"
    )


def kind_name(value: Any) -> str:
    """Returns what errors call a JSON value's type, such as `"Number"`."""
    return str(value) if isinstance(value, bool) else _KIND_NAMES[type(value)]


def serving_name(dtype: str) -> str:
    """Returns what errors call the dtype of NumPy's name `dtype`."""
    return _SERVING_NAMES.get(dtype, dtype)


def shown(value: Any) -> str:
    """Returns the beginning of a value's JSON, for an error's text."""
    text = ""
    # Piece by piece, because the value may be large, and deeper than Python's
    # stack.
    for piece in json.JSONEncoder().iterencode(value):
        text += piece
        if len(text) > _MAX_SHOWN:
            return text[:_MAX_SHOWN] + "..."
    return text


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
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    for array in outputs.values():
        dtype = array.dtype.name
        if dtype not in _WRITABLE:
            raise invalid_argument(
                "Failed to write JSON value for tensor type: "
                f"{serving_name(dtype)}"
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
    texts = {
        name: write_array(array, as_base64=name.endswith("_bytes"))
        for name, array in tensors.items()
    }
    if len(texts) == 1:
        return next(iter(texts.values()))
    pairs = (orjson.dumps(name) + b":" + texts[name] for name in texts)
    return b"{%b}" % b",".join(pairs)


def write_array(array: np.ndarray, as_base64: bool = False) -> bytes:
    """Writes nested lists of an array's values, or its one value.

    Args:
        array: Of any dtype that `encode` takes, and any shape.
        as_base64: Whether strings become `{"b64": ..}`.

    Returns:
        JSON, as `encode` describes it.
    """
    if array.dtype == object:
        return _write_strings(array, as_base64)
    # `[()]` makes a scalar of an array of rank 0, which orjson refuses.
    text = orjson.dumps(
        np.asarray(array, order="C")[()], option=orjson.OPT_SERIALIZE_NUMPY
    )
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
            # are not UTF-8.
            cells.append(value.decode(errors="surrogateescape"))
    nested = np.array(cells, dtype=object).reshape(array.shape).tolist()
    text = json.dumps(nested, ensure_ascii=False)
    return text.encode(errors="surrogateescape")
