"""The client, against the embedded server and stand-ins of others."""

import asyncio
import concurrent.futures
import http.server
import json
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_muffnet.model_server import ModelServer
from serving import client as client_module
from serving.client import AsyncClient
from serving.client import Client
from serving.client import ServingError

BINARY = b"\xff\xd8 no text \x00\x00"


class Awaited:
    """An AsyncClient that is called as a Client is."""

    def __init__(self, *args, **kwargs):
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(self._make(args, kwargs))

    async def _make(self, args, kwargs):
        return AsyncClient(*args, **kwargs)

    def __enter__(self):
        self._loop.run_until_complete(self._client.__aenter__())
        return self

    def __exit__(self, *exception):
        self._loop.run_until_complete(self._client.__aexit__(*exception))
        self._loop.close()

    def __getattr__(self, name):
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._loop.run_until_complete(
            method(*args, **kwargs)
        )


KINDS = pytest.mark.parametrize("kind", [Client, Awaited])


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    """The embedded server, with a model of several signatures."""
    path = tmp_path_factory.mktemp("models") / "toy"
    model = tf.Module()

    def signature(function, **specs):
        return tf.function(function).get_concrete_function(
            **{
                name: tf.TensorSpec(shape, dtype, name=name)
                for name, (shape, dtype) in specs.items()
            }
        )

    image = ([None, None, None, 3], tf.float32)
    strings = ([None], tf.string)
    tf.saved_model.save(
        model,
        path / "7",
        {
            "serving_default": signature(lambda x: {"y": 2 * x}, x=image),
            "two": signature(lambda a, b: {"a": a, "b": b}, a=image, b=strings),
            "copy": signature(lambda x: {"y_bytes": x}, x=strings),
            "text": signature(lambda x: {"y": x}, x=strings),
        },
    )
    with ModelServer(path, model_name="my toy") as server:
        yield server.url


class Stub(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """Serves one model, which doubles: version 2, labeled stable."""

    def __init__(self):
        self.failures = []  # codes of the next answers
        self.calls = 0
        self.delay = 0.0

    def Predict(self, request, context):
        self.calls += 1
        time.sleep(self.delay)
        if self.failures:
            context.abort(self.failures.pop(0), "not now")
        spec = request.model_spec
        if spec.HasField("version") and spec.version.value != 2:
            text = "Servable not found for request: Specific"
            context.abort(grpc.StatusCode.NOT_FOUND, text)
        if spec.HasField("version_label") and spec.version_label != "stable":
            text = f"Unrecognized servable version label: {spec.version_label}"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        answer = predict_pb2.PredictResponse()
        answer.model_spec.name = spec.name
        if spec.signature_name == "serving_bytes":
            for name, proto in request.inputs.items():
                answer.outputs[name].CopyFrom(proto)
            answer.outputs["more"].CopyFrom(tf.make_tensor_proto([1]))
            return answer
        x = tf.make_ndarray(request.inputs["x"])
        if x.dtype != np.float32:
            text = f"Expects arg[0] to be float but {x.dtype} is provided"
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        # As TF Serving writes: one field for each element.
        answer.outputs["y"].dtype = tf.float32.as_datatype_enum
        for size in x.shape:
            answer.outputs["y"].tensor_shape.dim.add(size=size)
        answer.outputs["y"].float_val.extend((2 * x).ravel().tolist())
        return answer

    def GetModelStatus(self, request, context):
        if request.model_spec.name != "my toy":
            text = "Could not find any versions of model other"
            context.abort(grpc.StatusCode.NOT_FOUND, text)
        answer = get_model_status_pb2.GetModelStatusResponse()
        version = answer.model_version_status.add(version=2, state=30)
        version.status.error_code = 0
        version.status.error_message = ""
        return answer

    def GetModelMetadata(self, request, context):
        assert request.metadata_field == ["signature_def"]
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name = request.model_spec.name
        answer.model_spec.version.value = 2
        map_ = get_model_metadata_pb2.SignatureDefMap()
        tensor = map_.signature_def["serving_default"].inputs["x"]
        tensor.name, tensor.dtype = "x:0", 1
        tensor.tensor_shape.dim.add(size=-1)
        answer.metadata["signature_def"].Pack(map_)
        return answer


@pytest.fixture
def stub():
    """Gives a Stub and its URL."""
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(4),
        options=[("grpc.max_receive_message_length", -1)],
    )
    stub = Stub()
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        stub, server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(stub, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    stub.url = f"grpc://127.0.0.1:{port}"
    yield stub
    server.stop(None)


@pytest.fixture
def fake():
    """An HTTP server that records requests and answers as it is told."""
    answers, requests = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.command, self.path, body))
            status, body = answers.pop(0) if answers else (200, b"{}")
            if status is None:  # hangs up
                self.close_connection = True
                return
            time.sleep(body if isinstance(body, float) else 0)
            body = body if isinstance(body, bytes) else b"{}"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.headers["Content-Length"] = "0"
            self.do_POST()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    server.answers, server.requests = answers, requests
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    wait = client_module.tenacity.wait_random_exponential
    monkeypatch.setattr(
        client_module.tenacity,
        "wait_random_exponential",
        lambda multiplier, max: wait(multiplier=multiplier / 100, max=max),
    )


@pytest.fixture(params=["rest", "grpc"])
def failing(request, fake, stub):
    """Gives a URL, what makes the next calls fail, and what counts calls."""
    if request.param == "rest":

        def fail(*statuses):
            fake.answers[:] = [(s, b'{"error": "not now"}') for s in statuses]
            fake.answers.append((200, b'{"outputs": [[2.0]]}'))

        return fake.url, fail, lambda: len(fake.requests)

    def fail(*statuses):
        names = [client_module._CODES[status] for status in statuses]
        stub.failures[:] = [grpc.StatusCode[name] for name in names]

    return stub.url, fail, lambda: stub.calls


# Predict, status and metadata


@KINDS
@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize(
    "view",
    [
        lambda images: images,
        lambda images: images[:, ::-1, ::2],
        np.asfortranarray,
        lambda images: np.where(images > 1, np.nan, images),
        lambda images: np.where(images > 1, -np.inf, images),
    ],
    ids=["contiguous", "sliced", "Fortran", "NaN", "infinite"],
)
def test_float_images(rest, stub, kind, protocol, view):
    images = np.random.default_rng(0).normal(size=(2, 5, 4, 3))
    images = view(images.astype(np.float32))
    with kind(rest if protocol == "rest" else stub.url, "my toy") as client:
        answer = client.predict({"x": images})
    np.testing.assert_array_equal(answer.astype(np.float32), 2 * images)


@KINDS
@pytest.mark.parametrize("signature", ["copy", "serving_bytes"])
def test_encoded_images(rest, stub, kind, signature):
    url = rest if signature == "copy" else stub.url
    with kind(url, "my toy") as client:
        answer = client.predict({"x": [BINARY, b"", b"abc\x00"]}, signature)
    if signature == "serving_bytes":
        assert answer.keys() == {"x", "more"}
        answer = answer["x"]
    assert answer.tolist() == [BINARY, b"", b"abc\x00"]


def test_several_tensors_over_rest(rest):
    images = np.ones((1, 1, 1, 3), np.float32)
    with Client(rest, "my toy") as client:
        answer = client.predict({"a": images, "b": ["text\x00"]}, "two")
        text = client.predict({"x": np.array([b"text"])}, "text")
    np.testing.assert_array_equal(answer["a"], images)
    assert answer["b"].tolist() == ["text\x00"]
    assert text.tolist() == ["text"]


def test_without_orjson(rest, monkeypatch):
    monkeypatch.setattr(client_module, "orjson", None)
    images = np.random.default_rng(0).normal(size=(1, 2, 2, 3))
    images = images.astype(np.float32)
    with Client(rest, "my toy") as client:
        answer = client.predict({"x": images})
        copied = client.predict({"x": [BINARY]}, "copy")
    np.testing.assert_array_equal(answer.astype(np.float32), 2 * images)
    assert copied.tolist() == [BINARY]


@KINDS
def test_messages_beyond_four_megabytes(stub, kind):
    images = np.zeros((2, 512, 512, 3), np.float32)
    with kind(stub.url, "my toy") as client:
        assert client.predict({"x": images}).shape == images.shape


@KINDS
def test_status(rest, stub, kind):
    state = {"state": "AVAILABLE"}
    state["status"] = {"error_code": "OK", "error_message": ""}
    for url, version in ((rest, "7"), (stub.url, "2")):
        expected = {"model_version_status": [{"version": version, **state}]}
        with kind(url, "my toy") as client:
            assert client.status() == expected
            assert client.status(int(version)) == expected
        with (
            kind(url, "other") as client,
            pytest.raises(ServingError, match="any versions of") as raised,
        ):
            client.status()
        assert raised.value.code == "NOT_FOUND"


@KINDS
def test_metadata(rest, stub, kind):
    for url, version in ((rest, 7), (stub.url, 2)):
        with kind(url, "my toy") as client:
            answer = client.metadata(version)
        assert answer["model_spec"] == {
            "name": "my toy",
            "signature_name": "",
            "version": str(version),
        }
        assert answer["metadata"].keys() == {"signature_def"}
        assert answer["metadata"]["signature_def"].keys() == {"signature_def"}
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        x = signatures["serving_default"]["inputs"]["x"]
        assert x["dtype"] == "DT_FLOAT"
        assert x["tensor_shape"]["dim"][0] == {"size": "-1", "name": ""}


@KINDS
def test_versions_and_labels(rest, stub, kind):
    images = np.ones((1, 1, 1, 3), np.float32)
    for url, version in ((rest, 7), (stub.url, 2)):
        with kind(url, "my toy") as client:
            assert client.predict({"x": images}, version=version).max() == 2
            with pytest.raises(ServingError, match="Servable not") as unknown:
                client.predict({"x": images}, version=3)
            with pytest.raises(ServingError, match="new") as unlabelled:
                client.predict({"x": images}, version="new")
        assert unknown.value.code == "NOT_FOUND"
        assert unlabelled.value.code == "INVALID_ARGUMENT"
    with kind(stub.url, "my toy") as client:
        assert client.predict({"x": images}, version="stable").max() == 2


# Failures


@KINDS
def test_wrong_requests_are_not_repeated(rest, stub, kind):
    with kind(rest, "my toy") as client:
        with pytest.raises(ServingError) as raised:
            client.predict({"x": [["no image"]]})
        assert raised.value.code == "INVALID_ARGUMENT"
        assert "is not of expected type: float" in raised.value.text
        with pytest.raises(TypeError, match="JSON"):
            client.predict({"x": [object()]})
    with kind(stub.url, "my toy") as client:
        with pytest.raises(ServingError) as raised:
            client.predict({"x": np.zeros((1, 1), np.int32)})
        assert raised.value.code == "INVALID_ARGUMENT"
        assert raised.value.text == (
            "Expects arg[0] to be float but int32 is provided"
        )
    assert stub.calls == 1


@KINDS
def test_busy_servers_are_asked_again(failing, kind):
    url, fail, calls = failing
    fail(503, 429, 503)
    with kind(url, "m") as client:
        answer = client.predict({"x": np.ones((1, 1), np.float32)})
    assert answer.tolist() == [[2.0]]
    assert calls() == 4


@KINDS
def test_attempts_are_limited(failing, kind):
    url, fail, calls = failing
    fail(503, 503, 503, 503)
    with (
        kind(url, "m", attempts=3) as client,
        pytest.raises(ServingError, match="UNAVAILABLE: not now"),
    ):
        client.predict({"x": np.ones((1, 1), np.float32)})
    assert calls() == 3


@KINDS
@pytest.mark.parametrize("status", [400, 404, 501, 504])
def test_other_failures_are_final(failing, kind, status):
    url, fail, calls = failing
    fail(status)
    with (
        kind(url, "m") as client,
        pytest.raises(ServingError, match="not now") as raised,
    ):
        client.predict({"x": np.ones((1, 1), np.float32)})
    assert raised.value.code == client_module._CODES[status]
    assert calls() == 1


@KINDS
@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_is_not_there(kind, scheme):
    with http.server.HTTPServer(("127.0.0.1", 0), None) as listener:
        port = listener.server_port
    with (
        kind(f"{scheme}://127.0.0.1:{port}", "m", attempts=2) as client,
        pytest.raises(ServingError) as raised,
    ):
        client.status()
    assert raised.value.code == "UNAVAILABLE"


@KINDS
def test_connections_that_break(fake, kind):
    fake.answers += [(None, b""), (200, b'{"outputs": [1.0]}')]
    with kind(fake.url, "m") as client:
        assert client.predict({"x": [1.0]}).tolist() == [1.0]
    assert len(fake.requests) == 2


@KINDS
def test_deadlines(fake, stub, kind):
    fake.answers.append((200, 10.0))
    with (
        kind(fake.url, "m", timeout=2) as client,
        pytest.raises(ServingError, match="DEADLINE_EXCEEDED"),
    ):
        client.predict({"x": [1.0]})
    assert len(fake.requests) == 1
    stub.delay = 1.0
    with (
        kind(stub.url, "m", timeout=0.4) as client,
        pytest.raises(ServingError, match="DEADLINE_EXCEEDED"),
    ):
        client.predict({"x": np.ones((1, 1), np.float32)})


@KINDS
def test_no_attempt_starts_after_the_deadline(fake, kind, monkeypatch):
    monkeypatch.setattr(
        client_module.tenacity,
        "wait_random_exponential",
        lambda **_: client_module.tenacity.wait_fixed(60),
    )
    fake.answers += [(503, b'{"error": "full"}')] * 2
    with (
        kind(fake.url, "m", timeout=5) as client,
        pytest.raises(ServingError, match="UNAVAILABLE: full"),
    ):
        client.status()
    assert len(fake.requests) == 1


@pytest.mark.parametrize("status", [200, 302, 502])
def test_answers_of_others_than_the_server(fake, status):
    fake.answers.append((status, b"<html>A proxy</html>"))
    with (
        Client(fake.url, "m") as client,
        pytest.raises(ServingError, match="UNKNOWN: <html>A proxy"),
    ):
        client.status()


@pytest.mark.parametrize("url", ["127.0.0.1:8501", "ftp://host", "http://"])
def test_urls_of_other_forms(url):
    with pytest.raises(ValueError, match=f"`url` must be .*url='{url}'"):
        Client(url, "m")


# Use at a time, and what the docstring promises


def test_threads_share_a_client(rest):
    images = np.ones((1, 1, 1, 3), np.float32)
    with (
        Client(rest, "my toy") as client,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        answers = list(
            pool.map(lambda i: client.predict({"x": i * images}), range(64))
        )
    assert [answer.max() for answer in answers] == [2 * i for i in range(64)]


def test_tasks_share_a_client(fake):
    # Half of the calls fail once, so that retries run side by side.
    fake.answers += [(503, b"{}"), (200, b'{"outputs": [1]}')] * 16

    async def ask():
        async with AsyncClient(fake.url, "m", attempts=99) as client:
            calls = [client.predict({"x": [1]}) for _ in range(16)]
            return await asyncio.gather(*calls)

    fake.answers += [(200, b'{"outputs": [1]}')] * 16
    assert [answer.tolist() for answer in asyncio.run(ask())] == [[1]] * 16


def test_curl_sends_the_same(fake, tmp_path):
    (tmp_path / "cat.jpg").write_bytes(BINARY * 1000)
    images = {"signature_name": "serving_default"}
    images["inputs"] = {"images": np.zeros((1, 2, 2, 3)).tolist()}
    (tmp_path / "images.json").write_text(json.dumps(images))
    lines = client_module.__doc__.partition("    url=")[2]
    lines = "url=" + lines.partition("\n\n")[0]
    lines = lines.replace("http://127.0.0.1:8501", fake.url)
    curl = ["bash", "-ec", lines.replace("curl", "curl -sS")]
    subprocess.run(curl, cwd=tmp_path, check=True, capture_output=True)
    of_curl = fake.requests.copy()
    fake.requests.clear()
    fake.answers += [(200, b'{"outputs": []}')] * 3
    with Client(fake.url, "muffnet") as client:
        zeros = np.zeros((1, 2, 2, 3), np.float32)
        client.predict({"image_bytes": [BINARY * 1000]}, "serving_bytes")
        client.predict({"images": zeros})
        client.predict({"images": zeros}, version=2)
        client.status()
        client.metadata()

    def meaning(requests):
        return [(m, path, json.loads(b or "null")) for m, path, b in requests]

    assert meaning(of_curl) == meaning(fake.requests)
    assert [path for _, path, _ in of_curl] == [
        "/v1/models/muffnet:predict",
        "/v1/models/muffnet:predict",
        "/v1/models/muffnet/versions/2:predict",
        "/v1/models/muffnet",
        "/v1/models/muffnet/metadata",
    ]


def test_names_are_quoted(fake):
    with Client(fake.url + "/", "a/b c") as client:
        client.metadata("x:y")
    assert fake.requests[0][1] == "/v1/models/a%2Fb%20c/labels/x%3Ay/metadata"


def test_rest_needs_no_grpc(run_python):
    code = (
        "import sys\n"
        "from serving.client import Client\n"
        "with Client('http://127.0.0.1:8501', 'm'): pass\n"
        "print({'grpc', 'tensorflow', 'tensorflow_serving'} & set(sys.modules))"
    )
    assert run_python("-c", code) == "set()\n"
