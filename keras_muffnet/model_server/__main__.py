"""Serves a SavedModel until it is told to stop.

    python -m keras_muffnet.model_server --rest_api_port=8501 \
        --model_name=muffnet --model_base_path=/models/muffnet

The flags are named as tensorflow_model_server's.
"""

import argparse
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
    flags = _parse_flags(argv)
    for number in _STOP_SIGNALS:
        # A shell may have started the process with SIGINT ignored.
        signal.signal(number, signal.SIG_DFL)
    # Every thread started from here on leaves the signals to this one.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        # Here, because --help should not wait for it.
        from keras_muffnet.model_server import ModelServer

        with ModelServer(
            flags.model_base_path,
            model_name=flags.model_name,
            port=flags.rest_api_port,
            host=flags.host,
        ) as server:
            print(
                f"Serving {flags.model_name} version {server.version} at "
                f"{server.url}/v1/models/{quote(flags.model_name, safe='')}",
                flush=True,
            )
            signal.sigwait(_STOP_SIGNALS)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"model_server: error: {error}")


def _parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m keras_muffnet.model_server",
        description="Serve a SavedModel with TensorFlow Serving's REST API.",
    )
    parser.add_argument(
        "--model_base_path",
        required=True,
        help="absolute path of the folder that holds the numbered versions",
    )
    parser.add_argument(
        "--model_name", default="default", help="the model's name in URLs"
    )
    parser.add_argument(
        "--rest_api_port",
        type=int,
        default=8501,
        help="TCP port; 0 picks a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
    # To return would be to wait for an inference that cannot be cancelled.
    os._exit(0)
