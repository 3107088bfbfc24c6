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


def boolean(name: str, value: Any) -> bool:
    """Returns an argument that must be True or False.

    Raises:
        ValueError: naming the argument, if it is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(
            f"`{name}` must be True or False. Received: {name}={value!r}"
        )
    return bool(value)


def limits(name: str, value: Any) -> tuple[float, float]:
    """Returns an argument that must be a lowest and a highest value.

    Raises:
        ValueError: naming the argument, if it is anything else.
    """
    is_listed = isinstance(value, (tuple, list, np.ndarray))
    numbers = [*value] if is_listed and np.ndim(value) == 1 else []
    fits = len(numbers) == 2 and all(
        isinstance(x, (int, float, np.integer, np.floating)) for x in numbers
    )
    if not fits or not -np.inf < numbers[0] <= numbers[1] < np.inf:
        raise ValueError(
            f"`{name}` must be two finite numbers, the lower first. "
            f"Received: {name}={value!r}"
        )
    return float(numbers[0]), float(numbers[1])


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
