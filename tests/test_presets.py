import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_muffnet.presets import PAPER_LAYERS
from keras_muffnet.presets import PAPER_NOTATION
from keras_muffnet.presets import PRESETS
from keras_muffnet.presets import StageSpec
from keras_muffnet.presets import closed_form_counts
from keras_muffnet.presets import stages_from_notation
from keras_muffnet.presets import widths_for_alpha


@pytest.mark.parametrize("alpha", PRESETS)
def test_formulas_give_the_paper_s_counts(alpha):
    preset = PRESETS[alpha]
    stages = stages_from_notation(PAPER_NOTATION, alpha)
    large = closed_form_counts(stages, 224, "imagenet")
    small = closed_form_counts(stages, 32, "cifar", classes=10)
    assert round(large.parameters / 1e6, 1) == preset.paper_parameters
    assert round(large.macs / 1e6) == preset.paper_macs_224
    assert round(small.macs / 1e6) == preset.paper_macs_32


def test_table_1_prints_the_small_network_s_parameters_as_1_38_million():
    stages = stages_from_notation(PAPER_NOTATION, 0.5)
    counts = closed_form_counts(stages, 224, "imagenet")
    assert round(counts.parameters / 1e6, 2) == 1.38


def test_published_widths_are_kept_and_others_lie_between():
    assert widths_for_alpha(1.0) == (108, 132, 300)
    assert widths_for_alpha(0.75) == (74, 94, 220)
    assert widths_for_alpha(3) == (352, 412, 816)
    assert widths_for_alpha(0.1) == (8, 12, 28)
    assert widths_for_alpha(0.001) == PAPER_LAYERS


@given(st.floats(0.1, 3.0), st.floats(0.1, 3.0))
def test_widths_grow_with_alpha_and_make_valid_stages(a, b):
    small, large = sorted((a, b))
    pairs = zip(widths_for_alpha(small), widths_for_alpha(large), strict=True)
    assert all(s <= w for s, w in pairs)
    stages = stages_from_notation(PAPER_NOTATION, a)
    assert tuple(stage.layers for stage in stages) == PAPER_LAYERS


@pytest.mark.parametrize(
    "alpha", [0, -1, float("nan"), math.inf, "1", None, True, [1.0]]
)
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match="`alpha` must be a positive number"):
        widths_for_alpha(alpha)


@pytest.mark.parametrize(
    "notation", ["", "average", "average+geometric", "a+b+c", None, 3]
)
def test_notation_errors(notation):
    with pytest.raises(ValueError, match="`notation` must name three"):
        stages_from_notation(notation)


def test_notation_names_the_stages_in_order():
    low, mid, high = stages_from_notation("linear+dense+none", alpha=0.5)
    assert (low.sharing, low.layers, low.width) == ("linear", 4, 40)
    assert (mid.sharing, mid.layers, mid.width) == ("dense", 8, 56)
    assert (high.sharing, high.layers, high.width) == ("none", 4, 140)
    assert (low.residual, mid.residual, high.residual) == (False, False, True)


def test_explicit_stage_takes_lists_and_arrays():
    rows = [[4, 2], [0, 5]]
    spec = StageSpec(rows)
    assert (spec.layers, spec.width, spec.residual) == (2, 7, False)
    assert spec == StageSpec(np.array(rows)) == StageSpec(rows, 2, 7)
    assert hash(spec) == hash(StageSpec(rows))


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (
            {"sharing": "bogus", "layers": 4, "width": 8},
            ["`sharing`", "geometric", "bogus"],
        ),
        ({"sharing": "none", "width": 8}, ["`layers`", "None"]),
        ({"sharing": "none", "layers": 4}, ["`width`", "None"]),
        ({"sharing": 5}, ["`sharing`", "5"]),
        ({"sharing": [[1, 0], [1, 1]]}, ["sharing matrix", "row 2, column 1"]),
        (
            {"sharing": "none", "layers": 4, "width": 8, "residual": "no"},
            ["`residual` must be True or False", "'no'"],
        ),
        ({"sharing": [[1]], "residual": 1}, ["`residual`", "residual=1"]),
        (
            {"sharing": [[1]], "residual": np.array([True, True])},
            ["`residual`", "array([ True,  True])"],
        ),
        ({"sharing": [[1]], "layers": 2}, ["`layers`", "has 1", "layers=2"]),
        ({"sharing": [[1]], "width": 2}, ["`width`", "has 1", "width=2"]),
        (
            {"sharing": "average", "layers": 4, "width": 8, "residual": True},
            ["`residual`", "block 2", "2 input and 6 output"],
        ),
    ],
)
def test_stage_errors(arguments, fragments):
    with pytest.raises(ValueError) as error:
        StageSpec(**arguments)
    for fragment in fragments:
        assert fragment in str(error.value)
