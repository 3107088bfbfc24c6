"""Imports the modules of this package that need more packages."""

from typing import Any

from keras_muffnet._optional import load_optional


def load_module(module: str) -> Any:
    """Imports a module of this package by its short name.

    Raises:
        ImportError: naming the package that is missing, and the command that
            installs it.
    """
    return load_optional(f"{__package__}.{module}", "quantization")
