"""Reads requests that hold one large array of numbers, by simdjson.

simdjson, where it is installed, makes an array of a JSON text's numbers
without a Python object for each. It flattens nested lists; that they have one
shape is checked by their brackets and commas. Whatever is unusual in a request
is left to `json_tensors.parse`.

simdjson holds the interpreter's lock, so a long text is read in pieces, between
which other threads have their turn.
"""

import functools
import math
import re
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

# Below, Python's objects cost little.
_LEAST_BYTES = 2048

_PIECE = 2**19  # bytes that are read at a time, which takes some 2 ms
_TURN = 1e-4  # seconds left to other threads between two pieces

# What stands before and behind the array. Keys and names hold no escapes.
_BEFORE = re.compile(
    rb'[ \t\n\r]*\{[ \t\n\r]*(?:"signature_name"[ \t\n\r]*:[ \t\n\r]*'
    rb'"(?P<signature>[\w. -]*)"[ \t\n\r]*,[ \t\n\r]*)?'
    rb'"(?P<key>instances|inputs)"[ \t\n\r]*:[ \t\n\r]*'
    rb"(?=\[[\[ \t\n\r]*[-0-9])"
)
_BEHIND = re.compile(
    rb'[ \t\n\r]*(?:,[ \t\n\r]*"signature_name"[ \t\n\r]*:[ \t\n\r]*'
    rb'"(?P<signature>[\w. -]*)"[ \t\n\r]*)?\}[ \t\n\r]*'
)
# Of a list of numbers, all but brackets and commas.
_NUMBERS = b"0123456789+-.eE \t\n\r"
MAX_RANK = 32  # what every release of NumPy can hold

# dtype: the dtype whose range a number in the request must keep to. What then
# does not fit a narrow integer wraps around.
INTEGERS = {
    "int8": "int32",
    "uint8": "int32",
    "int16": "int32",
    "int32": "int32",
    "int64": "int64",
    "uint32": "uint32",
    "uint64": "uint64",
}


class Numbers:
    """A list of numbers, or of such lists, all of one length on each level.

    Attributes:
        array: float64, or int64 where it holds integers alone.

    Args:
        text: its JSON.
        array: its numbers.
    """

    def __init__(self, text: memoryview, array: np.ndarray) -> None:
        self._text = text
        self.array = array

    def to_array(self, dtype: str) -> np.ndarray | None:
        """Returns an array of a dtype, None where not all numbers have it."""
        whole = self.array.dtype == np.int64
        if dtype in ("float32", "float64"):
            with np.errstate(over="ignore"):  # beyond float32 is infinite
                # By way of float64, as each of Python's numbers goes.
                return self.array.astype(np.float64).astype(dtype)
        if not whole or dtype not in INTEGERS:
            return None
        limits = np.iinfo(INTEGERS[dtype])
        if self.array.min() < limits.min or self.array.max() > limits.max:
            return None
        return self.array.astype(dtype)

    def tolist(self) -> list:
        """Returns what `json_tensors.parse` makes of it."""
        return orjson.loads(self._text)


@functools.cache
def _parser() -> Callable[[bytes], Any] | None:
    try:
        import simdjson
    except ImportError:
        return None
    # A parser of its own for each text: it holds what it has read.
    return lambda text: simdjson.Parser().parse(text)


def parse(body: bytes) -> dict[str, Any] | None:
    """Reads a request of one array of numbers and, at most, a signature.

    Returns:
        The JSON object, with `Numbers` in the place of the lists; None if the
        request is of another kind or simdjson is not installed.
    """
    if len(body) < _LEAST_BYTES or (read := _parser()) is None:
        return None
    before = _BEFORE.match(body)
    if before is None:
        return None
    end = body.rfind(b"]") + 1
    behind = _BEHIND.fullmatch(body, end)
    if behind is None:
        return None
    signatures = [
        match["signature"]
        for match in (before, behind)
        if match["signature"] is not None
    ]
    if len(signatures) > 1:
        return None
    array = _read(body, before.end(), end, read)
    if array is None:
        return None
    text = memoryview(body)[before.end() : end]
    request: dict[str, Any] = {before["key"].decode(): Numbers(text, array)}
    for signature in signatures:
        request["signature_name"] = signature.decode()
    return request


def _read(
    body: bytes, begin: int, end: int, read: Callable[[bytes], Any]
) -> np.ndarray | None:
    """Makes an array of nested lists, None if they are not of one shape."""
    whole = all(body.find(mark, begin, end) < 0 for mark in (b".", b"e", b"E"))
    kind, dtype = ("i", np.int64) if whole else ("d", np.float64)
    marks: list[bytes] = []
    arrays: list[np.ndarray] = []
    depth = 0
    for piece in _pieces(body, begin, end):
        if marks:
            time.sleep(_TURN)
        marks.append(piece.translate(None, _NUMBERS))
        # What is open before a piece and behind it makes it a list of its own.
        opened = b"[" * depth
        depth += marks[-1].count(b"[") - marks[-1].count(b"]")
        if not 0 <= depth <= MAX_RANK:
            return None
        try:
            buffer = read(opened + piece + b"]" * depth).as_buffer(of_type=kind)
        # What is not an array of numbers, or not JSON at all.
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return None
        arrays.append(np.frombuffer(buffer, dtype))
    shape = _shape(b",".join(marks))
    array = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    # With fewer numbers there is an empty list.
    if shape is None or len(array) != math.prod(shape):
        return None
    return array.reshape(shape)


def _pieces(body: bytes, begin: int, end: int) -> Iterator[bytes]:
    """Cuts a text at commas."""
    while end - begin > _PIECE:
        cut = body.find(b",", begin + _PIECE, end)
        if cut < 0:
            break
        yield body[begin:cut]
        begin = cut + 1
    yield body[begin:end]


def _shape(marks: bytes) -> tuple[int, ...] | None:
    """The shape of lists, if each level has lists of one length.

    Args:
        marks: Their brackets and commas.
    """
    rank = len(marks) - len(marks.lstrip(b"["))
    if not 0 < rank <= MAX_RANK:
        return None
    shape: list[int] = []
    inner = b""
    for level in range(1, rank + 1):
        # Where the first list that holds `level` levels ends.
        end = marks.find(b"]" * level, rank - level)
        if end < 0:
            return None
        size = end + level - (rank - level)
        count, rest = divmod(size - 1, len(inner) + 1)
        if rest or not count:
            return None
        shape.append(count)
        inner = b"[" + b",".join([inner] * count) + b"]"
    return tuple(shape[::-1]) if marks == inner else None
