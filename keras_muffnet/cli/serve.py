"""Serves models until it is stopped.

    muffnet serve --model_base_path=/models/muffnet --model_name=muffnet

The flags are named as tensorflow_model_server's, and its configuration files
are read.
"""

import argparse
import sys

from keras_muffnet.model_server.__main__ import end
from keras_muffnet.model_server.__main__ import serve
from keras_muffnet.model_server.flags import add_arguments as add_arguments
from keras_muffnet.model_server.flags import parse_args as parse_args


def run(args: argparse.Namespace) -> None:
    """Serves, and ends the process."""
    serve(args)
    end()


def alias() -> int:
    """The command `muffnet-model-server`."""
    from keras_muffnet.cli.main import main

    return main(["serve", *sys.argv[1:]])
