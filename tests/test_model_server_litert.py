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
import tensorflow as tf
from PIL import Image

from keras_muffnet import quantization
from keras_muffnet.export import export_litert
from keras_muffnet.export import export_saved_model
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert.metadata import embed_metadata
from keras_muffnet.model_server import ModelServer
from keras_muffnet.model_server.loader import load

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
    # One color stays one color, whatever the size.
    color = np.tile(np.array([10, 100, 250], np.uint8), (8, 6, 1))
    larger = np.tile(np.array([10, 100, 250], np.uint8), (50, 70, 1))
    request = {
        "signature_name": "serving_bytes",
        "instances": [
            encode(color),
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
from keras_muffnet.model_server.loader import load
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


# Versions that hold a SavedModel and a file.


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Versions of one SavedModel: a file of the same model, and of others."""
    folder = tmp_path_factory.mktemp("both")
    model = make_model("softmax")
    for number, (net, mean) in enumerate(
        [
            (model, 128),
            (make_model(None), 128),  # without the softmax
            (model, 100),  # other pixels
        ],
        start=1,
    ):
        path = export_litert(net, folder / "m.tflite")
        path.write_bytes(
            embed_metadata(
                path.read_bytes(), name="m", labels=LABELS, mean=mean, std=128
            )
        )
        version = export_saved_model(
            model, folder / "m", labels=LABELS, litert=path
        )
        assert version.name == str(number)
    return folder / "m"


def runs_of(path, caplog):
    """The servable, and the signatures that LiteRT runs."""
    caplog.clear()
    with caplog.at_level("INFO", "keras_muffnet.model_server.loader"):
        servable = load(path, "m", int(path.name))
    found = [text for text in caplog.messages if "LiteRT runs" in text]
    return servable, {text.split()[-1] for text in found}


def test_both_signatures_run_by_litert(both, caplog):
    servable, fast = runs_of(both / "1", caplog)
    assert fast == {"serving_default", "serving_bytes"}
    slow = load(both / "1", "m", 1, runtime="tensorflow")
    assert servable.signature_defs == slow.signature_defs
    file = LiteRTModel(both / "1" / "model.tflite")
    images = (noise(5, 8, 6, 3) / np.float32(128) - 1).astype("float32")
    pictures = [base64.b64decode(encode(noise(8, 6, 3))["b64"])] * 5
    for key, name, array in (
        ("serving_default", "images", images),
        ("serving_bytes", "image_bytes", np.array(pictures, object)),
    ):
        got, expected = (
            one.run(one.signature(key), {name: array})
            for one in (servable, slow)
        )
        assert list(got) == list(expected)
        for output, value in got.items():
            assert value.shape == expected[output].shape
            if value.dtype == object:
                assert (value == expected[output]).all()
            else:
                np.testing.assert_allclose(value, expected[output], rtol=1e-4)
        if name == "images":
            # To the last bit, which TensorFlow is not.
            predicted = file.predict(images)
            np.testing.assert_array_equal(got["predictions"], predicted)
    for one in (servable, slow):
        one.close()


def test_shapes_that_the_file_does_not_take_run_by_tensorflow(both, caplog):
    servable, _ = runs_of(both / "1", caplog)
    signature = servable.signature("serving_default")
    larger = np.zeros((2, 16, 12, 3), "float32")
    got = servable.run(signature, {"images": larger})
    assert got["predictions"].shape == (2, 3)
    servable.close()


@pytest.mark.parametrize(
    ("version", "expected"), [("2", set()), ("3", {"serving_default"})]
)
def test_files_of_other_answers_are_left(both, caplog, version, expected):
    servable, fast = runs_of(both / version, caplog)
    assert fast == expected
    servable.close()


def test_a_file_that_litert_cannot_serve_is_left(both, tmp_path, caplog):
    shutil.copytree(both / "1", tmp_path / "1")
    (tmp_path / "1" / "model.tflite").write_bytes(b"no model")
    servable, fast = runs_of(tmp_path / "1", caplog)
    assert not fast
    assert "runs by TensorFlow" in caplog.text
    servable.close()


@pytest.mark.parametrize("inputs, outputs", [(2, 1), (1, 2)])
def test_files_of_several_inputs_or_outputs(
    both, tmp_path, caplog, inputs, outputs
):
    ends = [keras.Input((8, 6, 3)) for _ in range(inputs)]
    x = keras.layers.Average()([*ends, *ends])
    made = [keras.layers.Rescaling(k + 2)(x) for k in range(outputs)]
    keras.Model(ends, made).export(tmp_path / "saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(tmp_path / "saved")
    )
    shutil.copytree(both / "1", tmp_path / "1")
    (tmp_path / "1" / "model.tflite").write_bytes(converter.convert())
    servable, fast = runs_of(tmp_path / "1", caplog)
    assert not fast
    servable.close()
    with pytest.raises(
        ValueError, match=rf"{inputs} inputs.* and {outputs} outputs"
    ):
        load(tmp_path / "1", "m", 1, runtime="litert")


def test_a_file_to_export_with_must_be_one(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"`litert` must be a \.tflite file"):
        export_saved_model(
            make_model(None), tmp_path / "m", litert=tmp_path / "m.tflite"
        )
    assert not (tmp_path / "m").exists()


def test_grpc(models, name, file):
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    images = ((noise(3, 8, 6, 3) - 128.0) / 128).astype(np.float32)
    picture = base64.b64decode(encode(noise(8, 6, 3))["b64"])
    with (
        ModelServer(models / name, model_name=name, grpc_port=0) as server,
        grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
        answer = stub.Predict(request).outputs["predictions"]
        np.testing.assert_allclose(
            tf.make_ndarray(answer), file.predict(images), rtol=1e-6
        )
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.model_spec.signature_name = "serving_bytes"
        request.inputs["image_bytes"].CopyFrom(
            tf.make_tensor_proto([picture] * 3)
        )
        outputs = stub.Predict(request).outputs
        assert set(outputs) == {"classes", "predictions", "scores"}
        classes = tf.make_ndarray(outputs["classes"])
        assert classes.shape == (3, 3)
        assert {label.decode() for label in classes[0]} == set(LABELS)
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([b"no"]))
        with pytest.raises(grpc.RpcError, match="cannot be decoded") as caught:
            stub.Predict(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
