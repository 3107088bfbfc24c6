"""TensorFlow Serving's REST API, as an ASGI application."""

import asyncio
import json
import logging
import re
import zlib
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import MutableMapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING
from typing import Any
from urllib.parse import unquote

from keras_muffnet.model_server import codec
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument

if TYPE_CHECKING:
    from keras_muffnet.model_server.servable import Servable

# ASGI's types.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

logger = logging.getLogger(__name__)

# Matched against the path as it was sent: a name may hold an escaped slash.
_MODEL = r"/v1/models/(?P<model>[^/:]+)(/versions/(?P<version>[0-9]+))?"
_STATUS = re.compile(_MODEL, re.IGNORECASE)
_METADATA = re.compile(_MODEL + "/metadata", re.IGNORECASE)
_PREDICT = re.compile(_MODEL + ":predict", re.IGNORECASE)

_MAX_UNPACKED = 100 * 2**20  # bytes of a gzip body
_MAX_INT64 = 2**63 - 1

# Any other code is 500.
_HTTP_STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}


class App:
    """Answers for one servable.

    Args:
        servable: What to serve.
        executor: Where inference runs, so that the event loop stays free.
    """

    def __init__(self, servable: "Servable", executor: Executor):
        self._servable = servable
        self._executor = executor

    async def __call__(
        self, scope: Message, receive: Receive, send: Send
    ) -> None:
        """Answers one HTTP request; ASGI's entry point."""
        body = await _read_body(receive)
        if body is None:
            return
        try:
            status, answer = 200, await self._answer(scope, body)
        except ServingError as error:
            status = _HTTP_STATUS.get(error.code, 500)
            answer = _to_json({"error": str(error)})
        except asyncio.CancelledError:
            # The server stops, and this request has had its time to finish.
            status, answer = 503, _to_json({"error": "The server is stopping"})
        except Exception:
            logger.exception("%(method)s %(path)s failed", scope)
            status, answer = 500, _to_json({"error": "Internal error"})
        await _send_json(send, status, answer)

    async def _answer(self, scope: Message, body: bytes) -> bytes:
        method = scope["method"]
        path = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            path += "?" + scope["query_string"].decode("latin-1")
        if method == "GET" and (match := _STATUS.fullmatch(path)):
            return self._status(*_model_and_version(match))
        if method == "GET" and (match := _METADATA.fullmatch(path)):
            return self._metadata(*_model_and_version(match))
        if method == "POST" and (match := _PREDICT.fullmatch(path)):
            loop = asyncio.get_running_loop()
            packed = _is_gzip(scope["headers"])
            return await loop.run_in_executor(
                self._executor,
                self._predict,
                *_model_and_version(match),
                body,
                packed,
            )
        if method == "GET" and path.lower() == "/v1/models":
            raise invalid_argument("Missing model name in request.")
        if path.lower().startswith("/v1/"):
            raise invalid_argument(f"Malformed request: {method} {path}")
        raise ServingError(Code.NOT_FOUND, f"Not found: {method} {path}")

    def _status(self, model: str, version: int | None) -> bytes:
        if model != self._servable.name:
            raise ServingError(
                Code.NOT_FOUND, f"Could not find any versions of model {model}"
            )
        if version not in (None, self._servable.version):
            raise ServingError(
                Code.NOT_FOUND,
                f"Could not find version {version} of model {model}",
            )
        entry = {
            "version": str(self._servable.version),
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        return _to_json({"model_version_status": [entry]})

    def _metadata(self, model: str, version: int | None) -> bytes:
        servable = self._find(model, version)
        model_spec = {
            "name": servable.name,
            "signature_name": "",
            "version": str(servable.version),
        }
        # Twice, because the inner one is a field of the outer one's message.
        signature_def = {"signature_def": servable.signature_defs}
        return _to_json(
            {
                "model_spec": model_spec,
                "metadata": {"signature_def": signature_def},
            }
        )

    def _predict(
        self, model: str, version: int | None, body: bytes, packed: bool
    ) -> bytes:
        request = codec.parse(_unpack(body) if packed else body)
        name = codec.signature_name(request)
        servable = self._find(model, version)
        signature = servable.signature(name)
        inputs = codec.decode(request, signature.inputs)
        outputs = servable.run(signature, inputs)
        return codec.encode(outputs, rows=codec.is_row_form(request))

    def _find(self, model: str, version: int | None) -> "Servable":
        servable = self._servable
        if model == servable.name and version in (None, servable.version):
            return servable
        wanted = (
            f"Latest({model})"
            if version is None
            else f"Specific({model}, {version})"
        )
        raise ServingError(
            Code.NOT_FOUND, f"Servable not found for request: {wanted}"
        )


def _model_and_version(match: re.Match) -> tuple[str, int | None]:
    model = unquote(match["model"])
    if match["version"] is None:
        return model, None
    digits = match["version"].lstrip("0") or "0"
    # By length first, because Python refuses to read thousands of digits.
    if len(digits) > 19 or int(digits) > _MAX_INT64:
        raise invalid_argument(
            f"Expected a version of at most {_MAX_INT64}. "
            f"Received: {digits[:40]}"
        )
    return model, int(digits)


async def _read_body(receive: Receive) -> bytes | None:
    """Returns the whole body, or None where the client has left."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


def _is_gzip(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"content-encoding" and value.strip().lower() == b"gzip"
        for name, value in headers
    )


def _unpack(body: bytes) -> bytes:
    """Unpacks gzip. What is damaged or too big counts as empty."""
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = unpacker.decompress(body, _MAX_UNPACKED)
    except zlib.error:
        return b""
    return unpacked if unpacker.eof else b""


def _to_json(value: Any) -> bytes:
    # Not orjson, which refuses the lone surrogates that a client may have
    # put into a name.
    return json.dumps(value).encode()


async def _send_json(send: Send, status: int, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send(
        {"type": "http.response.start", "status": status, "headers": headers}
    )
    await send({"type": "http.response.body", "body": body})
