"""HTTP as TensorFlow Serving's clients know it, where uvicorn differs."""

import asyncio
import re
from collections.abc import Collection

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAX_HEADERS = 2**16  # bytes of headers, or of trailers
_UPGRADE = re.compile(rb"(?:\A|(?<=\r\n))upgrade(?=:)", re.IGNORECASE)
# Seconds that a client may pause within a request, or in reading an answer.
_SILENCE = 75.0


class _Flow(FlowControl):
    """Reads on when all requests that have come are being answered."""

    def __init__(
        self, transport: asyncio.Transport, pipeline: Collection[object]
    ) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class HttpProtocol(HttpToolsProtocol):
    """Keeps connections of HTTP/1.0, and answers what was asked for.

    uvicorn closes a connection whose client sends no more, or sends what is not
    HTTP, though an earlier request on it is not answered yet. It takes headers
    of any size, in a time that grows with the square of it, takes requests
    faster than it answers them, and keeps clients that never finish a request
    or never read an answer.
    """

    _headers = 0  # bytes since the last that were something else
    _heard = 0.0  # when the client sent something
    _unread = 0  # bytes of answers that the client has not taken,
    _moved = 0.0  # and when that number was another one
    _watch: asyncio.TimerHandle | None = None

    def connection_made(  # type: ignore[override] # noqa: D102
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._heard = self.loop.time()
        self._watch = self.loop.call_later(_SILENCE, self._close_silent)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._heard = self.loop.time()
        data = self._without_upgrade(data)
        before = self._headers = self._headers + len(data)
        super().data_received(data)
        # Otherwise the parser has come to a body or to the end.
        endless = self._headers == before > _MAX_HEADERS
        if endless and not self.transport.is_closing():
            self.send_400_response(
                f"Expected headers of at most {_MAX_HEADERS} bytes."
            )

    def _without_upgrade(self, data: bytes) -> bytes:
        """Renames the offer of another protocol, which HTTP/1.1 lets decline.

        Java's client makes one with each request. uvicorn would lose the body
        of a request that offers what it does not speak.
        """
        cycle = self.cycle
        if cycle is not None and cycle.more_body:
            return data
        end = data.find(b"\r\n\r\n")
        end = len(data) if end < 0 else end  # the rest comes later
        if _UPGRADE.search(data, 0, end) is None:
            return data
        return _UPGRADE.sub(b"declined", data[:end]) + data[end:]

    def on_headers_complete(self) -> None:  # noqa: D102
        self._headers = 0
        super().on_headers_complete()
        if self.url.startswith(b"/"):
            # As it was sent, with an empty query or a fragment.
            self.scope["raw_path"], self.scope["query_string"] = self.url, b""
        if self.parser.get_http_version() != "1.0":
            return
        connection = dict(self.headers).get(b"connection", b"")
        if connection.strip().lower() == b"keep-alive":
            self.cycle.keep_alive = True
            self.cycle.default_headers = [
                *self.cycle.default_headers,
                (b"connection", b"keep-alive"),
            ]

    def on_body(self, body: bytes) -> None:  # noqa: D102
        self._headers = 0
        super().on_body(body)

    def on_message_complete(self) -> None:  # noqa: D102
        self._headers = 0
        super().on_message_complete()

    def eof_received(self) -> bool | None:  # type: ignore[override] # noqa: D102
        if not self._owes_answer() or self.scheme == "https":
            return None  # closes the connection, as TLS must
        # The last answer is the end. It may be that of a pipelined request.
        self.cycle.keep_alive = False
        return True

    def send_400_response(self, msg: str) -> None:  # noqa: D102
        if self._owes_answer():
            self.cycle.keep_alive = False
        else:
            super().send_400_response(msg)

    def shutdown(self) -> None:  # noqa: D102
        super().shutdown()
        # By then requests have been canceled. A client that reads no answer
        # would be waited for.
        grace = self.config.timeout_graceful_shutdown or 0
        self.loop.call_later(grace + 1, self.transport.abort)

    def _close_silent(self) -> None:
        """Closes a connection if the client is long in sending or reading.

        That is, the rest of a request, or an answer. uvicorn closes those that
        wait for a next request.
        """
        now = self.loop.time()
        unread = self.transport.get_write_buffer_size()
        if unread != self._unread:
            self._unread, self._moved = unread, now
        elif unread and now - self._moved >= _SILENCE:
            self.transport.abort()
            return
        rest = self._heard + _SILENCE - now
        waits = self.cycle is None or self.cycle.more_body or self._headers
        if waits and rest <= 0 and not self.flow.read_paused:
            self.transport.close()
            return
        rest = rest if rest > 0 else _SILENCE
        self._watch = self.loop.call_later(rest, self._close_silent)

    def _owes_answer(self) -> bool:
        """Returns whether a request has come whole and is not answered."""
        cycle = self.cycle
        return (
            cycle is not None
            and not cycle.more_body
            and not cycle.response_complete
        )
