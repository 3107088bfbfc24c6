"""A wheel holds all that the package needs."""

import re
import shutil
import tarfile
import zipfile

import keras_muffnet
from tests.conftest import ROOT

FILES = (
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "pyproject.toml",
    "setup.py",
)

# Extras that are for other machines, or for development.
NOT_IN_ALL = ("client", "client-grpc", "docs", "loadtest", "test")


def packages_by_extra(metadata):
    """The packages that each extra of a wheel brings."""
    pairs = re.findall(
        r"^Requires-Dist: ([\w-]+).*\bextra == \"([\w-]+)\"", metadata, re.M
    )
    found = {}
    for package, extra in pairs:
        found.setdefault(extra, set()).add(package)
    return found


def test_wheel_is_complete_and_imports_elsewhere(run_python, tmp_path):
    # From a copy: setuptools builds in the source's folder.
    source = tmp_path / "source"
    shutil.copytree(
        ROOT / "keras_muffnet",
        source / "keras_muffnet",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in FILES:
        shutil.copy(ROOT / name, source)
    run_python(
        *("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"),
        *("-w", str(tmp_path), str(source)),
    )
    [wheel] = tmp_path.glob("keras_muffnet-*.whl")
    run_python("setup.py", "-q", "sdist", "-d", str(tmp_path), cwd=source)
    [sdist] = tmp_path.glob("keras_muffnet-*.tar.gz")
    checked = run_python("-m", "twine", "check", str(wheel), str(sdist))
    assert checked.count("PASSED") == 2, checked
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert packed >= {*FILES, "keras_muffnet/weights/cifar10_0.5.weights.h5"}
    with zipfile.ZipFile(wheel) as archive:
        [about] = [n for n in archive.namelist() if n.endswith("/METADATA")]
        extras = packages_by_extra(archive.read(about).decode())
        inside = {n for n in archive.namelist() if ".dist-info/" not in n}
    for extra in extras.keys() - {"all", *NOT_IN_ALL}:
        assert extras[extra] <= extras["all"], extra
    sources = [
        *(ROOT / "keras_muffnet").rglob("*.py"),
        *(ROOT / "keras_muffnet/weights").iterdir(),
    ]
    assert inside == {
        *(str(path.relative_to(ROOT)) for path in sources),
        "keras_muffnet/py.typed",
        "keras_muffnet/model_server/page.html",
        "keras_muffnet/training/fast/kernels.c",
    }
    site = tmp_path / "site"
    run_python(
        *("-m", "pip", "install", "-q", "--no-deps", "--no-index"),
        *("--target", str(site), str(wheel)),
    )
    code = (
        "import keras_muffnet as k; print(k.__file__);"
        "print(k.stages_from_notation('average+geometric+none')[1].width);"
        "from keras_muffnet._optional import install_command;"
        "print(install_command('client'));"
        "from keras_muffnet.cli.main import main; main(['--version'])"
    )
    printed = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    where, width, command, version = printed.splitlines()
    assert (where, width) == (f"{site}/keras_muffnet/__init__.py", "132")
    # The package is on no index: the command names what its extra brings.
    packages = re.findall(r'"(\w+)\S+"', command.removeprefix("pip install "))
    assert packages == ["httpx", "orjson", "tenacity"]
    assert version == f"keras-muffnet {keras_muffnet.__version__}"
    [entry_points] = site.glob("*.dist-info/entry_points.txt")
    assert "muffnet = keras_muffnet.cli.main:main" in entry_points.read_text()
