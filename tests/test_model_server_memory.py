"""What the server holds on to: little, whatever comes and goes."""

import gzip
import http.client
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tests.conftest import ROOT
from tests.conftest import free_ports

MIB = 2**20
LIMITS = {
    "rest_api_max_body_bytes": 2 * MIB,
    "rest_api_max_unpacked_bytes": 3 * MIB,
    "grpc_max_message_bytes": 4 * MIB,
    "grpc_max_tensor_bytes": 8 * MIB,
}


class Server:
    """A server in a process of its own, which holds nothing of other tests."""

    def __init__(self, base):
        self.rest_port, self.grpc_port = free_ports(2)
        flags = {
            "model_base_path": base,
            "model_name": "toy",
            "rest_api_port": self.rest_port,
            "port": self.grpc_port,
            "file_system_poll_wait_seconds": 0.05,
            **LIMITS,
        }
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "keras_muffnet.model_server"),
                *(f"--{name}={value}" for name, value in flags.items()),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        assert re.match("Serving toy version", line), line

    def resident(self):
        """Returns the MiB of memory that its process holds."""
        statm = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB

    def close(self):
        self.process.terminate()
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0


class Toy(tf.Module):
    """Three megabytes of constants in its graph, as a folded network's."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def __call__(self, x):
        weights = np.random.default_rng(0).normal(size=750_000)
        total = tf.reduce_sum(tf.constant(weights, tf.float32))
        return {"y": x + 0 * total}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "toy"
    toy = Toy()
    for folder in (base / "1", base.parent / "spare"):
        tf.saved_model.save(toy, folder, {"serving_default": toy.__call__})
    return base


@pytest.fixture(scope="module")
def server(base):
    server = Server(base)
    yield server
    server.close()


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def connection(server):
    address = f"127.0.0.1:{server.rest_port}"
    connection = http.client.HTTPConnection(address, timeout=60)
    yield connection
    connection.close()


def post(connection, body, headers=None):
    path = "/v1/models/toy:predict"
    connection.request("POST", path, body, headers or {})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def states(connection):
    """Returns the state of each version, as the server tells it."""
    connection.request("GET", "/v1/models/toy")
    versions = json.loads(connection.getresponse().read())
    return {
        int(version["version"]): version["state"]
        for version in versions["model_version_status"]
    }


def message(shape, count=1):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "toy"
    tensor = request.inputs["x"]
    tensor.dtype = types_pb2.DT_FLOAT
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.extend([1.0] * count)
    return request


@pytest.mark.parametrize(
    "swaps", [12, pytest.param(50, marks=pytest.mark.slow)]
)
def test_swaps_of_versions_leave_memory_as_it_was(
    server, stub, connection, base, swaps
):
    held = []
    spare = base.parent / "spare"
    first = max(states(connection))
    for version in range(first + 1, first + 1 + swaps):
        spare.rename(base / str(version))
        deadline = time.monotonic() + 60
        ends = {version: "AVAILABLE", version - 1: "END"}
        while not ends.items() <= (now := states(connection)).items():
            assert time.monotonic() < deadline, now
            time.sleep(0.02)
        (base / str(version - 1)).rename(spare)
        assert post(connection, '{"instances": [1]}')[0] == 200
        answer = stub.Predict(message([1]))
        assert answer.model_spec.version.value == version
        held.append(server.resident())
    # A version is 3 MB, and the allocator holds more at times.
    assert min(held[-4:]) - max(held[:4]) < (swaps - 8) * 3 / 2


def test_bodies_that_are_too_large(connection):
    body = b'{"instances": [%b1]}' % (b"1," * LIMITS["rest_api_max_body_bytes"])
    status, answer = post(connection, body)
    assert status == 413
    assert "--rest_api_max_body_bytes" in answer["error"]
    status, answer = post(connection, iter([body[:1000], body[1000:]]))
    assert status == 413
    assert post(connection, '{"instances": [1]}')[0] == 200


def test_bodies_that_unpack_to_too_much(connection):
    packed = {"Content-Encoding": "gzip"}
    body = b'{"instances": [%b1]}' % (b"1," * 1000)
    assert post(connection, gzip.compress(body), packed)[0] == 200
    spaces = b" " * LIMITS["rest_api_max_unpacked_bytes"]
    body = gzip.compress(spaces + body)
    status, answer = post(connection, body, packed)
    assert (status, "document is empty" in answer["error"]) == (400, True)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ([400_000_000], "at most 8388608 bytes, received 1600000000"),
        ([20_000, 20_000], "tensor parsing error: x"),
        ([2**62], "tensor parsing error: x"),
    ],
)
def test_small_messages_that_declare_large_tensors(server, stub, shape, text):
    before = server.resident()
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(message(shape))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert text in caught.value.details()
    assert server.resident() - before < 50


def test_messages_that_are_too_large(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(message([1_500_000], 1_500_000))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(stub.Predict(message([3, 2])).outputs["y"].float_val) == 6
