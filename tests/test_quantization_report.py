"""The report on a quantized file: does it say what went wrong, and where?"""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_muffnet import quantization
from keras_muffnet.litert import LiteRTModel

# The quantized outputs, and the operations that make them.
EXPECTED = {
    "input_range": "input",
    "re_lu": "CONV_2D",
    "re_lu_1": "CONV_2D",
    "swish": "CONV_2D",
    "swish_sigmoid": "LOGISTIC",
    "swish_product": "MUL",
    "conv_2_relu": "CONV_2D",
    "conv_2_relu_call2": "CONV_2D",
    "add": "ADD",
    "pool": "MEAN",
    "predictions": "FULLY_CONNECTED",
}


def make_model(second="re_lu_1", width=4, size=6, classes=5):
    """Layers of one shape, named as TensorFlow names repeated scopes."""
    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 4))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(image)
    x = layers.BatchNormalization(name="conv_bn")(x)
    a = layers.ReLU(name="re_lu")(x)
    x = layers.Conv2D(width, 3, padding="same", name="conv_1")(a)
    x = layers.ReLU(name=second)(x)
    x = layers.Conv2D(4, 1, activation="silu", name="swish")(x)
    # The converter puts the second call first.
    shared = layers.Conv2D(4, 1, activation="relu", name="conv_2")
    b, c = shared(x), shared(a)
    # By itself it requantizes what is in two concatenations.
    b = layers.Concatenate(name="join")([a, b])
    c = layers.Concatenate(name="join_1")([c, a])
    x = layers.Permute((2, 1, 3), name="turn")(layers.Add(name="add")([b, c]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(classes, activation="softmax", name="predictions")(x)
    model = keras.Model(image, x)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if hasattr(layer, "bias"):
            layer.bias.assign(rng.uniform(0.1, 0.5, layer.bias.shape))
    return model


def logits(model, data):
    *_, dense = model.layers
    features = keras.Model(model.input, dense.input).predict(data, verbose=0)
    return features @ dense.kernel.numpy() + dense.bias.numpy()


def decibels(wanted, given):
    noise = np.square(wanted - given, dtype=float).sum()
    return 10 * math.log10(np.square(wanted, dtype=float).sum() / noise)


def by_name(report):
    return {layer.name: layer for layer in report.layers}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    return rng.uniform(-1, 127 / 128, (40, 6, 6, 4)).astype("float32")


@pytest.fixture(scope="module")
def quantized(model, data):
    return quantization.quantize_aware(model, data, engine="keras")


@pytest.fixture(scope="module")
def path(quantized, folder):
    return quantization.convert(quantized, folder / "whole.tflite")


@pytest.fixture(scope="module")
def report(model, path, data):
    return quantization.report(model, path, data)


def test_all_quantized_outputs_are_found_in_order(report):
    found = {layer.name: layer.operation for layer in report.layers}
    assert found == EXPECTED
    assert list(found) == list(EXPECTED)
    assert report.unmatched == ()
    # One that was taken for another would have below 10.
    assert all(layer.own_sqnr > 30 for layer in report.layers)


def test_figures_of_the_ends_are_those_computed_by_hand(
    report, model, path, data
):
    levels = np.round(data[:32] * 128) / 128
    first, *_, last = report.layers
    assert first.sqnr == first.own_sqnr
    assert first.sqnr == pytest.approx(decibels(data[:32], levels), abs=0.1)
    assert first.scale == pytest.approx(1 / 128, rel=1e-4)
    assert first.limits == pytest.approx((-1, 127 / 128), rel=1e-4)
    wanted = logits(model, data)
    given = LiteRTModel(path, keep_tensors=True).predict(data[:32])
    expected = decibels(wanted[:32], given)
    assert report.sqnr == last.sqnr == pytest.approx(expected, abs=0.1)
    # All images are run as they would be in use.
    given = LiteRTModel(path).predict(data)
    difference = np.abs(wanted - given).mean()
    assert report.mean_difference == pytest.approx(difference, rel=1e-3)
    same = wanted.argmax(axis=1) == given.argmax(axis=1)
    assert report.agreement == same.mean()
    assert (report.images, report.compared) == (40, 32)


def test_a_whole_file_has_nothing_in_float(report, path):
    assert report.operations == {
        "CONV_2D": 5,
        "LOGISTIC": 1,
        "MUL": 1,
        "CONCATENATION": 2,
        "ADD": 1,
        "TRANSPOSE": 1,
        "MEAN": 1,
        "FULLY_CONNECTED": 1,
    }
    assert report.float_operations == report.requantizations == ()
    assert report.size == path.stat().st_size


def test_a_range_too_small_is_the_worst_and_cuts_off(
    model, quantized, report, data, folder
):
    ranges = dict(quantization.finish(quantized, model).ranges)
    high = ranges["re_lu_1"][1] / 10
    ranges["re_lu_1"] = (0.0, high)
    broken = quantization.quantize_aware(model, ranges, engine="keras")
    path = quantization.convert(broken, folder / "broken.tflite")
    found = quantization.report(model, path, data)
    worst, second, *_ = found.worst()
    assert worst.name == "re_lu_1"
    assert worst.own_sqnr < 10 < 20 < second.own_sqnr
    assert worst.limits == pytest.approx((0, high), rel=1e-3)
    # Its zeros are not cut off, but all that is above the limit.
    outputs = keras.Model(model.input, model.get_layer("re_lu_1").output)
    share = (outputs.predict(data[:32], verbose=0) > high).mean()
    assert worst.cut_off == pytest.approx(share, abs=0.02)
    assert share > 0.2 and by_name(report)["re_lu_1"].cut_off < 0.01
    # What follows passes the error on, and makes none of its own.
    passing = by_name(found)["swish_product"]
    assert passing.sqnr < 15 < 20 < passing.own_sqnr
    assert by_name(found)["re_lu"] == by_name(report)["re_lu"]


def test_a_file_of_tfmot_has_the_same_figures(
    model, report, data, folder, run_python
):
    model.save(folder / "model.keras")
    np.save(folder / "data.npy", data)
    run_python(
        "-c",
        "import sys, keras, numpy as np; from keras_muffnet import quantization"
        "; folder = sys.argv[1]; quantization.convert("
        "quantization.quantize_aware("
        "keras.saving.load_model(folder + '/model.keras'),"
        "np.load(folder + '/data.npy')), folder + '/tfmot.tflite')",
        folder,
    )
    found = quantization.report(model, folder / "tfmot.tflite", data)
    assert found.sqnr == pytest.approx(report.sqnr, abs=1)
    for layer, other in zip(found.layers, report.layers, strict=True):
        assert layer[:2] == other[:2]
        assert layer[2:4] == pytest.approx(other[2:4], abs=1)


def test_the_converter_s_own_files_can_be_read_too(model, data, folder):
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x[None]] for x in data)
    path = folder / "converted.tflite"
    path.write_bytes(converter.convert())
    found = quantization.report(model, path, data)
    # There a swish is a layer's, without a name for its part.
    assert found.unmatched == ("swish_sigmoid",)
    assert all(x.own_sqnr > 30 for x in found.layers if x.operation)
    assert by_name(found)["add"].operation == "ADD"
    assert found.operations["SOFTMAX"] == 1
    assert found.float_operations == ()
    requantizations = found.operations["QUANTIZE"] - 1  # one at the input
    assert len(found.requantizations) == requantizations > 0
    # The outputs are probabilities, but the last layer's are logits.
    probabilities = model.predict(data, verbose=0)
    difference = np.abs(probabilities - LiteRTModel(path).predict(data)).mean()
    assert found.mean_difference == pytest.approx(difference, rel=1e-3)
    assert found.sqnr == found.layers[-1].sqnr > 25


def test_float_layers_are_listed(model, data, folder):
    quantized = quantization.quantize_aware(
        model, data, engine="keras", float_layers=["conv_1"]
    )
    path = quantization.convert(quantized, folder / "float.tflite")
    found = quantization.report(model, path, data)
    names = [name.partition(" ")[0] for name in found.float_operations]
    assert names.count("CONV_2D") == 1
    assert "DEQUANTIZE" in names and "FULLY_CONNECTED" not in names
    assert found.unmatched == ()


def test_layers_of_other_names_are_listed(path, report, data):
    found = quantization.report(make_model("other"), path, data)
    assert found.unmatched == ("other",)
    assert math.isnan(by_name(found)["other"].sqnr)
    assert "other" not in [layer.name for layer in found.worst(100)]
    assert "layers not found: 1: other" in str(found)
    # Its error counts for the next that is found.
    before = by_name(report)["swish"]
    after = by_name(found)["swish"]
    assert after.sqnr == before.sqnr
    assert after.own_sqnr < before.own_sqnr


def test_a_layer_of_another_size_is_not_taken_for_one(path, data):
    found = quantization.report(make_model(width=3), path, data)
    assert found.unmatched == ("re_lu_1",)


def test_printed_it_is_a_table_with_the_worst_first(report):
    lines = str(report).splitlines()
    assert "in float: none" in lines
    assert f"output 'predictions': {report.sqnr:.1f} dB" in str(report)
    names = [line[1:].split()[0] for line in lines if line[:1] in ("*", " ")]
    worst = [layer.name for layer in report.worst()]
    assert names == ["layer", *worst, "layer", *EXPECTED]
    marked = [line.split()[1] for line in lines if line.startswith("*")]
    assert sorted(marked) == sorted(2 * worst)
    assert len(worst) == 5


def test_a_picture_is_drawn(model, path, data, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    picture = tmp_path / "report.png"
    quantization.report(model, path, data[:2], picture=picture)
    assert image.imread(picture).shape[0] > 200
    # The module behind the function has not taken its place.
    assert callable(quantization.report)


def test_one_number_has_no_top_class(data, folder):
    image = keras.Input((6, 6, 4))
    x = layers.GlobalAveragePooling2D(name="pool")(image)
    model = keras.Model(image, layers.Dense(1, name="score")(x))
    path = quantization.quantize_post_training(
        model, data, folder / "one.tflite"
    )
    found = quantization.report(model, path, data)
    assert math.isnan(found.agreement)
    assert found.sqnr > 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tflite": "no/such.tflite"}, "`tflite` must be a file.*no/such"),
        ({"tflite": __file__}, "`tflite` must be a LiteRT file.*report.py"),
        ({"model": make_model(size=8)}, r"`tflite`.*\(8, 8, 4\).*\(6, 6, 4\)"),
        ({"model": make_model(classes=3)}, "`tflite`.*numbers, 3,.*with 5"),
        ({"data": np.zeros((2, 8, 6, 4))}, r"`data`.*n, 6, 6, 4.*\(2, 8, 6, 4"),
        ({"data": np.zeros((0, 6, 6, 4))}, r"`data`.*at least 1.*\(0, 6, 6, 4"),
        ({"data": np.full((2, 6, 6, 4), "a")}, "`data`.*numbers.*U1"),
        ({"data": [[0.5]]}, "`data`.*arrays.*list"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_arguments_that_do_not_fit_are_refused(
    model, path, data, arguments, message
):
    accepted = {"model": model, "tflite": path, "data": data}
    given = {**accepted, **arguments}
    if given["model"] is not model:
        shape = given["model"].input_shape[1:]
        given["data"] = np.zeros((2, *shape), "float32")
    with pytest.raises(ValueError, match=message):
        quantization.report(**given)


def test_a_file_of_another_model_is_refused(path, data):
    image = keras.Input((6, 6, 4))
    x = layers.Conv2D(4, 1, name="nothing")(image)
    x = layers.GlobalAveragePooling2D(name="like")(x)
    other = keras.Model(image, layers.Dense(5, name="it")(x))
    with pytest.raises(ValueError, match=r"`tflite`.*and 0 such tensors"):
        quantization.report(other, path, data)
