"""How an image is turned, as the EXIF block in its file says.

Read by hand, because TensorFlow does not, and alike in Python and in a graph:
of a JPEG the block among its first segments, of a PNG the chunk before its
pixels, both in the first 64 KiB; of a WebP the chunk anywhere.
"""

import struct
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    import tensorflow as tf

# How many parts of a file, and entries of an EXIF block, are looked at.
_PARTS = 100
_HEAD = 2**16
_ENTRIES = 200
ORIENTATION = 0x0112
_SHORT = 3


def orientation(encoded: bytes) -> int:
    """Reads how a JPEG, PNG or WebP is turned.

    Returns:
        1 to 8, as EXIF numbers them: how the first row and column of the
        file lie when the image is seen upright. 1 if it does not say.
    """
    start = _exif_start(encoded)
    order = {b"II": "<", b"MM": ">"}.get(encoded[start : start + 2])
    if not start or order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(f"{order}I", encoded, start + 4)
        (count,) = struct.unpack_from(f"{order}H", encoded, start + offset)
        for i in range(min(count, _ENTRIES)):
            at = start + offset + 2 + 12 * i
            tag, kind = struct.unpack_from(f"{order}HH", encoded, at)
            if (tag, kind) == (ORIENTATION, _SHORT):
                (value,) = struct.unpack_from(f"{order}H", encoded, at + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _exif_start(encoded: bytes) -> int:
    """Where the TIFF header of the EXIF block is; 0 if there is none."""
    if encoded[:2] == b"\xff\xd8":
        at = 2
        for _ in range(_PARTS):
            # Application segments and comments come first.
            if encoded[at : at + 1] != b"\xff" or not (
                encoded[at + 1 : at + 2] == b"\xfe"
                or b"\xe0" <= encoded[at + 1 : at + 2] <= b"\xef"
            ):
                return 0
            if encoded[at + 1 : at + 2] == b"\xe1" and (
                encoded[at + 4 : at + 10] == b"Exif\0\0"
            ):
                return at + 10 if at + 10 <= _HEAD else 0
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        return 0
    if encoded[:8] == b"\x89PNG\r\n\x1a\n":
        at = 8
        for _ in range(_PARTS):
            kind = encoded[at + 4 : at + 8]
            if kind == b"eXIf":
                return at + 8 if at + 8 <= _HEAD else 0
            if kind == b"IDAT" or not kind:
                return 0
            at += 12 + int.from_bytes(encoded[at : at + 4], "big")
        return 0
    if encoded[:4] == b"RIFF" and encoded[8:16] == b"WEBPVP8X":
        at = 12
        for _ in range(_PARTS):
            kind = encoded[at : at + 4]
            if kind == b"EXIF":
                # Some programs write the head that a JPEG has, too.
                head = encoded[at + 8 : at + 14] == b"Exif\0\0"
                return at + (14 if head else 8)
            if not kind:
                return 0
            length = int.from_bytes(encoded[at + 4 : at + 8], "little")
            at += 8 + length + length % 2
    return 0


def has_exif_in_graph(encoded: "tf.Tensor") -> "tf.Tensor":
    """Whether a string `()` may be an image with an EXIF block."""
    import tensorflow as tf

    head = tf.strings.substr(encoded, 0, _HEAD)
    marked = tf.strings.regex_full_match(head, r"\C*(?:Exif\x00\x00|eXIf)\C*")
    extended = tf.strings.regex_full_match(
        tf.strings.substr(encoded, 0, 16), r"RIFF\C{4}WEBPVP8X"
    )
    return marked | extended


def orientation_in_graph(encoded: "tf.Tensor") -> "tf.Tensor":
    """`orientation` for a string `()`, as an int32 `()`."""
    import tensorflow as tf

    return tf.cond(
        has_exif_in_graph(encoded),
        lambda: _parsed_in_graph(encoded),
        lambda: tf.constant(1),
    )


def _parsed_in_graph(encoded: "tf.Tensor") -> "tf.Tensor":
    import tensorflow as tf

    def part(at: Any, length: int) -> "tf.Tensor":
        # Past the end there is nothing, which is not an error.
        at = tf.minimum(at, tf.strings.length(encoded))
        return tf.strings.substr(encoded, at, length)

    def number(at: Any, length: int, little: Any) -> "tf.Tensor":
        data = tf.io.decode_raw(part(at, length), tf.uint8, fixed_length=length)
        data = tf.cast(data, tf.int64)
        data = tf.where(little, data[::-1], data)
        powers = tf.constant([256**k for k in reversed(range(length))])
        total = tf.reduce_sum(data * tf.cast(powers, tf.int64))
        return tf.cast(tf.minimum(total, 2**30), tf.int32)

    def walk(first: int, step: Any, stop: Any) -> "tf.Tensor":
        """From part to part, to the first that stops it."""
        (at,) = tf.while_loop(
            lambda at: ~stop(at),
            lambda at: [tf.minimum(step(at), 2**30)],
            [tf.constant(first)],
            maximum_iterations=_PARTS,
        )
        return at

    def in_jpeg() -> "tf.Tensor":
        def found(at: "tf.Tensor") -> "tf.Tensor":
            return (part(at, 2) == b"\xff\xe1") & (
                part(at + 4, 6) == b"Exif\0\0"
            )

        def stop(at: "tf.Tensor") -> "tf.Tensor":
            marker = number(at, 2, False)
            leads = (marker == 0xFFFE) | (marker // 16 == 0xFFE)
            return ~leads | found(at)

        at = walk(2, lambda at: at + 2 + number(at + 2, 2, False), stop)
        return tf.where(found(at), at + 10, 0)

    def in_png() -> "tf.Tensor":
        def stop(at: "tf.Tensor") -> "tf.Tensor":
            kind = part(at + 4, 4)
            return (kind == b"eXIf") | (kind == b"IDAT") | (kind == b"")

        at = walk(8, lambda at: at + 12 + number(at, 4, False), stop)
        return tf.where(part(at + 4, 4) == b"eXIf", at + 8, 0)

    def in_webp() -> "tf.Tensor":
        def stop(at: "tf.Tensor") -> "tf.Tensor":
            kind = part(at, 4)
            return (kind == b"EXIF") | (kind == b"")

        def step(at: "tf.Tensor") -> "tf.Tensor":
            length = number(at + 4, 4, True)
            return at + 8 + length + length % 2

        at = walk(12, step, stop)
        begin = at + tf.where(part(at + 8, 6) == b"Exif\0\0", 14, 8)
        return tf.where(part(at, 4) == b"EXIF", begin, 0)

    def in_block(start: "tf.Tensor") -> "tf.Tensor":
        little = part(start, 2) == b"II"
        known = little | (part(start, 2) == b"MM")
        first = start + number(start + 4, 4, little)
        count = number(first, 2, little)
        length = 12 * _ENTRIES
        entries = tf.io.decode_raw(
            part(first + 2, length), tf.uint8, fixed_length=length
        )
        entries = tf.cast(tf.reshape(entries, (_ENTRIES, 12)), tf.int32)
        low, high = entries[:, 0::2], entries[:, 1::2]
        shorts = tf.where(little, low + 256 * high, 256 * low + high)
        fits = (shorts[:, 0] == ORIENTATION) & (shorts[:, 1] == _SHORT)
        fits &= tf.range(_ENTRIES) < count
        value = shorts[tf.argmax(tf.cast(fits, tf.int32)), 4]
        known &= tf.reduce_any(fits) & (value >= 1) & (value <= 8)
        return tf.where(known, value, 1)

    none = tf.constant(0)
    start = tf.case(
        [
            (part(0, 2) == b"\xff\xd8", in_jpeg),
            (part(0, 8) == b"\x89PNG\r\n\x1a\n", in_png),
            (
                (part(0, 4) == b"RIFF") & (part(8, 8) == b"WEBPVP8X"),
                in_webp,
            ),
        ],
        lambda: none,
    )
    return tf.cond(start > 0, lambda: in_block(start), lambda: tf.constant(1))


def upright_in_graph(image: "tf.Tensor", turned: "tf.Tensor") -> "tf.Tensor":
    """Turns an image `(height, width, channels)` by its orientation."""
    import tensorflow as tf

    def is_of(*numbers: int) -> "tf.Tensor":
        return tf.reduce_any(turned == tf.constant(numbers))

    def changed() -> "tf.Tensor":
        # In one step, which is faster than to transpose and reverse.
        shape = tf.shape(image)
        height, width = shape[0], shape[1]
        swapped = turned >= 5
        rows = tf.range(tf.where(swapped, width, height))
        columns = tf.range(tf.where(swapped, height, width))
        rows = tf.where(is_of(3, 4, 7, 8), rows[::-1], rows)[:, tf.newaxis]
        columns = tf.where(is_of(2, 3, 6, 7), columns[::-1], columns)
        at = tf.where(swapped, columns * width + rows, rows * width + columns)
        return tf.gather(tf.reshape(image, (-1, shape[2])), at)

    return tf.cond(turned > 1, changed, lambda: image)


def upright_with_pillow(image: Any, turned: int) -> Any:
    """Turns a `PIL.Image.Image` by its orientation."""
    from PIL.Image import Transpose

    steps = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(steps[turned]) if turned in steps else image
