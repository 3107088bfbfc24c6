"""Trains a classifier or a detector by a recipe; interrupted, it resumes.

    muffnet train transfer --data photos/ --output runs/photos
    muffnet train cifar --data cifar10/ --alpha 0.5 --output runs/cifar
    muffnet train ssd300_fast --data VOC/ --output runs/cells

Any setting on the command line overrides the recipe's; `none` takes one back
that may be without a value. The run's folder gets `best.keras`, `last.keras`,
`result.json`, `configuration.json`, `log.csv`, `curves.png`, TensorBoard's
events and the checkpoints. The best epoch is that of the highest accuracy, or
AP50 of detectors, on the validation split, where there is one beside the
training and test splits or --validation-split makes one, and else on the test
split: a line says so. Killed at any moment, the same command resumes after the
last checkpoint; with --deterministic, to the same weights. Ctrl-C and SIGTERM
write one first. Images that changed in between are refused, see --data-check.
`KERAS_BACKEND` chooses tensorflow, jax or torch. Without it, and without a GPU,
a classifier is trained on torch where its fused operations can be had: they
need PyTorch and a C compiler. What computes is printed.

All GPUs of the machine share the batches of a classifier, on jax and
tensorflow. On jax, several hosts do too: start the same command on each, with
--coordinator, --processes and --process-index, or without by SLURM's srun, one
a host. The first process alone writes the run's folder; all read data and
weights.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import sys
from typing import Any

from keras_muffnet.cli import common
from keras_muffnet.training.recipe import AnyRecipe
from keras_muffnet.training.recipe import DetectionRecipe
from keras_muffnet.training.recipe import Recipe
from keras_muffnet.training.recipe import RunRecipe
from keras_muffnet.training.recipe import describe_recipe
from keras_muffnet.training.recipe import load_recipe
from keras_muffnet.training.recipe import recipe_names
from keras_muffnet.training.recipe import setting_type

RESUMES = "after the last checkpoint"
# Kinds of recipes, with the settings that each has of its own.
KINDS = {
    RunRecipe: "settings, in place of the recipe's",
    Recipe: "settings of classifiers",
    DetectionRecipe: "settings of detectors",
}
DEVICES = (
    "devices",
    "coordinator",
    "processes",
    "process_index",
    "local_processes",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives a parser this command's flags."""
    names = recipe_names(RunRecipe)
    summaries = "\n".join(
        f"  {name:<20}{describe_recipe(name, RunRecipe).splitlines()[0]}"
        for name in names
    )
    parser.description = f"{parser.description or ''}\nrecipes:\n{summaries}"
    parser.add_argument("recipe", choices=names, metavar="RECIPE")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="folder of the run (default: runs/RECIPE)",
    )
    shared = {field.name for field in dataclasses.fields(RunRecipe)}
    for kind, title in KINDS.items():
        group = parser.add_argument_group(title)
        for field in dataclasses.fields(kind):
            if kind is RunRecipe or field.name not in shared:
                add_setting(group, field, kind)
    add_device_arguments(parser.add_argument_group("devices, of classifiers"))


def add_setting(
    group: Any, field: dataclasses.Field, recipe: type[RunRecipe]
) -> None:
    """Adds the flag of a recipe's setting."""
    kind, optional = setting_type(recipe, field.name)
    settings: dict[str, Any] = {
        "help": field.metadata["help"].replace("%", "%%"),
        # What is not given has no attribute: None is a value.
        "default": argparse.SUPPRESS,
    }
    if kind is bool:
        settings["action"] = argparse.BooleanOptionalAction
    else:

        def parsed(text: str) -> Any:
            return None if optional and text == "none" else kind(text)

        parsed.__name__ = kind.__name__  # for argparse's errors
        settings |= {"type": parsed, "metavar": kind.__name__}
    group.add_argument(f"--{field.name.replace('_', '-')}", **settings)


def add_device_arguments(group: Any) -> None:
    """Adds the flags of several devices and processes."""
    group.add_argument(
        "--devices",
        type=int,
        help="how many of the machine's to use (default: all; torch: one)",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where the first process listens",
    )
    group.add_argument("--processes", type=int, help="how many there are")
    group.add_argument(
        "--process-index",
        type=int,
        help="which of them this is, from 0 (default of the three: what "
        "KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID or "
        "SLURM say)",
    )
    group.add_argument(
        "--local-processes",
        type=int,
        metavar="N",
        help="start N processes on this machine, to try the above on its CPU",
    )


def run(args: argparse.Namespace) -> None:
    """Trains what the recipe is for, and prints the closing figures."""
    try:
        if args.recipe in recipe_names(DetectionRecipe):
            common.refuse(args, DEVICES, "for a detector")
            train_detector(overridden(args, DetectionRecipe), output_of(args))
        else:
            recipe = overridden(args, Recipe)
            if all(getattr(args, name) is None for name in DEVICES):
                choose_backend(recipe)
            train_classifier(recipe, output_of(args), args)
    except BaseException as error:
        end_processes(error)
        raise


def choose_backend(recipe: Recipe) -> None:
    """Chooses torch where it trains fastest, and the user leaves it open.

    That is on a Linux machine without a GPU, for settings that the fused
    operations of `keras_muffnet.training.accelerate` have.
    """
    if (
        sys.platform == "linux"
        and not has_gpu()
        and "keras" not in sys.modules
        and not names_backend()
        and importlib.util.find_spec("torch") is not None
        and shutil.which(os.environ.get("CC", "cc")) is not None
        and recipe.precision == "float32"
        and recipe.data_format == "channels_last"
        and recipe.steps_per_execution == 1
        and not recipe.jit_compile
    ):
        os.environ["KERAS_BACKEND"] = "torch"
        print("Backend: torch, the fastest on a CPU (KERAS_BACKEND is not set)")


def has_gpu() -> bool:
    """Whether Linux has a GPU of NVIDIA's or AMD's."""
    devices = pathlib.Path("/dev")
    return any(devices.glob("nvidia[0-9]*")) or (devices / "kfd").exists()


def names_backend() -> bool:
    """Whether the environment or Keras's own file names a backend.

    Keras writes that file itself, with tensorflow, which says nothing.
    """
    if "KERAS_BACKEND" in os.environ:
        return True
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    try:
        content = json.loads(pathlib.Path(home, "keras.json").read_text())
        return content.get("backend", "tensorflow") != "tensorflow"
    except (OSError, ValueError):
        return False


def end_processes(error: BaseException) -> None:
    """Ends one of several processes at once; does nothing to a single one."""
    from keras_muffnet.training import devices

    if devices.process()[1] > 1:
        status = common.report(error, "muffnet train", RESUMES)
        if status is not None:
            # It would wait for the others to end, and they for it to continue.
            os._exit(status)


def output_of(args: argparse.Namespace) -> pathlib.Path:
    """Returns the run's folder."""
    return args.output or pathlib.Path("runs") / args.recipe


def overridden(args: argparse.Namespace, kind: type[AnyRecipe]) -> AnyRecipe:
    """Returns the recipe with what the command line says in its place.

    Raises:
        ValueError: if a setting is given that this kind does not have, or
            that is not as the recipe wants it.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    given = {}
    for other in KINDS:
        for field in dataclasses.fields(other):
            if not hasattr(args, field.name):
                continue
            if field.name not in names:
                flag = f"--{field.name.replace('_', '-')}"
                raise ValueError(
                    f"{flag} must be left out for the recipe {args.recipe!r}: "
                    f"it is one of the {KINDS[other]}. "
                    f"Received: {getattr(args, field.name)}"
                )
            given[field.name] = getattr(args, field.name)
    return dataclasses.replace(load_recipe(args.recipe, kind), **given)


def train_classifier(
    recipe: Recipe, output: pathlib.Path, args: argparse.Namespace
) -> None:
    """Trains a classifier on this machine's devices, or as one of several."""
    from keras_muffnet.training import build_network
    from keras_muffnet.training import configure_keras
    from keras_muffnet.training import devices
    from keras_muffnet.training import fit
    from keras_muffnet.training import open_feed

    if args.local_processes is not None:
        raise SystemExit(train_here(args))
    configure_keras(recipe)
    processes = devices.find_processes(
        os.environ, args.coordinator, args.processes, args.process_index
    )
    count = devices.use_devices(recipe.batch_size, processes, args.devices)
    feed = open_feed(recipe)
    model = build_network(recipe, len(feed.class_names))
    say = print if devices.is_first() else lambda text: None
    say(
        introduction(model, feed)
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


def train_here(args: argparse.Namespace) -> int:
    """Runs this command as several processes; returns the exit status.

    Raises:
        ValueError: if there are to be none, or flags say that this is one.
    """
    from keras_muffnet.training import devices

    if args.local_processes < 1:
        raise ValueError(
            "--local-processes must be 1 or more. "
            f"Received: {args.local_processes}"
        )
    others = [name for name in DEVICES if name != "local_processes"]
    common.refuse(args, others, "with --local-processes")
    command = [sys.executable, "-m", "keras_muffnet"]
    given = iter(sys.argv[1:])
    for argument in given:
        if argument == "--local-processes":
            next(given)
        elif not argument.startswith("--local-processes="):
            command.append(argument)
    return devices.run_here(command, args.local_processes)


def train_detector(recipe: DetectionRecipe, output: pathlib.Path) -> None:
    """Trains a detector."""
    from keras_muffnet.training import Detection
    from keras_muffnet.training import build_detector
    from keras_muffnet.training import configure_keras
    from keras_muffnet.training import fit
    from keras_muffnet.training import open_detection_feed

    configure_keras(recipe)
    feed = open_detection_feed(recipe)
    model = build_detector(recipe, len(feed.class_names))
    print(introduction(model, feed))
    result = fit(model, recipe, feed, output, task=Detection(recipe, feed))
    print(f"\n{'weights':<10}{'epoch':>6}{'AP50':>9}{'loss':>9}")
    for name, row in result.items():
        print(
            f"{name:<10}{row['epoch']:>6}{row['ap50']:>9.2%}{row['loss']:>9.4f}"
        )
    print(f"Files: {output}")


def introduction(model: Any, feed: Any) -> str:
    """Returns what is trained on what, in a line."""
    return (
        f"{model.name}, {model.count_params():,} parameters; {feed.report()}; "
        f"{feed.steps_per_epoch} steps an epoch"
    )
