"""What is done to training images at random, and with which numbers.

All numbers are drawn here, in NumPy, as pure functions of the seed, the epoch
and the image's position in its split (for what concerns two images: of the
seed, the epoch and the step). A run that resumes from a checkpoint, and a feed
on another backend, get the same ones; the backends' own generators would each
give others. `transforms.py` applies them.
"""

import dataclasses
import math
from typing import Any

import numpy as np

# torchvision's and Inception's number of tries for a crop that fits.
CROP_TRIES = 10
Draws = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A recipe of augmentation; the defaults do nothing.

    ```python
    from keras_muffnet import data

    augmentation = data.Augmentation(pad=4, flip=True, cutmix=1.0)
    ```

    Attributes:
        pad: zeros put around an image (after scaling, so that they are the
            mean pixel), from which a crop of its size is taken at random.
        area: the least and the greatest share of an image that a random crop
            takes before it is resized, as Inception's. None: whole images,
            resized without keeping their aspect ratio.
        aspect: the least and the greatest width to height of that crop.
        flip: mirrors half of the images, left to right.
        color: brightness, contrast and saturation change by factors of up to
            1 - color and 1 + color.
        rand_augment: how many operations of `keras.layers.RandAugment` an
            image gets, up to 8, and their strength in (0, 1]. None: none.
        erasing: the share of images that lose a rectangle of 2% to a third of
            their area (it becomes the mean pixel).
        mixup: alpha of the beta distribution of mixup's weights; 0 for none.
        cutmix: alpha of the same for cutmix. With both, each batch gets one
            of them, as a coin falls.
        test_crop: test images are resized so that this share of their shorter
            side is the size wanted, and their center is cropped: 0.875 makes
            256 and 224 of section 5.1. None: whole images, resized.
    """

    pad: int = 0
    area: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False
    color: float = 0.0
    rand_augment: tuple[int, float] | None = None
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    test_crop: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.pad, int) and self.pad >= 0):
            _refuse("pad", "an integer, 0 or more", self.pad)
        if self.area is not None and not _rising(self.area, 1.0):
            _refuse("area", "two rising shares in (0, 1]", self.area)
        if not _rising(self.aspect, math.inf):
            _refuse("aspect", "two rising positive numbers", self.aspect)
        for name in ("color", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                _refuse(name, "in [0, 1]", getattr(self, name))
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                _refuse(name, "0 or a positive number", getattr(self, name))
        if self.rand_augment is not None:
            operations, strength = self.rand_augment
            if not (
                isinstance(operations, int)
                and 0 < operations <= _MOST_OPERATIONS
                and 0 < strength <= 1
            ):
                _refuse(
                    "rand_augment",
                    f"a positive integer up to {_MOST_OPERATIONS} and a "
                    "strength in (0, 1]",
                    self.rand_augment,
                )
        if self.test_crop is not None and not 0 < self.test_crop <= 1:
            _refuse("test_crop", "None or in (0, 1]", self.test_crop)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, which takes one-hot labels."""
        return bool(self.mixup or self.cutmix)

    def draw(
        self,
        seed: int,
        epoch: int,
        step: int,
        positions: np.ndarray,
        size: tuple[int, int],
    ) -> Draws:
        """Draws what `transforms.Transform` needs for a batch.

        Args:
            seed: of the run.
            epoch: from 0.
            step: of the batch in its epoch.
            positions: of the images in their split, `(n,)`.
            size: height and width of the images.
        """
        u = uniforms(seed, epoch, positions, _COLUMNS)
        draws: Draws = {}
        if self.pad or self.flip:
            offsets = np.floor(u[:, 0:2] * (2 * self.pad + 1))
            draws["offset"] = offsets.astype(np.int32)
            draws["flip"] = (u[:, 2] < 0.5) & self.flip
        if self.color:
            factors = 1 + self.color * (2 * u[:, 3:6] - 1)
            draws["color"] = factors.astype(np.float32)
        if self.erasing:
            # Random erasing's own ranges of area and aspect.
            area = 0.02 + u[:, 7] * (1 / 3 - 0.02)
            aspect = np.exp((2 * u[:, 8] - 1) * math.log(1 / 0.3))
            area = np.where(u[:, 6] < self.erasing, area, 0.0)
            draws["erased"] = _boxes(area, aspect, u[:, 9:11], size)
        if self.mixes:
            draws |= self._draw_mixing(seed, epoch, step, len(positions), size)
        if self.rand_augment:
            operations = self.rand_augment[0]
            columns = u[:, 11 : 11 + operations]
            draws["operations"] = np.floor(columns * 11).astype(np.int32)
            key = _generator(seed, epoch, step, 1).integers(2**31, size=1)
            draws["key"] = key.astype(np.int32)
        return draws

    def _draw_mixing(
        self, seed: int, epoch: int, step: int, count: int, size: tuple
    ) -> Draws:
        rng = _generator(seed, epoch, step, 0)
        partner = rng.permutation(count).astype(np.int32)
        coin = rng.random()
        position = rng.random((count, 2))
        cuts = bool(self.cutmix) and (not self.mixup or coin < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        weight = rng.beta(alpha, alpha, count)
        # The other one is applied too, and changes nothing.
        box = _boxes((1 - weight) * cuts, np.ones(count), position, size)
        kept = 1 - (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / (
            size[0] * size[1]
        )
        return {
            "partner": partner,
            "weight": np.where(cuts, 1.0, weight).astype(np.float32),
            "cut": box,
            "kept": kept.astype(np.float32),
        }

    def draw_crops(
        self, seed: int, epoch: int, positions: np.ndarray
    ) -> np.ndarray:
        """Draws random crops, to be tried on an image until one fits.

        Returns:
            float64 `(n, CROP_TRIES, 4)`: share of the area, square root of
            width to height, and where in the room that is left it lies.
        """
        assert self.area is not None
        u = uniforms(seed, epoch, positions, _COLUMNS)[:, -4 * CROP_TRIES :]
        u = u.reshape(-1, CROP_TRIES, 4)
        least, most = self.area
        low, high = (math.log(aspect) for aspect in self.aspect)
        u[..., 0] = least + u[..., 0] * (most - least)
        u[..., 1] = np.exp((low + u[..., 1] * (high - low)) / 2)
        return u


# Each use has its columns, so that one option does not change another's draws.
_MOST_OPERATIONS = 8
_COLUMNS = 11 + _MOST_OPERATIONS + 4 * CROP_TRIES


def _rising(pair: tuple[float, float], most: float) -> bool:
    return len(pair) == 2 and 0 < pair[0] <= pair[1] <= most


def _refuse(name: str, expected: str, value: object) -> None:
    raise ValueError(f"`{name}` must be {expected}. Received: {name}={value!r}")


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch: positions from 0, each once."""
    return _generator(seed, epoch).permutation(count)


def uniforms(
    seed: int, epoch: int, positions: np.ndarray, count: int
) -> np.ndarray:
    """Numbers in [0, 1) that follow from seed, epoch and position alone.

    They come from splitmix64, whose n-th number needs none before it.

    Returns:
        float64 `(len(positions), count)`.
    """
    with np.errstate(over="ignore"):
        key = _mixed(_mixed(np.uint64(seed)) + np.uint64(epoch))
        start = _mixed(key + np.asarray(positions).astype(np.uint64))
        steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        bits = _mixed(start[:, None] + steps)
    return (bits >> np.uint64(11)) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: Any) -> Any:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _boxes(
    area: np.ndarray,
    aspect: np.ndarray,
    position: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Boxes within an image, of a share of its area.

    Returns:
        int32 `(n, 4)`: top, left, bottom and right, in pixels.
    """
    sides = np.sqrt(np.stack([area / aspect, area * aspect], axis=1))
    sides = np.minimum(np.rint(sides * size), size)
    start = np.floor(position * (np.array(size) - sides + 1))
    return np.concatenate([start, start + sides], axis=1).astype(np.int32)


PLAIN = Augmentation()
# Section 5.1.
CIFAR = Augmentation(pad=4, flip=True)
IMAGENET = Augmentation(area=(0.08, 1.0), flip=True, color=0.4, test_crop=0.875)
