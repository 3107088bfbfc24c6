"""Range estimators, corrected biases, and targets."""

import shutil
import subprocess

import keras
import numpy as np
import pytest
from keras import layers

from keras_muffnet import quantization
from keras_muffnet.quantization import estimation
from keras_muffnet.quantization import targets
from keras_muffnet.quantization.plan import plan_quantization
from keras_muffnet.quantization.steps import Step

SHAPE = (6, 6, 3)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(image)
    x = layers.ReLU(name="relu")(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(4, name="last")(x))


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).random((40, *SHAPE), np.float32)


@pytest.fixture(scope="module")
def observed(model, data):
    return estimation.observe(plan_quantization(model), [data])


def test_min_max_is_what_calibration_finds(model, data, observed):
    outputs = keras.Model(model.input, model.get_layer("relu").output)(data)
    found = estimation.estimate(observed, "min-max")
    assert found["relu"] == pytest.approx(
        (float(np.min(outputs)), float(np.max(outputs)))
    )


def test_the_least_error_cuts_off_what_is_rare():
    values = np.random.default_rng(0).normal(size=1_000_000)
    values[:2] = -20.0, 20.0
    counts, _ = np.histogram(values, 2048, (-20.0, 20.0))
    name, observed = "x", estimation.Observed({}, {}, {})
    observed = observed._replace(histograms={name: [(counts, -20.0, 20.0)]})
    low, high = estimation.estimate(observed, "mse")[name]
    assert -12 < low < -5 < 5 < high < 12

    def error(low, high):
        scale = (high - low) / 255
        cut = np.clip(values, low, high)
        rounded = low + np.round((cut - low) / scale) * scale
        return np.square(rounded - values).mean()

    assert error(low, high) < 0.5 * error(-20.0, 20.0)


@pytest.mark.parametrize(
    "choose",
    [
        layers.MaxPooling2D(2),
        layers.GlobalMaxPooling2D(),
        layers.AdaptiveMaxPooling2D(2),
        lambda x: keras.ops.max(x, axis=(1, 2)),
        lambda x: keras.ops.min(layers.Permute((2, 1, 3))(x), axis=1),
    ],
)
def test_what_maxima_choose_is_counted_apart(choose, data):
    image = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, name="conv")(image)
    model = keras.Model(image, [choose(x), layers.GlobalAveragePooling2D()(x)])
    observed = estimation.observe(plan_quantization(model), [data])
    own, *chosen = observed.histograms.pop("conv")
    assert own[0].sum() == 40 * 4 * 4 * 4
    values = np.asarray(model(data)[0])
    assert sum(counts.sum() for counts, *_ in chosen) >= values.size
    assert (min(low for _, low, _ in chosen), max(h for *_, h in chosen)) == (
        pytest.approx((values.min(), values.max()))
    )
    assert all(len(others) == 1 for others in observed.histograms.values())


@pytest.mark.parametrize("mean", [100.0, -1e4])
def test_the_least_error_of_values_far_from_zero(mean):
    values = np.random.default_rng(0).normal(mean, 1.0, 10_000)
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, 2048, (low, high))
    observed = estimation.Observed({}, {"x": [(counts, low, high)]}, {})
    found = estimation.estimate(observed, "mse")["x"]
    assert found == (min(low, 0.0), max(high, 0.0))


def test_ranges_hold_what_is_rare_but_chosen():
    counts = np.zeros(2048)
    counts[:1000], counts[-1] = 1e6, 1.0
    rare = np.zeros(2048)
    rare[-1] = 1.0
    own, chosen = (counts, 0.0, 10.0), (rare, 0.0, 10.0)
    for estimator in ("mse", "percentile"):
        for histograms, least, most in (
            ([own], 0.0, 6.0),
            ([own, chosen], 9.9, 10.0),
            ([(counts[::-1], -10.0, 0.0), chosen], 9.9, 10.0),
        ):
            observed = estimation.Observed({}, {"x": histograms}, {})
            low, high = estimation.estimate(observed, estimator)["x"]
            assert least <= high <= most
            assert (low < 0) == (histograms[0][1] < 0)


def test_a_narrow_output_has_a_range():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="last")])
    model.set_weights([np.zeros((4, 3)), np.full(3, 3.33)])
    model.layers[0].kernel.assign(np.full((4, 3), 1e-5))
    data = np.random.default_rng(0).random((10, 4), np.float32)
    observed = estimation.observe(plan_quantization(model), [data])
    for estimator in ("mse", "percentile"):
        low, high = estimation.estimate(observed, estimator)["last"]
        assert low == 0.0
        assert high == pytest.approx(3.33, abs=1e-3)


@pytest.mark.parametrize(
    ("counts", "low", "high"), [(0.0, 0.0, 0.0), (0.0, -1.0, 2.0)]
)
def test_without_values_limits_stay(counts, low, high):
    histogram = (np.full(2048, counts), low, high)
    observed = estimation.Observed({}, {"x": [histogram]}, {})
    for estimator in ("mse", "percentile"):
        found = estimation.estimate(observed, estimator)
        assert found == {"x": (low, high)}


def test_a_percentile_cuts_off_one_in_a_hundred_thousand():
    values = np.linspace(-1.0, 1.0, 1_000_000)
    values[:9], values[-12:] = -4.0, 4.0
    counts, _ = np.histogram(values, 2048, (-4.0, 4.0))
    observed = estimation.Observed({}, {"x": [(counts, -4.0, 4.0)]}, {})
    low, high = estimation.estimate(observed, "percentile")["x"]
    # Ten at either end may be cut off: these nine, and none of those twelve.
    assert low == pytest.approx(-1.0, abs=8 / 2048)
    assert high == 4.0


def test_means_are_those_of_the_inputs(model, data, observed):
    relu = keras.Model(model.input, model.get_layer("relu").output)
    np.testing.assert_allclose(
        observed.means["depthwise"],
        np.mean(relu(data), axis=0, keepdims=True),
        rtol=1e-5,
        atol=1e-6,
    )


def test_corrected_biases_undo_the_shift_of_rounded_kernels(
    model, data, observed
):
    plan = plan_quantization(model, weight_bits={"conv": 4, "last": 4})
    corrected = estimation.correct_biases(plan, observed.means)
    for step, other in zip(plan.steps, corrected.steps, strict=True):
        if step.name not in ("conv", "depthwise", "last"):
            continue
        assert len(other.weights) == 2
        assert np.array_equal(step.weights[0], other.weights[0])
    # By hand, for a convolution of the images.
    step = next(s for s in plan.steps if s.name == "conv")
    other = next(s for s in corrected.steps if s.name == "conv")
    kernel = step.weights[0]
    scale = np.abs(kernel).max(axis=(0, 1, 2)) / 7
    rounded = np.round(kernel / scale) * scale
    exact, changed = (
        np.mean(keras.ops.conv(data, k), axis=(0, 1, 2))
        for k in (kernel, rounded)
    )
    np.testing.assert_allclose(
        other.weights[1] - step.weights[1], exact - changed, atol=1e-5
    )
    assert np.abs(exact - changed).max() > 1e-3


def test_an_unknown_estimator_is_refused(model, data):
    with pytest.raises(ValueError, match=r"`range_estimator` .*'entropy'"):
        quantization.quantize_aware(model, data, range_estimator="entropy")


@pytest.mark.parametrize(
    ("target", "step", "message"),
    [
        ("edge-tpu", {"bits": 0}, "cannot run on the Edge TPU: x: is left in"),
        ("nnapi", {"bits": 4, "weights": (1,)}, "x: has a kernel of 4 bits"),
        (
            "edge-tpu",
            {"kind": "Function", "settings": {"function": "gelu"}},
            "x: becomes GELU, which it has not",
        ),
        ("nnapi", {"kind": "MatMul"}, "x: becomes BATCH_MATMUL"),
    ],
)
def test_what_a_target_cannot_run_is_named_before(target, step, message):
    step = Step("a", "a", "Conv2D", (0,), sources=("x",))._replace(**step)
    assert targets.fit_steps([step], "litert") == (step,)
    with pytest.raises(ValueError, match=message):
        targets.fit_steps([step], target)


def test_all_that_a_target_cannot_run_is_named_at_once():
    step = Step("a", "a", "MatMul", (0,), sources=("x",))
    with pytest.raises(ValueError, match=r"x: becomes .*; y: is left in float"):
        targets.fit_steps(
            [step, step._replace(sources=("y",), bits=0)], "edge-tpu"
        )


@pytest.mark.parametrize(
    ("target", "several"),
    [("tflite-micro", False), ("nnapi", False), ("ethos-u", True)],
)
def test_dense_kernels_have_the_scales_that_a_target_takes(target, several):
    steps = [Step(k, k, k, (0,)) for k in ("Conv2D", "Dense")]
    convolution, dense = targets.fit_steps(steps, target)
    assert convolution.per_channel
    assert dense.per_channel == several


@pytest.fixture(scope="module")
def content(model, data, tmp_path_factory):
    """A function that gives the bytes of a file, for LiteRT."""
    folder = tmp_path_factory.mktemp("content")

    def convert(io_dtype="int8", **settings):
        quantized = quantization.quantize_aware(model, data, **settings)
        path = quantization.convert(
            quantized, folder / "model.tflite", io_dtype=io_dtype
        )
        return path.read_bytes()

    return convert


def test_a_file_s_operations_are_checked(content, monkeypatch):
    file = content("float32", target="nnapi")
    targets.check_file(file, "float32", "nnapi")
    with pytest.raises(ValueError, match=r"`io_dtype` .*'float32'"):
        targets.check_file(file, "float32", "ethos-u")
    lacking = targets.TARGETS["nnapi"]
    lacking = lacking._replace(operations=lacking.operations - {"CONV_2D"})
    monkeypatch.setitem(targets.TARGETS, "nnapi", lacking)
    with pytest.raises(ValueError, match=r"NNAPI: CONV_2D #1 is none of its"):
        targets.check_file(file, "float32", "nnapi")
    targets.check_file(file, "float32", "litert")


def test_a_file_s_kernels_are_checked(content):
    """As `quantize_aware` does, if it is given the target."""
    file = content(weight_bits={"conv": 4})
    with pytest.raises(
        ValueError,
        match=r"Edge TPU: CONV_2D #\d has a kernel of 4 bits; .* has 4 scales",
    ):
        targets.check_file(file, "int8", "edge-tpu")
    with pytest.raises(ValueError, match=r"Micro: .* has 4 scales, of which"):
        targets.check_file(file, "int8", "tflite-micro")
    file = content(weight_bits={"conv": 4}, target="tflite-micro")
    targets.check_file(file, "int8", "tflite-micro")
    file = content(float_layers=["depthwise"], per_channel={"last": False})
    with pytest.raises(ValueError, match=r"DEPTHWISE.* is left in float"):
        targets.check_file(file, "int8", "tflite-micro")
    targets.check_file(file, "int8", "litert")


def test_convert_checks_the_file_for_its_target(model, data, tmp_path):
    quantized = quantization.quantize_aware(model, data)
    with pytest.raises(ValueError, match=r"Edge TPU: .* has 4 scales"):
        quantization.convert(
            quantized, tmp_path / "model.tflite", target="edge-tpu"
        )
    assert not list(tmp_path.iterdir())


def test_an_unknown_target_is_refused(model, data):
    with pytest.raises(ValueError, match=r"`target` .*'edge-tpu'.*'k210'"):
        quantization.quantize_aware(model, data, target="k210")


@pytest.mark.skipif(
    shutil.which("vela") is None, reason="needs `pip install ethos-u-vela`"
)
def test_vela_leaves_nothing_to_the_cpu(model, data, tmp_path):
    path = quantization.quantize_post_training(
        model, data, tmp_path / "model.tflite", target="ethos-u"
    )
    done = subprocess.run(
        ["vela", "--output-dir", tmp_path / "compiled", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CPU operators = 0 " in done.stdout
