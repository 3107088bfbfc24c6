"""The embedded server, driven over loopback by plain HTTP clients."""

import asyncio
import base64
import contextlib
import gzip
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import keras_muffnet
from keras_muffnet.model_server import ModelServer
from keras_muffnet.model_server import http_protocol
from keras_muffnet.model_server import rest_service
from keras_muffnet.model_server import server as server_module
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.rest_service import App
from tests.conftest import free_port

PREDICT = "/v1/models/toy:predict"
ECHOED = (
    "float32 float64 int8 int16 int32 int64 uint8 uint32 uint64 bool string"
)
UNWRITABLE = "float16 bfloat16 uint16 complex64"

# What the model's `hold` signature tells and asks the tests.
holding = threading.Event()
release = threading.Event()


def _hold(x):
    holding.set()
    release.wait(60)
    return x


class Toy(tf.Module):
    """Signatures that show what went in, or misbehave."""

    def __init__(self, factor):
        super().__init__()
        self.factor = tf.Variable(float(factor))

    def scale(self, x):
        return {"y": x * self.factor}

    def add(self, a, b):
        return {"sum": a + b, "difference": a - b}

    def size(self, image):
        pixels = tf.io.decode_png(image[0], channels=3)
        return {"size": tf.shape(pixels)[tf.newaxis]}

    def encode(self, text):
        return {"text": text, "image_bytes": text}

    def encode_lone(self, text):
        return {"image_bytes": text}

    def total(self, x):
        return {"total": tf.reduce_sum(x)}

    def uneven(self, x):
        return {"a": x, "b": tf.concat([x, x], axis=0)}

    def narrow(self, x, dtype=tf.float16):
        return {"y": tf.cast(x, dtype)}

    def hold(self, x):
        return {"y": tf.numpy_function(_hold, [x], tf.float32)}

    def endless(self, x):
        loop = tf.while_loop(lambda x: True, lambda x: [x + 1.0], [x])
        return {"y": loop[0]}


def _signatures(toy):
    def concrete(function, **specs):
        specs = {
            name: tf.TensorSpec(shape, dtype, name=name)
            for name, (shape, dtype) in specs.items()
        }
        return tf.function(function).get_concrete_function(**specs)

    matrix = ([None, 2], tf.float32)
    vector = ([None], tf.float32)
    strings = ([None], tf.string)
    anything = (None, tf.float32)
    signatures = {
        "serving_default": concrete(toy.scale, x=matrix),
        "one_row": concrete(toy.scale, x=([1, 2], tf.float32)),
        "add": concrete(toy.add, a=vector, b=vector),
        "size": concrete(toy.size, image=strings),
        "encode": concrete(toy.encode, text=strings),
        "encode_lone": concrete(toy.encode_lone, text=strings),
        "total": concrete(toy.total, x=anything),
        "uneven": concrete(toy.uneven, x=vector),
        "hold": concrete(toy.hold, x=vector),
        "endless": concrete(toy.endless, x=([], tf.float32)),
    }
    for dtype in (ECHOED + " " + UNWRITABLE).split():
        signatures[dtype] = concrete(
            lambda x: {"y": tf.identity(x)}, x=(None, dtype)
        )
        if dtype in UNWRITABLE.split():
            signatures[f"write_{dtype}"] = concrete(
                lambda x, dtype=dtype: {"y": tf.cast(x, dtype)}, x=anything
            )
    return signatures


@pytest.fixture(scope="module")
def base_path(tmp_path_factory):
    """Versions 9 and 10, which text would sort the other way round."""
    path = tmp_path_factory.mktemp("models") / "toy"
    for version, folder in ((9, "9"), (10, "00000010")):
        toy = Toy(version)
        # Stays alive, because the graph calls back into this process.
        signatures = _signatures(toy)
        tf.saved_model.save(toy, path / folder, signatures)
    (path / "notes").mkdir()
    (path / "11").touch()
    yield path


@pytest.fixture(scope="module")
def server(base_path):
    with ModelServer(base_path, model_name="toy") as server:
        yield server


def exchange(server, method, path, body=None, headers=None):
    """Returns an answer's status and its bytes, which must be JSON's."""
    connection = http.client.HTTPConnection(
        server.url.removeprefix("http://"), timeout=60
    )
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/json"
        return response.status, response.read()
    finally:
        connection.close()


def call(server, method, path, body=None, headers=None):
    """Returns an answer's status and its JSON value."""
    status, answer = exchange(server, method, path, body, headers)
    return status, json.loads(answer)


def predict(server, signature=None, **request):
    if signature is not None:
        request["signature_name"] = signature
    return call(server, "POST", PREDICT, json.dumps(request))


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


def assert_error(answer, status, *fragments):
    assert answer[0] == status, answer
    assert list(answer[1]) == ["error"]
    for fragment in fragments:
        assert fragment in answer[1]["error"]


# Both forms


@pytest.mark.parametrize(
    "instances",
    [[[1, 2], [3.5, 4]], [{"x": [1, 2]}, {"x": [3.5, 4]}]],
    ids=["bare", "named"],
)
def test_rows_of_one_input(server, instances):
    expected = {"predictions": [[10.0, 20.0], [35.0, 40.0]]}
    assert predict(server, instances=instances) == (200, expected)


@pytest.mark.parametrize("inputs", [[[1, 2]], {"x": [[1, 2]]}])
def test_columns_of_one_input(server, inputs):
    expected = {"outputs": [[10.0, 20.0]]}
    assert predict(server, inputs=inputs) == (200, expected)


def test_rows_of_several_tensors(server):
    instances = [{"a": 1, "b": 2}, {"b": 4, "a": 3}]
    expected = [
        {"sum": 3.0, "difference": -1.0},
        {"sum": 7.0, "difference": -1.0},
    ]
    answer = predict(server, "add", instances=instances)
    assert answer == (200, {"predictions": expected})


def test_columns_of_several_tensors(server):
    inputs = {"a": [1, 2, 3], "b": [4], "unknown": "ignored"}
    expected = {"sum": [5.0, 6.0, 7.0], "difference": [-3.0, -2.0, -1.0]}
    answer = predict(server, "add", inputs=inputs)
    assert answer == (200, {"outputs": expected})


def test_columns_of_any_shape(server):
    assert predict(server, "total", inputs=2) == (200, {"outputs": 2.0})
    assert predict(server, "total", inputs=[]) == (200, {"outputs": 0.0})
    assert predict(server, "float32", inputs=[[]]) == (200, {"outputs": [[]]})


def test_empty_instance(server):
    answer = predict(server, "float32", instances=[[]])
    assert answer == (200, {"predictions": [[]]})


def test_static_shape_is_not_enforced(server):
    rows = [[1, 2], [3, 4], [5, 6]]
    answer = predict(server, "one_row", instances=rows)
    assert answer[0] == 200
    assert len(answer[1]["predictions"]) == 3


def test_request_headers_are_ignored(server):
    for content_type in ("application/x-www-form-urlencoded", "image/png"):
        headers = {"Content-Type": content_type, "Accept": "text/html"}
        body = b'{"instances": [[1, 2]], "unknown": null}'
        answer = call(server, "POST", PREDICT, body, headers)
        assert answer == (200, {"predictions": [[10.0, 20.0]]})


def test_default_signature_by_name(server):
    for name in ("", "serving_default"):
        assert predict(server, name, instances=[[1, 2]])[0] == 200


# Values


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("int64", [-(2**63), 2**63 - 1], None),
        ("uint64", [0, 2**64 - 1], None),
        ("int32", [-(2**31), 2**31 - 1], None),
        ("uint32", [2**32 - 1], None),
        ("uint8", [255, 256, -1], [255, 0, 255]),
        ("int8", [128, -129], [-128, 127]),
        ("int16", [32768], [-32768]),
        ("bool", [True, False], None),
        ("string", ["", 'h\u00e9 \u4f60 "\\\n', b64(b"abc")], None),
        ("float64", [0.1, 1e300, 1, 1 / 3], None),
        ("float32", [1e39, -1e39, 1e-60], [np.inf, -np.inf, 0.0]),
        ("float32", [18446744073709551616, 2**63], [1.8446744e19, 9.223372e18]),
    ],
)
def test_values_of_each_dtype(server, dtype, values, expected):
    expected = values if expected is None else expected
    expected = ["abc" if x == b64(b"abc") else x for x in expected]
    answer = predict(server, dtype, inputs=values)
    assert answer == (200, {"outputs": expected})
    answer = predict(server, dtype, instances=values)
    assert answer == (200, {"predictions": expected})


@pytest.mark.parametrize(
    ("dtype", "token", "fragment"),
    [
        ("float32", "true", "JSON Value: true Type: True is not of expected"),
        ("float32", "null", "Type: Null is not of expected type: float"),
        ("float64", '"1.0"', "Type: String is not of expected type: double"),
        ("float32", '{"b64": "AAAA"}', "Type: Object"),
        ("int64", "1.0", "Type: Number is not of expected type: int64"),
        ("int64", "9223372036854775808", "of expected type: int64"),
        ("int64", "NaN", "JSON Value: NaN"),
        ("uint32", "-1", "of expected type: uint32"),
        ("uint8", "2147483648", "of expected type: uint8"),
        ("uint8", "1e2", "of expected type: uint8"),
        ("int32", "true", "Type: True is not of expected type: int32"),
        ("bool", "1", "Type: Number is not of expected type: bool"),
        ("string", "5", "Type: Number is not of expected type: string"),
        ("string", "null", "Type: Null is not of expected type: string"),
        ("string", '{"a": 1}', "not formatted correctly for base64 data"),
        ("string", '{"b64": 1}', "not formatted correctly for base64 data"),
        ("string", '{"b64": "-_-_"}', "Unable to base64 decode"),
        ("string", '{"b64": "AAAAA"}', "Unable to base64 decode"),
        ("string", '{"b64": "h\u00e9"}', "Unable to base64 decode"),
    ],
)
def test_values_of_a_wrong_kind(server, dtype, token, fragment):
    body = f'{{"signature_name": "{dtype}", "inputs": {{"x": [{token}]}}}}'
    answer = call(server, "POST", PREDICT, body.encode())
    assert_error(answer, 400, fragment)


def test_one_wrong_row_is_named(server):
    answer = predict(server, instances=[[1, 2], [3, None]])
    assert_error(
        answer,
        400,
        "Failed to process element: 1 of 'instances' list. "
        "Error: INVALID_ARGUMENT: JSON Value: null",
    )
    answer = predict(server, instances=[{"x": "a"}])
    assert_error(
        answer, 400, "Failed to process element: 0 key: x of 'instances' list."
    )


@pytest.mark.parametrize("dtype", UNWRITABLE.split())
def test_dtypes_without_json_form(server, dtype):
    name = {"float16": "half"}.get(dtype, dtype)
    text = f"to type: {name}"
    assert_error(predict(server, dtype, inputs=[1]), 501, text)
    assert_error(predict(server, dtype, instances=[1]), 400, text, "element: 0")
    text = f"Failed to write JSON value for tensor type: {name}"
    assert_error(predict(server, f"write_{dtype}", inputs=[1]), 400, text)


def test_base64_spellings(server):
    spellings = ["AP8=", "AP8", " A\nP8 = "]
    instances = [{"b64": text} for text in spellings]
    answer = predict(server, "encode_lone", instances=instances)
    assert answer == (200, {"predictions": [b64(b"\x00\xff")] * 3})


def test_bytes_are_written_as_the_output_is_named(server):
    expected = {"text": "a\x00", "image_bytes": b64(b"a\x00")}
    answer = predict(server, "encode", instances=["a\x00"])
    assert answer == (200, {"predictions": [expected]})


def test_binary_in_a_text_output_is_written_raw(server):
    body = json.dumps({"signature_name": "string", "inputs": b64(b"\xff\x00")})
    answer = exchange(server, "POST", PREDICT, body)
    assert answer == (200, b'{"outputs":"\xff\\u0000"}')


def test_image_bytes(server):
    png = tf.io.encode_png(np.zeros((5, 7, 3), np.uint8)).numpy()
    answer = predict(server, "size", instances=[b64(png)])
    assert answer == (200, {"predictions": [[5, 7, 3]]})
    answer = predict(server, "size", instances=[b64(b"no image")])
    assert_error(answer, 400, "mage")


def test_float32_is_exact_and_short(server):
    bits = np.random.default_rng(0).integers(0, 2**32, 5000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = np.append(values[np.isfinite(values)], np.float32([0.1, 3, 9e6]))
    body = json.dumps({"signature_name": "float32", "inputs": values.tolist()})
    _, answer = exchange(server, "POST", PREDICT, body)
    tokens = re.findall(rb"[-+.e0-9]+", answer.partition(b":")[2])
    assert len(tokens) == len(values)
    received = np.array([np.float32(token.decode()) for token in tokens])
    np.testing.assert_array_equal(received, values)
    assert all(re.search(rb"[.e]", token) for token in tokens)
    digits = [re.sub(rb"e.*|\D", b"", t).strip(b"0") for t in tokens]
    assert max(map(len, digits)) <= 9
    assert b"0.1" in tokens and b"3.0" in tokens


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_that_are_not_finite(server, dtype):
    tokens = b"[NaN,1.5,Infinity,-Infinity]"
    body = b'{"signature_name":"%b","inputs":%b}' % (dtype.encode(), tokens)
    answer = exchange(server, "POST", PREDICT, body)
    assert answer == (200, b'{"outputs":%b}' % tokens)


def test_not_finite_in_rows_of_several_tensors(server):
    body = (
        b'{"signature_name":"add","instances":[{"a":Infinity,"b":1},'
        b'{"a":NaN,"b":1}]}'
    )
    answer = exchange(server, "POST", PREDICT, body)
    rows = (
        b'[{"difference":Infinity,"sum":Infinity},{"difference":NaN,"sum":NaN}]'
    )
    assert answer == (200, b'{"predictions":%b}' % rows)


# Wrong requests


@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b" \n", "JSON Parse error: The document is empty"),
        (b'{"instances": [[1, 2', "at offset: "),
        (b"{'instances': [1]}", "JSON Parse error: "),
        (b'{"instances": [1,]}', "JSON Parse error: "),
        (b'{"instances": [01]}', "JSON Parse error: "),
        (b'{"instances": ["\n"]}', "JSON Parse error: "),
        (b'{"instances": [1e400]}', "JSON Parse error: "),
        (
            b'{"inputs": ["\\ud800"], "signature_name": "string"}',
            "JSON Parse error: ",
        ),
        (b'{"instances": ["\xff"]}', "Type: String is not of expected type"),
        (b"\x89PNG\r\n\x1a\n", "JSON Parse error: "),
        (b"[1, 2]", "Is not object"),
        (
            b'{"signature_name": null}',
            "'signature_name' key must be a string value.",
        ),
        (
            b'{"signature_name": "none", "instances": [1]}',
            'Serving signature name: "none" not found in signature def',
        ),
        (
            b'{"signature_name": "__saved_model_init_op", "instances": [1]}',
            "Failed to get input map for signature: __saved_model_init_op",
        ),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (
            b'{"inputs": 1, "instances": [1]}',
            "Not formatted correctly expecting only one of 'inputs' or "
            "'instances' keys to exist",
        ),
        (b'{"instances": 1}', "Expecting 'instances' to be an list/array"),
        (b'{"instances": []}', "No values in 'instances' array"),
        (
            b'{"instances": [{"x": [1, 2]}, [3, 4]]}',
            "Expecting object but got list at item 1 of input list",
        ),
        (
            b'{"instances": [[1, 2], {"x": [3, 4]}]}',
            "Expecting value/list but got object at item 1 of input list",
        ),
        (b'{"instances": [{"z": 1}]}', "does not have named input: z"),
        (
            b'{"signature_name": "add", "instances": [{"a": 1}]}',
            "keys must be equal to: a,b",
        ),
        (
            b'{"signature_name": "add", "instances": [1, 2]}',
            "expecting list of objects as multiple input tensors required",
        ),
        (
            b'{"signature_name": "add", "inputs": [1, 2]}',
            "inputs is a plain value/list, but expecting an object as multiple "
            "input tensors required as per tensorinfo_map",
        ),
        (
            b'{"signature_name": "add", "inputs": {"a": [1]}}',
            "Missing named input: b in 'inputs' object.",
        ),
        (
            b'{"instances": [[1, 2], [3]]}',
            "Failed to process element: 1 of 'instances' list. Error: "
            "INVALID_ARGUMENT: Expecting tensor size: 2 but got: 1",
        ),
        (
            b'{"instances": [[1, 2], [[3, 4]]]}',
            "Expecting shape [2] but got: [1,2]",
        ),
        (
            b'{"inputs": [[1, 2], [3]]}',
            "Encountered list at unexpected size: 1 at level: 1 expected "
            "size: 2",
        ),
        (b'{"inputs": [1, [2]]}', "Encountered list at unexpected level: 1"),
        (
            b'{"inputs": [[1], 2]}',
            "JSON Value: 2 found at incorrect level: 2",
        ),
        (b'{"instances": [[1, 2, 3]], "signature_name": "add"}', "list of obj"),
        (
            b'{"instances": [1, 2], "signature_name": "total"}',
            "Tensor name: total has no shape information",
        ),
        (
            b'{"instances": [1, 2], "signature_name": "uneven"}',
            "Tensor name: b has inconsistent batch size: 4 expecting: 2",
        ),
        (
            b'{"inputs": {"a": [1, 2], "b": [1, 2, 3]}, '
            b'"signature_name": "add"}',
            "ncompatible shapes",
        ),
    ],
)
def test_wrong_predict_requests(server, body, fragment):
    answer = call(server, "POST", PREDICT, body)
    assert_error(answer, 400, fragment)
    assert "function_node" not in answer[1]["error"]


def test_text_around_the_object_is_skipped(server):
    body = b'\xef\xbb\xbf {"instances": [[1, 2]]} and more'
    answer = call(server, "POST", PREDICT, body)
    assert answer == (200, {"predictions": [[10.0, 20.0]]})


def test_bad_json_goes_before_an_unknown_model(server):
    answer = call(server, "POST", "/v1/models/other:predict", b"{")
    assert_error(answer, 400, "JSON Parse error")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", PREDICT),
        ("PUT", PREDICT),
        ("DELETE", PREDICT),
        ("PATCH", PREDICT),
        ("POST", PREDICT + "/"),
        ("POST", PREDICT + "?a=1"),
        ("POST", PREDICT + "?"),
        ("POST", "/v1/models/toy"),
        ("GET", "/v1/models/toy/"),
        ("GET", "/v1/models/toy/versions/x"),
        ("GET", "/v1/models/toy/metadata/"),
        ("GET", "/v1/nothing"),
        ("POST", PREDICT.replace("predict", "Predict")),
    ],
)
def test_malformed_requests(server, method, path):
    answer = call(server, method, path, b"{}" if method != "GET" else None)
    assert_error(answer, 400, f"Malformed request: {method} {path}")


def test_paths_without_a_model(server):
    answer = call(server, "GET", "/v1/models")
    assert_error(answer, 400, "Missing model name in request.")
    assert_error(call(server, "GET", "/elsewhere"), 404)
    status, body = exchange(server, "HEAD", "/v1/models/toy")
    assert (status, body) == (400, b"")


# Models and versions


def test_latest_version_is_the_largest_number(server):
    assert server.versions == {"toy": [10]}
    expected = {
        "version": "10",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    paths = ("toy", "toy/versions/10", "toy/versions/00010", "%74oy")
    for path in paths:
        answer = call(server, "GET", f"/v1/models/{path}")
        assert answer == (200, {"model_version_status": [expected]})
    assert call(server, "GET", "/V1/Models/toy")[0] == 200
    path = "/V1/MODELS/toy:predict"
    assert call(server, "POST", path, b'{"instances": [[1, 2]]}')[0] == 200


def test_predict_by_version(server):
    body = b'{"instances": [[1, 2]]}'
    path = "/v1/models/toy/versions/10:predict"
    assert call(server, "POST", path, body)[0] == 200


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("other", 404, "Could not find any versions of model other"),
        # As TensorFlow Serving, which takes the path as it was sent.
        ("toy?", 404, "Could not find any versions of model toy?"),
        ("toy#x", 404, "Could not find any versions of model toy#x"),
        ("toy/versions/9", 404, "Could not find version 9 of model toy"),
        ("toy/versions/9223372036854775808", 400, "version"),
        ("toy/versions/" + "9" * 5000, 400, "version"),
        (
            "other/metadata",
            404,
            "Servable not found for request: Latest(other)",
        ),
        (
            "toy/versions/9/metadata",
            404,
            "Servable not found for request: Specific(toy, 9)",
        ),
    ],
)
def test_unknown_models_and_versions(server, path, status, text):
    assert_error(call(server, "GET", f"/v1/models/{path}"), status, text)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("other", "Servable not found for request: Latest(other)"),
        ("a%2Fb", "Servable not found for request: Latest(a/b)"),
        ("toy/versions/9", "Servable not found for request: Specific(toy, 9)"),
    ],
)
def test_predict_of_unknown_models_and_versions(server, model, text):
    answer = call(server, "POST", f"/v1/models/{model}:predict", b"{}")
    assert_error(answer, 404, text)


def test_metadata(server):
    status, answer = call(server, "GET", "/v1/models/toy/metadata")
    assert status == 200
    assert answer["model_spec"] == {
        "name": "toy",
        "signature_name": "",
        "version": "10",
    }
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert "__saved_model_init_op" in signatures
    signature = signatures["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["defaults"] == {}
    assert signature["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
            "unknown_rank": False,
        },
        "name": signature["inputs"]["x"]["name"],
    }
    assert signature["inputs"]["x"]["name"].endswith(":0")


# Transport and robustness


def test_gzip_bodies(server):
    headers = {"Content-Encoding": "gzip"}
    body = gzip.compress(b'{"instances": [[1, 2]]}')
    answer = call(server, "POST", PREDICT, body, headers)
    assert answer == (200, {"predictions": [[10.0, 20.0]]})
    bomb = gzip.compress(b" " * (101 * 2**20), compresslevel=1)
    for bad in (b"no gzip", body[:-4], bomb):
        answer = call(server, "POST", PREDICT, bad, headers)
        assert_error(answer, 400, "The document is empty")


def test_keep_alive_outlives_errors(server):
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.connect()
    used = connection.sock
    for body, status in ((b"{", 400), (b'{"instances": [[1, 2]]}', 200)) * 3:
        connection.request("POST", PREDICT, body)
        response = connection.getresponse()
        response.read()
        assert response.status == status
        assert connection.sock is used
    connection.close()


def test_chunked_body(server):
    body = iter([b'{"instances"', b": [[1, 2]]}"])
    answer = call(server, "POST", PREDICT, body)
    assert answer == (200, {"predictions": [[10.0, 20.0]]})


def test_large_body(server):
    values = np.arange(500_000, dtype=np.float32)
    answer = predict(server, "float32", instances=[values.tolist()])
    assert answer == (200, {"predictions": [values.tolist()]})


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 50_000,
        b'{"a": [[' + b"[" * 10_000_000,
        b'{"instances":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"instances":' * 5_000,
        b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"inputs":' + b"[" * 40 + b"1" + b"]" * 40 + b"}",
        b'{"instances": [' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"]}",
        b'{"instances": [[1, ' + b"9" * 100_000 + b"]]}",
        b'{"instances": [[1, NaN, ' + b"9" * 100_000 + b"]]}",
        b'{"inputs": [NaN, 1e999]}',
        b'{"inputs": [NaN, "\\ud800"], "signature_name": "string"}',
        b'{"inputs": NaN, "signature_name": "\\ud800"}',
        b"\x00" * 1000,
        bytes(range(256)),
    ],
    ids=range(14),
)
def test_hostile_bodies(server, body):
    assert_error(call(server, "POST", PREDICT, body), 400)
    assert call(server, "GET", "/v1/models/toy")[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 garbage \x00\xff\r\n\r\n",
        b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nContent-Length: 99\r\n"
        b'\r\n{"instances": [[1, 2]]}',
        b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nHost",
    ],
    ids=["garbage", "half a body", "half a head"],
)
def test_broken_connections(server, data):
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection(address, timeout=60) as client:
        client.sendall(data)
    assert call(server, "GET", "/v1/models/toy")[0] == 200


ROW = b'{"instances": [[1, 2]]}'
ANSWER = b"[[10.0,20.0]]"


def raw_exchange(server, data, then=b"", half_close=False):
    """Returns all that the server sends until it closes the connection."""
    address = urllib.parse.urlsplit(server.url)
    with socket.create_connection(
        (address.hostname, address.port), timeout=60
    ) as client:
        client.sendall(data)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := client.recv(2**16):
            received += chunk
            if then and ANSWER in received:
                client.sendall(then)
                then = b""
        return received


def raw_predict(version=b"1.1", headers=b""):
    head = b"POST %b HTTP/%b\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n"
    return head % (PREDICT.encode(), version, len(ROW), headers) + ROW


def test_keep_alive_of_http_1_0(server):
    kept = raw_predict(b"1.0", b"Connection: keep-alive\r\n")
    received = raw_exchange(server, kept, then=raw_predict(b"1.0"))
    first, second, _ = received.split(ANSWER)
    assert b"connection: keep-alive" in first.lower()
    assert b"connection: close" in second.lower()


@pytest.mark.parametrize("requests", [1, 2])
def test_a_client_that_half_closes_gets_its_answers(server, requests):
    received = raw_exchange(server, raw_predict() * requests, half_close=True)
    assert received.count(b"200 OK") == received.count(ANSWER) == requests


def test_bytes_past_a_body_do_not_spoil_the_answer_before(server):
    received = raw_exchange(server, raw_predict() + b"\x00 junk\r\n\r\n")
    assert received.count(b"200 OK") == received.count(ANSWER) == 1


HEAD = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\n".encode()


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (HEAD + b"X-Long: ", b"a" * 2**12),
        (HEAD, b"X-Many: a\r\n" * 300),
        (b"GET /", b"a" * 2**12),
        (
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
            b"X-Trailer: a\r\n" * 300,
        ),
    ],
    ids=["one header", "many headers", "a path", "trailers"],
)
def test_headers_without_an_end(server, head, piece):
    address = urllib.parse.urlsplit(server.url)
    with socket.create_connection(
        (address.hostname, address.port), timeout=60
    ) as client:
        client.sendall(head)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError):
            while chunk := client.recv(2**16):
                received += chunk
    # A client that still sends may find the connection reset.
    assert b"Expected headers of at most" in received or not received
    assert b"200 OK" not in received
    assert call(server, "GET", "/v1/models/toy")[0] == 200


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_offers_of_another_protocol_are_declined(server, protocol):
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUPGRADE: %b\r\n" % protocol
    request = raw_predict(headers=offer + b"HTTP2-Settings: AAMAAABk\r\n")
    last = raw_predict(headers=b"Connection: close\r\n")
    received = raw_exchange(server, request, then=last)
    assert received.count(b"200 OK") == received.count(ANSWER) == 2
    cut = request.index(b"HTTP2-Settings:")
    address = urllib.parse.urlsplit(server.url)
    with socket.create_connection(
        (address.hostname, address.port), timeout=60
    ) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(request[:cut])
        call(server, "GET", "/v1/models/toy")  # the first part is read by then
        client.sendall(request[cut:])
        assert client.recv(2**16).startswith(b"HTTP/1.1 200 OK")


def test_large_headers_and_pipelined_requests(server):
    large = raw_predict(headers=b"X-Large: %b\r\n" % (b"a" * 60_000))
    received = raw_exchange(server, large * 5, half_close=True)
    assert received.count(b"200 OK") == received.count(ANSWER) == 5


def test_pipelined_requests_are_not_taken_before_others_are_answered(
    base_path, monkeypatch
):
    waiting = []

    class Watched(http_protocol.HttpProtocol):
        def data_received(self, data):
            super().data_received(data)
            waiting.append(len(self.pipeline))

    monkeypatch.setattr(server_module, "HttpProtocol", Watched)
    head = b"GET /v1/models/toy HTTP/1.1\r\nX-Pad: %b\r\n\r\n" % (b"a" * 1000)
    with ModelServer(base_path, model_name="toy") as server:
        received = raw_exchange(server, head * 3000, half_close=True)
    assert received.count(b"200 OK") == 3000
    # Some 250 come at once.
    assert max(waiting) < 1000


# An answer that no socket's buffer holds.
LARGE = {"signature_name": "float32", "inputs": [1.2345679] * 1_500_000}


def ask_and_not_read(server, then=b""):
    """Sends a request of a large answer, and more, and waits for its start."""
    body = json.dumps(LARGE).encode()
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    address = urllib.parse.urlsplit(server.url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
    client.settimeout(60)
    client.connect((address.hostname, address.port))
    client.sendall(head % (PREDICT.encode(), len(body)) + body + then)
    assert client.recv(1) == b"H"
    return client


def test_answers_that_nobody_reads_are_dropped(base_path, monkeypatch):
    monkeypatch.setattr(http_protocol, "_SILENCE", 0.2)
    with ModelServer(base_path, model_name="toy") as server:
        with ask_and_not_read(server) as client:
            time.sleep(2)
            received = 1
            with contextlib.suppress(ConnectionError):
                while chunk := client.recv(2**20):
                    received += len(chunk)
        assert received < 10_000_000
        assert predict(server, instances=[[1, 2]])[0] == 200


@pytest.mark.parametrize(
    "data", [b"", HEAD, HEAD + b"Content-Length: 9\r\n\r\n{"]
)
def test_clients_that_never_finish_a_request(base_path, monkeypatch, data):
    monkeypatch.setattr(http_protocol, "_SILENCE", 0.2)
    with ModelServer(base_path) as server:
        assert raw_exchange(server, data) == b""


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_ipv6(base_path):
    with ModelServer(base_path, host="::1") as server:
        assert server.url.startswith("http://[::1]:")
        url = f"{server.url}/v1/models/default"
        with urllib.request.urlopen(url, timeout=60) as response:
            assert response.status == 200


def test_many_requests_at_a_time(server):
    def ask(number):
        return predict(server, instances=[[number, 0]])

    with ThreadPoolExecutor(50) as clients:
        answers = list(clients.map(ask, range(200)))
    for number, answer in enumerate(answers):
        assert answer == (200, {"predictions": [[number * 10.0, 0.0]]})


def test_slow_inference_delays_nobody(server):
    holding.clear()
    release.clear()
    with ThreadPoolExecutor(1) as client:
        slow = client.submit(predict, server, "hold", instances=[1])
        try:
            assert holding.wait(60)
            assert call(server, "GET", "/v1/models/toy")[0] == 200
            assert predict(server, instances=[[1, 2]])[0] == 200
            assert not slow.done()
        finally:
            release.set()
        assert slow.result() == (200, {"predictions": [1.0]})


# Start and stop


def test_stop_ends_threads_and_connections(base_path):
    before = set(threading.enumerate())
    with ModelServer(base_path, model_name="toy") as server:
        assert predict(server, instances=[[1, 2]])[0] == 200
        address = server.url.removeprefix("http://").split(":")
        idle = socket.create_connection(address, timeout=60)
    deadline = time.monotonic() + 60
    while not set(threading.enumerate()) <= before:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.05)
    assert idle.recv(1) == b""
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=60)


def test_stop_does_not_wait_for_inference(base_path):
    holding.clear()
    release.clear()
    with ThreadPoolExecutor(1) as client:
        try:
            with ModelServer(base_path, model_name="toy") as server:
                slow = client.submit(predict, server, "hold", instances=[1])
                assert holding.wait(60)
            assert not release.is_set()
            assert_error(slow.result(), 503, "stopping")
        finally:
            release.set()


def test_stop_does_not_wait_for_clients_that_do_not_read(base_path):
    holding.clear()
    release.clear()
    body = b'{"signature_name": "hold", "instances": [1]}'
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    then = head % (PREDICT.encode(), len(body)) + body
    try:
        with ModelServer(base_path, model_name="toy") as server:
            client = ask_and_not_read(server, then)
            # The second request waits until the first answer is read.
            start = time.monotonic()
        assert time.monotonic() - start < 30
    finally:
        release.set()
        client.close()


def test_a_request_that_times_out_before_its_turn_leaves_no_body():
    body = [b"{}"]
    release.clear()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(release.wait, 60)
        app = App(None, executor, timeout=0.05)
        match = rest_service._RUN.fullmatch(PREDICT)
        try:
            with pytest.raises(ServingError, match="Timed out"):
                asyncio.run(app._run(match, [], body))
            assert body == []
        finally:
            release.set()


def test_two_servers_and_a_busy_port(base_path, server):
    with ModelServer(base_path) as other:
        assert other.url != server.url
        url = f"{other.url}/v1/models/default"
        with urllib.request.urlopen(url, timeout=60) as response:
            assert response.status == 200
        port = int(other.url.rpartition(":")[2])
        busy = ModelServer(base_path, port=port)
        with pytest.raises(OSError, match="ddress already in use"):
            busy.__enter__()


def test_a_version_that_is_no_saved_model(tmp_path):
    (tmp_path / "3").mkdir()
    with pytest.raises(ValueError, match=r"Expected a SavedModel .*3"):
        ModelServer(tmp_path).__enter__()
    (tmp_path / "3" / "saved_model.pb").write_bytes(b"\xff no model")
    with pytest.raises(ValueError, match=r"Expected a SavedModel .*3"):
        ModelServer(tmp_path).__enter__()


def test_ports_out_of_range(base_path):
    with pytest.raises(ValueError, match="Received: port=65536"):
        ModelServer(base_path, port=65536)


def test_missing_requirement_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(
        ImportError, match=r"This needs uvloop: pip install .*\[serving\]"
    ):
        keras_muffnet.model_server.ModelServer  # noqa: B018


def command(*flags):
    """Starts the command-line program."""
    root = Path(keras_muffnet.__file__).parents[1]
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "keras_muffnet.model_server", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_serves_until_a_signal(base_path, number):
    process = command(
        f"--rest_api_port={free_port()}",
        "--port=0",
        "--model_name=my toy",
        f"--model_base_path={base_path}",
    )
    try:
        line = process.stdout.readline()
        match = re.fullmatch(
            r"Serving my toy version 10 at "
            r"(http://127\.0\.0\.1:\d+/v1/models/my%20toy)\n",
            line,
        )
        with urllib.request.urlopen(match[1], timeout=60) as response:
            answer = json.load(response)
        assert answer["model_version_status"][0]["version"] == "10"
        url = urllib.parse.urlsplit(match[1])
        endless = http.client.HTTPConnection(url.netloc)
        body = '{"inputs": 0, "signature_name": "endless"}'
        endless.request("POST", url.path + ":predict", body)
        urllib.request.urlopen(match[1], timeout=60).close()
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
        endless.close()


def test_command_ends_while_it_loads(base_path):
    process = command(
        "--port=0",
        f"--rest_api_port={free_port()}",
        f"--model_base_path={base_path}",
        "--not_a_flag",
    )
    try:
        # Next it imports TensorFlow, which takes seconds.
        assert "unknown argument" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        assert output == ""
        assert "Stopped before the models were loaded" in errors
        assert process.returncode == 0
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("relative", "to have an absolute path"),
        ("{}/missing", "Received: no such folder"),
        ("{}", "Received: none that its version policy asks for"),
    ],
)
def test_command_without_a_model(forks, tmp_path, folder, text):
    folder = folder.format(tmp_path)
    done = forks("tensorflow").run(
        *("-m", "keras_muffnet.model_server", "--port=0"),
        "--file_system_poll_wait_seconds=0",  # does not wait for a version
        f"--model_base_path={folder}",
    )
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert text in line and folder in line


def test_help_starts_neither_tensorflow_nor_a_server():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['model_server', '--help']\n"
        "try:\n"
        "    runpy.run_module('keras_muffnet.model_server', None, '__main__')\n"
        "except SystemExit as stop:\n"
        "    print('code', stop.code)\n"
        "print({'tensorflow', 'keras', 'uvicorn'} & set(sys.modules))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(keras_muffnet.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert "--rest_api_port" in output
    assert output.endswith("code 0\nset()\n")
