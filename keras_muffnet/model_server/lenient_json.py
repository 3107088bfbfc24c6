"""Reads the JSON that orjson refuses and TensorFlow Serving takes.

TensorFlow Serving reads with rapidjson: any depth, which has a limit here; the
numbers NaN and Infinity; strings that are not UTF-8; of duplicate keys the
first; and nothing behind the first value. The errors' texts are rapidjson's.
"""

import codecs
import math
import re
from typing import Any

import orjson

from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument

_MAX_DEPTH = 100_000  # of lists and objects in each other

_SPACES = {b" ", b"\t", b"\n", b"\r"}
_SPACE = re.compile(rb"[ \t\n\r]*")
_NUMBERS = re.compile(rb"\[[-+.0-9eE, \t\n\r]*\]")
_NUMBER = re.compile(
    rb"-?(?:(?P<digits>0|[1-9][0-9]*)(?P<fraction>\.[0-9]*)?"
    rb"(?P<exponent>[eE][-+]?[0-9]*)?|NaN|Inf(?:inity)?)"
)
_WORDS = {b"t": (b"true", True), b"f": (b"false", False), b"n": (b"null", None)}

_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_CODE_UNITS = re.compile(rb"(?:\\u[0-9a-fA-F]{4})+")
_ESCAPES = {
    b'"': b'"',
    b"\\": b"\\",
    b"/": b"/",
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
}


def loads(data: bytes) -> Any:
    """Reads the first value of a JSON text.

    Args:
        data: The text. A byte order mark is skipped.

    Returns:
        The value, as `json.loads` would make it, but that an integer beyond
        int64 and uint64 is a float, and that bytes of a string that are not
        UTF-8 are escaped by surrogates, as `os.fsdecode` does.

    Raises:
        ServingError: There is no such value.
    """
    reader = _Reader(data)
    containers: list[Any] = []  # those that are open, outermost first
    keys: list[str] = []  # of the open member of each object among them
    while True:
        if len(containers) > _MAX_DEPTH:
            raise invalid_argument(
                "JSON Parse error: Expected lists and objects in at most "
                f"{_MAX_DEPTH} others."
            )
        value: Any
        if (numbers := reader.numbers()) is not None:
            value = numbers
        elif reader.take(b"["):
            value = []
            if not reader.take(b"]"):
                containers.append(value)
                continue
        elif reader.take(b"{"):
            value = {}
            if not reader.take(b"}"):
                containers.append(value)
                keys.append(reader.key())
                continue
        else:
            value = reader.scalar()
        # Put it where it belongs, and so each container that it completes.
        while containers:
            container = containers[-1]
            if isinstance(container, list):
                container.append(value)
                if reader.take(b","):
                    break
                reader.close(b"]", "] after an array element")
            else:
                container.setdefault(keys.pop(), value)
                if reader.take(b","):
                    keys.append(reader.key())
                    break
                reader.close(b"}", "} after an object member")
            value = containers.pop()
        else:
            return value


class _Reader:
    """Reads the tokens of a JSON text, one after another."""

    def __init__(self, data: bytes):
        self._data = data
        self._at = len(codecs.BOM_UTF8) * data.startswith(codecs.BOM_UTF8)
        if not self._next():
            raise self._error("The document is empty.")

    def _next(self) -> bytes:
        """Skips white space and returns the byte behind it, if any."""
        mark = self._data[self._at : self._at + 1]
        if mark not in _SPACES:
            return mark
        self._at = _SPACE.match(self._data, self._at).end()  # type: ignore
        return self._data[self._at : self._at + 1]

    def take(self, mark: bytes) -> bool:
        """Steps over `mark` if it comes next."""
        found = self._next() == mark
        self._at += found
        return found

    def close(self, mark: bytes, where: str) -> None:
        if not self.take(mark):
            raise self._error(f"Missing a comma or {where}.")

    def numbers(self) -> list | None:
        """Reads a list of plain numbers: much faster than one by one."""
        if self._next() != b"[":
            return None
        match = _NUMBERS.match(self._data, self._at)
        if match is None:
            return None
        try:
            numbers = orjson.loads(match[0])
        except orjson.JSONDecodeError:
            return None
        self._at = match.end()
        return numbers

    def key(self) -> str:
        if self._next() != b'"':
            raise self._error("Missing a name for object member.")
        key = self._string()
        if not self.take(b":"):
            raise self._error("Missing a colon after a name of object member.")
        return key

    def scalar(self) -> Any:
        mark = self._next()
        if mark == b'"':
            return self._string()
        if mark not in _WORDS:
            return self._number()
        word, value = _WORDS[mark]
        if not self._data.startswith(word, self._at):
            raise self._error("Invalid value.")
        self._at += len(word)
        return value

    def _number(self) -> int | float:
        start = self._at
        match = _NUMBER.match(self._data, start)
        if match is None:
            raise self._error("Invalid value.")
        self._at = match.end()
        token = match[0]
        if match["digits"] is None:
            return float(token)
        if match["fraction"] == b".":
            raise self._error("Miss fraction part in number.")
        if match["exponent"] and not match["exponent"][-1:].isdigit():
            raise self._error("Miss exponent in number.")
        # By length first, because Python refuses to read thousands of digits.
        whole = match["fraction"] is None and match["exponent"] is None
        if whole and len(token) <= 20:
            integer = int(token)
            if -(2**63) <= integer < 2**64:
                return integer
        number = float(token)
        if math.isinf(number):
            self._at = start
            raise self._error("Number too big to be stored in double.")
        return number

    def _string(self) -> str:
        self._at += 1
        pieces = []
        while True:
            match = _PLAIN.match(self._data, self._at)
            pieces.append(match[0])  # type: ignore[index]
            self._at = match.end()  # type: ignore[union-attr]
            mark = self._data[self._at : self._at + 1]
            if mark == b'"':
                self._at += 1
                return b"".join(pieces).decode(errors="surrogateescape")
            if mark in (b"", b"\0"):
                raise self._error("Missing a closing quotation mark in string.")
            if mark != b"\\":
                raise self._error("Invalid encoding in string.")
            pieces.append(self._escape())

    def _escape(self) -> bytes:
        mark = self._data[self._at + 1 : self._at + 2]
        if mark in _ESCAPES:
            self._at += 2
            return _ESCAPES[mark]
        if mark != b"u":
            raise self._error("Invalid escape character in string.")
        match = _CODE_UNITS.match(self._data, self._at)
        if match is None:
            raise self._error("Incorrect hex digit after \\u escape in string.")
        units = match[0].decode("raw_unicode_escape")
        try:
            # UTF-16's decoder joins pairs of surrogates, and takes no others.
            utf16 = units.encode("utf-16-le", "surrogatepass")
            text = utf16.decode("utf-16-le")
        except UnicodeDecodeError as error:
            raise self._error(
                "The surrogate pair in string is invalid."
            ) from error
        self._at = match.end()
        return text.encode()

    def _error(self, what: str) -> ServingError:
        return invalid_argument(
            f"JSON Parse error: {what} at offset: {self._at}"
        )
