import dataclasses
import itertools

import keras
import numpy as np
import pytest

from keras_muffnet import preprocess_input
from keras_muffnet.data import CIFAR
from keras_muffnet.data import IMAGENET
from keras_muffnet.data import PLAIN
from keras_muffnet.data import Augmentation
from keras_muffnet.data.augmentation import permutation
from keras_muffnet.data.augmentation import uniforms
from keras_muffnet.data.transforms import Transform

N = 64


def pixels(n=N, height=8, width=10):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, height, width, 3), "uint8")


def applied(recipe, images, labels=None, step=0, std=1.0, classes=0, **options):
    """Augmented images and labels, and the draws."""
    mean = options.pop("mean", 0.0)
    labels = np.arange(len(images)) % 10 if labels is None else labels
    form = options.pop("data_format", "channels_last")
    transform = Transform(recipe, mean, std, classes, form)
    draws = recipe.draw(
        0, 0, step, np.arange(len(images)), images.shape[1:3], **options
    )
    x, y = transform(images, labels, draws)
    to_numpy = keras.ops.convert_to_numpy
    return to_numpy(x), to_numpy(y), draws


def test_uniforms_follow_from_seed_epoch_and_position():
    u = uniforms(3, 5, np.arange(4000), 6)
    assert u.shape == (4000, 6) and u.min() >= 0 and u.max() < 1
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.02)
    np.testing.assert_allclose(u.var(axis=0), 1 / 12, atol=0.005)
    columns = np.corrcoef(np.concatenate([u[1:], u[:-1]], axis=1).T)
    assert abs(columns - np.eye(12)).max() < 0.06
    some = uniforms(3, 5, np.array([7, 3999, 0]), 6)
    np.testing.assert_array_equal(some, u[[7, 3999, 0]])
    np.testing.assert_array_equal(uniforms(3, 5, np.arange(9), 2), u[:9, :2])
    for other in (
        uniforms(4, 5, np.arange(4000), 6),
        uniforms(3, 6, np.arange(4000), 6),
    ):
        assert abs(np.corrcoef(other.ravel(), u.ravel())[0, 1]) < 0.03


def test_order_follows_from_seed_and_epoch():
    first = permutation(0, 0, 100)
    assert sorted(first) == list(range(100))
    np.testing.assert_array_equal(first, permutation(0, 0, 100))
    for other in (permutation(0, 1, 100), permutation(1, 0, 100)):
        assert (first != other).mean() > 0.9


def test_plain_images_are_scaled_as_preprocess_input_does():
    x, y, draws = applied(PLAIN, pixels(), mean=128.0, std=128.0)
    assert draws == {} and x.dtype == np.float32
    np.testing.assert_array_equal(x, preprocess_input(pixels()))
    np.testing.assert_array_equal(y, np.arange(N) % 10)
    first, _, _ = applied(PLAIN, pixels(), data_format="channels_first")
    np.testing.assert_array_equal(first, pixels().transpose(0, 3, 1, 2))


def test_crops_are_shifts_of_zero_padded_images():
    images = pixels(400)
    x, _, draws = applied(CIFAR, images, mean=100.0, std=50.0)
    scaled = (images.astype("float32") - 100) / 50
    padded = np.pad(scaled, ((0, 0), (4, 4), (4, 4), (0, 0)))
    for i, (top, left) in enumerate(draws["offset"]):
        expected = padded[i, top : top + 8, left : left + 10]
        if draws["flip"][i]:
            expected = expected[:, ::-1]
        np.testing.assert_allclose(x[i], expected, atol=1e-6)
    for axis in (0, 1):
        counts = np.bincount(draws["offset"][:, axis], minlength=9)
        assert len(counts) == 9 and counts.min() > 20
    assert abs(np.corrcoef(draws["offset"].T)[0, 1]) < 0.15
    assert 160 < draws["flip"].sum() < 240


def test_no_flip_unless_asked_for():
    images = pixels(100)
    assert not applied(Augmentation(pad=1), images)[2]["flip"].any()
    x, _, draws = applied(Augmentation(flip=True), images)
    assert not draws["offset"].any()
    flipped = images[:, :, ::-1][draws["flip"]]
    np.testing.assert_array_equal(x[draws["flip"]], flipped)


def test_color_changes_what_it_says():
    images = np.clip(pixels(200, 16, 16), 100, 140)
    x, _, draws = applied(Augmentation(color=0.2), images)
    factors = draws["color"]
    assert factors.min() > 0.8 and factors.max() < 1.2
    np.testing.assert_allclose(factors.mean(axis=0), 1, atol=0.03)
    luma = [0.299, 0.587, 0.114]
    # Contrast and saturation keep the mean luma, brightness multiplies it.
    ratio = (x @ luma).mean(axis=(1, 2)) / (images @ luma).mean(axis=(1, 2))
    np.testing.assert_allclose(ratio, factors[:, 0], rtol=1e-4)
    spread = (x @ luma).std(axis=(1, 2)) / (images @ luma).std(axis=(1, 2))
    np.testing.assert_allclose(spread, factors[:, 0] * factors[:, 1], rtol=1e-4)
    chroma = [(a[..., 0] - a @ luma).std(axis=(1, 2)) for a in (x, images)]
    np.testing.assert_allclose(
        chroma[0] / chroma[1], factors.prod(axis=1), rtol=1e-4
    )


def test_erasing_leaves_mean_pixels_in_a_rectangle():
    images = np.full((400, 20, 30, 3), 9, "uint8")
    x, _, draws = applied(Augmentation(erasing=0.5), images, mean=77.0)
    erased = x[..., 0] == 0
    assert set(np.unique(x)) == {0.0, 9.0 - 77.0}
    areas = erased.mean(axis=(1, 2))
    assert 150 < (areas > 0).sum() < 250
    assert areas[areas > 0].min() > 0.01 and areas.max() < 0.36
    for mask, (top, left, bottom, right) in zip(
        erased, draws["erased"], strict=True
    ):
        assert mask[top:bottom, left:right].all()
        assert mask.sum() == (bottom - top) * (right - left)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_mixes_images_and_labels_alike(alpha):
    x, y, draws = applied(Augmentation(mixup=alpha), pixels(), classes=10)
    weight, partner = draws["weight"], draws["partner"]
    assert sorted(partner) == list(range(N))
    w = weight[:, None, None, None]
    images = pixels().astype("float32")
    np.testing.assert_allclose(
        x, w * images + (1 - w) * images[partner], atol=1e-3
    )
    labels = np.eye(10)[np.arange(N) % 10]
    w = weight[:, None]
    np.testing.assert_allclose(
        y, w * labels + (1 - w) * labels[partner], atol=1e-6
    )
    every = [
        Augmentation(mixup=alpha).draw(0, 0, s, np.arange(N), (8, 8))["weight"]
        for s in range(30)
    ]
    variance = 1 / (4 * (2 * alpha + 1))  # of the beta distribution
    assert abs(np.var(every) - variance) < 0.015


def test_cutmix_takes_labels_by_area():
    images = pixels(N, 16, 16)
    x, y, draws = applied(
        Augmentation(cutmix=1.0), images, classes=N, labels=np.arange(N)
    )
    partner = draws["partner"]
    for i in range(N):
        top, left, bottom, right = draws["cut"][i]
        expected = images[i].copy()
        box = np.s_[top:bottom, left:right]
        expected[box] = images[partner[i]][box]
        np.testing.assert_array_equal(x[i], expected)
        share = 1 - (bottom - top) * (right - left) / 256
        label = np.zeros(N)
        label[i] += share
        label[partner[i]] += 1 - share
        np.testing.assert_allclose(y[i], label, atol=1e-6)
    assert 0.3 < draws["kept"].mean() < 0.7


def test_each_batch_gets_mixup_or_cutmix():
    recipe = Augmentation(mixup=0.5, cutmix=1.0)
    cuts = []
    for step in range(40):
        draws = recipe.draw(0, 0, step, np.arange(N), (16, 16))
        mixes = (draws["weight"] < 1).any()
        cut = (draws["kept"] < 1).any()
        assert mixes != cut
        cuts.append(cut)
    assert 10 < sum(cuts) < 30
    for step in (cuts.index(True), cuts.index(False)):
        x, y, draws = applied(recipe, pixels(), step=step, classes=10)
        np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-5)
        alone = dataclasses.replace(
            recipe, **{"mixup" if cuts[step] else "cutmix": 0.0}
        )
        transform = Transform(alone, 0.0, 1.0, 10, "channels_last")
        again, _ = transform(pixels(), np.arange(N) % 10, draws)
        np.testing.assert_allclose(x, again, atol=1e-3)


def test_rand_augment_differs_by_image_and_repeats():
    recipe = Augmentation(rand_augment=(1, 0.5))
    images = np.repeat(pixels(1, 16, 16), N, axis=0)
    x, _, draws = applied(recipe, images)
    again, _, _ = applied(recipe, images)
    np.testing.assert_array_equal(x, again)
    assert x.min() >= 0 and x.max() <= 255
    operations = draws["operations"][:, 0]
    assert set(operations) == set(range(11))
    names = [9, 10]  # auto contrast and equalization have no strength
    for name in names:
        same = x[operations == name]
        np.testing.assert_array_equal(same[:1].repeat(len(same), 0), same)
    for i, j in itertools.pairwise(
        [np.argmax(operations == k) for k in range(11)]
    ):
        assert abs(x[i] - x[j]).max() > 1
    other, _, more = applied(recipe, images, step=1)
    np.testing.assert_array_equal(more["operations"], draws["operations"])
    sheared = operations == 0
    assert abs(other[sheared] - x[sheared]).max() > 1


def test_one_option_leaves_the_draws_of_another():
    every = Augmentation(
        pad=2, flip=True, color=0.3, erasing=0.5, rand_augment=(2, 0.5)
    )
    draws = every.draw(1, 2, 3, np.arange(9), (32, 32))
    for name, keys in (
        ("color", ["color"]),
        ("erasing", ["erased"]),
        ("rand_augment", ["operations", "key"]),
    ):
        alone = Augmentation(**{name: getattr(every, name)})
        found = alone.draw(1, 2, 3, np.arange(9), (32, 32))
        assert sorted(found) == sorted(keys)
        for key in keys:
            np.testing.assert_array_equal(found[key], draws[key])


def test_recipes_of_the_paper():
    assert Augmentation(pad=4, flip=True) == CIFAR
    crops = IMAGENET.draw_crops(0, 0, np.arange(500))
    assert crops.shape == (500, 10, 4)
    area, aspect = crops[..., 0], crops[..., 1] ** 2
    assert 0.08 <= area.min() < 0.09 and 0.99 < area.max() <= 1
    assert 3 / 4 <= aspect.min() < 0.76 and 1.32 < aspect.max() <= 4 / 3
    assert abs(np.log(aspect).mean()) < 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pad": -1}, "`pad` must be an integer, 0 or more.*pad=-1"),
        ({"pad": 1.5}, "`pad` must be"),
        ({"area": (0.5, 0.1)}, "`area` must be two rising.*0.5, 0.1"),
        ({"area": (0.1, 1.1)}, "`area` must be"),
        ({"aspect": (0.0, 1.0)}, "`aspect` must be"),
        ({"color": 2}, r"`color` must be in \[0, 1\].*color=2"),
        ({"erasing": -0.1}, "`erasing` must be in"),
        ({"mixup": -1}, "`mixup` must be 0 or a positive.*mixup=-1"),
        ({"cutmix": float("inf")}, "`cutmix` must be 0 or"),
        ({"rand_augment": (0, 0.5)}, "`rand_augment` must be a positive"),
        ({"rand_augment": (9, 0.5)}, "`rand_augment` must be"),
        ({"rand_augment": (2, 0)}, "`rand_augment` must be a positive"),
        ({"test_crop": 0}, "`test_crop` must be None or"),
    ],
)
def test_errors(given, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**given)
