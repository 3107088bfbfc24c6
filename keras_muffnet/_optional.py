"""Packages that only some users install, imported where they are used."""

import importlib
from typing import Any


def load_optional(module: str, extra: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: full name of the module.
        extra: the extra of keras-muffnet that brings its package.

    Raises:
        ImportError: naming the package and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs {module.partition('.')[0]}: "
            f'pip install "keras-muffnet[{extra}]"'
        ) from error
