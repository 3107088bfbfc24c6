"""Checks of arguments."""

import math
from typing import Any

import numpy as np


def positive_integer(name: str, value: Any) -> int:
    """Returns an argument that must be 1, 2, ... as an int.

    Raises:
        ValueError: naming the argument, if it is anything else.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or value < 1
    ):
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """Returns an argument that must be a positive, finite number as it is.

    Raises:
        ValueError: naming the argument, if it is anything else.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ValueError(
            f"`{name}` must be a positive number. Received: {name}={value!r}"
        )
    return value  # type: ignore[return-value]
