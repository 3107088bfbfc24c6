"""Packages that only some users install, imported where they are used."""

import importlib
import importlib.metadata
import pathlib
from typing import Any

from packaging.requirements import Requirement

_PACKAGE = __name__.partition(".")[0]
# Above this package: the folder of a checkout, or where wheels are installed.
_ROOT = pathlib.Path(__file__).resolve().parent.parent


def load_optional(module: str, extra: str) -> Any:
    """Imports a module that needs an optional package.

    Args:
        module: full name of a module of that package, or of one of ours that
            imports it.
        extra: the extra of keras-muffnet that brings the package.

    Raises:
        ImportError: naming the package and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        if missing == _PACKAGE:
            raise
        raise ImportError(
            f"This needs {missing}: {install_command(extra)}"
        ) from error


def install_command(extra: str) -> str:
    """Returns the command that installs an extra.

    It works without the package lying on an index: in a checkout it names the
    checkout, and otherwise the packages that the extra consists of.
    """
    if (_ROOT / "setup.py").exists():
        return f'pip install -e "{_ROOT}[{extra}]"'
    parsed = map(
        Requirement, importlib.metadata.requires("keras-muffnet") or ()
    )
    wanted = [
        f'"{one.name}{_extras(one)}{one.specifier}"'
        for one in parsed
        if one.marker is not None
        and one.marker.evaluate({"extra": extra})
        and not one.marker.evaluate({"extra": ""})
    ]
    return f"pip install {' '.join(wanted)}"


def _extras(requirement: Requirement) -> str:
    names = ",".join(sorted(requirement.extras))
    return f"[{names}]" if names else ""
