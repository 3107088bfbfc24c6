"""Serves models until it is stopped.

    python -m keras_muffnet.model_server --rest_api_port=8501 \
        --model_name=muffnet --model_base_path=/models/muffnet

The flags are named as tensorflow_model_server's, and its configuration files
are read.
"""

import argparse
import importlib.metadata
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from keras_muffnet.model_server.flags import add_arguments
from keras_muffnet.model_server.flags import parse_args
from keras_muffnet.model_server.flags import server_arguments
from keras_muffnet.model_server.flags import warnings

if TYPE_CHECKING:
    from keras_muffnet.model_server.server import ModelServer

logger = logging.getLogger("keras_muffnet.model_server")

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        argv: The flags; those of the process by default.

    Raises:
        SystemExit: The server cannot start; prints one line that says why.
    """
    parser = argparse.ArgumentParser(
        prog="python -m keras_muffnet.model_server",
        description="Serve models with TensorFlow Serving's APIs.",
        allow_abbrev=False,
    )
    add_arguments(parser)
    try:
        serve(parse_args(parser, argv))
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"model_server: error: {error}")


def serve(flags: argparse.Namespace) -> None:
    """Serves until a signal stops it.

    Args:
        flags: Those of `parse_args`.

    Raises:
        ImportError, OSError, ValueError: The server cannot start.
    """
    if flags.version:
        _print_versions()
        return
    arguments = server_arguments(flags)
    stop, serving = threading.Event(), threading.Event()
    _watch_signals(stop, serving)
    _set_up_logging(flags.access_log)
    for line in warnings(flags):
        logger.warning("%s", line)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Here, because --help should not wait for it.
    from keras_muffnet.model_server import ModelServer

    server = ModelServer(**arguments)
    _wait_for_versions(server, flags.file_system_poll_wait_seconds)
    with server:
        serving.set()
        for name, versions in server.versions.items():
            numbers = ", ".join(map(str, versions))
            kind = "version" if len(versions) == 1 else "versions"
            url = f"{server.url}/v1/models/{quote(name, safe='')}"
            where = f" at {url}" if server.url else ""
            print(f"Serving {name} {kind} {numbers}{where}")
        if server.grpc_port is not None:
            host = f"[{flags.host}]" if ":" in flags.host else flags.host
            print(f"gRPC at {host}:{server.grpc_port}")
        if flags.grpc_socket_path:
            print(f"gRPC at unix:{flags.grpc_socket_path}")
        sys.stdout.flush()
        stop.wait()


def _watch_signals(stop: threading.Event, serving: threading.Event) -> None:
    """Sets `stop` at a signal; ends the process if it does not serve yet.

    In a thread, because a signal's handler waits for as long as a load of the
    main one's takes.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for number in _STOP_SIGNALS:
        # A shell may have started the process with SIGINT ignored.
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)

    def wait() -> None:
        reader.recv(1)
        stop.set()
        if not serving.is_set():
            logger.info("Stopped before the models were loaded")
            os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _wait_for_versions(server: "ModelServer", seconds: float) -> None:
    """Waits for a first version of each model, as TensorFlow Serving does."""
    reported = set()
    while seconds > 0 and (missing := server.missing_versions()):
        for name, base_path in missing.items():
            if name not in reported:
                logger.warning(
                    "No versions of model %s found under base path %s; "
                    "waiting for one",
                    name,
                    base_path,
                )
                reported.add(name)
        time.sleep(seconds)


def _print_versions() -> None:
    for name, package in (
        ("Model server", "keras-muffnet"),
        ("TensorFlow Library", "tensorflow"),
    ):
        try:
            print(f"{name}: {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not installed")


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


def run() -> None:
    """Runs the command and ends the process."""
    main()
    end()


def end() -> None:
    """Ends the process.

    To return would be to wait for an inference that cannot be canceled.
    """
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    run()
