"""Encoded images to pixels of the size wanted: with Pillow, with TensorFlow.

Both give the same pixels where an image is not resized, and pixels that differ
by one level at most where it is: Pillow resizes in integers.

An image is read if it has one channel (grey, which is repeated) or three. With
an alpha channel or in CMYK it is a bad one: what it should look like is a
guess.
"""

import dataclasses
import io
import types
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_muffnet._optional import load_optional
from keras_muffnet.preprocessing import center_box

if TYPE_CHECKING:
    import tensorflow as tf


# Bits a pixel, as a BMP tells them.
_BITS_24 = b"\x18\0"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How an image gets its size.

    Attributes:
        size: height and width in pixels.
        aspect: the least and the greatest width to height of a random crop,
            where images come with one; None for whole images.
        centre: the share of the shorter side that is kept, as in
            `Augmentation.test_crop`; None keeps all.
    """

    size: tuple[int, int]
    aspect: tuple[float, float] | None = None
    centre: float | None = None


def _random_box(
    xp: Any, height: Any, width: Any, crop: Any, aspect: tuple[float, float]
) -> tuple[Any, Any, Any, Any]:
    """The first of a crop's tries that fits in an image, or its centre.

    Args:
        xp: `numpy`, or TensorFlow's functions under NumPy's names.
        height: of the image, float64.
        width: of the image, float64.
        crop: `(CROP_TRIES, 4)`, of `Augmentation.draw_crops`.
        aspect: bounds of the crop in the centre.

    Returns:
        Top, left, height and width: whole numbers, float64.
    """
    # Multiplication and square roots only: they are exact everywhere, so that
    # both ways of decoding cut the same box.
    side = xp.sqrt(crop[:, 0] * height * width)
    tall, wide = xp.rint(side / crop[:, 1]), xp.rint(side * crop[:, 1])
    fits = (tall >= 1) & (wide >= 1) & (tall <= height) & (wide <= width)
    # If none does: as much of the centre as the bounds of the aspect allow.
    full_tall = xp.minimum(height, xp.rint(width / aspect[0]))
    full_wide = xp.minimum(width, xp.rint(height * aspect[1]))
    any_fits = xp.any(fits)
    first = xp.argmax(fits)
    tall = xp.where(any_fits, tall[first], full_tall)
    wide = xp.where(any_fits, wide[first], full_wide)
    top = xp.where(any_fits, crop[first, 2], 0.5) * (height - tall + 1)
    left = xp.where(any_fits, crop[first, 3], 0.5) * (width - wide + 1)
    return xp.floor(top), xp.floor(left), tall, wide


def decode_with_pillow(
    encoded: bytes, geometry: Geometry, crop: np.ndarray | None = None
) -> np.ndarray:
    """Decodes an image.

    Args:
        encoded: the image's file, of JPEG, PNG, GIF or BMP.
        geometry: how it gets its size.
        crop: of `Augmentation.draw_crops`, `(CROP_TRIES, 4)`.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        ImportError: if Pillow is not installed.
        ValueError: telling what is wrong with the image.
    """
    image = rgb_with_pillow(encoded)
    width, height = image.size
    if crop is not None:
        assert geometry.aspect is not None
        box = _random_box(
            np, float(height), float(width), crop, geometry.aspect
        )
        top, left, tall, wide = map(int, box)
        image = image.crop((left, top, left + wide, top + tall))
    elif geometry.centre:
        box = center_box(
            np, float(height), float(width), geometry.size, geometry.centre
        )
        tall, wide, top, left = map(int, box)
        image = resized_with_pillow(image, (tall, wide))
        height, width = geometry.size
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(resized_with_pillow(image, geometry.size))


def rgb_with_pillow(
    encoded: bytes, at_least: tuple[int, int] | None = None
) -> Any:
    """Decodes an image to RGB.

    Args:
        encoded: the image's file, of JPEG, PNG, GIF or BMP.
        at_least: a height and a width. A JPEG that is at least twice, four or
            eight times as large is decoded at a half, a fourth or an eighth of
            its size, which is faster. None for the full size.

    Returns:
        A `PIL.Image.Image`.

    Raises:
        ImportError: if Pillow is not installed.
        ValueError: telling what is wrong with the image.
    """
    pillow = load_optional("PIL.Image", "arrays")
    try:
        image = pillow.open(
            io.BytesIO(encoded), formats=("JPEG", "PNG", "GIF", "BMP")
        )
        if at_least is not None and image.mode in ("L", "RGB"):
            image.draft(image.mode, at_least[::-1])
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        # Pillow names the buffer, which tells nothing.
        reason = str(error).partition("<_io")[0].strip() or "it is damaged"
        raise ValueError(reason) from None
    if image.format == "BMP" and encoded[28:30] != _BITS_24:
        raise ValueError("it is a BMP of other than 24 bits a pixel")
    channels = len(image.getbands())
    if image.mode == "P":
        alpha = image.format == "PNG" and "transparency" in image.info
        channels = 4 if alpha else 3
    if channels not in (1, 3):
        raise ValueError(f"it has {channels} channels, not 1 or 3")
    if image.mode.startswith("I;16"):
        image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def resized_with_pillow(image: Any, size: tuple[int, int]) -> Any:
    """Gives an image its size, bilinearly and with antialiasing."""
    pillow = load_optional("PIL.Image", "arrays")
    if image.size == (size[1], size[0]):
        return image
    return image.resize((size[1], size[0]), pillow.Resampling.BILINEAR)


def decode_with_tensorflow(
    encoded: "tf.Tensor", geometry: Geometry, crop: "tf.Tensor | None" = None
) -> "tf.Tensor":
    """Decodes an image; arguments and result as of `decode_with_pillow`.

    Raises:
        tf.errors.InvalidArgumentError: telling what is wrong with the image.
    """
    import tensorflow as tf

    xp = types.SimpleNamespace(
        any=tf.reduce_any,
        argmax=lambda fits: tf.argmax(tf.cast(fits, tf.int32)),
        floor=tf.floor,
        maximum=tf.maximum,
        minimum=tf.minimum,
        rint=tf.round,
        sqrt=tf.sqrt,
        where=tf.where,
    )

    def check(channels: "tf.Tensor") -> None:
        told = ["it has", channels, "channels, not 1 or 3"]
        tf.debugging.Assert((channels == 1) | (channels == 3), told)

    def from_jpeg() -> "tf.Tensor":
        check(tf.io.extract_jpeg_shape(encoded)[2])
        # Pillow has no faster but less exact way; both feeds take this one.
        return tf.io.decode_jpeg(
            encoded, channels=3, dct_method="INTEGER_ACCURATE"
        )

    def from_other() -> "tf.Tensor":
        bmp = tf.strings.substr(encoded, 0, 2) == b"BM"
        bits = tf.strings.substr(tf.strings.join([encoded, "\0" * 30]), 28, 2)
        told = ["it is a BMP of other than 24 bits a pixel"]
        tf.debugging.Assert(~bmp | (bits == _BITS_24), told)
        image = tf.io.decode_image(encoded, expand_animations=False)
        image.set_shape((None, None, None))
        channels = tf.shape(image)[2]
        check(channels)
        return tf.tile(image, (1, 1, 3 // channels))

    def resized(image: "tf.Tensor", size: Any) -> "tf.Tensor":
        def changed() -> "tf.Tensor":
            x = tf.image.resize(image, size, antialias=True)
            return tf.cast(tf.round(x), tf.uint8)

        fits = tf.reduce_all(tf.shape(image)[:2] == size)
        return tf.cond(fits, lambda: image, changed)

    image = tf.cond(tf.io.is_jpeg(encoded), from_jpeg, from_other)
    shape = tf.cast(tf.shape(image), tf.float64)
    if crop is not None:
        assert geometry.aspect is not None
        box = _random_box(xp, shape[0], shape[1], crop, geometry.aspect)
        image = tf.image.crop_to_bounding_box(
            image, *(tf.cast(number, tf.int32) for number in box)
        )
    elif geometry.centre:
        box = center_box(xp, shape[0], shape[1], geometry.size, geometry.centre)
        tall, wide, top, left = (tf.cast(number, tf.int32) for number in box)
        image = resized(image, tf.stack([tall, wide]))
        image = tf.image.crop_to_bounding_box(image, top, left, *geometry.size)
    image = resized(image, geometry.size)
    image.set_shape((*geometry.size, 3))
    return image
