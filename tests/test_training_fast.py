"""The fast way on a CPU against Keras's own layers, on PyTorch."""

import os
import sys

import pytest

from keras_muffnet.cli import train
from keras_muffnet.training import load_recipe

COMPARE = """
import itertools
import sys
sys.modules["tensorflow"] = None  # starts faster
import keras
import numpy as np
import torch

import keras_muffnet
from keras_muffnet import MuffNet, StageSpec, stages_from_notation
from keras_muffnet.training import accelerate
from keras_muffnet.training.optimizer import SGD
from keras_muffnet.training.schedules import make_schedule

torch.set_num_threads(2)
rng = np.random.default_rng(0)


def close(a, b, scale=None, tolerance=1e-4):
    a, b = (x.detach().double().numpy() for x in (a, b))
    limit = tolerance * (np.abs(a).max() if scale is None else scale)
    assert np.abs(a - b).max() <= limit, (np.abs(a - b).max(), limit)


def spread(model):
    # BN far from its first state: every part of its gradient shows.
    for weight in model.weights:
        value = keras.ops.convert_to_numpy(weight)
        low, high = (0.5, 1.5) if value.ndim == 1 else (0.9, 1.1)
        noise = rng.uniform(low, high, value.shape).astype("float32")
        offset = 0.1 if value.ndim == 1 else 0.0
        weight.assign(value * noise + offset)


def pair(make):
    keras.utils.set_random_seed(1)
    own, fast = make(), make()
    spread(own)
    fast.set_weights(own.get_weights())
    told = accelerate(fast)
    assert told == "fused operations of PyTorch on the CPU", told
    return own, fast


def gradients(model, x, y):
    model.zero_grad()
    logits = model(torch.from_numpy(x), training=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y))
    loss.backward()
    return loss, [v.value.grad for v in model.trainable_weights]


def compare(name, make, shape):
    own, fast = pair(make)
    # Those of a bias in front of a batch normalization are 0 but for rounding.
    x = rng.normal(0.3, 1, (6, *shape)).astype("float32")
    y = np.arange(6) % 3
    close(own(x, training=False), fast(x, training=False))
    with torch.no_grad():
        close(own(x, training=False), fast(x, training=False))
    loss, slopes = gradients(own, x, y)
    other, others = gradients(fast, x, y)
    close(loss, other, tolerance=1e-5)
    largest = max(float(s.abs().max()) for s in slopes)
    for a, b in zip(slopes, others, strict=True):
        close(a, b, scale=max(float(a.abs().max()), 1e-2 * largest))
    for a, b in zip(own.non_trainable_weights, fast.non_trainable_weights):
        close(a.value, b.value, scale=max(float(a.value.abs().max()), 0.1))
    print("same", name)


def muffnet(**given):
    stages = stages_from_notation("average+geometric+none", alpha=0.5)
    stages = [StageSpec(stage.sharing, 3, 20) for stage in stages]
    return lambda: MuffNet(
        stages=stages, classes=3, classifier_activation=None, **given
    )


compare("muffnet", muffnet(input_shape=(10, 12, 3)), (10, 12, 3))
compare(
    "odd size", muffnet(input_shape=(93, 75, 1), stem="imagenet"), (93, 75, 1)
)
dense = [StageSpec("dense", 3, 18), StageSpec("none", 3, 18, residual=True)]
compare(
    "dense",
    lambda: MuffNet(
        input_shape=(8, 8, 3),
        stages=dense,
        classes=3,
        classifier_activation=None,
    ),
    (8, 8, 3),
)
def branches():
    # Slices that leave channels out; a sum that is read twice.
    from keras_muffnet.layers import ChannelShuffle, ChannelSlice

    inputs = keras.Input((6, 6, 5))
    x = keras.layers.Conv2D(7, 3, padding="valid", use_bias=True)(inputs)
    a = keras.layers.BatchNormalization(scale=False)(x)
    b = keras.layers.BatchNormalization(center=False)(x)
    x = keras.layers.Add()([a, b])
    x = keras.layers.Concatenate()(
        [keras.layers.ReLU()(x), ChannelSlice(1, 3)(x), ChannelSlice(2, 6)(x)]
    )
    x = keras.layers.DepthwiseConv2D(5, 2, "same", activation="relu")(x)
    x = keras.layers.Conv2D(6, 1, strides=2, padding="same")(x)
    x = keras.layers.BatchNormalization(epsilon=1e-2)(x)
    x = ChannelShuffle(2)(keras.layers.ReLU(6.0)(x))
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


compare("branches", branches, (6, 6, 5))


def broadcast():
    # A sum of two shapes, and axis 3 where it is not the last one.
    inputs = keras.Input((6, 6, 8))
    x = keras.layers.Conv2D(8, 3, padding="same")(inputs)
    x = keras.layers.BatchNormalization()(x)
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True)(inputs)
    x = keras.layers.ReLU()(keras.layers.Add()([pooled, x]))
    y = keras.layers.Reshape((6, 3, 2, 8))(x)
    y = keras.layers.BatchNormalization(axis=3)(y)
    y = keras.layers.Concatenate(axis=3)([y, y])
    y = keras.layers.Flatten()(y)
    return keras.Model(inputs, keras.layers.Dense(3)(y))


compare("broadcast", broadcast, (6, 6, 8))

def by_formula(x, gamma, beta, add, limit):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2), unbiased=False)
    y = (x - mean) * torch.rsqrt(variance + 1e-3) * gamma + beta
    y = y if add is None else y + add
    return torch.clamp(y, 0, limit) if limit else y, mean, variance


# Sizes that fill vectors or do not, values far from 0, clipped at both ends.
from keras_muffnet.training.fast.operations import batch_norm

torch.manual_seed(0)
for shape in ((2, 16, 16, 30), (3, 7, 5, 7), (1, 1, 3, 600), (40, 9, 9, 1)):
    for limit in (0.0, 1.5, float("inf")):
        for added in (False, True):
            x = torch.randn(shape) + 100 * torch.randn(shape[-1])
            given = [x, torch.rand(shape[-1]) + 0.5, torch.randn(shape[-1])]
            given.append(torch.randn(shape) if added else None)
            slope, found = torch.randn(shape), []
            for function, dtype in (
                (lambda *a: batch_norm(*a[:4], 1e-3, a[4]), torch.float32),
                (by_formula, torch.float64),
            ):
                leaves = [
                    None if v is None else v.to(dtype, copy=True)
                    for v in given
                ]
                for leaf in filter(torch.is_tensor, leaves):
                    leaf.requires_grad_()
                outputs = function(*leaves, limit)
                (outputs[0] * slope).sum().backward()
                found.append(
                    [*outputs, *(v.grad for v in leaves if v is not None)]
                )
            for a, b in zip(*reversed(found), strict=True):
                close(a, b, tolerance=1e-4)
unknown = torch.full((2, 4, 4, 3), float("nan"))
for y in batch_norm(unknown, torch.ones(3), torch.zeros(3), None, 1e-3, 6.0):
    assert y.isnan().all()

# By fit, saved and loaded both ways.
own, fast = pair(muffnet(input_shape=(8, 8, 3)))
x = rng.normal(size=(8, 8, 8, 3)).astype("float32")
y = np.arange(8) % 3
losses = []
for model in (own, fast):
    model.compile(
        keras.optimizers.SGD(0.01, 0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    fitted = model.fit(x, y, 8, 2, shuffle=False, verbose=0)
    losses.append(fitted.history["loss"])
np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
path = sys.argv[1] + "/fast.keras"
fast.save(path)
loaded = keras.saving.load_model(path)
np.testing.assert_allclose(
    loaded.predict(x, verbose=0), fast.predict(x, verbose=0), atol=1e-4
)
own.save(sys.argv[1] + "/own.keras")
fast.load_weights(sys.argv[1] + "/own.keras")
np.testing.assert_allclose(
    own.predict(x, verbose=0), fast.predict(x, verbose=0), atol=1e-4
)

# A layer that is frozen keeps its statistics.
own.trainable = fast.trainable = False
before = fast.get_weights()
close(own(x, training=True), fast(x, training=True))
assert all(map(np.array_equal, before, fast.get_weights()))

# NaN is not rectified away.
x[0] = np.nan
assert np.isnan(fast.predict(x, verbose=0)[0]).all()

# All weights are updated at once, to the bit as one by one, frozen ones not.
shapes = ((3, 3, 4, 8), (8,), (8,), (8, 5))
initial = [rng.normal(size=shape).astype("float32") for shape in shapes]
gradients_of = [[rng.normal(size=shape) for shape in shapes] for _ in range(3)]
for momentum, nesterov, l2, decay_all in itertools.product(
    (0.0, 0.9), (False, True), (0.0, 5e-4), (False, True)
):
    found = []
    for one_by_one in (True, False):
        weights = [keras.Variable(value) for value in initial]
        rate = make_schedule("one_cycle", 0.1, 4, 2) if nesterov else 0.1
        optimizer = SGD(rate, momentum, nesterov, l2, decay_all)
        optimizer.build(weights)
        for gradients_now in gradients_of:
            pairs = [
                (torch.tensor(gradient, dtype=torch.float32), weight)
                for gradient, weight in zip(gradients_now, weights)
            ]
            if one_by_one:
                for gradient, weight in pairs[1:]:
                    rate = optimizer.learning_rate
                    optimizer.update_step(gradient, weight, rate)
                optimizer.iterations.assign_add(1)
            else:
                optimizer.apply(*map(list, zip(*pairs[1:])))
        found.append([weight.numpy() for weight in weights])
    assert all(map(np.array_equal, *found))
    np.testing.assert_array_equal(found[0][0], initial[0])
    assert not np.array_equal(found[0][1], initial[1])

# Where it cannot be done.
for backend_format, policy, reason in (
    ("channels_first", "float32", "channels first"),
    ("channels_last", "mixed_bfloat16", "not in float32"),
):
    keras.config.set_image_data_format(backend_format)
    keras.config.set_dtype_policy(policy)
    shape = (3, 8, 8) if backend_format == "channels_first" else (8, 8, 3)
    model = muffnet(input_shape=shape)()
    assert accelerate(model) == f"Keras's own layers ({reason})"
keras.config.set_image_data_format("channels_last")
keras.config.set_dtype_policy("float32")


class Doubled(keras.Model):
    def call(self, x):
        return x + float(x.sum()) if isinstance(x, torch.Tensor) else x * 2


inputs = keras.Input((8, 8, 3))
model = keras.Model(inputs, Doubled()(inputs))
told = accelerate(model)
assert told == "Keras's own layers (not a functional model throughout)", told
print("done")
"""

NO_COMPILER = """
import sys
sys.modules["tensorflow"] = None
import keras
from keras_muffnet.training import accelerate
model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.ReLU()])
print(accelerate(model))
"""


def test_it_computes_what_keras_does(run_forked, tmp_path):
    printed = run_forked("-c", COMPARE, str(tmp_path), KERAS_BACKEND="torch")
    assert printed.splitlines()[-1] == "done"


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        (
            "torch",
            "Keras's own layers (no C compiler: /nowhere/cc was not found)",
        ),
        ("jax", "Keras's own layers (backend jax)"),
    ],
)
def test_without_a_faster_way_the_layers_stay(run_forked, backend, told):
    printed = run_forked(
        "-c", NO_COMPILER, KERAS_BACKEND=backend, CC="/nowhere/cc"
    )
    assert printed.strip() == told


@pytest.mark.parametrize(
    ("environment", "file", "recipe", "chosen"),
    [
        ({}, None, "cifar_cpu", "torch"),
        ({}, '{"backend": "tensorflow"}', "cifar_cpu", "torch"),
        ({}, '{"backend": "jax"}', "cifar_cpu", None),
        ({"KERAS_BACKEND": "jax"}, None, "cifar_cpu", "jax"),
        ({"CC": "/nowhere/cc"}, None, "cifar_cpu", None),
        ({}, None, "cifar_fast", None),  # bfloat16
    ],
)
def test_torch_is_chosen_where_it_is_the_fastest(
    monkeypatch, tmp_path, environment, file, recipe, chosen
):
    # Set first, so that what is chosen is taken back.
    monkeypatch.setenv("KERAS_BACKEND", "")
    del os.environ["KERAS_BACKEND"]
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(train, "has_gpu", lambda: False)
    monkeypatch.setattr(train.shutil, "which", {"cc": "/usr/bin/cc"}.get)
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if file is not None:
        (tmp_path / "keras.json").write_text(file)
    train.choose_backend(load_recipe(recipe))
    assert os.environ.get("KERAS_BACKEND") == chosen
