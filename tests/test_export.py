"""Export for TF Serving and LiteRT: the same answers as the model's own."""

import functools
import io
import math
import pathlib
import tarfile

import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet import preprocess_input
from keras_muffnet.data import load_images
from keras_muffnet.export import decode_images
from keras_muffnet.export import export_litert
from keras_muffnet.export import export_saved_model
from keras_muffnet.export import inference
from keras_muffnet.export import publish_litert
from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert.model import Operation
from keras_muffnet.litert.model import median_latencies
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.loader import load as load_servable
from tests.conftest import ROOT

STAGES = [StageSpec("geometric", 3, 8), StageSpec("none", 2, 8)]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return MuffNet(input_shape=(16, 16, 3), stages=STAGES, classes=4)


@pytest.fixture(scope="module")
def small_model():
    """What takes no time to export, for what does not hang on the network."""
    keras.utils.set_random_seed(0)
    flat = keras.layers.Flatten()
    end = keras.layers.Dense(4, "softmax")
    return keras.Sequential([keras.Input((8, 8, 3)), flat, end])


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, 16, 16, 3)).astype("uint8")


@pytest.fixture(scope="module")
def signatures(model, tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "muffnet"
    assert export_saved_model(model, base) == base / "1"
    loaded = tf.saved_model.load(base / "1")
    # The signatures do not keep what they came from alive.
    return loaded, loaded.signatures


def test_float_signature(model, pixels, signatures):
    images = preprocess_input(pixels)
    serve = signatures[1]["serving_default"]
    got = serve(images=tf.constant(images))["predictions"].numpy()
    np.testing.assert_allclose(
        got, model.predict(images, verbose=0), rtol=1e-5, atol=1e-6
    )


PHOTOS = pathlib.Path(sklearn.datasets.__file__).parent / "images"
SAMPLES = ROOT.parent / "shared" / "data" / "imagenet_samples.tar.xz"


@functools.lru_cache(maxsize=4)
def load(path):
    return load_servable(path, "m", 1)


def serve(path, signature, **inputs):
    """What a session, such as TF Serving runs, answers."""
    servable = load(path)
    return servable.run(servable.signature(signature), inputs)


def strings(*encoded):
    return np.array(encoded, dtype=object)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels_by_keras(encoded, size):
    """Decoded, resized and rounded, without a function of the package."""
    if encoded.startswith(b"\xff\xd8"):
        image = tf.io.decode_jpeg(
            encoded, channels=3, dct_method="INTEGER_ACCURATE"
        )
    else:
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image = keras.ops.image.resize(
        image, size, interpolation="bilinear", antialias=True
    )
    return np.rint(keras.ops.convert_to_numpy(image))


@pytest.fixture(scope="module")
def photos():
    return [
        (PHOTOS / name).read_bytes() for name in ("china.jpg", "flower.jpg")
    ]


@pytest.fixture(scope="module")
def photo_model():
    """With logits and statistics that tell photos apart."""
    keras.utils.set_random_seed(0)
    model = MuffNet(
        input_shape=(64, 80, 3),
        stages=STAGES,
        classes=7,
        classifier_activation=None,
    )
    for weight in model.weights:
        if weight.path.endswith("predictions/kernel"):
            weight.assign(weight * 30)
    return model


@pytest.fixture(scope="module")
def photo_export(photo_model, tmp_path_factory):
    labels = [f"class {i}" for i in range(6)] + ["größte"]
    base = tmp_path_factory.mktemp("photos") / "muffnet"
    return export_saved_model(photo_model, base, labels=labels, top_k=3), labels


def check_photos(model, path, encoded):
    pixels = np.stack([pixels_by_keras(e, (64, 80)) for e in encoded])
    expected = model.predict(preprocess_input(pixels), verbose=0)
    assert np.ptp(expected, axis=0).max() > 1e-1, "all photos look alike"
    got = serve(path, "serving_bytes", image_bytes=strings(*encoded))
    np.testing.assert_allclose(
        got["predictions"], expected, rtol=1e-5, atol=1e-5
    )


def test_photos_are_answered_as_keras_answers(
    photo_model, photo_export, photos
):
    check_photos(photo_model, photo_export[0], photos)


@pytest.mark.skipif(not SAMPLES.exists(), reason=f"{SAMPLES} is not there")
def test_imagenet_photos_are_answered_as_keras_answers(
    photo_model, photo_export
):
    encoded = []
    with tarfile.open(SAMPLES, "r|xz") as archive:
        for member in archive:
            if member.isfile() and len(encoded) < 12:
                encoded.append(archive.extractfile(member).read())
            if len(encoded) == 12:
                break
    check_photos(photo_model, photo_export[0], encoded)


def test_pixels_are_those_that_load_images_gives(photos, tmp_path):
    # The model answers with what it is given.
    x = keras.Input((61, 83, 3))
    model = keras.Model(x, keras.layers.Flatten()(x))
    path = export_saved_model(model, tmp_path / "m")
    for split in ("train", "test"):
        (tmp_path / "data" / split / "a").mkdir(parents=True)
        for number, photo in enumerate(photos):
            file = tmp_path / "data" / split / "a" / f"{number}.jpg"
            file.write_bytes(photo)
    images = load_images(tmp_path / "data", "test", (61, 83)).images
    got = serve(path, "serving_bytes", image_bytes=strings(*photos))
    np.testing.assert_array_equal(
        got["predictions"].reshape(images.shape), preprocess_input(images)
    )


def picture(mode="RGB", size=(80, 60), turned=0):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype("uint8"))
    return image.resize(size).rotate(turned).convert(mode)


def palette(turned=0):
    return picture(turned=turned).quantize(16)


WHOLE = {
    "png": encode(picture(), "PNG"),
    "png gray": encode(picture("L"), "PNG"),
    "png palette": encode(palette(), "PNG"),
    "png transparent": encode(picture("RGBA"), "PNG"),
    "gif": encode(palette(), "GIF"),
    "gif animated": encode(
        palette(), "GIF", save_all=True, append_images=[palette(180)]
    ),
    "bmp": encode(picture(), "BMP"),
    "bmp 32 bits": encode(picture("RGBA"), "BMP"),
    "webp": encode(picture(), "WEBP"),
    "webp lossless": encode(picture(), "WEBP", lossless=True),
    # With an extended header.
    "webp profile": encode(picture(), "WEBP", icc_profile=bytes(200)),
    "jpeg": encode(picture(), "JPEG"),
    "jpeg progressive": encode(picture(), "JPEG", progressive=True),
    "jpeg gray": encode(picture("L"), "JPEG"),
}
# TensorFlow before 2.20 reads no WebP in a graph.
READABLE = [
    kind
    for kind in WHOLE
    if hasattr(tf.io, "decode_webp") or not kind.startswith("webp")
]


@pytest.mark.parametrize("kind", READABLE)
def test_formats(kind):
    [got] = decode_images([WHOLE[kind]], 60, 80).numpy()
    image = Image.open(io.BytesIO(WHOLE[kind])).convert("RGB")
    # Decoders of JPEG may round otherwise.
    most = 6 if kind.startswith("jpeg") else 0
    assert np.abs(got - np.asarray(image, np.float32)).max() <= most
    [gray] = decode_images([WHOLE[kind]], 60, 80, channels=1).numpy()
    weights = [0.299, 0.587, 0.114]
    assert np.abs(gray[..., 0] - got @ weights).max() <= 1


def test_every_format_is_served(photo_export, photo_model):
    path, _ = photo_export
    encoded = [WHOLE[kind] for kind in READABLE]
    got = serve(path, "serving_bytes", image_bytes=strings(*encoded))
    pixels = [pixels_by_keras(e, (64, 80)) for e in encoded]
    np.testing.assert_allclose(
        got["predictions"],
        photo_model.predict(preprocess_input(np.stack(pixels)), verbose=0),
        rtol=1e-5,
        atol=1e-5,
    )


def test_grayscale_models_take_bytes(tmp_path):
    x = keras.Input((60, 80, 1))
    model = keras.Model(x, keras.layers.Flatten()(x))
    path = export_saved_model(model, tmp_path / "m")
    encoded = strings(WHOLE["png"], WHOLE["gif"], WHOLE["bmp"])
    got = serve(path, "serving_bytes", image_bytes=encoded)["predictions"]
    expected = decode_images(list(encoded), 60, 80, channels=1)
    np.testing.assert_array_equal(
        got.reshape(3, 60, 80, 1), preprocess_input(expected)
    )


def test_no_images_get_no_answers(small_model, tmp_path):
    path = export_saved_model(small_model, tmp_path / "m", labels=list("abcd"))
    got = serve(path, "serving_bytes", image_bytes=strings())
    assert {name: value.shape for name, value in got.items()} == dict.fromkeys(
        ("classes", "predictions", "scores"), (0, 4)
    )


def gif_frame(width, height):
    """A GIF whose header tells of one pixel and whose frame of many."""
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0" + size + b"\0\2\1\x44\0;"


def png_header(width, height):
    size = width.to_bytes(4) + height.to_bytes(4)
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + size + b"\x08\2\0\0\0"


def webp_header(kind, size):
    return b"RIFF\0\0\0\0WEBPVP8" + kind + bytes(4) + size


DAMAGED = "damaged or not whole"
BAD = {
    "nothing": (b"", "must be a JPEG, PNG, GIF, BMP or WebP image"),
    "text": (b"no image", "must be a JPEG, PNG, GIF, BMP or WebP image"),
    "tiff": (encode(picture(), "TIFF"), "must be a JPEG, PNG"),
    "sound": (b"RIFF\0\0\0\0WAVEfmt ", "must be a JPEG, PNG"),
    "animated webp": (
        encode(picture(), "WEBP", save_all=True, append_images=[picture("L")]),
        "must not be an animated WebP",
    ),
    "bmp of a palette": (encode(palette(), "BMP"), "24 or 32 bits.*one of 8"),
    **{
        f"half a {kind}": (WHOLE[kind][: len(WHOLE[kind]) // 2], DAMAGED)
        for kind in ("png", "gif", "bmp", "webp", "jpeg", "jpeg progressive")
    },
    **{
        f"start of a {kind}": (WHOLE[kind][:11], ".")
        for kind in ("png", "gif", "bmp", "webp", "jpeg")
    },
    "large png": (png_header(50_000, 40_000), "Received one of 50000x40000"),
    "very large png": (
        png_header(2**32 - 1, 2**31),
        "Received one of 4294967295x2147483648",
    ),
    "large gif": (gif_frame(50_000, 40_000), "Received one of 50000x40000"),
    "large webp": (
        webp_header(b" ", bytes(6) + b"\xff\x3f\xfe\x3f"),
        "Received one of 16383x16382",
    ),
    "large lossless webp": (
        webp_header(b"L", b"\x2f\xff\xbf\xff\x0f"),
        "Received one of 16384x16383",
    ),
    "large extended webp": (
        webp_header(b"X", bytes(4) + b"\xff\xff\0\xfe\xff\0"),
        "Received one of 65536x65535",
    ),
    "large bmp": (
        WHOLE["bmp"][:18]
        + (50_000).to_bytes(4, "little")
        + (-40_000).to_bytes(4, "little", signed=True)
        + WHOLE["bmp"][26:],
        "Received one of 50000x40000",
    ),
    "large jpeg": (
        WHOLE["jpeg"].replace(b"\0\x3c\0\x50\3", b"\xc0\x3c\xc0\x50\3"),
        "Received one of 49232x49212",
    ),
}


@pytest.fixture(scope="module")
def photo_servable(photo_export):
    loaded = tf.saved_model.load(photo_export[0])
    return load(photo_export[0]), loaded.signatures["serving_bytes"], loaded


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_named(photo_servable, kind):
    bad, text = BAD[kind]
    servable, signature, _ = photo_servable
    batch = [WHOLE["png"], WHOLE["gif"], bad, WHOLE["jpeg"], b"bad too"]
    text = rf"image_bytes\[2\] .*{text}"
    with pytest.raises(ServingError, match=text) as caught:
        servable.run(
            servable.signature("serving_bytes"),
            {"image_bytes": strings(*batch)},
        )
    assert caught.value.code == Code.INVALID_ARGUMENT
    with pytest.raises(tf.errors.InvalidArgumentError, match=text):
        signature(image_bytes=tf.constant(batch))


@pytest.mark.parametrize("kind", READABLE)
def test_pixel_limit(kind):
    assert decode_images([WHOLE[kind]], 8, 8, max_pixels=80 * 60).shape[0] == 1
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"at most 4799 pixels.*80x60"
    ):
        decode_images([WHOLE[kind]], 8, 8, max_pixels=80 * 60 - 1)


def test_pixel_limit_of_an_export(small_model, tmp_path):
    path = export_saved_model(small_model, tmp_path / "m", max_pixels=4799)
    with pytest.raises(ServingError, match=r"image_bytes\[0\] must have"):
        serve(path, "serving_bytes", image_bytes=strings(WHOLE["png"]))


def test_weights_are_written_once(small_model, tmp_path):
    path = export_saved_model(small_model, tmp_path / "m", fold=False)
    written = tf.train.list_variables(str(path / "variables" / "variables"))
    values = sum(math.prod(shape) for name, shape in written if shape)
    assert values == small_model.count_params()


def constants(path):
    """How many numbers of a kernel or a bias a SavedModel's graph holds."""
    saved = saved_model_pb2.SavedModel.FromString(
        (path / "saved_model.pb").read_bytes()
    )
    (meta_graph,) = saved.meta_graphs
    graph = meta_graph.graph_def
    functions = [function.node_def for function in graph.library.function]
    shapes = [
        [dim.size for dim in node.attr["value"].tensor.tensor_shape.dim]
        for nodes in (graph.node, *functions)
        for node in nodes
        if node.op == "Const"
        and node.attr["dtype"].type == tf.float32.as_datatype_enum
    ]
    return sum(math.prod(shape) for shape in shapes if shape)


@pytest.mark.parametrize("name", ["small_model", "model"])
def test_folded_weights_are_written_once(name, request, tmp_path):
    model = request.getfixturevalue(name)
    path = export_saved_model(model, tmp_path / "m")
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    # Of each normalization's four vectors a bias is left.
    gone = sum(3 * layer.gamma.shape[0] for layer in norms)
    unfolded = export_saved_model(model, tmp_path / "m", fold=False)
    added = constants(path) - constants(unfolded)
    assert added == model.count_params() - gone
    card = (path / "README.md").read_text("utf-8")
    assert f"| graph | {len(norms)} normalizations folded" in card


class OwnModel(keras.Model):
    """What a graph of layers does not tell."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training, mask)


@pytest.mark.parametrize(
    ("limit", "text"),
    [(2**30, "must be a functional"), (10, "3,088 bytes, are more than")],
)
def test_what_cannot_be_folded_is_exported_as_it_is(
    small_model, tmp_path, monkeypatch, limit, text
):
    monkeypatch.setattr(inference, "_MOST_BYTES", limit)
    model = small_model
    if limit > 10:
        x = keras.Input((8, 8, 3))
        model = OwnModel(x, small_model(x))
    with pytest.warns(UserWarning, match=f"as they are, not folded.*{text}"):
        path = export_saved_model(model, tmp_path / "m", preprocess=abs)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    images = images.astype("float32")
    np.testing.assert_allclose(
        serve(path, "serving_default", images=images)["predictions"],
        model(images),
        rtol=1e-5,
    )
    card = (path / "README.md").read_text("utf-8")
    assert "which could not be folded" in card


def test_frames_behind_the_first_are_not_read():
    # They could be thousands, of many pixels each.
    still, moving = WHOLE["gif"], WHOLE["gif animated"]
    second = moving.rindex(b",", 0, moving.rindex(b"!\xf9") + 12)
    broken = moving[:second] + b"," + b"\xff" * 40
    assert len(moving) > second > len(still) // 2
    np.testing.assert_array_equal(
        decode_images([broken], 60, 80), decode_images([still], 60, 80)
    )


def test_best_classes_are_named(photo_export, photos):
    path, labels = photo_export
    got = serve(path, "serving_bytes", image_bytes=strings(*photos))
    logits = got["predictions"]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = exponentials / exponentials.sum(axis=1, keepdims=True)
    best = np.argsort(-scores, axis=1)[:, :3]
    np.testing.assert_allclose(
        got["scores"], np.take_along_axis(scores, best, axis=1), rtol=1e-5
    )
    assert got["scores"].dtype == np.float32
    assert [[name.decode() for name in row] for row in got["classes"]] == [
        [labels[i] for i in row] for row in best
    ]
    # One bare output still, as clients of tensors know it.
    images = np.zeros((1, 64, 80, 3), np.float32)
    assert list(serve(path, "serving_default", images=images)) == [
        "predictions"
    ]


def test_names_come_from_the_asset(small_model, tmp_path):
    path = export_saved_model(small_model, tmp_path / "m", labels=list("abcd"))
    asset = path / "assets" / "labels.txt"
    assert asset.read_text() == "a\nb\nc\nd\n"
    asset.write_text("w\nx\ny\nz\n")
    got = serve(path, "serving_bytes", image_bytes=strings(WHOLE["png"]))
    # As many as there are, though fewer than the default.
    assert sorted(got["classes"][0]) == [b"w", b"x", b"y", b"z"]
    # Probabilities already: the model ends in softmax.
    np.testing.assert_array_equal(
        got["scores"][0], -np.sort(-got["predictions"][0])
    )


@pytest.mark.parametrize(
    ("end", "same"),
    [
        ([keras.layers.Dense(3, "sigmoid")], True),
        ([keras.layers.Dense(3), keras.layers.Softmax()], True),
        (
            [
                keras.layers.Dense(3, "softmax"),
                keras.layers.Activation("linear", dtype="float32"),
            ],
            True,
        ),
        ([keras.layers.Dense(3), keras.layers.Reshape((3,))], False),
    ],
    ids=["sigmoid", "Softmax", "passed on", "logits"],
)
def test_scores_are_probabilities(end, same, tmp_path):
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten(), *end]
    model = keras.Sequential(layers)
    path = export_saved_model(model, tmp_path / "m", labels=list("abc"))
    got = serve(path, "serving_bytes", image_bytes=strings(WHOLE["png"]))
    raw = -np.sort(-got["predictions"])
    if same:
        np.testing.assert_array_equal(got["scores"], raw)
    else:
        assert np.abs(got["scores"] - raw).max() > 1e-3
        assert got["scores"].sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_answers_float32(policy, photos, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential(
            [
                keras.Input((64, 80, 3)),
                keras.layers.Conv2D(8, 3, 2, activation="relu"),
                keras.layers.Flatten(),
                keras.layers.Dense(4),
            ]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.outputs[0].dtype == policy.removeprefix("mixed_")
    path = export_saved_model(model, tmp_path / "m", labels=list("abcd"))
    got = serve(path, "serving_bytes", image_bytes=strings(*photos))
    pixels = np.stack([pixels_by_keras(e, (64, 80)) for e in photos])
    images = preprocess_input(pixels).astype("float32")
    bare = serve(path, "serving_default", images=images)["predictions"]
    expected = np.asarray(model.predict(images, verbose=0), np.float32)
    for answer in (bare, got["predictions"]):
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected, rtol=0.02, atol=0.02)
    assert got["scores"].dtype == np.float32


def test_models_that_scale_pixels_get_them_as_they_are(tmp_path):
    x = keras.Input((60, 80, 3))
    scaled = keras.layers.Rescaling(1 / 255)(x)
    model = keras.Model(x, keras.layers.Flatten()(scaled))
    path = export_saved_model(model, tmp_path / "m")
    got = serve(path, "serving_bytes", image_bytes=strings(WHOLE["png"]))
    pixels = np.asarray(picture(), np.float32)
    np.testing.assert_allclose(
        got["predictions"].reshape(60, 80, 3), pixels / 255, rtol=1e-6
    )
    # And what another network wants.
    model = keras.Sequential([keras.Input((60, 80, 3)), keras.layers.Flatten()])
    path = export_saved_model(
        model, tmp_path / "m", preprocess=lambda pixels: 2 * pixels[..., ::-1]
    )
    got = serve(path, "serving_bytes", image_bytes=strings(WHOLE["png"]))
    np.testing.assert_array_equal(
        got["predictions"].reshape(60, 80, 3), 2 * pixels[..., ::-1]
    )


def test_card_and_configuration(photo_model, photo_export):
    path, _ = photo_export
    card = (path / "README.md").read_text("utf-8")
    for fact in (
        "# muffnet\n",
        f"| parameters | {photo_model.count_params():,}, ",
        "| input | 64x80x3 |",
        "| images | resized as a whole, pixels in [0, 255] scaled by "
        "(x - 128) / 128 |",
        "| classes | 7: class 0 to größte |",
        "`classes` with their `scores`",
        "/v1/models/muffnet:predict",
        f"keras {keras.__version__}",
    ):
        assert fact in card
    config = (path / "assets.extra" / "config.json").read_text()
    again = keras.models.model_from_json(config)
    assert [w.path for w in again.weights] == [
        w.path for w in photo_model.weights
    ]


def test_warm_up_requests_can_be_run(photo_export):
    apis = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    path, _ = photo_export
    file = path / "assets.extra" / "tf_serving_warmup_requests"
    records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
    logs = [apis.PredictionLog.FromString(record) for record in records]
    requests = [log.predict_log.request for log in logs]
    assert [r.model_spec.signature_name for r in requests] == [
        "serving_default",
        "serving_bytes",
    ]
    for request, batch in zip(requests, (1, 2), strict=True):
        inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
        answer = serve(path, request.model_spec.signature_name, **inputs)
        assert answer["predictions"].shape == (batch, 7)


def test_labels_that_cannot_be_honored(small_model, tmp_path):
    free = MuffNet(include_top=False, pooling="avg", stages=STAGES)
    with pytest.raises(ValueError, match=r"encoded images.*None, None"):
        export_saved_model(free, tmp_path / "m", labels=["a"])
    x = keras.Input((8, 8, 3))
    with pytest.raises(
        ValueError, match=r"not a classifier.*\(None, 8, 8, 3\)"
    ):
        export_saved_model(keras.Model(x, x + 1), tmp_path / "m", labels=["a"])
    flat = keras.layers.Flatten()(x)
    end = keras.layers.Dense(2, "relu", name="end")(flat)
    with pytest.raises(ValueError, match=r"softmax, sigmoid or none.*end"):
        export_saved_model(
            keras.Model(x, end), tmp_path / "m", labels=["a", "b"]
        )
    for labels, text in (
        (["a"], "`labels` must be 4.*Received: 1 labels"),
        (["a", "b", "c", "two\nlines"], "of one line each"),
        ("abcd", "a sequence of strings"),
    ):
        with pytest.raises(ValueError, match=text):
            export_saved_model(small_model, tmp_path / "m", labels=labels)
    with pytest.raises(ValueError, match="`top_k`"):
        export_saved_model(
            small_model, tmp_path / "m", labels=list("abcd"), top_k=0
        )
    assert not (tmp_path / "m").exists()


def test_an_interrupted_export_leaves_no_version(
    small_model, tmp_path, monkeypatch
):
    from keras_muffnet.export import saved_model

    def interrupt(folder, inputs):
        # Nothing that a server would take for a version, so far.
        [aside] = (tmp_path / "m").iterdir()
        assert aside.name.startswith(".") and aside in folder.parents
        assert (folder.parent / "saved_model.pb").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(saved_model, "write_warm_up", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_saved_model(small_model, tmp_path / "m")
    assert list((tmp_path / "m").iterdir()) == []


def test_litert_files_are_published(small_model, tmp_path):
    path = export_litert(small_model, tmp_path / "m.tflite")
    for version in ("1", "2"):
        folder = publish_litert(path, tmp_path / "base")
        assert folder == tmp_path / "base" / version
        assert (folder / "model.tflite").read_bytes() == path.read_bytes()
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"m\.tflite.*no model"):
        publish_litert(path, tmp_path / "base")
    assert len(list((tmp_path / "base").iterdir())) == 2


def test_versions_count_up_and_stay(small_model, tmp_path):
    base = tmp_path / "muffnet"
    (base / "7").mkdir(parents=True)
    (base / "notes").mkdir()
    assert export_saved_model(small_model, base) == base / "8"
    assert (base / "8" / "saved_model.pb").is_file()
    assert sorted(p.name for p in base.iterdir()) == ["7", "8", "notes"]


def test_open_size_has_the_float_signature_only(tmp_path):
    model = MuffNet(include_top=False, pooling="avg", stages=STAGES)
    path = export_saved_model(model, tmp_path / "features")
    loaded = tf.saved_model.load(path)
    assert "serving_bytes" not in loaded.signatures
    for batch, height, width in ((2, 40, 24), (3, 33, 57)):
        images = np.random.default_rng(0).normal(size=(batch, height, width, 3))
        images = images.astype("float32")
        got = serve(path, "serving_default", images=images)["predictions"]
        np.testing.assert_allclose(
            got, model.predict(images, verbose=0), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="static input size"):
        export_litert(model, tmp_path / "features.tflite")


def test_litert_answers_as_the_model(model, pixels, tmp_path):
    path = export_litert(model, tmp_path / "m.tflite")
    lite = LiteRTModel(path)
    assert lite.input_shape == (1, 16, 16, 3)
    assert lite.input_dtype == np.float32
    images = preprocess_input(pixels)
    np.testing.assert_allclose(
        lite.predict(images),
        model.predict(images, verbose=0),
        rtol=1e-4,
        atol=1e-6,
    )
    operations = lite.operations()
    assert all(set(op.dtypes) <= {"FLOAT32", "INT32"} for op in operations)
    ops = [op.name for op in operations]
    # One operation a convolution: the weights are frozen and BN is folded.
    convolutions = [n for n in (x.name for x in model.layers) if "conv" in n]
    found = ops.count("CONV_2D") + ops.count("DEPTHWISE_CONV_2D")
    assert found == len(convolutions)
    assert not {"VAR_HANDLE", "READ_VARIABLE", "SHAPE", "PACK"} & set(ops)
    [latency] = median_latencies([lite], rounds=3, warm_up=1)
    assert latency > 0
    with pytest.raises(ValueError, match=r"\(n, 16, 16, 3\).*\(2, 8, 8, 3\)"):
        lite.predict(np.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"n at least 1.*\(0, 16, 16, 3\)"):
        lite.predict(np.zeros((0, 16, 16, 3)))


def test_four_channels_have_the_float_signature_only(tmp_path):
    x = keras.Input((16, 16, 4))
    model = keras.Model(x, keras.layers.Conv2D(2, 3)(x))
    path = export_saved_model(model, tmp_path / "m")
    assert "serving_bytes" not in tf.saved_model.load(path).signatures
    lite = LiteRTModel(export_litert(model, tmp_path / "m.tflite"))
    assert lite.input_shape == (1, 16, 16, 4)


def test_a_file_with_variables_is_not_written(
    small_model, tmp_path, monkeypatch
):
    from keras_muffnet.litert import converter

    operations = [Operation("CONV_2D", ()), Operation("READ_VARIABLE", ())]
    monkeypatch.setattr(converter, "read_operations", lambda _: operations)
    with pytest.raises(RuntimeError, match=r"constants.*: READ_VARIABLE$"):
        export_litert(small_model, tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()


def test_what_litert_has_no_operation_for_is_named(tmp_path):
    x = keras.Input((8, 8, 3))
    y = keras.layers.Conv2DTranspose(2, 3, dilation_rate=2)(x)
    path = tmp_path / "m.tflite"
    with pytest.raises(RuntimeError, match="no operation for Conv2D") as info:
        export_litert(keras.Model(x, y), path)
    assert str(info.value).endswith("for Conv2DBackpropInput")
    assert not path.exists()


def test_litert_models_of_several_inputs(tmp_path):
    class Sum(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 2))] * 2)
        def __call__(self, a, b):
            return a + 2 * b

    module = Sum()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.__call__.get_concrete_function()], module
    )
    path = tmp_path / "sum.tflite"
    path.write_bytes(converter.convert())
    model = LiteRTModel(path)
    a = np.array([[1, 2], [3, 4]], "float32")
    np.testing.assert_array_equal(model.predict([a, a + 1]), 3 * a + 2)
    with pytest.raises(ValueError, match="2"):
        model.predict(a)


def test_models_that_cannot_be_exported(tmp_path, monkeypatch):
    x = keras.Input((4,))
    with pytest.raises(ValueError, match=r"channels-last images.*4"):
        export_saved_model(keras.Model(x, x + 1), tmp_path / "m")
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="one input and one output"):
        export_saved_model(keras.Model([a, b], a + b), tmp_path / "m")

    class Opaque(keras.Model):
        def call(self, x):
            return x

    opaque = Opaque()
    opaque(np.zeros((1, 8, 8, 3)))
    for model in ("model.keras", opaque):
        with pytest.raises(ValueError, match="`model` must be a functional"):
            export_saved_model(model, tmp_path / "m")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax"):
        export_saved_model(keras.Model(x, x + 1), tmp_path / "m")
    assert not (tmp_path / "m").exists()
