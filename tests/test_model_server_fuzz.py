"""Random requests, none of which may end the server or be its fault.

The server runs in a process of its own, because what is looked for ends it:
TensorFlow's convolutions abort on tensors of a wrong rank.
"""

import base64
import http.client
import json
import random
import subprocess
import sys

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import classification_pb2
from tensorflow_serving.apis import inference_pb2
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.apis import regression_pb2

from tests.conftest import ROOT

# One that batches and one that does not.
SERVE = """
import sys
from keras_muffnet.model_server import ModelServer
options = dict(model_name="toy", port=0, grpc_port=0)
with (ModelServer({path!r}, **options) as plain,
      ModelServer({path!r}, enable_batching=True, **options) as batching):
    for server in (plain, batching):
        print(server.url.removeprefix("http://"), server.grpc_port, flush=True)
    sys.stdin.read()
"""
# What is the server's own fault.
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}
FAULTS |= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


class Toy(tf.Module):
    """Signatures of each kind of operation that could take a shape ill."""

    def __init__(self):
        super().__init__()
        self.images = tf.Variable(tf.ones([3, 3, 3, 4]))
        self.depthwise = tf.Variable(tf.ones([3, 3, 4, 1]))
        self.volumes = tf.Variable(tf.ones([3, 3, 3, 2, 2]))
        self.series = tf.Variable(tf.ones([3, 2, 4]))
        self.table = tf.Variable(tf.ones([5, 2]))

    def network(self, x):
        """Of MuffNet's operations."""
        x = tf.nn.relu(tf.nn.conv2d(x, self.images, 2, "SAME"))
        x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        x = tf.nn.depthwise_conv2d(x, self.depthwise, [1, 1, 1, 1], "SAME")
        x = tf.concat([x[..., 2:], x[..., :2]], axis=-1) + x
        return {"y": tf.nn.softmax(tf.reduce_mean(x, [1, 2]))}

    def decode(self, image_bytes):
        def one(data):
            pixels = tf.io.decode_image(data, 3, expand_animations=False)
            return tf.image.resize(tf.cast(pixels, tf.float32), [8, 8])

        images = tf.map_fn(one, image_bytes, fn_output_signature=tf.float32)
        return self.network(images)

    def upscale(self, x):
        x = tf.nn.conv2d_transpose(
            x, self.images, [tf.shape(x)[0], 8, 8, 3], 2, "SAME"
        )
        return {"y": tf.image.resize(x, [4, 4])}

    def volume(self, x):
        return {"y": tf.nn.conv3d(x, self.volumes, [1] * 5, "SAME")}

    def serial(self, x):
        return {"y": tf.nn.conv1d(x, self.series, 1, "SAME")}

    def signal(self, x):
        return {"y": tf.nn.conv1d(tf.stack([x, x], -1), self.series, 1, "SAME")}

    def half(self, x):
        return {"y": x / 2 + 2}

    def add(self, a, b):
        return {"y": tf.matmul(a, b)}

    def lookup(self, ids):
        return {"y": tf.gather(self.table, ids)}

    def classify(self, inputs):
        features = {"x": tf.io.FixedLenFeature([27], tf.float32)}
        x = tf.io.parse_example(inputs, features)["x"]
        scores = self.network(tf.reshape(x, [-1, 3, 3, 3]))["y"]
        return {"scores": scores}


SIGNATURES = {
    "network": {"x": ([None, 8, 8, 3], "float32")},
    "decode": {"image_bytes": ([None], "string")},
    "upscale": {"x": ([None, 4, 4, 4], "float32")},
    "volume": {"x": ([None, 2, 2, 2, 2], "float32")},
    "serial": {"x": ([None, None, 2], "float32")},
    "signal": {"x": ([None, None], "float32")},
    "half": {"x": ([None, 1], "float32")},
    "add": {"a": ([None, 2], "float64"), "b": ([2, None], "float64")},
    "lookup": {"ids": ([None], "int32")},
    "classify": {"inputs": ([None], "string")},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "toy"
    toy = Toy()
    signatures = {}
    for name, inputs in SIGNATURES.items():
        specs = {
            key: tf.TensorSpec(shape, dtype, name=key)
            for key, (shape, dtype) in inputs.items()
        }
        function = tf.function(getattr(toy, name))
        signatures[name] = function.get_concrete_function(**specs)
    signatures["serving_default"] = signatures["network"]
    tf.saved_model.save(toy, path / "1", signatures)
    return str(path)


class Client:
    """Connections to a server."""

    def __init__(self, address, grpc_port):
        self.http = http.client.HTTPConnection(address, timeout=60)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")
        self.stub = prediction_service_pb2_grpc.PredictionServiceStub(
            self.channel
        )

    def post(self, verb, body):
        self.http.request("POST", f"/v1/models/toy:{verb}", body)
        response = self.http.getresponse()
        return response.status, response.read()

    def ask(self, method, request):
        """Returns the status code of a call."""
        try:
            getattr(self.stub, method)(request, timeout=60)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def close(self):
        self.channel.close()
        self.http.close()


@pytest.fixture(scope="module")
def servers(path):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE.format(path=path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    clients = [Client(*process.stdout.readline().split()) for _ in range(2)]
    yield clients
    for client in clients:
        client.close()
    process.communicate()
    assert process.returncode == 0


@pytest.fixture(params=[0, 1], ids=["plain", "batching"])
def server(request, servers):
    return servers[request.param]


class Requests:
    """Makes requests of a seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.png = tf.io.encode_png(np.zeros((2, 3, 3), np.uint8)).numpy()

    def shape(self, shape):
        """Returns a shape, most often not the one that is asked for."""
        pick = self.random
        known = [pick.randint(1, 9) if n is None else n for n in shape]
        kind = pick.randrange(6)
        if kind == 0:
            return known
        if kind == 1:
            return [pick.randint(0, 3) for _ in range(pick.randint(0, 8))]
        if kind == 2:
            known[pick.randrange(len(known))] = 0
        elif kind == 3:
            known[pick.randrange(len(known))] = pick.randint(1, 20)
        elif kind == 4:
            del known[pick.randrange(len(known))]
        else:
            known.insert(pick.randint(0, len(known)), pick.randint(0, 2))
        return known

    def value(self, dtype):
        pick = self.random
        if pick.random() < 0.03:
            return pick.choice(
                [
                    *(None, True, "1", {}, {"b64": "AA=="}, {"b64": "?"}, []),
                    *(1.5, -1, 2**31, -(2**63), 2**64, 1e308, float("nan")),
                ]
            )
        if dtype == "string":
            data = self.data()
            return {"b64": base64.b64encode(data).decode()}
        return pick.randint(0, 4) if dtype == "int32" else pick.random()

    def data(self):
        """Returns an image, or something near to one."""
        cut = self.random.choice([0, 0, 3, 20, len(self.png)])
        return self.png[: len(self.png) - cut]

    def nested(self, shape, dtype):
        if not shape:
            return self.value(dtype)
        if shape[0] > 2:
            # One element in copies, since many numbers are not many cases.
            return [self.nested(shape[1:], dtype)] * shape[0]
        return [self.nested(shape[1:], dtype) for _ in range(shape[0])]

    def rest(self):
        """Returns a verb and a body."""
        pick = self.random
        name = pick.choice(list(SIGNATURES))
        if name == "classify" and pick.random() < 0.8:
            count = pick.choice([27, 27, 0, 1, 28])
            example = {"x": [pick.choice([0.5, 0.5, 1, "a"])] * count}
            request = {"examples": [example] * pick.randint(0, 3)}
            verb = pick.choice(["classify", "classify", "regress"])
            return verb, json.dumps({**request, "signature_name": name})
        tensors = {
            key: self.nested(self.shape(shape), dtype)
            for key, (shape, dtype) in SIGNATURES[name].items()
        }
        if len(tensors) == 1 and pick.random() < 0.5:
            (tensors,) = tensors.values()
        key = pick.choice(["inputs", "instances"])
        body = json.dumps({"signature_name": name, key: tensors})
        if pick.random() < 0.05:
            body = body[: pick.randrange(len(body))]
        return "predict", body

    def tensor(self, shape, dtype):
        pick = self.random
        shape = self.shape(shape)
        if pick.random() < 0.1:
            place = pick.randint(0, len(shape))
            huge = [-1, -(2**63), 2**31, 2**40, 2**62, 2**63 - 1]
            shape.insert(place, pick.choice(huge))
        if pick.random() < 0.1:
            dtype = pick.choice(["float32", "int64", "string", "bool", "half"])
        number = tf.as_dtype(dtype).as_datatype_enum
        if pick.random() < 0.02:
            number = pick.choice([0, types_pb2.DT_VARIANT, 101, 9999])
        tensor = tensor_pb2.TensorProto(dtype=number)
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_shape.unknown_rank = pick.random() < 0.02
        count = pick.choice([0, 1, 1, 2, 100])
        if dtype == "string":
            tensor.string_val.extend(self.data() for _ in range(count))
        elif dtype == "int32":
            tensor.int_val.extend([pick.randint(-1, 6)] * count)
        elif dtype == "float64":
            tensor.double_val.extend([pick.random()] * count)
        elif pick.random() < 0.8:
            tensor.float_val.extend([pick.random()] * count)
        else:
            tensor.tensor_content = bytes(4 * count)
        return tensor

    def grpc(self):
        """Returns a method's name and a request."""
        pick = self.random
        name = pick.choice(list(SIGNATURES))
        if pick.random() < 0.2:
            kind = pick.choice(["Classify", "Regress", "MultiInference"])
            request = {
                "Classify": classification_pb2.ClassificationRequest,
                "Regress": regression_pb2.RegressionRequest,
                "MultiInference": inference_pb2.MultiInferenceRequest,
            }[kind]()
            spec = getattr(request, "model_spec", None)
            if spec is None:
                method = f"tensorflow/serving/{pick.choice(['classify', 'x'])}"
                spec = request.tasks.add(method_name=method).model_spec
            spec.name, spec.signature_name = "toy", name
            for _ in range(pick.randint(0, 3)):
                example = request.input.example_list.examples.add()
                feature = example.features.feature["x"].float_list
                feature.value.extend([0.5] * pick.choice([27, 27, 0, 1]))
            return kind, request
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "toy"
        request.model_spec.signature_name = name
        for key, (shape, dtype) in SIGNATURES[name].items():
            key = key if pick.random() < 0.95 else "other"
            request.inputs[key].CopyFrom(self.tensor(shape, dtype))
        return "Predict", request


SEEDS = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10)]


@pytest.mark.parametrize("seed", [0, *SEEDS])
def test_random_requests(server, seed):
    """500 requests to each of two servers; ten times that when slow."""
    requests = Requests(seed)
    answered = 0
    for number in range(500):
        if number % 2:
            method, request = requests.grpc()
            code = server.ask(method, request)
            assert code not in FAULTS, (method, request)
            answered += code == grpc.StatusCode.OK
        else:
            verb, body = requests.rest()
            status, answer = server.post(verb, body)
            assert status < 500 or status == 501, (verb, body, answer)
            answered += status == 200
    # Random, but not so that everything fails at the first check.
    assert 50 < answered < 450
    image = np.zeros((1, 8, 8, 3)).tolist()
    assert server.post("predict", json.dumps({"instances": image}))[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        '{"instances": [1]}',
        '{"inputs": []}',
        '{"inputs": [[[]]]}',
        '{"inputs": [[[[[[1]]]]]]}',
        '{"inputs": [1, 2], "signature_name": "signal"}',
    ],
)
def test_images_of_a_wrong_rank(server, body):
    status, answer = server.post("predict", body)
    assert status == 400
    assert "to have rank" in json.loads(answer)["error"]


def test_a_network_without_convolutions_takes_any_rank(server):
    body = '{"instances": [1, 2], "signature_name": "half"}'
    status, answer = server.post("predict", body)
    assert (status, json.loads(answer)) == (200, {"predictions": [2.5, 3.0]})
