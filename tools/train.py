"""Trains MuffNet by a recipe; interrupted, the same command goes on.

    python tools/train.py cifar --alpha 0.5 --output runs/cifar
    python tools/train.py transfer --data photos/ --weights best.keras

Any setting on the command line overrides the recipe's; `none` takes one back
that may be without a value. The run's folder gets `best.keras`, `last.keras`,
`result.json`, `configuration.json`, `log.csv`, `curves.png`, TensorBoard's
events and the checkpoints. Killed at any moment, the same command goes on
after the last checkpoint; with --deterministic, to the same weights.
`KERAS_BACKEND` chooses tensorflow, jax or torch.

All GPUs of the machine share the batches, on jax and tensorflow. On jax,
several hosts do too: start the same command on each, with --coordinator,
--processes and --process-index, or without by SLURM's srun, one a host. The
first process alone writes the run's folder; all read data and weights.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from keras_muffnet.training import Recipe
from keras_muffnet.training import load_recipe
from keras_muffnet.training import recipe_names
from keras_muffnet.training.recipe import AnyRecipe
from keras_muffnet.training.recipe import RunRecipe
from keras_muffnet.training.recipe import describe_recipe
from keras_muffnet.training.recipe import setting_type


def main() -> None:
    """Runs the command."""
    args = parse_args()
    run(lambda: train(args), "train")


def run(work: Callable[[], object], program: str) -> None:
    """Trains, and tells in a line what went wrong."""
    try:
        work()
    except KeyboardInterrupt:
        leave(
            "\nInterrupted. The same command goes on after the last checkpoint."
        )
    except failures() as error:
        leave(f"{program}: error: {error}")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = make_parser(__doc__ or "", Recipe)
    devices = parser.add_argument_group("devices")
    devices.add_argument(
        "--devices",
        type=int,
        default=None,
        help="how many of the machine's to use (default: all; torch: one)",
    )
    devices.add_argument(
        "--coordinator",
        default=None,
        metavar="HOST:PORT",
        help="where the first process listens",
    )
    devices.add_argument(
        "--processes", type=int, default=None, help="how many there are"
    )
    devices.add_argument(
        "--process-index",
        type=int,
        default=None,
        help="which of them this is, from 0 (default of the three: what "
        "KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID or "
        "SLURM say)",
    )
    devices.add_argument(
        "--local-processes",
        type=int,
        default=None,
        metavar="N",
        help="start so many on this machine, to try the above on its CPU",
    )
    return parser.parse_args()


def make_parser(
    description: str, kind: type[RunRecipe]
) -> argparse.ArgumentParser:
    """Returns what reads the settings of recipes of a kind."""
    names = recipe_names(kind)
    summaries = "\n".join(
        f"  {name:<20}{describe_recipe(name, kind).splitlines()[0]}"
        for name in names
    )
    parser = argparse.ArgumentParser(
        description=f"{description}\nrecipes:\n{summaries}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", choices=names, metavar="RECIPE")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=None,
        help="folder of the run (default: runs/RECIPE)",
    )
    settings = parser.add_argument_group("settings, in place of the recipe's")
    for field in dataclasses.fields(kind):
        add_setting(settings, field, kind)
    return parser


def add_setting(
    group: Any, field: dataclasses.Field, recipe: type[RunRecipe]
) -> None:
    """Adds the flag of a recipe's setting."""
    kind, optional = setting_type(recipe, field.name)
    flag = f"--{field.name.replace('_', '-')}"
    told = field.metadata["help"].replace("%", "%%")
    if kind is bool:
        group.add_argument(
            flag, action=argparse.BooleanOptionalAction, help=told
        )
        return

    def parsed(text: str) -> Any:
        return None if optional and text == "none" else kind(text)

    parsed.__name__ = kind.__name__  # for argparse's errors
    group.add_argument(flag, type=parsed, help=told, metavar=kind.__name__)


def overridden(args: argparse.Namespace, kind: type[AnyRecipe]) -> AnyRecipe:
    """Returns the recipe with what the command line says in its place."""
    names = {field.name for field in dataclasses.fields(kind)}
    given = {name: v for name, v in vars(args).items() if name in names}
    return dataclasses.replace(load_recipe(args.recipe, kind), **given)


def train(args: argparse.Namespace) -> None:
    """Trains and prints the closing figures."""
    from keras_muffnet.training import build_network
    from keras_muffnet.training import configure_keras
    from keras_muffnet.training import devices
    from keras_muffnet.training import fit
    from keras_muffnet.training import open_feed

    recipe = overridden(args, Recipe)
    if args.local_processes is not None and args.coordinator is None:
        command = [sys.executable, *sys.argv]
        raise SystemExit(devices.run_here(command, args.local_processes))
    output = args.output or pathlib.Path("runs") / args.recipe
    configure_keras(recipe)
    processes = devices.find_processes(
        os.environ, args.coordinator, args.processes, args.process_index
    )
    count = devices.use_devices(recipe.batch_size, processes, args.devices)
    feed = open_feed(recipe)
    model = build_network(recipe, len(feed.class_names))
    say = print if devices.is_first() else lambda text: None
    say(
        f"{model.name}, {model.count_params():,} parameters; {feed.report()}; "
        f"{feed.steps_per_epoch} steps an epoch"
        + (f", shared out among {count} devices" if count > 1 else "")
    )
    result = fit(model, recipe, feed, output)
    say(f"\n{'weights':<10}{'epoch':>6}{'top 1':>9}{'top 5':>9}{'loss':>9}")
    for name, row in result.items():
        say(
            f"{name:<10}{row['epoch']:>6}{row['accuracy']:>9.2%}"
            f"{row['top5_accuracy']:>9.2%}{row['loss']:>9.4f}"
        )
    say(f"{feed.report()}\nFiles: {output}")


def leave(told: str) -> None:
    """Ends the program with a message."""
    from keras_muffnet.training import devices

    if devices.process()[1] > 1:
        print(told, file=sys.stderr, flush=True)
        # It would wait for the others to end, and they for it to go on.
        os._exit(1)
    raise SystemExit(told) from None


def failures() -> tuple[type[Exception], ...]:
    """Errors that are told in a line: what can be wrong outside the code."""
    known: tuple[type[Exception], ...] = (
        ImportError,
        OSError,
        RuntimeError,
        ValueError,
    )
    # A bad image that tf.data meets.
    if "tensorflow" in sys.modules:
        known += (sys.modules["tensorflow"].errors.OpError,)
    return known


if __name__ == "__main__":
    main()
