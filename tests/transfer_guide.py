"""Keras's guide to transfer learning, with MuffNet as the pretrained network.

    KERAS_BACKEND=jax python -m tests.transfer_guide FOLDER

The steps of https://keras.io/guides/transfer_learning/ in their order, each
checked, on a small network and random images.
"""

import pathlib
import sys

import keras
import numpy as np
from onnx.reference import ReferenceEvaluator

from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet import preprocess_input

STAGES = [StageSpec("average", 2, 6), StageSpec("none", 2, 8)]
SHAPE = (24, 24, 3)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, *SHAPE)).astype("float32")
LABELS = np.arange(12) % 2


def main(folder):
    keras.utils.set_random_seed(0)
    weights = folder / "pretrained.weights.h5"
    pretrained(weights)
    body = MuffNet(SHAPE, include_top=False, stages=STAGES, weights=weights)
    model = functional(body)
    freeze_then_fine_tune(model, body)
    sequential(weights)
    saved_and_copied(model, folder)
    from_config(body)
    mixed_precision(weights)
    other_formats(model, folder)
    print("guide done")


def pretrained(path):
    """Weights whose BN statistics are not those of a new network."""
    model = MuffNet(SHAPE, include_top=False, stages=STAGES)
    model.set_weights(
        [w + 0.1 * RNG.random(w.shape) for w in model.get_weights()]
    )
    model.save_weights(path)


def compiled(model, rate=1e-2):
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy()],
        # Cheaper than to compile for so few steps.
        run_eagerly=keras.backend.backend() == "tensorflow",
        jit_compile=keras.backend.backend() == "jax",
    )
    return model


def fit(model, epochs=1):
    losses = model.fit(
        IMAGES, LABELS, batch_size=6, epochs=epochs, verbose=0
    ).history["loss"]
    assert np.isfinite(losses).all()


def functional(body):
    """Augmentation, scaling, the body in inference mode, a new classifier."""
    body.trainable = False
    inputs = keras.Input(SHAPE)
    x = keras.layers.RandomFlip("horizontal", seed=1)(inputs)
    x = keras.layers.RandomRotation(0.1, seed=2)(x)
    x = keras.layers.Rescaling(1 / 128, offset=-1)(x)
    x = body(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2, seed=3)(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def freeze_then_fine_tune(model, body):
    before = [np.array(w) for w in body.get_weights()]
    assert len(model.trainable_weights) == 2
    fit(compiled(model))
    for a, b in zip(before, body.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

    # All is trained but batch normalization, whose statistics stay.
    body.trainable = True
    norms = [
        layer
        for layer in body.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for norm in norms:
        norm.trainable = False
    kept = [np.array(w) for norm in norms for w in norm.get_weights()]
    fit(compiled(model, 1e-3))
    changed = [
        not np.array_equal(a, b)
        for a, b in zip(before, body.get_weights(), strict=True)
    ]
    assert any(changed)
    for a, b in zip(
        kept, [w for norm in norms for w in norm.get_weights()], strict=True
    ):
        np.testing.assert_array_equal(a, b)


def sequential(weights):
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.RandomFlip("horizontal", seed=1),
            keras.layers.Rescaling(1 / 128, offset=-1),
            MuffNet(SHAPE, include_top=False, stages=STAGES, weights=weights),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1),
        ]
    )
    model.layers[2].trainable = False
    assert len(model.trainable_weights) == 2
    fit(compiled(model))


def saved_and_copied(model, folder):
    expected = model.predict(IMAGES, verbose=0)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    path = folder / "guide.keras"
    model.save(path)
    for other in (copy, keras.saving.load_model(path)):
        np.testing.assert_allclose(
            other.predict(IMAGES, verbose=0), expected, atol=1e-5
        )
    np.save(folder / "expected.npy", expected)


def from_config(body):
    again = keras.Model.from_config(body.get_config())
    again.set_weights(body.get_weights())
    images = preprocess_input(IMAGES)
    np.testing.assert_allclose(
        again.predict(images, verbose=0),
        body.predict(images, verbose=0),
        atol=1e-6,
    )


def mixed_precision(weights):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = functional(
            MuffNet(SHAPE, include_top=False, stages=STAGES, weights=weights)
        )
        fit(compiled(model))
    finally:
        keras.mixed_precision.set_global_policy("float32")


def other_formats(model, folder):
    """What other packages do, where they are installed."""
    if keras.backend.backend() == "tensorflow":
        as_onnx(model, folder / "guide.onnx")
    try:
        keras.utils.plot_model(
            model, folder / "guide.png", expand_nested=True, show_shapes=True
        )
    except ImportError as error:  # pydot or Graphviz
        print("skipped:", error)
        return
    assert (folder / "guide.png").stat().st_size > 1000


def as_onnx(model, path):
    """Without augmentation, whose random operations ONNX does not have."""
    x = inputs = keras.Input(SHAPE)
    for layer in model.layers[3:]:
        x = layer(x)
    served = keras.Model(inputs, x)
    expected = served.predict(IMAGES, verbose=0)
    served.export(path, format="onnx", verbose=False)
    session = ReferenceEvaluator(str(path))
    [scores] = session.run(None, {session.input_names[0]: IMAGES})
    np.testing.assert_allclose(scores, expected, atol=1e-4)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
