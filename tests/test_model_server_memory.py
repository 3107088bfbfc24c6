"""What the server holds on to: little, whatever comes and goes."""

import gzip
import http.client
import json
import os
import pathlib
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_muffnet.model_server import ModelServer
from keras_muffnet.model_server.options import Limits

MIB = 2**20
LIMITS = Limits(
    body=2 * MIB, unpacked_body=3 * MIB, message=4 * MIB, tensor=8 * MIB
)


def resident():
    """Returns the MiB of memory that this process holds."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


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
    with ModelServer(
        base,
        model_name="toy",
        grpc_port=0,
        limits=LIMITS,
        file_system_poll_seconds=0,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def connection(server):
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=60)
    yield connection
    connection.close()


def post(connection, body, headers=None):
    path = "/v1/models/toy:predict"
    connection.request("POST", path, body, headers or {})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


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
    (first,) = server.versions["toy"]
    for version in range(first + 1, first + 1 + swaps):
        spare.rename(base / str(version))
        server._manager.poll()
        for thread in threading.enumerate():
            if thread.name == f"unload toy {version - 1}":
                thread.join(60)
        (base / str(version - 1)).rename(spare)
        assert post(connection, '{"instances": [1]}')[0] == 200
        answer = stub.Predict(message([1]))
        assert answer.model_spec.version.value == version
        held.append(resident())
    # Of 3 MB a version nothing stays, but what the allocator takes.
    assert held[-1] - held[3] < (swaps - 4) * 3 / 3


def test_bodies_that_are_too_large(connection):
    body = b'{"instances": [%b1]}' % (b"1," * LIMITS.body)
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
    body = gzip.compress(b" " * LIMITS.unpacked_body + body)
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
def test_small_messages_that_declare_large_tensors(stub, shape, text):
    before = resident()
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(message(shape))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert text in caught.value.details()
    assert resident() - before < 50


def test_messages_that_are_too_large(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(message([1_500_000], 1_500_000))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(stub.Predict(message([3, 2])).outputs["y"].float_val) == 6
