"""gRPC, by a client built of tensorflow-serving-api alone."""

import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import classification_pb2
from tensorflow_serving.apis import get_model_metadata_pb2
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis import inference_pb2
from tensorflow_serving.apis import model_management_pb2
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.apis import regression_pb2
from tensorflow_serving.config import model_server_config_pb2

from keras_muffnet.model_server import ModelServer

NUMERIC = [
    *("float32", "float64", "float16", "bfloat16", "complex64", "complex128"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    "bool",
]

# What the model's `hold` signature tells and asks the tests.
holding = threading.Event()
release = threading.Event()


def _hold(x):
    holding.set()
    release.wait(60)
    return x


def _parse(examples):
    features = {"x": tf.io.FixedLenFeature([], tf.float32)}
    return tf.io.parse_example(examples, features)["x"]


class Toy(tf.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = tf.Variable(float(factor))

    def scale(self, x):
        return {"y": x * self.factor}

    def add(self, a, b):
        return {"sum": a + b, "difference": a - b}

    def nothing(self):
        return {"factor": tf.identity(self.factor)}

    def refuse(self, x):
        with tf.control_dependencies(
            [tf.debugging.assert_less(x, 10.0, message="too much" * 300)]
        ):
            return {"y": tf.identity(x)}

    def hold(self, x):
        return {"y": tf.numpy_function(_hold, [x], tf.float32)}

    def regress(self, inputs):
        return {"outputs": _parse(inputs) * self.factor}

    def classify(self, inputs):
        x = _parse(inputs)[:, tf.newaxis]
        classes = tf.fill(tf.shape(x), "a")
        return {
            "scores": tf.concat([x, 1 - x], axis=1),
            "classes": tf.concat([classes, tf.fill(tf.shape(x), "b")], axis=1),
        }


def save(factor, path):
    toy = Toy(factor)

    def concrete(function, **specs):
        specs = {
            name: tf.TensorSpec(shape, dtype, name=name)
            for name, (shape, dtype) in specs.items()
        }
        return tf.function(function).get_concrete_function(**specs)

    vector = ([None], tf.float32)
    strings = ([None], tf.string)
    signatures = {
        "serving_default": concrete(toy.scale, x=vector),
        "add": concrete(toy.add, a=vector, b=vector),
        "nothing": concrete(toy.nothing),
        "refuse": concrete(toy.refuse, x=vector),
        "hold": concrete(toy.hold, x=vector),
        "regress": concrete(toy.regress, inputs=strings),
        "classify": concrete(toy.classify, inputs=strings),
        "string": concrete(lambda x: {"y": tf.identity(x)}, x=strings),
    }
    for dtype in NUMERIC:
        signatures[dtype] = concrete(
            lambda x: {"y": tf.identity(x)}, x=(None, dtype)
        )
    tf.saved_model.save(toy, path, signatures)
    return toy


CONFIG = """
model_config_list {{ config {{
  name: "toy" base_path: "{}" model_platform: "tensorflow"
  model_version_policy {{ specific {{ versions: 2 versions: 10 }} }}
  version_labels {{ key: "stable" value: 2 }}
}} }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    # Alive for as long as graphs call back into this process.
    toys = [save(v, folder / "toy" / str(v)) for v in (2, 10)]
    (folder / "models.config").write_text(CONFIG.format(folder / "toy"))
    yield folder
    del toys


@pytest.fixture(scope="module")
def server(folder):
    with ModelServer(
        model_config_file=folder / "models.config", grpc_port=0
    ) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server):
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    address = f"127.0.0.1:{server.grpc_port}"
    with grpc.insecure_channel(address, options) as channel:
        yield channel


@pytest.fixture(scope="module")
def predictions(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def request_for(signature="", inputs=None, name="toy", **spec):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    for key, value in (inputs or {}).items():
        if not isinstance(value, tensor_pb2.TensorProto):
            value = tf.make_tensor_proto(value)
        request.inputs[key].CopyFrom(value)
    return request


def vector(*values):
    return np.array(values, np.float32)


def refused(call, request, code, *fragments, **arguments):
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=60, **arguments)
    assert error.value.code() == code, error.value.details()
    for fragment in fragments:
        assert fragment in error.value.details()
    return error.value.details()


INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


# Predict


def test_predict(predictions):
    response = predictions.Predict(
        request_for(inputs={"x": vector(1, 2.5)}), timeout=60
    )
    assert response.model_spec.name == "toy"
    assert response.model_spec.version.value == 10
    assert response.model_spec.signature_name == "serving_default"
    (y,) = response.outputs.values()
    assert list(y.float_val) == [10.0, 25.0]
    assert [dim.size for dim in y.tensor_shape.dim] == [2]
    assert y.dtype == types_pb2.DT_FLOAT and y.tensor_content == b""


@pytest.mark.parametrize(
    ("spec", "version"),
    [({"version": 2}, 2), ({"version": 10}, 10), ({"label": "stable"}, 2)],
)
def test_versions_and_labels(predictions, spec, version):
    response = predictions.Predict(
        request_for(inputs={"x": vector(1)}, **spec), timeout=60
    )
    assert response.model_spec.version.value == version
    assert list(response.outputs["y"].float_val) == [float(version)]


@pytest.mark.parametrize("dtype", NUMERIC)
@pytest.mark.parametrize("in_field", [True, False])
def test_dtypes(predictions, dtype, in_field):
    kind = tf.as_dtype(dtype)
    values = [[0, 1, 1], [1, 0, 1]]
    if dtype.startswith("complex"):
        values = [[1 + 2j, 3, 4j], [5, 6, -7 - 1j]]
    elif dtype not in ("bool",) and not dtype.startswith("uint"):
        values = [[0, -1, 2], [100, 5, -100]]
    array = np.array(values).astype(kind.as_numpy_dtype)
    proto = tensor_pb2.TensorProto()
    if in_field:
        # TensorFlow's own writing, of tensors of one element: the others'
        # bytes are made of these.
        proto.CopyFrom(tf.make_tensor_proto(array.ravel()[:1], kind))
        for element in array.ravel()[1:]:
            proto.MergeFrom(tf.make_tensor_proto(element, kind))
        proto.ClearField("tensor_shape")
        for size in array.shape:
            proto.tensor_shape.dim.add(size=size)
        assert not proto.tensor_content
    else:
        proto.CopyFrom(tf.make_tensor_proto(array, kind, array.shape))
        for field, _ in proto.ListFields():
            if field.name.endswith("_val"):
                proto.ClearField(field.name)
        proto.tensor_content = array.tobytes()
    response = predictions.Predict(request_for(dtype, {"x": proto}), timeout=60)
    answer = response.outputs["y"]
    assert answer.dtype == kind.as_datatype_enum
    assert not answer.tensor_content
    np.testing.assert_array_equal(tf.make_ndarray(answer), array)


def test_strings(predictions):
    texts = [b"", b"a\x00\xff\x00"]
    response = predictions.Predict(
        request_for("string", {"x": np.array(texts, object)}), timeout=60
    )
    assert list(response.outputs["y"].string_val) == texts


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("DT_FLOAT", "float_val: 1 float_val: 2", [1, 2, 2, 2]),
        ("DT_FLOAT", "", [0, 0, 0, 0]),
        ("DT_STRING", 'string_val: "a"', [b"a"] * 4),
        (
            "DT_STRING",
            r'string_val: "b" string_val: "a\0"',
            [b"b"] + [b"a\0"] * 3,
        ),
        ("DT_STRING", "", [b""] * 4),
    ],
)
def test_fewer_values_than_elements(predictions, dtype, values, expected):
    proto = text_format.Parse(
        f"dtype: {dtype} tensor_shape {{ dim {{ size: 4 }} }} {values}",
        tensor_pb2.TensorProto(),
    )
    name = "string" if dtype == "DT_STRING" else "float32"
    response = predictions.Predict(request_for(name, {"x": proto}), timeout=60)
    assert tf.make_ndarray(response.outputs["y"]).tolist() == expected


def test_a_signature_without_inputs(predictions):
    response = predictions.Predict(request_for("nothing"), timeout=60)
    assert list(response.outputs["factor"].float_val) == [10.0]


def test_output_filter(predictions):
    request = request_for("add", {"a": vector(3), "b": vector(1)})
    assert set(predictions.Predict(request, timeout=60).outputs) == {
        "sum",
        "difference",
    }
    request.output_filter.append("difference")
    (output,) = predictions.Predict(request, timeout=60).outputs.items()
    assert output[0] == "difference" and output[1].float_val == [2.0]
    request.output_filter.append("difference")
    refused(
        predictions.Predict,
        request,
        INVALID,
        "duplicate output tensor alias: difference",
    )
    request.output_filter[1] = "z"
    refused(
        predictions.Predict,
        request,
        INVALID,
        "output tensor alias not found in signature: z",
    )


def test_messages_of_many_megabytes(predictions):
    values = np.arange(4_000_000, dtype=np.float32)
    response = predictions.Predict(
        request_for("float32", {"x": values}), timeout=60
    )
    np.testing.assert_array_equal(
        tf.make_ndarray(response.outputs["y"]), values
    )


BAD_SPECS = [
    (predict_pb2.PredictRequest(), INVALID, "Missing ModelSpec"),
    (request_for(name=""), INVALID, "ModelSpec has no name specified."),
    (
        request_for(name="n"),
        NOT_FOUND,
        "Servable not found for request: Latest(n)",
    ),
    (
        request_for(version=3),
        NOT_FOUND,
        "Servable not found for request: Specific(toy, 3)",
    ),
    (
        request_for(label="new"),
        INVALID,
        "Unrecognized servable version label: new",
    ),
]


@pytest.mark.parametrize(("request_", "code", "text"), BAD_SPECS)
def test_models_that_are_not_there(predictions, request_, code, text):
    refused(predictions.Predict, request_, code, text)


@pytest.mark.parametrize(
    ("signature", "inputs", "code", "text"),
    [
        ("z", {}, PRECONDITION, 'Serving signature key "z" not found.'),
        (
            "add",
            {"a": vector(1)},
            INVALID,
            "input size does not match signature: 1!=2 len({a}) != "
            "len({a,b}). Sent extra: {}. Missing but required: {b}.",
        ),
        ("", {"z": vector(1)}, INVALID, "Signature input alias: x"),
        (
            "",
            {"x": np.array([1], np.int32)},
            INVALID,
            "Expects arg[0] to be float but int32 is provided",
        ),
        (
            "add",
            {"a": vector(1), "b": np.array([1.0])},
            INVALID,
            "Expects arg[1] to be float but double is provided",
        ),
    ],
)
def test_requests_that_do_not_fit(predictions, signature, inputs, code, text):
    refused(predictions.Predict, request_for(signature, inputs), code, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dtype: DT_FLOAT tensor_shape { dim { size: -1 } }",
        "dtype: DT_FLOAT tensor_shape { unknown_rank: true }",
        "dtype: DT_FLOAT tensor_shape { dim { size: 2 } } "
        "tensor_content: 'abc'",
        "dtype: DT_FLOAT tensor_shape { dim { size: 1 } } float_val: 1 "
        "float_val: 2",
        "dtype: DT_FLOAT tensor_shape {" + "dim { size: 1 } " * 255 + "}",
        "dtype: DT_FLOAT tensor_shape {" + "dim { size: 1 } " * 200 + "}",
        "dtype: DT_FLOAT tensor_shape { dim { size: 4000000000000000000 } "
        "dim { size: 8 } }",
        "dtype: DT_RESOURCE tensor_shape { }",
    ],
)
def test_tensors_that_are_none(predictions, text):
    proto = text_format.Parse(text, tensor_pb2.TensorProto())
    refused(
        predictions.Predict,
        request_for("float32", {"x": proto}),
        INVALID,
        "tensor parsing error: x",
    )


def test_the_graph_s_errors_keep_their_code_and_are_cut(predictions):
    details = refused(
        predictions.Predict,
        request_for("refuse", {"x": vector(11)}),
        INVALID,
        "too much",
    )
    assert len(details) == 1024 + len("...TRUNCATED")
    assert details.endswith("...TRUNCATED")


def test_deadlines(predictions):
    request = request_for("hold", {"x": vector(1)})
    release.set()
    predictions.Predict(request, timeout=60)  # the first takes longest
    holding.clear()
    release.clear()
    try:
        with pytest.raises(grpc.RpcError) as error:
            predictions.Predict(request, timeout=2)
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert holding.is_set()
        # Nobody else waits.
        predictions.Predict(request_for(inputs={"x": vector(1)}), timeout=60)
    finally:
        release.set()


def test_many_requests_at_a_time(predictions):
    def ask(number):
        response = predictions.Predict(
            request_for(inputs={"x": vector(number)}), timeout=60
        )
        return list(response.outputs["y"].float_val)

    with ThreadPoolExecutor(50) as clients:
        answers = list(clients.map(ask, range(200)))
    assert answers == [[number * 10.0] for number in range(200)]


# Classify, Regress, MultiInference


def fill_input(message, *values):
    for value in values:
        example = message.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(value)


def test_classify(predictions):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "toy"
    request.model_spec.signature_name = "classify"
    refused(predictions.Classify, request, INVALID, "Input is empty.")
    fill_input(request.input, 0.25, 1.0)
    response = predictions.Classify(request, timeout=60)
    assert response.model_spec.version.value == 10
    assert [
        [(entry.label, entry.score) for entry in classes.classes]
        for classes in response.result.classifications
    ] == [[("a", 0.25), ("b", 0.75)], [("a", 1.0), ("b", 0.0)]]
    request.model_spec.signature_name = "z"
    refused(
        predictions.Classify,
        request,
        INVALID,
        "No signature was found with the name: z",
    )
    request.model_spec.signature_name = "regress"
    refused(
        predictions.Classify,
        request,
        INVALID,
        "Expected classification signature outputs",
    )


def test_regress_with_context(predictions):
    request = regression_pb2.RegressionRequest()
    request.model_spec.name = "toy"
    request.model_spec.signature_name = "regress"
    both = request.input.example_list_with_context
    both.context.features.feature["x"].float_list.value.append(1.5)
    both.examples.add()
    both.examples.add().features.feature["x"].float_list.value.append(2)
    response = predictions.Regress(request, timeout=60)
    assert [r.value for r in response.result.regressions] == [15.0, 20.0]


def test_multi_inference(predictions):
    request = inference_pb2.MultiInferenceRequest()
    for name, method in (("classify", "classify"), ("regress", "regress")):
        task = request.tasks.add()
        task.model_spec.name = "toy"
        task.model_spec.signature_name = name
        task.method_name = f"tensorflow/serving/{method}"
    fill_input(request.input, 0.5)
    classified, regressed = predictions.MultiInference(
        request, timeout=60
    ).results
    (classes,) = classified.classification_result.classifications
    assert [entry.score for entry in classes.classes] == [0.5, 0.5]
    assert regressed.regression_result.regressions[0].value == 5.0
    request.tasks[1].method_name = "tensorflow/serving/predict"
    refused(
        predictions.MultiInference,
        request,
        grpc.StatusCode.UNIMPLEMENTED,
        "tensorflow/serving/predict",
    )
    request.tasks[1].model_spec.signature_name = "classify"
    refused(predictions.MultiInference, request, INVALID, "Duplicate")
    request.tasks[1].model_spec.name = "n"
    refused(predictions.MultiInference, request, INVALID, "same model name")
    del request.tasks[:]
    refused(predictions.MultiInference, request, INVALID)


# Status and metadata


def test_metadata(predictions):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "toy"
    refused(
        predictions.GetModelMetadata,
        request,
        INVALID,
        "must specify at least one metadata_field",
    )
    request.metadata_field.append("signature_def")
    response = predictions.GetModelMetadata(request, timeout=60)
    assert response.model_spec.version.value == 10
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    x = signatures.signature_def["serving_default"].inputs["x"]
    assert x.dtype == types_pb2.DT_FLOAT
    assert [dim.size for dim in x.tensor_shape.dim] == [-1]
    assert set(signatures.signature_def) > {"add", "__saved_model_init_op"}
    request.metadata_field.append("f")
    refused(
        predictions.GetModelMetadata,
        request,
        INVALID,
        "Metadata field f is not supported",
    )


def status_of(models, name="toy", version=None):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    return models.GetModelStatus(request, timeout=60).model_version_status


def test_status(models):
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [
        (entry.version, entry.state, entry.status.error_code)
        for entry in status_of(models)
    ] == [(10, available, 0), (2, available, 0)]
    (entry,) = status_of(models, version=2)
    assert entry.version == 2
    for name, version, text in (
        ("n", None, "Could not find any versions of model n"),
        ("toy", 7, "Could not find version 7 of model toy"),
    ):
        with pytest.raises(grpc.RpcError, match=text) as error:
            status_of(models, name, version)
        assert error.value.code() == NOT_FOUND


# Reloading the configuration, on a server of its own.


@pytest.fixture
def reloading(folder):
    with ModelServer(
        model_config_file=folder / "models.config", grpc_port=0
    ) as server:
        address = f"127.0.0.1:{server.grpc_port}"
        with grpc.insecure_channel(address) as channel:
            yield (
                prediction_service_pb2_grpc.PredictionServiceStub(channel),
                model_service_pb2_grpc.ModelServiceStub(channel),
            )


def reload_request(text):
    return model_management_pb2.ReloadConfigRequest(
        config=text_format.Parse(
            text, model_server_config_pb2.ModelServerConfig()
        )
    )


def test_reloading_moves_a_label_and_adds_a_model(folder, reloading):
    predictions, models = reloading
    text = pathlib.Path(folder, "models.config").read_text()
    moved = text.replace('"stable" value: 2', '"stable" value: 10')
    other = """config { name: "other" base_path: "BASE"
                        model_platform: "tensorflow" }"""
    other = other.replace("BASE", str(folder / "toy"))
    moved = moved.replace("model_config_list {", "model_config_list {" + other)
    response = models.HandleReloadConfigRequest(
        reload_request(moved), timeout=60
    )
    assert response.status.error_code == 0
    for name, label in (("toy", {"label": "stable"}), ("other", {})):
        answer = predictions.Predict(
            request_for(inputs={"x": vector(1)}, name=name, **label),
            timeout=60,
        )
        assert answer.model_spec.version.value == 10
    # The new configuration replaces the old one whole.
    models.HandleReloadConfigRequest(
        reload_request("model_config_list {" + other + "}"), timeout=60
    )
    refused(
        predictions.Predict,
        request_for(inputs={"x": vector(1)}),
        NOT_FOUND,
        "Latest(toy)",
    )
    assert status_of(models, "other")[0].version == 10


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (("model_config_list", "#"), INVALID, "Only ModelConfigList"),
        (
            ('base_path: "/', 'base_path: "'),
            INVALID,
            "to have an absolute path",
        ),
        (('"tensorflow"', '""'), INVALID, "Illegal setting neither"),
        (
            ('"stable" value: 2', '"stable" value: 5'),
            PRECONDITION,
            "not currently available for inference",
        ),
    ],
)
def test_configurations_that_are_refused(folder, reloading, change, code, text):
    predictions, models = reloading
    config = pathlib.Path(folder, "models.config").read_text()
    config = config.replace(*change)
    if change[1] == "#":
        config = ""
    refused(
        models.HandleReloadConfigRequest, reload_request(config), code, text
    )
    answer = predictions.Predict(
        request_for(inputs={"x": vector(1)}, label="stable"), timeout=60
    )
    assert answer.model_spec.version.value == 2


def test_other_services_are_not_there(channel):
    call = channel.unary_unary("/tensorflow.serving.SessionService/SessionRun")
    with pytest.raises(grpc.RpcError) as error:
        call(b"", timeout=60)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_port_in_use(server, folder):
    busy = ModelServer(folder / "toy", grpc_port=server.grpc_port)
    with pytest.raises(OSError, match=f"port={server.grpc_port}"):
        busy.__enter__()
