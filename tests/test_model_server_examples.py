"""Classify and regress, against what TensorFlow Serving does."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from keras_muffnet.model_server import examples
from keras_muffnet.model_server import json_tensors
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.loader import load


def assert_raises(text, function, *args, code=Code.INVALID_ARGUMENT):
    with pytest.raises(ServingError) as caught:
        function(*args)
    assert text in str(caught.value)
    assert caught.value.code == code


def parse(body):
    """Returns the features of each example of a body."""
    serialized = examples.parse_examples(json_tensors.parse(body))
    return [
        {
            name: _values(feature)
            for name, feature in tf.train.Example.FromString(
                message
            ).features.feature.items()
        }
        for message in serialized
    ]


def _values(feature):
    kind = feature.WhichOneof("kind")
    return kind and (kind, list(getattr(feature, kind).value))


# Requests


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (b"1.5", ("float_list", [1.5])),
        (b"[1.5, -2.0]", ("float_list", [1.5, -2.0])),
        (b"[Infinity, 1e39, -1e39]", ("float_list", [np.inf, np.inf, -np.inf])),
        (b"[0.1]", ("float_list", [float(np.float32(0.1))])),
        (b"18446744073709551616", ("float_list", [2.0**64])),
        (b"1", ("int64_list", [1])),
        (b"[true, 2, false]", ("int64_list", [1, 2, 0])),
        (
            b"[9223372036854775807, -9223372036854775808]",
            ("int64_list", [2**63 - 1, -(2**63)]),
        ),
        (b'"h\\u00e9"', ("bytes_list", ["h\u00e9".encode()])),
        (b'["", {"b64": "/+8"}]', ("bytes_list", [b"", b"\xff\xef"])),
        (b'"\xff"', ("bytes_list", [b"\xff"])),
        (b"[]", None),
    ],
)
def test_features(tokens, expected):
    assert parse(b'{"examples": [{"x": %b}]}' % tokens) == [{"x": expected}]


def test_a_feature_that_is_no_number():
    (example,) = parse(b'{"examples": [{"x": [NaN, 1.0]}]}')
    np.testing.assert_array_equal(example["x"][1], [np.nan, 1])


def test_context_belongs_to_each_example():
    body = (
        b'{"context": {"a": 1, "b": [2, 3]},'
        b'"examples": [{}, {"b": "own"}, {"c": 4.0}]}'
    )
    a, b = ("int64_list", [1]), ("int64_list", [2, 3])
    assert parse(body) == [
        {"a": a, "b": b},
        {"a": a, "b": ("bytes_list", [b"own"])},
        {"a": a, "b": b, "c": ("float_list", [4.0])},
    ]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{}", "key 'examples' is expected and was not found"),
        (b'{"examples": {}}', "Expecting 'examples' value to be an list/array"),
        (b'{"examples": null}', "Expecting 'examples' value to be an list"),
        (b'{"examples": []}', "'examples' value is an empty array"),
        (
            b'{"examples": [{}, []]}',
            "Example must be JSON object but got JSON Array",
        ),
        (b'{"examples": [null]}', "Example must be JSON object but got JSON N"),
        (
            b'{"examples": [{}], "context": 1}',
            "Example must be JSON object but got JSON Number",
        ),
        (
            b'{"examples": [{"x": [1, 1.5]}]}',
            "Unexpected element type in feature: x expecting type: int64",
        ),
        (
            b'{"examples": [{"x": [1.5, true]}]}',
            "Unexpected element type in feature: x expecting type: float",
        ),
        (
            b'{"examples": [{"x": ["a", 1]}]}',
            "Unexpected element type in feature: x expecting type: bytes",
        ),
        (
            b'{"examples": [{"x": null}]}',
            "Feature: x has element with unexpected JSON type: Null",
        ),
        (
            b'{"examples": [{"x": [1, [2]]}]}',
            "Feature: x has element with unexpected JSON type: Array",
        ),
        (
            b'{"examples": [{"x": {"y": 1}}]}',
            "Feature: x has element with unexpected JSON type: Object",
        ),
        (
            b'{"examples": [{"x": %b%b}]}' % (b"[" * 50_000, b"]" * 50_000),
            "Feature: x has element with unexpected JSON type: Array",
        ),
        (
            b'{"examples": [{"x": 9223372036854775808}]}',
            "Feature: x has uint64 element. Only int64_t is supported",
        ),
        (b'{"examples": [{"x": {"b64": "-"}}]}', "Unable to base64 decode"),
        (b'{"examples": [{"\xff": 1}]}', "has a name that is not UTF-8"),
    ],
)
def test_wrong_requests(body, text):
    assert_raises(text, examples.parse_examples, json_tensors.parse(body))


# Signatures and their outputs


def make_servable(inputs=("inputs",), dtype="string", **outputs):
    """Returns a stand-in for a servable that always answers the same."""
    signature = SimpleNamespace(inputs=dict.fromkeys(inputs, dtype))
    signature_def = {
        "inputs": dict.fromkeys(inputs),
        "outputs": dict.fromkeys(outputs),
    }
    return SimpleNamespace(
        signature_defs={"s": signature_def},
        signature=lambda key: signature,
        run=lambda signature, inputs: outputs,
    )


CLASSES = np.array([[b"a", b"b"], [b"c", b"\xff"]], object)
SCORES = np.array([[0.5, 0.25], [1, np.nan]], np.float32)


def test_classify_and_its_json():
    servable = make_servable(classes=CLASSES, scores=SCORES)
    results = examples.classify(servable, "s", [b"", b""])
    assert results[0] == [("a", 0.5), ("b", 0.25)]
    assert examples.write_classifications(results) == (
        b'{"results":[[["a",0.5],["b",0.25]],[["c",1.0],["\xff",NaN]]]}'
    )


def test_classify_without_scores_or_labels():
    servable = make_servable(classes=CLASSES)
    results = examples.classify(servable, "s", [b"", b""])
    assert results[0] == [("a", 0.0), ("b", 0.0)]
    servable = make_servable(scores=SCORES, other=None)
    results = examples.classify(servable, "s", [b"", b""])
    assert results[0] == [("", 0.5), ("", 0.25)]


def test_json_of_hard_labels_and_scores():
    results = [[('",[]', np.float32(0.1).item()), ("\n\u00e9", 3.0)], []]
    assert examples.write_classifications(results) == (
        '{"results":[[["\\",[]",0.1],["\\n\u00e9",3.0]],[]]}'.encode()
    )


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_regress_and_its_json(shape):
    outputs = np.array([0.1, 3, -np.inf], np.float32).reshape(shape)
    results = examples.regress(make_servable(outputs=outputs), "s", [b""] * 3)
    assert results == outputs.ravel().tolist()
    text = examples.write_regressions(results)
    assert text == b'{"results":[0.1,3.0,-Infinity]}'


FLOATS = np.zeros(2, np.float32)
ONE_INPUT = "Expected one input Tensor."


@pytest.mark.parametrize(
    ("function", "servable", "text", "code"),
    [
        (
            "classify",
            make_servable(["inputs", "b"], scores=SCORES),
            ONE_INPUT,
            3,
        ),
        ("regress", make_servable([], outputs=FLOATS), ONE_INPUT, 3),
        (
            "classify",
            make_servable(["x"], scores=SCORES),
            "No classification inputs found in SignatureDef",
            3,
        ),
        (
            "regress",
            make_servable(["x"], outputs=FLOATS),
            "No regression inputs found in SignatureDef",
            3,
        ),
        (
            "classify",
            make_servable(dtype="float32", scores=SCORES),
            "Expects arg[0] to be float but string is provided",
            3,
        ),
        (
            "classify",
            make_servable(y=SCORES),
            "Expected classification signature outputs to contain at least "
            'one of "classes" or "scores"',
            3,
        ),
        (
            "classify",
            make_servable(a=None, b=None, scores=SCORES),
            "Expected one or two output Tensors, found 3",
            3,
        ),
        (
            "classify",
            make_servable(scores=FLOATS),
            "Expected Tensor shape: [batch_size num_classes] but got [2]",
            3,
        ),
        (
            "classify",
            make_servable(scores=SCORES.astype("float64")),
            "Expected scores Tensor of DT_FLOAT. Got: double",
            3,
        ),
        (
            "classify",
            make_servable(classes=SCORES),
            "Expected classes Tensor of DT_STRING. Got: float",
            3,
        ),
        (
            "classify",
            make_servable(classes=CLASSES[:1], scores=SCORES),
            "Expected classes output batch size of 2. Got: 1",
            3,
        ),
        (
            "classify",
            make_servable(classes=CLASSES[:, :1], scores=SCORES),
            "should match in dim_size(1). Got 1 vs. 2",
            3,
        ),
        (
            "regress",
            make_servable(a=FLOATS, outputs=FLOATS),
            "Expected one output Tensor.",
            3,
        ),
        (
            "regress",
            make_servable(y=FLOATS),
            "No regression outputs found in SignatureDef",
            3,
        ),
        (
            "regress",
            make_servable(outputs=SCORES),
            "Expected output Tensor shape to be either [batch_size] or "
            "[batch_size, 1] but got [2, 2]",
            3,
        ),
        (
            "regress",
            make_servable(outputs=FLOATS[:1]),
            "Input batch size did not match output batch size: 2 vs. 1",
            3,
        ),
        (
            "regress",
            make_servable(outputs=FLOATS.astype("int32")),
            "Expected output Tensor of DT_FLOAT. Got: int32",
            3,
        ),
    ],
)
def test_wrong_signatures(function, servable, text, code):
    function = getattr(examples, function)
    assert_raises(text, function, servable, "s", [b"", b""], code=code)


@pytest.mark.parametrize(
    ("function", "servable"),
    [
        (examples.classify, make_servable(scores=SCORES)),
        (examples.regress, make_servable(outputs=FLOATS)),
    ],
)
def test_unknown_signatures_and_no_examples(function, servable):
    text = "No signature was found with the name: z"
    assert_raises(text, function, servable, "z", [b""])
    assert_raises("Input is empty.", function, servable, "s", [])


# A model


class Model(tf.Module):
    """Adds the features `x` and tells which example is large."""

    def parse(self, inputs):
        shape = tf.io.FixedLenFeature([2], tf.float32)
        return tf.reduce_sum(tf.io.parse_example(inputs, {"x": shape})["x"], 1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def regress(self, inputs):
        return {"outputs": self.parse(inputs)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify(self, inputs):
        total = self.parse(inputs)[:, tf.newaxis]
        names = tf.constant([["small", "large"]])
        return {
            "classes": tf.repeat(names, tf.shape(total)[0], axis=0),
            "scores": tf.concat([-total, total], axis=1),
        }


@pytest.fixture(scope="module", name="model")
def servable_of_the_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = Model()
    signatures = {"c": model.classify, "r": model.regress}
    tf.saved_model.save(model, str(path), signatures)
    servable = load(path, "model", 1)
    yield servable
    servable.close()


def test_a_model(model):
    request = {
        "context": {"x": [1.0, 0.5]},
        "examples": [{}, {"x": [3.5, 4.5]}],
    }
    messages = examples.parse_examples(request)
    assert examples.regress(model, "r", messages) == [1.5, 8.0]
    assert examples.classify(model, "c", messages) == [
        [("small", -1.5), ("large", 1.5)],
        [("small", -8.0), ("large", 8.0)],
    ]


@pytest.mark.parametrize(
    "example", [{}, {"x": [1, 2]}, {"x": 1.5}, {"x": {"b64": "AA=="}}]
)
def test_a_model_takes_no_other_features(model, example):
    messages = examples.parse_examples({"examples": [example]})
    assert_raises("x", examples.regress, model, "r", messages)


def test_what_is_no_example(model):
    assert_raises("xample", examples.classify, model, "c", [b"no message"])
