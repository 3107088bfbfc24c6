"""Recipes, and the schedules, optimizer and losses that they ask for."""

import argparse
import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_muffnet import MuffNet
from keras_muffnet.cli import train
from keras_muffnet.training import Recipe
from keras_muffnet.training import build_network
from keras_muffnet.training import load_recipe
from keras_muffnet.training import network
from keras_muffnet.training import recipe_names
from keras_muffnet.training.objectives import accuracies
from keras_muffnet.training.objectives import cross_entropy
from keras_muffnet.training.optimizer import SGD
from keras_muffnet.training.recipe import describe_recipe
from keras_muffnet.training.schedules import make_schedule


def small(**settings):
    least = {"size": 32, "batch_size": 8, "epochs": 4, "learning_rate": 0.1}
    return Recipe(**{**least, **settings})


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_tells_its_command_cost_and_result(name):
    recipe = load_recipe(name)
    text = describe_recipe(name)
    assert f"muffnet train {name} " in text
    assert "Cost: " in text
    assert "Result: " in text
    # As it is saved with a run.
    saved = json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert Recipe(**saved) == recipe


def test_the_papers_recipes():
    cifar, imagenet = load_recipe("cifar"), load_recipe("imagenet")
    for recipe, expected in (
        (cifar, ("cosine", 300, 128, 0.1, 0.9, 1e-4)),
        (imagenet, ("cosine", 120, 1024, 0.5, 0.9, 4e-4)),
    ):
        assert expected == (
            recipe.schedule,
            recipe.epochs,
            recipe.batch_size,
            recipe.learning_rate,
            recipe.momentum,
            recipe.weight_decay,
        )
    assert imagenet.label_smoothing == 0.1
    assert imagenet.warm_up_epochs == 5
    assert not imagenet.decay_all
    assert load_recipe("tiny_imagenet").stem == "tiny_imagenet"


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1. Received: epochs=0"),
        ({"epochs": 1.5}, "`epochs` must be of type int. Received: epochs=1.5"),
        ({"nesterov": 1}, "`nesterov` must be of type bool"),
        ({"batch_size": True}, "`batch_size` must be of type int"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be at least 0"),
        ({"learning_rate": float("inf")}, "`learning_rate` must be at least 0"),
        ({"momentum": 1.1}, "`momentum` must be at least 0 and at most 1"),
        ({"schedule": "step"}, "`schedule` must be one of cosine, one_cycle"),
        ({"precision": "int8"}, "`precision` must be one of float32, mixed_"),
        ({"warm_up_epochs": 4}, "`warm_up_epochs` must be less than the epoch"),
        ({"freeze_epochs": 1}, "`weights` must be given where"),
        (
            {"freeze_epochs": 4, "weights": "x"},
            "`freeze_epochs` must be less than `epochs`, 4",
        ),
        (
            {"freeze_epochs": 1.5, "weights": "x"},
            "`freeze_epochs` must be a whole number, or a share below 1",
        ),
        (
            {"freeze_norms": True},
            "`weights` must be given where `freeze_norms`",
        ),
        (
            {"unfreeze_from": "stage3"},
            "`weights` must be given where `unfreeze_from`",
        ),
        ({"data_check": "hash"}, "`data_check` must be one of times, contents"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings, error):
    with pytest.raises(ValueError) as refused:
        small(**settings)
    assert str(refused.value).startswith(error)


@pytest.mark.parametrize(
    ("epochs", "frozen"), [(1, 0), (2, 0), (3, 1), (20, 5)]
)
def test_a_share_of_the_epochs_trains_the_classifier_alone(epochs, frozen):
    recipe = dataclasses.replace(load_recipe("transfer"), epochs=epochs)
    assert recipe.frozen_epochs == frozen
    assert recipe.schedule_epochs == epochs - frozen


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(ValueError, match="one of cifar, cifar_cpu, cifar_fast"):
        load_recipe("mnist")


def overridden(*arguments):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return train.overridden(parser.parse_args(arguments), Recipe)


def test_the_command_line_overrides_the_recipe():
    recipe = overridden(
        *(
            "cifar",
            "--alpha=0.5",
            "--epochs=7",
            "--data",
            "here/",
            "--nesterov",
        ),
        *("--no-decay-all", "--ema=0.9", "--precision=mixed_bfloat16"),
    )
    assert recipe == dataclasses.replace(
        load_recipe("cifar"),
        alpha=0.5,
        epochs=7,
        data="here/",
        nesterov=True,
        decay_all=False,
        ema=0.9,
        precision="mixed_bfloat16",
    )
    assert overridden("imagenet") == load_recipe("imagenet")
    fast = overridden("cifar_fast", "--ema=none")
    assert fast == dataclasses.replace(load_recipe("cifar_fast"), ema=None)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["mnist"], "invalid choice: 'mnist'"),
        (["cifar", "--epochs=many"], "invalid int value: 'many'"),
        (["cifar", "--epochs=none"], "invalid int value: 'none'"),
        (["cifar", "--depth=3"], "unrecognized arguments: --depth=3"),
    ],
)
def test_a_bad_command_line_is_refused(capsys, arguments, error):
    with pytest.raises(SystemExit):
        overridden(*arguments)
    assert error in capsys.readouterr().err


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_cosine_is_its_formula():
    schedule = make_schedule("cosine", 0.4, 100, 20)
    expected = [
        0.4 * step / 20
        if step < 20
        else 0.4 * (1 + math.cos(math.pi * (step - 20) / 80)) / 2
        for step in range(101)
    ]
    np.testing.assert_allclose(
        rates(schedule, range(101)), expected, rtol=1e-5, atol=1e-7
    )
    # Without warm-up, as in section 5.1.
    plain = make_schedule("cosine", 0.1, 50, 0)
    np.testing.assert_allclose(
        rates(plain, (0, 25, 50, 60)), [0.1, 0.05, 0, 0], atol=1e-8
    )


def test_one_cycle_is_its_formula():
    schedule = make_schedule("one_cycle", 0.4, 100, 20)
    expected = [0.4 * min(step / 20, (100 - step) / 80) for step in range(101)]
    np.testing.assert_allclose(
        rates(schedule, range(101)), expected, rtol=1e-5, atol=1e-7
    )
    assert float(schedule(1000)) == 0
    straight = make_schedule("one_cycle", 0.1, 50, 0)
    np.testing.assert_allclose(rates(straight, (0, 25)), [0.1, 0.05])
    again = type(schedule).from_config(schedule.get_config())
    assert rates(again, range(0, 100, 9)) == rates(schedule, range(0, 100, 9))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_all", [False, True])
def test_weight_decay_is_part_of_the_gradient(nesterov, decay_all):
    """Against the formula, which PyTorch has too, for two steps."""
    kernel, bias = (
        np.array([[1.0, -2.0]], "float32"),
        np.array([3.0], "float32"),
    )
    variables = [keras.Variable(kernel), keras.Variable(bias)]
    optimizer = SGD(
        0.1, momentum=0.9, nesterov=nesterov, l2=0.01, decay_all=decay_all
    )
    gradients = [np.array([[0.5, 0.25]], "float32"), np.array([1.0], "float32")]
    expected = [kernel.copy(), bias.copy()]
    momenta = [np.zeros_like(kernel), np.zeros_like(bias)]
    for _ in range(2):
        optimizer.apply(
            [keras.ops.convert_to_tensor(g) for g in gradients], variables
        )
        for k, decay in enumerate((0.01, 0.01 if decay_all else 0.0)):
            gradient = gradients[k] + decay * expected[k]
            momenta[k] = 0.9 * momenta[k] + gradient
            step = gradient + 0.9 * momenta[k] if nesterov else momenta[k]
            expected[k] = expected[k] - 0.1 * step
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5)


def test_kernels_alone_are_decayed():
    """Of a real network: no bias, scale or offset, and each kernel."""
    recipe = small(alpha=0.1)
    model = build_network(recipe, 5)
    before = [v.numpy() for v in model.trainable_variables]
    optimizer = SGD(1.0, l2=0.5)
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        factor = 0.5 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(variable.numpy(), factor * value, rtol=1e-6)
    names = {variable.name for variable in model.trainable_variables}
    assert names == {"kernel", "gamma", "beta", "bias"}


def test_averages_are_swapped_to_the_bit():
    variable = keras.Variable(np.array([1.0, 1e-8, 3e7], "float32"))
    optimizer = SGD(0.1, use_ema=True, ema_momentum=0.7)
    for step in range(3):
        gradient = keras.ops.convert_to_tensor([0.3, 1e-9 * step, 7.0])
        optimizer.apply([gradient], [variable])
    trained = variable.numpy()
    optimizer.swap_averages()
    assert not np.array_equal(variable.numpy(), trained)
    optimizer.swap_averages()
    np.testing.assert_array_equal(variable.numpy(), trained)
    optimizer.finalize_variable_values([variable])
    np.testing.assert_array_equal(variable.numpy(), trained)


def test_an_optimizer_is_saved_whole():
    optimizer = SGD(make_schedule("one_cycle", 0.1, 9, 3), l2=0.2)
    config = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(config)
    assert type(again) is SGD
    assert again.get_config() == optimizer.get_config()


def test_loss_and_accuracies_take_labels_of_either_form():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 8)).astype("float32")
    labels = rng.integers(0, 8, 40)
    one_hot = np.eye(8, dtype="float32")[labels]
    smoothed = 0.9 * one_hot + 0.1 / 8
    expected = -(smoothed * tf.nn.log_softmax(logits).numpy()).sum(axis=-1)
    loss = cross_entropy(0.1, from_logits=True)
    order = np.argsort(-logits, axis=-1)
    hits = [
        (order[:, :count] == labels[:, None]).any(axis=-1).mean()
        for count in (1, 5)
    ]
    for form in (labels, labels[:, None], one_hot):
        np.testing.assert_allclose(loss(form, logits), expected, rtol=1e-5)
        for metric, value in zip(accuracies(8), hits, strict=True):
            metric.update_state(form, logits)
            assert float(metric.result()) == pytest.approx(value)


def test_a_network_that_tells_no_class_apart_is_not_right():
    top_1, _ = accuracies(10)
    top_1.update_state(np.arange(10), np.zeros((10, 10), "float32"))
    assert float(top_1.result()) == pytest.approx(0.1)


def test_weights_of_other_classes_come_without_the_classifier(tmp_path):
    keras.utils.set_random_seed(1)
    trained = MuffNet(input_shape=(32, 32, 3), alpha=0.1, classes=7)
    path = str(tmp_path / "trained.keras")
    trained.save(path)
    for classes in (7, 3):
        model = build_network(small(alpha=0.1, weights=path), classes)
        for layer in model.layers:
            if not layer.weights:
                continue
            same = layer.name != "predictions" or classes == 7
            theirs = trained.get_layer(layer.name).get_weights()
            for a, b in zip(layer.get_weights(), theirs, strict=True):
                assert np.array_equal(a, b) == same or not b.any()
    with pytest.raises(ValueError, match="`weights` must be of the recipe's"):
        build_network(small(alpha=0.2, weights=path), 3)
    with pytest.raises(ValueError, match="`weights` must be an existing file"):
        build_network(small(weights="no_such_weights"), 3)


def test_layers_are_frozen_by_level():
    model = build_network(small(alpha=0.1), 5)

    def trained():
        return {layer.name for layer in model.layers if layer.trainable}

    everything = trained()
    network.train_classifier_only(model)
    assert trained() == {"predictions"}
    network.train_from(model, "stage3")
    late = trained()
    assert {"head_conv", "head_bn", "predictions"} <= late
    assert any(name.startswith("stage3_layer1") for name in late)
    assert not any(
        name.startswith(("stem", "stage1", "stage2")) for name in late
    )
    network.train_from(model, None)
    assert trained() == everything
    with pytest.raises(
        ValueError, match="'stem', 'stage1', 'stage2', 'stage3'"
    ):
        network.train_from(model, "stage4")
