"""Bodies of HTTP requests: read, limited and unpacked."""

import zlib
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import MutableMapping
from collections.abc import Sequence
from typing import Any

# ASGI's types.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Headers = Sequence[tuple[bytes, bytes]]


class TooLargeError(Exception):
    """A body is larger than is taken."""

    def __init__(self, limit: int, received: int):
        super().__init__(
            f"Expected a body of at most {limit} bytes, the server's "
            f"--rest_api_max_body_bytes. Received: {received} bytes"
        )


async def read_body(
    receive: Receive, headers: Headers, limit: int
) -> list[bytes] | None:
    """Returns the whole body in pieces, or None where the client has left.

    Raises:
        TooLargeError: It has more bytes than `limit`.
    """
    fields = dict(headers)
    size = int(fields.get(b"content-length", b"0"))
    if size > limit and b"expect" in fields:
        raise TooLargeError(limit, size)  # before the client sends it
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            # The rest is read all the same: few clients listen before they
            # have sent everything.
            chunks.clear()
        if not message.get("more_body", False):
            if size > limit:
                raise TooLargeError(limit, size)
            return chunks


def is_gzip(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Returns whether a body comes as gzip."""
    return any(
        name == b"content-encoding" and value.strip().lower() == b"gzip"
        for name, value in headers
    )


def unpack(body: bytes, limit: int) -> bytes:
    """Unpacks gzip. What is damaged or too big counts as empty."""
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(body, limit)
    except zlib.error:
        return b""
    return unpacked if unpacker.eof else b""
