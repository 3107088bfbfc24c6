"""Images are made ready for a model in the same way everywhere."""

import argparse
import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_muffnet import data
from keras_muffnet.cli import quantize
from keras_muffnet.cli.quantize_classifier import load_data
from keras_muffnet.evaluation import evaluate
from keras_muffnet.evaluation import load_predictor
from keras_muffnet.export import export_litert
from keras_muffnet.export import export_saved_model
from keras_muffnet.litert.metadata import embed_metadata
from keras_muffnet.model_server.litert_runtime import load_litert
from keras_muffnet.preprocessing import Preprocessing
from keras_muffnet.preprocessing import preprocessing_of
from keras_muffnet.preprocessing import with_preprocessing
from keras_muffnet.training import Recipe
from keras_muffnet.training import fit

NAMES = ("bright", "dark")


def small_model(classes=2):
    x = inputs = keras.Input((16, 24, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(classes, name="predictions")(x)
    return keras.Model(inputs, x, name="small")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of JPEGs that are anything but square, some of them turned."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 5)):
        for label, name in enumerate(NAMES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                size = rng.integers(20, 90, 2)
                pixels = rng.integers(0, 255, (*size, 3)) * (1 - 0.4 * label)
                image = Image.fromarray(pixels.astype(np.uint8))
                exif = image.getexif()
                exif[274] = (1, 6, 3)[k % 3]  # as phones turn theirs
                image.save(folder / f"{k}.jpg", quality=60, exif=exif)
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """The folder of a run whose test images are center crops."""
    recipe = Recipe(
        data=str(photos),
        size=16,  # of the feed that is replaced below
        augmentation="imagenet",
        batch_size=4,
        epochs=1,
        learning_rate=0.01,
        jit_compile=False,
    )
    keras.utils.set_random_seed(0)
    feed = data.make_feed(
        data.open_source(str(photos)),
        data.IMAGENET,
        size=(16, 24),
        batch_size=4,
    )
    folder = tmp_path_factory.mktemp("run")
    result = fit(small_model(), recipe, feed, folder, verbose=0)
    return folder, result, feed


def test_train_evaluate_quantize_and_server_have_the_same_accuracy(
    trained, photos, tmp_path
):
    folder, result, feed = trained
    batches = list(feed.evaluation().as_numpy_iterator())
    model = keras.saving.load_model(folder / "last.keras", compile=False)
    known = preprocessing_of(model)
    pixels, labels = map(np.concatenate, zip(*batches, strict=True))
    expected = model.predict_on_batch(pixels)
    accuracy = {"train": result["last"]["accuracy"]}

    # What `muffnet evaluate` does.
    predictor = load_predictor(folder / "last.keras")
    assert (predictor.crop, predictor.class_names) == (0.875, NAMES)
    plain = data.make_feed(
        data.open_source(str(photos)),
        dataclasses.replace(data.PLAIN, test_crop=predictor.crop),
        size=predictor.size,
        batch_size=4,
        mean=0.0,
        std=1.0,
    )
    evaluated = evaluate(predictor.predict, plain.evaluation(), NAMES)
    accuracy["evaluate"] = evaluated.top_1

    # What `muffnet quantize` reads, and its figure of the float model.
    parser = argparse.ArgumentParser()
    quantize.add_arguments(parser)
    flags = [f"--model={folder / 'last.keras'}", f"--data={photos}"]
    flags += ["--train-split=train", f"--output={tmp_path / 'int8'}"]
    args = quantize.with_defaults(parser.parse_args(flags), 0)
    _, (images, same), names = load_data(model, args, known.crop)
    assert tuple(names) == NAMES
    np.testing.assert_array_equal(same, labels)
    scaled = (images.astype(np.float32) - known.mean) / known.std
    np.testing.assert_array_equal(scaled, pixels)
    accuracy["quantize"] = np.mean(model.predict(scaled).argmax(-1) == same)

    # What the server does, with the class names of the model itself.
    version = export_saved_model(model, tmp_path / "served")
    served = tf.saved_model.load(str(version)).signatures["serving_bytes"]
    files = sorted((photos / "test").rglob("*.jpg"))
    encoded = tf.constant([file.read_bytes() for file in files])
    answer = served(image_bytes=encoded)
    np.testing.assert_allclose(
        answer["predictions"].numpy(), expected, atol=1e-6
    )
    right = answer["predictions"].numpy().argmax(-1) == labels
    accuracy["server"] = np.mean(right)
    assert {n.decode() for n in answer["classes"].numpy()[0]} == set(NAMES)
    assert "center, 0.875" in (version / "README.md").read_text()
    again = load_predictor(version)
    assert (again.crop, again.class_names) == (0.875, NAMES)

    for figure in accuracy.values():
        assert figure == pytest.approx(result["last"]["accuracy"]), accuracy

    # And of a LiteRT file. Pillow resizes to levels that differ by one.
    path = export_litert(model, tmp_path / "lite" / "1" / "m.tflite")
    content = embed_metadata(
        path.read_bytes(),
        name="small",
        labels=known.class_names,
        crop=known.crop,
    )
    path.write_bytes(content)
    lite = load_predictor(path)
    assert (lite.crop, lite.class_names) == (0.875, NAMES)
    servable = load_litert(path.parent, "small", 1)
    signature = servable.signatures["serving_bytes"]
    found = dict(
        zip(
            signature.outputs,
            signature.run(np.array(encoded.numpy(), object)),
            strict=True,
        )
    )
    np.testing.assert_allclose(found["predictions"], expected, atol=0.02)


def test_the_squashed_image_would_give_other_answers(trained, photos):
    """Or the test above would hold whatever the geometry is."""
    folder, _, feed = trained
    model = keras.saving.load_model(folder / "last.keras", compile=False)
    squashed = data.make_feed(
        data.open_source(str(photos)),
        data.PLAIN,
        size=(16, 24),
        batch_size=8,
    )
    answers = [
        model.predict_on_batch(
            np.concatenate([x for x, _ in f.evaluation().as_numpy_iterator()])
        )
        for f in (feed, squashed)
    ]
    assert np.abs(answers[0] - answers[1]).max() > 0.01


def test_it_stays_with_the_model(tmp_path):
    preprocessing = Preprocessing(0.5, 10.0, 20.0, NAMES)
    model = with_preprocessing(small_model(), preprocessing)
    for name in ("a.keras", "b.keras"):
        model.save(tmp_path / name)
        model = keras.saving.load_model(tmp_path / name)
        assert preprocessing_of(model) == preprocessing
    # On top of its input, other classes are not called what these were.
    scores = keras.layers.Dense(2)(model.layers[-2].output)
    other = keras.Model(model.input, scores)
    assert preprocessing_of(other) == Preprocessing(0.5, 10.0, 20.0)
    assert preprocessing_of(small_model()) == Preprocessing()


def test_a_model_that_scales_takes_pixels_as_they_are():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    assert preprocessing_of(model) == Preprocessing(mean=0.0, std=1.0)


def test_a_later_version_may_tell_more():
    config = json.loads(json.dumps(Preprocessing(0.5).get_config()))
    assert Preprocessing.from_config({**config, "gamma": 2}).crop == 0.5


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"crop": 0.0}, "`crop` must be"), ({"std": 0.0}, "`std` must be")],
)
def test_what_cannot_be_is_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        Preprocessing(**arguments)


def test_with_more_than_one_input_is_refused():
    inputs = [keras.Input((8,)), keras.Input((8,))]
    model = keras.Model(inputs, keras.layers.Add()(inputs))
    with pytest.raises(ValueError, match="`model` must have one input"):
        with_preprocessing(model, Preprocessing())
