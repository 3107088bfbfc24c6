"""Section 4: what networks of equal cost can fit at high frequencies.

A federated stage of L feature maps is compared with a plain chain of as many
layers of width m. The input is an image of s0 x s0 pixels with one channel,
which a 3x3 convolution takes to the first map. By corollary 3 of the paper,
the Fourier transform of a chain of layers of m_1, ..., m_d channels is bounded
at frequency w by

    c (m_1 ... m_d)^(s0^2 + 1) w^(-d - 1)

The federated stage is an ensemble of chains, of all depths d = 1..L: each
leads from the first map through some of the blocks to the output, and its
layers are as wide as the groups that it passes. Its bound is the sum over d of
the bound of the widest chain. With all groups of a channels these are a^d, and
the sum is the paper's.

All quantities are natural logarithms, so that nothing overflows: the powers
exceed any float for small images already.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_muffnet._arguments import positive_integer
from keras_muffnet.federation import SharingMatrix

Matrix = SharingMatrix | Sequence[Sequence[float]] | np.ndarray

# Beyond it the logarithm of a bound would itself be no float.
_LARGEST_SIZE = 10**100


def constant_matrix(a: float, layers: int) -> list[list[float]]:
    """The sharing matrix of section 4: M[i, j] = a for j >= i.

    Args:
        a: channels of each group, a positive number of any size.
        layers: L, the number of feature maps.

    Raises:
        ValueError: if `a` or `layers` is not positive, or `layers` no integer.
    """
    layers = positive_integer("layers", layers)
    _log_entry("a", a, positive=True)
    return [[a if j >= i else 0 for j in range(layers)] for i in range(layers)]


def log_federated_flops(matrix: Matrix, size: int) -> float:
    """Logarithm of FLOP_1, multiply-adds of the federated stage.

    For any matrix it is s0^2 times 9 times the first map's channels, plus 3
    times input times output channels of each block. For the constant matrix

        9 a s0^2 L + a^2 s0^2 L (L - 1) (L + 1) / 2

    Args:
        matrix: a `SharingMatrix`, or rows of numbers as `federation` has them;
            fractions are allowed.
        size: s0, height and width of the feature maps in pixels.

    Raises:
        ValueError: if `matrix` or `size` is not as above.
    """
    inputs = np.logaddexp.reduce(_logs(matrix), axis=0)
    outputs = _log_outputs(matrix)
    blocks = math.log(3) + inputs[:-1] + outputs[1:]
    return 2 * math.log(_checked_size(size)) + _log_sum(
        [math.log(9) + outputs[0], *blocks]
    )


def log_plain_flops(log_width: float, layers: int, size: int) -> float:
    """Logarithm of FLOP_2, multiply-adds of the plain chain.

    FLOP_2 = 9 s0^2 m + s0^2 (2 m^2 + 9 m) (L - 1).

    Args:
        log_width: logarithm of m, the channels of each layer.
        layers: L, the number of layers.
        size: s0, height and width of the feature maps in pixels.

    Raises:
        ValueError: if `layers` or `size` is not a positive integer.
    """
    layers = positive_integer("layers", layers)
    terms = [math.log(9) + math.log(layers) + log_width]
    if layers > 1:
        terms.append(math.log(2) + math.log(layers - 1) + 2 * log_width)
    return 2 * math.log(_checked_size(size)) + _log_sum(terms)


def log_matched_width(log_flops: float, layers: int, size: int) -> float:
    """Logarithm of m, the width at which the plain chain has given FLOPs.

    It is the paper's root m = (-9 L + sqrt(D)) / (4 (L - 1)) of FLOP_2 =
    FLOP_1, with D = 81 L^2 + 8 (L - 1) FLOP_1 / s0^2, written so that it also
    holds for L = 1. It is not rounded to an integer.

    Args:
        log_flops: logarithm of the multiply-adds.
        layers: L, the number of layers.
        size: s0, height and width of the feature maps in pixels.

    Raises:
        ValueError: if `layers` or `size` is not a positive integer.
    """
    layers = positive_integer("layers", layers)
    log_flops -= 2 * math.log(_checked_size(size))
    log_b = math.log(9) + math.log(layers)
    log_root = log_b
    if layers > 1:
        log_product = math.log(8) + math.log(layers - 1) + log_flops
        log_root = _log_sum([2 * log_b, log_product]) / 2
    return math.log(2) + log_flops - _log_sum([log_b, log_root])


def log_federated_bound(
    matrix: Matrix, size: int, log_frequency: Any, log_c: float = 0.0
) -> np.ndarray:
    """Logarithm of the bound on |f_1(w)|, of the federated stage.

    For the constant matrix it is the paper's sum over i = 1..L of
    c a^(i (s0^2 + 1)) w^(-i - 1).

    Args:
        matrix: a `SharingMatrix`, or rows of numbers.
        size: s0, height and width of the input image in pixels.
        log_frequency: logarithms of w, a number or an array.
        log_c: logarithm of the constant c.

    Returns:
        float64, of the shape of `log_frequency`.

    Raises:
        ValueError: if `matrix` or `size` is not as above.
    """
    log_frequency = np.asarray(log_frequency, float)
    widths = _exponent(size) * _log_chains(_logs(matrix))
    depths = np.arange(1, len(widths) + 1)
    terms = widths - np.multiply.outer(log_frequency, depths + 1)
    return log_c + np.logaddexp.reduce(terms, axis=-1)


def log_plain_bound(
    log_width: float,
    layers: int,
    size: int,
    log_frequency: Any,
    log_c: float = 0.0,
) -> np.ndarray:
    """Logarithm of the bound on |f_2(w)|: c m^(L (s0^2 + 1)) w^(-L - 1).

    Args:
        log_width: logarithm of m, the channels of each layer.
        layers: L, the number of layers.
        size: s0, height and width of the input image in pixels.
        log_frequency: logarithms of w, a number or an array.
        log_c: logarithm of the constant c.

    Returns:
        float64, of the shape of `log_frequency`.

    Raises:
        ValueError: if `layers` or `size` is not a positive integer.
    """
    layers = positive_integer("layers", layers)
    log_frequency = np.asarray(log_frequency, float)
    width = layers * _exponent(size) * log_width
    return log_c + width - (layers + 1) * log_frequency


def log_crossing(matrix: Matrix, size: int) -> float:
    """Logarithm of the frequency above which the federated bound is larger.

    The plain chain has as many layers and, by `log_matched_width`, the same
    multiply-adds. There is one such frequency at most: times w^(L + 1) the
    plain bound is constant, and the federated one grows.

    Args:
        matrix: a `SharingMatrix`, or rows of numbers.
        size: s0, height and width of the input image in pixels.

    Returns:
        A float; minus infinity where the federated bound is the larger at all
        frequencies, infinity where it is at none.

    Raises:
        ValueError: if `matrix` or `size` is not as above.
    """
    layers = len(_logs(matrix))
    flops = log_federated_flops(matrix, size)
    log_width = log_matched_width(flops, layers, size)
    exponent = _exponent(size)
    # Both bounds times w^(L + 1) / c: a polynomial in w, and a constant.
    terms = exponent * _log_chains(_logs(matrix))
    powers = layers - np.arange(1, layers + 1)
    plain = layers * exponent * log_width

    def above(log_frequency: float) -> bool:
        total = np.logaddexp.reduce(terms + powers * log_frequency)
        return bool(total >= plain)

    # Equal but for rounding, as they are for L = 1.
    if terms[-1] >= plain - 1e-12 * max(1.0, abs(plain)):
        return -math.inf
    growing = np.isfinite(terms) & (powers > 0)
    if not growing.any():
        return math.inf
    # There a single term of the polynomial is as large as the constant.
    high = float(np.min((plain - terms[growing]) / powers[growing]))
    step = 1.0
    while above(high - step):
        step *= 2
    low = high - step
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if above(middle) else (middle, high)
    return high


def _log_chains(logs: np.ndarray) -> np.ndarray:
    """Logarithms of the largest product of groups, by number of groups.

    A chain of d groups starts at the first map, continues through blocks and
    ends in the output. Minus infinity where there is none.
    """
    layers = len(logs)
    # By the map that a chain has come to.
    reached = np.full(layers, -np.inf)
    reached[0] = 0.0
    chains = []
    for _ in range(layers):
        chains.append(np.max(reached + logs[:, -1]))
        # Group [i, j - 1] leads from map i into map j.
        through = np.max(reached[:, None] + logs[:, :-1], axis=0)
        reached = np.concatenate([[-np.inf], through])
    return np.array(chains)


def _logs(matrix: Matrix) -> np.ndarray:
    """Logarithms of a sharing matrix; minus infinity for zero."""
    rows: Any = matrix
    if isinstance(matrix, SharingMatrix):
        rows = matrix.rows
    elif isinstance(matrix, np.ndarray):
        rows = matrix.tolist()
    try:
        layers = len(rows)
        square = layers > 0 and all(len(row) == layers for row in rows)
    except TypeError:
        square = False
    if not square:
        raise ValueError(
            "`matrix` must be a SharingMatrix or L rows of L numbers. "
            f"Received: matrix={matrix!r}"
        )
    logs = np.array(
        [[_log_entry("matrix", entry) for entry in row] for row in rows]
    )
    there = np.isfinite(logs)
    if np.tril(there, -1).any() or not (there.any(0) & there.any(1)).all():
        raise ValueError(
            "`matrix` must be upper-triangular, with channels in every row "
            f"and column. Received: matrix={matrix!r}"
        )
    return logs


def _log_entry(name: str, entry: Any, positive: bool = False) -> float:
    # Not numpy's logarithm: integers may exceed any of its types.
    if (
        isinstance(entry, bool)
        or not isinstance(entry, numbers.Real)
        or not 0 <= entry < math.inf  # type: ignore[operator]
        or (positive and not entry)
    ):
        kind = "a positive number" if positive else "numbers, none negative"
        raise ValueError(f"`{name}` must be {kind}. Received: {name}={entry!r}")
    return math.log(entry) if entry else -math.inf


def _log_outputs(matrix: Matrix) -> np.ndarray:
    """Logarithms of the channels of each map."""
    logs = _logs(matrix)
    if isinstance(matrix, SharingMatrix) and matrix.reused:
        return logs.diagonal()
    return np.logaddexp.reduce(logs, axis=1)


def _log_sum(logs: Any) -> float:
    return float(np.logaddexp.reduce(logs))


def _checked_size(size: int) -> int:
    size = positive_integer("size", size)
    if size > _LARGEST_SIZE:
        raise ValueError(f"`size` must be at most 1e100. Received: {size=}")
    return size


def _exponent(size: int) -> float:
    return float(_checked_size(size)) ** 2 + 1
