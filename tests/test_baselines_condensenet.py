"""CondenseNet: the schedule, and the two forms with equal outputs."""

import keras
import numpy as np
import pytest

from keras_muffnet import count_complexity
from keras_muffnet.baselines import CondensationSchedule
from keras_muffnet.baselines import CondenseNet
from keras_muffnet.baselines import condense
from keras_muffnet.layers import LearnedGroupConv2D
from keras_muffnet.layers import PrunedDense

SMALL = {
    "input_shape": (16, 16, 3),
    "classes": 5,
    "depths": (1, 1, 1, 1, 1),
    "growth_rates": (8, 8, 8, 16, 16),
}


def images(count=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 16, 16, 3)).astype("float32")


def learned(model):
    return [x for x in model.layers if isinstance(x, LearnedGroupConv2D)]


@pytest.fixture(scope="module")
def trained():
    """A network after 14 epochs with the schedule, and its stages by epoch."""
    keras.utils.set_random_seed(0)
    model = CondenseNet(**SMALL)
    with pytest.raises(ValueError, match="left to drop: block1_layer1"):
        condense(model)
    stages = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            layers = [*learned(model), model.layers[-1]]
            stages.append({type(x): x.stage for x in layers})

    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(
        images(),
        np.arange(4),
        epochs=14,
        callbacks=[CondensationSchedule(14), Watch()],
        verbose=0,
    )
    return model, stages


def test_schedule_takes_the_first_half_of_training(trained):
    _, stages = trained
    found = [epoch[LearnedGroupConv2D] for epoch in stages]
    assert found == [0, 1, 2, 3, 4, 5, 6, *[7] * 7]
    assert [epoch[PrunedDense] for epoch in stages] == [0] * 7 + [1] * 7


def test_condensed_form_answers_the_same(trained, tmp_path):
    model, _ = trained
    condensed = condense(model)
    expected = model.predict(images(), verbose=0)
    np.testing.assert_allclose(
        condensed.predict(images(), verbose=0), expected, rtol=1e-5, atol=1e-6
    )
    assert not learned(condensed)
    built = CondenseNet(**SMALL, condensed=True)
    assert [x.name for x in built.layers[1:]] == [
        x.name for x in condensed.layers[1:]
    ]
    assert count_complexity(condensed).macs == count_complexity(built).macs
    # The choice of inputs goes with the weights.
    built.set_weights(condensed.get_weights())
    np.testing.assert_allclose(
        built.predict(images(), verbose=0), expected, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="with 0 layers that drop any"):
        condense(condensed)


def test_masks_are_saved(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        loaded.predict(images(), verbose=0), model.predict(images(), verbose=0)
    )
    assert [x.stage for x in learned(loaded)] == [7] * 5


def test_each_drop_takes_an_eighth_of_the_least_inputs_of_each_group():
    layer = LearnedGroupConv2D(16, 8, 8, name="learned")
    layer.build((None, 4, 4, 24))
    kernel = np.random.default_rng(0).normal(size=(1, 1, 24, 16))
    layer.kernel.assign(kernel)
    size = np.abs(kernel[0, 0].reshape(24, 8, 2)).sum(axis=-1)
    for stage in range(1, 8):
        layer.drop()
        mask = keras.ops.convert_to_numpy(layer.mask)
        assert (mask.sum(axis=0) == 24 - 3 * stage).all()
        assert layer.stage == stage
        for group in range(8):
            dropped = size[mask[:, group] == 0, group]
            assert dropped.max() < size[mask[:, group] == 1, group].min()
    with pytest.raises(ValueError, match="'learned' has dropped all"):
        layer.drop()


def test_group_lasso_by_hand():
    layer = LearnedGroupConv2D(4, 2, 2, group_lasso=0.5)
    layer.build((None, 1, 1, 2))
    layer.kernel.assign(np.array([[[[3, 4, 0, 2], [6, 8, 5, 12]]]]))
    x = np.ones((1, 1, 1, 2), "float32")
    layer(x)
    (loss,) = layer.losses
    # 5 and 10 of the first group, 2 and 13 of the second
    np.testing.assert_allclose(float(loss), 0.5 * (5 + 10 + 2 + 13))
    layer.drop()
    np.testing.assert_array_equal(layer.mask, [[0, 0], [1, 1]])
    np.testing.assert_array_equal(np.ravel(layer(x)), [6, 8, 5, 12])
    assert float(layer.losses[0]) == 0


def test_schedule_needs_something_to_drop():
    with pytest.raises(ValueError, match="`epochs` must be a positive integer"):
        CondensationSchedule(0)
    x = keras.Input((2,))
    model = keras.Model(x, keras.layers.Dense(1)(x), name="plain")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"`model` must have.*'plain'"):
        model.fit(
            np.ones((2, 2)),
            np.ones(2),
            callbacks=[CondensationSchedule(2)],
            verbose=0,
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 4, 2), "`learned_groups` must divide `filters`"),
        ((8, 0, 2), "`learned_groups` must be a positive integer"),
        ((8, 4, 1), "`condensation` must be 2 or more"),
    ],
)
def test_errors_of_the_layer(arguments, message):
    with pytest.raises(ValueError, match=message):
        LearnedGroupConv2D(*arguments)
    with pytest.raises(ValueError, match="which must divide the channels"):
        LearnedGroupConv2D(8, 4, 4).build((None, 2, 2, 6))
