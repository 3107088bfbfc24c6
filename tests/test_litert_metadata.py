"""Metadata in .tflite files, and such files as C headers."""

import io
import re
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from keras_muffnet.litert.metadata import Metadata
from keras_muffnet.litert.metadata import c_header
from keras_muffnet.litert.metadata import embed_metadata
from keras_muffnet.litert.metadata import read_metadata

LABELS = ["ant", "bee, wild", "Käfer", "cat"]


def convert(channels=3, quantized=False, units=16, **flags):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, channels, units)).astype("float32")
    weights = rng.normal(size=(units, 4)).astype("float32")

    @tf.function(
        input_signature=[tf.TensorSpec((1, 8, 8, channels), name="image")]
    )
    def score(image):
        x = tf.nn.relu(tf.nn.conv2d(image, kernel, 2, "SAME"))
        x = tf.matmul(tf.reduce_mean(x, (1, 2)), weights)
        return {"scores": tf.nn.softmax(x)}

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [score.get_concrete_function()]
    )
    if quantized:
        images = rng.uniform(-1, 1, (8, 1, 8, 8, channels)).astype("float32")
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([x] for x in images)
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        ]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    for flag, value in flags.items():
        setattr(converter, flag, value)
    return converter.convert()


@pytest.fixture(scope="module")
def content():
    return convert()


@pytest.fixture(scope="module")
def int8_content():
    # Large enough for weights that one would notice to be moved or cut.
    return convert(quantized=True, units=20_000)


def scores(content):
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    image = interpreter.get_input_details()[0]
    rng = np.random.default_rng(1)
    pixels = rng.integers(-128, 128, image["shape"])
    if image["dtype"] is np.float32:
        pixels = pixels / 128
    interpreter.set_tensor(image["index"], pixels.astype(image["dtype"]))
    interpreter.invoke()
    answer = interpreter.get_output_details()[0]
    return interpreter.get_tensor(answer["index"])


def details(content):
    interpreter = Interpreter(model_content=content)
    ends = interpreter.get_input_details(), interpreter.get_output_details()
    return [end[0] for end in ends]


def unpacked(content):
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def plain(value):
    """A model of the schema's classes as lists and dicts."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.tolist())
    if hasattr(value, "__dict__"):
        return {name: plain(x) for name, x in vars(value).items()}
    return value


def all_but_metadata(content):
    model = unpacked(content)
    kept = [m for m in model.metadata if m.name != b"TFLITE_METADATA"]
    gone = {m.buffer for m in model.metadata if m not in kept}
    model.metadata = kept
    model.buffers = [b for k, b in enumerate(model.buffers) if k not in gone]
    return plain(model)


def test_metadata_come_back(content):
    embedded = embed_metadata(
        content,
        name="MuffNet",
        description="Names insects. Größe: klein",
        labels=LABELS,
        mean=(127.5, 100, 50),
        std=64,
    )
    assert read_metadata(embedded) == Metadata(
        name="MuffNet",
        description="Names insects. Größe: klein",
        labels=tuple(LABELS),
        mean=(127.5, 100.0, 50.0),
        std=(64.0, 64.0, 64.0),
        minimum=(-127.5 / 64, -100 / 64, -50 / 64),
        maximum=(127.5 / 64, 155 / 64, 205 / 64),
        color_space="RGB",
        input_name="image",
        output_name=details(content)[1]["name"],
    )


def test_defaults_are_those_of_preprocess_input():
    embedded = embed_metadata(convert(channels=1), name="gray")
    metadata = read_metadata(embedded)
    assert metadata.color_space == "GRAYSCALE"
    assert metadata.labels is None
    assert (metadata.mean, metadata.std) == ((128.0,), (128.0,))
    assert (metadata.minimum, metadata.maximum) == ((-1.0,), (127 / 128,))
    assert not zipfile.is_zipfile(io.BytesIO(embedded))


@pytest.mark.parametrize("fixture", ["content", "int8_content"])
def test_model_stays_as_it_is(request, fixture):
    before = request.getfixturevalue(fixture)
    after = embed_metadata(before, name="a", labels=LABELS)
    assert after[4:8] == b"TFL3"
    assert all_but_metadata(after) == all_but_metadata(before)
    np.testing.assert_array_equal(scores(after), scores(before))


def test_buffers_are_aligned(int8_content):
    embedded = embed_metadata(int8_content, name="a", labels=LABELS)
    model = schema.Model.GetRootAsModel(embedded, 0)
    tables = [model.Buffers(k)._tab for k in range(model.BuffersLength())]
    starts = [t.Vector(t.Offset(4)) for t in tables if t.Offset(4)]
    assert len(starts) > 3
    assert {start % 16 for start in starts} == {0}


def test_labels_are_a_stored_file_at_the_end(content, tmp_path):
    embedded = embed_metadata(content, name="a", labels=LABELS)
    (tmp_path / "m.tflite").write_bytes(embedded)
    with zipfile.ZipFile(tmp_path / "m.tflite") as archive:
        assert archive.testzip() is None
        (entry,) = archive.infolist()
        text = archive.read(entry)
    assert entry.filename == "labels.txt"
    assert entry.compress_type == zipfile.ZIP_STORED
    assert text.decode() == "ant\nbee, wild\nKäfer\ncat\n"
    # Counted from the start of the whole file.
    assert embedded[entry.header_offset :].startswith(b"PK\3\4")


def test_metadata_are_replaced(content):
    once = embed_metadata(content, name="first", labels=LABELS)
    other = embed_metadata(once, name="second", labels=LABELS[::-1])
    assert read_metadata(other).name == "second"
    assert read_metadata(other).labels == tuple(LABELS[::-1])
    assert b"first" not in other
    assert embed_metadata(other, name="first", labels=LABELS) == once
    assert read_metadata(embed_metadata(once, name="none")).labels is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": " "}, "`name` must be a string with text"),
        ({"name": None}, "`name` must be a string with text"),
        ({"description": 3}, "`description` must be a string"),
        ({"mean": (1, 2)}, "`mean` must be .* 3 channels"),
        ({"mean": float("nan")}, "`mean` must be a finite number"),
        ({"mean": "128"}, "`mean` must be a finite number"),
        ({"std": None}, "`std` must be a finite number"),
        ({"std": (1, 0, 1)}, "`std` must be positive"),
        ({"labels": "abcd"}, "`labels` must be a sequence"),
        ({"labels": LABELS[:3]}, "`labels` must be 4, .* Received: 3 labels"),
        ({"labels": ["a", "b", "c", ""]}, "of one line each. Received: ''"),
        ({"labels": ["a", "b", "c", "d\n"]}, "of one line each"),
        ({"labels": ["a", "b", "c", 4]}, "of one line each. Received: 4"),
        ({"labels": ["a", "b", "c", "a"]}, r"unique. Received twice: \['a'\]"),
    ],
)
def test_arguments_are_checked(content, arguments, message):
    with pytest.raises(ValueError, match=message):
        embed_metadata(content, **{"name": "a", **arguments})


@pytest.mark.parametrize("bad", [b"", b"PK\3\4 no model", None, "a.tflite"])
def test_content_must_be_a_model(bad):
    for use in (lambda x: embed_metadata(x, name="a"), read_metadata):
        with pytest.raises(ValueError, match="`content` must be the bytes"):
            use(bad)


def test_model_must_take_one_image():
    with pytest.raises(ValueError, match="1 or 3 channels"):
        embed_metadata(convert(channels=4), name="a")
    with pytest.raises(ValueError, match="in its flatbuffer"):
        embed_metadata(convert(_experimental_use_buffer_offset=True), name="a")


def test_reading_needs_metadata_and_their_files(content):
    with pytest.raises(ValueError, match="`content` must hold metadata"):
        read_metadata(content)
    embedded = embed_metadata(content, name="a", labels=LABELS)
    cut = embedded[: embedded.index(b"PK\3\4")]
    with pytest.raises(ValueError, match=r"must hold the file 'labels\.txt'"):
        read_metadata(cut)


PROGRAM = """
#include <stdio.h>
#include "model.h"

int main(void) {
  if ((size_t)model_data % 16 != 0) return 2;
  return fwrite(model_data, 1, model_data_len, stdout) != model_data_len;
}
"""


@pytest.mark.parametrize(
    ("compiler", "standard"),
    [("cc", "c99"), ("cc", "c11"), ("c++", "c++98"), ("c++", "c++17")],
)
def test_header_compiles_to_the_same_bytes(
    content, tmp_path, compiler, standard
):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on this machine")
    header = c_header(content, "model_data")
    assert max(map(len, header.splitlines())) <= 80
    (tmp_path / "model.h").write_text(header)
    source = tmp_path / ("a.c" if compiler == "cc" else "a.cc")
    source.write_text('#include "model.h"' + PROGRAM)
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic-errors"]
    program = tmp_path / "a.out"
    subprocess.run(
        [compiler, f"-std={standard}", *strict, source, "-o", program],
        check=True,
    )
    assert subprocess.check_output([program]) == content


@pytest.mark.parametrize("size", [1, 12, 13])
def test_header_rows(size):
    content = bytes(range(size))
    header = c_header(content, "m")
    body = header[header.index("{") : header.index("}")]
    numbers = re.findall("0x[0-9a-f]{2}", body)
    assert bytes(int(n, 16) for n in numbers) == content
    assert len(body.splitlines()) == 1 + -(-size // 12)
    assert f"const unsigned int m_len = {size};" in header


@pytest.mark.parametrize(
    "name", ["", "1a", "a-b", "a b", "ä", "int", "class", "_a", "a__b", None]
)
def test_header_name_is_checked(name):
    with pytest.raises(ValueError, match="`name` must be a C identifier"):
        c_header(b"a", name)


def test_header_needs_bytes():
    for content in (b"", "abc", None):
        with pytest.raises(ValueError, match="`content` must be bytes"):
            c_header(content, "a")
