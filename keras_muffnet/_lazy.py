"""Names of a package that load on first use."""

import importlib
import sys
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes the `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: the package's `__name__`.
        homes: the module of the package that defines each name.

    Example:
        __getattr__, __dir__ = lazy_names(__name__, {"MuffNet": "muffnet"})
    """
    module = sys.modules[package]

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}"
            )
        home = importlib.import_module(f"{package}.{homes[name]}")
        value = getattr(home, name)
        setattr(module, name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(module), *homes})

    return load, names
