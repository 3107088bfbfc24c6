"""Serves models until it is told to stop.

    python -m keras_muffnet.model_server --rest_api_port=8501 \
        --model_name=muffnet --model_base_path=/models/muffnet

The flags are named as tensorflow_model_server's, and its configuration files
are read.
"""

import argparse
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Sequence
from urllib.parse import quote

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        argv: The flags; those of the process by default.

    Raises:
        SystemExit: The server cannot start; one line tells why.
    """
    parser = argparse.ArgumentParser(
        prog="python -m keras_muffnet.model_server",
        description="Serve models with TensorFlow Serving's APIs.",
    )
    add_arguments(parser)
    try:
        serve(parser.parse_args(argv))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"model_server: error: {error}")


def serve(flags: argparse.Namespace) -> None:
    """Serves until a signal stops it.

    Args:
        flags: Those of `add_arguments`.

    Raises:
        ImportError, OSError, ValueError: The server cannot start.
    """
    _check_flags(flags)
    for number in _STOP_SIGNALS:
        # A shell may have started the process with SIGINT ignored.
        signal.signal(number, signal.SIG_DFL)
    # Every thread started from here on leaves the signals to this one.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    _set_up_logging(flags.access_log)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Here, because --help should not wait for it.
    from keras_muffnet.model_server import ModelServer

    with ModelServer(
        flags.model_base_path,
        model_name=flags.model_name,
        model_config_file=flags.model_config_file,
        port=flags.rest_api_port,
        grpc_port=_grpc_port(flags),
        host=flags.host,
        runtime=flags.runtime,
        batching_parameters_file=flags.batching_parameters_file,
        enable_batching=flags.enable_batching,
        monitoring_config_file=flags.monitoring_config_file,
        timeout=flags.rest_api_timeout_in_ms / 1000,
        file_system_poll_seconds=flags.file_system_poll_wait_seconds,
        config_poll_seconds=flags.model_config_file_poll_wait_seconds,
        allow_labels_for_unavailable=(
            flags.allow_version_labels_for_unavailable_models
        ),
        cors=flags.rest_api_enable_cors_support,
        show_page=flags.page,
    ) as server:
        for name, versions in server.versions.items():
            numbers = ", ".join(map(str, versions))
            kind = "version" if len(versions) == 1 else "versions"
            url = f"{server.url}/v1/models/{quote(name, safe='')}"
            print(f"Serving {name} {kind} {numbers} at {url}")
        if server.grpc_port is not None:
            print(f"gRPC at {flags.host}:{server.grpc_port}")
        sys.stdout.flush()
        signal.sigwait(_STOP_SIGNALS)


def _set_up_logging(access_log: bool) -> None:
    """Has the server's own messages written to stderr, one a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger("keras_muffnet.model_server")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
    # It would warn of the loader that serves best (`tensorflow_runtime`).
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # Lines of JSON, as they are.
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(message)s"))
    access = logging.getLogger("keras_muffnet.model_server.rest_service.access")
    access.addHandler(lines)
    access.propagate = False
    access.setLevel(logging.INFO if access_log else logging.WARNING)


def _grpc_port(flags: argparse.Namespace) -> int | None:
    """Returns the port of gRPC; by default one where gRPC is installed."""
    if flags.port is not None:
        return flags.port or None
    has_stubs = importlib.util.find_spec("tensorflow_serving") is not None
    return 8500 if has_stubs and flags.runtime != "litert" else None


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "1", "false", "0"):
        raise argparse.ArgumentTypeError(
            f"expected true or false, received {text!r}"
        )
    return text.lower() in ("true", "1")


def _check_flags(flags: argparse.Namespace) -> None:
    if flags.batching_parameters_file and not flags.enable_batching:
        raise ValueError("--batching_parameters_file needs --enable_batching")
    if flags.model_base_path is None and flags.model_config_file is None:
        raise ValueError("--model_base_path or --model_config_file is required")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser the server's flags."""
    add = parser.add_argument

    def add_switch(name: str, default: bool, text: str) -> None:
        add(
            f"--{name}",
            type=_boolean,
            nargs="?",
            const=True,
            default=default,
            metavar="true|false",
            help=f"{text} (default: {str(default).lower()})",
        )

    add(
        "--model_base_path",
        help="absolute path of the folder that holds the numbered versions",
    )
    add(
        "--model_name",
        default="default",
        help="the model's name in requests (default: %(default)s)",
    )
    add(
        "--model_config_file",
        help="text proto ModelServerConfig with several models, or with "
        "version policies and labels; instead of --model_base_path",
    )
    add(
        "--model_config_file_poll_wait_seconds",
        type=float,
        default=0,
        metavar="SECONDS",
        help="how often that file is read again; 0 for never (default: 0)",
    )
    add(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1,
        metavar="SECONDS",
        help="how often folders are looked at for new versions; 0 for never "
        "again (default: 1)",
    )
    add_switch(
        "allow_version_labels_for_unavailable_models",
        False,
        "let a new label be given to a version that is not loaded",
    )
    add(
        "--rest_api_port",
        type=int,
        default=8501,
        metavar="PORT",
        help="TCP port of REST; 0 picks a free one (default: %(default)s)",
    )
    add(
        "--port",
        type=int,
        help="TCP port of gRPC; 0 for none (default: 8500, or none where "
        "tensorflow-serving-api is not installed)",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s)",
    )
    add(
        "--rest_api_timeout_in_ms",
        type=int,
        default=30000,
        metavar="MS",
        help="time that a REST request may take (default: %(default)s)",
    )
    add_switch(
        "rest_api_enable_cors_support",
        False,
        "let web pages of other origins use the REST API",
    )
    add_switch(
        "enable_batching", False, "join requests of several clients in batches"
    )
    add(
        "--batching_parameters_file",
        help="text proto BatchingParameters; needs --enable_batching",
    )
    add(
        "--monitoring_config_file",
        help="text proto MonitoringConfig, which turns on Prometheus metrics",
    )
    add(
        "--runtime",
        choices=("auto", "tensorflow", "litert"),
        default="auto",
        help="what runs the models: SavedModels by TensorFlow, .tflite files "
        "by LiteRT (default: what a version's folder holds)",
    )
    add_switch("page", True, "answer GET / with a page to try models on")
    add_switch("access_log", False, "write a line of JSON for each request")


def run() -> None:
    """Runs the command and ends the process."""
    main()
    # To return would be to wait for an inference that cannot be cancelled.
    os._exit(0)


if __name__ == "__main__":
    run()
