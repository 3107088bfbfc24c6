"""TensorFlow Serving's requests and answers as protos, for one servable.

gRPC and warm-up requests come this way. All functions raise `ServingError`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.dtypes import as_dtype
from tensorflow_serving.apis import classification_pb2
from tensorflow_serving.apis import get_model_metadata_pb2
from tensorflow_serving.apis import inference_pb2
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import regression_pb2

from keras_muffnet.model_server import examples
from keras_muffnet.model_server import proto_tensors
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.json_tensors import DEFAULT_SIGNATURE
from keras_muffnet.model_server.options import Limits
from keras_muffnet.model_server.servable import Servable
from keras_muffnet.model_server.servable import Signature

_CLASSIFY = "tensorflow/serving/classify"
_REGRESS = "tensorflow/serving/regress"


def _spec(servable: Servable, signature: str) -> Any:
    spec = model_pb2.ModelSpec(name=servable.name, signature_name=signature)
    spec.version.value = servable.version
    return spec


def predict(
    servable: Servable,
    request: predict_pb2.PredictRequest,
    max_tensor_bytes: int = Limits.tensor,
    as_content: bool = False,
) -> predict_pb2.PredictResponse:
    """Answers a Predict request."""
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(key)
    if signature is None:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f'Serving signature key "{key}" not found.',
        )
    _check_names(signature, request.inputs)
    wanted = _wanted_outputs(signature, request.output_filter)
    inputs = _read_inputs(signature, request.inputs, max_tensor_bytes)
    outputs = servable.run(signature, inputs)
    response = predict_pb2.PredictResponse(model_spec=_spec(servable, key))
    for name in wanted:
        proto_tensors.write(
            outputs[name], response.outputs[name], as_content=as_content
        )
    return response


def _check_names(signature: Signature, inputs: Any) -> None:
    expected, received = set(signature.inputs), set(inputs)
    if len(expected) != len(received):
        raise invalid_argument(
            "input size does not match signature: "
            f"{len(received)}!={len(expected)} len({_listed(received)}) != "
            f"len({_listed(expected)}). Sent extra: "
            f"{_listed(received - expected)}. Missing but required: "
            f"{_listed(expected - received)}."
        )
    if expected != received:
        raise invalid_argument(
            f"Signature input alias: {min(expected - received)} not found in "
            f"request. Inputs expected to be in the set {_listed(expected)}."
        )


def _listed(names: set[str]) -> str:
    return f"{{{','.join(sorted(names))}}}"


def _wanted_outputs(
    signature: Signature, output_filter: Sequence[str]
) -> Sequence[str]:
    for index, name in enumerate(output_filter):
        if name not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {name} Outputs "
                "expected to be in the set "
                f"{_listed(set(signature.outputs))}."
            )
        if name in output_filter[:index]:
            raise invalid_argument(f"duplicate output tensor alias: {name}")
    return output_filter or signature.outputs


def _read_inputs(
    signature: Signature, inputs: Any, max_bytes: int
) -> dict[str, np.ndarray]:
    arrays = {}
    for index, (name, dtype) in enumerate(signature.inputs.items()):
        arrays[name] = proto_tensors.to_array(name, inputs[name], max_bytes)
        received = as_dtype(inputs[name].dtype).name
        if received != dtype:
            raise invalid_argument(
                f"Expects arg[{index}] to be {_cpp_name(dtype)} but "
                f"{_cpp_name(received)} is provided"
            )
    return arrays


def _cpp_name(dtype: str) -> str:
    names = {"float32": "float", "float64": "double", "float16": "half"}
    return names.get(dtype, dtype)


def classify(
    servable: Servable, request: classification_pb2.ClassificationRequest
) -> classification_pb2.ClassificationResponse:
    """Answers a Classify request."""
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    return classification_pb2.ClassificationResponse(
        model_spec=_spec(servable, key),
        result=_classify(servable, key, _read_examples(request.input)),
    )


def _classify(servable: Servable, key: str, serialized: list[bytes]) -> Any:
    result = classification_pb2.ClassificationResult()
    for classes in examples.classify(servable, key, serialized):
        entry = result.classifications.add()
        for label, score in classes:
            # Bytes that are not UTF-8 are held as surrogates.
            text = label.encode(errors="surrogateescape")
            entry.classes.add(label=text.decode(errors="replace"), score=score)
    return result


def regress(
    servable: Servable, request: regression_pb2.RegressionRequest
) -> regression_pb2.RegressionResponse:
    """Answers a Regress request."""
    key = request.model_spec.signature_name or DEFAULT_SIGNATURE
    return regression_pb2.RegressionResponse(
        model_spec=_spec(servable, key),
        result=_regress(servable, key, _read_examples(request.input)),
    )


def _regress(servable: Servable, key: str, serialized: list[bytes]) -> Any:
    result = regression_pb2.RegressionResult()
    for value in examples.regress(servable, key, serialized):
        result.regressions.add(value=value)
    return result


def multi_inference(
    servable: Servable, request: inference_pb2.MultiInferenceRequest
) -> inference_pb2.MultiInferenceResponse:
    """Answers a MultiInference request, whose tasks share their examples."""
    serialized = _read_examples(request.input)
    response = inference_pb2.MultiInferenceResponse()
    names = [task.model_spec.name for task in request.tasks]
    if len(set(names)) > 1:
        raise invalid_argument(
            "All ModelSpecs in a MultiInferenceRequest must access the same "
            f"model name. Received: {', '.join(names)}"
        )
    keys = [
        task.model_spec.signature_name or DEFAULT_SIGNATURE
        for task in request.tasks
    ]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            raise invalid_argument(f"Duplicate evaluation of signature: {key}")
    for task, key in zip(request.tasks, keys, strict=True):
        result = response.results.add(model_spec=_spec(servable, key))
        if task.method_name == _CLASSIFY:
            result.classification_result.CopyFrom(
                _classify(servable, key, serialized)
            )
        elif task.method_name == _REGRESS:
            result.regression_result.CopyFrom(
                _regress(servable, key, serialized)
            )
        else:
            raise ServingError(
                Code.UNIMPLEMENTED,
                f"Unsupported signature method_name: {task.method_name}",
            )
    return response


def _read_examples(message: Any) -> list[bytes]:
    """Returns an `Input`'s examples, each with the context merged into it."""
    kind = message.WhichOneof("kind")
    if kind == "example_list":
        found = list(message.example_list.examples)
    elif kind == "example_list_with_context":
        found = []
        for example in message.example_list_with_context.examples:
            merged = type(example)()
            merged.CopyFrom(message.example_list_with_context.context)
            merged.MergeFrom(example)
            found.append(merged)
    else:
        found = []
    if not found:
        raise invalid_argument("Input is empty.")
    return [example.SerializeToString() for example in found]


def metadata(
    servable: Servable, request: get_model_metadata_pb2.GetModelMetadataRequest
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Answers a GetModelMetadata request."""
    if not request.metadata_field:
        raise invalid_argument(
            "GetModelMetadataRequest must specify at least one metadata_field"
        )
    for field in request.metadata_field:
        if field != "signature_def":
            raise invalid_argument(f"Metadata field {field} is not supported")
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for key, value in servable.signature_defs.items():
        signatures.signature_def[key].CopyFrom(
            json_format.ParseDict(dict(value), meta_graph_pb2.SignatureDef())
        )
    response = get_model_metadata_pb2.GetModelMetadataResponse(
        model_spec=_spec(servable, "")
    )
    response.metadata["signature_def"].Pack(signatures)
    return response
