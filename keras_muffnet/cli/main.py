"""The command `muffnet`: finds the subcommand and runs it."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import keras_muffnet
from keras_muffnet._optional import load_optional
from keras_muffnet.cli import common

# Modules of this folder, each imported only when it is chosen.
COMMANDS = {
    "train": "train a classifier or a detector by a recipe",
    "evaluate": "measure a model on labeled images, or on images with boxes",
    "quantize": "make int8 LiteRT files of a model, and compare them",
    "export": "write a model for TF Serving or LiteRT",
    "detect": "draw the objects found on images or a video",
    "count": "print parameters and multiply-adds, layer by layer",
    "serve": "serve models with TensorFlow Serving's APIs",
}
SHELLS = ("bash", "zsh", "tcsh")
DESCRIPTION = f"""\
MuffNet for Keras 3: from a folder of images to a served model.

commands:
{chr(10).join(f"  {name:<10}{text}" for name, text in COMMANDS.items())}

examples:
  muffnet train transfer --data photos/ --output runs/photos
  muffnet evaluate --model runs/photos/best.keras --data photos/
  muffnet export --model runs/photos/best.keras --output served/photos

`muffnet COMMAND --help` lists the flags of a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the arguments; those of the process by default.

    Returns:
        The exit status: 0, or 1 if a line on stderr says what went wrong, or
        130 if it was interrupted.

    Raises:
        SystemExit: with status 2 for arguments that do not parse, 0 for help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        make_parser().print_help()
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        parser = make_parser()
        args, rest = parser.parse_known_args(arguments)
        if rest or args.shell is None:
            parser.error(
                f"unknown command {command!r}: choose one of "
                f"{', '.join(COMMANDS)}"
            )
        return common.run(lambda: print_completion(args.shell), "muffnet")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    module = load_command(command)
    program = f"muffnet {command}"
    parser = argparse.ArgumentParser(prog=program, **settings_of(module))
    module.add_arguments(parser)
    # One command takes flags that it does not know.
    parse = getattr(module, "parse_args", argparse.ArgumentParser.parse_args)
    args = parse(parser, arguments[1:])
    resumes = getattr(module, "RESUMES", "")
    return common.run(lambda: module.run(args), program, resumes)


def make_parser() -> argparse.ArgumentParser:
    """Returns what reads the arguments before the subcommand's."""
    parser = argparse.ArgumentParser(
        prog="muffnet",
        description=DESCRIPTION,
        usage="muffnet COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    options = parser.add_argument_group("options")
    options.add_argument(
        "-h", "--help", action="help", help="show this message and exit"
    )
    options.add_argument(
        "--version",
        action="version",
        version=f"keras-muffnet {keras_muffnet.__version__}",
    )
    options.add_argument(
        "--print-completion",
        dest="shell",
        choices=SHELLS,
        help="print a script that completes commands and flags in a shell",
    )
    return parser


def print_completion(shell: str) -> None:
    """Prints the script that completes all commands in a shell."""
    shtab = load_optional("shtab", "completion")
    parser = argparse.ArgumentParser(prog="muffnet")
    commands = parser.add_subparsers()
    for name, text in COMMANDS.items():
        load_command(name).add_arguments(commands.add_parser(name, help=text))
    print(shtab.complete(parser, shell=shell))


def load_command(name: str) -> Any:
    """Imports the module of a subcommand."""
    return importlib.import_module(f"{__package__}.{name}")


def settings_of(module: Any) -> dict[str, Any]:
    """Returns what a subcommand's parser is made with."""
    return {
        "description": module.__doc__,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
