import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_muffnet import preprocess_input
from keras_muffnet.data import PLAIN
from keras_muffnet.data import load_digits
from keras_muffnet.data import load_images
from keras_muffnet.data import make_dataset
from keras_muffnet.data import make_feed
from keras_muffnet.data import open_source


def test_digits_are_split_by_class_and_always_the_same():
    (x_train, y_train), (x_test, y_test) = load_digits()
    assert x_train.shape == (1437, 32, 32, 3) and x_train.dtype == np.uint8
    assert x_test.shape == (360, 32, 32, 3) and y_test.shape == (360,)
    assert x_train.min() == 0 and x_train.max() == 255
    np.testing.assert_array_equal(x_train[..., 0], x_train[..., 2])
    for labels, each in ((y_train, 143), (y_test, 36)):
        counts = np.bincount(labels)
        assert len(counts) == 10 and abs(counts - each).max() <= 4
    again = load_digits()
    np.testing.assert_array_equal(again[1][0], x_test)


def test_no_test_image_is_trained_on():
    (x_train, _), (x_test, _) = load_digits(size=8)
    seen = {image.tobytes() for image in x_train}
    assert not any(image.tobytes() in seen for image in x_test)


def test_digits_of_another_size_are_the_same_scans():
    (small, labels), _ = load_digits(size=8)
    (large, same), _ = load_digits(size=16)
    np.testing.assert_array_equal(labels, same)
    means = large.reshape(-1, 8, 2, 8, 2, 3).mean(axis=(2, 4))
    assert np.corrcoef(means.ravel(), small.ravel())[0, 1] > 0.95


def batches(dataset):
    return [(x.numpy(), y.numpy()) for x, y in dataset]


def test_dataset_keeps_order_and_scales():
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3))
    images = images.astype("uint8")
    got = batches(make_dataset(images, np.arange(7), batch_size=3))
    assert [len(y) for _, y in got] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([y for _, y in got]), range(7))
    x = np.concatenate([x for x, _ in got])
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, preprocess_input(images))


@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 255.0), (127.5, 127.5), (0, 1), (120.5, 60.25)]
)
def test_dataset_scales_by_the_mean_and_deviation_given(mean, std):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), "uint8")
    got = batches(make_dataset(images, np.arange(5), 2, mean=mean, std=std))
    x = np.concatenate([x for x, _ in got])
    assert x.dtype == np.float32
    expected = (images.astype(np.float64) - mean) / std
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6)


def test_shuffling_follows_the_seed_and_keeps_pairs():
    images = np.arange(50, dtype="uint8").reshape(50, 1, 1, 1)
    first, again, other = (
        make_dataset(images, np.arange(50), 50, shuffle_seed=seed)
        for seed in (1, 1, 2)
    )
    orders = []
    for dataset in (first, again, other):
        for _ in range(2):  # two epochs
            [(x, y)] = batches(dataset)
            np.testing.assert_array_equal(x[:, 0, 0, 0] * 128 + 128, y)
            orders.append(y.tolist())
    assert orders[0:2] == orders[2:4]
    assert orders[0] != orders[1] and orders[0] != orders[4]
    assert sorted(orders[1]) == list(range(50))


def test_dataset_feeds_keras_on_another_backend(run_forked):
    pytest.importorskip("torch")
    code = (
        "import keras, numpy as np;"
        "from keras_muffnet.data import make_dataset;"
        "data = make_dataset(np.zeros((4, 2, 2, 3), 'uint8'), range(4), 2);"
        "x = keras.Input((2, 2, 3)); y = keras.layers.Flatten()(x);"
        "print(keras.backend.backend(),"
        " keras.Model(x, y).predict(data, verbose=0).mean())"
    )
    assert run_forked("-c", code, KERAS_BACKEND="jax") == "jax -1.0\n"


@pytest.mark.parametrize(("images", "labels"), [(0, 0), (3, 2)])
def test_dataset_errors(images, labels):
    with pytest.raises(ValueError, match=f"{images} images and {labels} label"):
        make_dataset(np.zeros((images, 4, 4, 3)), np.zeros(labels), 2)


def test_digits_as_an_image_set():
    _, (images, labels) = load_digits(size=8)
    gray = load_images("digits", "test", (8, 8), channels=1)
    np.testing.assert_array_equal(gray.images, images[..., :1])
    np.testing.assert_array_equal(gray.labels, labels)
    assert gray.class_names == tuple("0123456789")
    some = load_images("digits", "train", (8, 8), limit=20)
    assert some.images.shape == (20, 8, 8, 3) and some.labels.shape == (20,)
    with pytest.raises(ValueError, match=r"must be square.*\(8, 16\)"):
        load_images("digits", "test", (8, 16))
    with pytest.raises(ValueError, match=r"of 2: 'train', 'test'.*'val'"):
        load_images("digits", "val", (8, 8))


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    encode = tf.io.encode_jpeg if jpeg else tf.io.encode_png
    path.write_bytes(encode(pixels).numpy())


def filled(value, height=4, width=6, channels=3):
    return np.full((height, width, channels), value, "uint8")


@pytest.fixture
def folder(tmp_path):
    """Classes a and b, whose pixels are ten times the image's number."""
    for i, path in enumerate(
        ["train/b/x.png", "train/b/y.PNG", "train/a/z.jpg", "test/b/only.png"]
    ):
        write(tmp_path / path, filled(10 * i))
    return tmp_path


def test_folder_is_read_by_class_and_name(folder):
    for hidden in (".DS_Store", "a/.hidden.txt"):
        (folder / "train" / hidden).write_text("")
    (folder / "train/.cache").mkdir()
    train = load_images(folder, "train", (4, 6))
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int64
    assert train.images.shape == (3, 4, 6, 3)
    assert train.class_names == ("a", "b")
    assert train.labels.tolist() == [0, 1, 1]
    assert train.images[:, 0, 0, 0].tolist() == [20, 0, 10]
    test = load_images(str(folder), "test", (4, 6))
    assert test.labels.tolist() == [1] and test.class_names == ("a", "b")


def test_val_stands_in_for_test(folder):
    (folder / "test").rename(folder / "val")
    for split in ("val", "test"):
        assert load_images(folder, split, (2, 2)).images[0, 0, 0, 0] == 30
    write(folder / "test/a/1.png", filled(77))
    assert load_images(folder, "test", (2, 2)).images[0, 0, 0, 0] == 77
    assert load_images(folder, "val", (2, 2)).images[0, 0, 0, 0] == 30


GIF = (  # one red pixel
    b"GIF89a\x01\0\x01\0\x80\0\0\xff\0\0\0\0\0"
    b",\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
)
BMP = (  # one pixel, blue first: 1, 2, 3
    b"BM" + (58).to_bytes(4, "little") + bytes(4) + b"\x36\0\0\0"
    b"\x28\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\x18\0" + bytes(24) + b"\3\2\1\0"
)


def test_formats_and_channels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 4), "uint8")
    write(tmp_path / "train/a/1_rgba.png", pixels)
    write(tmp_path / "train/a/2_gray.jpeg", pixels[..., :1])
    (tmp_path / "train/a/3.gif").write_bytes(GIF)
    (tmp_path / "train/a/4.bmp").write_bytes(BMP)
    images = load_images(tmp_path, "train", (1, 1)).images[:, 0, 0]
    np.testing.assert_array_equal(images[0], pixels[0, 0, :3])
    assert np.ptp(images[1]) == 0
    assert abs(int(images[1, 0]) - int(pixels[0, 0, 0])) <= 1
    assert images[2:].tolist() == [[255, 0, 0], [1, 2, 3]]
    gray = load_images(tmp_path, "train", (1, 1), channels=1).images
    assert gray.shape == (4, 1, 1, 1)
    assert gray[1, 0, 0, 0] == images[1, 0] and gray[2, 0, 0, 0] == 76


def test_only_images_of_another_size_are_resized(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), "uint8")
    write(tmp_path / "train/a/same.png", pixels)
    write(tmp_path / "train/a/wide.png", pixels.repeat(8, 0).repeat(8, 1))
    same, wide = load_images(tmp_path, "train", (6, 4)).images
    np.testing.assert_array_equal(same, pixels)
    expected = tf.image.resize(
        pixels.repeat(8, 0).repeat(8, 1), (6, 4), antialias=True
    )
    np.testing.assert_array_equal(wide, np.rint(expected))


def test_limit_draws_from_the_seed_before_decoding(tmp_path):
    for i in range(60):
        write(tmp_path / f"train/{'abc'[i % 3]}/{i:02}.png", filled(i, 1, 1))

    def drawn(seed, limit=30):
        some = load_images(tmp_path, "train", (1, 1), limit=limit, seed=seed)
        values = some.images[:, 0, 0, 0]
        np.testing.assert_array_equal(values % 3, some.labels)
        return values.tolist()

    assert drawn(1) == drawn(1) != drawn(2)
    assert len(set(drawn(1))) == 30
    assert len(drawn(0, limit=99)) == 60
    shares = np.bincount([v % 3 for s in range(6) for v in drawn(s)]) / 180
    assert abs(shares - 1 / 3).max() < 0.1
    left_out = next(i for i in range(60) if i not in drawn(1))
    path = tmp_path / f"train/{'abc'[left_out % 3]}/{left_out:02}.png"
    path.write_bytes(b"no image")
    drawn(1)


def test_many_images_show_their_progress(tmp_path, capsys, monkeypatch):
    write(tmp_path / "train/a/0.png", filled(1, 1, 1))
    for i in range(1, 2001):
        (tmp_path / f"train/a/{i}.png").hardlink_to(tmp_path / "train/a/0.png")
    # On a terminal alone: a bar fills files with rubbish.
    assert load_images(tmp_path, "train", (1, 1)).images.all()
    assert not capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert load_images(tmp_path, "train", (1, 1)).images.all()
    assert "2001/2001" in capsys.readouterr().out
    load_images(tmp_path, "train", (1, 1), limit=2000)
    assert not capsys.readouterr().out


def test_damaged_files_are_named_and_counted(folder):
    for i in range(40):
        write(folder / f"train/a/{i:02}.jpg", filled(5, 30, 30))
    whole = (folder / "train/a/00.jpg").read_bytes()
    for i in range(1, 8):
        (folder / f"train/a/{i:02}.jpg").write_bytes(whole[: 40 * i])
    png = folder / "train/b/y.PNG"
    png.write_bytes(png.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"8: .* and 3 more") as error:
        load_images(folder, "train", (4, 6))
    for i in range(1, 6):
        assert repr(str(folder / f"train/a/{i:02}.jpg")) in str(error.value)
    for i in range(1, 8):
        (folder / f"train/a/{i:02}.jpg").write_bytes(whole)
    with pytest.raises(ValueError, match="1: ") as error:
        load_images(folder, "train", (4, 6))
    assert f"1: {str(png)!r} (" in str(error.value)


@pytest.mark.parametrize(
    ("make", "split", "message"),
    [
        ("other/", "val", "of 2: 'train', 'test'.*validation_split.*'val'"),
        ("other/", "all", "`split` must be of 2: 'train', 'test'.*'all'"),
        ("val/", "val", "whose split 'val' has none"),
        ("train/c/", "train", "/train/c', which is empty"),
        ("train/c/.hidden", "train", "/train/c', which is empty"),
        ("test/c/1.png", "test", "the classes of .*/test'.*1: 'c'"),
        ("train/a/film.mp4", "train", "whole images.*1: .*film.mp4'.*ends in"),
        ("train/b/deeper/1.png", "train", "`nested` must say.*/b/deeper'"),
        ("train/1.png", "train", "nothing but images.*1: .*/train/1.png'"),
    ],
)
def test_folder_errors(folder, make, split, message):
    path = folder / make
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if make.endswith("/") else path.touch()
    with pytest.raises(ValueError, match=message) as error:
        load_images(folder, split, (4, 6))
    assert split == "all" or str(folder) in str(error.value)


def test_a_folder_needs_its_split_and_train(folder):
    (folder / "train").rename(folder / "training")
    assert len(load_images(folder, "test", (4, 6)).images) == 1
    (folder / "training").rename(folder / "val")
    with pytest.raises(ValueError, match=r"must hold train/ beside.*/train'"):
        load_images(folder, "test", (4, 6))
    (folder / "val").rename(folder / "train")
    (folder / "test").rename(folder / "other")
    with pytest.raises(ValueError, match=r"of 1: 'train', which .*'test'"):
        load_images(folder, "test", (4, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "no/such"}, r"'digits', 'tfds:NAME', .*'no/such'"),
        ({"source": None}, "`source` must be .*None"),
        ({"source": ""}, "`source` must be .*''"),
        ({"size": 32}, "`size` must be a height and a width.*32"),
        ({"size": (32, 0)}, r"`size\[1\]` must be a positive integer.*0"),
        ({"channels": 4}, "`channels` must be 1 or 3.*4"),
        ({"crop": 0}, r"`crop` must be None or in \(0, 1\].*crop=0"),
        ({"crop": 87.5}, r"`crop` must be None or in \(0, 1\].*crop=87.5"),
        (
            {"source": "digits", "size": (8, 8), "crop": 0.5},
            "`crop` must be None for the digits",
        ),
        ({"on_bad_image": "drop"}, "'raise' or 'skip'.*'drop'"),
        ({"limit": 0}, "`limit` must be a positive integer.*0"),
        ({"size": (10**6, 10**6)}, "`limit` must keep .*limit=None"),
        ({"source": "digits", "size": (10**6, 10**6)}, "`limit` must keep"),
        ({"size": (10**6, 10**6), "limit": 2}, "memory.*; 2 images .*limit=2"),
    ],
)
def test_argument_errors(folder, arguments, message):
    given = {"source": folder, "split": "train", "size": (4, 6), **arguments}
    with pytest.raises(ValueError, match=message):
        load_images(**given)


@pytest.fixture(scope="module")
def tfds(tmp_path_factory):
    """TensorFlow Datasets with one data set more, of 20 images."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinySquares(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 1)),
                "label": tfds.features.ClassLabel(names=["odd", "even"]),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, manager):
            return {
                "train": self._generate_examples(-1),
                "test": self._generate_examples(None),
            }

        def _generate_examples(self, unlabelled):
            for i in range(20):
                label = ["even", "odd"][i % 2]
                if unlabelled is None and i == 3:
                    label = -1
                yield i, {"image": filled(i, 5, 5, 1), "label": label}

    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.core.constants, "DATA_DIR", str(folder))
        yield tfds


def test_tensorflow_datasets(tfds):
    every = load_images("tfds:tiny_squares", "train", (3, 4))
    values = every.images[:, 0, 0, 0]
    assert every.images.shape == (20, 3, 4, 3)
    assert every.images.dtype == np.uint8 and every.labels.dtype == np.int64
    assert every.class_names == ("odd", "even")
    assert sorted(values) == list(range(20))
    np.testing.assert_array_equal(every.labels, 1 - values % 2)

    gray = {"size": (5, 5), "channels": 1, "limit": 7}
    some, same, other = (
        load_images("tfds:tiny_squares", "train", **gray, seed=seed)
        for seed in (1, 1, 2)
    )
    assert some.images.shape == (7, 5, 5, 1)
    drawn = some.images[:, 0, 0, 0]
    np.testing.assert_array_equal(some.labels, 1 - drawn % 2)
    assert drawn.tolist() == [v for v in values if v in drawn]
    np.testing.assert_array_equal(some.images, same.images)
    assert (some.images != other.images).any()
    half = load_images("tfds:tiny_squares:1.0.0", "train[:50%]", (5, 5))
    np.testing.assert_array_equal(half.images[:, 0, 0, 0], values[:10])


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("tiny_sqares", "train", r"TensorFlow Datasets.*tiny_sqares not found"),
        ("", "train", "TensorFlow Datasets after 'tfds:'.*'tfds:'"),
        ("tiny_squares:7.0.0", "train", "cannot be loaded at version 7.0.0"),
        ("imdb_reviews", "train", "8-bit images, each with a class.*Text"),
        ("coco", "train", "8-bit images, each with a class"),
        ("tiny_squares", "val", r"\['test', 'train'\].*split='val'"),
        ("tiny_squares", "train[", r"\['test', 'train'\].*split='train\['"),
        ("tiny_squares", "test", "labels of its classes.*label is -1"),
    ],
)
def test_tensorflow_datasets_errors(tfds, name, split, message):
    with pytest.raises(ValueError, match=message) as error:
        load_images(f"tfds:{name}", split, (5, 5))
    assert "\n" not in str(error.value)


def test_a_source_of_tensorflow_datasets(tfds):
    source = open_source("tfds:tiny_squares")
    every = load_images("tfds:tiny_squares", "train", (5, 5))
    assert source.class_names == ("odd", "even")

    def images(split, backend):
        feed = make_feed(
            source,
            PLAIN,
            size=(5, 5),
            batch_size=2,
            train_split="train",
            test_split=split,
            mean=0.0,
            std=1.0,
            backend=backend,
        )
        batches = [(np.asarray(x), np.asarray(y)) for x, y in feed.evaluation()]
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    for backend in ("tf.data", "arrays"):
        x, y = images("train", backend)
        np.testing.assert_array_equal(x, every.images)
        np.testing.assert_array_equal(y, every.labels)
        for split, part in (
            ("train[:25%]", np.s_[:5]),
            ("train[25%:75%]", np.s_[5:15]),
            ("train[15:]", np.s_[15:]),
        ):
            x, y = images(split, backend)
            np.testing.assert_array_equal(x, every.images[part])
        with pytest.raises(
            ValueError, match=r"test.*record \d+' .*label is -1"
        ):
            images("test", backend)
    with pytest.raises(ValueError, match=r"\['test', 'train'\].*split='val'"):
        source.split("val")
    with pytest.raises(ValueError, match="8-bit images, each with a class"):
        open_source("tfds:imdb_reviews")
