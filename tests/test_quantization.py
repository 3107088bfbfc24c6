"""Quantization: arguments, metadata, weights on their way back, backends."""

import pathlib
import sys
import zipfile

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from keras_muffnet import preprocess_input
from keras_muffnet import quantization
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert.metadata import read_metadata
from keras_muffnet.quantization import calibration
from keras_muffnet.quantization import keras_engine
from keras_muffnet.quantization.plan import plan_quantization
from tests.test_quantization_lowering import CHANNELS
from tests.test_quantization_lowering import NETWORKS
from tests.test_quantization_lowering import SHAPE
from tests.test_quantization_lowering import images
from tests.test_quantization_lowering import make_model

ENGINES = ("keras", "tfmot")


def tiny(x):
    x = layers.Conv2D(6, 3, activation="relu", name="first")(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(6, 1, name="middle")(x)
    x = layers.Add(name="sum")([x, y])
    x = layers.BatchNormalization(name="alone")(layers.Concatenate()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Dense(4, name="last")(x)


# Arguments that are refused.


@pytest.fixture(scope="module")
def tiny_model():
    return make_model(tiny)


@pytest.fixture(scope="module")
def quantized_tiny(tiny_model):
    return quantization.quantize_aware(tiny_model, images(), engine="keras")


def pixels(count=2):
    return np.linspace(0, 255, count * np.prod(SHAPE)).reshape(-1, *SHAPE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([[0.0]], "arrays.*Received: list"),
        (None, "arrays, a data set or a generator.*Received: NoneType"),
        (["a"], "arrays.*Received: str"),
        (np.array(["a"]), "numbers.*Received: <U1"),
        ([pixels(), pixels()], "1 arrays.*Received: 2"),
        ({"x": pixels()}, "keys.*Received: x"),
        (iter([]), "at least 1 batch"),
        (pixels().astype(np.uint8), r"\[0.0, 255.0\].* without a Rescaling"),
        (np.zeros((0, *SHAPE)), r"at least 1.*\(0, 8, 8, 4\)"),
        (np.zeros((2, 8, 8, 3)), r"\(n, 8, 8, 4\).*\(2, 8, 8, 3\)"),
        (np.zeros(SHAPE), r"\(n, 8, 8, 4\).*\(8, 8, 4\)"),
        (np.full((2, *SHAPE), np.nan), r"finite.*\[nan, nan\]"),
        (np.full((2, *SHAPE), np.inf), r"finite.*\[inf, inf\]"),
        (pixels(), r"\[0.0, 255.0\].* without a Rescaling.*preprocess_input"),
    ],
)
def test_bad_calibration_data_is_refused(tiny_model, data, message):
    with pytest.raises(ValueError, match=f"`calibration_data` .*{message}"):
        quantization.quantize_aware(tiny_model, data, engine="keras")


def test_scaled_images_are_refused_by_a_model_that_scales():
    model = make_model(
        lambda x: tiny(layers.Rescaling(1 / 255, name="scale")(x))
    )
    with pytest.raises(ValueError, match=r"'scale', which scales pixels"):
        quantization.quantize_aware(model, pixels() / 255, engine="keras")
    quantized = quantization.quantize_aware(model, pixels(), engine="keras")
    assert quantized.get_layer("input_range").output_range == (0.0, 255.0)


@pytest.mark.parametrize(
    ("scaled", "limits"),
    [
        (pixels() / 255, (0.0, 1.0)),
        (preprocess_input(pixels()), (-1.0, 127 / 128)),
        (pixels() / 127.5 - 1, (-1.0, 1.0)),
        (pixels() / 255 * 7 - 3, (-3.0, 4.0)),
        # Where the data would fill little of a common range.
        (pixels() / 2550 - 0.05, (-0.05, 0.05)),
        (pixels() / 25500, (0.0, 0.01)),
        (pixels() / 510, (0.0, 0.5)),
    ],
)
def test_the_input_s_range_is_found(tiny_model, scaled, limits):
    arrays = calibration.read_data(scaled, tiny_model)
    (found,) = calibration.input_limits(arrays, tiny_model, None)
    assert found == pytest.approx(limits)


def test_the_input_s_range_is_the_model_s(tiny_model, quantized_tiny):
    found = quantized_tiny.get_layer("input_range").output_range
    (wanted,) = calibration.input_limits([images()], tiny_model, None)
    assert found == wanted


def test_the_input_s_range_may_be_given(tiny_model):
    quantized = quantization.quantize_aware(
        tiny_model, pixels(), engine="keras", input_range=(-1, 300)
    )
    found = quantized.get_layer("input_range").output_range
    assert found == (-1.0, 300.0)


@pytest.mark.parametrize(
    "limits", [5, "auto", (None, None), (-1, 1, 2), (5, -5), (0, np.inf)]
)
def test_what_is_no_range_is_refused(tiny_model, limits):
    with pytest.raises(ValueError, match="`input_range` must be two finite"):
        quantization.quantize_aware(tiny_model, images(), input_range=limits)


@pytest.mark.parametrize("limits", [(0, 1), (-300, 10)])
def test_data_outside_the_range_given_are_refused(tiny_model, limits):
    with pytest.raises(ValueError, match=r"lie within `input_range`"):
        quantization.quantize_aware(
            tiny_model, pixels(), engine="keras", input_range=limits
        )


def test_ranges_must_name_each_layer(tiny_model, quantized_tiny):
    ranges = quantization.finish(quantized_tiny, tiny_model).ranges
    del ranges["sum"], ranges["last"]
    with pytest.raises(ValueError, match=r"Missing: sum, last$"):
        quantization.quantize_aware(tiny_model, ranges, engine="keras")


def test_an_unknown_engine_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"`engine` .*engine='jax'"):
        quantization.quantize_aware(tiny_model, images(), engine="jax")


def test_ranges_and_the_input_s_range_are_not_given_together(
    tiny_model, quantized_tiny
):
    ranges = quantization.finish(quantized_tiny, tiny_model).ranges
    with pytest.raises(ValueError, match=r"`input_range` .*\(0, 1\)"):
        quantization.quantize_aware(
            tiny_model, ranges, engine="keras", input_range=(0, 1)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10), "`sparsity` .*Received: 0"),
        ((1, 10), "`sparsity` .*Received: 1"),
        ((float("nan"), 10), "`sparsity` .*Received: nan"),
        (("0.5", 10), "`sparsity` .*Received: '0.5'"),
        ((None, 10), "`sparsity` .*Received: None"),
        ((0.5, 0), "`steps` .*steps=0"),
        ((0.5, 2.5), "`steps` .*steps=2.5"),
    ],
)
def test_pruning_checks_its_arguments(tiny_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        quantization.prune(tiny_model, *arguments)


@pytest.mark.parametrize("clusters", [1, 0, -3, 2.5, "4", None])
def test_clustering_checks_its_argument(tiny_model, clusters):
    with pytest.raises(ValueError, match=f"`clusters` .*{clusters!r}"):
        quantization.cluster(tiny_model, clusters)


def test_what_is_converted_must_fit_the_precision(
    tiny_model, quantized_tiny, tmp_path
):
    path = tmp_path / "new" / "model.tflite"
    with pytest.raises(ValueError, match=r"`quantize_aware` .*'int8'"):
        quantization.convert(tiny_model, path)
    with pytest.raises(ValueError, match=r"float, built .*'float16'"):
        quantization.convert(quantized_tiny, path, precision="float16")
    with pytest.raises(ValueError, match=r"`precision` .*'int4'"):
        quantization.convert(quantized_tiny, path, precision="int4")
    with pytest.raises(ValueError, match=r"`io_dtype` .*'int16'"):
        quantization.convert(quantized_tiny, path, io_dtype="int16")
    assert not path.parent.exists()


@pytest.mark.parametrize("make", [keras.Sequential, lambda: "model.keras"])
@pytest.mark.parametrize("precision", ["float16", "int16"])
def test_only_a_built_model_is_converted(make, precision, tmp_path):
    with pytest.raises(ValueError, match=r"`model` must be .*built Keras 3"):
        quantization.convert(
            make(),
            tmp_path / "model.tflite",
            precision=precision,
            calibration_data=images() if precision == "int16" else None,
        )


def test_a_model_of_tf_keras_is_told_apart():
    class Old:
        __module__ = "tf_keras.src.engine.functional"

    with pytest.raises(ValueError, match=r"`model` .*tf_keras.*set_weights"):
        quantization.quantize_aware(Old(), images())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "arrays, a data set.*Received: NoneType"),
        (np.zeros((2, 8, 8, 3)), r"\(n, 8, 8, 4\).*\(2, 8, 8, 3\)"),
        (np.zeros((0, *SHAPE)), r"at least 1.*\(0, 8, 8, 4\)"),
        (np.full((2, *SHAPE), np.nan), r"finite.*\[nan, nan\]"),
    ],
)
def test_int16_needs_images(tiny_model, data, message, tmp_path):
    path = tmp_path / "new" / "model.tflite"
    with pytest.raises(ValueError, match=f"`calibration_data` .*{message}"):
        quantization.convert(
            tiny_model, path, precision="int16", calibration_data=data
        )
    assert not path.parent.exists()


def test_int16_takes_its_ranges_from_the_images(tiny_model, tmp_path):
    x = images(20)

    def error(data):
        path = quantization.convert(
            tiny_model,
            tmp_path / "model.tflite",
            precision="int16",
            calibration_data=data,
        )
        return np.abs(LiteRTModel(path).predict(x) - tiny_model(x)).max()

    # What lies outside of the ranges is cut off.
    assert error(x) < 0.03
    assert error(x / 10) > 0.3


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_int16_needs_inputs_of_float32(dtype, tmp_path):
    image = keras.Input(SHAPE, dtype=dtype)
    model = keras.Model(image, layers.Rescaling(1 / 255)(image))
    with pytest.raises(ValueError, match=f"inputs of float32 .*: {dtype}$"):
        quantization.convert(
            model,
            tmp_path / "model.tflite",
            precision="int16",
            calibration_data=pixels(20).astype(dtype),
        )


def test_arguments_without_effect_are_refused(
    tiny_model, quantized_tiny, tmp_path
):
    path = tmp_path / "model.tflite"
    for model, options, name in (
        (quantized_tiny, {"calibration_data": images()}, "calibration_data"),
        (
            tiny_model,
            {"precision": "float16", "calibration_data": images()},
            "calibration_data",
        ),
        (quantized_tiny, {"crop": 0.875}, "crop"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be None"):
            quantization.convert(model, path, **options)
    assert not path.exists()


# Metadata.


def small(x, outputs=1, rescaled=False):
    if rescaled:
        x = layers.Rescaling(1 / 255)(x)
    x = layers.Conv2D(4, 3, activation="relu")(x)
    x = [layers.Dense(3)(layers.Flatten()(x)) for _ in range(outputs)]
    return x[0] if outputs == 1 else x


def small_quantized(scale=1.0, shape=(8, 8, 3), **kwargs):
    """A model and what it was quantized to, for images in [0, scale]."""
    model = make_model(lambda x: small(x, **kwargs), shape)
    x = scale * np.random.default_rng(0).random((9, *shape))
    return model, quantization.quantize_aware(model, x, engine="keras")


@pytest.fixture(scope="module")
def standardized():
    """A model of images scaled in a way that cannot be told from them."""
    model = make_model(small, (8, 8, 3))
    x = np.random.default_rng(0).normal(size=(9, 8, 8, 3))
    return model, x, quantization.quantize_aware(model, x, engine="keras")


def metadata_of(path):
    return read_metadata(path.read_bytes())


def test_a_file_tells_of_its_classes_and_scaling(tmp_path):
    model, quantized = small_quantized()
    path = tmp_path / "model.tflite"
    labels = ["a", "b", "c"]
    metadata = metadata_of(quantization.convert(quantized, path, labels=labels))
    assert metadata.name == quantized.name
    assert metadata.labels == ("a", "b", "c")
    assert (metadata.mean, metadata.std) == ((0.0,) * 3, (255.0,) * 3)
    assert metadata.color_space == "RGB"
    # The labels behind the model do not keep it from running.
    assert LiteRTModel(path).input_dtype == np.int8
    # What is given stands; labels are not needed.
    metadata = metadata_of(
        quantization.convert(quantized, path, normalization=(10, 20))
    )
    assert metadata.labels is None
    assert (metadata.mean, metadata.std) == ((10.0,) * 3, (20.0,) * 3)
    # A float model's scaling is not known.
    metadata = metadata_of(
        quantization.convert(
            model,
            path,
            precision="float16",
            labels=labels,
            normalization=(128, 128),
        )
    )
    assert metadata.labels == ("a", "b", "c")
    assert (metadata.mean, metadata.std) == ((128.0,) * 3, (128.0,) * 3)


def test_a_file_of_grayscale_images_says_so(tmp_path):
    _, quantized = small_quantized(255.0, (8, 8, 1), rescaled=True)
    metadata = metadata_of(
        quantization.convert(quantized, tmp_path / "m.tflite")
    )
    assert metadata.color_space == "GRAYSCALE"
    assert (metadata.mean, metadata.std) == ((0.0,), (1.0,))


def test_a_scaling_that_is_not_known_must_be_given(standardized, tmp_path):
    model, x, quantized = standardized
    path = tmp_path / "new" / "model.tflite"
    labels = ["a", "b", "c"]
    for options in ({}, {"precision": "float16"}):
        with pytest.raises(ValueError, match="`normalization` must be given"):
            quantization.convert(
                model if options else quantized, path, labels=labels, **options
            )
    assert not path.parent.exists()
    quantization.convert(quantized, path)
    with pytest.raises(ValueError, match="must hold metadata"):
        metadata_of(path)
    quantization.quantize_post_training(
        model, x, path, labels=labels, normalization=(120, 60)
    )
    metadata = metadata_of(path)
    assert metadata.labels == ("a", "b", "c")
    assert (metadata.mean, metadata.std) == ((120.0,) * 3, (60.0,) * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a", "b"]}, "`labels` must be 3, .*Received: 2"),
        ({"labels": "abc"}, "`labels` must be a sequence .*'abc'"),
        ({"labels": ["a", "b", "a"]}, r"`labels` must be unique.*\['a'\]"),
        ({"normalization": 128}, "`normalization` must be a mean .*128"),
        ({"normalization": (1, 2, 3)}, r"`normalization` must be .*\(1, 2, 3"),
        ({"normalization": (0, 0)}, "`std` must be positive.*0"),
    ],
)
def test_metadata_are_checked(standardized, options, message, tmp_path):
    options = {"normalization": (128, 128), **options}
    path = tmp_path / "new" / "model.tflite"
    with pytest.raises(ValueError, match=message):
        quantization.convert(standardized[-1], path, **options)
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"shape": SHAPE}, "4 channels and 1 outputs"),
        ({"outputs": 2}, "3 channels and 2 outputs"),
    ],
)
def test_metadata_that_a_file_cannot_hold_are_refused(
    kwargs, message, tmp_path
):
    _, quantized = small_quantized(**kwargs)
    path = tmp_path / "model.tflite"
    for options in (
        {"labels": ["a", "b", "c"]},
        {"normalization": (0, 1)},
        {"labels": ["a", "b", "c"], "normalization": (0, 1)},
    ):
        with pytest.raises(ValueError, match=f"`labels` and .*{message}"):
            quantization.convert(quantized, path, **options)
    assert quantization.convert(quantized, path).stat().st_size > 0


def test_a_path_without_the_suffix_is_refused(quantized_tiny, tmp_path):
    path = tmp_path / "new" / "model.bin"
    with pytest.raises(ValueError, match=r"'\.tflite'.*model\.bin"):
        quantization.convert(quantized_tiny, path)
    # Before the data are looked at, which takes time.
    with pytest.raises(ValueError, match=r"'\.tflite'.*model\.bin"):
        quantization.quantize_post_training(None, None, path)
    assert not path.parent.exists()


def test_what_is_no_quantized_model_is_not_loaded(tiny_model, tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("no archive")
    with pytest.raises(ValueError, match=r"`path` must be .*model\.keras"):
        quantization.load(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("something", "else")
    with pytest.raises(ValueError, match=r"`path` must be .*model\.keras"):
        quantization.load(path)


def test_a_model_that_is_not_quantized_is_not_loaded(tiny_model, tmp_path):
    path = tmp_path / "model.keras"
    tiny_model.save(path)
    with pytest.raises(ValueError, match=r"`path` must .*model\.keras"):
        quantization.load(path)


def test_finish_wants_the_model_that_was_quantized(quantized_tiny):
    other = make_model(layers.Conv2D(3, 1, name="other"))
    with pytest.raises(ValueError, match=r"`model`, whose layer 'other'"):
        quantization.finish(quantized_tiny, other)
    wider = make_model(layers.Conv2D(7, 3, name="first"))
    with pytest.raises(ValueError, match=r"`model`, whose layer 'first'"):
        quantization.finish(quantized_tiny, wider)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_models_of_lower_precision_are_quantized(policy, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model, x = make_model(tiny), images(20)
        quantized = quantization.quantize_aware(model, x, engine="keras")
        fake = quantized.predict(x, verbose=0)
        path = quantization.convert(quantized, tmp_path / "model.tflite")
        float_ = np.asarray(model.predict(x, verbose=0), "float32")
    finally:
        keras.config.set_dtype_policy(before)
    step = np.ptp(float_) / 255
    assert np.abs(LiteRTModel(path).predict(x) - fake).mean() < step
    assert np.abs(fake - float_).mean() < 2 * step


def test_a_file_that_is_not_all_integers_is_not_written(tiny_model, tmp_path):
    plan = plan_quantization(tiny_model)
    steps = tuple(
        step._replace(range=None) if step.name == "first_relu" else step
        for step in plan.steps
    )
    incomplete = keras_engine.build(
        plan._replace(steps=steps), [(-1.0, 1.0)] * len(plan.ranges)
    )
    with pytest.raises(RuntimeError, match=r"in float: CONV_2D #1, DEPTHWISE"):
        quantization.convert(incomplete, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


# Weights on their way back.


def shared_without_relu(x):
    layer = layers.Conv2D(CHANNELS, 1)
    return layer(layer(x))


def norms_without_center(x):
    x = layers.BatchNormalization()(layers.Conv2D(5, 3, use_bias=False)(x) * 2)
    return layers.BatchNormalization(center=False)(x) * 3.0


def hard_sigmoid_behind_norm(x):
    x = layers.BatchNormalization()(layers.Conv2D(5, 3)(x))
    return layers.Activation("hard_sigmoid")(x)


def hard_sigmoid_without_bias(x):
    x = layers.Conv2D(5, 3, use_bias=False)(x)
    return layers.Activation("hard_sigmoid")(x)


def shared_norm(x):
    norm = layers.BatchNormalization()
    x = norm(layers.Conv2D(CHANNELS, 1, use_bias=False)(x))
    return norm(layers.Conv2D(CHANNELS, 1, use_bias=False)(x))


WITH_WEIGHTS = {
    **{
        name: NETWORKS[name]
        for name in (
            "convolution",
            "depthwise",
            "separable",
            "separable without bias",
            "norm behind convolution",
            "norm behind depthwise",
            "norm without center",
            "norms of vectors",
            "convolution with hard_sigmoid",
            "chained",
            "nested functional",
            "nested sequential",
            "shared",
        )
    },
    **{
        network.__name__: network
        for network in (
            shared_without_relu,
            norms_without_center,
            hard_sigmoid_behind_norm,
            hard_sigmoid_without_bias,
            shared_norm,
            tiny,
        )
    },
}


def float_twin(quantized, model):
    """The float steps of a model with what its quantized form has learned."""
    twin = keras_engine.build(plan_quantization(model))
    trained = {}
    for layer in quantized.layers:
        bare = getattr(layer, "layer", layer)
        for variable in layer.trainable_variables:
            name = variable.name.rpartition("/")[2].partition(":")[0]
            name = name.removeprefix("depthwise_")
            trained[bare.name, name] = variable.numpy()
    for layer in twin.layers:
        for variable in layer.trainable_variables:
            variable.assign(trained.pop((layer.name, variable.name)))
    assert not trained
    return twin


@pytest.mark.parametrize("network", WITH_WEIGHTS)
def test_all_that_was_learned_comes_back(network):
    model = make_model(WITH_WEIGHTS[network])
    before = model.get_weights()
    x = images(20)
    quantized = quantization.quantize_aware(model, x, engine="keras")
    rng = np.random.default_rng(3)
    for variable in quantized.trainable_variables:
        variable.assign(variable + rng.normal(0, 0.1, variable.shape))
    finished, ranges = quantization.finish(quantized, model)
    twin = float_twin(quantized, model)
    np.testing.assert_allclose(finished(x), twin(x), rtol=1e-5, atol=1e-5)
    assert not np.allclose(finished(x), model(x), rtol=1e-2, atol=1e-2)
    assert all(map(np.array_equal, before, model.get_weights()))
    again = quantization.quantize_aware(finished, ranges, engine="keras")
    assert quantization.finish(again, finished).ranges == ranges


# The keras engine on its own.


NO_TFMOT = """
import sys
sys.modules["tensorflow_model_optimization"] = None
sys.modules["tf_keras"] = None
import keras, numpy as np
from keras_muffnet import quantization
model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 1)])
x = np.random.default_rng(0).random((9, 8, 8, 3))
quantized = quantization.quantize_aware(model, x, engine="keras")
quantized.save("FOLDER/model.keras")
path = quantization.convert(
    quantization.load("FOLDER/model.keras"), "FOLDER/model.tflite"
)
print("range", quantization.finish(quantized, model).ranges["input_range"])
try:
    quantization.quantize_aware(model, x, engine="tfmot")
except ImportError as error:
    print(error)
"""


def test_the_keras_engine_needs_neither_tf_keras_nor_tfmot(
    run_forked, tmp_path
):
    printed = run_forked("-c", NO_TFMOT.replace("FOLDER", str(tmp_path)))
    assert "range (0.0, 1.0)" in printed
    assert LiteRTModel(tmp_path / "model.tflite").input_dtype == np.int8
    # The other engine says what it lacks, and how to get it.
    assert "needs tf_keras: pip install" in printed


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_keras_engine_trains_on_every_backend(
    backend, run_forked, tmp_path
):
    run_forked("-m", __name__, str(tmp_path), KERAS_BACKEND=backend)
    with np.load(tmp_path / "outputs.npz") as file:
        outputs = dict(file)
    assert str(outputs["backend"]) == backend
    assert outputs["losses"][-1] < outputs["losses"][0]
    np.testing.assert_allclose(
        outputs["finished"], outputs["twin"], rtol=1e-5, atol=1e-5
    )
    difference = np.abs(outputs["int8"] - outputs["fake"])
    assert difference.mean() < 0.1 * outputs["scale"]


def of_few_layers(x):
    """What has to be compiled, operation by operation."""
    x = layers.Conv2D(6, 3, use_bias=False, name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Dense(4, name="last")(x)


def compile_with(kit, model, rate=5e-4):
    model.compile(
        kit.optimizers.SGD(rate, momentum=0.9),
        kit.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


def measure_backend(folder):
    model, x = make_model(of_few_layers), images(64)
    labels = np.arange(len(x)) % 4
    quantized = quantization.quantize_aware(model, x, engine="keras")
    compile_with(keras, quantized, rate=0.01)
    history = quantized.fit(x, labels, batch_size=16, epochs=3, verbose=0)
    path = quantization.convert(quantized, folder / "model.tflite")
    (output,) = Interpreter(str(path)).get_output_details()
    finished = quantization.finish(quantized, model).model
    np.savez(
        folder / "outputs.npz",
        backend=keras.backend.backend(),
        losses=history.history["loss"],
        fake=quantized.predict(x, verbose=0),
        finished=finished.predict(x, verbose=0),
        twin=float_twin(quantized, model).predict(x, verbose=0),
        int8=LiteRTModel(path).predict(x),
        scale=output["quantization"][0],
    )


def test_post_training_is_quantizing_and_converting(
    tiny_model, quantized_tiny, tmp_path
):
    x = images(50)
    calibration, path = images(), tmp_path / "model.tflite"
    post_training = quantization.quantize_post_training(
        tiny_model,
        calibration,
        path,
        range_estimator="min-max",
        bias_correction=False,
    )
    answers = LiteRTModel(post_training).predict(x)
    lite = LiteRTModel(quantization.convert(quantized_tiny, path))
    assert np.array_equal(answers, lite.predict(x))
    wanted = np.asarray(tiny_model(x)).argmax(-1)
    assert np.mean(answers.argmax(-1) == wanted) >= 0.9


if __name__ == "__main__":
    measure_backend(pathlib.Path(sys.argv[1]))
