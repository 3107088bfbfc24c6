"""Batch normalization folded away: the same answers with fewer operations."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet.folding import FoldedModel
from keras_muffnet.layers import LearnedGroupConv2D
from tools.benchmarks import export as export_benchmark

norm = layers.BatchNormalization


class OwnConv(layers.Conv2D):
    """May do anything with its kernel: this one standardizes it."""

    def convolution_op(self, inputs, kernel):
        spread = keras.ops.std(kernel, axis=(0, 1, 2))
        return super().convolution_op(inputs, kernel / spread)


class OwnNorm(norm):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training, mask)


class OwnModel(keras.Model):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training, mask)


def chain(*parts, shape=(6, 7, 4)):
    return keras.Sequential([keras.Input(shape), *parts])


def read_twice():
    x = keras.Input((6, 7, 4))
    y = layers.Conv2D(3, 3)(x)
    return keras.Model(x, layers.Add()([norm(name="n")(y), y]))


def also_an_output():
    model = read_twice()
    x = model.inputs[0]
    inner = keras.Model(x, [model.layers[1].output, model.output])
    return keras.Model(x, layers.Add()(inner(x)))


def one_layer_two_norms():
    x = keras.Input((6, 7, 4))
    shared = layers.Conv2D(4, 3, padding="same")
    y = norm(name="n")(shared(x))
    return keras.Model(x, norm(name="m")(shared(y)))


def one_layer_sometimes_without():
    x = keras.Input((6, 7, 4))
    shared = layers.Conv2D(4, 3, padding="same")
    return keras.Model(x, norm(name="n")(shared(shared(x))))


def one_layer_one_norm():
    x = keras.Input((6, 7, 4))
    shared = layers.Conv2D(4, 3, padding="same", use_bias=False)
    both = norm(name="n")
    return keras.Model(x, both(shared(both(shared(x)))))


def one_norm_two_layers():
    x = keras.Input((6, 7, 4))
    both = norm(name="n")
    first, second = layers.Conv2D(3, 3), layers.Conv2D(3, 3)
    return keras.Model(x, layers.Add()([both(first(x)), both(second(x))]))


def nested():
    inner = chain(layers.Conv2D(3, 3), norm(name="n"), layers.ReLU())
    x = keras.Input((6, 7, 4))
    return keras.Model(x, keras.ops.mean(inner(x) * 2.0, axis=(1, 2)))


def by_name():
    x = keras.Input((6, 7, 4))
    y = norm(name="n")(inputs=layers.Conv2D(3, 3)(inputs=x), training=False)
    return keras.Model(x, y)


def called_by_names():
    x = keras.Input((6, 7, 4))
    a, b = keras.Input((6, 7, 4), name="z"), keras.Input((6, 7, 4), name="a")
    inner = keras.Model([a, b], layers.Subtract()([norm(name="n")(a), 2 * b]))
    first, second = layers.Conv2D(4, 1), layers.Conv2D(4, 1)
    return keras.Model(x, inner({"a": first(x), "z": second(x)}))


def asked_to_train():
    x = keras.Input((6, 7, 4))
    y = layers.Dropout(0.5)(layers.Conv2D(3, 3)(x), training=True)
    return keras.Model(x, norm(name="n")(y))


# name: (model, normalizations in a kernel, those that are lines)
MODELS = {
    "conv": (chain(layers.Conv2D(3, 3), norm(name="n")), "n", ""),
    "no bias": (
        chain(layers.Conv2D(3, 3, use_bias=False), norm(name="n")),
        "n",
        "",
    ),
    "groups": (chain(layers.Conv2D(6, 3, groups=2), norm(name="n")), "n", ""),
    "conv 1d": (
        chain(layers.Conv1D(3, 3), norm(name="n"), shape=(9, 4)),
        "n",
        "",
    ),
    "conv 3d": (
        chain(layers.Conv3D(3, 2), norm(name="n"), shape=(3, 4, 5, 2)),
        "n",
        "",
    ),
    "depthwise": (
        chain(layers.DepthwiseConv2D(3, depth_multiplier=2), norm(name="n")),
        "n",
        "",
    ),
    "depthwise 1d": (
        chain(
            layers.DepthwiseConv1D(3, depth_multiplier=2),
            norm(name="n"),
            shape=(9, 4),
        ),
        "n",
        "",
    ),
    "separable": (chain(layers.SeparableConv2D(3, 3), norm(name="n")), "n", ""),
    "transpose": (
        chain(layers.Conv2DTranspose(3, 3, strides=2), norm(name="n")),
        "n",
        "",
    ),
    "dense": (chain(layers.Dense(5), norm(name="n"), shape=(4,)), "n", ""),
    "learned groups": (
        chain(LearnedGroupConv2D(4, 2, 2), norm(name="n")),
        "n",
        "",
    ),
    "bare": (
        chain(layers.Conv2D(3, 3), norm(name="n", center=False, scale=False)),
        "n",
        "",
    ),
    "activation between": (
        chain(layers.Conv2D(3, 3, activation="relu"), norm(name="n")),
        "",
        "n",
    ),
    "norm first": (
        chain(norm(name="n"), layers.ReLU(), layers.Conv2D(3, 3)),
        "",
        "n",
    ),
    "other axis": (chain(layers.Conv2D(3, 3), norm(2, name="n")), "", "n"),
    "own conv": (chain(OwnConv(3, 3), norm(name="n")), "", "n"),
    "own norm": (chain(layers.Conv2D(3, 3), OwnNorm(name="n")), "", ""),
    "half precision": (
        chain(
            layers.Conv2D(3, 3, dtype="mixed_bfloat16"),
            norm(name="n", dtype="mixed_bfloat16"),
        ),
        "",
        "",
    ),
    "read twice": (read_twice(), "", "n"),
    "also an output": (also_an_output(), "", "n"),
    "one layer, two norms": (one_layer_two_norms(), "", "nm"),
    "one layer, sometimes without": (one_layer_sometimes_without(), "", "n"),
    "one layer, one norm": (one_layer_one_norm(), "n", ""),
    "one norm, two layers": (one_norm_two_layers(), "n", ""),
    "nested": (nested(), "n", ""),
    "called by names": (called_by_names(), "n", ""),
    "by name": (by_name(), "n", ""),
    "asked to train": (asked_to_train(), "", "n"),
}


def train(model, seed=0):
    """Gives the normalizations something to do."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        low = 0.5 if "variance" in weight.path else -1
        weight.assign(rng.uniform(low, 1.5, weight.shape))


def batch(model):
    rng = np.random.default_rng(1)
    shape = (2, *model.input_shape[1:])
    return rng.normal(size=shape).astype("float32")


@pytest.mark.parametrize("name", MODELS)
def test_answers_stay_the_same(name):
    model, folded, lines = MODELS[name]
    train(model)
    images = batch(model)
    expected = np.asarray(model(images, training=False), "float32")
    weights = model.get_weights()
    fast = FoldedModel(model)
    assert (fast.folded, fast.lines) == (tuple(folded), tuple(lines))
    got = np.asarray(fast(images), "float32")
    np.testing.assert_allclose(
        got, expected, rtol=0, atol=1e-6 * np.abs(expected).max()
    )
    # The model is as it was, and what was folded holds what it had then.
    np.testing.assert_array_equal(
        np.asarray(model(images, training=False), "float32"), expected
    )
    for weight, value in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(weight, value)
    train(model, seed=2)
    np.testing.assert_array_equal(np.asarray(fast(images), "float32"), got)


def test_a_muffnet_has_no_normalization_left():
    keras.utils.set_random_seed(0)
    model = MuffNet(
        input_shape=(16, 16, 3),
        stages=[StageSpec("geometric", 3, 8), StageSpec("none", 2, 8)],
        classes=4,
        classifier_activation=None,
    )
    norms = [layer.name for layer in model.layers if isinstance(layer, norm)]
    for layer in model.layers:
        if isinstance(layer, norm):
            shape = layer.gamma.shape
            rng = np.random.default_rng(len(layer.name))
            layer.gamma.assign(rng.uniform(0.5, 1.5, shape))
            layer.moving_mean.assign(rng.normal(0, 0.1, shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, shape))
    fast = FoldedModel(model)
    assert sorted(fast.folded) == sorted(norms)
    assert not fast.lines
    assert not fast.left
    # A kernel and a bias each.
    assert fast.nbytes < 4 * model.count_params()
    images = batch(model)
    expected = np.asarray(model(images, training=False))
    np.testing.assert_allclose(
        fast(images), expected, rtol=0, atol=1e-6 * np.abs(expected).max()
    )


def test_what_runs_half_precision_is_told():
    model, _, _ = MODELS["half precision"]
    assert FoldedModel(model).left == ("n",)


@pytest.mark.parametrize("place", ["whole", "inside"])
def test_models_with_a_call_of_their_own_are_refused(place):
    x = keras.Input((4,))
    model = OwnModel(x, layers.Dense(2)(x))
    if place == "inside":
        model = keras.Model(x, model(x))
    with pytest.raises(ValueError, match="must be a functional"):
        FoldedModel(model)


def test_the_benchmark_of_exports(tmp_path, monkeypatch):
    monkeypatch.setattr(export_benchmark, "ROUNDS", {1: 1, 3: 2})

    def build(alpha, **kwargs):
        width = round(32 * alpha)
        stages = [StageSpec("average", 2, width), StageSpec("none", 2, width)]
        return MuffNet((16, 16, 3), classes=4, stages=stages, **kwargs)

    monkeypatch.setattr("keras_muffnet.MuffNet", build)
    rows = export_benchmark.measure("MuffNet", 0.5, tmp_path)
    assert [row["batch"] for row in rows] == [1, 3]
    for row in rows:
        assert (row["network"], row["alpha"]) == ("MuffNet", 0.5)
        assert row["layers_ms"] > 0 and row["folded_ms"] > 0
        assert float(row["difference"]) < 1e-5
