"""The server with `.tflite` files, and without TensorFlow."""

import base64
import io
import json
import shutil
import urllib.error
import urllib.request

import keras
import numpy as np
import pytest
from PIL import Image

from keras_muffnet import quantization
from keras_muffnet.export import export_litert
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert.metadata import embed_metadata
from keras_muffnet.model_server import ModelServer

LABELS = ["cat", "dog", "bird"]


def make_model(activation):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 6, 3)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation=activation),
        ]
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """int8 logits with labels, and float probabilities with metadata."""
    folder = tmp_path_factory.mktemp("models")
    images = np.random.default_rng(0).uniform(-1, 0.99, (32, 8, 6, 3))
    (folder / "int8" / "1").mkdir(parents=True)
    quantization.quantize_post_training(
        make_model("softmax"),
        images.astype(np.float32),
        folder / "int8" / "1" / "model.tflite",
        labels=LABELS,
    )
    (folder / "float" / "7").mkdir(parents=True)
    path = export_litert(
        make_model("softmax"), folder / "float" / "7" / "m.tflite"
    )
    path.write_bytes(
        embed_metadata(
            path.read_bytes(), name="m", labels=LABELS, mean=100, std=50
        )
    )
    return folder


@pytest.fixture(scope="module", params=["int8", "float"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def server(models, name):
    with ModelServer(models / name, model_name=name) as server:
        yield server


@pytest.fixture(scope="module")
def file(models, name):
    (path,) = (models / name).rglob("*.tflite")
    return LiteRTModel(path)


def call(server, path, request=None):
    data = None if request is None else json.dumps(request).encode()
    url = f"{server.url}/v1/models/{path}"
    try:
        with urllib.request.urlopen(url, data, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def encode(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return {"b64": base64.b64encode(buffer.getvalue()).decode()}


def noise(*shape):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def test_float_images(server, name, file):
    images = ((noise(3, 8, 6, 3) - 128.0) / 128).astype(np.float32)
    status, answer = call(
        server, f"{name}:predict", {"instances": images.tolist()}
    )
    assert status == 200
    np.testing.assert_allclose(
        answer["predictions"], file.predict(images), rtol=1e-6
    )


def test_encoded_images(server, name, file):
    pictures = noise(2, 8, 6, 3)
    mean, std = (100, 50) if name == "float" else (128, 128)
    expected = file.predict((pictures - np.float32(mean)) / std)
    request = {
        "signature_name": "serving_bytes",
        "instances": [encode(picture) for picture in pictures],
    }
    status, answer = call(server, f"{name}:predict", request)
    assert status == 200
    for row, scores in zip(answer["predictions"], expected, strict=True):
        np.testing.assert_allclose(row["predictions"], scores, rtol=1e-5)
        if name == "int8":
            # Logits, as the files of this package give them.
            scores = np.exp(scores) / np.exp(scores).sum()
        order = np.argsort(-scores, kind="stable")
        assert row["classes"] == [LABELS[k] for k in order]
        np.testing.assert_allclose(row["scores"], scores[order], rtol=1e-5)


def test_images_of_other_sizes_and_formats(server, name):
    # One colour stays one colour, whatever the size.
    colour = np.tile(np.array([10, 100, 250], np.uint8), (8, 6, 1))
    larger = np.tile(np.array([10, 100, 250], np.uint8), (50, 70, 1))
    request = {
        "signature_name": "serving_bytes",
        "instances": [
            encode(colour),
            encode(larger),
            encode(larger, "BMP"),
            encode(larger, "TIFF"),
        ],
    }
    status, answer = call(server, f"{name}:predict", request)
    assert status == 200
    first, *others = (row["predictions"] for row in answer["predictions"])
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-5)


def test_requests_that_are_refused(server, name):
    broken = {"b64": base64.b64encode(b"no image").decode()}
    good = encode(noise(8, 6, 3))
    for request, text in (
        (
            {"signature_name": "serving_bytes", "instances": [good, broken]},
            "image_bytes[1] cannot be decoded",
        ),
        (
            {"signature_name": "serving_bytes", "inputs": [[good]]},
            "Received: shape (1, 1)",
        ),
        ({"instances": [[1.0]]}, "(n, 8, 6, 3)"),
        ({"signature_name": "z", "instances": [1]}, '"z" not found'),
    ):
        status, answer = call(server, f"{name}:predict", request)
        assert status == 400
        assert text in answer["error"]


def test_an_image_of_too_many_pixels(server, name, monkeypatch):
    from keras_muffnet.model_server import litert_runtime

    monkeypatch.setattr(litert_runtime, "_MAX_PIXELS", 47)
    request = {
        "signature_name": "serving_bytes",
        "instances": [encode(noise(8, 6, 3))],
    }
    status, answer = call(server, f"{name}:predict", request)
    assert status == 400
    assert "image_bytes[0]" in answer["error"]
    assert "at most 47 pixels are taken, it has 6x8" in answer["error"]


def test_status_and_metadata(server, name):
    status, answer = call(server, name)
    assert status == 200
    version = {"int8": "1", "float": "7"}[name]
    assert answer["model_version_status"][0]["version"] == version
    _, answer = call(server, f"{name}/metadata")
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["images"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [
                {"size": size, "name": ""} for size in ["-1", "8", "6", "3"]
            ],
            "unknown_rank": False,
        },
        "name": "images",
    }
    assert set(signatures["serving_bytes"]["outputs"]) == {
        "predictions",
        "classes",
        "scores",
    }


WITHOUT_TENSORFLOW = """
import json, sys, urllib.request
for name in ("tensorflow", "tensorflow_serving", "tf_keras"):
    sys.modules[name] = None
from keras_muffnet.model_server import ModelServer
with ModelServer({path!r}, model_name="m", runtime="litert") as server:
    with urllib.request.urlopen(server.url + "/v1/models/m") as response:
        print(json.load(response)["model_version_status"][0]["state"])
    body = json.dumps({{"inputs": [[[[0.5] * 3] * 6] * 8]}}).encode()
    url = server.url + "/v1/models/m:predict"
    with urllib.request.urlopen(url, body) as response:
        print(len(json.load(response)["outputs"][0]))
print("keras" in sys.modules)
"""


def test_tensorflow_is_not_needed(models, run_python):
    code = WITHOUT_TENSORFLOW.format(path=str(models / "int8"))
    assert run_python("-c", code) == "AVAILABLE\n3\nFalse\n"


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({}, r"one \.tflite file in .*Received: none"),
        ({"a.tflite": 1, "b.tflite": 1}, r"Received: a\.tflite, b\.tflite"),
        ({"a.tflite": 0}, r"Expected a \.tflite file in .*a\.tflite"),
    ],
)
def test_folders_that_are_refused(models, tmp_path, files, text):
    (tmp_path / "1").mkdir()
    for name, is_good in files.items():
        path = tmp_path / "1" / name
        path.write_bytes(b"no model")
        if is_good:
            shutil.copy(models / "int8" / "1" / "model.tflite", path)
    with pytest.raises(ValueError, match=text):
        ModelServer(tmp_path, runtime="litert").__enter__()
