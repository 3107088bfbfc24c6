"""Export for TF Serving and LiteRT: the same answers as the model's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet import preprocess_input
from keras_muffnet.export import export_litert
from keras_muffnet.export import export_saved_model
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert import Operation
from keras_muffnet.litert import median_latencies

STAGES = [StageSpec("geometric", 3, 8), StageSpec("none", 2, 8)]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return MuffNet(input_shape=(16, 16, 3), stages=STAGES, classes=4)


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, 16, 16, 3)).astype("uint8")


@pytest.fixture(scope="module")
def signatures(model, tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "muffnet"
    assert export_saved_model(model, base) == base / "1"
    loaded = tf.saved_model.load(base / "1")
    # The signatures do not keep what they came from alive.
    return loaded, loaded.signatures


def test_float_signature(model, pixels, signatures):
    images = preprocess_input(pixels)
    serve = signatures[1]["serving_default"]
    got = serve(images=tf.constant(images))["predictions"].numpy()
    np.testing.assert_allclose(
        got, model.predict(images, verbose=0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("encode", ["png", "jpeg", "bmp"])
def test_bytes_signature(model, pixels, signatures, encode):
    serve = signatures[1]["serving_bytes"]
    if encode == "bmp":
        encoded = [bitmap(image) for image in pixels]
    else:
        encoded = [getattr(tf.io, f"encode_{encode}")(i) for i in pixels]
        encoded = [text.numpy() for text in encoded]
    decoded = np.stack([tf.io.decode_image(e).numpy() for e in encoded])
    got = serve(image_bytes=tf.constant(encoded))["predictions"].numpy()
    expected = model.predict(preprocess_input(decoded), verbose=0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    if encode != "jpeg":
        np.testing.assert_array_equal(decoded, pixels)


def bitmap(image):
    """A 24-bit BMP: rows from the bottom, blue first."""
    height, width, _ = image.shape
    size = 54 + image.size
    header = b"BM" + size.to_bytes(4, "little") + bytes(4) + b"\x36\0\0\0"
    header += b"\x28\0\0\0" + width.to_bytes(4, "little")
    header += height.to_bytes(4, "little") + b"\x01\0\x18\0" + bytes(24)
    return header + image[::-1, :, ::-1].tobytes()


def test_bytes_of_another_size_and_of_grey_are_resized(model, signatures):
    large = np.full((40, 60, 1), 7, dtype="uint8")
    encoded = tf.io.encode_png(large).numpy()
    serve = signatures[1]["serving_bytes"]
    got = serve(image_bytes=tf.constant([encoded]))["predictions"].numpy()
    flat = preprocess_input(np.full((1, 16, 16, 3), 7))
    np.testing.assert_allclose(
        got, model.predict(flat, verbose=0), rtol=1e-4, atol=1e-6
    )


def test_bytes_that_are_no_image(signatures):
    serve = signatures[1]["serving_bytes"]
    with pytest.raises(tf.errors.InvalidArgumentError):
        serve(image_bytes=tf.constant([b"no image"]))


def test_versions_count_up_and_stay(model, tmp_path):
    base = tmp_path / "muffnet"
    (base / "7").mkdir(parents=True)
    (base / "notes").mkdir()
    assert export_saved_model(model, base) == base / "8"
    assert (base / "8" / "saved_model.pb").is_file()
    assert sorted(p.name for p in base.iterdir()) == ["7", "8", "notes"]


def test_open_size_has_the_float_signature_only(tmp_path):
    model = MuffNet(include_top=False, pooling="avg", stages=STAGES)
    path = export_saved_model(model, tmp_path / "features")
    loaded = tf.saved_model.load(path)
    assert "serving_bytes" not in loaded.signatures
    images = np.random.default_rng(0).normal(size=(2, 40, 24, 3))
    images = images.astype("float32")
    serve = loaded.signatures["serving_default"]
    got = serve(images=tf.constant(images))["predictions"].numpy()
    np.testing.assert_allclose(
        got, model.predict(images, verbose=0), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="static input size"):
        export_litert(model, tmp_path / "features.tflite")


def test_litert_answers_as_the_model(model, pixels, tmp_path):
    path = export_litert(model, tmp_path / "m.tflite")
    lite = LiteRTModel(path)
    assert lite.input_shape == (1, 16, 16, 3)
    assert lite.input_dtype == np.float32
    images = preprocess_input(pixels)
    np.testing.assert_allclose(
        lite.predict(images),
        model.predict(images, verbose=0),
        rtol=1e-4,
        atol=1e-6,
    )
    operations = lite.operations()
    assert all(set(op.dtypes) <= {"FLOAT32", "INT32"} for op in operations)
    ops = [op.name for op in operations]
    # One operation a convolution: the weights are frozen and BN is folded.
    convolutions = [n for n in (x.name for x in model.layers) if "conv" in n]
    found = ops.count("CONV_2D") + ops.count("DEPTHWISE_CONV_2D")
    assert found == len(convolutions)
    assert not {"VAR_HANDLE", "READ_VARIABLE", "SHAPE", "PACK"} & set(ops)
    [latency] = median_latencies([lite], rounds=3, warm_up=1)
    assert latency > 0
    with pytest.raises(ValueError, match=r"\(n, 16, 16, 3\).*\(2, 8, 8, 3\)"):
        lite.predict(np.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"n at least 1.*\(0, 16, 16, 3\)"):
        lite.predict(np.zeros((0, 16, 16, 3)))


def test_four_channels_have_the_float_signature_only(tmp_path):
    model = MuffNet(input_shape=(16, 16, 4), stages=STAGES, classes=2)
    path = export_saved_model(model, tmp_path / "m")
    assert "serving_bytes" not in tf.saved_model.load(path).signatures
    lite = LiteRTModel(export_litert(model, tmp_path / "m.tflite"))
    assert lite.input_shape == (1, 16, 16, 4)


def test_a_file_with_variables_is_not_written(model, tmp_path, monkeypatch):
    from keras_muffnet.export import saved_model

    operations = [Operation("CONV_2D", ()), Operation("READ_VARIABLE", ())]
    monkeypatch.setattr(saved_model, "read_operations", lambda _: operations)
    with pytest.raises(RuntimeError, match=r"constants.*: READ_VARIABLE$"):
        export_litert(model, tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()


def test_litert_models_have_one_input(tmp_path):
    class Sum(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 2))] * 2)
        def __call__(self, a, b):
            return a + b

    module = Sum()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.__call__.get_concrete_function()], module
    )
    path = tmp_path / "sum.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(ValueError, match="2 inputs and 1 outputs"):
        LiteRTModel(path)


def test_models_that_cannot_be_exported(tmp_path, monkeypatch):
    x = keras.Input((4,))
    with pytest.raises(ValueError, match=r"channels-last images.*4"):
        export_saved_model(keras.Model(x, x + 1), tmp_path / "m")
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="one input and one output"):
        export_saved_model(keras.Model([a, b], a + b), tmp_path / "m")

    class Opaque(keras.Model):
        def call(self, x):
            return x

    opaque = Opaque()
    opaque(np.zeros((1, 8, 8, 3)))
    for model in ("model.keras", opaque):
        with pytest.raises(ValueError, match="`model` must be a functional"):
            export_saved_model(model, tmp_path / "m")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax"):
        export_saved_model(keras.Model(x, x + 1), tmp_path / "m")
    assert not (tmp_path / "m").exists()
