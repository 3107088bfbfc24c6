"""Imports the modules of this package that need more packages."""

import importlib
from typing import Any


def load_module(module: str) -> Any:
    """Imports a module of this package by its short name.

    Raises:
        ImportError: naming the package that is missing, and the command that
            installs it.
    """
    try:
        return importlib.import_module(f"{__package__}.{module}")
    except ImportError as error:
        if (error.name or "").startswith("keras_muffnet"):
            raise
        raise ImportError(
            f"Quantization needs {error.name}: "
            'pip install "keras-muffnet[quantization]"'
        ) from error
