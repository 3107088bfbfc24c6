"""All readers give the pixels that `data.decoding` has the rule for."""

import functools
import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_muffnet.data import load_images
from keras_muffnet.data.decoding import decode_as_served
from keras_muffnet.data.decoding import image_sizes
from keras_muffnet.data.decoding import rgb_with_pillow
from keras_muffnet.data.folders import ArchiveExamples
from keras_muffnet.data.geometry import Geometry
from keras_muffnet.data.reading import PillowReader
from keras_muffnet.data.reading import TensorFlowReader
from keras_muffnet.export.decoding import decode_images

SIZE = (24, 16)
# Smooth, so that lossy formats keep it, and turned differently everywhere.
ROWS, COLUMNS = np.mgrid[0:24, 0:16]
RGB = np.stack([10 * ROWS, 15 * COLUMNS, 5 * (ROWS + COLUMNS)], -1)
RGB = RGB.astype(np.uint8)
GRAY = RGB[..., 0]
ALPHA = (17 * ROWS % 256).astype(np.uint8)
INK = np.stack([RGB[..., 0], RGB[..., 1], RGB[..., 2], ALPHA], -1)
DEEP = ROWS * 2570 + COLUMNS * 3
TURNS = {  # from upright to how the file holds it
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


def saved(pixels, kind, mode=None, **options):
    image = pixels
    if not isinstance(pixels, Image.Image):
        image = Image.fromarray(np.ascontiguousarray(pixels), mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(turned, order=">"):
    block = Image.Exif()
    block.endian = order
    block[0x010F] = "maker"
    block[0x0112] = turned
    return block.tobytes()


def repeated(gray):
    return np.repeat(gray[..., None], 3, -1)


def by_pillow(encoded):
    """Decoded by Pillow alone, for lossy formats without anything odd."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def palette(**options):
    image = Image.fromarray(RGB).quantize(64)
    return image, np.asarray(image.convert("RGB")), options


def gif_with_offset():
    """A frame of its own size in a larger canvas, after a comment."""
    image, pixels, _ = palette()
    whole = bytearray(saved(image, "GIF", comment=b"odd", transparency=5))
    whole[6:10] = b"\x40\x00\x40\x00"
    at = whole.index(b",\0\0\0\0\x10\0\x18\0")
    whole[at + 1] = 7
    return bytes(whole), pixels


@functools.cache
def files():
    """By name: the file, its pixels, and whether a graph can decode it."""
    image, colors, _ = palette()
    rgba = np.dstack([RGB, ALPHA])
    gray_alpha = np.dstack([GRAY, ALPHA])
    deep = saved(DEEP.astype(np.uint16), "PNG")
    deep_rgb = np.stack([DEEP] * 3, -1).astype(np.uint16)
    deep_rgb[..., 1] //= 3
    upper = (deep_rgb >> 8).astype(np.uint8)
    deep_rgba = np.dstack([deep_rgb, deep_rgb[..., :1]])
    png = {
        "gray.png": (saved(GRAY, "PNG"), repeated(GRAY)),
        "bits.png": (
            saved(Image.fromarray(GRAY > 99), "PNG"),
            repeated((GRAY > 99) * np.uint8(255)),
        ),
        "rgb.png": (saved(RGB, "PNG"), RGB),
        "rgba.png": (saved(rgba, "PNG"), RGB),
        "opaque.png": (saved(np.dstack([RGB, ALPHA | 255]), "PNG"), RGB),
        "gray_alpha.png": (saved(gray_alpha, "PNG", "LA"), repeated(GRAY)),
        "palette.png": (saved(image, "PNG"), colors),
        "palette_clear.png": (saved(image, "PNG", transparency=9), colors),
        "rgb_clear.png": (saved(RGB, "PNG", transparency=(50, 45, 40)), RGB),
        "deep_gray.png": (deep, repeated((DEEP >> 8).astype(np.uint8))),
        "deep_rgb.png": (tf.io.encode_png(deep_rgb).numpy(), upper),
        "deep_rgba.png": (tf.io.encode_png(deep_rgba).numpy(), upper),
        "turned.png": (
            saved(np.rot90(rgba), "PNG", exif=exif(6)),
            RGB,
        ),
    }
    jpegs = {
        "gray.jpg": saved(GRAY, "JPEG"),
        "rgb.jpg": saved(RGB, "JPEG"),
        "progressive.jpe": saved(RGB, "JPEG", progressive=True, subsampling=1),
        "full.jfif": saved(RGB, "JPEG", subsampling=0, quality=97),
    }
    known = {name: (x, by_pillow(x)) for name, x in jpegs.items()}
    inked = saved(INK, "JPEG", "CMYK", quality=97)
    ink = 255 - np.asarray(Image.open(io.BytesIO(inked))).astype(int)
    mixed = (ink[..., :3] * ink[..., 3:] // 255).astype(np.uint8)
    known["cmyk.jpg"] = inked, mixed
    for turned, turn in TURNS.items():
        lying = saved(turn(RGB), "JPEG", exif=exif(turned))
        back = by_pillow(lying)
        for upright in TURNS.values():
            if np.abs(upright(back).shape[0] - 24) == 0 and (
                np.abs(upright(back).astype(int) - RGB).mean() < 4
            ):
                back = upright(back)
                break
        known[f"turned_{turned}.jpg"] = lying, back
    little = saved(turn(RGB), "JPEG", exif=exif(8, "<"))
    known["turned_little.jpg"] = little, known["turned_8.jpg"][1]
    known["turned_not.jpg"] = (
        saved(RGB, "JPEG", exif=exif(77)),
        known["rgb.jpg"][1],
    )
    late = known["turned_6.jpg"][0]
    late = late[:2] + b"\xff\xfe\x00\x05odd" + late[2:]
    known["turned_late.jpg"] = late, known["turned_6.jpg"][1]
    webps = {
        "lossy.webp": saved(RGB, "WEBP"),
        "alpha.webp": saved(rgba, "WEBP", exact=True),
    }
    known |= {name: (x, by_pillow(x)) for name, x in webps.items()}
    known["lossless.webp"] = saved(RGB, "WEBP", lossless=True), RGB
    clear = saved(rgba, "WEBP", lossless=True, exact=True)
    known["lossless_alpha.webp"] = clear, RGB
    turned = saved(
        np.rot90(RGB, -1), "WEBP", lossless=True, exif=b"Exif\0\0" + exif(8)[6:]
    )
    known["turned.webp"] = turned, RGB
    more = [image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    moving = {"save_all": True, "append_images": more}
    known["still.gif"] = saved(image, "GIF"), colors
    known["clear.gif"] = saved(image, "GIF", transparency=9), colors
    known["moving.gif"] = saved(image, "GIF", **moving), colors
    known["offset.gif"] = gif_with_offset()
    known["rgb.bmp"] = saved(RGB, "BMP"), RGB
    known["rgba.bmp"] = saved(rgba, "BMP"), RGB
    only_pillow = {
        "palette.bmp": (saved(image, "BMP"), colors),
        "gray.bmp": (saved(GRAY, "BMP"), repeated(GRAY)),
        "moving.webp": (
            saved(
                RGB,
                "WEBP",
                lossless=True,
                save_all=True,
                append_images=[Image.fromarray(RGB[::-1].copy())],
            ),
            RGB,
        ),
        "rgb.tif": (saved(RGB, "TIFF"), RGB),
        "rgba.tiff": (saved(rgba, "TIFF", compression="tiff_lzw"), RGB),
        "gray.tif": (saved(GRAY, "TIFF"), repeated(GRAY)),
        "deep.tif": (
            saved(DEEP.astype(np.uint16), "TIFF"),
            repeated((DEEP >> 8).astype(np.uint8)),
        ),
        "cmyk.tif": (
            saved(INK, "TIFF", "CMYK"),
            (
                (255 - INK[..., :3].astype(int))
                * (255 - INK[..., 3:].astype(int))
                // 255
            ).astype(np.uint8),
        ),
        "turned.tif": (
            saved(np.rot90(RGB), "TIFF", tiffinfo={0x0112: 6}),
            RGB,
        ),
    }
    # TensorFlow before 2.20 reads no WebP in a graph.
    in_graph = {
        name
        for name in (*png, *known)
        if hasattr(tf.io, "decode_webp") or not name.endswith(".webp")
    }
    return {
        name: (encoded, pixels, name in in_graph)
        for name, (encoded, pixels) in {**png, **known, **only_pillow}.items()
    }


@functools.cache
def read_by(reader):
    """The pixels of all files, by name, and what is wrong with which."""
    known = {name: encoded for name, (encoded, _, _) in files().items()}
    names = list(known)
    if reader == "served":
        return {n: decode_as_served(known[n], SIZE) for n in names}, {}
    if reader == "graph":
        names = [n for n in names if files()[n][2]]
        decode = tf.function(lambda x: decode_images(x, *SIZE))
        pixels = decode(tf.constant([known[n] for n in names]))
        return dict(zip(names, pixels.numpy(), strict=True)), {}
    if reader == "detection":
        return {n: np.asarray(rgb_with_pillow(known[n])) for n in names}, {}
    examples = ArchiveExamples(names, [0] * len(names), names, known)
    into = np.zeros((len(names), *SIZE, 3), np.uint8)
    kind = {"pillow": PillowReader, "tensorflow": TensorFlowReader}[reader]
    _, bad = kind().scan(examples, Geometry(SIZE), into)
    bad = {names[at]: reason for at, reason in bad.items()}
    return dict(zip(names, into, strict=True)), bad


READERS = ["pillow", "tensorflow", "served", "graph", "detection"]


@pytest.mark.parametrize("name", files())
def test_all_readers_give_the_same_pixels(name):
    _, expected, in_graph = files()[name]
    for reader in READERS:
        if reader == "graph" and not in_graph:
            continue
        pixels, bad = read_by(reader)
        assert name not in bad, (reader, bad[name])
        np.testing.assert_array_equal(pixels[name], expected, reader)


def test_the_table_is_not_of_equal_images():
    """Turned the wrong way, an image would not pass."""
    for turned, turn in TURNS.items():
        _, expected, _ = files()[f"turned_{turned}.jpg"]
        assert np.abs(expected.astype(int) - RGB).mean() < 4
        if turned > 1:
            other = turn(RGB)
            assert other.shape != RGB.shape or (
                np.abs(other.astype(int) - RGB).mean() > 20
            )


def test_sizes_are_those_of_upright_images():
    for encoded, pixels, _ in files().values():
        assert image_sizes(encoded)[0] == pixels.shape[:2] or (
            encoded[:3] == b"GIF"  # the canvas
        )


def test_a_folder_of_all_formats_is_loaded(tmp_path):
    folder = tmp_path / "train" / "all"
    folder.mkdir(parents=True)
    for name, (encoded, _, _) in files().items():
        (folder / name).write_bytes(encoded)
    with pytest.warns(UserWarning, match="one class only"):
        loaded = load_images(tmp_path, "train", SIZE)
        gray = load_images(tmp_path, "train", SIZE, channels=1)
    for i, name in enumerate(sorted(files())):
        expected = files()[name][1]
        np.testing.assert_array_equal(loaded.images[i], expected)
        as_gray = np.asarray(Image.fromarray(expected).convert("L"))
        np.testing.assert_array_equal(gray.images[i, ..., 0], as_gray)
        served = decode_as_served(files()[name][0], SIZE, 1)
        np.testing.assert_array_equal(served[..., 0], as_gray)
    names = ["rgb.png", "turned_6.jpg", "clear.gif"]
    encoded = tf.constant([files()[name][0] for name in names])
    as_served = decode_images(encoded, *SIZE, channels=1)
    for name, pixels in zip(names, as_served.numpy(), strict=True):
        i = sorted(files()).index(name)
        np.testing.assert_array_equal(pixels, gray.images[i])


def test_resized_pixels_differ_by_a_level_at_most():
    names = ["rgb.jpg", "turned_6.jpg", "rgba.png", "rgba.tiff"]
    known = {name: files()[name][0] for name in names}
    examples = ArchiveExamples(names, [0] * len(names), names, known)
    size = (11, 13)
    results = []
    for reader in (PillowReader(), TensorFlowReader()):
        into = np.zeros((len(names), *size, 3), np.uint8)
        _, bad = reader.scan(examples, Geometry(size), into)
        assert not bad
        results.append(into.astype(int))
    served = [decode_as_served(known[name], size) for name in names]
    assert np.abs(results[0] - results[1]).max() <= 1
    assert np.abs(np.stack(served) - results[1]).max() <= 1
    assert (np.stack(served) == results[1]).mean() > 0.99
    graph = decode_images(tf.constant([known[n] for n in names[:3]]), *size)
    np.testing.assert_array_equal(graph, results[1][:3])


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_optional_formats(kind):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    else:
        pytest.importorskip("PIL._avif")
    encoded = saved(np.rot90(RGB), kind, quality=95, exif=exif(6))
    pixels = np.asarray(rgb_with_pillow(encoded))
    assert pixels.shape == RGB.shape and image_sizes(encoded)[0] == (24, 16)
    assert np.abs(pixels.astype(int) - RGB).mean() < 4
    name = f"a.{kind.lower()}"
    examples = ArchiveExamples([name], [0], [name], {name: encoded})
    into = np.zeros((1, *SIZE, 3), np.uint8)
    _, bad = TensorFlowReader().scan(examples, Geometry(SIZE), into)
    assert not bad
    np.testing.assert_array_equal(into[0], pixels)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"no image", "not an image of a known format"),
        (b"", "not an image of a known format"),
        (saved(RGB, "JPEG")[:300], "(?i)truncated|damaged"),
        (saved(RGB, "PNG")[:-40], "truncated|damaged|broken"),
        (saved(Image.new("F", (4, 4)), "TIFF"), "pixels are of the kind 'F'"),
        (saved(Image.new("I", (4, 4)), "TIFF"), "pixels are of the kind 'I'"),
    ],
)
def test_bad_images_have_one_message(encoded, reason):
    examples = ArchiveExamples(["a.png"], [0], ["a"], {"a.png": encoded})
    named = set()
    for reader in (PillowReader(), TensorFlowReader()):
        _, bad = reader.scan(examples, Geometry(SIZE))
        named.add(bad[0])
    assert len(named) == 1
    with pytest.raises(ValueError, match=reason):
        rgb_with_pillow(encoded)
    with pytest.raises(ValueError, match=r"at most 100 pixels .*16x24"):
        rgb_with_pillow(files()["rgb.png"][0], max_pixels=100)


def test_a_draft_has_the_sides_of_the_upright_image():
    large = np.asarray(Image.fromarray(RGB).resize((640, 960)))
    encoded = saved(np.rot90(large), "JPEG", exif=exif(6))
    assert rgb_with_pillow(encoded, (960, 640)).size == (640, 960)
    assert rgb_with_pillow(encoded, (240, 100)).size == (160, 240)
