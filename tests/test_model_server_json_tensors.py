"""JSON requests to arrays and back, against what TensorFlow Serving does."""

import base64
import gc
import json
import math
import re

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_muffnet.model_server import json_tensors
from keras_muffnet.model_server import lenient_json
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.json_tensors import encode
from keras_muffnet.model_server.json_tensors import is_row_form
from keras_muffnet.model_server.json_tensors import parse
from keras_muffnet.model_server.json_tensors import signature_name

DEEP = 50_000
DEEP_LIST = b"[" * DEEP + b"]" * DEEP
LONG_INTEGER = b"9" * 100_000


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


def assert_raises(text, function, *args, code=Code.INVALID_ARGUMENT, **kwargs):
    with pytest.raises(ServingError) as caught:
        function(*args, **kwargs)
    assert text in str(caught.value)
    assert caught.value.code == code
    return str(caught.value)


def decode(body, **dtypes):
    """Parses a body and makes its tensors."""
    return json_tensors.decode(parse(body), dtypes or {"x": "float32"})


def assert_same(array, expected, dtype):
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, np.array(expected, dtype), strict=True)


# Reading JSON


def test_what_would_take_too_much_memory_is_refused(monkeypatch):
    with pytest.raises(ServingError, match="in at most 100000 others"):
        parse(b'{"inputs": ' + b"[" * 100_001 + b"]" * 100_001 + b"}")
    body = b'{"inputs": [%b]}' % b",".join([b"[{}]"] * 100)
    assert len(parse(body)["inputs"]) == 100
    monkeypatch.setattr(json_tensors, "_MAX_CONTAINERS", 200)
    text = "at most 200 lists and objects. Received: 202"
    with pytest.raises(ServingError, match=text):
        parse(body)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda values: (
        st.lists(values, max_size=4)
        | st.dictionaries(st.text("ab:\u00e9", max_size=2), values, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from([None, 1]), st.booleans())
def test_both_readers_agree(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    # As text, because 1 == 1.0 == True and 0.0 == -0.0.
    assert repr(lenient_json.loads(text.encode())) == repr(value)
    assert repr(parse(b'{"a":%b}' % text.encode())) == repr({"a": value})


@given(JSON, st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=2))))
def test_damaged_text_ends_in_an_error_or_the_same_value(value, edits):
    damaged = bytearray(json.dumps(value).encode())
    for place, piece in edits:
        damaged[place : place + 1] = piece
    try:
        received = lenient_json.loads(bytes(damaged))
    except ServingError as error:
        assert str(error).startswith("JSON Parse error: ")
        received = error
    try:
        expected = orjson.loads(bytes(damaged))
    except orjson.JSONDecodeError:
        return
    may_repeat_keys = damaged.count(b":") > 1
    assert may_repeat_keys or repr(received) == repr(expected)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (b"NaN", math.nan),
        (b"-NaN", math.nan),
        (b"Infinity", math.inf),
        (b"-Infinity", -math.inf),
        (b"Inf", math.inf),
        (b"-Inf", -math.inf),
        (b"1e-400", 0.0),
        (b"-0", 0),
        (b"-0.0", -0.0),
        (b"9223372036854775807", 2**63 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"-9223372036854775809", -(2.0**63)),
        (b"18446744073709551615", 2**64 - 1),
        (b"18446744073709551616", 2.0**64),
        (b"1" + b"0" * 300, 1e300),
        (b"0." + LONG_INTEGER, 1.0),
        (b'"a\\u0000\\u00e9\\ud83d\\ude00\\/"', "a\0\u00e9\U0001f600/"),
        (b'"\\"\\\\\\b\\f\\n\\r\\t\x7f"', '"\\\b\f\n\r\t\x7f'),
        ("\u4f60".encode(), None),
    ],
)
def test_tokens(token, expected):
    if expected is None:
        token, expected = b'"%b"' % token, token.decode()
    for padding in (b"%b", b" \t\r\n%b ", b"\xef\xbb\xbf%b", b"%b\0"):
        value = lenient_json.loads(padding % token)
        assert repr(value) == repr(expected)
    assert repr(parse(b'{"a":%b}' % token)) == repr({"a": expected})
    mixed = b'{"a":[%b,NaN]}' % token
    assert repr(parse(mixed)["a"][0]) == repr(expected)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "The document is empty"),
        (b" \n", "The document is empty. at offset: 2"),
        (b"\xef\xbb\xbf", "The document is empty. at offset: 3"),
        (b'{"a": x}', "Invalid value. at offset: 6"),
        (b'{"a": tru}', "Invalid value. at offset: 6"),
        (b'{"a": }', "Invalid value."),
        (b'{"a": +1}', "Invalid value."),
        (b'{"a": .5}', "Invalid value."),
        (b'{"a": -}', "Invalid value."),
        (b'{"a": \xff}', "Invalid value."),
        (b'{"a": nan}', "Invalid value."),
        (b'{"a": [1,]}', "Invalid value."),
        (b'{"a": [,]}', "Invalid value."),
        (b'{"a": /**/ 1}', "Invalid value."),
        (b'{"a": 1.}', "Miss fraction part in number."),
        (b'{"a": 1.e5}', "Miss fraction part in number."),
        (b'{"a": 1e}', "Miss exponent in number."),
        (b'{"a": 1e+}', "Miss exponent in number."),
        (b'{"a": 1e400}', "Number too big to be stored in double."),
        (b'{"a": [-1e400, NaN]}', "Number too big to be stored in double."),
        (b'{"a": %b}' % LONG_INTEGER, "Number too big to be stored in double."),
        (b'{"a": 01}', "Missing a comma or } after an object member."),
        (b'{"a": [01]}', "Missing a comma or ] after an array element."),
        (b'{"a": [1 2]}', "Missing a comma or ] after an array element."),
        (b'{"a": [1, 2', "Missing a comma or ] after an array element."),
        (b'{"a": 1 "b": 2}', "Missing a comma or } after an object member."),
        (b'{"a": 1', "Missing a comma or } after an object member."),
        (b"{'a': 1}", "Missing a name for object member. at offset: 1"),
        (b'{"a": 1,}', "Missing a name for object member."),
        (b"{", "Missing a name for object member."),
        (b"{1: 2}", "Missing a name for object member."),
        (b'{"a" 1}', "Missing a colon after a name of object member."),
        (b'{"a": "\n"}', "Invalid encoding in string. at offset: 7"),
        (b'{"a\x1f": 1}', "Invalid encoding in string."),
        (b'{"a": "b', "Missing a closing quotation mark in string."),
        (b'{"a": "b\0"}', "Missing a closing quotation mark in string."),
        (b'{"a": "\\x"}', "Invalid escape character in string."),
        (b'{"a": "\\', "Invalid escape character in string."),
        (b'{"a": "\\u12g4"}', "Incorrect hex digit after \\u escape in string"),
        (b'{"a": "\\u12', "Incorrect hex digit after \\u escape in string"),
        (b'{"a": "\\ud800"}', "The surrogate pair in string is invalid."),
        (b'{"a": "\\udc00"}', "The surrogate pair in string is invalid."),
        (b'{"a": "\\ud800\\ud800"}', "The surrogate pair in string is invalid"),
        (b'{"a": "\\ud800 \\udc00"}', "The surrogate pair in string is inval"),
        (b"{}"[:1] + DEEP_LIST[:DEEP], "Missing a name for object member."),
        (b'{"a": ' + DEEP_LIST[:DEEP], "Invalid value. at offset: 50006"),
        (b"\x89PNG\r\n\x1a\n", "Invalid value. at offset: 0"),
    ],
)
def test_what_is_no_json(body, text):
    message = assert_raises("JSON Parse error: " + text, parse, body)
    assert not body or re.search(r" at offset: \d+$", message)


@pytest.mark.parametrize("value", [b"1", b"null", b'"a"', b"[1]", DEEP_LIST])
def test_top_level_must_be_an_object(value):
    message = assert_raises("Is not object", parse, value)
    assert message.startswith("JSON Value: ") and len(message) < 300


def test_text_around_the_object_is_skipped():
    body = b'\xef\xbb\xbf \n{"a": 1} } and more \xff'
    assert parse(body) == {"a": 1}


def test_strings_that_are_no_utf8_pass_through():
    raw = b"\xff\xfe \xc3 \xed\xa0\x80 ok \xc3\xa9"
    body = b'{"instances": ["%b", "\\u00e9"]}' % raw
    array = decode(body, x="string")["x"]
    assert array.tolist() == [raw, "\u00e9".encode()]
    assert encode({"y": array}, rows=True) == (
        b'{"predictions":["%b", "\xc3\xa9"]}' % raw
    )
    name = signature_name(parse(b'{"signature_name": "\xff"}'))
    assert name.encode(errors="surrogateescape") == b"\xff"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a":1,"a":2}', {"a": 1}),
        (b'{"a":NaN,"a":2,"b":3}', {"a": math.nan, "b": 3}),
        (
            b'{"a":1,"b":{"c":[{"d":1,"d":2}]}}',
            {"a": 1, "b": {"c": [{"d": 1}]}},
        ),
        (b'{"a":1,"a":{"b":{"c":3}}}', {"a": 1}),
        (b'{"a":{"b":{"c":3}},"a":1}', {"a": {"b": {"c": 3}}}),
        (b'{"a":1,"\\u0061":2}', {"a": 1}),
        (b'{"a":":","a":2}', {"a": ":"}),
        (b'{"a":"\\u003a","a":2}', {"a": ":"}),
        (b'{"a":"\\u003A","a":":"}', {"a": ":"}),
        (b'{":":["::"],":":2}', {":": ["::"]}),
        (b'{"a":":","b":[":",{":":":"}]}', {"a": ":", "b": [":", {":": ":"}]}),
    ],
)
def test_first_of_duplicate_keys_wins(body, expected):
    assert repr(parse(body)) == repr(expected)


def test_plain_requests_take_the_fast_path(monkeypatch):
    monkeypatch.setattr(lenient_json, "loads", None)
    request = {
        "signature_name": "a:b",
        "instances": [{"x": [[1.5, 2]], "t": "12:30 \\", "i": b64(b"abc")}] * 3,
    }
    assert parse(orjson.dumps(request)) == request


@pytest.mark.parametrize("enabled", [True, False])
def test_reading_leaves_the_garbage_collector_as_it_was(enabled):
    (gc.enable if enabled else gc.disable)()
    try:
        parse(b"{}")
        assert_raises("JSON Parse error", parse, b"{")
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_any_depth_is_refused_where_it_does_not_fit():
    text = "Encountered list at unexpected level: "
    for body in (b'{"inputs": %b}', b'{"instances": [%b]}'):
        assert_raises(text, decode, body % DEEP_LIST)
    for shape in (b'{"instances": [1, %b]}', b'{"inputs": [1, %b]}'):
        assert_raises("ncountered list at", decode, shape % DEEP_LIST)
    text = "not formatted correctly for base64 data"
    body = b'{"inputs": [{"b64": %b}]}' % DEEP_LIST
    assert_raises(text, decode, body, x="string")
    body = b'{"signature_name": %b}' % DEEP_LIST
    request = parse(body)
    assert_raises("must be a string value.", signature_name, request)
    body = b'{"instances": %b}' % (b'{"x":' * DEEP + b"1" + b"}" * DEEP)
    assert_raises("Expecting 'instances' to be an list/array", decode, body)


def test_long_values_are_cut_in_errors():
    body = b'{"instances": [{"x": 1, "y": "%b"}]}' % (b"a" * 1000)
    message = assert_raises("named input: y", decode, body)
    assert len(message) < 300
    body = b'{"inputs": ["%b"]}' % (b"a" * 1000)
    message = assert_raises("Type: String is not of expected", decode, body)
    assert len(message) < 300 and "aaa..." in message


# The request's keys


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", "serving_default"),
        (b'{"signature_name": ""}', "serving_default"),
        (b'{"signature_name": "a"}', "a"),
        (b'{"signature_name": "a", "signature_name": null}', "a"),
    ],
)
def test_signature_names(body, expected):
    assert signature_name(parse(body)) == expected


@pytest.mark.parametrize("value", [None, 1, True, ["a"], {"a": 1}])
def test_signature_names_that_are_no_strings(value):
    text = "'signature_name' key must be a string value."
    assert_raises(text, signature_name, {"signature_name": value})


def test_one_of_two_keys():
    assert is_row_form({"instances": 1, "other": 2})
    assert not is_row_form({"inputs": 1})
    text = "Missing 'inputs' or 'instances' key"
    assert_raises(text, is_row_form, {"input": 1})
    text = (
        "Not formatted correctly expecting only one of 'inputs' or "
        "'instances' keys to exist"
    )
    both = {"inputs": 1, "instances": None}
    assert_raises(text, is_row_form, both)


# Both forms


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"instances": [1.0, 2]}, [1, 2]),
        ({"instances": [[1, 2], [3, 4]]}, [[1, 2], [3, 4]]),
        ({"instances": [{"x": 1}, {"x": 2}]}, [1, 2]),
        ({"instances": [{"x": [[1]]}]}, [[[1]]]),
        ({"instances": [[]]}, [[]]),
        ({"instances": [[[], []]]}, [[[], []]]),
        ({"inputs": 2.0}, 2),
        ({"inputs": []}, []),
        ({"inputs": [[1, 2]]}, [[1, 2]]),
        ({"inputs": {"x": [[1, 2]], "z": None}}, [[1, 2]]),
        ({"inputs": {"x": 3}}, 3),
    ],
)
def test_forms_of_one_input(request_, expected):
    arrays = json_tensors.decode(request_, {"x": "float32"})
    assert list(arrays) == ["x"]
    assert_same(arrays["x"], expected, np.float32)


def test_forms_of_several_inputs():
    dtypes = {"a": "int32", "b": "string"}
    rows = [{"a": [1, 2], "b": "c"}, {"b": b64(b"d"), "a": [3, 4]}]
    arrays = json_tensors.decode({"instances": rows}, dtypes)
    assert_same(arrays["a"], [[1, 2], [3, 4]], np.int32)
    assert_same(arrays["b"], [b"c", b"d"], object)
    columns = {"a": [1, 2, 3], "b": "c", "z": [[1], 2]}
    arrays = json_tensors.decode({"inputs": columns}, dtypes)
    assert_same(arrays["a"], [1, 2, 3], np.int32)
    assert_same(arrays["b"], b"c", object)


ELEMENT = "Failed to process element: "
FAILED = " of 'instances' list. Error: INVALID_ARGUMENT: "
LIST = "Expecting 'instances' to be an list/array"


@pytest.mark.parametrize(
    ("instances", "text"),
    [
        (1, LIST),
        ({"x": 1}, LIST),
        (None, LIST),
        ("a", LIST),
        ([], "No values in 'instances' array"),
        (
            [{"x": 1}, 2],
            "Expecting object but got list at item 1 of input list",
        ),
        ([{"x": 1}, b64(b"")], "Expecting object but got list at item 1"),
        (
            [1, {"x": 2}],
            "Expecting value/list but got object at item 1 of input list",
        ),
        ([1, 2, {"b64": 1}], "Expecting value/list but got object at item 2"),
        (
            [{"z": 1}],
            f"{ELEMENT}0 key: z{FAILED}JSON object: does not have named "
            "input: z",
        ),
        ([{"x": 1}, {"x": 1, "z": 1}], "does not have named input: z"),
        (
            [{"x": 1}, {}],
            f"{ELEMENT}1 of 'instances' list. JSON object: {{}} keys must be "
            "equal to: x",
        ),
        (
            [[1, 2], [3]],
            f"{ELEMENT}1{FAILED}Expecting tensor size: 2 but got: 1",
        ),
        (
            [{"x": [1]}, {"x": [2, 3]}],
            f"{ELEMENT}1 key: x{FAILED}Expecting tensor size: 1 but got: 2",
        ),
        ([[1, 2], [[1, 2]]], "Expecting shape [2] but got: [1,2]"),
        ([1, [2]], "Expecting shape [] but got: [1]"),
        (
            [[[1, 2], [3]]],
            f"{ELEMENT}0{FAILED}Encountered list at unexpected size: 1 at "
            "level: 1 expected size: 2",
        ),
        (
            [[1, 2], [[3], 4]],
            f"{ELEMENT}1{FAILED}JSON Value: 4 found at incorrect level: 2",
        ),
        ([[1, [2]]], "Encountered list at unexpected level: 1"),
        (
            [1, None],
            f"{ELEMENT}1{FAILED}JSON Value: null Type: Null is not of expected "
            "type: float",
        ),
        ([b64(b"a")], "Type: Object is not of expected type: float"),
    ],
)
def test_wrong_rows(instances, text):
    request = {"instances": instances}
    assert_raises(text, json_tensors.decode, request, {"x": "float32"})


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"a": 1}, "Missing named input: b in 'inputs' object."),
        (
            [[1, 2], [3]],
            "Encountered list at unexpected size: 1 at level: 1 expected size: "
            "2",
        ),
        ([1, [2]], "Encountered list at unexpected level: 1"),
        ([[1], 2], "JSON Value: 2 found at incorrect level: 2"),
        (True, "JSON Value: true Type: True is not of expected type: float"),
        ([{"a": 1}], "Type: Object is not of expected type: float"),
    ],
)
def test_wrong_columns(inputs, text):
    dtypes = {"a": "float32", "b": "float32"}
    if not isinstance(inputs, dict):
        assert_raises(
            "inputs is a plain value/list",
            json_tensors.decode,
            {"inputs": 1},
            dtypes,
        )
        inputs, dtypes = {"x": inputs}, {"x": "float32"}
    message = assert_raises(
        text, json_tensors.decode, {"inputs": inputs}, dtypes
    )
    assert "Failed to process element" not in message


@pytest.mark.parametrize("first", [1, [1], "a", b64(b"a")])
def test_bare_rows_of_several_inputs(first):
    text = "expecting list of objects as multiple input tensors required"
    dtypes = {"a": "string", "b": "string"}
    assert_raises(text, json_tensors.decode, {"instances": [first]}, dtypes)


def test_rows_lack_an_input():
    dtypes = {"a": "float32", "b": "float32"}
    request = {"instances": [{"a": 1}]}
    assert_raises(
        "keys must be equal to: a,b", json_tensors.decode, request, dtypes
    )


# Values


@pytest.mark.parametrize(
    ("dtype", "tokens", "expected"),
    [
        ("float32", "1, 0.1, -0, 1e5", [1, 0.1, 0, 1e5]),
        ("float32", "NaN, -Inf, Infinity", [np.nan, -np.inf, np.inf]),
        ("float32", "1e39, -1e39, 1e-60", [np.inf, -np.inf, 0]),
        ("float32", "18446744073709551615, 1e19", [2.0**64, 1e19]),
        ("float64", "1, 0.1, 1e300, 5e-324", [1, 0.1, 1e300, 5e-324]),
        ("float64", "NaN, 9007199254740993", [np.nan, 2.0**53]),
        ("int32", "2147483647, -2147483648, -0", [2**31 - 1, -(2**31), 0]),
        ("int64", "9223372036854775807, -9223372036854775808", None),
        ("uint32", "0, 4294967295", None),
        ("uint64", "18446744073709551615", None),
        ("int8", "127, 128, -129, 2147483647", [127, -128, 127, -1]),
        ("uint8", "255, 256, -1, -2147483648", [255, 0, 255, 0]),
        ("int16", "32768, -32769, 5", [-32768, 32767, 5]),
        ("bool", "true, false", [True, False]),
        ("string", '"", "a\\u0000", "\\u00e9"', [b"", b"a\0", b"\xc3\xa9"]),
        ("string", '{"b64": "/+8="}, "/+8="', [b"\xff\xef", b"/+8="]),
    ],
)
@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_values(key, dtype, tokens, expected):
    body = f'{{"{key}": [{tokens}]}}'.encode()
    expected = json.loads(f"[{tokens}]") if expected is None else expected
    array = decode(body, x=dtype)["x"]
    assert_same(array, expected, object if dtype == "string" else dtype)


INTEGERS = ["int8", "uint8", "int16", "int32", "int64", "uint32", "uint64"]
WRONG = [
    *[
        (d, t)
        for d in ("float32", "float64")
        for t in ("true", "null", '"1.0"')
    ],
    *[(d, t) for d in INTEGERS for t in ("1.0", "1e2", "true", '"1"', "NaN")],
    *[(d, "null") for d in INTEGERS],
    *[(d, "18446744073709551616") for d in INTEGERS],
    *[(d, "2147483648") for d in ("int8", "uint8", "int16", "int32")],
    *[(d, "-2147483649") for d in ("int8", "uint8", "int16", "int32")],
    ("int64", "9223372036854775808"),
    ("int64", "-9223372036854775809"),
    ("uint32", "-1"),
    ("uint32", "4294967296"),
    ("uint64", "-1"),
    *[("bool", t) for t in ("0", "1", "1.5", '"true"', "null")],
    *[("string", t) for t in ("5", "1.5", "null", "true")],
]


@pytest.mark.parametrize(("dtype", "token"), WRONG)
def test_values_of_a_wrong_kind(dtype, token):
    kind = {"t": "True", "n": "Null", '"': "String"}.get(token[0], "Number")
    name = {"float32": "float", "float64": "double"}.get(dtype, dtype)
    text = f" Type: {kind} is not of expected type: {name}"
    body = f'{{"inputs": [{token}]}}'.encode()
    message = assert_raises(text, decode, body, x=dtype)
    assert message.startswith("JSON Value: ")
    body = f'{{"instances": [{token}]}}'.encode()
    message = assert_raises(text, decode, body, x=dtype)
    assert message.startswith(ELEMENT + "0" + FAILED)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("float16", "half"),
        ("bfloat16", "bfloat16"),
        ("uint16", "uint16"),
        ("complex64", "complex64"),
    ],
)
def test_dtypes_that_json_cannot_give(dtype, name):
    text = f"Conversion of JSON Value: 1 to type: {name}"
    request = {"inputs": [[1, 2]]}
    args = (json_tensors.decode, request, {"x": dtype})
    assert_raises(text, *args, code=Code.UNIMPLEMENTED)
    request = {"instances": [1, 2]}
    message = assert_raises(text, json_tensors.decode, request, {"x": dtype})
    assert message.startswith(
        ELEMENT + "0 of 'instances' list. Error: UNIMPLEMENTED: "
    )


@pytest.mark.parametrize(
    "digits", ["AP+/", " AP\n+ /\t", "\r\x0bAP+/\x0c", "AP+/AA==", "AP+/AA"]
)
def test_base64(digits):
    array = json_tensors.decode({"inputs": {"b64": digits}}, {"x": "string"})[
        "x"
    ]
    assert array.item() == b"\x00\xff\xbf" + b"\0" * ("A" in digits[4:])


@pytest.mark.parametrize("key", ["inputs", "instances"])
@pytest.mark.parametrize(
    "digits",
    [
        *("-_-_", "A", "AAAAA", "AA=", "AA===", "AAA==", "AAAA=", "AA=A", "="),
        *("A,AA", "h\u00e9", "AA\u00a0AA", "AA\0AA"),
    ],
)
def test_wrong_base64(key, digits):
    request = {key: [{"b64": digits}]}
    text = "Unable to base64 decode"
    assert_raises(text, json_tensors.decode, request, {"x": "string"})


@pytest.mark.parametrize("value", [{}, {"b64": 1}, {"b64": "AA", "c": 1}])
def test_objects_that_are_no_base64(value):
    text = "not formatted correctly for base64 data"
    request = {"inputs": [value]}
    assert_raises(text, json_tensors.decode, request, {"x": "string"})


def test_large_base64():
    data = np.random.default_rng(0).bytes(1_000_000)
    body = json.dumps({"instances": [b64(data)]}).replace("/", "\\/").encode()
    assert decode(body, x="string")["x"].item() == data


# Writing


def write(array, rows=False, name="y"):
    return encode({name: np.asarray(array)}, rows=rows)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.float32(3), b"3.0"),
        (np.float32([0.1, -0.0, 1]), b"[0.1,-0.0,1.0]"),
        (np.float64([0.1, 1]), b"[0.1,1.0]"),
        (np.float64([[np.nan], [np.inf]]), b"[[NaN],[Infinity]]"),
        (np.float32(-np.inf), b"-Infinity"),
        (np.int8([[1, -2]]), b"[[1,-2]]"),
        (np.uint8(255), b"255"),
        (np.int16([-32768]), b"[-32768]"),
        (np.int32([2**31 - 1]), b"[2147483647]"),
        (np.uint32([2**32 - 1]), b"[4294967295]"),
        (np.int64([-(2**63)]), b"[-9223372036854775808]"),
        (np.uint64([2**64 - 1]), b"[18446744073709551615]"),
        (np.array([True, False]), b"[true,false]"),
        (np.array(True), b"true"),
        (np.zeros([0, 2], np.float32), b"[]"),
        (np.zeros([2, 0], np.int32), b"[[], []]"),
        (np.zeros([2, 2], np.int32).T, b"[[0,0],[0,0]]"),
        (np.array(b"a", object), b'"a"'),
        (np.array([[b"a"], [b"b"]], object), b'[["a"],["b"]]'),
        (
            np.array([b'"\\\n\0\xc3\xa9'], object),
            b'["\\"\\\\\\n\\u0000\xc3\xa9"]',
        ),
        (np.array([b"\xff"], object), b'["\xff"]'),
        (np.array([], object), b"[]"),
    ],
)
def test_writing(array, expected):
    def compact(text):
        return text.replace(b" ", b"")

    assert compact(write(array)) == b'{"outputs":%b}' % compact(expected)
    if array.ndim:
        received = compact(write(array, rows=True))
        assert received == b'{"predictions":%b}' % compact(expected)


@pytest.mark.parametrize(
    ("dtype", "bits", "most"), [("float32", "u4", 9), ("float64", "u8", 17)]
)
def test_floats_are_short_and_read_back_the_same(dtype, bits, most):
    size = np.dtype(dtype).itemsize
    values = np.random.default_rng(0).bytes(5000 * size)
    values = np.frombuffer(values, dtype)
    limits = np.finfo(dtype)
    values = np.concatenate(
        [
            values[np.isfinite(values)],
            np.arange(-50, 50).astype(dtype),
            np.array([limits.max, limits.tiny, limits.smallest_subnormal]),
            10.0 ** np.arange(-30, 30),
        ]
    ).astype(dtype)
    tokens = write(values)[len(b'{"outputs":[') : -len(b"]}")].split(b",")
    read_back = np.array([float(token) for token in tokens]).astype(dtype)
    np.testing.assert_array_equal(read_back.view(bits), values.view(bits))
    assert all(re.search(rb"[.e]", token) for token in tokens)
    digits = [re.sub(rb"e.*|\D", b"", t).strip(b"0") for t in tokens]
    assert max(map(len, digits)) <= most


@pytest.mark.parametrize("rows", [True, False])
def test_a_name_with_the_suffix_makes_base64_of_strings(rows):
    strings = np.array([b"a", b"\xff"], object)
    answer = json.loads(write(strings, rows, name="a_bytes"))
    assert list(answer.values()) == [[b64(b"a"), b64(b"\xff")]]
    answer = json.loads(write([1, 2], rows, name="a_bytes"))
    assert list(answer.values()) == [[1, 2]]


def test_several_outputs():
    outputs = {
        "a": np.float32([[1, np.nan], [2, 3]]),
        "b_bytes": np.array([b"c", b"\x00"], object),
    }
    assert encode(outputs, rows=True) == (
        b'{"predictions":[{"a":[1.0,NaN],"b_bytes":{"b64": "Yw=="}},'
        b'{"a":[2.0,3.0],"b_bytes":{"b64": "AA=="}}]}'
    )
    assert encode(outputs, rows=False) == (
        b'{"outputs":{"a":[[1.0,NaN],[2.0,3.0]],'
        b'"b_bytes":[{"b64": "Yw=="}, {"b64": "AA=="}]}}'
    )
    none = {name: array[:0] for name, array in outputs.items()}
    assert encode(none, rows=True) == b'{"predictions":[]}'


@pytest.mark.parametrize("dtype", ["float16", "uint16", "complex64"])
@pytest.mark.parametrize("rows", [True, False])
def test_dtypes_that_cannot_be_written(dtype, rows):
    name = {"float16": "half"}.get(dtype, dtype)
    text = f"Failed to write JSON value for tensor type: {name}"
    assert_raises(text, write, np.zeros(2, dtype), rows)


def test_outputs_that_are_no_rows():
    outputs = {"a": np.zeros(2), "b": np.array(1)}
    text = "Tensor name: b has no shape information"
    assert_raises(text, encode, outputs, rows=True)
    outputs["b"] = np.zeros([4, 2])
    text = "Tensor name: b has inconsistent batch size: 4 expecting: 2"
    assert_raises(text, encode, outputs, rows=True)
    assert set(json.loads(encode(outputs, False))["outputs"]) == {
        "a",
        "b",
    }


def test_no_outputs():
    text = "Cannot convert empty tensor map to JSON"
    assert_raises(text, encode, {}, rows=False)
