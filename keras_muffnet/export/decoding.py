"""Decoding of encoded images inside a graph, for signatures that take them."""

import types
from typing import Any

import tensorflow as tf

from keras_muffnet.data.graph_decoding import gray_in_graph
from keras_muffnet.data.graph_decoding import rgb_with_tensorflow
from keras_muffnet.preprocessing import center_box

# The most pixels that an image may have: 192 MB once decoded to RGB.
MAX_PIXELS = 64 * 2**20

# Images of a request that are decoded at a time.
_PARALLEL = 8

_UNKNOWN = "must be a JPEG, PNG, GIF, BMP or WebP image"
_DAMAGED = f"{_UNKNOWN}. Received one that is damaged or not whole"

# What a file of each format starts with; for WebP more is looked at.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF")

# Heights, widths and what is wrong, or nothing, `(batch,)` each.
_Header = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def decode_images(
    image_bytes: tf.Tensor,
    height: int,
    width: int,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    crop: float | None = None,
) -> tf.Tensor:
    """Decodes images and resizes them, as `data.load_images` does.

    An image is decoded to RGB as `keras_muffnet.data.decoding` has it, upright
    and without alpha, made gray where `channels` is 1, resized bilinearly with
    antialiasing, as a whole or its center, and rounded to whole levels. Works
    eagerly and in a graph. WebP was tried with TensorFlow 2.21; a TF Serving
    whose TensorFlow cannot decode it calls such an image damaged and reads all
    other formats.

    What is wrong with an image is found before any memory is given to its
    pixels, except damage. Of a GIF only the first frame is read.

    ```python
    import pathlib
    from keras_muffnet import export

    photo = pathlib.Path("photo.jpg").read_bytes()
    pixels = export.decode_images([photo], 224, 224)
    ```

    Args:
        image_bytes: strings `(batch,)`, each an encoded JPEG, PNG, GIF, BMP (24
            or 32 bits a pixel) or WebP (not animated) image of any size.
        height: height to resize to, in pixels.
        width: width to resize to, in pixels.
        channels: 3 for RGB, 1 for gray.
        max_pixels: the most pixels, height times width, of an encoded image.
        crop: None to resize the whole image, without keeping its aspect
            ratio; else see `keras_muffnet.preprocessing.Preprocessing`.

    Returns:
        float32 `(batch, height, width, channels)` with whole numbers in
        [0, 255]. `keras_muffnet.preprocess_input` scales them.

    Raises:
        tf.errors.InvalidArgumentError: at run time, if an image is of another
            kind, too large or damaged. The text names the first such image:
            `image_bytes[3] must be ...`.
    """
    image_bytes = tf.convert_to_tensor(image_bytes, tf.string)
    size = tf.size(image_bytes, out_type=tf.int64)
    blank = tf.zeros((height, width, channels))
    kept, problems = _check(image_bytes, max_pixels)

    def load(index: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
        problem = _check_jpeg(encoded, max_pixels)
        pixels = tf.cond(
            problem == "",
            lambda: _decode(encoded, height, width, channels, crop),
            lambda: blank,
        )
        return index, problem, pixels

    # A data set, because nothing else in a graph continues after an error. It
    # is set up anew for each request: what is in `load` costs time once more.
    loaded = (
        tf.data.Dataset.from_tensor_slices((tf.range(size), kept))
        .map(load, _PARALLEL)
        .ignore_errors()
        # One that is always there: a batch of nothing would be an error.
        .concatenate(tf.data.Dataset.from_tensors((size, "", blank)))
        .batch(size + 1)
    )
    indices, found, pixels = loaded.get_single_element()
    problems = tf.where(problems == "", _DAMAGED, problems)
    problems = tf.tensor_scatter_nd_update(
        tf.concat([problems, [""]], axis=0), indices[:, tf.newaxis], found
    )
    wrong = tf.where(problems != "")[:, 0]
    with tf.control_dependencies([_assert_none(wrong, problems)]):
        return tf.identity(pixels[:-1])


def _assert_none(wrong: tf.Tensor, problems: tf.Tensor) -> tf.Operation:
    # The last element is not an image, but something that can be read if all
    # are well.
    first = tf.concat([wrong, [0]], axis=0)[0]
    index = tf.strings.as_string(first)
    text = tf.strings.join(["image_bytes[", index, "] ", problems[first]])
    return tf.debugging.Assert(tf.size(wrong) == 0, [text])


def _decode(
    encoded: tf.Tensor,
    height: int,
    width: int,
    channels: int,
    crop: float | None,
) -> tf.Tensor:
    image = rgb_with_tensorflow(encoded, pillow=False)
    if channels == 1:
        image = gray_in_graph(image)
    top = left = 0
    size: Any = (height, width)
    if crop is not None:
        xp = types.SimpleNamespace(
            floor=tf.floor, maximum=tf.maximum, rint=tf.round
        )
        rows, columns = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float64))
        box = center_box(xp, rows, columns, (height, width), crop)
        tall, wide, top, left = (tf.cast(n, tf.int32) for n in box)
        size = tf.stack([tall, wide])
    image = tf.round(tf.image.resize(image, size, antialias=True))
    image = image[top : top + height, left : left + width]
    return tf.ensure_shape(image, (height, width, channels))


def _check_jpeg(encoded: tf.Tensor, max_pixels: int) -> tf.Tensor:
    """Says what is wrong with a JPEG's size; of other formats, nothing."""
    rows, columns = tf.cond(
        _starts_with(encoded, _MAGIC[0]),
        lambda: tf.unstack(tf.image.extract_jpeg_shape(encoded)[:2]),
        lambda: [0, 0],
    )
    return _check_size(
        tf.cast(rows, tf.int64), tf.cast(columns, tf.int64), max_pixels
    )


def _check_size(
    rows: tf.Tensor, columns: tf.Tensor, max_pixels: int
) -> tf.Tensor:
    numbers = [tf.strings.as_string(number) for number in (columns, rows)]
    text = f"must have at most {max_pixels} pixels. Received one of "
    problem = tf.strings.join([text, numbers[0], "x", numbers[1]])
    # By division, because the product may be too large for the type.
    large = rows > max_pixels // tf.maximum(columns, 1)
    return tf.where(large, problem, "")


def _check(
    image_bytes: tf.Tensor, max_pixels: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Looks at all that are not JPEGs, without ever failing.

    Returns:
        What is to be decoded, nothing if that must not be; and what is wrong.
    """
    starts = [_starts_with(image_bytes, magic) for magic in _MAGIC]
    # One more for what starts like none of them.
    starts.append(tf.ones_like(starts[0]))
    kind = tf.argmax(tf.stack(starts, axis=1), axis=1)
    # With zeros, so that what is short can be read all the same.
    heads = tf.strings.substr(image_bytes + bytes(32), 0, 32)
    data = tf.cast(tf.io.decode_raw(heads, tf.uint8, fixed_length=32), tf.int64)
    none = tf.zeros_like(kind)
    kept, *gif = tf.cond(
        tf.reduce_any(starts[2]),
        lambda: _first_frames(image_bytes, starts[2]),
        lambda: (image_bytes, none, none),
    )
    headers = [
        (none, none, _nothing(data)),  # JPEG: see `_check_jpeg`
        _png_header(data),
        (*gif, _nothing(data)),
        _bmp_header(data),
        _webp_header(data),
        (none, none, tf.fill(tf.shape(kind), _UNKNOWN)),
    ]
    rows, columns, problems = (
        tf.gather(tf.stack(column, axis=1), kind, batch_dims=1)
        for column in zip(*headers, strict=True)
    )
    problems = tf.where(
        problems == "", _check_size(rows, columns, max_pixels), problems
    )
    return tf.where(problems == "", kept, ""), problems


def _starts_with(encoded: tf.Tensor, start: bytes) -> tf.Tensor:
    return tf.strings.substr(encoded, 0, len(start)) == start


def _little(
    data: tf.Tensor, start: int, count: int, step: int = 1
) -> tf.Tensor:
    """The unsigned numbers of `count` bytes, the least one first."""
    weights = tf.constant([256**k for k in range(count)], tf.int64)
    stop = start + step * count
    return tf.reduce_sum(data[:, start:stop:step] * weights, axis=1)


def _png_header(data: tf.Tensor) -> _Header:
    # The greatest byte comes first.
    return _little(data, 23, 4, -1), _little(data, 19, 4, -1), _nothing(data)


def _nothing(data: tf.Tensor) -> tf.Tensor:
    return tf.fill(tf.shape(data)[:1], "")


def _bmp_header(data: tf.Tensor) -> _Header:
    def signed(start: int) -> tf.Tensor:
        # The rows of a negative height go from the top down.
        number = _little(data, start, 4)
        return tf.minimum(number, 2**32 - number)

    # TensorFlow would take the indices into a palette for grays.
    bits = _little(data, 28, 2)
    text = "must have 24 or 32 bits a pixel, as a BMP. Received one of "
    problem = text + tf.strings.as_string(bits)
    known = (bits == 24) | (bits == 32)
    return signed(22), signed(18), tf.where(known, "", problem)


def _webp_header(data: tf.Tensor) -> _Header:
    lossy, lossless, extended = (
        tf.reduce_all(data[:, 8:16] == list(b"WEBPVP8" + letter), axis=1)
        for letter in (b" ", b"L", b"X")
    )
    # 14 bits each, for the lossless ones packed.
    packed = _little(data, 21, 4)
    rows = tf.where(
        lossy, _little(data, 28, 2) % 2**14, packed // 2**14 % 2**14 + 1
    )
    columns = tf.where(lossy, _little(data, 26, 2), packed) % 2**14
    columns = tf.where(lossy, columns, columns + 1)
    rows = tf.where(extended, _little(data, 27, 3) + 1, rows)
    columns = tf.where(extended, _little(data, 24, 3) + 1, columns)
    animated = extended & (data[:, 20] // 2 % 2 == 1)
    problem = tf.where(animated, "must not be an animated WebP image", "")
    known = lossy | lossless | extended
    return rows, columns, tf.where(known, problem, _UNKNOWN)


def _first_frames(
    image_bytes: tf.Tensor, are_gifs: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Cuts GIFs off behind their first frame: TensorFlow decodes them all.

    Returns:
        The images, and rows and columns of those that are GIFs.
    """
    none = tf.constant(0, tf.int64)
    return tf.map_fn(
        lambda one: tf.cond(
            one[1], lambda: _first_frame(one[0]), lambda: (one[0], none, none)
        ),
        (image_bytes, are_gifs),
        fn_output_signature=(tf.string, tf.int64, tf.int64),
    )


def _first_frame(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    # Ends in zeros, on which every walk through it stops.
    data = tf.io.decode_raw(tf.strings.join([encoded, bytes(32)]), tf.uint8)
    start = tf.while_loop(
        lambda start: _byte(data, start) == 0x21,  # an extension
        lambda start: [_blocks_end(data, start + 2)],
        [13 + _palette(data, 10)],
    )[0]
    # Of the frame; the size in the file's header binds no decoder.
    columns, rows = (
        _byte(data, start + k) + 256 * _byte(data, start + k + 1)
        for k in (5, 7)
    )
    # A descriptor, a palette, a byte, and the pixels.
    end = _blocks_end(data, start + 10 + _palette(data, start + 9) + 1)
    # By itself, in the upper left corner, and without what stands before it
    # and says which of its pixels are transparent.
    frame = tf.strings.join(
        [
            tf.strings.substr(encoded, 0, 13 + _palette(data, 10)),
            b"," + bytes(4),
            tf.strings.substr(
                encoded,
                tf.minimum(start + 5, tf.strings.length(encoded)),
                tf.maximum(end - start - 5, 0),
            ),
            b";",
        ]
    )
    return frame, tf.cast(rows, tf.int64), tf.cast(columns, tf.int64)


def _byte(data: tf.Tensor, start: tf.Tensor | int) -> tf.Tensor:
    return tf.cast(data[tf.minimum(start, tf.size(data) - 1)], tf.int32)


def _palette(data: tf.Tensor, flags: tf.Tensor | int) -> tf.Tensor:
    """Bytes of the palette that the flags describe."""
    value = _byte(data, flags)
    return tf.where(value >= 128, 3 * 2 ** (value % 8 + 1), 0)


def _blocks_end(data: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Where a chain of blocks ends, each of which starts with its size."""
    end, _ = tf.while_loop(
        lambda start, size: size > 0,
        lambda start, size: [
            start + 1 + size,
            _byte(data, start + 1 + size),
        ],
        [start, _byte(data, start)],
    )
    return end + 1
