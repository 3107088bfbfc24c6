"""Encoded images to pixels of the size wanted, with TensorFlow.

The pixels are those of `keras_muffnet.data.decoding`, where the rule stands.
"""

import types
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_muffnet.data.decoding import rgb_with_pillow
from keras_muffnet.data.exif import has_exif_in_graph
from keras_muffnet.data.exif import orientation_in_graph
from keras_muffnet.data.exif import upright_in_graph
from keras_muffnet.data.geometry import Geometry
from keras_muffnet.data.geometry import random_box
from keras_muffnet.preprocessing import center_box

if TYPE_CHECKING:
    import tensorflow as tf


def decode_with_tensorflow(
    encoded: "tf.Tensor", geometry: Geometry, crop: "tf.Tensor | None" = None
) -> "tf.Tensor":
    """Decodes an image; arguments and result as of `decode_with_pillow`.

    Raises:
        tf.errors.OpError: if the image is damaged or not supported; says why.
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

    def resized(image: "tf.Tensor", size: Any) -> "tf.Tensor":
        def changed() -> "tf.Tensor":
            x = tf.image.resize(image, size, antialias=True)
            return tf.cast(tf.round(x), tf.uint8)

        fits = tf.reduce_all(tf.shape(image)[:2] == size)
        return tf.cond(fits, lambda: image, changed)

    image = rgb_with_tensorflow(encoded)
    if geometry.channels == 1:
        image = gray_in_graph(image)
    shape = tf.cast(tf.shape(image), tf.float64)
    if crop is not None:
        assert geometry.aspect is not None
        box = random_box(xp, shape[0], shape[1], crop, geometry.aspect)
        image = tf.image.crop_to_bounding_box(
            image, *(tf.cast(number, tf.int32) for number in box)
        )
    elif geometry.center:
        box = center_box(xp, shape[0], shape[1], geometry.size, geometry.center)
        tall, wide, top, left = (tf.cast(number, tf.int32) for number in box)
        image = resized(image, tf.stack([tall, wide]))
        image = tf.image.crop_to_bounding_box(image, top, left, *geometry.size)
    image = resized(image, geometry.size)
    image.set_shape((*geometry.size, geometry.channels))
    return image


def rgb_with_tensorflow(
    encoded: "tf.Tensor", pillow: bool = True
) -> "tf.Tensor":
    """Decodes an image to RGB, upright.

    Args:
        encoded: the image's file, a string `()`.
        pillow: has Pillow decode what TensorFlow does not or does otherwise.
            False keeps to operations that can be saved with a graph.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        tf.errors.OpError: at run time, if the image is damaged or of no
            format that can be read.
    """
    import tensorflow as tf

    def starts(start: bytes, at: int = 0) -> "tf.Tensor":
        head = tf.strings.substr(encoded, 0, at + len(start))
        at_end = tf.minimum(at, tf.strings.length(head))
        return tf.strings.substr(head, at_end, len(start)) == start

    def from_jpeg() -> "tf.Tensor":
        return tf.io.decode_jpeg(
            encoded, channels=3, dct_method="INTEGER_ACCURATE"
        )

    def from_png() -> "tf.Tensor":
        return tf.io.decode_png(encoded, channels=3)

    def from_webp() -> "tf.Tensor":
        # Not decode_webp, an operation that older versions do not know.
        image = tf.io.decode_image(encoded, expand_animations=False)
        image.set_shape((None, None, None))
        return image[..., :3]

    def from_other() -> "tf.Tensor":
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    def with_pillow() -> "tf.Tensor":
        def decode(encoded: bytes) -> np.ndarray:
            return np.asarray(rgb_with_pillow(encoded))

        return tf.numpy_function(decode, [encoded], tf.uint8)

    webp = starts(b"RIFF") & starts(b"WEBP", 8)
    png = starts(b"\x89PNG\r\n\x1a\n")
    jpeg = starts(b"\xff\xd8\xff")
    if pillow:
        # An extended WebP may be animated; what has EXIF may lie on its side.
        plain = ~has_exif_in_graph(encoded)
        webp &= hasattr(tf.io, "decode_webp")
        png, jpeg, webp = png & plain, jpeg & plain, webp & plain
    image = tf.case(
        [(jpeg, from_jpeg), (png, from_png), (webp, from_webp)],
        with_pillow if pillow else from_other,
    )
    image.set_shape((None, None, 3))
    if pillow:
        return image
    return upright_in_graph(image, orientation_in_graph(encoded))


def gray_in_graph(image: "tf.Tensor") -> "tf.Tensor":
    """RGB to gray: uint8 `(height, width, 3)` to `(height, width, 1)`."""
    import tensorflow as tf

    weights = tf.constant([19595, 38470, 7471])
    total = tf.reduce_sum(tf.cast(image, tf.int32) * weights, -1, keepdims=True)
    return tf.cast((total + 32768) // 65536, tf.uint8)
