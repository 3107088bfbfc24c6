"""Quantization: the plan, the tf_keras twin and the int8 file.

tfmot changes what `tf.keras` is, so that it runs in a process of its own: the
fixture `measured` trains, rebuilds and converts there, and the tests look at
the figures that it wrote.
"""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet import quantization
from keras_muffnet.quantization.plan import plan_quantization
from tests.conftest import ROOT

MATRIX = [[2, 1, 3], [0, 4, 2], [0, 0, 5]]


def small_muffnet(*specs, **kwargs):
    return MuffNet(
        input_shape=(16, 16, 3), classes=4, stages=specs, stem="cifar", **kwargs
    )


def ranges_of(model):
    return plan_quantization(model).ranges


def test_units_are_quantized_once_at_their_end():
    plan = plan_quantization(small_muffnet(StageSpec("none", 2, 8)))
    quantized = [s.layer.name for s in plan.steps if s.range is not None]
    block = "stage1_layer2"
    assert [name for name in quantized if name.startswith(block)] == [
        f"{block}_pointwise1_relu",
        f"{block}_depthwise_bn",
        # Before the addition both operands are quantized, after it the ReLU.
        f"{block}_pointwise2_bn",
        f"{block}_relu",
    ]
    assert quantized[0] == "stem_relu"
    assert quantized[-3:] == ["head_relu", "avg_pool", "predictions"]


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (StageSpec("average", 4, 8), 4),
        (StageSpec("geometric", 5, 16), 5),
        (StageSpec("linear", 3, 9), 3),
        (StageSpec("dense", 4, 8), 4),
        (StageSpec(MATRIX), 3),
    ],
    ids=["average", "geometric", "linear", "dense", "matrix"],
)
def test_layers_of_a_federated_stage_share_one_range(spec, count):
    layers_of_stage = tuple(f"stage1_layer{i + 1}_relu" for i in range(count))
    assert layers_of_stage in ranges_of(small_muffnet(spec))


def test_layers_of_a_plain_chain_have_ranges_of_their_own():
    ranges = ranges_of(small_muffnet(StageSpec("none", 4, 8)))
    assert {len(names) for names in ranges[1:]} == {1}


def test_stages_do_not_share_a_range():
    ranges = ranges_of(
        small_muffnet(StageSpec("average", 2, 4), StageSpec("average", 2, 6))
    )
    for stage in ("stage1", "stage2"):
        assert (f"{stage}_layer1_relu", f"{stage}_layer2_relu") in ranges


def test_all_layers_are_in_the_plan_each_after_its_inputs():
    model = small_muffnet(StageSpec(MATRIX))
    plan = plan_quantization(model)
    names = {step.layer.name for step in plan.steps}
    assert names == {layer.name for layer in model.layers[1:]}
    assert len(plan.steps) == len(names)
    for k, step in enumerate(plan.steps):
        assert all(number <= k for number in step.inputs)


def test_max_pooling_passes_the_range_on():
    model = MuffNet(
        input_shape=(64, 64, 3),
        stages=[StageSpec("none", 1, 4)],
        include_top=False,
        pooling="max",
    )
    plan = plan_quantization(model)
    steps = {step.layer.name: step for step in plan.steps}
    assert steps["stem_pool"].range is None
    assert steps["max_pool"].range is None
    assert plan.ranges[-1] == ("head_relu",)


def test_concatenated_units_share_a_range_through_pooling_and_dropout():
    image = keras.Input((8, 8, 3))
    a = layers.Conv2D(2, 1, activation="relu", name="a")(image)
    b = layers.Conv2D(2, 1, name="b")(image)
    b = layers.Dropout(0.1)(layers.MaxPooling2D(1)(b))
    joined = layers.Concatenate()([a, b])
    c = layers.Conv2D(2, 1, name="c")(joined)
    model = keras.Model(image, layers.GlobalAveragePooling2D(name="d")(c))
    _, joint, *others = ranges_of(model)
    assert set(joint) == {"a", "b"}
    assert others == [("c",), ("d",)]


def test_a_relu_beside_another_reader_is_a_unit_of_its_own():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(2, 1, name="conv")(image)
    y = layers.ReLU(name="relu")(x)
    model = keras.Model(image, layers.Add(name="add")([x, y]))
    assert ranges_of(model) == ((), ("conv",), ("relu",), ("add",))


@pytest.mark.parametrize("as_layer", [True, False])
def test_a_final_softmax_is_left_out(as_layer):
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(image)
    if as_layer:
        x = layers.Activation("softmax")(layers.Dense(3, name="logits")(x))
    else:
        x = layers.Dense(3, activation="softmax", name="logits")(x)
    last = plan_quantization(keras.Model(image, x)).steps[-1]
    assert (last.layer.name, last.activation) == ("logits", "linear")


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.Conv2DTranspose(2, 3, name="odd"), "none of the known kinds"),
        (layers.LeakyReLU(name="odd"), "none of the known kinds"),
        (layers.Conv2D(2, 1, activation="gelu", name="odd"), "activation"),
        (layers.Conv2D(3, 1, groups=3, name="odd"), "groups"),
        (layers.Conv2D(3, 3, dilation_rate=2, name="odd"), "dilation_rate"),
        (layers.ReLU(negative_slope=0.1, name="odd"), "plain ReLU"),
        (layers.BatchNormalization(name="odd"), "follow a convolution"),
        (layers.BatchNormalization(axis=1, name="odd"), "last axis"),
        (layers.Activation("softmax", name="odd"), "last layer"),
        (layers.Dense(3, name="odd"), "vectors"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_quantized_is_refused_by_name(layer, reason):
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layer, layers.GlobalMaxPooling2D()]
    )
    with pytest.raises(ValueError, match=f"layer 'odd' .*{reason}"):
        quantization.quantize_aware(model, np.zeros((1, 8, 8, 3)))


def test_a_layer_called_twice_is_refused():
    image = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 1, name="shared")
    model = keras.Model(image, shared(shared(image)))
    with pytest.raises(ValueError, match=r"'shared' .*called twice"):
        plan_quantization(model)


def test_joining_the_input_with_another_range_is_refused():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(3, 1, name="conv")(image)
    model = keras.Model(image, layers.Concatenate()([image, x]))
    with pytest.raises(ValueError, match=r"'conv' .*input, whose range"):
        plan_quantization(model)


def test_an_open_image_size_is_refused():
    model = MuffNet(include_top=False, pooling="avg", alpha=0.1)
    with pytest.raises(ValueError, match=r"one size.*\(None, None, 3\)"):
        plan_quantization(model)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([[0.0]], "float array.*Received: list"),
        (np.zeros((2, 16, 16, 3), np.uint8), "float array.*Received: uint8"),
        (np.zeros((0, 16, 16, 3)), r"at least 1.*\(0, 16, 16, 3\)"),
        (np.zeros((2, 8, 16, 3)), r"\(n, 16, 16, 3\).*\(2, 8, 16, 3\)"),
        (np.zeros((16, 16, 3)), r"\(n, 16, 16, 3\).*\(16, 16, 3\)"),
        (np.full((2, 16, 16, 3), np.nan), r"finite.*\[nan, nan\]"),
        (np.full((2, 16, 16, 3), np.inf), r"finite.*\[inf, inf\]"),
        (np.full((2, 16, 16, 3), 1.0), r"\[-1.0, 0.9921875\].*\[1.0, 1.0\]"),
    ],
)
def test_bad_calibration_data_is_refused(data, message):
    model = small_muffnet(StageSpec("none", 1, 4))
    with pytest.raises(ValueError, match=f"`calibration_data` .*{message}"):
        quantization.quantize_aware(model, data)


def test_a_path_without_the_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'\.tflite'.*model\.bin"):
        quantization.convert(None, tmp_path / "model.bin")


def test_missing_packages_are_named_with_the_command(run_python):
    code = """
import sys
sys.modules["tensorflow_model_optimization"] = None
import keras, numpy as np
from keras_muffnet import quantization
model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 1)])
try:
    quantization.quantize_aware(model, np.zeros((1, 8, 8, 3)))
except ImportError as error:
    print(error)
"""
    printed = run_python("-c", code)
    assert "tensorflow_model_optimization" in printed
    assert 'pip install "keras-muffnet[quantization]"' in printed


# Run in a process of its own; writes what the tests below look at.
MEASURE = """
import json
import sys

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits

import keras_muffnet
from keras_muffnet import MuffNet, StageSpec, preprocess_input, quantization
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.quantization.plan import plan_quantization

folder = sys.argv[1]
found = {}
scans, labels = load_digits(return_X_y=True)
pixels = (scans.reshape(-1, 8, 8, 1) * (255 / 16)).round()
x = preprocess_input(pixels.repeat(2, 1).repeat(2, 2).repeat(3, 3))
train, test = slice(0, 1400), slice(1400, None)

keras.utils.set_random_seed(0)
model = MuffNet(
    input_shape=(16, 16, 3),
    classes=10,
    stem="cifar",
    stages=[
        StageSpec([[2, 1, 3], [0, 4, 2], [0, 0, 5]]),
        StageSpec("dense", 3, 12),
        StageSpec("none", 2, 16),
    ],
)
model.compile(
    keras.optimizers.SGD(0.05, momentum=0.9), "sparse_categorical_crossentropy"
)
model.fit(x[train], labels[train], batch_size=64, epochs=6, verbose=0)
model.save(f"{folder}/small.keras")
model = keras.saving.load_model(f"{folder}/small.keras")
outputs = {"labels": labels[test], "float": model.predict(x[test], verbose=0)}

twin = quantization.quantize_aware(model, x[:200])
import tf_keras
from keras_muffnet.quantization import twin as twins

plan = plan_quantization(model)
outputs["rebuilt"] = twins.float_twin(plan)(x[test])[-1]

before = {w.name: w.numpy() for w in twin.variables}
twin.compile(
    tf_keras.optimizers.SGD(5e-4, momentum=0.9),
    tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
twin.fit(x[train], labels[train], batch_size=64, verbose=0)
outputs["twin"] = twin.predict(x[test], verbose=0)
found["trainable"] = sum(w.shape.num_elements() for w in twin.trainable_weights)
found["kernels"] = sum(
    w.size for layer in model.layers for w in layer.get_weights()
    if not isinstance(layer, keras.layers.BatchNormalization)
)
frozen = [
    w for layer in twin.layers
    for w in getattr(layer, "layer", layer).get_weights()
    if "_bn" in layer.name
]
original = [
    w for layer in model.layers for w in layer.get_weights()
    if "_bn" in layer.name
]
found["frozen"] = [len(frozen), all(map(np.array_equal, frozen, original))]

path = quantization.convert(twin, f"{folder}/new/small.tflite")
lite = LiteRTModel(path)
outputs["int8"] = lite.predict(x[test])
found["ops"] = [op.name for op in lite.operations()]
interpreter = Interpreter(str(path))
details = interpreter.get_tensor_details()
found["tensor_dtypes"] = sorted({np.dtype(t["dtype"]).name for t in details})
(start,) = interpreter.get_input_details()
(end,) = interpreter.get_output_details()
found["ends"] = [np.dtype(t["dtype"]).name for t in (start, end)]
found["input_shape"] = start["shape"].tolist()
found["input_scale"], found["input_zero"] = start["quantization"]
found["output_scale"] = end["quantization"][0]
found["kernel_scales"] = max(
    len(t["quantization_parameters"]["scales"]) for t in details
)

errors = found["errors"] = {}
try:
    quantization.convert(model, f"{folder}/never.tflite")
except ValueError as error:
    errors["keras_model"] = str(error)
ranges = twins.calibrate(plan, x[:100])
steps = [
    s._replace(range=None) if s.layer.name == "avg_pool" else s
    for s in plan.steps
]
try:
    quantization.convert(
        twins.quantized_twin(plan._replace(steps=steps), ranges),
        f"{folder}/never.tflite",
    )
except RuntimeError as error:
    errors["forgotten_range"] = str(error)

# One of everything that the plan knows and the network above has not.
layers = keras.layers
rng = np.random.default_rng(0)
image = keras.Input((16, 16, 3))
h = layers.MaxPooling2D(2, padding="same")(image)
h = layers.Conv2D(8, 3, bias_initializer="he_normal")(h)
h = layers.BatchNormalization(name="bn")(h)
h = layers.ReLU(6)(h)
h = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(h)
a = layers.Conv2D(8, 1)(h)
b = layers.ReLU()(a)
h = layers.Activation("linear")(layers.Add()([a, b]))
h = layers.Dropout(0.2)(
    layers.Concatenate()([h, keras_muffnet.ChannelSlice(2, 5)(b), a])
)
h = layers.Concatenate()(
    [layers.GlobalMaxPooling2D()(h), layers.GlobalAveragePooling2D()(h)]
)
h = layers.Dense(6)(layers.Dense(12, activation="relu")(h))
mixed = keras.Model(image, layers.Activation("softmax")(h))
mixed.get_layer("bn").set_weights([
    rng.normal(size=8), rng.normal(size=8),
    rng.normal(size=8) / 10, rng.uniform(0.2, 1, 8),
])
noise = preprocess_input(rng.integers(0, 256, (200, 16, 16, 3)))
outputs["mixed_float"] = mixed.predict(noise, verbose=0)
outputs["mixed_rebuilt"] = twins.float_twin(plan_quantization(mixed))(noise)[-1]
mixed_twin = quantization.quantize_aware(mixed, noise)
outputs["mixed_twin"] = mixed_twin.predict(noise, verbose=0)
mixed_lite = LiteRTModel(
    quantization.convert(mixed_twin, f"{folder}/mixed.tflite")
)
outputs["mixed_int8"] = mixed_lite.predict(noise)
found["mixed_ops"] = [op.name for op in mixed_lite.operations()]
(end,) = Interpreter(mixed_lite.path).get_output_details()
found["mixed_output_scale"] = end["quantization"][0]

np.savez(f"{folder}/outputs.npz", **outputs)
with open(f"{folder}/found.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantization")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def outputs(folder):
    with np.load(folder / "outputs.npz") as file:
        return dict(file)


def accuracy(scores, labels):
    return np.mean(scores.argmax(-1) == labels)


def test_the_float_network_has_learned_something(outputs):
    # Else the comparisons below would be of noise with noise.
    assert accuracy(outputs["float"], outputs["labels"]) > 0.8


@pytest.mark.parametrize("network", ["", "mixed_"])
def test_the_float_rebuild_computes_what_keras_3_does(outputs, network):
    logits = outputs[f"{network}rebuilt"].astype(float)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(
        powers / powers.sum(-1, keepdims=True),
        outputs[f"{network}float"],
        atol=1e-5,
    )


def test_all_but_batch_normalisation_is_trained(found):
    assert found["trainable"] == found["kernels"]
    count, same = found["frozen"]
    assert count > 0
    assert same


def test_the_file_is_int8_from_end_to_end(found):
    assert found["ends"] == ["int8", "int8"]
    # int32: biases, and the bounds of slices and of the mean.
    assert found["tensor_dtypes"] == ["int32", "int8"]
    assert set(found["ops"]) == {
        "ADD",
        "CONCATENATION",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "MEAN",
        "STRIDED_SLICE",
    }


def test_batch_normalisation_and_relu_are_folded(found):
    # Stem and head, three reductions of three, five blocks of two.
    assert found["ops"].count("CONV_2D") == 2 + 3 * 3 + 5 * 2
    assert found["ops"].count("DEPTHWISE_CONV_2D") == 3 * 2 + 5


def test_the_input_is_the_pixel_less_128(found):
    assert found["input_shape"] == [1, 16, 16, 3]
    assert (found["input_scale"], found["input_zero"]) == (1 / 128, 0)


def test_convolutions_have_a_scale_for_each_output_channel(found):
    assert found["kernel_scales"] == 1024  # of the head


@pytest.mark.parametrize("network", ["", "mixed_"])
def test_the_file_computes_what_its_twin_does(outputs, found, network):
    # What differs is rounding: a value next to a tie falls on the other side
    # here and there, by one step each, and the last layer adds some of those.
    difference = outputs[f"{network}int8"] - outputs[f"{network}twin"]
    assert np.abs(difference).mean() < found[f"{network}output_scale"]


def test_the_file_answers_as_its_twin_does(outputs):
    same = outputs["int8"].argmax(-1) == outputs["twin"].argmax(-1)
    assert same.mean() >= 0.98


def test_every_kind_of_layer_becomes_one_int8_operation(found):
    assert found["mixed_ops"] == [
        "MAX_POOL_2D",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "RELU",
        "STRIDED_SLICE",
        "ADD",
        "CONCATENATION",
        "REDUCE_MAX",
        "MEAN",
        "CONCATENATION",
        "FULLY_CONNECTED",
        "FULLY_CONNECTED",
    ]


def test_the_file_answers_as_the_float_network_does(outputs):
    # 97.5% when it was written. The rest leaves room for another machine's
    # rounding, which training amplifies: two standard errors at 397 images.
    same = outputs["int8"].argmax(-1) == outputs["float"].argmax(-1)
    assert same.mean() >= 0.96


def test_only_a_quantization_aware_model_is_converted(found):
    assert "`quantized_model` must be" in found["errors"]["keras_model"]


def test_a_file_that_is_not_all_int8_is_not_written(found, folder):
    error = found["errors"]["forgotten_range"]
    assert "float MEAN" in error or "QUANTIZE" in error
    assert not (folder / "never.tflite").exists()
