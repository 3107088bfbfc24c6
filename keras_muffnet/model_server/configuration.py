"""The configuration files of TensorFlow Serving, as text protos.

The messages are declared here, with the names and numbers of TensorFlow
Serving's, because its package ships some of them only, and needs TensorFlow.
"""

import dataclasses
import os
import pathlib
import ssl
import tempfile
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message_factory
from google.protobuf import text_format
from google.protobuf import wrappers_pb2

from keras_muffnet.model_server.batching import BatchingParameters
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.options import Certificate

_PACKAGE = "keras_muffnet.model_server"
_INT64 = "google.protobuf.Int64Value"
_BOOL = "google.protobuf.BoolValue"
_STRING = "google.protobuf.StringValue"

# By message: each field's number and type, a list for what is repeated.
_MESSAGES: dict[str, dict[str, tuple[int, Any]]] = {
    "ModelServerConfig": {"model_config_list": (1, "ModelConfigList")},
    "ModelConfigList": {"config": (1, ["ModelConfig"])},
    "ModelConfig": {
        "name": (1, "string"),
        "base_path": (2, "string"),
        "model_platform": (4, "string"),
        "logging_config": (6, "LoggingConfig"),
        "model_version_policy": (7, "ServableVersionPolicy"),
        "version_labels": (8, ["VersionLabel"]),
    },
    "VersionLabel": {"key": (1, "string"), "value": (2, "int64")},
    "ServableVersionPolicy": {
        "latest": (100, "Latest"),
        "all": (101, "All"),
        "specific": (102, "Specific"),
    },
    "Latest": {"num_versions": (1, "uint32")},
    "All": {},
    "Specific": {"versions": (1, ["int64"])},
    # Requests are not logged; the field is known so that the file is read.
    "LoggingConfig": {
        "log_collector_config": (1, "LogCollectorConfig"),
        "sampling_config": (2, "SamplingConfig"),
    },
    "LogCollectorConfig": {
        "type": (1, "string"),
        "filename_prefix": (2, "string"),
    },
    "SamplingConfig": {"sampling_rate": (1, "double")},
    "BatchingParameters": {
        "max_batch_size": (1, _INT64),
        "batch_timeout_micros": (2, _INT64),
        "max_enqueued_batches": (3, _INT64),
        "num_batch_threads": (4, _INT64),
        "thread_pool_name": (5, _STRING),
        "allowed_batch_sizes": (6, ["int64"]),
        "pad_variable_length_inputs": (7, "bool"),
        "enable_large_batch_splitting": (8, _BOOL),
        "max_execution_batch_size": (9, _INT64),
    },
    "MonitoringConfig": {"prometheus_config": (1, "PrometheusConfig")},
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "SSLConfig": {
        "server_key": (1, "string"),
        "server_cert": (2, "string"),
        "custom_ca": (3, "string"),
        "client_verify": (4, "bool"),
    },
}


def _declare() -> Mapping[str, type]:
    """Makes the messages' classes."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for message, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = declared.field.add(name=name, number=number)
            field.label = kinds.LABEL_OPTIONAL
            if isinstance(kind, list):
                field.label = kinds.LABEL_REPEATED
                (kind,) = kind
            scalar = f"TYPE_{kind.upper()}"
            if hasattr(kinds, scalar):
                field.type = getattr(kinds, scalar)
            else:
                field.type = kinds.TYPE_MESSAGE
                known = kind if "." in kind else f"{_PACKAGE}.{kind}"
                field.type_name = f".{known}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")
        )
        for name in _MESSAGES
    }


_CLASSES = _declare()

_DEFAULT_METRICS_PATH = "/monitoring/prometheus/metrics"


@dataclasses.dataclass(frozen=True)
class VersionPolicy:
    """Which of a model's versions are loaded; all of them by default.

    Attributes:
        latest: As many of the largest numbers, or None.
        specific: These alone, or None.
    """

    latest: int | None = None
    specific: frozenset[int] | None = None

    def select(self, versions: Iterable[int]) -> set[int]:
        """Returns those of `versions` that the policy asks for."""
        chosen = set(versions)
        if self.specific is not None:
            chosen &= self.specific
        if self.latest is not None:
            chosen = set(sorted(chosen)[-self.latest :])
        return chosen


LATEST = VersionPolicy(latest=1)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One model.

    Attributes:
        name: The model's name in requests.
        base_path: Absolute path of the folder of the versions.
        policy: Which versions are loaded.
        labels: Version number by label.
    """

    name: str
    base_path: pathlib.Path
    policy: VersionPolicy = LATEST
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)


def read_model_configs(path: str | os.PathLike[str]) -> list[ModelConfig]:
    """Reads a `ModelServerConfig`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not such a text proto, or a value is not valid.
    """
    message = _read("ModelServerConfig", path)
    try:
        return model_configs(message)
    except ServingError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def model_configs(message: Any) -> list[ModelConfig]:
    """Checks a `ModelServerConfig`.

    Args:
        message: The message, this module's or TensorFlow Serving's own.

    Returns:
        The models, in their order.

    Raises:
        ServingError: It says what cannot be.
    """
    if not message.HasField("model_config_list"):
        raise invalid_argument("Only ModelConfigList is currently supported")
    found: dict[str, ModelConfig] = {}
    for config in message.model_config_list.config:
        if not config.name:
            raise invalid_argument(
                f"Expected a model's `name`. Received: {_one_line(config)}"
            )
        if config.name in found:
            raise invalid_argument(
                f"Illegal to list model {config.name} multiple times in "
                "config list"
            )
        if not config.model_platform:
            raise invalid_argument(
                "Illegal setting neither ModelServerConfig::model_type "
                "(deprecated) nor ModelServerConfig::model_platform. "
                f"Received: {_one_line(config)}"
            )
        if config.model_platform != "tensorflow":
            raise invalid_argument(
                f"Expected model {config.name} to have `model_platform` "
                f"tensorflow. Received: {config.model_platform}"
            )
        found[config.name] = ModelConfig(
            config.name,
            _absolute(config.name, config.base_path),
            _policy(config),
            _labels(config.version_labels),
        )
    return list(found.values())


def single_model(name: str, base_path: str | os.PathLike) -> list[ModelConfig]:
    """Returns what the flags for one model stand for.

    Raises:
        ValueError: The name is empty or the path is not absolute.
    """
    if not name:
        raise ValueError("`model_name` must not be empty. Received: ''")
    try:
        return [ModelConfig(name, _absolute(name, os.fspath(base_path)))]
    except ServingError as error:
        raise ValueError(f"`model_base_path`: {error}") from error


def _absolute(name: str, base_path: str) -> pathlib.Path:
    path = pathlib.Path(base_path)
    if not path.is_absolute():
        raise invalid_argument(
            f"Expected model {name} to have an absolute path or URI; got "
            f"base_path()={base_path}"
        )
    return path


def _policy(config: Any) -> VersionPolicy:
    policy = config.model_version_policy
    # This module's fields are not `oneof`, so that all are asked for.
    chosen = [
        kind for kind in ("latest", "all", "specific") if policy.HasField(kind)
    ]
    if len(chosen) > 1:
        raise invalid_argument(
            f"Expected model {config.name} to have one version policy. "
            f"Received: {', '.join(chosen)}"
        )
    if chosen == ["all"]:
        return VersionPolicy()
    if chosen == ["specific"]:
        if not policy.specific.versions:
            raise invalid_argument(
                f"Expected model {config.name} to name the versions of its "
                "policy `specific`. Received: none"
            )
        return VersionPolicy(specific=frozenset(policy.specific.versions))
    return VersionPolicy(latest=policy.latest.num_versions or 1)


def _labels(labels: Any) -> dict[str, int]:
    # A map in TensorFlow Serving's message, entries in this module's.
    if isinstance(labels, Mapping) or hasattr(labels, "items"):
        return dict(labels.items())
    return {label.key: label.value for label in labels}


def read_batching_parameters(
    path: str | os.PathLike[str],
) -> BatchingParameters:
    """Reads `BatchingParameters`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not such a text proto, or a value is not valid.
    """
    message = _read("BatchingParameters", path)
    # What is wrapped is there or not; the rest has its default where it is not.
    values: dict[str, Any] = {
        field.name: getattr(value, "value", value)
        for field, value in message.ListFields()
    }
    values["allowed_batch_sizes"] = tuple(message.allowed_batch_sizes)
    try:
        return BatchingParameters(**values)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def read_monitoring_config(path: str | os.PathLike[str]) -> str | None:
    """Reads a `MonitoringConfig`.

    Returns:
        The path of the metrics in URLs, or None where they are off.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not such a text proto, or the path is not absolute.
    """
    config = _read("MonitoringConfig", path).prometheus_config
    if not config.enable:
        return None
    if config.path and not config.path.startswith("/"):
        raise ValueError(
            f"{os.fspath(path)}: Expected a `path` that begins with /. "
            f"Received: {config.path}"
        )
    return config.path or _DEFAULT_METRICS_PATH


def read_certificate(path: str | os.PathLike[str]) -> Certificate:
    """Reads an `SSLConfig`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not such a text proto, or holds no key with its
            certificate.
    """
    config = _read("SSLConfig", path)
    for name in ("server_key", "server_cert"):
        if not getattr(config, name):
            raise ValueError(
                f"{os.fspath(path)}: Expected a `{name}` in PEM. Received: ''"
            )
    if config.client_verify and not config.custom_ca:
        raise ValueError(
            f"{os.fspath(path)}: `client_verify` needs a `custom_ca` in PEM. "
            "Received: ''"
        )
    certificate = Certificate(
        config.server_key,
        config.server_cert,
        config.custom_ca,
        config.client_verify,
    )
    try:
        _check_certificate(certificate)
    except ssl.SSLError as error:
        raise ValueError(
            f"{os.fspath(path)}: Expected a key with its certificate, and "
            f"authorities, in PEM and without a password. Received: {error}"
        ) from error
    return certificate


def _check_certificate(certificate: Certificate) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Python's ssl reads a file only. It would ask the terminal for a password.
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(f"{certificate.key}\n{certificate.chain}\n")
        file.flush()
        context.load_cert_chain(file.name, password="")
    if certificate.client_authorities:
        context.load_verify_locations(cadata=certificate.client_authorities)


def _read(kind: str, path: str | os.PathLike[str]) -> Any:
    try:
        text = pathlib.Path(path).read_text()
        return text_format.Parse(text, _CLASSES[kind]())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Expected a text proto of type {kind} in {os.fspath(path)}. "
            f"Received: {' '.join(str(error).split())}"
        ) from error


def _one_line(message: Any) -> str:
    return text_format.MessageToString(message, as_one_line=True) or "{}"
