"""The command's flags: tensorflow_model_server's, and a few more.

serving/README.md has a table of them, which a test holds against this file.
"""

import argparse
import importlib.util
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from keras_muffnet.model_server import options

# Flags of tensorflow_model_server that are taken and do nothing, and why.
NO_EFFECT = {
    "num_load_threads": "versions are loaded one at a time",
    "num_unload_threads": "each version is unloaded by a thread of its own",
    "flush_filesystem_caches": "the system keeps its own caches",
    "remove_unused_fields_from_bundle_metagraph": "signatures alone are kept",
    "num_tflite_pools": "there is an interpreter for each CPU",
    "num_tflite_interpreters_per_pool": "there is an interpreter for each CPU",
    "enable_signature_method_name_check": "signatures are known by their form",
    "xla_cpu_compilation_enabled": "the SavedModel decides",
    "xla_gpu_compilation_enabled": "the SavedModel decides",
    "enable_profiler": "there is no profiler service",
    "thread_pool_factory_config_file": "TensorFlow's own threads are used",
    "mixed_precision": "networks run in the precision they were exported in",
    "skip_initialize_tpu": "there is no TPU",
}
# Those that would be dangerous to ignore.
REFUSED = {
    "use_alts_credentials": "the server does not speak ALTS; for encryption "
    "there is --ssl_config_file",
    "platform_config_file": "platforms cannot be configured; for sessions "
    "there is --tensorflow_session_config_file",
}


# Flags that mean something with REST, or with gRPC, alone.
REST_ALONE = (
    "rest_api_num_threads",
    "rest_api_enable_cors_support",
    "rest_api_ssl_config_file",
    "monitoring_config_file",
    "access_log",
)
GRPC_ALONE = (
    "grpc_max_threads",
    "grpc_channel_arguments",
    "ssl_config_file",
    "enable_grpc_healthcheck_service",
    "enable_grpc_reflection",
    "enable_serialization_as_tensor_content",
)


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(
            f"expected a port from 0 to 65535, received {text!r}"
        )
    return int(text)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(
            f"expected a positive integer, received {text!r}"
        )
    return int(text)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise argparse.ArgumentTypeError(
            f"expected true or false, received {text!r}"
        )
    return text.lower() in ("true", "1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser the server's flags."""
    models = parser.add_argument_group("models")
    _text(models, "model_base_path", "folder of the numbered versions")
    _text(models, "model_name", "the model's name in requests", "default")
    _text(
        models,
        "model_config_file",
        "text proto ModelServerConfig with several models, or with version "
        "policies and labels; --model_name and --model_base_path are then "
        "ignored",
    )
    _number(
        models,
        "model_config_file_poll_wait_seconds",
        0,
        "how often that file is applied again; 0 for never",
        float,
    )
    _number(
        models,
        "file_system_poll_wait_seconds",
        1,
        "how often folders are looked at for new versions; 0 for never again, "
        "not even to wait for a first version",
        float,
    )
    _switch(
        models,
        "allow_version_labels_for_unavailable_models",
        "let a new label be given to a version that is not loaded",
    )
    _number(
        models,
        "max_num_load_retries",
        5,
        "how often a version that does not load is loaded again",
    )
    _number(
        models, "load_retry_interval_micros", 60_000_000, "the time in between"
    )
    _text(models, "saved_model_tags", "of the graph served", "serve")
    _switch(models, "enable_model_warmup", "run warm-up requests", True)
    _number(
        models,
        "num_request_iterations_for_warmup",
        0,
        "how often each of them is run, if above 0",
    )
    models.add_argument(
        "--runtime",
        choices=("auto", "tensorflow", "litert"),
        default="auto",
        help="what runs the models: SavedModels by TensorFlow, .tflite files "
        "by LiteRT (default: what a version's folder holds; of both, LiteRT "
        "where it gives the same answers)",
    )
    _switch(
        models, "prefer_tflite_model", "serve a .tflite file where there is one"
    )

    sessions = parser.add_argument_group("TensorFlow sessions")
    _number(
        sessions,
        "tensorflow_session_parallelism",
        0,
        "threads, of both kinds below; 0 for one a CPU",
    )
    _number(
        sessions,
        "tensorflow_intra_op_parallelism",
        0,
        "threads of an operation",
    )
    _number(
        sessions, "tensorflow_inter_op_parallelism", 0, "operations at a time"
    )
    _text(
        sessions,
        "tensorflow_session_config_file",
        "text proto ConfigProto, which the flags above go before",
    )
    _number(
        sessions,
        "per_process_gpu_memory_fraction",
        0,
        "part of a GPU's memory taken at the start; 0 as it is needed",
        float,
    )
    _switch(
        sessions,
        "enable_batching",
        "join requests of several clients; LiteRT runs each by itself",
    )
    _text(
        sessions,
        "batching_parameters_file",
        "text proto BatchingParameters; needs --enable_batching",
    )
    _switch(
        sessions,
        "enable_per_model_batching_parameters",
        "batch each version by batching_params.pbtxt in its folder, those "
        "without one not at all; needs --enable_batching",
    )

    rest = parser.add_argument_group("REST")
    _number(rest, "rest_api_port", 8501, "TCP port; 0 for no REST", _port)
    _text(rest, "host", "address to listen on, for gRPC too", "127.0.0.1")
    _number(
        rest,
        "rest_api_num_threads",
        None,
        "requests answered at a time",
        _positive,
    )
    _number(
        rest,
        "rest_api_timeout_in_ms",
        30000,
        "time that a request may take",
        _positive,
    )
    _switch(
        rest, "rest_api_enable_cors_support", "answer pages of other origins"
    )
    _text(rest, "rest_api_ssl_config_file", "text proto SSLConfig for HTTPS")
    _number(
        rest,
        "rest_api_max_body_bytes",
        options.Limits.body,
        "size of a body as it is sent",
        _positive,
    )
    _number(
        rest,
        "rest_api_max_unpacked_bytes",
        options.Limits.unpacked_body,
        "size of a gzip body once it is unpacked",
        _positive,
    )
    _switch(rest, "page", "answer GET / with a page to try models on", True)

    grpc = parser.add_argument_group("gRPC")
    _number(
        grpc,
        "port",
        None,
        "TCP port; 0 for no gRPC (default: 8500, or none where "
        "tensorflow-serving-api is not installed)",
        _port,
    )
    _text(
        grpc,
        "grpc_socket_path",
        "UNIX socket to listen on, beside the port if there is one",
    )
    _number(
        grpc,
        "grpc_max_threads",
        None,
        "requests answered at a time",
        _positive,
    )
    _text(
        grpc,
        "grpc_channel_arguments",
        "the library's own, such as grpc.max_connection_age_ms=2000, by commas",
    )
    _text(grpc, "ssl_config_file", "text proto SSLConfig for TLS")
    _switch(
        grpc, "enable_grpc_healthcheck_service", "serve grpc.health.v1.Health"
    )
    _switch(grpc, "enable_grpc_reflection", "list the services for clients")
    _switch(
        grpc,
        "enable_serialization_as_tensor_content",
        "answer with bytes, in place of numbers",
    )
    _number(
        grpc,
        "grpc_max_message_bytes",
        options.Limits.message,
        "size of a request",
        _positive,
    )
    _number(
        grpc,
        "grpc_max_tensor_bytes",
        options.Limits.tensor,
        "size of one of its tensors, which the request may hold in fewer bytes",
        _positive,
    )

    other = parser.add_argument_group("other")
    _text(
        other,
        "monitoring_config_file",
        "text proto MonitoringConfig, which turns on Prometheus metrics",
    )
    _switch(other, "access_log", "write a line of JSON for each request")
    _switch(other, "version", "print the versions, and end")
    for name, why in {**NO_EFFECT, **REFUSED}.items():
        kind = "no effect" if name in NO_EFFECT else "refused"
        other.add_argument(
            f"--{name}",
            nargs="?",
            const="true",
            metavar="VALUE",
            help=f"{kind}: {why}",
        )


def _text(group: Any, name: str, text: str, default: str | None = None) -> None:
    text += " (default: %(default)s)" if default else ""
    group.add_argument(f"--{name}", default=default, help=text)


def _number(
    group: Any,
    name: str,
    default: float | None,
    text: str,
    kind: Callable[[str], float] = int,
) -> None:
    text += "" if default is None else " (default: %(default)s)"
    group.add_argument(
        f"--{name}", type=kind, default=default, metavar="N", help=text
    )


def _switch(group: Any, name: str, text: str, default: bool = False) -> None:
    group.add_argument(
        f"--{name}",
        type=_boolean,
        nargs="?",
        const=True,
        default=default,
        metavar="true|false",
        help=f"{text} (default: {str(default).lower()})",
    )


def parse_args(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Reads flags, and notes those that are not known.

    TensorFlow Serving prints those and continues, so that a configuration for
    another release of it starts.

    Returns:
        The flags by name; `unknown` is a list.
    """
    flags, unknown = parser.parse_known_args(argv)
    flags.unknown = unknown
    return flags


def warnings(flags: argparse.Namespace) -> list[str]:
    """Returns a line for each flag that is given and does nothing."""
    found = [f"unknown argument: {flag}" for flag in flags.unknown]
    for name, why in NO_EFFECT.items():
        if getattr(flags, name) is not None:
            found.append(f"--{name} has no effect: {why}")
    idle: list[tuple[Sequence[str], str]] = []
    if not flags.rest_api_port:
        idle.append((REST_ALONE, "REST is off, by --rest_api_port=0"))
    if _grpc_port(flags) is None and not flags.grpc_socket_path:
        idle.append(
            (GRPC_ALONE, "there is neither a port nor a socket of gRPC")
        )
    if flags.runtime == "litert":
        idle.append(
            (("enable_batching",), "LiteRT runs each request by itself")
        )
    if not flags.enable_batching:
        per_model = ("enable_per_model_batching_parameters",)
        idle.append((per_model, "--enable_batching is not given"))
    for names, why in idle:
        found += [
            f"--{name} has no effect: {why}"
            for name in names
            if getattr(flags, name)
        ]
    return found


def server_arguments(flags: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `ModelServer` that flags stand for.

    Raises:
        OSError: A file cannot be read.
        ValueError: A flag is refused, or contradicts another.
    """
    for name, why in REFUSED.items():
        value = getattr(flags, name)
        if value is not None and value.lower() not in ("", "false", "0"):
            raise ValueError(f"--{name} is refused: {why}. Received: {value}")
    if flags.batching_parameters_file and not flags.enable_batching:
        raise ValueError("--batching_parameters_file needs --enable_batching")
    grpc_port = _grpc_port(flags)
    if not (flags.rest_api_port or grpc_port or flags.grpc_socket_path):
        raise ValueError(
            "A port or a socket is required: --rest_api_port, --port or "
            "--grpc_socket_path"
        )
    if flags.model_base_path is None and flags.model_config_file is None:
        raise ValueError("--model_base_path or --model_config_file is required")
    base_path = None if flags.model_config_file else flags.model_base_path
    parallelism = flags.tensorflow_session_parallelism
    return {
        "model_base_path": base_path,
        "model_name": flags.model_name,
        "model_config_file": flags.model_config_file or None,
        "port": flags.rest_api_port or None,
        "grpc_port": grpc_port,
        "host": flags.host,
        "runtime": flags.runtime,
        "batching_parameters_file": flags.batching_parameters_file or None,
        "enable_batching": flags.enable_batching,
        "monitoring_config_file": flags.monitoring_config_file or None,
        "timeout": flags.rest_api_timeout_in_ms / 1000,
        "threads": flags.rest_api_num_threads,
        "limits": options.Limits(
            flags.rest_api_max_body_bytes,
            flags.rest_api_max_unpacked_bytes,
            flags.grpc_max_message_bytes,
            flags.grpc_max_tensor_bytes,
        ),
        "loading": options.LoadOptions(
            frozenset(flags.saved_model_tags.split(",")),
            flags.tensorflow_session_config_file or "",
            flags.tensorflow_intra_op_parallelism or parallelism,
            flags.tensorflow_inter_op_parallelism or parallelism,
            flags.per_process_gpu_memory_fraction,
            flags.enable_model_warmup,
            max(flags.num_request_iterations_for_warmup, 1),
            flags.prefer_tflite_model,
            flags.max_num_load_retries,
            max(flags.load_retry_interval_micros, 0) / 1e6,
            flags.enable_per_model_batching_parameters,
        ),
        "grpc": options.GrpcOptions(
            flags.grpc_max_threads,
            flags.grpc_socket_path or "",
            _channel_arguments(flags.grpc_channel_arguments or ""),
            flags.ssl_config_file or None,
            flags.enable_grpc_healthcheck_service,
            flags.enable_grpc_reflection,
            flags.enable_serialization_as_tensor_content,
        ),
        "ssl_config_file": flags.rest_api_ssl_config_file or None,
        "file_system_poll_seconds": flags.file_system_poll_wait_seconds,
        "config_poll_seconds": flags.model_config_file_poll_wait_seconds,
        "allow_labels_for_unavailable": (
            flags.allow_version_labels_for_unavailable_models
        ),
        "cors": flags.rest_api_enable_cors_support,
        "show_page": flags.page,
    }


def _grpc_port(flags: argparse.Namespace) -> int | None:
    """Returns the port of gRPC; by default one where gRPC is installed."""
    if flags.port is not None:
        return flags.port or None
    has_stubs = importlib.util.find_spec("tensorflow_serving") is not None
    return 8500 if has_stubs and flags.runtime != "litert" else None


def _channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    found: list[tuple[str, int | str]] = []
    for argument in filter(None, text.split(",")):
        name, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(
                "--grpc_channel_arguments must be of the form name=value. "
                f"Received: {argument}"
            )
        is_number = value.lstrip("-").isdecimal()
        found.append((name, int(value) if is_number else value))
    return tuple(found)
