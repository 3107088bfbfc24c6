"""serving/publish.py against a stand-in for TF Serving, and the embedded one.

The stand-in loads no model: it follows TF Serving's rules for versions and
labels, and lets the tests make steps fail.
"""

import contextlib
import fcntl
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent import futures

import grpc
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import model_management_pb2
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving import publish
from tests.conftest import ROOT
from tests.conftest import free_port
from tests.conftest import free_ports

CONFIG = """\
# A comment
# of two lines.
model_config_list {{
  config {{
    name: "other"
    base_path: "{folder}/other"
    model_platform: "tensorflow"
  }}
  config {{
    name: "muffnet"
    base_path: "{folder}/muffnet"
    model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 1 }} }}
    version_labels {{ key: "stable" value: 1 }}
  }}
}}
"""


class Net(tf.Module):
    """Answers the images' sizes in bytes, times a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = tf.Variable(float(factor))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def predict_bytes(self, image_bytes):
        sizes = tf.cast(tf.strings.length(image_bytes), tf.float32)
        return {"predictions": sizes[:, tf.newaxis] * self.factor}


def write_warmup(saved_model):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "muffnet"
    request.model_spec.signature_name = "serving_bytes"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([b"abc"]))
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(request)
    folder = saved_model / "assets.extra"
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as w:
        w.write(log.SerializeToString())


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """SavedModels by kind; the kind is told to the stand-in by a file."""
    folder = tmp_path_factory.mktemp("sources")
    for kind, factor in {"1": 1, "2": 2, "3": 3, "nan": "nan"}.items():
        net = Net(factor)
        signatures = {"serving_bytes": net.predict_bytes}
        tf.saved_model.save(net, str(folder / kind), signatures)
        write_warmup(folder / kind)
    shutil.copytree(folder / "1", folder / "broken")
    (folder / "broken" / "saved_model.pb").write_bytes(b"no SavedModel")
    for path in folder.iterdir():
        (path / "kind").write_text(path.name)
    return folder


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(b"12345")
    return path


class StandIn(model_service_pb2_grpc.ModelServiceServicer):
    """Follows TF Serving's rules for the model `muffnet`."""

    def __init__(self, folder):
        self.base_path = folder / "muffnet"
        self.states = {}  # by version: state and error
        self.labels = {}
        self.asked = []  # requests for predictions, and the label then
        self.refusals = []  # whether the next reloads are refused
        config = publish._read_config(folder / "models.config")
        self._follow(config)
        self.labels = self._labels(config)
        self._grpc = grpc.server(futures.ThreadPoolExecutor(2))
        self.grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            self, self._grpc
        )
        self._rest = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), self._handler()
        )
        self.rest_port = self._rest.server_port

    def __enter__(self):
        self._grpc.start()
        threading.Thread(
            target=self._rest.serve_forever, args=(0.01,), daemon=True
        ).start()
        return self

    def __exit__(self, *error):
        self._grpc.stop(None)
        self._rest.shutdown()
        self._rest.server_close()

    def HandleReloadConfigRequest(self, request, context):
        if self.refusals and self.refusals.pop(0):
            context.abort(grpc.StatusCode.INTERNAL, "refused for the test")
        available = {v for v, s in self.states.items() if s[0] == "AVAILABLE"}
        if not set(self._labels(request.config).values()) <= available:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "not currently available for inference",
            )
        self._follow(request.config)
        self.labels = self._labels(request.config)
        return model_management_pb2.ReloadConfigResponse()

    def _labels(self, config):
        return dict(publish._entry(config, "muffnet").version_labels)

    def _follow(self, config):
        policy = publish._entry(config, "muffnet").model_version_policy
        for version in self.states.keys() - set(policy.specific.versions):
            self.states[version] = ("END", "")
        for version in policy.specific.versions:
            kind = (self.base_path / str(version) / "kind").read_text()
            self.states[version] = {
                "broken": ("END", "Could not parse"),
                "slow": ("LOADING", ""),
            }.get(kind, ("AVAILABLE", ""))

    def answer(self, path, body):
        """Returns a status and an answer."""
        prefix = "/v1/models/muffnet"
        assert path.startswith(prefix)
        path = path.removeprefix(prefix)
        if match := re.fullmatch("/labels/(.+)/metadata", path):
            if match[1] not in self.labels:
                return 400, {"error": "Unrecognized servable version label"}
            version = str(self.labels[match[1]])
            return 200, {"model_spec": {"version": version}}
        version = int(re.fullmatch(r"/versions/(\d+)(:predict)?", path)[1])
        state, error = self.states.get(version, ("", ""))
        if path.endswith(":predict"):
            if state != "AVAILABLE":
                return 404, {"error": "Servable not found for request"}
            request = json.loads(body)
            assert request["signature_name"] == "serving_bytes"
            self.asked.append((request["inputs"], dict(self.labels)))
            kind = (self.base_path / str(version) / "kind").read_text()
            return 200, {"outputs": [[0.5, float(kind)]]}
        if not state:
            return 404, {"error": f"Could not find version {version}"}
        status = {"error_code": "UNKNOWN" if error else "OK"}
        status["error_message"] = error
        entry = {"version": str(version), "state": state, "status": status}
        return 200, {"model_version_status": [entry]}

    def _handler(stand_in):  # noqa: N805
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                length = int(self.headers.get("Content-Length", 0))
                status, answer = stand_in.answer(
                    self.path, self.rfile.read(length)
                )
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args):
                pass

        return Handler


class Embedded:
    """The package's own server, as a process."""

    def __init__(self, folder):
        self.base_path = folder / "muffnet"
        # Its own base path is to exist as well.
        shutil.copytree(self.base_path, folder / "other")
        self.rest_port, self.grpc_port = free_ports(2)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "keras_muffnet.model_server",
                f"--port={self.grpc_port}",
                f"--rest_api_port={self.rest_port}",
                f"--model_config_file={folder / 'models.config'}",
                "--allow_version_labels_for_unavailable_models=true",
            ],
            cwd=ROOT,
        )

    def __enter__(self):
        url = f"http://127.0.0.1:{self.rest_port}/v1/models/muffnet"
        while self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(url) as a:
                if b"AVAILABLE" in a.read():
                    return self
            time.sleep(0.1)
        raise AssertionError("the server did not start")

    def __exit__(self, *error):
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


class Site:
    """A base path, a models.config and a server of them."""

    def __init__(self, folder, server, capsys):
        self.base_path = folder / "muffnet"
        self.config = folder / "models.config"
        self.server = server
        self._capsys = capsys

    def run(self, *arguments, status=0):
        """Runs the command; returns what it printed."""
        done = publish.main(
            [
                arguments[0],
                f"--base-path={self.base_path}",
                f"--config={self.config}",
                f"--rest-port={self.server.rest_port}",
                f"--grpc-port={self.server.grpc_port}",
                "--timeout=60",
                *map(str, arguments[1:]),
            ]
        )
        printed = self._capsys.readouterr()
        assert done == status, printed
        return printed.err if status else printed.out

    def written(self):
        """Returns what models.config says: versions, and the label's."""
        config = text_format.Parse(
            self.config.read_text(), model_server_config_pb2.ModelServerConfig()
        )
        other, entry = config.model_config_list.config
        assert other.name == "other"
        versions = list(entry.model_version_policy.specific.versions)
        return versions, entry.version_labels["stable"]

    def labeled(self):
        server = publish.Server(
            "muffnet",
            "127.0.0.1",
            self.server.rest_port,
            self.server.grpc_port,
        )
        return server.labeled("stable")

    def folders(self):
        return sorted(os.listdir(self.base_path))


@pytest.fixture
def site(tmp_path, sources, capsys):
    folder = tmp_path / "site"
    shutil.copytree(sources / "1", folder / "muffnet" / "1")
    (folder / "models.config").write_text(CONFIG.format(folder=folder))
    with StandIn(folder) as server:
        yield Site(folder, server, capsys)


@pytest.fixture(params=[StandIn, Embedded])
def any_site(request, tmp_path, sources, capsys):
    folder = tmp_path / "site"
    shutil.copytree(sources / "1", folder / "muffnet" / "1")
    (folder / "models.config").write_text(CONFIG.format(folder=folder))
    with request.param(folder) as server:
        yield Site(folder, server, capsys)


def test_publish_and_rollback(any_site, sources, image):
    site = any_site
    assert site.written() == ([1], 1)
    site.run("publish", sources / "2", "--image", image)
    assert site.written() == ([1, 2], 2)
    assert site.labeled() == 2
    assert site.folders() == ["1", "2"]
    assert site.config.read_text().startswith("# A comment\n# of two lines.\n")

    assert "already" in site.run("publish", sources / "2")
    assert site.written() == ([1, 2], 2)
    assert site.folders() == ["1", "2"]

    # The one before stays loaded, the one before that does not.
    site.run("publish", sources / "3")
    assert site.written() == ([2, 3], 3)

    site.run("rollback")
    assert site.written() == ([2], 2)
    assert site.labeled() == 2
    assert "list a version below" in site.run("rollback", status=1)
    assert site.written() == ([2], 2)

    site.run("publish", sources / "3")
    assert site.written() == ([2, 3], 3)
    assert site.labeled() == 3
    assert site.folders() == ["1", "2", "3"]

    error = site.run("publish", sources / "nan", status=1)
    assert "Expected version 4 to answer finite numbers" in error
    assert site.folders() == [".rejected-4", "1", "2", "3"]
    assert site.labeled() == 3

    rows = [line.split() for line in site.run("status").splitlines()]
    assert rows[1:4] == [
        ["3", "yes", "yes", "AVAILABLE"],
        ["2", "yes", "yes", "AVAILABLE"],
        ["1", "yes", "no", "END"],
    ]


def test_a_version_that_predicts_badly_is_rejected(site, sources, image):
    before = site.config.read_text()
    error = site.run("publish", sources / "nan", "--image", image, status=1)
    assert "Expected version 2 to answer finite numbers" in error
    assert site.folders() == [".rejected-2", "1"]
    assert site.labeled() == 1
    assert site.written() == ([1], 1)
    assert site.config.read_text().splitlines()[:2] == before.splitlines()[:2]
    # Its number is not used again.
    site.run("publish", sources / "2")
    assert site.folders() == [".rejected-2", "1", "3"]
    assert site.labeled() == 3


def test_status(site, sources):
    site.run("publish", sources / "2")
    shutil.copytree(sources / "3", site.base_path / "3")
    rows = [line.split() for line in site.run("status").splitlines()]
    assert rows[1:4] == [
        ["3", "yes", "no", "-"],
        ["2", "yes", "yes", "AVAILABLE"],
        ["1", "yes", "yes", "AVAILABLE"],
    ]
    assert " ".join(rows[4]) == ("stable: 2 in the server, 2 in models.config")


def test_a_version_is_asked_before_it_is_labelled(site, sources, image):
    site.run("publish", sources / "2", "--image", image)
    site.run("publish", sources / "3")  # its warm-up request
    assert site.server.asked == [
        ({"image_bytes": [{"b64": "MTIzNDU="}]}, {"stable": 1}),
        ({"image_bytes": [{"b64": "YWJj"}]}, {"stable": 2}),
    ]


@pytest.mark.parametrize(
    ("kind", "refusals", "expected"),
    [
        ("broken", [], "did not load: Could not parse"),
        ("slow", [], "did not load within 0.3 seconds. Its state: LOADING"),
        ("2", [True], "INTERNAL: refused for the test"),
        ("2", [False, True], "INTERNAL: refused for the test"),
        # Nor is the server told that the version is gone.
        ("2", [False, True, True], "The server did not reload"),
    ],
)
def test_what_fails_leaves_the_label(
    site, sources, tmp_path, kind, refusals, expected
):
    source = tmp_path / "source"
    shutil.copytree(sources / ("2" if kind == "slow" else kind), source)
    (source / "kind").write_text(kind)
    site.server.refusals = refusals
    error = site.run("publish", source, "--timeout=0.3", status=1)
    assert expected in error
    assert site.folders() == [".rejected-2", "1"]
    assert site.written() == ([1], 1)
    assert site.labeled() == 1


def test_nothing_is_copied_for_a_server_that_is_not_there(site, sources):
    site.server.rest_port = free_port()
    assert "No answer from" in site.run("publish", sources / "2", status=1)
    assert site.folders() == ["1"]


@pytest.mark.parametrize(
    "step", ["_check", "_wait", "_move_label", "_write_config"]
)
def test_a_publication_that_was_killed_is_taken_up(
    site, sources, monkeypatch, step
):
    class Killed(BaseException):
        pass

    def die(*args):
        raise Killed

    owner = publish if step == "_write_config" else publish.Publisher
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, die)
        patch.setattr(publish.Publisher, "_withdraw", lambda *args: None)
        with pytest.raises(Killed):
            site.run("publish", sources / "2")
    assert site.folders() == ["1", "2"]
    # A restart would find the old label.
    assert site.written() == ([1], 1)
    site.run("publish", sources / "2")
    assert site.folders() == ["1", "2"]
    assert site.written() == ([1, 2], 2)
    assert site.labeled() == 2


def test_a_rollback_that_was_killed_is_taken_up(site, sources, monkeypatch):
    site.run("publish", sources / "2")
    with monkeypatch.context() as patch:
        patch.setattr(publish, "_write_config", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            site.run("rollback")
    assert site.written() == ([1, 2], 2)
    site.run("rollback")
    assert site.written() == ([1], 1)
    assert site.labeled() == 1
    assert site.server.states[2] == ("END", "")


def test_interrupted_publication_is_withdrawn(site, sources, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish.Publisher, "_wait", interrupt)
    site.run("publish", sources / "2", status=130)
    assert site.folders() == [".rejected-2", "1"]
    assert site.server.states[2] == ("END", "")


def test_an_interrupted_copy_leaves_nothing(site, sources, monkeypatch):
    def interrupt(source, folder):
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(publish.shutil, "copytree", interrupt)
    site.run("publish", sources / "2", status=130)
    assert site.folders() == ["1"]


def test_a_full_disk_is_named(site, sources, monkeypatch):
    def fill(source, folder):
        folder.mkdir()
        reason = "[Errno 28] No space left on device"
        raise shutil.Error([("a/saved_model.pb", str(folder / "b"), reason)])

    monkeypatch.setattr(publish.shutil, "copytree", fill)
    printed = site.run("publish", sources / "2", status=1)
    for text in ("a/saved_model.pb was not copied to", "No space left on dev"):
        assert text in printed
    assert site.folders() == ["1"]


def test_one_publication_at_a_time(site, sources):
    folder = os.open(site.base_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_SH)  # an exclusive one has to wait
    try:
        for command in (["publish", sources / "2"], ["rollback"]):
            assert "Another publication" in site.run(*command, status=1)
    finally:
        os.close(folder)
    assert site.folders() == ["1"]


def test_the_newest_of_an_exporters_folder_is_taken(site, sources, tmp_path):
    exported = tmp_path / "exported"
    for number, kind in {"9": "2", "10": "3", "x11": "nan"}.items():
        shutil.copytree(sources / kind, exported / number)
    site.run("publish", exported)
    assert (site.base_path / "2" / "kind").read_text() == "3"


def test_a_version_that_is_there_already_is_not_copied(site, sources):
    shutil.copytree(sources / "2", site.base_path / "5")
    site.run("publish", site.base_path)
    assert site.folders() == ["1", "5"]
    assert site.labeled() == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["publish", "nowhere"], "Expected a SavedModel, or a folder of"),
        (["rollback", "--model=no"], "have a model 'no'. Received: ['other',"),
        (["status", "--config=nowhere"], "No such file"),
    ],
)
def test_errors_name_what_is_wrong(site, arguments, expected):
    assert expected in site.run(*arguments, status=1)


def test_a_model_without_warmup_needs_an_image(site, sources, tmp_path):
    shutil.copytree(sources / "2", tmp_path / "cold")
    shutil.rmtree(tmp_path / "cold" / "assets.extra")
    error = site.run("publish", tmp_path / "cold", status=1)
    assert "Expected --image, or a SavedModel with" in error
    assert site.folders() == ["1"]


def test_help_loads_no_backend(run_python):
    printed = run_python(
        "-c",
        "import sys, runpy; sys.argv = ['publish.py', 'publish', '--help']\n"
        "try: runpy.run_path('serving/publish.py', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print([m for m in ('tensorflow', 'keras', 'grpc') if m in "
        "sys.modules])",
    )
    assert "usage:" in printed
    assert printed.splitlines()[-1] == "[]"
