"""What a quantized model keeps of its float model, and what its file is."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from keras_muffnet import quantization
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert.metadata import read_metadata
from keras_muffnet.litert.model import find_departures
from keras_muffnet.quantization import calibration
from keras_muffnet.quantization import keras_engine
from tests.test_quantization_report import decibels

SHAPE = (6, 6, 3)


def network(outputs):
    """A model of one image whose features `outputs` makes something of."""
    image = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    return keras.Model(image, outputs(x), name="mine")


def heads(x):
    x = layers.GlobalAveragePooling2D()(x)
    return {
        "kind": layers.Dense(4, activation="softmax", name="predictions")(x),
        "box": layers.Dense(2, activation="relu", name="corner")(x),
    }


def uniform(low=-1.0, high=127 / 128, count=100):
    return np.random.default_rng(0).uniform(low, high, (count, *SHAPE))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = network(heads)
    model.get_layer("conv").trainable = False
    return model


@pytest.fixture(scope="module")
def quantized(model):
    return quantization.quantize_aware(model, uniform())


def test_names_and_structure_are_kept(model, quantized):
    assert quantized.name == "mine"
    assert quantized.output_names == model.output_names
    assert list(quantized.output) == list(model.output)
    assert [x.name for x in quantized.inputs] == ["image"]


@pytest.mark.parametrize("engine", ["keras", "tfmot"])
def test_an_output_may_have_the_name_of_a_layer_further_inside(engine):
    def outputs(x):
        pool = layers.MaxPooling2D(1, name="pool")
        relu = layers.ReLU(name="relu")
        softmax = layers.Softmax(name="softmax")
        return [
            relu(layers.Conv2D(2, 1)(relu(x))),
            pool(layers.Conv2D(2, 1)(pool(x))),
            softmax(layers.Conv2D(2, 1)(softmax(x))),
        ]

    keras.utils.set_random_seed(0)
    model = network(outputs)
    quantized = quantization.quantize_aware(model, uniform(), engine=engine)
    assert quantized.output_names == ["relu", "pool", "softmax"]
    for given, wanted in zip(
        quantized(uniform()), model(uniform()), strict=True
    ):
        assert decibels(np.asarray(wanted), np.asarray(given)) > 30


def test_several_outputs_of_one_layer_have_names_of_their_own():
    def outputs(x):
        dense = layers.Dense(3, activation="softmax", name="scores")
        first = layers.GlobalAveragePooling2D()(x)
        y = layers.GlobalMaxPooling2D()(x)
        return [dense(first), x, dense(y), x]

    keras.utils.set_random_seed(0)
    model = network(outputs)
    quantized = quantization.quantize_aware(model, uniform())
    assert quantized.output_names == ["scores", "conv", "scores_2", "conv_2"]
    for given, wanted in zip(
        quantized(uniform()), model(uniform()), strict=True
    ):
        assert decibels(np.asarray(wanted), np.asarray(given)) > 30


def test_what_is_not_trained_stays_so(quantized):
    trained = {v.path.split("/")[0] for v in quantized.trainable_variables}
    assert {name.removesuffix("_inner") for name in trained} == {
        "predictions",
        "corner",
    }


def test_it_is_compiled_and_trained_as_the_float_model(quantized, model):
    losses = {"kind": "sparse_categorical_crossentropy", "box": "mse"}
    labels = {"kind": np.arange(100) % 4, "box": np.zeros((100, 2))}
    found = []
    for either in (model, quantized):
        either.compile(keras.optimizers.SGD(0.0), losses)
        found.append(
            either.evaluate(uniform(), labels, return_dict=True, verbose=0)
        )
    float_losses, losses = found
    assert losses == pytest.approx(float_losses, rel=0.02)


@pytest.mark.parametrize("softmax", [False, True])
def test_the_file_ends_in_logits_unless_asked(
    model, quantized, softmax, tmp_path
):
    path = quantization.convert(
        quantized, tmp_path / "m.tflite", softmax=softmax
    )
    file = LiteRTModel(path)
    names = [operation.name for operation in file.operations()]
    assert ("SOFTMAX" in names) == softmax
    given = file.predict(uniform())
    assert list(given) == ["box", "kind"]
    wanted = model.predict(uniform(), verbose=0)
    if not softmax:
        given["kind"] = keras.ops.convert_to_numpy(
            keras.ops.softmax(given["kind"])
        )
    for name, values in wanted.items():
        assert decibels(values, given[name]) > 30


@pytest.mark.parametrize("io_dtype", ["float32", "uint8"])
def test_all_inputs_and_outputs_have_the_type_asked_for(io_dtype, tmp_path):
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    x = layers.Concatenate()([layers.Conv2D(4, 3)(a), layers.Conv2D(2, 3)(b)])
    model = keras.Model([a, b], [x, layers.Dense(3)(layers.Flatten()(x))])
    data = [
        np.random.default_rng(k).uniform(-1, 1, (9, 8, 8, 3)) for k in (1, 2)
    ]
    path = quantization.quantize_post_training(
        model, data, tmp_path / "m.tflite", io_dtype=io_dtype
    )
    lite = LiteRTModel(path)
    details = lite._interpreter.get_input_details()
    details += lite._interpreter.get_output_details()
    assert [x["dtype"] for x in details] == [np.dtype(io_dtype)] * 4
    assert find_departures(path.read_bytes()) == ((), ())
    for wanted, given in zip(
        model.predict(data, verbose=0), lite.predict(data), strict=True
    ):
        assert np.abs(wanted - given).mean() < np.ptp(wanted) / 100


def test_several_outputs_are_reported(model, quantized, tmp_path):
    path = quantization.convert(quantized, tmp_path / "m.tflite")
    found = quantization.report(model, path, uniform(count=20))
    assert len(found.outputs) == 2
    assert all(answer.sqnr > 30 for answer in found.outputs)
    assert not found.unmatched
    assert [answer.name for answer in found.outputs] == ["box", "kind"]
    assert "output 'kind': " in str(found)


def spread(x):
    norm = layers.BatchNormalization(
        gamma_initializer=keras.initializers.Constant(
            np.exp(np.random.default_rng(1).normal(0, 1.5, 16))
        )
    )
    x = layers.ReLU()(norm(layers.Dense(16, name="dense")(layers.Flatten()(x))))
    return layers.Dense(8, name="last")(x)


def dense_scales(path):
    interpreter = Interpreter(str(path))
    found = {}
    for tensor in interpreter.get_tensor_details():
        if tensor["dtype"] == np.int8 and tensor["shape"].tolist() in (
            [16, 128],
            [8, 16],
        ):
            scales = tensor["quantization_parameters"]["scales"]
            found[int(tensor["shape"][0])] = len(scales)
    return found


def test_dense_kernels_have_a_scale_for_each_output_or_one(tmp_path):
    keras.utils.set_random_seed(0)
    model, x = network(spread), uniform()
    found = {}
    for name, per_channel in {
        "each": True,
        "one": False,
        "some": {"dense": False},
    }.items():
        path = quantization.quantize_post_training(
            model, x, tmp_path / "m.tflite", per_channel=per_channel
        )
        given = LiteRTModel(path).predict(x)
        found[name] = decibels(model.predict(x, verbose=0), given)
        scales = dense_scales(path)
        assert (
            scales
            == {
                "each": {16: 16, 8: 8},
                "one": {16: 1, 8: 1},
                "some": {16: 1, 8: 8},
            }[name]
        )
    assert found["each"] > found["one"] + 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dens": False}, "Received: 'dens'; close to it: dense"),
        ({"flatten": False}, "with a kernel"),
        ({"dense": 3}, "True or False. Received: 3"),
    ],
)
def test_what_per_channel_names_is_checked(settings, message):
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    x = layers.Flatten(name="flatten")(image)
    model = keras.Model(image, layers.Dense(2, name="dense")(x))
    with pytest.raises(ValueError, match=f"`per_channel` .*{message}"):
        quantization.quantize_aware(model, uniform(), per_channel=settings)


@pytest.mark.parametrize("scale", [0.05, 0.01])
def test_data_that_fill_little_of_a_range_have_their_own(scale, tmp_path):
    keras.utils.set_random_seed(0)
    model, x = network(layers.Flatten()), scale * uniform()
    path = quantization.quantize_post_training(model, x, tmp_path / "m.tflite")
    wanted = model.predict(x, verbose=0)
    assert decibels(wanted, LiteRTModel(path).predict(x)) > 36
    with pytest.raises(ValueError, match="metadata"):  # that claim a scaling
        read_metadata(path.read_bytes())


@pytest.mark.parametrize("size", [1e-7, 1e-22])
def test_narrow_ranges_leave_room_for_the_next_bias(size, tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    small = keras.initializers.RandomNormal(0, size)
    x = layers.Conv2D(4, 3, kernel_initializer=small, activation="relu")(image)
    bias = keras.initializers.RandomNormal(1.0, 1.0)
    model = keras.Model(image, layers.Conv2D(4, 1, bias_initializer=bias)(x))
    path = quantization.quantize_post_training(
        model, uniform(), tmp_path / "m.tflite"
    )
    wanted = model.predict(uniform(), verbose=0)
    assert decibels(wanted, LiteRTModel(path).predict(uniform())) > 40


@pytest.mark.parametrize(
    "layer", [layers.MaxPooling2D(), layers.GlobalAveragePooling2D()]
)
def test_a_model_without_weights_is_converted(layer, tmp_path):
    image = keras.Input(SHAPE)
    model = keras.Model(image, layer(image))
    path = quantization.quantize_post_training(
        model, uniform(), tmp_path / "m.tflite"
    )
    wanted = model.predict(uniform(), verbose=0)
    assert decibels(wanted, LiteRTModel(path).predict(uniform())) > 38


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, k):
        return uniform()[25 * k : 25 * k + 25], np.zeros(25)


def endless():
    while True:
        yield uniform()


def dataset():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((uniform(), range(100))).batch(32)


def loader():
    torch = pytest.importorskip("torch")
    examples = torch.utils.data.TensorDataset(
        torch.tensor(uniform()), torch.zeros(100)
    )
    return torch.utils.data.DataLoader(examples, batch_size=32)


@pytest.mark.parametrize(
    "make",
    [
        uniform,
        lambda: uniform().astype(np.float16).astype(np.float64),
        lambda: keras.ops.convert_to_tensor(uniform()),
        lambda: [uniform()],
        lambda: {"image": uniform()},
        Batches,
        dataset,
        loader,
        endless,
    ],
)
def test_calibration_takes_what_predict_takes(model, make):
    (found,) = calibration.read_data(make(), model)
    assert found.dtype == np.float32
    assert len(found) == (1000 if make is endless else 100)
    np.testing.assert_allclose(found[:100], uniform(), atol=1e-3)


def test_integers_are_calibration_data(model):
    pixels = (uniform() * 128 + 128).astype(np.uint8)
    (found,) = calibration.read_data(pixels, model)
    assert np.array_equal(found, pixels)


def test_each_of_several_inputs_has_its_data():
    inputs = [keras.Input((4,), name="a"), keras.Input((2,), name="b")]
    model = keras.Model(inputs, layers.Concatenate()(inputs))
    a, b = np.zeros((3, 4)), np.ones((3, 2))
    for data in ([a, b], {"b": b, "a": a}, iter([((a, b), 0)])):
        found = calibration.read_data(data, model)
        assert [x.shape for x in found] == [(3, 4), (3, 2)]
    with pytest.raises(ValueError, match=r"as many examples.*3, 2"):
        calibration.read_data([a, b[:2]], model)


@pytest.mark.parametrize("size", [1.0, 1000.0])
def test_what_is_joined_with_much_greater_values_is_named(size, recwarn):
    image, numbers = keras.Input(SHAPE), keras.Input((4,), name="numbers")
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(image)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model([image, numbers], layers.Concatenate()([x, numbers]))
    data = [uniform(), np.random.default_rng(0).uniform(0, size, (100, 4))]
    quantization.quantize_aware(model, data)
    said = [str(w.message) for w in recwarn if "joined" in str(w.message)]
    assert len(said) == (size > 1)
    if said:
        assert "'pool' (" in said[0]
        assert "times less than input 'numbers')" in said[0]
        assert "Scale the model's inputs" in said[0]


def test_data_of_two_inputs_of_one_shape_are_told_apart():
    inputs = [keras.Input((2,), name="a"), keras.Input((2,), name="b")]
    model = keras.Model(inputs, layers.Add()(inputs))
    found = calibration.read_data(
        {"b": np.ones((3, 2)), "a": np.zeros((3, 2))}, model
    )
    assert [x.max() for x in found] == [0.0, 1.0]


class Subclassed(keras.Model):
    """Of a vector and an image, in a dict."""

    def __init__(self):
        super().__init__(name="mine")
        self.conv = layers.Conv2D(4, 3, activation="relu", name="conv")
        self.pool = layers.GlobalAveragePooling2D()
        self.last = layers.Dense(3, name="last")

    def call(self, inputs, training=False):
        x = self.pool(self.conv(inputs["image"]))
        return self.last(keras.ops.concatenate([x, inputs["some"]], axis=-1))


def test_a_subclassed_model_is_followed(tmp_path):
    keras.utils.set_random_seed(0)
    model = Subclassed()
    with pytest.raises(ValueError, match="`model` must be called once"):
        quantization.quantize_aware(model, {})
    rng = np.random.default_rng(0)
    data = {"image": uniform(count=20), "some": rng.random((20, 2))}
    wanted = keras.ops.convert_to_numpy(model(data))
    quantized = quantization.quantize_aware(model, data)
    assert quantized.name == "mine"
    assert decibels(wanted, quantized.predict(data, verbose=0)) > 30
    kernel = quantized.get_layer("last").layer.kernel
    kernel.assign(kernel * 2)
    finished, _ = quantization.finish(quantized, model)
    assert finished.get_layer("last").kernel.numpy() == pytest.approx(
        2 * model.last.kernel.numpy()
    )


class Branching(keras.Model):
    def call(self, x):
        return x if float(keras.ops.sum(x)) > 0 else -x


def test_a_subclassed_model_that_cannot_be_followed_is_refused():
    model = Branching()
    model(np.ones((1, *SHAPE)))
    with pytest.raises(ValueError, match=r"`model` .* cannot be followed"):
        quantization.quantize_aware(model, uniform())


@pytest.fixture(scope="module")
def any_size():
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    return keras.Model(image, layers.Conv2D(2, 1, name="last")(x))


def test_a_model_of_any_size_gets_one(any_size, tmp_path):
    with pytest.raises(ValueError, match="`input_shape` give one"):
        quantization.quantize_aware(any_size, uniform())
    path = quantization.quantize_post_training(
        any_size, uniform(), tmp_path / "m.tflite", input_shape=SHAPE
    )
    wanted = any_size.predict(uniform(), verbose=0)
    assert decibels(wanted, LiteRTModel(path).predict(uniform())) > 30
    assert quantization.report(any_size, path, uniform()).sqnr > 30
    quantized = quantization.quantize_aware(
        any_size, uniform(), input_shape=list(SHAPE)
    )
    finished, _ = quantization.finish(quantized, any_size)
    assert finished.inputs[0].shape == (None, None, None, 3)
    assert np.allclose(finished(uniform()), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [6, (6, 6), (6, 6, 4), (0, 6, 3), (6.5, 6, 3), [SHAPE, SHAPE]]
)
def test_a_size_that_does_not_fit_is_refused(any_size, shape):
    with pytest.raises(ValueError, match=r"`input_shape` must fit.*Received"):
        quantization.quantize_aware(any_size, uniform(), input_shape=shape)


def test_calibration_data_of_another_size_are_refused(any_size):
    with pytest.raises(ValueError, match=r"`calibration_data` .*\(n, 8, 8, 3"):
        quantization.quantize_aware(any_size, uniform(), input_shape=(8, 8, 3))


def regularized(x):
    l2 = keras.regularizers.L2(0.5)
    x = layers.Conv2D(4, 1, kernel_regularizer=l2, name="first")(x)
    x = layers.BatchNormalization(beta_regularizer=l2, name="norm")(x)
    x = layers.DepthwiseConv2D(2, depthwise_regularizer=l2, name="second")(x)
    x = layers.BatchNormalization(name="norm2")(x)
    return layers.Dense(
        2,
        kernel_regularizer=keras.regularizers.L1(0.25),
        bias_regularizer=l2,
        kernel_constraint=keras.constraints.MaxNorm(0.5),
        name="last",
    )(layers.Flatten()(x))


def test_regularizers_and_constraints_are_kept(tmp_path):
    keras.utils.set_random_seed(0)
    model = network(regularized)
    for name in ("norm", "norm2"):
        norm = model.get_layer(name)
        gamma = np.linspace(0.5, 2, norm.gamma.shape[0])
        norm.gamma.assign(gamma)
    model.get_layer("norm").beta.assign(np.zeros(4))
    model.get_layer("conv").kernel_constraint = keras.constraints.NonNeg()
    with pytest.warns(UserWarning, match=r"norm.beta_regularizer$"):
        quantized = quantization.quantize_aware(model, uniform())
    wanted = float(keras.ops.sum(keras.ops.stack(model.losses)))
    assert float(keras.ops.sum(keras.ops.stack(quantized.losses))) == (
        pytest.approx(wanted, rel=1e-4)
    )
    quantized.compile(keras.optimizers.SGD(0.1), "mse")
    quantized.fit(uniform(), np.ones((100, 2)), epochs=1, verbose=0)
    last = quantized.get_layer("last").layer.kernel.numpy()
    assert np.linalg.norm(last, axis=0).max() <= 0.5 + 1e-5
    assert quantized.get_layer("conv").layer.kernel.numpy().min() >= 0
    quantized.save(tmp_path / "m.keras")
    loaded = quantization.load(tmp_path / "m.keras")
    assert np.allclose(
        np.sum(loaded.losses), np.sum(quantized.losses), rtol=1e-5
    )


class Doubled(keras.Model):
    def call(self, x):
        return x * 2.0


def test_a_scaling_before_a_subclassed_model_is_seen():
    image = keras.Input(SHAPE)
    x = Doubled()(layers.Rescaling(1 / 255, name="scale")(image))
    model = keras.Model(image, layers.Conv2D(2, 3)(x))
    with pytest.raises(ValueError, match="'scale', which scales pixels"):
        quantization.quantize_aware(model, uniform())
    pixels = np.round(128 + 127 * uniform())
    quantized = quantization.quantize_aware(model, pixels)
    assert (
        decibels(np.asarray(model(pixels)), np.asarray(quantized(pixels))) > 30
    )


@pytest.mark.parametrize("engine", ["keras", "tfmot"])
def test_inputs_in_a_dict_go_by_its_keys(engine, tmp_path):
    keras.utils.set_random_seed(0)
    image, vector = keras.Input(SHAPE, name="rgb"), keras.Input((4,), name="a")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    outputs = layers.Dense(3)(layers.Concatenate()([x, vector]))
    # Neither in the order of the names nor of the keys.
    model = keras.Model({"image": image, "extra": vector}, outputs)
    rng = np.random.default_rng(0)
    data = {
        "image": uniform(count=40),
        "extra": rng.uniform(-3, 3, (40, 4)).astype(np.float32),
    }
    quantized = quantization.quantize_aware(model, data, engine=engine)
    quantized.compile("sgd", "mse")
    quantized.evaluate(data, model.predict(data, verbose=0), verbose=0)
    path = quantization.convert(quantized, tmp_path / "m.tflite")
    found = quantization.report(model, path, data)
    assert found.sqnr > 30
    # Of another input than its own, one has 0 or less.
    assert min(layer.own_sqnr for layer in found.layers) > 20
    quantized.save(tmp_path / "m.keras")
    loaded = quantization.load(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        loaded.predict(data, verbose=0), quantized.predict(data, verbose=0)
    )
    with pytest.raises(ValueError, match="must have the keys extra, image"):
        quantization.quantize_aware(model, {"rgb": data["image"]})


def test_nested_inputs_are_refused():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model({"k": [a, b]}, layers.Dense(2)(layers.Add()([a, b])))
    with pytest.raises(ValueError, match=r"inputs alone, .*\['a', 'b'\]"):
        quantization.quantize_aware(model, np.zeros((1, 4)))


@keras.saving.register_keras_serializable("tests")
class Ranged(layers.Layer):
    """Has an attribute that the wrapper of quantized layers has, too."""

    output_range = (0, 10)

    def call(self, inputs):
        return keras.ops.sigmoid(inputs) * self.output_range[1]


def test_a_layer_s_own_output_range_is_none_of_quantization(model):
    ranged = keras.Model(model.input, Ranged()(model.output["box"]))
    assert keras_engine.output_range(ranged.layers[-1]) is None
    assert quantization.quantize_aware(ranged, uniform())


def test_outputs_may_be_nested(tmp_path):
    keras.utils.set_random_seed(0)

    def nested(x):
        x = layers.GlobalAveragePooling2D()(x)
        a, b, c, d, e = (layers.Dense(2)(x) for _ in range(5))
        # Names that sort and join in other ways than their paths.
        return {
            "head": {"a": a, "b_c": b},
            "head_b": {"c": c},
            "head2": d,
            "rest": [e],
        }

    model = network(nested)
    quantized = quantization.quantize_aware(model, uniform())
    assert quantized.output["head"]["b_c"].shape == (None, 2)
    path = quantization.convert(quantized, tmp_path / "m.tflite")
    found = quantization.report(model, path, uniform())
    names = [answer.name for answer in found.outputs]
    assert names == ["head/a", "head/b_c", "head2", "head_b/c", "rest/0"]
    assert min(answer.sqnr for answer in found.outputs) > 20
    given = LiteRTModel(path).predict(uniform(count=2))
    assert list(given) == [
        "output_000_head_a",
        "output_001_head_b_c",
        "output_002_head2",
        "output_003_head_b_c",
        "output_004_rest_0",
    ]


def test_the_converter_rounds_huge_kernels_alike(tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    model = network(lambda x: layers.Conv2D(4, 3, name="huge")(x))
    quantized = quantization.quantize_aware(model, uniform())
    found = []
    for most in (keras_engine._MOST_FOLDED, 0):
        monkeypatch.setattr(keras_engine, "_MOST_FOLDED", most)
        path = quantization.convert(quantized, tmp_path / f"{most}.tflite")
        found.append(LiteRTModel(path).predict(uniform(count=5)))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("use_bias", [False, True])
def test_batch_normalization_that_is_not_trained_stays(use_bias, tmp_path):
    keras.utils.set_random_seed(0)

    def outputs(x):
        x = layers.Conv2D(4, 3, use_bias=use_bias, name="own")(x)
        norm = layers.BatchNormalization(name="norm", trainable=False)
        x = layers.ReLU()(norm(x))
        return layers.Dense(2, name="last")(layers.Flatten()(x))

    model = network(outputs)
    quantized = quantization.quantize_aware(model, uniform())
    targets = 0.9 * model.predict(uniform(), verbose=0)
    for _ in range(2):  # a model that was saved, too
        quantized.compile(keras.optimizers.SGD(0.02), "mse")
        quantized.fit(uniform(), targets, verbose=0)
        quantized.save(tmp_path / "m.keras")
        quantized = quantization.load(tmp_path / "m.keras")
    finished = quantization.finish(quantized, model).model
    for new, old in zip(
        finished.get_layer("norm").get_weights(),
        model.get_layer("norm").get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(new, old)
    for new, old in zip(
        finished.get_layer("own").get_weights(),
        model.get_layer("own").get_weights(),
        strict=True,
    ):
        assert np.abs(new - old).max() > 1e-5
    float_outputs = finished.predict(uniform(), verbose=0)
    rounded = quantized.predict(uniform(), verbose=0)
    assert decibels(float_outputs, rounded) > 25


def test_a_frozen_norm_stays_when_the_model_is_frozen_and_not():
    norm = layers.BatchNormalization(trainable=False)
    model = network(lambda x: norm(layers.Conv2D(2, 3, use_bias=False)(x)))
    quantized = quantization.quantize_aware(model, uniform())
    count = len(quantized.trainable_weights)
    quantized.trainable = False
    assert not quantized.trainable_weights
    quantized.trainable = True
    assert len(quantized.trainable_weights) == count == 3


@pytest.mark.parametrize("engine", ["keras", "tfmot"])
def test_nothing_is_said_of_what_is_frozen_as_a_whole(engine, recwarn):
    norm = layers.BatchNormalization()
    model = network(lambda x: norm(layers.Conv2D(2, 3, use_bias=False)(x)))
    model.trainable = False
    quantization.quantize_aware(model, uniform(), engine=engine)
    assert not [w for w in recwarn if "trained" in str(w.message)]


def test_tfmot_says_that_it_trains_a_shift_that_was_not_trained():
    norm = layers.BatchNormalization(trainable=False)
    model = network(lambda x: norm(layers.Conv2D(2, 3, use_bias=False)(x)))
    with pytest.warns(UserWarning, match="changes its shift with engine"):
        quantization.quantize_aware(model, uniform(), engine="tfmot")


@pytest.mark.parametrize(
    "scaling",
    [
        layers.Normalization(mean=[0.485, 0.456, 0.406], variance=[0.05] * 3),
        layers.Rescaling(2.0, -1.0),
    ],
)
def test_images_from_0_to_1_may_be_scaled_by_the_model(scaling):
    image = keras.Input(SHAPE)
    model = keras.Model(image, layers.Conv2D(2, 3)(scaling(image)))
    data = [uniform(0.0, 1.0).astype(np.float32)]
    assert calibration.input_limits(data, model, None) == [(0.0, 1.0)]


@pytest.mark.parametrize(
    "first",
    [
        lambda x: layers.Rescaling(1 / 255)(layers.RandomFlip()(x)),
        lambda x: layers.Rescaling(1 / 255)(layers.Resizing(4, 4)(x)),
        lambda x: x / 255.0,
        layers.Lambda(lambda x: x / 255.0),
    ],
)
def test_pixels_may_be_scaled_by_the_model_in_other_ways(first):
    image = keras.Input(SHAPE)
    model = keras.Model(image, layers.Conv2D(2, 3)(first(image)))
    data = [uniform(0.0, 255.0).astype(np.float32)]
    assert calibration.input_limits(data, model, None) == [(0.0, 255.0)]


def test_calls_in_the_wrong_order_are_refused(model, quantized):
    with pytest.raises(ValueError, match="`model` must be a float model"):
        quantization.quantize_aware(quantized, uniform())
    with pytest.raises(ValueError, match="`model` must be a float model"):
        quantization.finish(model, quantized)
    with pytest.raises(ValueError, match="`quantized_model` must be what"):
        quantization.finish(model, model)
    ranges = dict(quantization.finish(quantized, model).ranges)
    ranges["input_range"] = (1.0, -1.0)
    with pytest.raises(ValueError, match=r"\['input_range'\]` must be two"):
        quantization.quantize_aware(model, ranges)


@pytest.mark.parametrize(
    "arguments",
    [
        {"float_layers": None},
        {"weight_bits": 4},
        {"per_channel": None},
        {"bias_correction": "x"},
        {"softmax": "yes"},
        {"path": None},
    ],
)
def test_arguments_of_other_kinds_are_refused(arguments, model, tmp_path):
    (name,) = arguments
    arguments = {"path": tmp_path / "m.tflite", **arguments}
    with pytest.raises(ValueError, match=f"`{name}` must"):
        quantization.quantize_post_training(model, uniform(), **arguments)
