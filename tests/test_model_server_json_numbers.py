"""Arrays of numbers by simdjson: what is made without it, to the last bit."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from keras_muffnet.model_server import json_numbers
from keras_muffnet.model_server import json_tensors
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.json_numbers import Numbers

pytest.importorskip("simdjson")


@pytest.fixture(autouse=True)
def small_bodies(monkeypatch):
    monkeypatch.setattr(json_numbers, "_LEAST_BYTES", 0)
    monkeypatch.setattr(json_numbers, "_PIECE", 7)
    monkeypatch.setattr(json_numbers, "_TURN", 0)


def answer(body, dtypes, numbers):
    """Arrays by name, or the error."""
    try:
        request = json_tensors.parse(body, numbers=numbers)
        name = json_tensors.signature_name(request)
        form = json_tensors.is_row_form(request)
        return name, form, json_tensors.decode(request, dtypes)
    except ServingError as error:
        return error.code, str(error)


def check_same(body, dtypes):
    fast = answer(body, dtypes, True)
    slow = answer(body, dtypes, False)
    assert fast[:2] == slow[:2]
    assert len(fast) == len(slow)
    if len(fast) == 3:
        assert list(fast[2]) == list(slow[2])
        for name, array in fast[2].items():
            assert array.dtype == slow[2][name].dtype
            assert array.shape == slow[2][name].shape
            assert array.tobytes() == slow[2][name].tobytes()


def is_fast(body):
    request = json_numbers.parse(body)
    return request is not None and any(
        isinstance(value, Numbers) for value in request.values()
    )


DTYPES = [
    "float32",
    "float64",
    "int8",
    "uint8",
    "int16",
    "int32",
    "int64",
    "uint32",
    "uint64",
    "bool",
    "string",
    "float16",
]

NUMBERS = (
    st.integers(-300, 300).map(str)
    | st.integers(-(2**65), 2**65).map(str)
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr)
    | st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,30})?", fullmatch=True)
    | st.from_regex(r"-?[0-9]{1,3}[eE][-+]?[0-9]{1,3}", fullmatch=True)
)
# What makes a list another, or no JSON at all.
STRANGE = st.sampled_from(
    [
        *("", " ", "1 2", "\x00", "é", "9" * 400, "0." + "9" * 400),
        *("NaN", "Infinity", "-Infinity", "null", "true", '"a"', '"["', '"],"'),
        *("[]", "[1]", "[[]]", "{}", '{"b64":"AA=="}', "1,,2", "1]", "[1"),
        *("01", "1.", ".5", "+1", "-", "1e", "0x1", "1_0", "-0", "-0.0"),
        *("1e400", "-1e400", "1e-400", "5e-324"),
        *("9223372036854775807", "9223372036854775808"),
        *("18446744073709551615", "18446744073709551616"),
    ]
)


@st.composite
def arrays(draw):
    """JSON of lists of one shape, some of which are then spoiled."""
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    count = int(np.prod(shape))
    leaves = draw(st.lists(NUMBERS, min_size=count, max_size=count))
    for _ in range(draw(st.integers(0, 1))):
        leaves[draw(st.integers(0, count - 1))] = draw(STRANGE)
    for size in shape[::-1]:
        space = draw(st.sampled_from(["", "", " ", "\n\t"]))
        leaves = [
            "[" + f",{space}".join(leaves[k : k + size]) + space + "]"
            for k in range(0, len(leaves), size)
        ]
    (text,) = leaves
    if draw(st.booleans()) and draw(st.booleans()):
        at = draw(st.integers(0, len(text) - 1))
        text = text[:at] + draw(st.sampled_from("[],1 ")) + text[at + 1 :]
    return text


BODIES = [
    '{"instances": %s}',
    '{"inputs": %s}',
    ' {"signature_name": "s", "instances":%s}\n',
    '{"inputs": %s , "signature_name" : ""}',
    '{"signature_name": "a", "instances": %s, "signature_name": "b"}',
    '{"instances": %s, "instances": [1]}',
    '{"instances": %s, "inputs": [1]}',
    '{"instances": %s, "other": [1]}',
    '{"instances": %s, "other": 1}',
    '{"instances": %s} trailing ]',
    '{"instances": %s',
    '{"instances": [%s]}',
    '{"instances": [%s, %s]}',
    '{"instances": [{"x": %s}]}',
    '{"inputs": {"x": %s}}',
    '\ufeff{"inputs": %s}',
    '{"signature_name": 1, "inputs": %s}',
    '{"signature_name": "\\u0061", "inputs": %s}',
]


@settings(max_examples=150)
@given(arrays(), st.sampled_from(BODIES), st.sampled_from(DTYPES))
def test_the_same_with_and_without(array, body, dtype):
    check_same(body.replace("%s", array).encode(), {"x": dtype})


@pytest.mark.parametrize(
    "array",
    [
        "[]",
        "[[]]",
        "[[],[1]]",
        "[[1],[]]",
        "[[1,2],[3]]",
        "[[1],2]",
        "[1,[2]]",
        "[[[1]],[2]]",
        "[[1],[[2]]]",
        "[[[1,2]],[[3,4],[5,6]]]",
        "[[1]]]",
        "[[1]",
        "[1,]",
        "[,1]",
        "[1,,2]",
        "[1],[2]",
        "[1],2",
        "[[1,],[2]]",
        "[[1],[,2]]",
        "[[1],[2,]]",
        "[[1,2],[3,4]],[[5,6],[7,8]]",
        "[[1111111],[2222222]],[[3333333]",
        "[1 2]",
        '["[",1,"]"]',
        "[NaN, 1]",
        "[1e39, -1e39, 1e-50]",
        "[9007199254740993, 16777217]",
        "[9007199254740993, 16777217, 0.5]",
        "[256, -1]",
        "[-0, 0, -0.0]",
        "[9223372036854775807, -9223372036854775808]",
        "[" * 32 + "7" + "]" * 32,
        "[" * 33 + "7" + "]" * 33,
        "[" * 50_000 + "]" * 50_000,
        "[" * 50_000 + "7" + "]" * 50_000,
        "[" + "9" * 100_000 + "]",
    ],
    ids=lambda text: text[:40],
)
@pytest.mark.parametrize("body", BODIES[:2])
def test_corner_cases(array, body):
    # The long ones take the time of many.
    for dtype in DTYPES[: 1 if len(array) > 1000 else None]:
        check_same(body.replace("%s", array).encode(), {"x": dtype})


def test_several_inputs_get_the_same_error():
    body = b'{"instances": [[1, 2], [3, 4]]}'
    check_same(body, {"x": "float32", "y": "float32"})
    check_same(
        body.replace(b"instances", b"inputs"), {"x": "int8", "y": "int8"}
    )


@pytest.mark.parametrize("body", BODIES[:4])
@pytest.mark.parametrize("whole", [True, False])
def test_images_take_the_fast_way(body, whole):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 5, 4, 3))
    text = json.dumps((images if whole else images / 7).tolist())
    body = body.replace("%s", text).encode()
    assert is_fast(body)
    dtype = "uint8" if whole else "float32"
    check_same(body, {"x": dtype})
    _, _, arrays = answer(body, {"x": dtype}, True)
    expected = images if whole else images / 7
    np.testing.assert_array_equal(arrays["x"], expected.astype(dtype))


def test_small_bodies_and_missing_packages_take_the_other(monkeypatch):
    body = orjson.dumps({"inputs": [[0.5, 1.5]]})
    assert is_fast(body)
    monkeypatch.setattr(json_numbers, "_LEAST_BYTES", len(body) + 1)
    assert not is_fast(body)
    monkeypatch.setattr(json_numbers, "_LEAST_BYTES", 0)
    monkeypatch.setitem(__import__("sys").modules, "simdjson", None)
    json_numbers._parser.cache_clear()
    try:
        assert not is_fast(body)
        check_same(body, {"x": "float32"})
    finally:
        json_numbers._parser.cache_clear()
