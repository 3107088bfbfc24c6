"""Packages that are missing: which, and the command that installs them."""

import importlib.metadata

import pytest

from keras_muffnet import _optional
from keras_muffnet._optional import install_command
from keras_muffnet._optional import load_optional
from tests.conftest import ROOT

# What is missing, what asks for it, and the extra that brings it.
# Pillow first: what others load it with stays loaded.
MISSING = [
    (
        "PIL",
        "from keras_muffnet.data import reading;reading.make_reader('arrays')",
        "arrays",
    ),
    (
        "tensorflow",
        "from keras_muffnet.data import make_dataset;make_dataset([0], [0], 1)",
        "tensorflow",
    ),
    (
        "tensorflow",
        "from keras_muffnet.data import reading;reading.make_reader('tf.data')",
        "tensorflow",
    ),
    ("tensorflow", "import keras_muffnet.export", "tensorflow"),
    (
        "ai_edge_litert",
        "from keras_muffnet.litert import LiteRTModel; LiteRTModel('m')",
        "quantization",
    ),
    (
        "matplotlib",
        "from keras_muffnet import plots; plots.new_figure(1, 1)",
        "examples",
    ),
    (
        "pycocotools",
        "from keras_muffnet.detection import metrics;"
        "metrics.coco_figures([], [], 1)",
        "detection",
    ),
    (
        "sklearn",
        "from keras_muffnet.data import load_digits; load_digits()",
        "examples",
    ),
    (
        "tensorflow_datasets",
        "from keras_muffnet.data import load_images;"
        "load_images('tfds:mnist', 'test', (28, 28))",
        "datasets",
    ),
    (
        "uvicorn",
        "from keras_muffnet.model_server import ModelServer",
        "serving",
    ),
]


def test_missing_packages_are_named_with_the_command(run_python):
    code = "".join(
        f"""
import sys
before = sys.modules.get({missing!r})
sys.modules[{missing!r}] = None
try:
    {statement}
except ImportError as error:
    print(error)
sys.modules[{missing!r}] = before
if before is None:
    del sys.modules[{missing!r}]
"""
        for missing, statement, _ in MISSING
    )
    printed = run_python("-c", code, KERAS_BACKEND="torch").splitlines()
    assert printed == [
        f'This needs {missing}: pip install -e "{ROOT}[{extra}]"'
        for missing, _, extra in MISSING
    ]


def test_of_an_installed_wheel_the_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(_optional, "_ROOT", tmp_path)
    requires = [
        "numpy<3,>=2",
        'imageio[ffmpeg]<3,>=2.34; extra == "video"',
        'pillow>=11; extra == "video"',
        'uvloop; sys_platform == "no-such-system" and extra == "video"',
        'matplotlib; extra == "examples"',
    ]
    monkeypatch.setattr(
        importlib.metadata, "requires", {"keras-muffnet": requires}.get
    )
    assert install_command("video") == (
        'pip install "imageio[ffmpeg]<3,>=2.34" "pillow>=11"'
    )


def test_a_fault_of_our_own_is_not_a_missing_package():
    with pytest.raises(ModuleNotFoundError, match=r"keras_muffnet\.nothing"):
        load_optional("keras_muffnet.nothing", "examples")
