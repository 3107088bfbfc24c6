"""Evaluation of a classifier in all its formats."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet.evaluation import evaluate
from keras_muffnet.evaluation import load_predictor
from keras_muffnet.evaluation.classifiers import probabilities
from keras_muffnet.export import export_litert
from keras_muffnet.export import export_saved_model

NETWORK = {
    "input_shape": (32, 32, 3),
    "classes": 7,
    "stages": [StageSpec("geometric", 3, 6), StageSpec("none", 2, 6)],
}
NAMES = tuple("abcdefg")


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    """The same network, saved in all ways, and it itself."""
    folder = tmp_path_factory.mktemp("formats")
    keras.utils.set_random_seed(0)
    model = MuffNet(**NETWORK)
    # Random weights would give all images nearly the same.
    model.get_layer("predictions").kernel.assign(
        np.random.default_rng(0).normal(size=(1024, 7)) * 20
    )
    model.save(folder / "m.keras")
    model.save_weights(folder / "m.weights.h5")
    export_saved_model(model, folder / "m")
    export_litert(model, folder / "m.tflite")
    return folder, model


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (20, 32, 32, 3)).astype("float32")
    return pixels, rng.integers(0, 7, 20)


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5", "m", "m.tflite"])
def test_all_formats_are_evaluated_alike(name, formats, images):
    folder, model = formats
    pixels, labels = images
    network = NETWORK if name.endswith(".h5") else None
    predictor = load_predictor(folder / name, network=network)
    assert predictor.size == (32, 32)
    batches = [(pixels[:12], labels[:12]), (pixels[12:], labels[12:])]
    got = evaluate(predictor.predict, batches, NAMES, mistakes=5)

    scores = model.predict((pixels - 128) / 128, verbose=0)
    best = scores.argmax(axis=-1)
    confusion = np.zeros((7, 7), int)
    for label, found in zip(labels, best, strict=True):
        confusion[label, found] += 1
    np.testing.assert_array_equal(got.confusion, confusion)
    assert got.images == 20
    assert got.top_1 == (best == labels).mean()
    in_five = np.argsort(-scores)[:, :5] == labels[:, None]
    assert got.top_5 == in_five.any(axis=-1).mean()
    # The surest mistakes, surest first, with their pixels.
    wrong = np.flatnonzero(best != labels)
    surest = wrong[np.argsort(-scores[wrong].max(axis=-1))][:5]
    assert [m.position for m in got.mistakes] == surest.tolist()
    for mistake in got.mistakes:
        k = mistake.position
        np.testing.assert_array_equal(mistake.pixels, pixels[k])
        np.testing.assert_allclose(mistake.scores, scores[k], atol=1e-4)


def test_what_is_written(formats, images, tmp_path):
    folder, _ = formats
    pixels, labels = images
    labels = np.minimum(labels, 5)  # the last class has no image
    predictor = load_predictor(folder / "m.keras")
    result = evaluate(predictor.predict, [(pixels, labels)], NAMES)
    result.write(tmp_path / "e", model="m.keras")
    saved = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert saved == {
        "model": "m.keras",
        "images": 20,
        "top_1": result.top_1,
        "top_5": result.top_5,
    }
    rows = (tmp_path / "e" / "per_class.csv").read_text().splitlines()
    assert rows[0] == "class,images,accuracy"
    assert rows[7] == "g,0,nan"
    first = result.confusion[0]
    assert rows[1] == f"a,{first.sum()},{first[0] / first.sum()}"
    for picture in ("confusion.png", "mistakes.png"):
        content = (tmp_path / "e" / picture).read_bytes()
        assert min(tf.io.decode_png(content).shape[:2]) > 100


def test_a_model_of_other_classes_or_of_nothing_is_refused(formats, tmp_path):
    folder, _ = formats
    predictor = load_predictor(folder / "m.keras")
    batch = (np.zeros((1, 32, 32, 3), "float32"), np.zeros(1, int))
    with pytest.raises(ValueError, match="each of 3 classes"):
        evaluate(predictor.predict, [batch], ("a", "b", "c"))
    with pytest.raises(ValueError, match="`batches` must hold images"):
        evaluate(predictor.predict, [], NAMES)
    with pytest.raises(ValueError, match="`network` must be given for weights"):
        load_predictor(folder / "m.weights.h5")
    with pytest.raises(ValueError, match="`model` must be an existing"):
        load_predictor(folder / "none.keras")
    with pytest.raises(ValueError, match="`model` must hold saved_model"):
        load_predictor(tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="`model` must end in"):
        load_predictor(tmp_path / "m.onnx")


def test_a_folder_of_images_may_have_the_name_of_the_model(
    tmp_path, monkeypatch
):
    (tmp_path / "cifar10/train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_predictor("cifar10").size == (32, 32)
    with pytest.raises(ValueError, match="must hold saved_model"):
        load_predictor("cifar10/")


def test_pixels_are_scaled_as_the_model_wants(tmp_path):
    """By itself, by what is given, or as a channels-first model has them."""
    layers = keras.layers
    x = inputs = keras.Input((4, 4, 3))
    x = layers.Rescaling(1 / 255)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Softmax()(x)
    keras.Model(inputs, x).save(tmp_path / "scales.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3))
    pixels = pixels.astype("float32")
    means = pixels.mean(axis=(1, 2))
    predict = load_predictor(tmp_path / "scales.keras").predict
    np.testing.assert_allclose(
        predict(pixels), tf.nn.softmax(means / 255), rtol=1e-5
    )

    x = inputs = keras.Input((3, 4, 4))
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    keras.Model(inputs, x).save(tmp_path / "first.keras")
    given = load_predictor(tmp_path / "first.keras", normalization=(10, 50))
    np.testing.assert_allclose(
        given.predict(pixels), tf.nn.softmax((means - 10) / 50), rtol=1e-5
    )


def test_logits_become_probabilities():
    logits = np.array([[1.0, -2.0], [0.5, 3.0]])
    np.testing.assert_allclose(
        probabilities(logits), tf.nn.softmax(logits), rtol=1e-6
    )
    scores = np.array([[0.25, 0.5], [0.0, 1.0]])
    np.testing.assert_array_equal(probabilities(scores), scores)
