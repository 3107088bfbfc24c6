import numpy as np
import pytest

from keras_muffnet import preprocess_input
from keras_muffnet.data import load_digits
from keras_muffnet.data import make_dataset


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


def test_dataset_feeds_keras_on_another_backend(run_python):
    code = (
        "import keras, numpy as np;"
        "from keras_muffnet.data import make_dataset;"
        "data = make_dataset(np.zeros((4, 2, 2, 3), 'uint8'), range(4), 2);"
        "x = keras.Input((2, 2, 3)); y = keras.layers.Flatten()(x);"
        "print(keras.backend.backend(),"
        " keras.Model(x, y).predict(data, verbose=0).mean())"
    )
    assert run_python("-c", code, KERAS_BACKEND="jax") == "jax -1.0\n"


@pytest.mark.parametrize(("images", "labels"), [(0, 0), (3, 2)])
def test_dataset_errors(images, labels):
    with pytest.raises(ValueError, match=f"{images} images and {labels} label"):
        make_dataset(np.zeros((images, 4, 4, 3)), np.zeros(labels), 2)
