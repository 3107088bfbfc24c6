"""What someone who knows keras.applications expects of MuffNet."""

import keras
import numpy as np
import pytest

import keras_muffnet
from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet import decode_predictions
from keras_muffnet import preprocess_input

TINY = [StageSpec("average", 2, 4), StageSpec("none", 2, 6)]


def tiny(**arguments):
    return MuffNet(**{"input_shape": (8, 8, 3), "stages": TINY, **arguments})


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def weights_differ(a, b):
    return any(
        not np.array_equal(x, y)
        for x, y in zip(a.get_weights(), b.get_weights(), strict=True)
    )


def assert_same_by_name(model, source):
    compared = 0
    for layer in model.layers:
        if layer.weights:
            others = source.get_layer(layer.name).get_weights()
            for x, y in zip(layer.get_weights(), others, strict=True):
                np.testing.assert_array_equal(x, y)
                compared += 1
    assert compared > 40


def test_defaults():
    model = MuffNet()
    assert model.input_shape == (None, 224, 224, 3)
    assert model.output_shape == (None, 1000)
    assert model.name == "muffnet_1"
    assert model.layers[-1].name == "predictions"
    assert model.layers[-1].activation is keras.activations.softmax


def test_without_top_any_size_and_any_channels():
    model = MuffNet(include_top=False, alpha=0.1)
    assert model.input_shape == (None, None, None, 3)
    assert model.output_shape == (None, None, None, 1024)
    for channels in (1, 4):
        model = MuffNet(
            include_top=False, alpha=0.1, input_shape=(123, 123, channels)
        )
        assert model.output_shape == (None, 4, 4, 1024)
        features = model.predict(
            random_images(1, 123, 123, channels), verbose=0
        )
        assert features.shape == (1, 4, 4, 1024)


def test_feature_levels_are_named():
    model = MuffNet(include_top=False, input_shape=(224, 224, 3), alpha=0.5)
    levels = {
        2: ("stem_relu", 24),
        4: ("stem_pool", 24),
        8: ("stage1_output", 40),
        16: ("stage2_output", 56),
        32: ("stage3_output", 140),
    }
    for stride, (name, channels) in levels.items():
        size = 224 // stride
        shape = model.get_layer(name).output.shape
        assert shape == (None, size, size, channels)


@pytest.mark.parametrize(
    ("pooling", "reduce"), [("avg", "mean"), ("max", "max")]
)
def test_pooling(pooling, reduce):
    plain = tiny(include_top=False)
    pooled = tiny(include_top=False, pooling=pooling)
    pooled.set_weights(plain.get_weights())
    images = random_images(2, 8, 8, 3)
    expected = getattr(plain.predict(images, verbose=0), reduce)(axis=(1, 2))
    assert pooled.output_shape == (None, 1024)
    np.testing.assert_allclose(
        pooled.predict(images, verbose=0), expected, rtol=1e-5, atol=1e-6
    )


def test_logits_and_softmax():
    logits = tiny(classes=5, classifier_activation=None)
    scores = tiny(classes=5)
    scores.set_weights(logits.get_weights())
    images = random_images(3, 8, 8, 3)
    raw = logits.predict(images, verbose=0)
    expected = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        scores.predict(images, verbose=0), expected, rtol=1e-5
    )


def test_intermediate_input_tensor_keeps_what_is_upstream():
    image = keras.Input((16, 16, 3), name="image")
    x = keras.layers.AveragePooling2D(2, name="shrink")(image)
    model = MuffNet(input_tensor=x, stages=TINY, classes=3)
    assert model.input_shape == (None, 16, 16, 3)
    assert model.get_layer("shrink")
    bare = tiny(classes=3)
    bare.set_weights(model.get_weights())
    images = random_images(2, 16, 16, 3)
    small = images.reshape(2, 8, 2, 8, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(
        model.predict(images, verbose=0),
        bare.predict(small, verbose=0),
        rtol=1e-5,
    )


def test_input_tensor_of_two_sources():
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    x = keras.layers.Add()([a, b])
    model = MuffNet(input_tensor=x, stages=TINY, classes=3)
    assert len(model.inputs) == 2


@pytest.mark.parametrize(
    ("size", "first_stage"), [(32, 32), (55, 55), (56, 7), (64, 8), (224, 28)]
)
def test_auto_stem(size, first_stage):
    model = MuffNet(input_shape=(size, size, 3), alpha=0.1, include_top=False)
    shape = model.get_layer("stage1_output").output.shape
    assert shape[1:3] == (first_stage, first_stage)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ({"alpha": -1}, ["`alpha` must be a positive number", "alpha=-1"]),
        ({"alpha": "1"}, ["`alpha`", "'1'"]),
        ({"pooling": "bogus", "include_top": False}, ["`pooling`", "'bogus'"]),
        ({"include_top": "no"}, ["`include_top` must be True or", "'no'"]),
        ({"include_top": 0}, ["`include_top`", "include_top=0"]),
        ({"pooling": "avg"}, ["`pooling`", "include_top", "'avg'"]),
        ({"weights": "imagenet"}, ["`weights`", "cifar10", "'imagenet'"]),
        ({"weights": ["a"]}, ["`weights`", "['a']"]),
        ({"weights": __file__}, ["`weights`", ".weights.h5", __file__]),
        ({"classes": 0}, ["`classes`", "classes=0"]),
        ({"classes": 2.5}, ["`classes`", "classes=2.5"]),
        ({"input_shape": (224, 224)}, ["`input_shape`", "(224, 224)"]),
        ({"input_shape": 224}, ["`input_shape`", "input_shape=224"]),
        ({"input_shape": (0, 8, 3)}, ["`input_shape`", "(0, 8, 3)"]),
        ({"input_shape": (True, 8, 3)}, ["`input_shape`", "True"]),
        (
            {"classifier_activation": "bogus"},
            ["`classifier_activation`", "'bogus'"],
        ),
        ({"input_shape": (8, 8, None)}, ["`input_shape`", "channels"]),
        ({"input_shape": (None, None, 3)}, ["`input_shape`", "static"]),
        ({"input_tensor": np.zeros(3)}, ["`input_tensor`", "Keras tensor"]),
        ({"stages": "average+none+none"}, ["`stages`", "stages_from_notation"]),
        ({"stages": []}, ["`stages`", "[]"]),
        ({"stages": [("none", 4, 8)]}, ["`stages`", "StageSpec"]),
        ({"stages": TINY, "alpha": 0.5}, ["`alpha`", "`stages`", "0.5"]),
        ({"stem": "bogus"}, ["`stem`", "cifar", "'bogus'"]),
        ({"stem": None}, ["`stem`", "None"]),
    ],
)
def test_errors_name_the_argument(arguments, fragments):
    with pytest.raises(ValueError) as error:
        MuffNet(**arguments)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_input_tensor_must_agree_with_input_shape():
    x = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match=r"`input_shape` must agree"):
        MuffNet(input_tensor=x, input_shape=(9, 8, 3), stages=TINY)
    model = MuffNet(
        input_tensor=x, input_shape=(None, 8, 3), stages=TINY, classes=2
    )
    assert model.input_shape == (None, 8, 8, 3)


def test_vectors_are_no_images():
    with pytest.raises(ValueError, match=r"`input_tensor` must be a batch of"):
        MuffNet(input_tensor=keras.Input((8,)))


@pytest.mark.parametrize("suffix", ["w.weights.h5", "w.keras"])
def test_weights_from_a_file(tmp_path, suffix):
    source = tiny(classes=4)
    path = tmp_path / suffix
    (source.save if suffix == "w.keras" else source.save_weights)(path)
    loaded = tiny(classes=4, weights=path)
    images = random_images(2, 8, 8, 3)
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), source.predict(images, verbose=0)
    )


def test_features_load_from_a_classifier_s_weights(tmp_path):
    source = tiny(classes=4)
    source.save_weights(tmp_path / "w.weights.h5")
    loaded = tiny(include_top=False, weights=tmp_path / "w.weights.h5")
    assert_same_by_name(loaded, source)


def test_damaged_weights_are_an_error(tmp_path):
    (tmp_path / "w.weights.h5").write_bytes(b"no weights")
    with pytest.raises(OSError, match="file signature"):
        tiny(weights=tmp_path / "w.weights.h5")


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_weights_load_by_name(tmp_path):
    source = tiny(classes=4)
    source.save(tmp_path / "w.h5")
    target = tiny(include_top=False, pooling="avg")
    assert weights_differ(target, tiny(include_top=False, pooling="avg"))
    target.load_weights(tmp_path / "w.h5", by_name=True)
    assert_same_by_name(target, source)


def test_layer_names_are_the_same_in_another_process(run_forked):
    code = (
        "import keras, keras_muffnet;"
        "keras.layers.ReLU(); keras_muffnet.MuffNet(alpha=0.5);"
        "m = keras_muffnet.MuffNet(alpha=0.5, include_top=False);"
        "print(*[l.name for l in m.layers[1:]], *[w.path for w in m.weights])"
    )
    here = MuffNet(alpha=0.5, include_top=False)
    names = [layer.name for layer in here.layers[1:]]
    paths = [weight.path for weight in here.weights]
    assert run_forked("-c", code).split() == names + paths
    assert len(set(names)) == len(names)


def test_saved_model_answers_the_same(tmp_path):
    model = tiny(classes=4)
    path = tmp_path / "m.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    images = random_images(3, 8, 8, 3)
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )
    assert [layer.name for layer in loaded.layers] == [
        layer.name for layer in model.layers
    ]
    assert not weights_differ(model, loaded)


def test_model_is_a_plain_functional_model():
    model = tiny(classes=4)
    assert type(model) is type(keras.Model(model.input, model.output))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    images = random_images(3, 8, 8, 3)
    np.testing.assert_array_equal(
        clone.predict(images, verbose=0), model.predict(images, verbose=0)
    )


def test_preprocess_input_of_arrays_and_tensors():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    scaled = preprocess_input(pixels)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (-1.0, 127 / 128)
    assert pixels[0, 0, 1, 0] == 1  # left as it was
    np.testing.assert_array_equal(np.round(scaled * 128) + 128, pixels)
    tensor = preprocess_input(
        keras.ops.convert_to_tensor(pixels), data_format="channels_last"
    )
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(tensor), scaled)
    with pytest.raises(ValueError, match=r"`data_format`.*'bogus'"):
        preprocess_input(pixels, data_format="bogus")


def test_decode_predictions_names_classes(monkeypatch):
    from keras.applications import imagenet_utils

    calls = []

    def without_download(preds, top):
        calls.append((preds, top))
        return [[("n0", "thing", 1.0)]]

    monkeypatch.setattr(imagenet_utils, "decode_predictions", without_download)
    scores = np.eye(1, 1000)
    assert decode_predictions(scores, top=1) == [[("n0", "thing", 1.0)]]
    np.testing.assert_array_equal(calls[0][0], scores)
    assert calls[0][1] == 1


def test_decode_predictions_of_published_weights():
    scores = np.array([[0, 1, 2, 9, 3, 0, 0, 0, 0, 8]], "float32") / 23
    ((first, second),) = decode_predictions(scores, 2, weights="cifar10")
    assert first == ("cat", "cat", scores[0, 3])
    assert second == ("truck", "truck", scores[0, 9])
    # As Keras does, all classes where there are fewer than `top`.
    tensor = keras.ops.convert_to_tensor(scores)
    (every,) = decode_predictions(tensor, 20, weights="cifar10")
    assert len(every) == 10


@pytest.mark.parametrize(
    ("shape", "arguments", "fragments"),
    [
        ((2, 10), {}, ["`preds` must be of shape (batch, 1000)", "(2, 10)"]),
        ((2, 9), {"weights": "cifar10"}, ["(batch, 10)", "(2, 9)"]),
        ((10,), {"weights": "cifar10"}, ["(batch, 10)", "(10,)"]),
        ((2, 10), {"weights": "x"}, ["`weights`", "tiny_imagenet", "'x'"]),
        ((2, 10), {"weights": ["cifar10"]}, ["`weights`", "['cifar10']"]),
        ((2, 1000), {"top": 0}, ["`top` must be a positive integer"]),
    ],
)
def test_errors_of_decode_predictions(shape, arguments, fragments):
    with pytest.raises(ValueError) as error:
        decode_predictions(np.zeros(shape), **arguments)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_public_names():
    for name in keras_muffnet.__all__:
        assert getattr(keras_muffnet, name).__doc__
    assert set(keras_muffnet.__all__) <= set(dir(keras_muffnet))
    with pytest.raises(AttributeError, match="bogus"):
        _ = keras_muffnet.bogus


def test_transfer_learning_freezes_the_body():
    model = tiny(include_top=False, pooling="avg")
    model.trainable = False
    head = keras.layers.Dense(2)(model.output)
    classifier = keras.Model(model.input, head)
    classifier.compile("sgd", "mse")
    before = model.get_weights()
    classifier.fit(random_images(4, 8, 8, 3), np.zeros((4, 2)), verbose=0)
    assert len(classifier.trainable_weights) == 2
    for x, y in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
