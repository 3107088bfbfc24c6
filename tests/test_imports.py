"""The import rules: which part may know which, and what starts TensorFlow."""

import ast
import sys
from graphlib import TopologicalSorter

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "keras_muffnet"

# Each part may import the parts before it in its row.
CORE = [
    "_arguments",
    "_files",
    "_lazy",
    "_optional",
    "federation",
    "presets",
    "budget",
    "plots",
    "layers",
    "graph",
    "folding",
    "preprocessing",
    "litert",
    "blocks",
    "complexity",
    "assembly",
    "published",
    "muffnet",
    "detection",
]
ABOVE_CORE = [
    "baselines",
    "data",
    "export",
    "quantization",
    "model_server",
    "evaluation",
    "training",
    "reproduction",
    "cli",
    "__main__",
]
CORE_REQUIRES = {"keras", "numpy", "packaging"}
# What a part above the core may import of its row.
BESIDE = {
    "evaluation": ["data"],
    "export": ["data", "quantization"],
    "model_server": ["data"],
    "training": ["baselines", "data", "evaluation"],
    "reproduction": ["baselines", "training"],
    "cli": [
        "",  # the package itself
        "data",
        "evaluation",
        "export",
        "model_server",
        "quantization",
        "training",
    ],
    "__main__": ["cli"],
}
ALSO_REQUIRES = {
    "litert": {"tensorflow"},
    # PIL and jax: the feed that needs no TensorFlow
    "data": {"PIL", "jax", "tensorflow"},
    "export": {"tensorflow"},
    "quantization": {
        "tensorflow",
        "tensorflow_model_optimization",
        "tf_keras",
    },
    "evaluation": {"tensorflow"},
    "training": {"jax", "tensorflow", "torch"},
    "cli": {"PIL", "tf_keras"},
    # google: protocol buffers; tensorflow_serving and grpc: the gRPC service
    "model_server": {
        "PIL",
        "google",
        "grpc",
        "orjson",
        "simdjson",
        "tensorflow",
        "tensorflow_serving",
        "uvicorn",
    },
}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                path_of_it = ROOT / name.replace(".", "/")
                is_module = path_of_it.with_suffix(".py").exists()
                is_package = (path_of_it / "__init__.py").exists()
                yield name if is_module or is_package else node.module


SOURCES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE or path.name != "__init__.py"
)


@pytest.mark.parametrize(
    "path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_point_one_way(path):
    part = part_of(path)
    assert part in CORE + ABOVE_CORE, "a new part: give it a place above"
    for name in imported(path):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top == "keras_muffnet" and target != part:
            allowed = (
                CORE + BESIDE.get(part, [])
                if part in ABOVE_CORE
                else CORE[: CORE.index(part)]
            )
            assert target in allowed, f"{part} imports {name}"
        assert not name.startswith("keras.src"), f"{part} imports {name}"
        if top not in {"keras_muffnet", *sys.stdlib_module_names}:
            known = CORE_REQUIRES | ALSO_REQUIRES.get(part, set())
            assert top in known, f"{part} imports {name}"


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def test_there_is_no_circle_of_imports():
    """Not even one that imports within functions, or for types, would open."""
    modules = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    graph = {
        module: {name for name in imported(path) if name in modules} - {module}
        for module, path in modules.items()
    }
    assert sum(map(len, graph.values())) > 2 * len(graph)
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_federation_is_numpy_only():
    for name in ("federation", "presets", "budget", "_arguments", "_files"):
        tops = {n.partition(".")[0] for n in imported(PACKAGE / f"{name}.py")}
        assert "keras" not in tops


HEAVY = ("tensorflow", "keras", "jax", "torch", "tf_keras")


def test_import_is_silent_and_loads_no_backend(run_python, tmp_path):
    code = (
        "import os, sys; before = dict(os.environ);"
        "import keras_muffnet;"
        "from keras_muffnet import SharingMatrix, StageSpec;"
        "import keras_muffnet.model_server, keras_muffnet.quantization;"
        "import keras_muffnet.training, keras_muffnet.detection;"
        "from keras_muffnet.baselines import PEERS;"
        "assert dict(os.environ) == before;"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert run_python("-c", code) == "[]\n"


def help_of(start):
    """A program's help, and then which of the heavy packages are loaded."""
    return f"""
import runpy, sys
sys.argv = ["program", "--help"]
try:
    {start}
except SystemExit as stop:
    assert not stop.code
print([m for m in {HEAVY} if m in sys.modules])
"""


PROGRAMS = [
    path
    for path in sorted((ROOT / "tools").rglob("*.py"))
    if 'if __name__ == "__main__"' in path.read_text()
]


def test_help_of_tools_loads_no_backend(run_python):
    code = "".join(
        help_of(f"runpy.run_path({str(program)!r}, run_name='__main__')")
        for program in PROGRAMS
    )
    printed = run_python("-c", code).splitlines()
    assert len(PROGRAMS) > 5
    assert printed.count("[]") == len(PROGRAMS)
    assert sum("usage:" in line for line in printed) == len(PROGRAMS)


def test_help_of_commands_loads_no_backend(run_python):
    code = "from keras_muffnet.cli.main import COMMANDS, main\n" + help_of(
        "runpy.run_module('keras_muffnet.model_server', run_name='__main__')"
    )
    code += """
for command in COMMANDS:
    assert f"keras_muffnet.cli.{command}" not in sys.modules
main([])
for command in COMMANDS:
    assert f"keras_muffnet.cli.{command}" not in sys.modules
    try:
        main([command, "--help"])
    except SystemExit as stop:
        assert not stop.code
    assert f"keras_muffnet.cli.{command}" in sys.modules
print([m for m in HEAVY if m in sys.modules])
""".replace("HEAVY", str(HEAVY))
    printed = run_python("-c", code)
    assert printed.splitlines().count("[]") == 2
    for name in ("train", "evaluate", "quantize", "export", "detect", "count"):
        assert f"usage: muffnet {name} " in printed
    assert "usage: muffnet COMMAND ..." in printed


@pytest.fixture
def loading(run_forked, tmp_path):
    """Code that loads a saved MuffNet or detector, by name."""
    run_forked(
        "-c",
        f"""
import os
from keras_muffnet import MuffNet, StageSpec
from keras_muffnet.detection import SSD, SSDLoss
os.chdir({str(tmp_path)!r})
stages = [StageSpec("dense", 2, 4)]
model = MuffNet(input_shape=(16, 16, 3), classes=2, stages=stages)
model.save("muffnet.keras")
body = MuffNet(input_shape=(96, 96, 3), include_top=False, stages=stages * 3)
model = SSD(body, classes=2)
model.compile("sgd", SSDLoss(model.layers[-1].anchors))
model.save("detector.keras")
""",
    )

    def code(name):
        path = str(tmp_path / f"{name}.keras")
        return f"print(keras.saving.load_model({path!r}).layers[-1].name)\n"

    return code


@pytest.mark.parametrize("name", ["muffnet", "detector"])
def test_saved_models_load_where_keras_is_imported_first(
    run_forked, loading, name
):
    # The process that is forked has Keras, and not yet the package.
    code = f"import keras, keras_muffnet\n{loading(name)}"
    assert run_forked("-c", code).endswith("predictions\n")


def test_saved_models_load_once_what_builds_them_is_imported(
    run_python, loading
):
    code = (
        "from keras_muffnet import MuffNet\nimport keras\n"
        f"{loading('muffnet')}"
        "from keras_muffnet.detection import SSD, SSDLoss\n"
        f"{loading('detector')}"
    )
    assert run_python("-c", code).split()[-2:] == ["predictions"] * 2
