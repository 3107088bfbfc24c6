"""SSD's augmentation of images with boxes, in NumPy and Pillow.

Source: section 2.2 of the SSD paper (arXiv:1512.02325), with the ranges of
gluon-cv's SSD512: colors, expansion, crop, resizing, flip.

The five steps are done as one: colors change by one affine map, and the part
of the image that the crop shows is resized straight to where it comes to lie.
"""

import dataclasses
from typing import Any

import numpy as np

from keras_muffnet._optional import load_optional
from keras_muffnet.data.augmentation import uniforms
from keras_muffnet.preprocessing import MEAN
from keras_muffnet.preprocessing import STD

# Least intersection over union of a crop with every box; 0 for any.
CONSTRAINTS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
CROP_TRIES = 50
# A crop's sides are at least this share of the image's, but for the aspect.
LEAST_SCALE = 0.3
_LUMA = np.array([0.299, 0.587, 0.114])
# From RGB to luma and chroma, as gluon-cv has them.
_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]]
)
_FILTERS = ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "LANCZOS")
# Of the numbers drawn for an image: each use has its columns.
_ORDER = 15
_TRIES = _ORDER + 1 + len(CONSTRAINTS)
_COLUMNS = _TRIES + 4 * CROP_TRIES * len(CONSTRAINTS)


@dataclasses.dataclass(frozen=True)
class SSDAugmentation:
    """SSD's recipe; the defaults are gluon-cv's.

    Each of the four changes of color is made to half of the images. They are
    not clipped to [0, 255].

    Attributes:
        brightness: the most that is added to pixels or taken off them.
        contrast: the least and the greatest factor of pixels.
        saturation: the same of their distance from gray.
        hue: the most that hues turn, in half turns. gluon-cv draws from -18
            to 18, which makes all hues alike; 0.2 is what SSD's authors drew.
        expansion: the most that half of the images shrink by, on a canvas of
            the mean color; 1 for none.
        crop: cuts out a part with which each box overlaps by a least share
            that is drawn too.
        flip: mirrors half of the images, left to right.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0
    expansion: float = 4.0
    crop: bool = True
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("brightness", "hue"):
            if not getattr(self, name) >= 0:
                _refuse(name, "0 or more", getattr(self, name))
        for name in ("contrast", "saturation"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
                _refuse(name, "two rising factors, 0 or more", pair)
        if not self.expansion >= 1:
            _refuse("expansion", "1 or more", self.expansion)

    def __call__(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        key: tuple[int, int, int],
        size: tuple[int, int],
        mean: float = MEAN,
        std: float = STD,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Augments an image.

        Args:
            image: uint8 `(height, width, 3)`.
            boxes: `(n, 4)` in pixels, within the image.
            key: seed, epoch and the image's position. All that is random
                follows from them.
            size: height and width wanted.
            mean: pixel value that becomes 0, and the canvas's color.
            std: what pixels are divided by, less the mean.

        Returns:
            The image, float32 `(*size, 3)`, scaled; the boxes left, float32
            `(m, 4)`, in its pixels; and which those are, bool `(n,)`. A box is
            left if its center is in the crop, and is clipped to it.
        """
        seed, epoch, position = key
        u = uniforms(seed, epoch, np.array([position]), _COLUMNS)[0]
        height, width = image.shape[:2]
        canvas_height, canvas_width, top, left = self._canvas(u, height, width)
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        boxes = boxes + np.array([left, top, left, top])
        crop = 0, 0, canvas_width, canvas_height
        if self.crop:
            crop = draw_crop(u[_ORDER:], boxes, canvas_height, canvas_width)
        kept = _centered(boxes, crop)
        matrix, offset = self._colors(u)
        placed = (crop[0] - left, crop[1] - top, crop[2] - left, crop[3] - top)
        # Scaling is of the same kind as the changes of color.
        x = _shown(
            image,
            placed,
            size,
            _FILTERS[int(u[13] * len(_FILTERS))],
            (matrix / std).astype(np.float32),
            ((offset - mean) / std).astype(np.float32),
        )
        scale = np.array(
            [size[1] / (crop[2] - crop[0]), size[0] / (crop[3] - crop[1])] * 2
        )
        limits = np.array([size[1], size[0]] * 2)
        boxes = (boxes[kept] - [*crop[:2], *crop[:2]]) * scale
        boxes = np.clip(boxes, 0, limits)
        if self.flip and u[14] < 0.5:
            x = x[:, ::-1]
            boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
        return x, boxes.astype(np.float32), kept

    def _colors(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The changes of color as a matrix and what is added."""
        matrix, offset = np.eye(3), np.zeros(3)
        if u[0] < 0.5:
            offset += self.brightness * (2 * u[1] - 1)
        contrast = saturation = hue = np.eye(3)
        if u[2] < 0.5:
            contrast = contrast * _between(self.contrast, u[3])
        if u[4] < 0.5:
            factor = _between(self.saturation, u[5])
            saturation = factor * np.eye(3) + (1 - factor) * _LUMA
        if u[6] < 0.5:
            angle = self.hue * (2 * u[7] - 1) * np.pi
            cosine, sine = np.cos(angle), np.sin(angle)
            turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
            hue = np.linalg.inv(_YIQ) @ turn @ _YIQ
        steps = [contrast, saturation, hue]
        if u[8] < 0.5:
            steps = [saturation, hue, contrast]
        for step in steps:
            matrix, offset = step @ matrix, step @ offset
        return matrix, offset

    def _canvas(
        self, u: np.ndarray, height: int, width: int
    ) -> tuple[int, int, int, int]:
        """Height and width of the canvas, and where the image lies on it."""
        ratio = _between((1, self.expansion), u[10]) if u[9] < 0.5 else 1.0
        tall, wide = int(height * ratio), int(width * ratio)
        top = int(u[11] * (tall - height + 1))
        left = int(u[12] * (wide - width + 1))
        return tall, wide, top, left


def _between(pair: tuple[float, float], share: float) -> float:
    return pair[0] + share * (pair[1] - pair[0])


def draw_crop(
    u: np.ndarray, boxes: np.ndarray, height: int, width: int
) -> tuple[int, int, int, int]:
    """Draws what is cut out of an image.

    Candidates are the whole image and, for each of `CONSTRAINTS`, the first
    of `CROP_TRIES` crops that meets it. One of those with the center of a box
    inside is taken.

    Args:
        u: numbers in [0, 1): one to order each candidate by, and four for
            each try.
        boxes: `(n, 4)`. With none, any candidate will do.
        height: of the image.
        width: of the image.

    Returns:
        `(x_min, y_min, x_max, y_max)`.
    """
    candidates = [(0, 0, width, height)]
    split = 1 + len(CONSTRAINTS)
    order, tries = u[:split], u[split:].reshape(-1, CROP_TRIES, 4)
    for least, numbers in zip(CONSTRAINTS, tries, strict=True):
        scale = LEAST_SCALE + numbers[:, 0] * (1 - LEAST_SCALE)
        square = scale * scale
        low, high = np.maximum(0.5, square), np.minimum(2.0, 1 / square)
        root = np.sqrt(low + numbers[:, 1] * (high - low))
        wide = np.maximum(np.floor(width * scale * root), 1)
        tall = np.maximum(np.floor(height * scale / root), 1)
        left = np.floor(numbers[:, 2] * (width - wide + 1))
        top = np.floor(numbers[:, 3] * (height - tall + 1))
        crops = np.stack([left, top, left + wide, top + tall], axis=1)
        overlaps = _overlaps(crops, boxes).min(axis=1, initial=1.0)
        fits = overlaps >= least
        if fits.any():
            x_min, y_min, x_max, y_max = map(int, crops[np.argmax(fits)])
            candidates.append((x_min, y_min, x_max, y_max))
    for i in np.argsort(order[: len(candidates)]):
        if not len(boxes) or _centered(boxes, candidates[i]).any():
            return candidates[i]
    return candidates[0]


def _overlaps(crops: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of crops and boxes: `(crops, boxes)`."""
    low = np.maximum(crops[:, None, :2], boxes[None, :, :2])
    high = np.minimum(crops[:, None, 2:], boxes[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=2)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=1) for x in (crops, boxes)]
    return both / (areas[0][:, None] + areas[1][None] - both)


def _centered(boxes: np.ndarray, crop: tuple[int, int, int, int]) -> np.ndarray:
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centers >= crop[:2]) & (centers < crop[2:])).all(axis=1)


def _shown(
    image: np.ndarray,
    crop: tuple[int, int, int, int],
    size: tuple[int, int],
    resampling: str,
    matrix: np.ndarray,
    offset: np.ndarray,
) -> np.ndarray:
    """Resizes what a crop shows of an image, which it may go beyond.

    Args:
        image: uint8 `(height, width, 3)`.
        crop: in pixels of the image.
        size: height and width wanted.
        resampling: Pillow's name of the filter.
        matrix: float32 `(3, 3)`, of colors.
        offset: float32 `(3,)`, added to them.

    Returns:
        float32 `(*size, 3)`, 0 where there is no image.
    """
    pillow = load_optional("PIL.Image", "arrays")
    shown = np.zeros((*size, 3), np.float32)
    rows = _axis(crop[1], crop[3], image.shape[0], size[0])
    columns = _axis(crop[0], crop[2], image.shape[1], size[1])
    if rows is None or columns is None:
        return shown
    (top, bottom), (y, y_end), (upper, lower) = rows
    (left, right), (x, x_end), (near, far) = columns
    part = pillow.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))
    part = part.resize(
        (x_end - x, y_end - y),
        getattr(pillow.Resampling, resampling),
        box=(near - left, upper - top, far - left, lower - top),
    )
    pixels = np.asarray(part, np.float32).reshape(-1, 3)
    pixels = pixels @ matrix.T + offset
    shown[y:y_end, x:x_end] = pixels.reshape(y_end - y, x_end - x, 3)
    return shown


def _axis(start: int, end: int, length: int, wanted: int) -> Any:
    """Where an image is seen along an axis, in whole pixels of the result.

    Args:
        start: of the crop.
        end: of the crop.
        length: of the image, from 0.
        wanted: length of the result.

    Returns:
        None, or three pairs: which pixels of the image are needed, which of
        the result they fill, and what exactly of the image fills these.
    """
    first, last = max(start, 0), min(end, length)
    if first >= last:
        return None
    scale = wanted / (end - start)
    # Pixels that the image fills in part show the canvas.
    begin = int(np.ceil((first - start) * scale - 1e-6))
    stop = int(np.floor((last - start) * scale + 1e-6))
    if begin >= stop:
        begin = min(int((first - start) * scale), wanted - 1)
        stop = begin + 1
    low = min(max(begin / scale + start, first), last - 1e-3)
    high = max(min(stop / scale + start, last), low + 1e-3)
    needed = int(np.floor(low)), int(np.ceil(high))
    return needed, (begin, stop), (low, high)


def _refuse(name: str, expected: str, value: object) -> None:
    raise ValueError(f"`{name}` must be {expected}. Received: {name}={value!r}")
