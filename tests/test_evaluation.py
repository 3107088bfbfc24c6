"""Evaluation of a classifier in all its formats."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet.data import make_detection_feed
from keras_muffnet.data import open_detection_source
from keras_muffnet.detection.postprocess import Detections
from keras_muffnet.evaluation import evaluate
from keras_muffnet.evaluation import evaluate_detector
from keras_muffnet.evaluation import load_predictor
from keras_muffnet.evaluation.classifiers import probabilities
from keras_muffnet.export import export_litert
from keras_muffnet.export import export_saved_model
from tests.test_data_detection import LISTS
from tests.test_data_detection import VOC
from tests.test_data_detection import write_voc

NETWORK = {
    "input_shape": (32, 32, 3),
    "classes": 7,
    "stages": [StageSpec("geometric", 3, 6), StageSpec("none", 2, 6)],
}
NAMES = tuple("abcdefg")


@keras.saving.register_keras_serializable()
class Subclassed(keras.Model):
    """A classifier whose inputs Keras does not know."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(keras.ops.mean(x, (1, 2)))


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


def test_scores_that_are_no_numbers_are_refused(images):
    pixels, labels = images

    def predict(pixels):
        scores = np.full((len(pixels), 7), 1 / 7, np.float32)
        scores[1, 3] = np.nan
        return scores

    with pytest.raises(ValueError, match=r"NaN for 1 of 20 images"):
        evaluate(predict, [(pixels, labels)], NAMES)
    with pytest.raises(ValueError, match=r"`mistakes` must be 0.*=-1"):
        evaluate(predict, [(pixels, labels)], NAMES, mistakes=-1)


def test_an_older_sheet_of_mistakes_is_removed(images, tmp_path):
    pixels, labels = images
    (tmp_path / "mistakes.png").write_bytes(b"older")
    result = evaluate(
        lambda x: np.eye(7, dtype=np.float32)[labels], [(pixels, labels)], NAMES
    )
    result.write(tmp_path)
    assert not (tmp_path / "mistakes.png").exists()


def test_models_that_are_no_classifiers_are_refused(tmp_path):
    layers = keras.layers
    image, other = keras.Input((4, 4, 3)), keras.Input((4, 4, 3))
    x = layers.Flatten()(image)
    two_outputs = [layers.Dense(2)(x), layers.Dense(3)(x)]
    joined = layers.Dense(2)(layers.Add()([x, layers.Flatten()(other)]))
    for name, model in (
        ("outputs", keras.Model(image, two_outputs)),
        ("inputs", keras.Model([image, other], joined)),
        ("subclassed", Subclassed()),
    ):
        if isinstance(model, Subclassed):
            model(np.zeros((1, 4, 4, 3)))
        model.save(tmp_path / f"{name}.keras")
        with pytest.raises(ValueError, match="with one input and one output"):
            load_predictor(tmp_path / f"{name}.keras")


def test_the_standard_deviation_is_positive(tmp_path):
    for std in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="must be a positive number"):
            load_predictor(tmp_path / "m.keras", normalization=(0, std))


class OneBox:
    """Finds the same box on each image."""

    size = (12, 16)

    def __init__(self, score):
        self.score = score

    def detect(self, pixels):
        count = len(pixels)
        return Detections(
            np.tile(np.float32([2, 2, 9, 9]), (count, 1, 1)),
            np.full((count, 1), self.score, np.float32),
            np.zeros((count, 1), np.int64),
            np.ones(count, np.int64),
        )


def test_detectors_want_pixels_of_their_size_and_give_numbers(tmp_path):
    voc = write_voc(tmp_path / "voc", LISTS, VOC)
    source = open_detection_source(voc)

    def result(score=0.5, size=(12, 16), pictures=0, **options):
        feed = make_detection_feed(
            source, size=size, batch_size=2, train_split=None, **options
        )
        return evaluate_detector(OneBox(score), feed, pictures)

    scaling = {"mean": 0, "std": 1}
    with pytest.raises(ValueError, match=r"mean=0 and std=1.*mean=128"):
        result()
    with pytest.raises(ValueError, match=r"detector's size.*\(2, 16, 12, 3\)"):
        result(size=(16, 12), **scaling)
    with pytest.raises(ValueError, match="scores that are NaN"):
        result(float("nan"), **scaling)
    with pytest.raises(ValueError, match=r"`pictures` must be 0.*=-1"):
        result(pictures=-1, **scaling)
    (tmp_path / "boxes.png").write_bytes(b"older")
    result(**scaling).write(tmp_path)
    assert (tmp_path / "evaluation.json").exists()
    assert not (tmp_path / "boxes.png").exists()


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
