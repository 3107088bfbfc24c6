"""The examples in docstrings run, each in a folder of its own.

Beside the imports that an example shows it has what stands for the reader's:
`model`, a classifier of 32x32 images, `images` and `labels`; and the files of
`tools/check_docs.py`, with the model as `model.keras` and `model.tflite`.
"""

import ast
import re

import keras
import numpy as np
import pytest

from tests.conftest import ROOT
from tools.check_docs import make_files


def find_examples():
    """The examples of the package: source text by file and name."""
    found = {}
    for path in sorted((ROOT / "keras_muffnet").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                blocks = re.findall(
                    r"^```python\n(.*?)^```$", text, re.M | re.S
                )
                if blocks:
                    name = getattr(node, "name", "module")
                    place = path.relative_to(ROOT / "keras_muffnet")
                    found[f"{place}:{name}"] = "".join(blocks)
    return found


EXAMPLES = find_examples()
# They train a network; the others take a minute together.
SLOW = ("detection/evaluation.py:MeanAveragePrecision", "training/loop.py:fit")


@pytest.fixture(scope="module")
def reader_model():
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(8, 3, strides=4, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    # One batch after the other: nothing is compiled for it.
    model.compile(
        "adam",
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        run_eagerly=True,
    )
    return model


@pytest.fixture(scope="module")
def reader_tflite(reader_model, tmp_path_factory):
    from keras_muffnet.export import export_litert

    path = tmp_path_factory.mktemp("litert") / "model.tflite"
    return export_litert(reader_model, path).read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in EXAMPLES
    ],
)
def test_examples_run(name, reader_model, reader_tflite, tmp_path, monkeypatch):
    make_files(tmp_path)
    reader_model.save(tmp_path / "model.keras")
    (tmp_path / "model.tflite").write_bytes(reader_tflite)
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (16, 32, 32, 3)).astype("float32")
    run(
        EXAMPLES[name],
        {"model": reader_model, "images": images, "labels": np.arange(16) % 3},
    )


def run(code, names):
    """Runs an example; a value with a comment behind it must be that one."""
    lines = code.splitlines()
    for node in ast.parse(code).body:
        comment = lines[node.end_lineno - 1][node.end_col_offset :]
        if isinstance(node, ast.Expr) and comment:
            value = eval(ast.unparse(node.value), names)
            assert repr(value) == comment.removeprefix("  # ")
        else:
            exec(ast.unparse(node), names)
