"""Decoding of encoded images inside a graph, for signatures that take them."""

import tensorflow as tf

# The most pixels that an image may have: 192 MB once decoded to RGB.
MAX_PIXELS = 64 * 2**20

# Images of a request that are decoded at a time.
_PARALLEL = 8

_UNKNOWN = "must be a JPEG, PNG, GIF, BMP or WebP image"
_DAMAGED = f"{_UNKNOWN}. Received one that is damaged or not whole"

# What a file of each format starts with; for WebP more is looked at.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF")

# A height, a width and what is wrong, or nothing.
_Header = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def decode_images(
    image_bytes: tf.Tensor,
    height: int,
    width: int,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
) -> tf.Tensor:
    """Decodes images and resizes them, as `data.load_images` does.

    An image is decoded to RGB, made grey where `channels` is 1, resized
    bilinearly with antialiasing, without keeping its aspect ratio, and rounded
    to whole levels. Transparency is ignored. Works eagerly and in a graph; a
    graph needs TensorFlow 2.21 or later for WebP (TF Serving: its image of that
    version), any 2.x for the other formats.

    What is wrong with an image is found before any memory is given to its
    pixels, but for damage. Of a GIF only the first frame is read.

    Args:
        image_bytes: strings `(batch,)`, each an encoded JPEG, PNG, GIF, BMP (24
            or 32 bits a pixel) or WebP (not animated) image of any size.
        height: height to resize to, in pixels.
        width: width to resize to, in pixels.
        channels: 3 for RGB, 1 for grey.
        max_pixels: the most pixels, height times width, of an encoded image.

    Returns:
        float32 `(batch, height, width, channels)` with whole numbers in
        [0, 255]. `keras_muffnet.preprocess_input` scales them.

    Raises:
        tf.errors.InvalidArgumentError: at run time, if an image is of another
            kind, too large or damaged. The text names the first such image:
            `image_bytes[3] must be ...`.
    """
    size = tf.size(image_bytes, out_type=tf.int64)
    blank = tf.zeros((height, width, channels))

    def load(index: tf.Tensor, encoded: tf.Tensor) -> tuple[tf.Tensor, ...]:
        encoded, problem = _check(encoded, max_pixels)
        pixels = tf.cond(
            problem == "",
            lambda: _decode(encoded, height, width, channels),
            lambda: blank,
        )
        return index, problem, pixels

    # A data set, because nothing else in a graph goes on after an error.
    loaded = (
        tf.data.Dataset.from_tensor_slices((tf.range(size), image_bytes))
        .map(load, _PARALLEL)
        .ignore_errors()
        # One that is always there: a batch of nothing would be an error.
        .concatenate(tf.data.Dataset.from_tensors((size, "", blank)))
        .batch(size + 1)
    )
    indices, problems, pixels = loaded.get_single_element()
    problems = tf.tensor_scatter_nd_update(
        tf.fill([size + 1], _DAMAGED), indices[:, tf.newaxis], problems
    )
    wrong = tf.where(problems != "")[:, 0]
    with tf.control_dependencies([_assert_none(wrong, problems)]):
        return tf.identity(pixels[:-1])


def _assert_none(wrong: tf.Tensor, problems: tf.Tensor) -> tf.Operation:
    # The last element is no image, but something that can be read if all are
    # well.
    first = tf.concat([wrong, [0]], axis=0)[0]
    index = tf.strings.as_string(first)
    text = tf.strings.join(["image_bytes[", index, "] ", problems[first]])
    return tf.debugging.Assert(tf.size(wrong) == 0, [text])


def _decode(
    encoded: tf.Tensor, height: int, width: int, channels: int
) -> tf.Tensor:
    # Always as RGB: not every format is decoded to grey.
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    if channels == 1:
        image = tf.image.rgb_to_grayscale(image)
    image = tf.image.resize(image, (height, width), antialias=True)
    return tf.round(tf.ensure_shape(image, (height, width, channels)))


def _check(encoded: tf.Tensor, max_pixels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what is to be decoded, and what is wrong with it."""
    starts = [
        tf.strings.substr(encoded, 0, len(magic)) == magic for magic in _MAGIC
    ]
    # One more for what starts like none of them.
    kind = tf.argmax([*starts, True], output_type=tf.int32)
    encoded = tf.cond(starts[2], lambda: _first_frame(encoded), lambda: encoded)
    # With zeros, so that what is short can be read all the same.
    head = tf.strings.substr(tf.strings.join([encoded, bytes(32)]), 0, 32)
    data = tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int64)
    rows, columns, problem = tf.switch_case(
        kind,
        [
            lambda: _jpeg_header(encoded),
            lambda: _png_header(data),
            lambda: _gif_header(encoded),
            lambda: _bmp_header(data),
            lambda: _webp_header(head, data),
            lambda: _header(problem=_UNKNOWN),
        ],
    )
    numbers = [tf.strings.as_string(n) for n in (columns, rows)]
    too_large = tf.strings.join(
        [
            f"must have at most {max_pixels} pixels. Received one of ",
            *(numbers[0], "x", numbers[1]),
        ]
    )
    large = (problem == "") & (rows * columns > max_pixels)
    return encoded, tf.where(large, too_large, problem)


def _header(
    rows: tf.Tensor | int = 0,
    columns: tf.Tensor | int = 0,
    problem: tf.Tensor | str = "",
) -> _Header:
    return (
        tf.cast(rows, tf.int64),
        tf.cast(columns, tf.int64),
        tf.convert_to_tensor(problem),
    )


def _little(data: tf.Tensor, start: tf.Tensor | int, count: int) -> tf.Tensor:
    """The unsigned number of `count` bytes, the least one first."""
    weights = tf.constant([256**k for k in range(count)], tf.int64)
    part = tf.cast(data[start : start + count], tf.int64)
    return tf.reduce_sum(part * weights)


def _jpeg_header(encoded: tf.Tensor) -> _Header:
    shape = tf.image.extract_jpeg_shape(encoded)
    return _header(shape[0], shape[1])


def _png_header(data: tf.Tensor) -> _Header:
    last_first = data[23:15:-1]
    return _header(_little(last_first, 0, 4), _little(last_first, 4, 4))


def _bmp_header(data: tf.Tensor) -> _Header:
    def signed(start: int) -> tf.Tensor:
        # The rows of a negative height go from the top down.
        number = _little(data, start, 4)
        return tf.minimum(number, 2**32 - number)

    # TensorFlow would take the indices into a palette for greys.
    bits = _little(data, 28, 2)
    problem = tf.strings.join(
        [
            "must have 24 or 32 bits a pixel, as a BMP. Received one of ",
            tf.strings.as_string(bits),
        ]
    )
    known = (bits == 24) | (bits == 32)
    return _header(signed(22), signed(18), tf.where(known, "", problem))


def _webp_header(head: tf.Tensor, data: tf.Tensor) -> _Header:
    lossy, lossless, extended = (
        tf.strings.substr(head, 8, 8) == b"WEBPVP8" + letter
        for letter in (b" ", b"L", b"X")
    )
    # 14 bits each, for the lossless ones packed.
    packed = _little(data, 21, 4)
    sizes = [
        (_little(data, 28, 2) % 2**14, _little(data, 26, 2) % 2**14),
        (packed // 2**14 % 2**14 + 1, packed % 2**14 + 1),
        (_little(data, 27, 3) + 1, _little(data, 24, 3) + 1),
    ]
    kind = tf.argmax([lossy, lossless, extended])
    rows, columns = tf.unstack(tf.gather(tf.stack(sizes), kind))
    animated = extended & (data[20] // 2 % 2 == 1)
    problem = tf.where(animated, "must not be an animated WebP image", "")
    known = lossy | lossless | extended
    return _header(rows, columns, tf.where(known, problem, _UNKNOWN))


def _gif_header(encoded: tf.Tensor) -> _Header:
    # Of the frame; that of the whole, in the file's header, binds no decoder.
    data = tf.io.decode_raw(encoded, tf.uint8)
    start = _gif_frame(data)
    return _header(_little(data, start + 7, 2), _little(data, start + 5, 2))


def _first_frame(encoded: tf.Tensor) -> tf.Tensor:
    """Cuts a GIF off behind its first frame: TensorFlow decodes them all."""
    data = tf.io.decode_raw(encoded, tf.uint8)
    start = _gif_frame(data)
    # A descriptor, a palette, a byte, and the pixels.
    end = _blocks_end(data, start + 10 + _palette(data, start + 9) + 1)
    return tf.strings.join([tf.strings.substr(encoded, 0, end), b";"])


def _gif_frame(data: tf.Tensor) -> tf.Tensor:
    """Where the descriptor of a GIF's first frame starts."""
    return tf.while_loop(
        lambda start: data[start] == 0x21,  # an extension
        lambda start: [_blocks_end(data, start + 2)],
        [13 + _palette(data, 10)],
    )[0]


def _palette(data: tf.Tensor, flags: tf.Tensor | int) -> tf.Tensor:
    """Bytes of the palette that the flags tell of."""
    value = tf.cast(data[flags], tf.int32)
    return tf.where(value >= 128, 3 * 2 ** (value % 8 + 1), 0)


def _blocks_end(data: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Where a chain of blocks ends, each of which starts with its size."""
    return (
        tf.while_loop(
            lambda start: data[start] > 0,
            lambda start: [start + 1 + tf.cast(data[start], tf.int32)],
            [start],
        )[0]
        + 1
    )
