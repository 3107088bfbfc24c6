"""The text protos that the server reads."""

import pathlib

import pytest

from keras_muffnet.model_server import configuration
from keras_muffnet.model_server.batching import BatchingParameters
from keras_muffnet.model_server.configuration import ModelConfig
from keras_muffnet.model_server.configuration import VersionPolicy
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError

MODELS = """
# A comment.
model_config_list: {
  config: {
    name: "muffnet", base_path: "/models/muffnet"
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 1 versions: 3 } }
    version_labels { key: "stable" value: 1 }
    version_labels { key: 'canary' value: 3 }
    logging_config { sampling_config { sampling_rate: 0.1 } }
  }
  config { name: "a" base_path: "/a" model_platform: "tensorflow" }
  config { name: "b" base_path: "/b" model_platform: "tensorflow"
           model_version_policy { latest { num_versions: 2 } } }
  config { name: "c" base_path: "/c" model_platform: "tensorflow"
           model_version_policy { all {} } }
  config { name: "d" base_path: "/d" model_platform: "tensorflow"
           model_version_policy { latest {} } }
}
"""


def write(tmp_path, text):
    path = tmp_path / "a.config"
    path.write_text(text)
    return path


def test_models(tmp_path):
    muffnet, a, b, c, d = configuration.read_model_configs(
        write(tmp_path, MODELS)
    )
    assert muffnet == ModelConfig(
        "muffnet",
        pathlib.Path("/models/muffnet"),
        VersionPolicy(specific=frozenset({1, 3})),
        {"stable": 1, "canary": 3},
    )
    assert a.policy == d.policy == VersionPolicy(latest=1)
    assert b.policy == VersionPolicy(latest=2)
    assert c.policy == VersionPolicy()
    assert a.labels == {}


def test_the_same_text_is_taken_by_tensorflow_serving_s_own_message(tmp_path):
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    message = text_format.Parse(
        MODELS, model_server_config_pb2.ModelServerConfig()
    )
    expected = configuration.read_model_configs(write(tmp_path, MODELS))
    assert configuration.model_configs(message) == expected


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (VersionPolicy(), {1, 2, 9, 10}),
        (VersionPolicy(latest=1), {10}),
        (VersionPolicy(latest=2), {9, 10}),
        (VersionPolicy(latest=20), {1, 2, 9, 10}),
        (VersionPolicy(specific=frozenset({2, 3})), {2}),
    ],
)
def test_policies(policy, chosen):
    assert policy.select([9, 10, 1, 2]) == chosen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Only ModelConfigList is currently supported"),
        ("model_config_list { config { ", r"ModelServerConfig in .*a\.config"),
        ("models { }", r"a\.config.* no field named \"models\""),
        (
            MODELS.replace('"c"', '"a"'),
            "Illegal to list model a multiple times in config list",
        ),
        (
            MODELS.replace('"/b"', '"b"'),
            r"model b to have an absolute path or URI; got base_path\(\)=b",
        ),
        (MODELS.replace('"tensorflow"', '""', 1), "Illegal setting neither"),
        (MODELS.replace('"tensorflow"', '"torch"', 1), "Received: torch"),
        (MODELS.replace('"muffnet"', '""'), "Expected a model's `name`"),
        (
            MODELS.replace("all {}", "all {} latest {}"),
            "one version policy. Received: latest, all",
        ),
        (
            MODELS.replace("versions: 1 versions: 3", ""),
            "name the versions of its policy `specific`",
        ),
    ],
)
def test_models_that_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        configuration.read_model_configs(write(tmp_path, text))


def test_a_message_that_is_refused_has_its_code():
    from tensorflow_serving.config import model_server_config_pb2

    with pytest.raises(ServingError, match="Only ModelConfigList") as error:
        configuration.model_configs(model_server_config_pb2.ModelServerConfig())
    assert error.value.code == Code.INVALID_ARGUMENT


def test_a_single_model():
    assert configuration.single_model("m", "/models/m") == [
        ModelConfig("m", pathlib.Path("/models/m"))
    ]
    with pytest.raises(ValueError, match=r"absolute path.*got .*=models/m"):
        configuration.single_model("m", "models/m")
    with pytest.raises(ValueError, match="`model_name` must not be empty"):
        configuration.single_model("", "/models/m")


def test_batching_parameters(tmp_path):
    text = """
    max_batch_size { value: 16 }
    batch_timeout_micros { value: 500 }
    max_enqueued_batches { value: 7 }
    num_batch_threads { value: 3 }
    thread_pool_name { value: "pool" }
    allowed_batch_sizes: 4
    allowed_batch_sizes: 16
    pad_variable_length_inputs: true
    """
    assert configuration.read_batching_parameters(
        write(tmp_path, text)
    ) == BatchingParameters(
        max_batch_size=16,
        batch_timeout_micros=500,
        max_enqueued_batches=7,
        num_batch_threads=3,
        thread_pool_name="pool",
        allowed_batch_sizes=(4, 16),
        pad_variable_length_inputs=True,
    )
    splitting = """
    enable_large_batch_splitting { value: true }
    max_execution_batch_size { value: 8 }
    """
    found = configuration.read_batching_parameters(write(tmp_path, splitting))
    assert found == BatchingParameters(
        enable_large_batch_splitting=True, max_execution_batch_size=8
    )
    empty = configuration.read_batching_parameters(write(tmp_path, ""))
    assert empty == BatchingParameters()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: 16", r"BatchingParameters in .*a\.config"),
        ("max_batch_size { value: 0 }", r"a\.config: `max_batch_size` must"),
        ("allowed_batch_sizes: 4", r"a\.config: Last entry in"),
    ],
)
def test_batching_parameters_that_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        configuration.read_batching_parameters(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", None),
        ('prometheus_config { path: "/m" }', None),
        ('prometheus_config { enable: true path: "/m" }', "/m"),
        (
            "prometheus_config { enable: true }",
            "/monitoring/prometheus/metrics",
        ),
    ],
)
def test_monitoring_config(tmp_path, text, path):
    assert configuration.read_monitoring_config(write(tmp_path, text)) == path


def test_a_monitoring_config_that_is_refused(tmp_path):
    text = 'prometheus_config { enable: true path: "m" }'
    with pytest.raises(ValueError, match=r"begins with /\. Received: m$"):
        configuration.read_monitoring_config(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.config"):
        configuration.read_model_configs(tmp_path / "no.config")
