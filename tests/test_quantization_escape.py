"""Layers that no rule fits: refused at once, left in float, or given a rule."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_muffnet import quantization
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.quantization import keras_engine
from keras_muffnet.quantization.layouts import kind_of
from keras_muffnet.quantization.plan import plan_quantization
from tests.test_quantization_report import decibels

SHAPE = (6, 6, 3)


class Opaque(layers.Layer):
    """A layer that Keras cannot follow, with a weight."""

    def build(self, input_shape):
        self.factor = self.add_weight(
            shape=(input_shape[-1],), initializer="ones", name="factor"
        )

    def call(self, inputs):
        if isinstance(inputs, keras.KerasTensor):
            raise TypeError("no symbols")
        return ops.sin(inputs) * self.factor

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


class Scaled(Opaque):
    """The same for a scale, which there is a rule for."""

    def call(self, inputs):
        if isinstance(inputs, keras.KerasTensor):
            raise TypeError("no symbols")
        return inputs * self.factor


class Affine(layers.Layer):
    """A scale and an offset, with the variable before the tensor."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(input_shape[-1],))
        self.offset = self.add_weight(shape=(input_shape[-1],))

    def call(self, inputs):
        return self.offset - self.factor * inputs


class Gate(layers.Layer):
    """Layers without a name, which get others in a copy of the model."""

    def build(self, input_shape):
        self.dense = layers.Dense(input_shape[-1], activation="sigmoid")

    def call(self, inputs):
        weights = self.dense(ops.mean(inputs, axis=(1, 2), keepdims=True))
        return inputs * weights


class Trained(layers.Layer):
    """Passes `training` to layers that do not take it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = [layers.Identity(), Affine()]

    def call(self, inputs, training=None):
        for layer in self.inner:
            inputs = layer(inputs, training=training)
        return inputs


class Attention(layers.Layer):
    """Reshapes with the batch's own size."""

    def call(self, inputs):
        batch, height, width, channels = ops.shape(inputs)
        x = ops.reshape(inputs, (batch, -1, channels))
        x = ops.softmax(ops.matmul(x, ops.transpose(x, (0, 2, 1)))) @ x
        return ops.reshape(x, (batch, height, width, channels))


class Standardized(layers.Conv2D):
    """A convolution whose kernel is standardized at each call."""

    def convolution_op(self, inputs, kernel):
        kernel = (kernel - ops.mean(kernel)) / ops.std(kernel)
        return super().convolution_op(inputs, kernel)


class Dropout(layers.Dropout):
    """Does something at inference, too."""

    def call(self, inputs, training=None):
        return inputs * 0.5 + 0.1


class Rescaling(layers.Layer):
    """Has the name of a layer of Keras's."""

    def call(self, inputs):
        return (inputs - 0.5) / 3


class Halved:
    """Changes the layer that it is mixed into."""

    def call(self, inputs):
        return inputs / 2


class HalvedIdentity(Halved, layers.Identity):
    """Has a `call` that is not its layer's."""


class Plain(layers.Conv2D):
    """Changes nothing but what it is made with."""

    def __init__(self, filters, **kwargs):
        super().__init__(filters, **{"kernel_size": 3, **kwargs})


class Named(layers.Activation):
    """An activation of its own."""

    def __init__(self, **kwargs):
        super().__init__(lambda x: ops.maximum(x, 0.1) * 2, **kwargs)


class Shuffled(layers.Layer):
    """A channel shuffle behind a scale of its own."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(1,), initializer="ones")

    def call(self, inputs):
        _, height, width, channels = inputs.shape
        x = inputs * self.scale
        x = ops.reshape(x, (-1, height, width, 2, channels // 2))
        x = ops.transpose(x, (0, 1, 2, 4, 3))
        return ops.reshape(x, (-1, height, width, channels))


class Sine(layers.Layer):
    """Reads a weight of its own in a function that is not known."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(1,), initializer="ones")

    def call(self, inputs):
        return ops.sin(inputs * self.factor)


# Keras's names for what is not Keras's.
Standardized.__name__ = "Conv2D"
HalvedIdentity.__name__ = "Identity"


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).random((40, *SHAPE), np.float32)


def make_model(middle, outer=None):
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    x = layers.Conv2D(8, 3, activation="relu", name="first")(image)
    x = middle(x)
    x = layers.Conv2D(4, 3, name="second")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, outer(x) if outer else x)


def test_all_that_cannot_be_quantized_is_named_at_once():
    model = make_model(Opaque(name="odd"), lambda x: ops.sin(x))
    with pytest.raises(ValueError) as caught:
        plan_quantization(model)
    message = str(caught.value)
    assert (
        "layer 'odd' (Opaque) is of none of the known kinds, and Keras cannot "
        "follow it (TypeError: no symbols); "
    ) in message
    # Functions are numbered over the process.
    assert re.search(r"'sin\w*' \(Sin\) is of none of the known", message)
    assert "`float_layers`" in message
    assert "`register_rule`" in message


@pytest.mark.parametrize(
    "layer",
    [
        Standardized(4, 3, padding="same"),
        Dropout(0.5),
        Rescaling(),
        HalvedIdentity(),
        Plain(4, padding="same"),
        Named(),
        Shuffled(),
        layers.Conv2D(4, 1, activation=layers.PReLU(shared_axes=[1, 2])),
    ],
)
def test_layers_do_what_their_class_says_and_not_its_name(layer, data):
    model = make_model(layer)
    plan = plan_quantization(model)
    np.testing.assert_allclose(
        keras_engine.build(plan)(data), model(data), rtol=1e-4, atol=1e-5
    )


def test_a_property_may_change_what_is_computed():
    kind = type("Mine", (layers.Dense,), {"kernel": property(lambda x: 1)})
    assert kind_of(kind(3)) not in ("Dense", "Mine")


def test_a_subclass_that_changes_nothing_is_trained_as_its_base(data):
    quantized = quantization.quantize_aware(
        make_model(Plain(4, padding="same")), data
    )
    assert len(quantized.trainable_weights) == 6


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8"])
def test_casts_that_round_are_refused(dtype):
    model = make_model(lambda x: ops.cast(ops.cast(x, dtype), "float32"))
    with pytest.raises(ValueError, match=f"must not round: a cast to {dtype}"):
        plan_quantization(model)


@pytest.mark.parametrize("float_layers", [["odd"], "unknown"])
def test_what_stays_in_float_for_a_function_in_it_is_trained(
    data, float_layers
):
    model = make_model(Sine(name="odd"))
    with pytest.raises(ValueError, match=r"'odd' \(Sine\) .*, nor is its Sin"):
        plan_quantization(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it stays in float
        quantized = quantization.quantize_aware(
            model, data, float_layers=float_layers
        )
    assert len(quantized.trainable_weights) == len(model.trainable_weights)


@pytest.mark.parametrize(
    ("middle", "names"),
    [
        (layers.PReLU(shared_axes=[1, 2], name="act"), ["act/alpha"]),
        (layers.LayerNormalization(name="n"), ["n/gamma", "n/beta"]),
        (
            layers.Conv2D(4, 1, activation=layers.PReLU(name="act")),
            ["act/alpha"],
        ),
    ],
)
def test_weights_that_become_constants_are_named(middle, names, data):
    with pytest.warns(UserWarning, match="not trained further") as caught:
        quantization.quantize_aware(make_model(middle), data)
    messages = [str(w.message) for w in caught]
    (message,) = [text for text in messages if "not trained" in text]
    assert all(name in message for name in names)
    assert "first" not in message


def test_a_layer_whose_calls_differ_is_named(data):
    image = keras.Input(SHAPE)
    shared = layers.Conv2D(4, 3, name="shared")
    x = layers.Concatenate()([shared(image), layers.ReLU()(shared(-image))])
    model = keras.Model(image, layers.Dense(2, name="last")(x))
    with pytest.warns(UserWarning, match="shared/kernel, shared/bias$"):
        quantization.quantize_aware(model, data)


@pytest.mark.parametrize("float_layers", [["g"], "unknown"])
def test_a_float_layer_gives_several_outputs(float_layers, data, tmp_path):
    image = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3)(image)
    x = layers.Reshape((-1, 4))(x)
    gru = layers.GRU(3, return_sequences=True, return_state=True, name="g")
    model = keras.Model(image, list(gru(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it stays in float
        path = quantization.quantize_post_training(
            model, data, tmp_path / "m.tflite", float_layers=float_layers
        )
    found = quantization.report(model, path, data)
    assert min(answer.sqnr for answer in found.outputs) > 25


def test_layers_that_are_quantized_or_adapted_already_are_refused():
    model = make_model(layers.Identity(), layers.Dense(3, name="dense"))
    model.get_layer("dense").enable_lora(2)
    with pytest.raises(ValueError, match=r"'dense' .*LoRA"):
        plan_quantization(model)
    model = make_model(layers.Identity(), layers.Dense(3, name="dense"))
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"'dense' .*quantized to 'int8'"):
        plan_quantization(model)


@pytest.mark.parametrize("float_layers", [["odd"], "unknown"])
def test_an_unknown_layer_is_left_in_float(data, float_layers, tmp_path):
    model = make_model(Opaque(name="odd"))
    model.get_layer("odd").factor.assign(np.linspace(0.5, 1.5, 8))
    if float_layers == "unknown":
        with pytest.warns(UserWarning, match=r"Left in float: .*'odd'"):
            quantized = quantization.quantize_aware(
                model, data, float_layers=float_layers
            )
    else:
        quantized = quantization.quantize_aware(
            model, data, float_layers=float_layers
        )
    path = quantization.convert(quantized, tmp_path / "model.tflite")
    file = LiteRTModel(path)
    names = [operation.name for operation in file.operations()]
    at = names.index("SIN")
    assert "DEQUANTIZE" in names[:at]
    assert "QUANTIZE" in names[at:]
    for name, dtypes in file.operations():
        if name == "CONV_2D":
            assert "FLOAT32" not in dtypes
    assert decibels(model.predict(data, verbose=0), file.predict(data)) > 30
    # It is trained, in a copy, and comes back.
    quantized.get_layer("odd_kept").factor.assign(np.full(8, 2.0))
    finished, _ = quantization.finish(quantized, model)
    assert np.array_equal(finished.get_layer("odd").factor, np.full(8, 2.0))
    assert model.get_layer("odd").factor[0] == 0.5


def test_a_function_is_left_in_float(data):
    model = make_model(lambda x: ops.sin(x), lambda x: ops.sin(x))
    with pytest.warns(UserWarning, match="Left in float"):
        quantized = quantization.quantize_aware(
            model, data, float_layers="unknown"
        )
    wanted = model.predict(data, verbose=0)
    assert decibels(wanted, quantized.predict(data, verbose=0)) > 30
    finished, _ = quantization.finish(quantized, model)
    np.testing.assert_allclose(finished(data), wanted, rtol=1e-4, atol=1e-5)


def test_tfmot_knows_no_such_layers(data):
    with pytest.raises(ValueError, match=r"`engine` must be 'keras'.*odd"):
        quantization.quantize_aware(
            make_model(Opaque(name="odd")),
            data,
            engine="tfmot",
            float_layers=["odd"],
        )


@pytest.mark.parametrize(
    "layer",
    [
        Affine(),
        Trained(),
        Attention(),
        layers.Activation(lambda x: 0.5 * ops.gelu(x, approximate=False)),
    ],
    ids=["affine", "trained", "attention", "activation"],
)
def test_a_layer_of_functions_needs_no_rule(data, layer):
    model = make_model(layer)
    plan = plan_quantization(model)
    assert all(step.bits for step in plan.steps)
    np.testing.assert_allclose(
        keras_engine.build(plan)(data[:2]), model(data[:2]), atol=1e-5
    )


def test_variables_count_as_before(data):
    factor = keras.Variable(2.0)
    plan_quantization(make_model(Affine()))
    assert float(factor * 3.0) == 6
    assert ops.shape(factor * ops.ones((2, 3))) == (2, 3)


def test_sizes_that_depend_on_the_batch_are_refused():
    class Merged(layers.Layer):
        def call(self, inputs):
            return ops.reshape(inputs, (2, -1))

    model = make_model(layers.Identity(), Merged(name="odd"))
    with pytest.raises(ValueError, match=r"'odd.*batch axis alone"):
        plan_quantization(model)


def test_a_rule_says_what_a_layer_does(data):
    @quantization.register_rule(Scaled)
    def scaled(layer, inputs):
        return ops.multiply(inputs, ops.convert_to_numpy(layer.factor))

    model = make_model(Scaled(name="mine"))
    model.get_layer("mine").factor.assign(np.linspace(0.5, 1.5, 8))
    plan = plan_quantization(model)
    assert all(step.bits for step in plan.steps)
    quantized = quantization.quantize_aware(model, data)
    wanted = model.predict(data, verbose=0)
    assert decibels(wanted, quantized.predict(data, verbose=0)) > 30


def test_rules_are_for_classes_of_layers():
    with pytest.raises(ValueError, match=r"`kind` .*'Scaled'"):
        quantization.register_rule("Scaled")


def test_layers_without_a_name_inside_a_layer_are_brought_back(data):
    model = make_model(Gate(name="gate"))
    quantized = quantization.quantize_aware(model, data)
    dense = model.get_layer("gate").dense
    trained = keras_engine.bare(quantized.get_layer(dense.name))
    trained.bias.assign_add(np.full(trained.bias.shape, 0.25))
    finished, ranges = quantization.finish(quantized, model)
    brought = finished.get_layer("gate").dense
    np.testing.assert_allclose(brought.bias, dense.bias + 0.25, rtol=1e-6)
    again = quantization.quantize_aware(finished, ranges)
    np.testing.assert_allclose(again(data), quantized(data), atol=1e-5)


def test_a_lambda_layer_is_copied_with_its_function(data):
    model = make_model(layers.Lambda(lambda x: ops.relu(x) * 2.0))
    quantized = quantization.quantize_aware(model, data)
    finished, _ = quantization.finish(quantized, model)
    np.testing.assert_allclose(finished(data), model(data), rtol=1e-5)


ON_JAX = """
import sys
sys.path.insert(0, "FOLDER")
import keras, numpy as np
from mine import Bare, Sine
from keras_muffnet import quantization
from keras_muffnet.litert import LiteRTModel

@keras.saving.register_keras_serializable("main")
class Here(Bare):
    pass

x = np.random.default_rng(0).random((9, 8, 8, 3), np.float32)
for layer in (Sine, Bare, Here):
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 1), layer(name="odd")]
    )
    try:
        quantization.quantize_post_training(
            model, x, "FOLDER/m.tflite", float_layers=["odd"]
        )
        found = LiteRTModel("FOLDER/m.tflite").predict(x)
        print("error", np.abs(found - model.predict(x, verbose=0)).max())
    except ValueError as error:
        print(error)
"""

MINE = """
import keras

class Bare(keras.layers.Layer):
    def call(self, inputs):
        return keras.ops.sin(inputs)

@keras.saving.register_keras_serializable("mine")
class Sine(Bare):
    pass
"""


def test_a_float_layer_of_one_s_own_must_be_registered_on_other_backends(
    run_forked, tmp_path
):
    (tmp_path / "mine.py").write_text(MINE)
    code = ON_JAX.replace("FOLDER", str(tmp_path))
    lines = run_forked("-c", code, KERAS_BACKEND="jax").splitlines()
    error, bare, here = [x for x in lines if x.startswith(("error", "`model`"))]
    assert float(error.split()[1]) < 0.02
    assert "layer 'odd' (Bare) left in float" in bare
    assert "layer 'odd' (Here) left in float" in here
