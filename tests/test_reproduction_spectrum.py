import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_muffnet.federation import PATTERNS
from keras_muffnet.federation import SharingMatrix
from keras_muffnet.reproduction.spectrum import constant_matrix
from keras_muffnet.reproduction.spectrum import log_crossing
from keras_muffnet.reproduction.spectrum import log_federated_bound
from keras_muffnet.reproduction.spectrum import log_federated_flops
from keras_muffnet.reproduction.spectrum import log_matched_width
from keras_muffnet.reproduction.spectrum import log_plain_bound
from keras_muffnet.reproduction.spectrum import log_plain_flops


@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 300))
def test_constant_matrix_gives_the_printed_formulas(a, L, s0):  # noqa: N803
    flops = log_federated_flops(constant_matrix(a, L), s0)
    printed = 9 * a * s0**2 * L + a**2 * s0**2 * L * (L - 1) * (L + 1) // 2
    assert flops == pytest.approx(math.log(printed), rel=1e-12)
    log_m = log_matched_width(flops, L, s0)
    if L > 1:
        delta = (
            81 * L**2
            + (-72 * a * L + 72 * a * L**2)
            + (4 * a**2 * L - 4 * a**2 * L**2)
            + (-4 * a**2 * L**3 + 4 * a**2 * L**4)
        )
        m = (-9 * L + math.sqrt(delta)) / (4 * (L - 1))
        assert math.exp(log_m) == pytest.approx(m)
    assert log_plain_flops(log_m, L, s0) == pytest.approx(flops)


def test_the_paper_s_example_crosses_near_ten_thousand():
    matrix = constant_matrix(32, 4)
    flops = log_federated_flops(matrix, 1)
    assert math.exp(flops) == pytest.approx(31_872)
    log_m = log_matched_width(flops, 4, 1)
    assert math.exp(log_m) == pytest.approx(69.945, abs=1e-3)
    crossing = log_crossing(matrix, 1)
    assert math.exp(crossing) == pytest.approx(7866, abs=1)
    assert 3e3 < math.exp(crossing) < 3e4
    for shift, larger in ((-0.1, False), (0.1, True)):
        federated = log_federated_bound(matrix, 1, crossing + shift)
        plain = log_plain_bound(log_m, 4, 1, crossing + shift)
        assert (federated > plain) == larger
    printed = [32 ** (2 * i) * 100.0 ** (-i - 1) for i in range(1, 5)]
    assert log_federated_bound(matrix, 1, math.log(100)) == pytest.approx(
        math.log(sum(printed))
    )
    assert log_plain_bound(log_m, 4, 1, math.log(100)) == pytest.approx(
        math.log(math.exp(log_m) ** 8 * 100.0**-5)
    )


@st.composite
def matrices(draw):
    if draw(st.booleans()):
        layers = draw(st.integers(1, 5))
        width = draw(st.integers(layers, 40))
        pattern = draw(st.sampled_from(PATTERNS))
        return SharingMatrix.from_pattern(pattern, layers, width)
    layers = draw(st.integers(1, 4))
    rows = np.zeros((layers, layers), int)
    for i in range(layers):
        rows[i, i:] = draw(
            st.lists(
                st.integers(0, 9), min_size=layers - i, max_size=layers - i
            )
        )
        rows[i, i] = draw(st.integers(1, 9))
    return rows


def plain_rows(matrix):
    return np.array(getattr(matrix, "rows", matrix))


@given(matrices(), st.integers(1, 2), st.floats(-3, 8))
def test_any_matrix_agrees_with_all_its_chains_one_by_one(
    matrix, size, log_frequency
):
    rows = plain_rows(matrix)
    layers = len(rows)
    # Of each depth the widest chain: from map 0 over some maps to the output.
    widest = {}
    for inner in itertools.product((False, True), repeat=layers - 1):
        maps = [0, *(k for k in range(1, layers) if inner[k - 1])]
        groups = [
            rows[i, j - 1] for i, j in itertools.pairwise([*maps, layers])
        ]
        depth = len(groups)
        widest[depth] = max(widest.get(depth, 0), math.prod(map(int, groups)))
    bound = sum(
        width ** (size**2 + 1) * math.exp(log_frequency) ** (-depth - 1)
        for depth, width in widest.items()
    )
    found = float(log_federated_bound(matrix, size, log_frequency))
    assert math.exp(found) == pytest.approx(bound, rel=1e-9)

    made = rows.sum(axis=1)
    if getattr(matrix, "reused", False):
        made = rows.diagonal()
    flops = 9 * made[0] + 3 * sum(
        int(rows[:, j - 1].sum()) * int(made[j]) for j in range(1, layers)
    )
    assert math.exp(log_federated_flops(matrix, size)) == pytest.approx(
        size**2 * flops
    )


@given(matrices(), st.integers(1, 3))
def test_the_crossing_is_where_the_bounds_are_equal(matrix, size):
    layers = len(plain_rows(matrix))
    log_m = log_matched_width(log_federated_flops(matrix, size), layers, size)
    crossing = log_crossing(matrix, size)

    def difference(at):
        federated = log_federated_bound(matrix, size, at)
        return federated - log_plain_bound(log_m, layers, size, at)

    if math.isinf(crossing):
        around = difference(np.linspace(-30, 30, 7))
        assert (around * -np.sign(crossing) >= -1e-9).all()
        return
    assert difference(crossing) == pytest.approx(0, abs=1e-6)
    assert difference(crossing - 1) < 0 < difference(crossing + 1)


@given(
    st.one_of(
        st.floats(1e-300, 1e300), st.integers(1, 10**6).map(lambda n: 10**n)
    ),
    st.integers(1, 20),
    st.integers(1, 10**100),
)
def test_no_input_overflows(a, layers, size):
    matrix = constant_matrix(a, layers)
    with np.errstate(over="raise", invalid="raise"):
        flops = log_federated_flops(matrix, size)
        log_m = log_matched_width(flops, layers, size)
        crossing = log_crossing(matrix, size)
        bounds = [
            log_federated_bound(matrix, size, [-1e3, 0.0, 1e3], log_c=5.0),
            log_plain_bound(log_m, layers, size, [-1e3, 0.0, 1e3]),
        ]
    assert math.isfinite(flops) and math.isfinite(log_m)
    assert np.isfinite(bounds).all()
    assert crossing == -math.inf or math.isfinite(crossing)


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda: constant_matrix(0, 4), "`a` must be a positive number"),
        (lambda: constant_matrix(1, 0), "`layers` must be a positive"),
        (lambda: log_crossing([[1, 2]], 1), "`matrix` must be a SharingMatrix"),
        (lambda: log_crossing(3, 1), "`matrix` must be a SharingMatrix"),
        (lambda: log_crossing([[1, 0], [1, 1]], 1), "upper-triangular"),
        (lambda: log_crossing([[1, 0], [0, 0]], 1), "every row"),
        (lambda: log_crossing([[-1]], 1), "`matrix` must be numbers"),
        (lambda: log_crossing([["x"]], 1), "`matrix` must be numbers"),
        (lambda: log_crossing([[1]], 0), "`size` must be a positive"),
        (lambda: log_crossing([[1]], 10**101), "`size` must be at most"),
        (lambda: log_plain_bound(1.0, 0, 1, 0.0), "`layers`"),
    ],
)
def test_errors(call, fragment):
    with pytest.raises(ValueError, match=fragment):
        call()
