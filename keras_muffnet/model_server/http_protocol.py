"""HTTP as TensorFlow Serving's clients know it, where uvicorn differs."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class HttpProtocol(HttpToolsProtocol):
    """Keeps connections of HTTP/1.0, and answers what was asked for.

    uvicorn closes a connection whose client sends no more, or sends what is no
    HTTP, though an earlier request on it is not answered yet.
    """

    def on_headers_complete(self) -> None:  # noqa: D102
        super().on_headers_complete()
        if self.parser.get_http_version() != "1.0":
            return
        told = dict(self.headers).get(b"connection", b"")
        if told.strip().lower() == b"keep-alive":
            self.cycle.keep_alive = True
            self.cycle.default_headers = [
                *self.cycle.default_headers,
                (b"connection", b"keep-alive"),
            ]

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

    def _owes_answer(self) -> bool:
        """Returns whether a request has come whole and is not answered."""
        cycle = self.cycle
        return (
            cycle is not None
            and not cycle.more_body
            and not cycle.response_complete
        )
