"""Classify and regress: models that take serialized `tf.Example` messages.

The signature has one input, `inputs`. To classify, it has the outputs
`classes`, `scores` or both, `[batch, n]`; to regress, the one output
`outputs`, `[batch]` or `[batch, 1]`.
"""

import json
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.json_tensors import is_base64
from keras_muffnet.model_server.json_tensors import kind_name
from keras_muffnet.model_server.json_tensors import serving_name
from keras_muffnet.model_server.json_tensors import shown
from keras_muffnet.model_server.json_tensors import to_bytes
from keras_muffnet.model_server.json_tensors import write_array
from keras_muffnet.model_server.servable import Servable

if TYPE_CHECKING:
    from tensorflow.core.example.example_pb2 import Example
    from tensorflow.core.example.feature_pb2 import Feature

_INPUTS = "inputs"
_OUTPUTS = "outputs"  # of regression
_CLASSES = "classes"
_SCORES = "scores"

_MAX_INT64 = 2**63 - 1

# A feature holds values of one kind; of which, a JSON value's type says.
_FEATURE_KINDS = {
    bool: "int64",
    int: "int64",
    float: "float",
    str: "bytes",
    dict: "bytes",
}


def parse_examples(request: Mapping[str, Any]) -> list[bytes]:
    """Makes a request's examples.

    Args:
        request: The JSON object. `examples` is a list of objects, a value or
            a list of values for each feature; `context`, which may be left
            out, is another, whose features belong to each example.

    Returns:
        Serialized `tf.Example` messages, at least one.

    Raises:
        ServingError: The request does not have that form.
    """
    context = b""
    if "context" in request:
        context = _make_example(request["context"])
    if "examples" not in request:
        raise invalid_argument(
            f"JSON Value: {shown(request)} When method is classify, key "
            "'examples' is expected and was not found"
        )
    examples = request["examples"]
    if not isinstance(examples, list):
        raise invalid_argument(
            f"JSON Value: {shown(request)} Expecting 'examples' value "
            "to be an list/array"
        )
    if not examples:
        raise invalid_argument(
            f"JSON Value: {shown(request)} 'examples' value is an empty array"
        )
    # Messages in a row are one message, whose later fields replace earlier.
    return [context + _make_example(example) for example in examples]


def _make_example(value: Any) -> bytes:
    # It takes seconds to import TensorFlow.
    from tensorflow.core.example.example_pb2 import Example

    if not isinstance(value, dict):
        raise invalid_argument(
            f"Example must be JSON object but got JSON {kind_name(value)}"
        )
    example = Example()
    for name, content in value.items():
        values = content if isinstance(content, list) else [content]
        _fill_feature(_feature(example, name), name, values)
    return example.SerializeToString()


def _feature(example: "Example", name: str) -> "Feature":
    try:
        return example.features.feature[name]
    except UnicodeEncodeError as error:
        raise invalid_argument(
            f"Feature: {shown(name)} has a name that is not UTF-8"
        ) from error


def _fill_feature(feature: "Feature", name: str, values: list) -> None:
    kind = _feature_kind(name, values[0]) if values else None
    for value in values:
        if _feature_kind(name, value) != kind:
            raise invalid_argument(
                f"Unexpected element type in feature: {name} expecting type: "
                f"{kind}"
            )
        if kind == "int64" and value > _MAX_INT64:
            raise invalid_argument(
                f"Feature: {name} has uint64 element. Only int64_t is "
                "supported."
            )
    if kind == "int64":
        feature.int64_list.value.extend(map(int, values))  # no bool
    elif kind == "float":
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            feature.float_list.value.extend(np.array(values, np.float32))
    elif kind == "bytes":
        feature.bytes_list.value.extend(map(to_bytes, values))


def _feature_kind(name: str, value: Any) -> str:
    kind = _FEATURE_KINDS.get(type(value))
    if kind is None or (type(value) is dict and not is_base64(value)):
        raise invalid_argument(
            f"Feature: {name} has element with unexpected JSON type: "
            f"{kind_name(value)}"
        )
    return kind


def classify(
    servable: Servable, signature_key: str, examples: Sequence[bytes]
) -> list[list[tuple[str, float]]]:
    """Runs a classification signature.

    Args:
        servable: The model.
        signature_key: The signature's name.
        examples: Serialized `tf.Example` messages.

    Returns:
        For each example a label and a score for each class. A label is `""`,
        or a score 0, where the signature has no such output. Bytes of a label
        that are not UTF-8 are escaped by surrogates.

    Raises:
        ServingError: There are no examples, the signature or its outputs do
            not have the form for it, or an operation failed.
    """
    outputs = _signature_outputs(servable, signature_key, "classification")
    if len(outputs) not in (1, 2):
        raise invalid_argument(
            f"Expected one or two output Tensors, found {len(outputs)}"
        )
    if not outputs & {_CLASSES, _SCORES}:
        raise invalid_argument(
            "Expected classification signature outputs to contain at least "
            f'one of "{_CLASSES}" or "{_SCORES}". Signature '
            f"{signature_key} has: {','.join(sorted(outputs))}",
        )
    tensors = _run(servable, signature_key, examples)
    found = [name for name in (_CLASSES, _SCORES) if name in tensors]
    for name in found:
        _check_classes(tensors[name], name, len(examples))
    shape = tensors[found[0]].shape
    labels = tensors.get(_CLASSES, np.full(shape, b"", object))
    scores = tensors.get(_SCORES, np.zeros(shape, np.float32))
    if labels.shape != scores.shape:
        raise invalid_argument(
            "Tensors class and score should match in dim_size(1). Got "
            f"{labels.shape[1]} vs. {scores.shape[1]}"
        )
    return [
        [
            (label.decode(errors="surrogateescape"), score)
            for label, score in zip(*row, strict=True)
        ]
        for row in zip(labels.tolist(), scores.tolist(), strict=True)
    ]


def regress(
    servable: Servable, signature_key: str, examples: Sequence[bytes]
) -> list[float]:
    """Runs a regression signature.

    Args:
        servable: The model.
        signature_key: The signature's name.
        examples: Serialized `tf.Example` messages.

    Returns:
        A value for each example.

    Raises:
        ServingError: As `classify` does.
    """
    outputs = _signature_outputs(servable, signature_key, "regression")
    if len(outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if _OUTPUTS not in outputs:
        raise invalid_argument(
            f"No regression outputs found in SignatureDef: {signature_key}",
        )
    values = _run(servable, signature_key, examples)[_OUTPUTS]
    if values.ndim != 1 and not (values.ndim == 2 and values.shape[1] == 1):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or "
            f"[batch_size, 1] but got {list(values.shape)}"
        )
    if len(values) != len(examples):
        raise invalid_argument(
            "Input batch size did not match output batch size: "
            f"{len(examples)} vs. {len(values)}"
        )
    if values.dtype != np.float32:
        raise invalid_argument(
            "Expected output Tensor of DT_FLOAT. Got: "
            f"{serving_name(values.dtype.name)}"
        )
    return values.ravel().tolist()


def _signature_outputs(
    servable: Servable, signature_key: str, method: str
) -> set[str]:
    """Checks a signature's input and returns its outputs' names."""
    if signature_key not in servable.signature_defs:
        raise invalid_argument(
            f"No signature was found with the name: {signature_key}"
        )
    signature_def = servable.signature_defs[signature_key]
    if len(signature_def["inputs"]) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if _INPUTS not in signature_def["inputs"]:
        raise invalid_argument(
            f"No {method} inputs found in SignatureDef: {signature_key}",
        )
    return set(signature_def["outputs"])


def _run(
    servable: Servable, signature_key: str, examples: Sequence[bytes]
) -> dict[str, np.ndarray]:
    if not examples:
        raise invalid_argument("Input is empty.")
    signature = servable.signature(signature_key)
    dtype = signature.inputs[_INPUTS]
    if dtype != "string":
        raise invalid_argument(
            f"Expects arg[0] to be {serving_name(dtype)} but string is provided"
        )
    return servable.run(signature, {_INPUTS: np.array(examples, object)})


def _check_classes(array: np.ndarray, name: str, batch: int) -> None:
    if array.ndim != 2:
        raise invalid_argument(
            "Expected Tensor shape: [batch_size num_classes] but got "
            f"{list(array.shape)}"
        )
    dtype, expected = {
        _CLASSES: ("object", "DT_STRING"),
        _SCORES: ("float32", "DT_FLOAT"),
    }[name]
    if array.dtype.name != dtype:
        raise invalid_argument(
            f"Expected {name} Tensor of {expected}. Got: "
            f"{serving_name(array.dtype.name)}"
        )
    if len(array) != batch:
        raise invalid_argument(
            f"Expected {name} output batch size of {batch}. Got: {len(array)}"
        )


def write_classifications(
    classifications: Sequence[Sequence[tuple[str, float]]],
) -> bytes:
    """Writes what `classify` returns as the JSON of an answer."""
    scores = [score for row in classifications for _, score in row]
    numbers = write_array(np.array(scores, np.float32))
    tokens = iter(numbers.strip(b"[]").split(b","))
    rows = (
        b",".join(
            b"[%b,%b]" % (_write(label), next(tokens)) for label, _ in row
        )
        for row in classifications
    )
    return b'{"results":[%b]}' % b",".join(b"[%b]" % row for row in rows)


def _write(label: str) -> bytes:
    text = json.dumps(label, ensure_ascii=False)
    return text.encode(errors="surrogateescape")


def write_regressions(values: Sequence[float]) -> bytes:
    """Writes what `regress` returns as the JSON of an answer."""
    return b'{"results":%b}' % write_array(np.array(values, np.float32))
