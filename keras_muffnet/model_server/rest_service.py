"""TensorFlow Serving's REST API, as an ASGI application."""

import asyncio
import json
import logging
import re
import threading
import time
from collections.abc import Awaitable
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any
from typing import NamedTuple
from urllib.parse import unquote

from keras_muffnet.model_server import examples
from keras_muffnet.model_server import json_tensors
from keras_muffnet.model_server import page
from keras_muffnet.model_server.bodies import Headers
from keras_muffnet.model_server.bodies import Message
from keras_muffnet.model_server.bodies import Receive
from keras_muffnet.model_server.bodies import TooLargeError
from keras_muffnet.model_server.bodies import is_gzip
from keras_muffnet.model_server.bodies import read_body
from keras_muffnet.model_server.bodies import unpack
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.manager import ModelManager
from keras_muffnet.model_server.metrics import Metrics
from keras_muffnet.model_server.options import Limits

Send = Callable[[Message], Awaitable[None]]

logger = logging.getLogger(__name__)
access_logger = logging.getLogger(f"{__name__}.access")

# Matched against the path as it was sent: a name may hold an escaped slash.
_MODEL = (
    r"/v1/models/(?P<model>[^/:]+)"
    r"(/versions/(?P<version>[0-9]+)|/labels/(?P<label>[^/:]+))?"
)
_STATUS = re.compile(_MODEL, re.IGNORECASE)
_METADATA = re.compile(_MODEL + "/metadata", re.IGNORECASE)
_RUN = re.compile(
    _MODEL + ":(?P<api>(?-i:predict|classify|regress))", re.IGNORECASE
)

_MAX_INT64 = 2**63 - 1

# Large bodies are parsed one at a time: as Python's objects numbers take eight
# times the memory of their text.
_LARGE = 8 * 2**20
_parsing = threading.Lock()

_JSON_HEADERS: Headers = ((b"content-type", b"application/json"),)
_CORS_HEADERS: Headers = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"content-type"),
)

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


class _Answer(NamedTuple):
    """What a client gets."""

    body: bytes
    status: int = 200
    headers: Headers = _JSON_HEADERS


class App:
    """Answers for all models of a manager.

    Args:
        manager: What to serve.
        executor: Where inference runs, so that the event loop stays free.
        timeout: Seconds that an inference may take.
        limits: How large a request may be.
        metrics: Counts requests, if given.
        metrics_path: The path that answers with the metrics, if given.
        cors: Whether pages of other origins may use the answers.
        show_page: Whether `GET /` answers with a page to try models on.
    """

    def __init__(
        self,
        manager: ModelManager,
        executor: Executor,
        *,
        timeout: float,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        metrics: Metrics | None = None,
        metrics_path: str | None = None,
        cors: bool = False,
        show_page: bool = True,
    ):
        self._manager = manager
        self._executor = executor
        self._timeout = timeout
        self._limits = limits
        self._metrics = metrics
        self._metrics_path = metrics_path
        self._cors = cors
        self._show_page = show_page

    async def __call__(
        self, scope: Message, receive: Receive, send: Send
    ) -> None:
        """Answers one HTTP request; ASGI's entry point."""
        start = time.perf_counter()
        size = 0
        method, path = scope["method"], _raw_path(scope)
        try:
            body = await read_body(receive, scope["headers"], self._limits.body)
            if body is None:
                return
            size = sum(map(len, body))
            answer = await self._answer(method, path, scope["headers"], body)
        except ServingError as error:
            status = _HTTP_STATUS.get(error.code, 500)
            answer = _Answer(_to_json({"error": str(error)}), status)
        except TooLargeError as error:
            answer = _Answer(_to_json({"error": str(error)}), 413)
        except asyncio.CancelledError:
            # The server stops, and this request has had its time to finish.
            answer = _Answer(_to_json({"error": "The server is stopping"}), 503)
        except Exception:
            logger.exception("%s %s failed", method, path)
            answer = _Answer(_to_json({"error": "Internal error"}), 500)
        await self._send(send, answer)
        if access_logger.isEnabledFor(logging.INFO):
            record = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "client": scope["client"] and scope["client"][0],
                "method": method,
                "path": path,
                "status": answer.status,
                "milliseconds": round(1000 * (time.perf_counter() - start), 3),
                "bytes_in": size,
                "bytes_out": len(answer.body),
            }
            access_logger.info("%s", json.dumps(record))

    async def _answer(
        self, method: str, path: str, headers: Headers, body: list[bytes]
    ) -> _Answer:
        if method == "GET" and (match := _STATUS.fullmatch(path)):
            return _Answer(self._status(_read_spec(match)))
        if method == "GET" and (match := _METADATA.fullmatch(path)):
            return _Answer(self._metadata(_read_spec(match)))
        if method == "POST" and (match := _RUN.fullmatch(path)):
            return _Answer(await self._run(match, headers, body))
        if method == "OPTIONS" and _has_web_origin(headers):
            return _Answer(b"")
        if method == "GET" and path == self._metrics_path and self._metrics:
            text = [(b"content-type", b"text/plain")]
            return _Answer(self._metrics.render(), headers=text)
        if method == "GET" and path == "/" and self._show_page:
            models = self._manager.available().items()
            return _Answer(page.render(models), headers=page.HEADERS)
        if method == "GET" and path.lower() == "/v1/models":
            raise invalid_argument("Missing model name in request.")
        if (
            path.lower().startswith("/v1/")
            or method == "OPTIONS"
            or (
                self._metrics_path and path.startswith(f"{self._metrics_path}?")
            )
        ):
            raise invalid_argument(f"Malformed request: {method} {path}")
        raise ServingError(Code.NOT_FOUND, f"Not found: {method} {path}")

    async def _send(self, send: Send, answer: _Answer) -> None:
        size = (b"content-length", b"%d" % len(answer.body))
        cors = _CORS_HEADERS if self._cors else ()
        headers = [*answer.headers, size, *cors]
        start = {"type": "http.response.start", "status": answer.status}
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    def _status(self, spec: "_Spec") -> bytes:
        # A label is ignored here, as TensorFlow Serving does.
        entries = [
            {
                "version": str(status.version),
                "state": status.state.name,
                "status": {
                    "error_code": "OK"
                    if status.error is None
                    else status.error.code.name,
                    "error_message": str(status.error or ""),
                },
            }
            for status in self._manager.statuses(spec.model, spec.version)
        ]
        return _to_json({"model_version_status": entries})

    def _metadata(self, spec: "_Spec") -> bytes:
        with self._manager.lease(*spec) as servable:
            model_spec = {
                "name": servable.name,
                "signature_name": "",
                "version": str(servable.version),
            }
            # Twice, because the inner one is a field of the outer's message.
            signature_def = {"signature_def": servable.signature_defs}
            return _to_json(
                {
                    "model_spec": model_spec,
                    "metadata": {"signature_def": signature_def},
                }
            )

    async def _run(
        self, match: re.Match, headers: Headers, body: list[bytes]
    ) -> bytes:
        """Runs a model in another thread, and counts the request."""
        start = time.perf_counter()
        api, status = match["api"], "OK"
        handle = {
            "predict": self._predict,
            "classify": self._classify,
            "regress": self._regress,
        }[api]
        spec = _read_spec(match)
        limit = self._limits.unpacked_body if is_gzip(headers) else None
        try:
            answer = asyncio.get_running_loop().run_in_executor(
                self._executor, handle, spec, body, limit
            )
            return await asyncio.wait_for(answer, self._timeout)
        except TimeoutError:
            status = Code.DEADLINE_EXCEEDED.name
            raise ServingError(
                Code.DEADLINE_EXCEEDED,
                f"Timed out after {self._timeout:g} s",
            ) from None
        except ServingError as error:
            status = error.code.name
            raise
        except Exception:
            status = Code.INTERNAL.name
            raise
        finally:
            # It may still wait for a thread, when nobody waits for the answer.
            body.clear()
            if self._metrics is not None:
                seconds = time.perf_counter() - start
                self._metrics.observe(spec.model, api, "REST", status, seconds)

    # Each empties the list `body`: a model that runs for longer than its client
    # waits holds its inputs alone.

    def _predict(
        self, spec: "_Spec", body: list[bytes], limit: int | None
    ) -> bytes:
        request = _read_json(body, limit, numbers=True)
        key = json_tensors.signature_name(request)
        with self._manager.lease(*spec) as servable:
            signature = servable.signature(key)
            inputs = json_tensors.decode(request, signature.inputs)
            rows = json_tensors.is_row_form(request)
            del request
            outputs = servable.run(signature, inputs)
        return json_tensors.encode(outputs, rows=rows)

    def _classify(
        self, spec: "_Spec", body: list[bytes], limit: int | None
    ) -> bytes:
        return examples.write_classifications(
            self._run_examples(examples.classify, spec, body, limit)
        )

    def _regress(
        self, spec: "_Spec", body: list[bytes], limit: int | None
    ) -> bytes:
        return examples.write_regressions(
            self._run_examples(examples.regress, spec, body, limit)
        )

    def _run_examples(
        self,
        run: Callable[[Any, str, list[bytes]], Any],
        spec: "_Spec",
        body: list[bytes],
        limit: int | None,
    ) -> Any:
        request = _read_json(body, limit)
        key = json_tensors.signature_name(request)
        serialized = examples.parse_examples(request)
        del request
        with self._manager.lease(*spec) as servable:
            return run(servable, key, serialized)


class _Spec(NamedTuple):
    """Which version of which model is asked for."""

    model: str
    version: int | None
    label: str | None


def _read_spec(match: re.Match) -> _Spec:
    model = unquote(match["model"])
    if match["label"] is not None:
        return _Spec(model, None, unquote(match["label"]))
    if match["version"] is None:
        return _Spec(model, None, None)
    digits = match["version"].lstrip("0") or "0"
    # By length first, because Python refuses to read thousands of digits.
    if len(digits) > 19 or int(digits) > _MAX_INT64:
        raise invalid_argument(
            f"Expected a version of at most {_MAX_INT64}. "
            f"Received: {digits[:40]}"
        )
    return _Spec(model, int(digits), None)


def _raw_path(scope: Message) -> str:
    path = scope["raw_path"].decode("latin-1")
    if scope["query_string"]:
        path += "?" + scope["query_string"].decode("latin-1")
    return path


def _has_web_origin(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"origin" and value.startswith((b"http://", b"https://"))
        for name, value in headers
    )


def _read_json(
    body: list[bytes], max_unpacked: int | None, numbers: bool = False
) -> Mapping[str, Any]:
    text = b"".join(body)  # here, because it takes a while of a large one
    body.clear()
    if max_unpacked is not None:
        text = unpack(text, max_unpacked)
    if len(text) < _LARGE:
        return json_tensors.parse(text, numbers)
    with _parsing:
        return json_tensors.parse(text, numbers)


def _to_json(value: Any) -> bytes:
    # Not orjson, which refuses the lone surrogates that a client may have
    # put into a name.
    return json.dumps(value).encode()
