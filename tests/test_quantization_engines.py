"""Both engines: fake-quantized models, and the files that they become.

tfmot changes what `tf.keras` is, so that it runs in a process of its own: the
fixture `folder` has this module run there as a program, which trains, saves,
converts and writes down what the tests look at.
"""

import gzip
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet import preprocess_input
from keras_muffnet import quantization
from keras_muffnet.data import load_digits
from keras_muffnet.export import export_litert
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.quantization.lowering import lower
from tests.conftest import ROOT
from tests.test_quantization import compile_with
from tests.test_quantization import float_twin
from tests.test_quantization import tiny
from tests.test_quantization_lowering import CHANNELS
from tests.test_quantization_lowering import NETWORKS
from tests.test_quantization_lowering import SHAPE
from tests.test_quantization_lowering import images
from tests.test_quantization_lowering import make_model

ENGINES = ("keras", "tfmot")


def wide(x):
    """Kernels large enough for a file to compress by what is in them."""
    x = layers.ZeroPadding2D()(layers.Rescaling(0.5)(x))
    x = layers.Conv2D(16, 3, activation="relu", name="first")(x)
    x = layers.Conv2D(64, 3, use_bias=False, name="middle")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Dense(20, name="last")(x)


def everything(x):
    """All networks that are rewritten, side by side."""
    outputs = []
    for network in NETWORKS.values():
        # Each with an input of its own: the converter makes one of operations
        # that differ only in what is added.
        y = network(layers.Conv2D(CHANNELS, 1)(x))
        if len(y.shape) == 4:
            y = layers.GlobalAveragePooling2D()(y)
        outputs.append(layers.Dense(4)(y))
    return layers.Dense(10)(layers.Concatenate()(outputs))


def kit(engine):
    """The Keras whose optimizers and losses an engine's models take."""
    if engine == "keras":
        return keras
    import tf_keras

    return tf_keras


def answers_of(model, x):
    """What `predict` gives, without a graph that is used once."""
    return np.asarray(model(x, training=False))


class Measuring:
    """Measures and keeps what it finds.

    Attributes:
        folder: where files are written.
        outputs: what models answered, by name.
        found: everything else, by name.
    """

    def __init__(self, folder):
        self.folder = folder
        self.outputs = {}
        self.found = {}

    def write(self):
        np.savez(self.folder / "outputs.npz", **self.outputs)
        text = json.dumps(self.found, default=float)
        (self.folder / "found.json").write_text(text)

    def measure(self):
        self.train()
        for engine in ENGINES:
            self.measure_engine(engine)
            self.measure_interruption(engine)
            self.measure_zeros(engine)
            self.measure_options(engine)
            self.measure_everything(engine)
        self.measure_pruning()
        self.measure_clustering()
        self.measure_other_files()

    def train(self):
        (x, y), (x_test, y_test) = load_digits(16)
        self.x, self.y = preprocess_input(x), y
        self.x_test = preprocess_input(x_test)
        keras.utils.set_random_seed(0)
        model = MuffNet(
            input_shape=(16, 16, 3),
            classes=10,
            classifier_activation=None,
            stem="cifar",
            stages=[
                StageSpec([[2, 1, 3], [0, 4, 2], [0, 0, 5]]),
                StageSpec("dense", 3, 12),
                StageSpec("none", 2, 16),
            ],
        )
        compile_with(keras, model, rate=0.05)
        model.fit(self.x, self.y, batch_size=64, epochs=6, verbose=0)
        self.model = model
        self.outputs["labels"] = y_test
        self.outputs["float"] = answers_of(model, self.x_test)

    def measure_engine(self, engine):
        model, x = self.model, self.x_test
        before = model.get_weights()
        quantized = quantization.quantize_aware(
            model, self.x[:200], engine=engine
        )
        self.outputs[f"{engine} untrained"] = answers_of(quantized, x)
        compile_with(kit(engine), quantized)
        quantized.fit(self.x[:640], self.y[:640], batch_size=64, verbose=0)
        self.outputs[f"{engine} fake"] = answers_of(quantized, x)
        self.convert(quantized, f"{engine} int8", x)
        finished, ranges = quantization.finish(quantized, model)
        self.outputs[f"{engine} finished"] = answers_of(finished, x)
        twin = float_twin(quantized, model)
        self.outputs[f"{engine} twin"] = answers_of(twin, x)
        again = quantization.quantize_aware(finished, ranges, engine=engine)
        self.outputs[f"{engine} again"] = answers_of(again, x)
        self.found[f"{engine} ranges"] = [
            ranges,
            quantization.finish(again, finished).ranges,
        ]
        self.found[f"{engine} source kept"] = all(
            map(np.array_equal, before, model.get_weights())
        )

    def convert(self, model, name, x, **kwargs):
        """Converts a model, runs the file and describes it."""
        path = self.folder / "new" / f"{name}.tflite"
        quantization.convert(model, path, **kwargs)
        lite = LiteRTModel(path)
        self.outputs[name] = lite.predict(x)
        interpreter = Interpreter(str(path))
        tensors = interpreter.get_tensor_details()
        (first,) = interpreter.get_input_details()
        (last,) = interpreter.get_output_details()
        self.found[name] = {
            "ops": lite.operations(),
            "dtypes": sorted({np.dtype(t["dtype"]).name for t in tensors}),
            "kernel scales": max(
                len(t["quantization_parameters"]["scales"]) for t in tensors
            ),
            "input": [np.dtype(first["dtype"]).name, *first["quantization"]],
            "input shape": first["shape"].tolist(),
            "output": [np.dtype(last["dtype"]).name, *last["quantization"]],
            "size": path.stat().st_size,
            "compressed": len(gzip.compress(path.read_bytes())),
        }

    def measure_interruption(self, engine):
        model, x = make_model(tiny), images(64)
        y = np.arange(len(x)) % 4
        path = self.folder / f"{engine}.keras"
        quantized = quantization.quantize_aware(model, x, engine=engine)
        compile_with(kit(engine), quantized, rate=0.01)
        fit = {"batch_size": 16, "shuffle": False, "verbose": 0}
        variables = {
            f"{layer.name} {v.name}": v
            for layer in quantized.layers
            for v in layer.variables
        }
        start = {name: v.numpy() for name, v in variables.items()}
        quantized.fit(x[:32], y[:32], **fit)
        quantized.save(path)
        loaded = quantization.load(path)
        forgetful = quantization.load(path)
        compile_with(kit(engine), forgetful, rate=0.01)
        answers = [answers_of(m, x) for m in (quantized, loaded, forgetful)]
        for continued in (quantized, loaded, forgetful):
            continued.fit(x[32:], y[32:], **fit)
            answers.append(answers_of(continued, x))
        self.outputs[f"{engine} interrupted"] = np.stack(answers)
        trainable = {id(v) for v in quantized.trainable_variables}
        self.found[f"{engine} variables"] = {
            name: [
                id(v) in trainable,
                not np.array_equal(start[name], v.numpy()),
            ]
            for name, v in variables.items()
        }

    def measure_zeros(self, engine):
        model, x = make_model(tiny), images(64)
        rng = np.random.default_rng(0)
        for name in ("first", "depthwise", "middle", "last"):
            kernel = model.get_layer(name).weights[0]
            kernel.assign(kernel * (rng.random(kernel.shape) < 0.5))
        quantized = quantization.quantize_aware(model, x, engine=engine)
        kernels = [v for v in quantized.trainable_variables if len(v.shape) > 1]
        before = [v.numpy() for v in kernels]
        compile_with(kit(engine), quantized, rate=0.01)
        quantized.fit(x, np.arange(len(x)) % 4, epochs=3, verbose=0)
        self.found[f"{engine} zeros"] = [
            [
                int((old == 0).sum()),
                int((new.numpy()[old == 0] != 0).sum()),
                int((new.numpy()[old != 0] != old[old != 0]).sum()),
            ]
            for old, new in zip(before, kernels, strict=True)
        ]

    def measure_pruning(self):
        import tf_keras
        from tensorflow_model_optimization.sparsity import keras as sparsity

        model, x = make_model(wide), images(32)
        fit = {"y": np.arange(len(x)) % 20, "batch_size": 8, "verbose": 0}
        pruned = quantization.prune(model, 0.75, steps=8)
        compile_with(tf_keras, pruned, rate=0.01)
        pruned.fit(x, epochs=2, callbacks=[sparsity.UpdatePruningStep()], **fit)
        model, _ = quantization.finish(pruned, model)
        self.keep_kernels("pruned", model)
        self.outputs["pruned finished"] = answers_of(model, x)
        self.outputs["pruned trained"] = answers_of(pruned, x)
        for engine in ENGINES:
            name = f"{engine} pruned"
            quantized = quantization.quantize_aware(model, x, engine=engine)
            compile_with(kit(engine), quantized, rate=0.01)
            quantized.fit(x, epochs=2, **fit)
            self.keep_kernels(name, quantization.finish(quantized, model).model)
            self.convert(quantized, name, x)
            self.keep_file_kernels(name)
        quantized = quantization.quantize_aware(
            make_model(wide), x, engine="keras"
        )
        self.convert(quantized, "not pruned", x)

    def measure_clustering(self):
        import tf_keras

        model, x = make_model(wide), images(32)
        clustered = quantization.cluster(model, 5)
        compile_with(tf_keras, clustered, rate=1e-4)
        y = np.arange(len(x)) % 20
        clustered.fit(x, y, batch_size=8, epochs=2, verbose=0)
        finished, _ = quantization.finish(clustered, model)
        self.keep_kernels("before clustering", model)
        for step in lower(finished).steps:
            if step.name in WIDE:
                self.outputs[f"clustered {step.name}"] = step.weights[0]
        self.outputs["clustered finished"] = answers_of(finished, x)
        self.outputs["clustered trained"] = answers_of(clustered, x)
        quantized = quantization.quantize_aware(finished, x, engine="keras")
        self.convert(quantized, "clustered", x)
        self.keep_file_kernels("clustered")
        # "middle" has 36 weights and "last" 48.
        small = quantization.cluster(make_model(tiny), 40)
        self.found["clustered layers"] = [
            layer.layer.name
            for layer in small.layers
            if hasattr(layer, "layer")
        ]

    def keep_kernels(self, name, model):
        for layer in WIDE:
            kernel = model.get_layer(layer).kernel
            self.outputs[f"{name} {layer}"] = kernel.numpy()

    def keep_file_kernels(self, name):
        path = self.folder / "new" / f"{name}.tflite"
        lite = LiteRTModel(path, keep_tensors=True)
        numbers = [
            node.inputs[1]
            for node in lite.nodes()
            if node.operation.name in ("CONV_2D", "FULLY_CONNECTED")
        ]
        kernels = lite.values(np.zeros((1, *SHAPE), "float32"), numbers)
        for layer, (kernel,) in zip(WIDE, kernels, strict=True):
            self.outputs[f"{name} file {layer}"] = kernel

    def measure_options(self, engine):
        rng = np.random.default_rng(0)
        x = preprocess_input(rng.integers(0, 256, (64, *SHAPE)))
        model = make_model(tiny)

        def measure(name, **kwargs):
            quantized = quantization.quantize_aware(
                model, x, engine=engine, **kwargs
            )
            self.outputs[f"{name} fake"] = quantized(x)
            self.convert(quantized, name, x)
            return quantized

        quantized = measure(f"{engine} tiny")
        for dtype in (dtype for by, dtype in END_TYPES if by == engine):
            self.convert(quantized, f"{engine} {dtype}", x, io_dtype=dtype)
        for names in (names for by, names in LEFT_IN_FLOAT if by == engine):
            measure(f"{engine} {names}", float_layers=names.split())
        measure(f"{engine} bits", weight_bits={"middle": 4, "last": 4})
        for names in DEAD:
            model = make_model(tiny)
            for name in names.split():
                layer = model.get_layer(name)
                kernel = layer.weights[0]
                kernel.assign(np.zeros(kernel.shape))
                if layer.use_bias:
                    layer.bias.assign(np.full(layer.bias.shape, 1.5))
            measure(f"{engine} dead {names}")
        model = make_model(tiny)
        model.get_layer("first").bias.assign(np.full(6, -100.0))
        measure(f"{engine} silent")

    def measure_everything(self, engine):
        model, x = make_model(everything), images(30)
        quantized = quantization.quantize_aware(model, x, engine=engine)
        self.outputs["everything float"] = model(x)
        name = f"{engine} everything"
        self.outputs[f"{name} fake"] = quantized(x)
        self.convert(quantized, name, x)

    def measure_other_files(self):
        model, x = self.model, self.x[:200]
        path = export_litert(model, self.folder / "float32.tflite")
        self.found["float32"] = {"size": path.stat().st_size}
        for precision, data in (
            ("float16", None),
            ("dynamic_range", None),
            ("int16", x[:50]),
        ):
            self.convert(
                model,
                precision,
                self.x_test,
                precision=precision,
                calibration_data=data,
            )


# Layers of `wide` with kernels, in order.
WIDE = ("first", "middle", "last")

# Layers of which nothing is left but their offsets.
DEAD = ("first last", "depthwise middle")

FLOAT_LAYERS = {
    # layers           the file's operations that are then in float
    "first": ["CONV_2D"],
    "sum": ["ADD"],
    "last": ["FULLY_CONNECTED"],
    "first depthwise": ["CONV_2D", "DEPTHWISE_CONV_2D"],
    "middle sum": ["CONV_2D", "ADD"],
}

# Of tfmot's models the same steps are converted: some of the cases will do.
LEFT_IN_FLOAT = [
    *(("keras", names) for names in FLOAT_LAYERS),
    ("tfmot", "first depthwise"),
    ("tfmot", "middle sum"),
]
END_TYPES = [("keras", "uint8"), ("keras", "float32"), ("tfmot", "uint8")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantization")
    # Not a fork: tfmot sets what TensorFlow's Keras is before any import.
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def outputs(folder):
    with np.load(folder / "outputs.npz") as file:
        return dict(file)


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def agreement(a, b):
    return np.mean(a.argmax(-1) == b.argmax(-1))


def mean_difference(a, b):
    return np.abs(a - b).mean()


def dtypes_of(operations):
    return {dtype for _, dtypes in operations for dtype in dtypes}


def names_of(operations):
    return [name for name, _ in operations]


def test_the_float_network_has_learned_something(outputs):
    # Else the comparisons below would be of noise with noise.
    assert np.mean(outputs["float"].argmax(-1) == outputs["labels"]) > 0.8


def test_the_engines_agree_before_training(outputs, found):
    keras_s, tfmot_s = outputs["keras untrained"], outputs["tfmot untrained"]
    assert agreement(keras_s, tfmot_s) >= 0.99
    _, scale, _ = found["keras int8"]["output"]
    assert mean_difference(keras_s, tfmot_s) < 0.1 * scale


def test_calibration_alone_loses_little(outputs, engine):
    untrained = outputs[f"{engine} untrained"]
    assert agreement(untrained, outputs["float"]) >= 0.98


def test_the_file_computes_what_its_model_does(outputs, found, engine):
    # What differs is rounding: a value next to a tie falls on the other side
    # here and there, by one step each, and the last layer adds some of those.
    int8, fake = outputs[f"{engine} int8"], outputs[f"{engine} fake"]
    _, scale, _ = found[f"{engine} int8"]["output"]
    assert mean_difference(int8, fake) < scale
    assert agreement(int8, fake) >= 0.98


def test_the_file_answers_as_the_float_network_does(outputs, engine):
    # 97.8% and 97.2% when it was written: after training they are not the
    # same network any more.
    assert agreement(outputs[f"{engine} int8"], outputs["float"]) >= 0.96


def test_the_file_is_int8_from_end_to_end(found, engine):
    file = found[f"{engine} int8"]
    # int32: biases, and the bounds of slices and of the mean.
    assert file["dtypes"] == ["int32", "int8"]
    assert file["input"][0] == file["output"][0] == "int8"
    assert set(names_of(file["ops"])) == {
        "ADD",
        "CONCATENATION",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "MEAN",
        "STRIDED_SLICE",
    }


def test_batch_normalization_and_relu_are_folded(found, engine):
    names = names_of(found[f"{engine} int8"]["ops"])
    # Stem and head, three reductions of three, five blocks of two.
    assert names.count("CONV_2D") == 2 + 3 * 3 + 5 * 2
    assert names.count("DEPTHWISE_CONV_2D") == 3 * 2 + 5


def test_the_input_is_the_pixel_less_128(found, engine):
    file = found[f"{engine} int8"]
    assert file["input shape"] == [1, 16, 16, 3]
    assert file["input"] == ["int8", 1 / 128, 0]


def test_convolutions_have_a_scale_for_each_output_channel(found, engine):
    assert found[f"{engine} int8"]["kernel scales"] == 1024  # of the head


@pytest.mark.parametrize(("engine", "dtype"), END_TYPES)
def test_the_ends_may_be_of_other_types(outputs, found, engine, dtype):
    first = {"uint8": ["uint8", 1 / 128, 128], "float32": ["float32", 0, 0]}
    file, int8 = found[f"{engine} {dtype}"], found[f"{engine} tiny"]
    assert file["input"] == first[dtype]
    assert file["output"][0] == dtype
    # The operations between are the same.
    assert file["ops"][0][0] == "QUANTIZE"
    assert file["ops"][-1][0] in ("QUANTIZE", "DEQUANTIZE")
    assert file["ops"][1:-1] == int8["ops"]
    answers = outputs[f"{engine} {dtype}"]
    assert np.array_equal(answers, outputs[f"{engine} tiny"])


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_what_was_trained_comes_back_as_a_float_model(outputs, engine):
    finished = outputs[f"{engine} finished"]
    twin = outputs[f"{engine} twin"]
    np.testing.assert_allclose(softmax(finished), softmax(twin), atol=1e-5)
    assert mean_difference(finished, outputs["float"]) > 1e-3


def test_what_came_back_is_quantized_as_before(outputs, found, engine):
    before, after = found[f"{engine} ranges"]
    assert before == after
    assert len(before) > 20
    again, fake = outputs[f"{engine} again"], outputs[f"{engine} fake"]
    # Dividing by what batch normalization multiplies by, and multiplying
    # again, rounds; few of the weights lie so close to a tie.
    _, scale, _ = found[f"{engine} int8"]["output"]
    assert mean_difference(again, fake) < 0.01 * scale
    assert agreement(again, fake) == 1


def test_the_model_that_was_quantized_stays_as_it_is(found, engine):
    assert found[f"{engine} source kept"]


def test_a_model_read_from_its_file_trains_on(outputs, engine):
    before, loaded_before, _, after, loaded_after, forgetful = outputs[
        f"{engine} interrupted"
    ]
    assert np.array_equal(before, loaded_before)
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(after, loaded_after, rtol=1e-6, atol=1e-6)
    # The optimizer's state made a difference.
    assert np.abs(after - forgetful).max() > 0.1


def test_all_is_trained_but_scales_alone(found, engine):
    variables = found[f"{engine} variables"]
    is_frozen = {
        name: "alone" in name or "optimizer_step" in name for name in variables
    }
    assert sum("alone" in name for name in variables) >= 2
    assert variables == {
        name: [not frozen, not frozen] for name, frozen in is_frozen.items()
    }


def test_zeros_of_kernels_stay(found, engine):
    kernels = found[f"{engine} zeros"]
    assert len(kernels) == 4
    for zeros, moved_zeros, moved_others in kernels:
        assert zeros >= 20
        assert moved_zeros == 0
        assert moved_others > 0


def assert_same_answers(outputs, name):
    np.testing.assert_allclose(
        outputs[f"{name} finished"],
        outputs[f"{name} trained"],
        rtol=1e-4,
        atol=1e-5,
    )


def share_of_zeros(kernel):
    return np.mean(kernel == 0)


def test_kernels_are_pruned_as_far_as_asked(outputs):
    # The first convolution stays whole, though it does not read the input.
    assert share_of_zeros(outputs["pruned first"]) == 0
    for name in ("middle", "last"):
        assert share_of_zeros(outputs[f"pruned {name}"]) == 0.75


def test_what_was_pruned_comes_back_as_it_was_trained(outputs):
    assert_same_answers(outputs, "pruned")


def test_what_was_pruned_stays_zero(outputs, engine):
    for name in ("middle", "last"):
        before = outputs[f"pruned {name}"]
        after = outputs[f"{engine} pruned {name}"]
        assert np.array_equal(after == 0, before == 0)
        assert not np.array_equal(after, before)
        # The file's kernels have the output channels in front.
        in_file = outputs[f"{engine} pruned file {name}"]
        in_file = np.moveaxis(in_file, 0, -1)
        assert (in_file[before == 0] == 0).all()
        # What is less than half a step becomes zero, too.
        assert 0.75 <= share_of_zeros(in_file) < 0.77
    assert share_of_zeros(outputs[f"{engine} pruned file first"]) < 0.02


def test_a_pruned_file_is_as_large_and_compresses_better(found, engine):
    pruned, whole = found[f"{engine} pruned"], found["not pruned"]
    assert pruned["size"] == pytest.approx(whole["size"], rel=0.02)
    assert pruned["compressed"] < 0.75 * whole["compressed"]


def count_values(kernel):
    """Distinct values, but for rounding in float."""
    return len(np.unique(np.round(kernel / np.abs(kernel).max(), 5)))


def test_clustered_kernels_have_few_values(outputs):
    assert count_values(outputs["clustered first"]) > 100
    for name in ("middle", "last"):
        assert count_values(outputs[f"before clustering {name}"]) > 100
        assert 2 <= count_values(outputs[f"clustered {name}"]) <= 5


def test_what_was_clustered_comes_back_as_it_was_trained(outputs):
    assert_same_answers(outputs, "clustered")


def test_clustered_kernels_have_few_values_in_the_file(outputs):
    # Each output channel of a convolution has a scale of its own.
    channels = outputs["clustered file middle"]
    assert len(channels) == 64
    assert all(2 <= len(np.unique(kernel)) <= 5 for kernel in channels)
    assert 2 <= len(np.unique(outputs["clustered file last"])) <= 5


def test_kernels_of_few_weights_are_not_clustered(found):
    assert found["clustered layers"] == ["last"]


TINY = [
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "CONV_2D",
    "ADD",
    "CONCATENATION",
    "DEPTHWISE_CONV_2D",
    "MEAN",
    "FULLY_CONNECTED",
]

# What barriers consist of. They end in an addition of their own.
BARRIER = ["STRIDED_SLICE", "LOGISTIC", "DEQUANTIZE", "MUL", "FLOOR", "ADD"]


def test_the_tiny_network_is_of_integers(found, engine):
    operations = found[f"{engine} tiny"]["ops"]
    assert names_of(operations) == TINY
    assert dtypes_of(operations) == {"INT8", "INT32"}


@pytest.mark.parametrize(("engine", "names"), LEFT_IN_FLOAT)
def test_layers_can_be_left_in_float(outputs, found, engine, names):
    file = found[f"{engine} {names}"]
    barriers = names_of(file["ops"]).count("FLOOR")
    assert barriers >= 1
    floats = [op for op in file["ops"] if set(op[1]) == {"FLOAT32"}]
    expected = FLOAT_LAYERS[names] + barriers * ["MUL", "FLOOR", "ADD"]
    assert sorted(names_of(floats)) == sorted(expected)
    integers = [op for op in file["ops"] if "FLOAT32" not in op[1]]
    rest = list(TINY) + barriers * ["STRIDED_SLICE", "LOGISTIC"]
    for name in FLOAT_LAYERS[names]:
        rest.remove(name)
    assert sorted(names_of(integers)) == sorted(rest)
    _, scale, _ = file["output"]
    difference = mean_difference(
        outputs[f"{engine} {names}"], outputs[f"{engine} {names} fake"]
    )
    assert difference < 0.5 * scale


def test_kernels_of_4_bits_are_those_named(outputs, found, engine):
    file = found[f"{engine} bits"]
    four = [k for k, (_, types) in enumerate(file["ops"]) if "INT4" in types]
    assert names_of(file["ops"]) == TINY
    assert four == [TINY.index("ADD") - 1, TINY.index("FULLY_CONNECTED")]
    _, scale, _ = file["output"]
    bits, fake = outputs[f"{engine} bits"], outputs[f"{engine} bits fake"]
    assert mean_difference(bits, fake) < 0.5 * scale
    assert mean_difference(fake, outputs[f"{engine} tiny fake"]) > scale


@pytest.mark.parametrize("names", DEAD)
def test_what_is_left_of_dead_layers_is_kept(outputs, found, engine, names):
    name = f"{engine} dead {names}"
    _, scale, _ = found[name]["output"]
    difference = np.abs(outputs[name] - outputs[f"{name} fake"])
    assert difference.max() < 1.5 * scale


def test_a_layer_that_never_answers_does_no_harm(outputs, found, engine):
    name = f"{engine} silent"
    assert np.ptp(outputs[f"{name} fake"]) > 0
    _, scale, _ = found[name]["output"]
    difference = np.abs(outputs[name] - outputs[f"{name} fake"])
    assert difference.max() < 1.5 * scale


def test_all_kinds_of_layers_become_integer_operations(found, engine):
    operations = found[f"{engine} everything"]["ops"]
    assert dtypes_of(operations) == {"INT8", "INT32"}
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(names_of(operations))


def test_all_kinds_of_layers_compute_what_they_should(outputs, found, engine):
    name = f"{engine} everything"
    _, scale, _ = found[name]["output"]
    fake = outputs[f"{name} fake"]
    assert mean_difference(outputs[name], fake) < 0.5 * scale
    # 2 steps of some 256 between which the answers lie.
    assert mean_difference(fake, outputs["everything float"]) < 2 * scale


@pytest.mark.parametrize(
    ("precision", "dtypes"),
    [
        ("float16", ["float16", "float32", "int32"]),
        ("dynamic_range", ["float32", "int32", "int8"]),
        ("int16", ["float32", "int16", "int32", "int64", "int8"]),
    ],
)
def test_other_precisions_run_and_are_smaller(
    outputs, found, precision, dtypes
):
    file = found[precision]
    assert file["dtypes"] == dtypes
    assert file["input"][0] == file["output"][0] == "float32"
    assert file["size"] < found["float32"]["size"]
    assert agreement(outputs[precision], outputs["float"]) >= 0.98


if __name__ == "__main__":
    measuring = Measuring(pathlib.Path(sys.argv[1]))
    measuring.measure()
    measuring.write()
