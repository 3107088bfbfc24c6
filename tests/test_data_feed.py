import dataclasses
import io
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_muffnet.data import CIFAR
from keras_muffnet.data import PLAIN
from keras_muffnet.data import Augmentation
from keras_muffnet.data import Source
from keras_muffnet.data import load_digits
from keras_muffnet.data import make_feed
from keras_muffnet.data import open_source
from keras_muffnet.data import write_records
from keras_muffnet.data.augmentation import uniforms

BACKENDS = ["tf.data", "arrays"]
SIZE = (12, 16)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def random_pixels(seed, height, width, *channels):
    """Smooth noise, as photos are."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, *channels), "uint8")
    image = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
    return np.asarray(image)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """22 training and 5 test images of one size, of several formats."""
    root = tmp_path_factory.mktemp("set")
    for i in range(27):
        split = "train" if i < 22 else "test"
        kind = ("jpg", "png", "jpeg", "bmp")[i % 4]
        channels = () if i % 5 == 0 else (3,)
        if kind == "bmp":
            channels = (3,)
        path = root / split / "abc"[i % 3] / f"{i:02}.{kind}"
        save(path, random_pixels(i, *SIZE, *channels))
    deep = (random_pixels(99, *SIZE).astype("uint16") << 8) + 200
    save(root / "train/a/deep.png", deep)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of several sizes."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(20):
        shape = 30 + 7 * (i % 6), 80 - 5 * (i % 7)
        for split in ("train", "test"):
            path = root / split / "ab"[i % 2] / f"{i:02}.jpg"
            save(path, random_pixels(i, *shape, 3))
    return root


def feed_of(source, recipe=PLAIN, **options):
    options = {"size": SIZE, "batch_size": 4, "std": 1.0, "mean": 0.0} | options
    if not isinstance(source, Source):
        source = open_source(source)
    return make_feed(source, recipe, **options)


def arrays(batches):
    to_numpy = keras.ops.convert_to_numpy
    return [tuple(map(to_numpy, batch)) for batch in batches]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_both_feeds_give_the_same_pixels_in_the_same_order(folder):
    given = [
        (arrays(feed.epoch(0)), arrays(feed.evaluation()))
        for backend in BACKENDS
        for cache in (True, False)
        for feed in [feed_of(folder, backend=backend, cache=cache)]
    ]
    for train, test in given[1:]:
        assert_same(train, given[0][0])
        assert_same(test, given[0][1])
    train, test = given[0]
    assert [len(y) for _, y in train] == [4] * 5
    assert [len(y) for _, y in test] == [4, 1]
    assert train[0][0].shape == (4, *SIZE, 3)
    assert train[0][0].dtype == np.float32
    files = sorted((folder / "test").glob("*/*"))
    for x, file in zip(
        np.concatenate([x for x, _ in test]), files, strict=True
    ):
        np.testing.assert_array_equal(x, Image.open(file).convert("RGB"))
    labels = np.concatenate([y for _, y in test])
    assert labels.tolist() == ["abc".index(f.parent.name) for f in files]


def test_an_epoch_shows_each_image_once(folder):
    feed = feed_of(folder, batch_size=23)
    assert feed.train_size == 23 and feed.steps_per_epoch == 1
    assert feed.class_names == ("a", "b", "c") and feed.test_size == 5
    files = sorted((folder / "train").glob("*/*"))
    known = {}
    for file in files:
        image = Image.open(file)
        x = np.asarray(image)
        x = (x >> 8).astype("uint8") if x.dtype == np.uint16 else x
        x = np.repeat(x[..., None], 3, -1) if x.ndim == 2 else x
        known[x.astype("float32").tobytes()] = file
    orders = []
    for epoch in range(3):
        [(images, labels)] = arrays(feed.epoch(epoch))
        shown = [known[image.tobytes()] for image in images]
        assert sorted(shown) == files
        named = [feed.class_names[label] for label in labels]
        assert named == [file.parent.name for file in shown]
        orders.append(shown)
    assert orders[0] != orders[1] != orders[2]
    [(other, _)] = arrays(feed_of(folder, batch_size=23, seed=1).epoch(0))
    assert [known[image.tobytes()] for image in other] != orders[0]


EVERYTHING = Augmentation(
    pad=2,
    flip=True,
    color=0.4,
    rand_augment=(1, 0.3),
    erasing=0.5,
    mixup=0.2,
    cutmix=1.0,
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("recipe", "cache"),
    [
        (CIFAR, True),
        (CIFAR, False),
        (EVERYTHING, True),
        (Augmentation(area=(0.1, 1.0), flip=True, color=0.4), None),
    ],
)
def test_a_resumed_epoch_goes_on_as_it_would_have(
    folder, backend, recipe, cache
):
    options = {"backend": backend, "cache": cache, "one_hot": True}
    whole = arrays(feed_of(folder, recipe, **options).epoch(3))
    fresh = feed_of(folder, recipe, **options)
    assert len(fresh.epoch(3, 2)) == 3
    assert_same(arrays(fresh.epoch(3, 2)), whole[2:])
    other = arrays(fresh.epoch(2, 2))
    assert not np.array_equal(other[0][0], whole[2][0])


def test_feeds_augment_alike(folder):
    recipe = dataclasses.replace(EVERYTHING, rand_augment=None)
    first, second = (
        arrays(feed_of(folder, recipe, one_hot=True, backend=backend).epoch(0))
        for backend in BACKENDS
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one[0], other[0], atol=1e-3)
        np.testing.assert_allclose(one[1], other[1], atol=1e-6)


@pytest.mark.parametrize("recipe", ["crop", "center", "whole"])
def test_resized_images_differ_by_a_level_at_most(photos, recipe):
    recipe = {
        "crop": Augmentation(area=(0.08, 1.0)),
        "center": Augmentation(test_crop=0.875),
        "whole": PLAIN,
    }[recipe]
    first, second = (
        arrays(feed.epoch(0)) + arrays(feed.evaluation())
        for backend in BACKENDS
        for feed in [feed_of(photos, recipe, backend=backend)]
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[1], other[1])
        assert one[0].shape == other[0].shape
        assert abs(one[0] - other[0]).max() <= 1
        assert one[0].std() > 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_crops_by_area_show_what_they_should(tmp_path, backend):
    # Red tells the row, green the column, of 200 by 100.
    rows, columns = np.mgrid[0:200, 0:100]
    image = np.stack([rows, columns, 0 * rows], axis=-1).astype("uint8")
    for i in range(40):
        save(tmp_path / f"train/a/{i:02}.png", image)
    save(tmp_path / "test/a/1.png", image)
    feed = feed_of(
        tmp_path,
        Augmentation(area=(0.1, 0.4)),
        size=(32, 32),
        batch_size=40,
        backend=backend,
    )
    [(x, _)] = arrays(feed.epoch(0))
    tall = (x[:, -1, 0, 0] - x[:, 0, 0, 0]) * 32 / 31
    wide = (x[:, 0, -1, 1] - x[:, 0, 0, 1]) * 32 / 31
    areas, aspects = tall * wide / 20000, wide / tall
    assert 0.09 < areas.min() < 0.18 and 0.3 < areas.max() < 0.44
    assert 0.7 < aspects.min() < 0.9 and 1.1 < aspects.max() < 1.43
    assert np.std(x[:, 0, 0, 0]) > 20  # they lie all over the image


def test_the_center_is_that_of_section_5_1(tmp_path):
    rows, columns = np.mgrid[0:256, 0:384]
    image = np.stack([rows, columns // 2, 0 * rows], axis=-1).astype("uint8")
    for split in ("train", "test"):
        save(tmp_path / split / "a/1.png", image)
    for backend in BACKENDS:
        feed = feed_of(
            tmp_path,
            Augmentation(test_crop=0.875),
            size=(224, 224),
            batch_size=1,
            backend=backend,
        )
        [(x, _)] = arrays(feed.evaluation())
        np.testing.assert_array_equal(x[0], image[16:240, 80:304])


def test_seeds_of_large_epochs_and_positions_do_not_overflow():
    u = uniforms(2**62, 10**6, np.array([10**9]), 3)
    assert ((u >= 0) & (u < 1)).all()


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_are_the_rows_of_the_batch(folder, backend, cache):
    options = {"backend": backend, "cache": cache}
    whole = feed_of(folder, CIFAR, **options)
    parts = [
        feed_of(folder, CIFAR, shard=(i, 2), fill=True, **options)
        for i in range(2)
    ]
    assert_same(
        joined([part.epoch(1) for part in parts]), arrays(whole.epoch(1))
    )
    # The 5 test images, filled up to 8 by the first three.
    given = joined([part.evaluation() for part in parts])
    images, labels = (
        np.concatenate([batch[k] for batch in arrays(whole.evaluation())])
        for k in range(2)
    )
    filled = [*range(5), *range(3)]
    for k, expected in ((0, images[filled]), (1, labels[filled])):
        got = np.concatenate([batch[k] for batch in given])
        np.testing.assert_array_equal(got, expected)
    weights = np.concatenate([batch[2] for batch in given])
    # Their mean with anything over all rows is that over the images.
    np.testing.assert_allclose(weights, [8 / 5] * 5 + [0] * 3)


def joined(shards):
    return [
        tuple(np.concatenate(parts) for parts in zip(*rows, strict=True))
        for rows in zip(*map(arrays, shards), strict=True)
    ]


def test_shards_need_filled_batches(folder):
    with pytest.raises(ValueError, match="`fill` must be True where there"):
        feed_of(folder, shard=(0, 2))


@pytest.fixture
def spoilt(tmp_path):
    """A set with every kind of bad file, and a reason for each."""
    for i in range(9):
        save(tmp_path / f"train/a/{i}.png", random_pixels(i, *SIZE, 3))
        save(tmp_path / f"train/b/{i}.jpg", random_pixels(i, *SIZE, 3))
        save(tmp_path / f"test/a/{i}.jpg", random_pixels(i, *SIZE, 3))
    whole = (tmp_path / "train/b/1.jpg").read_bytes()
    (tmp_path / "train/b/cut.jpg").write_bytes(whole[: len(whole) // 2])
    whole = (tmp_path / "train/a/1.png").read_bytes()
    (tmp_path / "train/a/cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/a/empty.jpg").touch()
    (tmp_path / "train/b/html.png").write_text("<html>")
    (tmp_path / "train/b/film.mp4").write_text("film")
    float_pixels = Image.fromarray(np.zeros(SIZE, np.float32))
    float_pixels.save(tmp_path / "train/b/float.tif")
    return tmp_path


REASONS = {
    "a/cut.png": "",
    "a/empty.jpg": "",
    "b/cut.jpg": "",
    "b/film.mp4": "its name ends in none of .avif, .bmp",
    "b/float.tif": "its pixels are of the kind 'F'",
    "b/html.png": "it is not an image of a known format",
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cache", [True, False])
def test_bad_images_are_skipped_and_counted(spoilt, backend, cache):
    options = {"backend": backend, "cache": cache}
    feed = feed_of(spoilt, CIFAR, on_bad_image="skip", **options)
    assert feed.train_size == 18 and feed.test_size == 9
    skipped = dict(feed.skipped)
    assert list(skipped) == [str(spoilt / "train" / name) for name in REASONS]
    for name, reason in REASONS.items():
        found = skipped[str(spoilt / "train" / name)]
        assert found.startswith(reason) and found, (name, found)
    told = feed.report()
    assert "18 training and 9 test images; 6 bad ones skipped" in told
    assert repr(str(spoilt / "train/a/cut.png")) in told
    # The good ones are augmented as they are with the bad ones there.
    batches = arrays(feed.epoch(0))
    assert len(batches) == 4
    assert sum(len(y) for _, y in batches) == 16
    if not cache:
        kept = feed_of(spoilt, CIFAR, on_bad_image="skip", backend=backend)
        assert_same(batches, arrays(kept.epoch(0)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_images_are_named_at_once_if_kept_in_memory(spoilt, backend):
    with pytest.raises(
        ValueError, match=r"whole images.*6: .* and 1 more"
    ) as e:
        feed_of(spoilt, backend=backend)
    for name in list(REASONS)[:5]:
        assert repr(str(spoilt / "train" / name)) in str(e.value)
    assert "(its pixels are of the kind 'F')" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(REASONS))
def test_bad_images_are_named_in_the_epoch_if_streamed(spoilt, backend, name):
    for other in REASONS:
        if other != name:
            (spoilt / "train" / other).unlink()
    path = str(spoilt / "train" / name)
    # A file that is no image by its name is refused at once.
    with pytest.raises((ValueError, tf.errors.OpError)) as error:
        feed = feed_of(spoilt, backend=backend, cache=False, batch_size=19)
        arrays(feed.epoch(0))
    assert f"1: {path!r} ({REASONS[name]}" in str(error.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_last_images_of_an_evaluation_are_named(tmp_path, backend):
    for i in range(5):
        save(tmp_path / f"train/a/{i}.png", random_pixels(i, *SIZE, 3))
        save(tmp_path / f"test/a/{i}.png", random_pixels(i, *SIZE, 3))
    path = tmp_path / "test/a/4.png"
    path.write_bytes(b"no image")
    feed = feed_of(tmp_path, backend=backend, cache=False)
    with pytest.raises((ValueError, tf.errors.OpError), match=r"test/a/4\.png"):
        arrays(feed.evaluation())


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_out_of_range_are_named(folder, tmp_path, backend):
    source = open_source(folder)
    for split in ("train", "test"):
        write_records(source, tmp_path, split, shards=2)
    name = tmp_path / "test-00000-of-00002.tfrecord"
    assert feed_of(tmp_path, backend=backend).test_size == 5
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="label is 2, not of the 2 classes"):
        feed_of(tmp_path, backend=backend)
    feed = feed_of(tmp_path, backend=backend, on_bad_image="skip")
    skipped = dict(feed.skipped)
    found = sum(p.parent.name == "c" for p in folder.glob("*/*/*"))
    assert len(skipped) == found
    assert "label is 2" in skipped[f"{name}, record 2"]


def test_records_and_archives_train_as_their_folder_does(folder, tmp_path):
    source = open_source(folder)
    for split in ("train", "test"):
        write_records(source, tmp_path, split)
    expected = arrays(feed_of(source, CIFAR).epoch(0))
    for backend in BACKENDS:
        for cache in (True, False):
            options = {"backend": backend, "cache": cache}
            feed = feed_of(tmp_path, CIFAR, **options)
            assert_same(arrays(feed.epoch(0)), expected)


def test_bytes_at_the_end_of_a_record_are_kept(tmp_path):
    image = random_pixels(0, *SIZE, 3).copy()
    image[0] = 0  # what a BMP ends with
    for split in ("train", "test"):
        save(tmp_path / "in" / split / "a/1.bmp", image)
        write_records(open_source(tmp_path / "in"), tmp_path / "out", split)
    feed = feed_of(tmp_path / "out", batch_size=1, backend="tf.data")
    [(x, _)] = arrays(feed.evaluation())
    np.testing.assert_array_equal(x[0], image)


def test_a_split_without_a_good_image(tmp_path):
    for name in ("train/a/1.png", "test/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("no image")
    with pytest.raises(ValueError, match=r"a good image.*all 1 are bad"):
        feed_of(tmp_path, batch_size=1, on_bad_image="skip")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_feed_that_only_evaluates(spoilt, backend, monkeypatch):
    opened = []
    split = Source.split
    monkeypatch.setattr(
        Source, "split", lambda *a: opened.append(a[1]) or split(*a)
    )
    shutil.copy(spoilt / "train/a/cut.png", spoilt / "test/a/cut.png")
    options = {"on_bad_image": "skip", "backend": backend, "cache": False}
    feed = feed_of(
        spoilt, train_split=None, batch_size=40, test_split="test", **options
    )
    assert opened == ["test"]
    assert (feed.train_size, feed.test_size, feed.steps_per_epoch) == (0, 9, 0)
    assert feed.report().startswith("9 test images; 1 bad ones skipped: ")
    [(_, labels)] = arrays(feed.evaluation())
    assert len(labels) == 9
    assert feed.fingerprint() != feed_of(spoilt, **options).fingerprint()
    with pytest.raises(ValueError, match="`train_split` must be given"):
        feed.epoch(0)
    with pytest.raises(ValueError, match="`class_weight` must be None without"):
        feed_of(spoilt, train_split=None, class_weight="balanced")


def test_digits():
    feed = feed_of("digits", size=(8, 8), batch_size=100, one_hot=True)
    assert (feed.train_size, feed.test_size) == (1437, 360)
    _, (images, labels) = load_digits(8)
    given = arrays(feed.evaluation())
    np.testing.assert_array_equal(np.concatenate([x for x, _ in given]), images)
    one_hot = np.concatenate([y for _, y in given])
    assert one_hot.shape == (360, 10) and one_hot.dtype == np.float32
    np.testing.assert_array_equal(one_hot.argmax(axis=1), labels)


def test_digits_are_resized_as_by_tensorflow():
    from sklearn import datasets

    scans = datasets.load_digits().data
    pixels = scans.reshape(-1, 8, 8, 1) * (255 / 16)
    for size in (8, 12, 28, 32):
        (train, _), (test, _) = load_digits(size)
        expected = np.rint(tf.image.resize(pixels, (size, size)))
        expected = {x.repeat(3, -1).tobytes() for x in expected.astype("uint8")}
        ours = {x.tobytes() for x in [*train, *test]}
        assert ours == expected


def tiny_model():
    return keras.Sequential(
        [
            keras.Input((*SIZE, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_fits(folder, backend):
    feed = feed_of(folder, CIFAR, backend=backend, std=255.0)
    weights = []
    for start in (0, 2):
        keras.utils.set_random_seed(0)
        model = tiny_model()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
        history = model.fit(
            feed.epoch(0, start),
            shuffle=False,
            validation_data=feed.evaluation(),
            verbose=0,
        )
        assert np.isfinite(history.history["val_loss"][0])
        weights.append(model.get_weights())
        assert model.optimizer.iterations == 5 - start
    if backend == "arrays":
        with pytest.raises(Exception, match=r"in their order.*shuffle=False"):
            for _ in range(9):  # by chance it is not shuffled
                model.fit(feed.epoch(0), shuffle=True, verbose=0)


def test_training_needs_no_tensorflow(folder, run_forked):
    """Keras on JAX, fed by Pillow, sees what TensorFlow's users see."""
    pytest.importorskip("jax")
    code = f"""
import sys
sys.modules["tensorflow"] = None
import keras, numpy as np
from keras_muffnet import data
source = data.open_source({str(folder)!r})
feed = data.make_feed(source, data.CIFAR, size={SIZE}, batch_size=4,
    cache=False, backend="arrays")
model = keras.Sequential([keras.Input(({SIZE[0]}, {SIZE[1]}, 3)),
    keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
model.fit(feed.epoch(0), shuffle=False, verbose=0,
    validation_data=feed.evaluation())
x, y = feed.epoch(1)[0]
print(keras.backend.backend(), int(model.optimizer.iterations),
    np.asarray(y).tolist(), float(np.abs(np.asarray(x)).sum()))
"""
    printed = run_forked("-c", code, KERAS_BACKEND="jax").split()
    [(x, y), *_] = arrays(
        feed_of(folder, CIFAR, mean=128.0, std=128.0).epoch(1)
    )
    assert printed[:2] == ["jax", "5"]
    assert "".join(printed[2:-1]) == str(y.tolist()).replace(" ", "")
    assert float(printed[-1]) == pytest.approx(float(abs(x).sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 32}, "`size` must be a height and a width.*32"),
        ({"size": (0, 3)}, r"`size\[0\]` must be a positive integer"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"batch_size": 24}, "number of training images, 23.*batch_size=24"),
        ({"seed": -1}, "`seed` must be an integer, 0 or more.*seed=-1"),
        ({"on_bad_image": "drop"}, "'raise' or 'skip'.*'drop'"),
        ({"backend": "torch"}, "'tf.data', 'arrays' or None.*'torch'"),
        ({"shard": (2, 2)}, r"`shard` must be.*\(2, 2\)"),
        ({"shard": (0, 3)}, r"divide the batch size.*batch_size=4"),
        ({"recipe": Augmentation(mixup=1)}, "`one_hot` must be True.*mix"),
        ({"recipe": "cifar"}, "`augmentation` must be an Augm.*'cifar'"),
        ({"train_split": "all"}, "`split` must be.*'all'"),
    ],
)
def test_errors(folder, options, message):
    with pytest.raises(ValueError, match=message):
        feed_of(folder, **options)


def test_more_errors(folder):
    for recipe in (Augmentation(area=(0.1, 1.0)), Augmentation(test_crop=0.8)):
        with pytest.raises(ValueError, match="no area and no test_crop for"):
            feed_of("digits", recipe, size=(8, 8))
    with pytest.raises(
        ValueError, match=r"`source` must come from open_source"
    ):
        make_feed(str(folder), PLAIN, size=SIZE, batch_size=4)
    feed = feed_of(folder)
    for epoch, step in ((-1, 0), (0, 5), (0, -1)):
        with pytest.raises(
            ValueError, match=rf"epoch={epoch}, start_step={step}"
        ):
            feed.epoch(epoch, step)


def test_images_are_of_keras_type_and_format(folder):
    feed = feed_of(folder, CIFAR, data_format="channels_first")
    last = arrays(feed_of(folder, CIFAR).epoch(0))
    first = arrays(feed.epoch(0))
    np.testing.assert_array_equal(first[0][0], last[0][0].transpose(0, 3, 1, 2))
    file = io.BytesIO()
    np.save(file, last[0][0])  # plain arrays, no tensors of the device
    assert file.tell() > 0
