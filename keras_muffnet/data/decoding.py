"""Encoded images to pixels of the size wanted, with Pillow.

**The pixels of a file.** Training, evaluation, calibration, `load_images`,
`detect`, the model server and the decoder in an exported SavedModel all take
the same ones:

- Orientation: as EXIF says, so that an image is seen upright. (XMP is not
  asked.)
- Alpha is dropped, not composited: the colors are those stored in the file,
  under transparent pixels too. `keras.utils.load_img`, torchvision's
  `ImageFolder` and TensorFlow's decoders do the same, so that models trained
  elsewhere see the same pixels; and no background has to be guessed.
- Gray is repeated in three channels; a palette gives its colors. Where a
  model takes one channel, RGB becomes `(19595 R + 38470 G + 7471 B + 32768)
  // 65536`, before the image is resized.
- Of 16 bits the upper 8 are taken.
- CMYK becomes `(255 - C) (255 - K) // 255` for red, and so on: no color
  profiles.
- JPEG is decoded with the accurate integer DCT and smooth chroma upsampling.
- Of several frames the first is taken, without the canvas around it.

Without resizing, all readers give the same pixels. Where an image is resized,
bilinearly with antialiasing, they differ by one level at most: Pillow resizes
in integers.

Formats: JPEG, PNG, GIF, BMP, WebP and TIFF; AVIF and HEIC where Pillow or a
package brings them (`pip install "keras-muffnet[heif]"`). TensorFlow decodes
JPEG, PNG and WebP by itself, and has Pillow decode the rest. An exported
SavedModel has no Pillow: it takes JPEG, PNG, GIF, BMP of 24 or 32 bits, and
WebP that is not animated, and refuses others. Pixels of 32 bits (numbers
without a known range) and color spaces other than the above are refused.
"""

import contextlib
import functools
import importlib
import io
import math
from typing import Any

import numpy as np

from keras_muffnet._optional import install_command
from keras_muffnet._optional import load_optional
from keras_muffnet.data.exif import ORIENTATION
from keras_muffnet.data.exif import orientation
from keras_muffnet.data.exif import upright_with_pillow
from keras_muffnet.data.geometry import Geometry
from keras_muffnet.data.geometry import random_box
from keras_muffnet.preprocessing import center_box


def decode_with_pillow(
    encoded: bytes, geometry: Geometry, crop: np.ndarray | None = None
) -> np.ndarray:
    """Decodes an image.

    Args:
        encoded: the image's file.
        geometry: how it gets its size.
        crop: of `Augmentation.draw_crops`, `(CROP_TRIES, 4)`.

    Returns:
        uint8 `(height, width, channels)`.

    Raises:
        ImportError: if Pillow is not installed.
        ValueError: if the image is damaged or not supported; says why.
    """
    image = rgb_with_pillow(encoded)
    if geometry.channels == 1:
        image = image.convert("L")
    width, height = image.size
    if crop is not None:
        assert geometry.aspect is not None
        box = random_box(np, float(height), float(width), crop, geometry.aspect)
        top, left, tall, wide = map(int, box)
        image = image.crop((left, top, left + wide, top + tall))
    elif geometry.center:
        box = center_box(
            np, float(height), float(width), geometry.size, geometry.center
        )
        tall, wide, top, left = map(int, box)
        image = resized_with_pillow(image, (tall, wide))
        height, width = geometry.size
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(resized_with_pillow(image, geometry.size))
    return pixels.reshape((*geometry.size, geometry.channels))


def decode_as_served(
    encoded: bytes,
    size: tuple[int, int],
    channels: int = 3,
    max_pixels: int | None = None,
    crop: float | None = None,
) -> np.ndarray:
    """Decodes an image as the decoder in an exported SavedModel does.

    Args:
        encoded: the image's file.
        size: height and width to resize to, in pixels.
        channels: 3 for RGB, 1 for gray.
        max_pixels: the most pixels, height times width, of the image.
        crop: as of `keras_muffnet.preprocessing.Preprocessing`.

    Returns:
        float32 `(height, width, channels)`, whole numbers in [0, 255].

    Raises:
        ImportError: if Pillow is not installed.
        ValueError: if the image is damaged or not supported; says why.
    """
    pillow = load_optional("PIL.Image", "arrays")
    image = rgb_with_pillow(encoded, max_pixels=max_pixels)
    if channels == 1:
        image = image.convert("L")
    (tall, wide), top, left = size, 0, 0
    if crop is not None:
        width, height = (float(side) for side in image.size)
        tall, wide, top, left = map(
            int, center_box(np, height, width, size, crop)
        )
    if image.size == (wide, tall):
        pixels = np.asarray(image, np.float32).reshape((tall, wide, channels))
    else:
        # In floats, which are not rounded on the way from rows to columns.
        bands = [
            band.convert("F").resize((wide, tall), pillow.Resampling.BILINEAR)
            for band in image.split()
        ]
        pixels = np.rint(np.stack(bands, axis=-1))
    return pixels[top : top + size[0], left : left + size[1]]


def rgb_with_pillow(
    encoded: bytes,
    at_least: tuple[int, int] | None = None,
    max_pixels: int | None = None,
    upright: bool = True,
) -> Any:
    """Decodes an image to RGB, upright.

    Args:
        encoded: the image's file.
        at_least: a height and a width. A JPEG that is at least twice, four or
            eight times as large is decoded at a half, a fourth or an eighth of
            its size, which is faster. None for the full size.
        max_pixels: the most pixels, height times width. None for Pillow's own
            bound.
        upright: turns the image as EXIF says. False takes it as it is stored.

    Returns:
        A `PIL.Image.Image`.

    Raises:
        ImportError: if Pillow is not installed.
        ValueError: if the image is damaged or not supported; says why.
    """
    pillow = load_optional("PIL.Image", "arrays")
    image, turned = _open(encoded)
    turned = turned if upright else 1
    if max_pixels is not None and math.prod(image.size) > max_pixels:
        raise ValueError(
            f"at most {max_pixels} pixels are taken, it has "
            f"{image.width}x{image.height}"
        )
    if at_least is not None and image.mode in ("L", "RGB"):
        height, width = at_least if turned < 5 else at_least[::-1]
        image.draft(image.mode, (width, height))
    extent = image.tile[0][1] if image.format == "GIF" else None
    try:
        image.load()
    except Exception as error:  # see `_open`
        raise ValueError(_reason(error)) from None
    if image.mode.startswith("I;16"):
        image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "CMYK":
        ink = np.asarray(image)
        if image.format in ("JPEG", "MPO") and "adobe" not in image.info:
            ink = 255 - ink  # which Pillow turned over
        paper = 255 - ink.astype(np.int32)
        pixels = paper[..., :3] * paper[..., 3:] // 255
        image = pillow.fromarray(pixels.astype(np.uint8))
    elif image.mode not in _MODES:
        raise ValueError(f"its pixels are of the kind {image.mode!r}")
    image = image.convert("RGB")
    if extent is not None and extent != (0, 0, *image.size):
        image = image.crop(extent)
    return upright_with_pillow(image, turned)


def image_sizes(encoded: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Reads the height and width of an image; decodes nothing.

    Returns:
        Those of the image seen upright, and those it is stored with.

    Raises:
        ImportError: if Pillow is not installed.
        ValueError: if the image is damaged or not supported; says why.
    """
    image, turned = _open(encoded)
    width, height = image.size
    stored = (height, width)
    return (stored[::-1] if turned >= 5 else stored), stored


def _open(encoded: bytes) -> tuple[Any, int]:
    """Opens an image, not decoded, and reads how it is turned."""
    pillow = load_optional("PIL.Image", "arrays")
    known = _formats()
    kind = _kind_of_heif(encoded)
    if kind and kind not in known:
        needed = {
            "AVIF": 'pip install "pillow>=11.3"',
            "HEIF": install_command("heif"),
        }
        raise ValueError(f"it is {kind}, which needs: {needed[kind]}")
    try:
        image = pillow.open(io.BytesIO(encoded), formats=known)
        if image.format in ("JPEG", "MPO", "PNG", "WEBP"):
            return image, orientation(encoded)
        if image.format == "AVIF":
            # From the boxes around the image, as Pillow gives them.
            return image, image.getexif().get(ORIENTATION, 1)
        # Pillow turns a TIFF as it decodes it; a HEIC is upright.
        return image, 1
    # On bytes that are damaged, Pillow's readers raise about anything.
    except Exception as error:
        raise ValueError(_reason(error)) from None


# What Pillow calls pixels that `convert("RGB")` makes as the rule has it.
_MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"),
    "YCbCr",
)


@functools.cache
def _formats() -> tuple[str, ...]:
    """What Pillow can read here, of the formats that are taken."""
    pillow = load_optional("PIL.Image", "arrays")
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    pillow.init()
    wanted = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
    return tuple(name for name in wanted if name in pillow.OPEN)


def _kind_of_heif(encoded: bytes) -> str | None:
    """Which of AVIF and HEIF a file is, by the brand in its head."""
    if encoded[4:8] != b"ftyp":
        return None
    if encoded[8:12] in (b"avif", b"avis"):
        return "AVIF"
    return "HEIF"


def _reason(error: Exception) -> str:
    # Pillow names the buffer, which says nothing.
    reason = str(error).partition("<_io")[0].strip()
    if reason == "cannot identify image file":
        return "it is not an image of a known format, or a damaged one"
    return reason or "it is damaged"


def resized_with_pillow(image: Any, size: tuple[int, int]) -> Any:
    """Gives an image its size, bilinearly and with antialiasing."""
    pillow = load_optional("PIL.Image", "arrays")
    if image.size == (size[1], size[0]):
        return image
    return image.resize((size[1], size[0]), pillow.Resampling.BILINEAR)
