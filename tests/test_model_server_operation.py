"""The server in operation: versions that come and go, configuration, batching,
monitoring, warm-up and the command's flags."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from keras_muffnet.model_server import ModelServer
from keras_muffnet.model_server import json_tensors
from keras_muffnet.model_server.batching import Batcher
from keras_muffnet.model_server.batching import BatchingParameters
from keras_muffnet.model_server.loader import load
from keras_muffnet.model_server.options import LoadOptions
from tests.conftest import ROOT
from tests.conftest import free_port

release = threading.Event()


def _hold(x):
    release.wait(60)
    return x


class Toy(tf.Module):
    """Multiplies by its version, and counts its runs."""

    def __init__(self, factor):
        super().__init__()
        self.factor = tf.Variable(float(factor))
        self.runs = tf.Variable(0.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def scale(self, x):
        runs = self.runs.assign_add(1.0)
        ones = tf.ones_like(x)
        return {"y": x * self.factor, "runs": ones * runs}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def batch(self, x):
        """Tells how many rows ran with it."""
        with tf.control_dependencies([tf.debugging.assert_less(x, 100.0)]):
            size = tf.cast(tf.size(x), tf.float32)
        return {"y": x * 0.0 + size}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify(self, inputs):
        features = {"x": tf.io.FixedLenFeature([], tf.float32)}
        x = tf.io.parse_example(inputs, features)["x"][:, tf.newaxis]
        return {"scores": tf.concat([x, 1 - x], axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def regress(self, inputs):
        features = {"x": tf.io.FixedLenFeature([], tf.float32)}
        return {"outputs": tf.io.parse_example(inputs, features)["x"]}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, "x")])
    def hold(self, x):
        return {"y": tf.numpy_function(_hold, [x], tf.float32)}


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Versions 1, 2 and 3, to be copied from here."""
    folder = tmp_path_factory.mktemp("versions")
    # Alive for as long as graphs call back into this process.
    toys = [Toy(version) for version in (1, 2, 3)]
    for version, toy in enumerate(toys, start=1):
        signatures = {
            "serving_default": toy.scale,
            "batch": toy.batch,
            "classify": toy.classify,
            "regress": toy.regress,
            "hold": toy.hold,
        }
        tf.saved_model.save(toy, folder / str(version), signatures)
    yield folder


@pytest.fixture
def base(versions, tmp_path):
    shutil.copytree(versions / "1", tmp_path / "toy" / "1")
    return tmp_path / "toy"


def publish(versions, base, version):
    """Copies a version aside and renames it."""
    shutil.copytree(versions / str(version), base / f"new-{version}")
    (base / f"new-{version}").rename(base / str(version))


class Client:
    """One connection to a server."""

    def __init__(self, server):
        url = getattr(server, "url", server)
        self.connection = http.client.HTTPConnection(
            url.removeprefix("http://"), timeout=60
        )

    def exchange(self, method, path, body=None, headers=None):
        self.connection.request(method, path, body, headers or {})
        response = self.connection.getresponse()
        return response, response.read()

    def call(self, method, path, body=None):
        body = None if body is None else json.dumps(body)
        response, answer = self.exchange(method, path, body)
        return response.status, json.loads(answer)

    def factor(self, where=""):
        """Returns the factor of the version that answers, or the error."""
        status, answer = self.call(
            "POST", f"/v1/models/toy{where}:predict", {"instances": [1]}
        )
        if status != 200:
            return status, answer["error"]
        return answer["predictions"][0]["y"]

    def states(self):
        _, answer = self.call("GET", "/v1/models/toy")
        return {
            int(entry["version"]): entry["state"]
            for entry in answer["model_version_status"]
        }


def wait_until(condition):
    for _ in range(1200):
        if condition():
            return
        threading.Event().wait(0.05)
    pytest.fail(f"waited a minute for {condition}")


# Versions


def test_versions_switch_without_a_failed_request(base, versions):
    stop = threading.Event()
    factors = []

    def ask(_):
        client = Client(server)
        found = []
        while not stop.is_set():
            found.append(client.factor())
        return found

    with (
        ModelServer(
            base, model_name="toy", file_system_poll_seconds=0.05
        ) as server,
        ThreadPoolExecutor(4) as clients,
    ):
        asked = [clients.submit(ask, number) for number in range(4)]
        try:
            client = Client(server)
            for version in (2, 3):
                publish(versions, base, version)
                wait_until(lambda v=version: client.factor() == v)
            shutil.rmtree(base / "3")
            wait_until(lambda: client.factor() == 2.0)
        finally:
            stop.set()
        factors = [request.result() for request in asked]
        # A version ends in a thread of its own, after its last request.
        ended = {3: "END", 2: "AVAILABLE", 1: "END"}
        wait_until(lambda: client.states() == ended)
    for found in factors:
        order = [found[0]]
        for factor in found:
            if factor != order[-1]:
                order.append(factor)
        assert order == [1.0, 2.0, 3.0, 2.0][-len(order) :]


CONFIG = """
model_config_list {{ config {{
  name: "toy" base_path: "{}" model_platform: "tensorflow"
  model_version_policy {{ all {{}} }}
  version_labels {{ key: "stable" value: {} }}
}} }}
"""


def test_the_configuration_is_read_again(base, versions, tmp_path):
    publish(versions, base, 2)
    file = tmp_path / "models.config"
    file.write_text(CONFIG.format(base, 1))
    with ModelServer(
        model_config_file=file, config_poll_seconds=0.05
    ) as server:
        client = Client(server)
        assert server.versions == {"toy": [2, 1]}
        assert client.factor() == client.factor("/versions/2") == 2.0
        assert client.factor("/labels/stable") == 1.0
        assert client.factor("/labels/st%61ble") == 1.0
        unknown = (400, "Unrecognized servable version label: new")
        assert client.factor("/labels/new") == unknown
        assert client.factor("/versions/1/labels/stable")[0] == 400
        # The label is ignored.
        status, _ = client.call("GET", "/v1/models/toy/labels/new")
        assert status == 200
        _, answer = client.call("GET", "/v1/models/toy/labels/stable/metadata")
        assert answer["model_spec"]["version"] == "1"
        file.write_text("no configuration")
        threading.Event().wait(0.2)
        assert client.factor("/labels/stable") == 1.0
        file.write_text(CONFIG.format(base, 2))
        wait_until(lambda: client.factor("/labels/stable") == 2.0)


def test_a_label_of_a_version_that_is_not_there(base, tmp_path):
    file = tmp_path / "models.config"
    file.write_text(CONFIG.format(base, 2))
    server = ModelServer(model_config_file=file)
    with pytest.raises(ValueError, match="label stable to version 2 of model"):
        server.__enter__()
    with ModelServer(
        model_config_file=file, allow_labels_for_unavailable=True
    ) as server:
        text = "Servable not found for request: Specific(toy, 2)"
        assert Client(server).factor("/labels/stable") == (404, text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "One of `model_base_path` and `model_config_file`"),
        (
            {"model_base_path": "/m", "port": None},
            "One of `port`, `grpc_port` and `grpc.socket_path`",
        ),
        ({"model_base_path": "/m", "threads": 0}, "`threads`"),
        ({"port": -1}, "`port` must be .*port=-1"),
        ({"grpc_port": 65536}, "`grpc_port` must be .*grpc_port=65536"),
        ({"timeout": 0}, "`timeout` must be a positive number. Received: 0"),
        ({"runtime": "torch"}, "`runtime` must be .*runtime='torch'"),
        (
            {"model_base_path": "/m", "batching_parameters_file": "f"},
            "`batching_parameters_file` needs `enable_batching`",
        ),
    ],
)
def test_arguments_that_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        ModelServer(**arguments)


# Classify and regress; section 6.


def test_classify_and_regress(base):
    with ModelServer(base, model_name="toy") as server:
        client = Client(server)
        request = {
            "signature_name": "classify",
            "context": {"x": 0.25},
            "examples": [{}, {"x": 1.0}],
        }
        assert client.call("POST", "/v1/models/toy:classify", request) == (
            200,
            {"results": [[["", 0.25], ["", 0.75]], [["", 1.0], ["", 0.0]]]},
        )
        request["signature_name"] = "regress"
        assert client.call(
            "POST", "/v1/models/toy/versions/1:regress", request
        ) == (200, {"results": [0.25, 1.0]})
        status, answer = client.call("POST", "/v1/models/toy:regress", {})
        assert status == 400 and "'examples'" in answer["error"]
        status, answer = client.call("POST", "/v1/models/n:regress", request)
        assert (status, answer["error"]) == (
            404,
            "Servable not found for request: Latest(n)",
        )


# Batching


def test_requests_are_joined(base, tmp_path):
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 60000000 }"
    )
    with (
        ModelServer(
            base,
            model_name="toy",
            enable_batching=True,
            batching_parameters_file=file,
        ) as server,
        ThreadPoolExecutor(4) as clients,
    ):

        def ask(values):
            return Client(server).call(
                "POST",
                "/v1/models/toy:predict",
                {"signature_name": "batch", "instances": values},
            )

        # Nothing runs before the eighth row is there.
        answers = list(clients.map(ask, [[1], [2, 3], [4, 5, 6], [7, 8]]))
        assert answers == [
            (200, {"predictions": [8.0] * count}) for count in (1, 2, 3, 2)
        ]
        # The one that fails does so alone.
        answers = list(clients.map(ask, [[1], [2, 300], [4, 5, 6], [7, 8]]))
        assert [status for status, _ in answers] == [200, 400, 200, 200]
        assert [len(a["predictions"]) for s, a in answers if s == 200] == [
            1,
            3,
            2,
        ]
        status, answer = ask(list(range(9)))
        text = "Task size 9 is larger than maximum input batch size 8"
        assert (status, answer["error"]) == (400, text)


# Monitoring


def test_versions_have_their_own_batching(base, versions):
    shutil.copytree(versions / "2", base / "2")
    text = "allowed_batch_sizes: 4 max_batch_size { value: 4 }"
    (base / "1" / "batching_params.pbtxt").write_text(text)
    common = Batcher(BatchingParameters(num_batch_threads=1))
    options = LoadOptions(batching_per_version=True)
    rows = []
    for version in (1, 2):
        servable = load(
            base / str(version), "toy", version, batcher=common, options=options
        )
        signature = servable.signature("batch")
        x = np.ones(3, np.float32)
        rows.append(servable.run(signature, {"x": x})["y"].tolist())
        servable.close()
    # The first is padded to its allowed size, the second not batched.
    assert rows == [[4, 4, 4], [3, 3, 3]]
    (base / "1" / "batching_params.pbtxt").write_text("none")
    with pytest.raises(ValueError, match=r"batching_params\.pbtxt"):
        load(base / "1", "toy", 1, batcher=common, options=options)
    common.close()


def test_metrics(base, tmp_path):
    file = tmp_path / "monitoring.config"
    file.write_text('prometheus_config { enable: true path: "/m/x" }')
    with ModelServer(
        base, model_name="toy", monitoring_config_file=file
    ) as server:
        client = Client(server)
        client.factor()
        client.factor()
        client.factor("/versions/9")
        client.call("POST", "/v1/models/toy:predict", {})
        client.call("POST", "/v1/models/elsewhere:predict", {"instances": [1]})
        response, text = client.exchange("GET", "/m/x")
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain")
        lines = text.decode().splitlines()
        count = ":tensorflow:serving:request_count"
        latency = ":tensorflow:serving:request_latency"
        labels = 'model_name="toy",API="predict",entrypoint="REST"'
        for line in (
            f"# TYPE {count} counter",
            f'{count}{{model_name="toy",status="OK"}} 2',
            f'{count}{{model_name="toy",status="NOT_FOUND"}} 1',
            f'{count}{{model_name="toy",status="INVALID_ARGUMENT"}} 1',
            f"# TYPE {latency} histogram",
            f'{latency}_bucket{{{labels},le="+Inf"}} 2',
            f"{latency}_count{{{labels}}} 2",
            ":tensorflow:core:graph_runs{} 2",
        ):
            assert line in lines
        assert "elsewhere" not in text.decode()
        assert client.exchange("GET", "/m/x?a=1")[0].status == 400
        assert client.exchange("POST", "/m/x")[0].status == 404


def test_no_metrics_unless_asked_for(base):
    with ModelServer(base, model_name="toy") as server:
        client = Client(server)
        path = "/monitoring/prometheus/metrics"
        assert client.exchange("GET", path)[0].status == 404


# Pages of other origins, and the page


@pytest.mark.parametrize("cors", [False, True])
def test_cors(base, cors):
    with ModelServer(base, model_name="toy", cors=cors) as server:
        client = Client(server)
        origin = {"Origin": "http://example.org"}
        for method, headers, status in (
            ("OPTIONS", origin, 200),
            ("OPTIONS", {}, 400),
            ("OPTIONS", {"Origin": "null"}, 400),
            ("GET", origin, 200),
        ):
            response, _ = client.exchange(
                method, "/v1/models/toy", None, headers
            )
            assert response.status == status
            allowed = response.headers["Access-Control-Allow-Origin"]
            assert allowed == ("*" if cors else None)


def test_the_page_can_be_turned_off(base):
    with ModelServer(base, model_name="toy") as server:
        response, text = Client(server).exchange("GET", "/")
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/html")
        assert "Content-Security-Policy" in response.headers
        assert b'"toy"' in text
        assert Client(server).exchange("POST", "/")[0].status == 404
    with ModelServer(base, model_name="toy", show_page=False) as server:
        assert Client(server).exchange("GET", "/")[0].status == 404


# Time


def test_a_request_that_takes_too_long(base, monkeypatch):
    bodies = []
    parse = json_tensors.parse

    def watch(body, *arguments):
        bodies.append(body)
        return parse(body, *arguments)

    monkeypatch.setattr(json_tensors, "parse", watch)
    with ModelServer(base, model_name="toy", timeout=2) as server:
        client = Client(server)
        # The first run takes longest.
        wait_until(lambda: client.factor() == 1.0)
        bodies.clear()
        release.clear()
        try:
            status, answer = client.call(
                "POST",
                "/v1/models/toy:predict",
                {"signature_name": "hold", "inputs": 0.0},
            )
            assert (status, answer["error"]) == (504, "Timed out after 2 s")
            # The model still runs, and what was asked for is let go.
            assert client.factor() == 1.0
            holders = sys.getrefcount(bodies[0])
            assert holders == 2  # the list, and the call
        finally:
            release.set()
        assert client.factor() == 1.0


# Warm-up


def write_warmup(base, *values, name="x", kind="predict_log"):
    folder = base / "1" / "assets.extra"
    folder.mkdir()
    with tf.io.TFRecordWriter(
        str(folder / "tf_serving_warmup_requests")
    ) as writer:
        for value in values:
            log = prediction_log_pb2.PredictionLog()
            request = getattr(log, kind).request
            request.model_spec.name = "any"
            if kind == "predict_log":
                tensor = tf.make_tensor_proto(np.array([value], np.float32))
                request.inputs[name].CopyFrom(tensor)
            writer.write(log.SerializeToString())


def test_warmup_requests_are_run_before_any_other(base):
    write_warmup(base, 1, 2, 3)
    with ModelServer(base, model_name="toy") as server:
        status, answer = Client(server).call(
            "POST", "/v1/models/toy:predict", {"instances": [1]}
        )
        assert (status, answer["predictions"][0]["runs"]) == (200, 4.0)


def test_a_warmup_request_that_fails(base):
    write_warmup(base, 1, name="z")
    with pytest.raises(ValueError, match=r"request 1 of .*alias: x not found"):
        ModelServer(base).__enter__()


def test_warmup_requests_that_are_none(base):
    write_warmup(base)
    file = base / "1" / "assets.extra" / "tf_serving_warmup_requests"
    file.write_bytes(b"none")
    with pytest.raises(ValueError, match="TFRecord file of PredictionLogs"):
        ModelServer(base).__enter__()
    file.unlink()
    file.parent.rmdir()
    write_warmup(base, 1, kind="session_run_log")
    with pytest.raises(ValueError, match="Unsupported log type"):
        ModelServer(base).__enter__()


# The command


def command(*flags):
    return subprocess.Popen(
        [sys.executable, "-m", "keras_muffnet.model_server", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_all_flags_together(base, versions, tmp_path):
    publish(versions, base, 2)
    models = tmp_path / "models.config"
    models.write_text(CONFIG.format(base, 1))
    batching = tmp_path / "batching.config"
    batching.write_text("max_batch_size { value: 4 }")
    monitoring = tmp_path / "monitoring.config"
    monitoring.write_text("prometheus_config { enable: true }")
    process = command(
        f"--rest_api_port={free_port()}",
        "--port=0",
        f"--model_config_file={models}",
        "--model_config_file_poll_wait_seconds=1",
        "--file_system_poll_wait_seconds=1",
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_batching",
        f"--batching_parameters_file={batching}",
        f"--monitoring_config_file={monitoring}",
        "--rest_api_timeout_in_ms=20000",
        "--rest_api_enable_cors_support=true",
        "--page=false",
        "--access_log",
    )
    try:
        line = process.stdout.readline()
        match = re.fullmatch(
            r"Serving toy versions 2, 1 at (http://.*)/v1/models/toy\n", line
        )
        assert match, line
        client = Client(match[1])
        assert client.factor() == 2.0
        response, _ = client.exchange("GET", "/")
        assert response.status == 404
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        path = "/monitoring/prometheus/metrics"
        assert client.exchange("GET", path)[0].status == 200
        client.connection.close()
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    messages = [x for x in errors.splitlines() if not x.startswith("{")]
    assert any(
        re.search(r"toy version 2 loaded in \d+\.\d\d s", m) for m in messages
    )
    records = [json.loads(x) for x in errors.splitlines() if x[0] == "{"]
    assert [(r["method"], r["path"], r["status"]) for r in records] == [
        ("POST", "/v1/models/toy:predict", 200),
        ("GET", "/", 404),
        ("GET", path, 200),
    ]
    assert records[0]["bytes_in"] == len('{"instances": [1]}')
    assert records[0]["milliseconds"] > 0


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((), "--model_base_path or --model_config_file is required"),
        (
            ("--model_base_path=/m", "--use_alts_credentials"),
            "--use_alts_credentials is refused",
        ),
        (
            ("--model_base_path=/m", "--batching_parameters_file=f"),
            "--batching_parameters_file needs --enable_batching",
        ),
        (("--model_config_file=/no/file",), "/no/file"),
        (
            ("--model_base_path=/m", "--enable_batching=maybe"),
            "expected true or false, received 'maybe'",
        ),
    ],
)
def test_flags_that_are_refused(flags, text):
    process = command(*flags, "--port=0")
    output, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert output == ""
    assert text in errors
