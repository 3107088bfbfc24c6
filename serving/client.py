"""A client of TF Serving and of the embedded server, over REST and gRPC.

    jpeg = pathlib.Path("cat.jpg").read_bytes()
    with Client("http://127.0.0.1:8501", "muffnet") as client:
        client.predict({"image_bytes": [jpeg]}, signature="serving_bytes")
        client.predict({"images": np.zeros((1, 224, 224, 3), np.float32)})
        client.predict({"images": images}, version=2)  # or version="stable"
        client.status()
        client.metadata()

    async with AsyncClient("grpc://127.0.0.1:8500", "muffnet") as client:
        scores = await client.predict({"images": images})

The first five with curl; images.json holds {"signature_name":
"serving_default", "inputs": {"images": [...]}}:

    url=http://127.0.0.1:8501/v1/models/muffnet
    image=$(base64 < cat.jpg | tr -d '[:space:]')
    curl -d @- $url:predict <<< '{"signature_name": "serving_bytes",
        "inputs": {"image_bytes": [{"b64": "'$image'"}]}}'
    curl -d @images.json $url:predict
    curl -d @images.json $url/versions/2:predict  # or /labels/stable:predict
    curl $url
    curl $url/metadata

REST needs httpx and tenacity, and is faster with orjson; gRPC needs grpcio,
tensorflow-serving-api and tenacity.
"""

import base64
import contextlib
import json
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np
import tenacity

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]

# The server is away, starting or full: a moment later it may answer.
_RETRIED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
_CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_GRPC_OPTIONS = [
    # Photos and batches exceed the 4 MB that gRPC would take.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Else attempts in the second after a failed one would not connect.
    ("grpc.initial_reconnect_backoff_ms", 100),
]
# A function of `timeout` that asks, and one that reads the answer.
_Call = tuple[Callable[..., Any], Callable[[Any], Any]]


class ServingError(Exception):
    """A call failed.

    Attributes:
        code: name of the gRPC status code, such as `"NOT_FOUND"`; over REST,
            of the one that the HTTP status stands for, or `"UNKNOWN"`.
        text: what the server said.
    """

    def __init__(self, code: str, text: str):
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class Client:
    """Asks a server about one model; threads may share it.

    A server that is away or full is asked again, after random waits that grow
    exponentially. All other failures are raised at once, as `ServingError`.

    Args:
        url: `http://HOST:PORT`, `https://HOST:PORT` or `grpc://HOST:PORT`.
        model: the model's name.
        timeout: seconds that a call may last, attempts and waits included.
            (Over REST, those left bound each of an attempt's reads and writes.)
        attempts: how often a call is tried.

    Raises:
        ValueError: if `url` is none of these.
    """

    _is_async = False

    def __init__(
        self, url: str, model: str, timeout: float = 30.0, attempts: int = 5
    ):
        scheme, _, address = url.rstrip("/").partition("://")
        if scheme not in ("http", "https", "grpc") or not address:
            raise ValueError(
                "`url` must be http://, https:// or grpc://, and an address. "
                f"Received: url={url!r}"
            )
        protocol = _Grpc if scheme == "grpc" else _Rest
        self._protocol: Any = protocol(scheme, address, model, self._is_async)
        self._timeout = timeout
        self._policy: dict[str, Any] = {
            "retry": tenacity.retry_if_exception(
                lambda error: getattr(error, "code", None) in _RETRIED
            ),
            "wait": tenacity.wait_random_exponential(multiplier=0.2, max=5),
            "stop": tenacity.stop_after_attempt(attempts)
            | tenacity.stop_before_delay(timeout),
            "reraise": True,
        }

    def predict(
        self,
        inputs: Mapping[str, Any],
        signature: str = "serving_default",
        version: int | str | None = None,
    ) -> Any:
        """Runs the model.

        Args:
            inputs: arrays or lists by input name, with a batch dimension;
                encoded images are `bytes`. gRPC wants the model's own dtypes.
            signature: name of the signature.
            version: number or label of a version, in place of the latest.

        Returns:
            The output, an array; of several, a dict of them by name. REST
            says no dtypes: its floats are float64, its text is `str`.
        """
        return self._call("predict", version, inputs, signature)

    def status(self, version: int | None = None) -> Any:
        """Returns the states of the versions, in the form of REST's JSON."""
        return self._call("status", version)

    def metadata(self, version: int | str | None = None) -> Any:
        """Returns the signatures, in the form of REST's JSON."""
        return self._call("metadata", version)

    def _call(self, method: str, *args: Any) -> Any:
        send, read = getattr(self._protocol, method)(*args)
        end = time.monotonic() + self._timeout

        def attempt() -> Any:
            with self._protocol.errors():
                return read(send(timeout=_until(end)))

        return tenacity.Retrying(**self._policy)(attempt)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        self._protocol.close()


class AsyncClient(Client):
    """A `Client` for `async with`, whose methods are awaited."""

    _is_async = True

    async def _call(self, method: str, *args: Any) -> Any:
        send, read = getattr(self._protocol, method)(*args)
        end = time.monotonic() + self._timeout

        async def attempt() -> Any:
            with self._protocol.errors():
                return read(await send(timeout=_until(end)))

        return await tenacity.AsyncRetrying(**self._policy)(attempt)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._protocol.close()


class _Rest:
    def __init__(self, scheme: str, address: str, model: str, is_async: bool):
        import httpx

        http: Any = httpx.AsyncClient() if is_async else httpx.Client()
        self.close = http.aclose if is_async else http.close
        self._http = http
        self._url = f"{scheme}://{address}/v1/models/{quote(model, safe='')}"

    def predict(
        self,
        version: int | str | None,
        inputs: Mapping[str, Any],
        signature: str,
    ) -> _Call:
        body = _to_json({"signature_name": signature, "inputs": inputs})
        url = f"{self._version(version)}:predict"
        send = partial(self._http.post, url, content=body)
        return send, lambda answer: _to_arrays(_read(answer)["outputs"])

    def status(self, version: int | None) -> _Call:
        return partial(self._http.get, self._version(version)), _read

    def metadata(self, version: int | str | None) -> _Call:
        url = f"{self._version(version)}/metadata"
        return partial(self._http.get, url), _read

    def _version(self, version: int | str | None) -> str:
        if version is None:
            return self._url
        if isinstance(version, str):
            return f"{self._url}/labels/{quote(version, safe='')}"
        return f"{self._url}/versions/{version}"

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TimeoutException as error:
            raise ServingError("DEADLINE_EXCEEDED", repr(error)) from error
        except httpx.TransportError as error:
            raise ServingError("UNAVAILABLE", repr(error)) from error


class _Grpc:
    def __init__(self, _: str, address: str, model: str, is_async: bool):
        import grpc
        from tensorflow_serving.apis import model_service_pb2_grpc as models
        from tensorflow_serving.apis import prediction_service_pb2_grpc as runs

        library = grpc.aio if is_async else grpc
        channel = library.insecure_channel(address, _GRPC_OPTIONS)
        self.close = channel.close
        self._runs = runs.PredictionServiceStub(channel)
        self._models = models.ModelServiceStub(channel)
        self._model = model

    def predict(
        self,
        version: int | str | None,
        inputs: Mapping[str, Any],
        signature: str,
    ) -> _Call:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(
            model_spec=self._spec(version, signature_name=signature),
            inputs={k: tf.make_tensor_proto(x) for k, x in inputs.items()},
        )

        def read(answer: Any) -> Any:
            outputs = {k: tf.make_ndarray(x) for k, x in answer.outputs.items()}
            return outputs if len(outputs) > 1 else outputs.popitem()[1]

        return partial(self._runs.Predict, request), read

    def status(self, version: int | None) -> _Call:
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest(
            model_spec=self._spec(version)
        )
        return partial(self._models.GetModelStatus, request), _to_dict

    def metadata(self, version: int | str | None) -> _Call:
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec(version), metadata_field=["signature_def"]
        )

        def read(answer: Any) -> Any:
            value = _to_dict(answer)
            # The type of a message that may be of any; REST leaves it out.
            del value["metadata"]["signature_def"]["@type"]
            return value

        return partial(self._runs.GetModelMetadata, request), read

    def _spec(self, version: int | str | None, **more: str) -> dict[str, Any]:
        spec: dict[str, Any] = {"name": self._model, **more}
        if isinstance(version, str):
            spec["version_label"] = version
        elif version is not None:
            spec["version"] = {"value": version}
        return spec

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            raise ServingError(error.code().name, error.details()) from error


def _until(end: float) -> float:
    return max(0.001, end - time.monotonic())


def _to_json(request: dict[str, Any]) -> bytes:
    def default(value: Any) -> Any:
        if isinstance(value, bytes):
            return {"b64": base64.b64encode(value).decode()}
        if isinstance(value, np.ndarray | np.generic):
            return value.tolist()
        raise TypeError(f"JSON has no form for {type(value)}")

    arrays = [x for x in request["inputs"].values() if hasattr(x, "dtype")]
    finite = all(np.isfinite(x).all() for x in arrays if x.dtype.kind == "f")
    if orjson and finite:  # it would write NaN as null
        return orjson.dumps(request, default, orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps(request, default=default).encode()


def _read(answer: Any) -> Any:
    value: Any = None
    with contextlib.suppress(ValueError):
        # Not by orjson, which refuses the NaN that servers write.
        value = json.loads(answer.content, object_hook=_decode_bytes)
    if answer.status_code == 200 and value is not None:
        return value
    # A proxy in between answers in forms of its own.
    known = isinstance(value, dict) and "error" in value
    text = value["error"] if known else answer.text
    raise ServingError(_CODES.get(answer.status_code, "UNKNOWN"), text)


def _decode_bytes(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["b64"]) if value.keys() == {"b64"} else value


def _to_arrays(outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return {name: _to_arrays(value) for name, value in outputs.items()}
    array = np.array(outputs)
    # Of objects, because numpy's own strings lose zeros at their ends.
    return np.array(outputs, object) if array.dtype.kind in "SU" else array


def _to_dict(message: Any) -> dict[str, Any]:
    from google.protobuf import json_format

    return json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
