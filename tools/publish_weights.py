r"""Makes weights that ship with the package of runs of this folder's trainers.

    python tools/publish_weights.py --run runs/cifar_cpu --name cifar10 \
        --data cifar10/ --card about.md \
        --command "muffnet train cifar_cpu --data cifar10/"

Takes a classifier's best weights, or a detector's last, halves them to float16,
and evaluates both on the test images: top-1 accuracy or AP50 may not fall by
more than 0.1 points. Then the weights, a model card, the log and its curves are
written to `keras_muffnet/weights/`, and the checksum to the catalog there.
The model card is the run's figures, and the text of `--card` on the images.

Several runs may be given, in order, each of which started from the weights of
the one before: the log and the curves then have the epochs of all.
"""

import argparse
import csv
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any

from keras_muffnet._files import write_csv
from keras_muffnet._files import written_aside
from keras_muffnet.cli.common import run as report_failures
from keras_muffnet.preprocessing import preprocessing_of
from keras_muffnet.published import CATALOG
from keras_muffnet.published import DETECTORS
from keras_muffnet.published import FOLDER
from keras_muffnet.published import file_stem

if TYPE_CHECKING:
    import keras

ALLOWED_LOSS = 0.001


def main() -> int:
    """Runs the command; returns its exit status."""
    args = parse_args()
    return report_failures(lambda: publish(args), "publish_weights")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run",
        required=True,
        type=pathlib.Path,
        nargs="+",
        help="folder of the run, or of several in order",
    )
    parser.add_argument(
        "--name", required=True, help="name of the weights, such as cifar10"
    )
    parser.add_argument(
        "--data", required=True, help="the images that it was trained on"
    )
    parser.add_argument(
        "--card",
        required=True,
        type=pathlib.Path,
        help="Markdown on the images: what they are, license, intended use",
    )
    parser.add_argument(
        "--command", required=True, help="what the runs were started with"
    )
    return parser.parse_args()


def publish(args: argparse.Namespace) -> None:
    """Evaluates, and writes the files."""
    import keras

    import keras_muffnet.detection.ssd
    import keras_muffnet.layers  # noqa: F401  for models that are loaded
    from keras_muffnet.plots import plot_curves

    run = args.run[-1]
    configurations = [
        json.loads((folder / "configuration.json").read_text())
        for folder in args.run
    ]
    configuration = configurations[-1]
    settings = configuration["settings"]
    seeds = [str(c["settings"]["seed"]) for c in configurations]
    result = json.loads((run / "result.json").read_text())
    about = args.card.read_text()
    log = joined_logs(args.run)
    if "extra_width" in settings:
        stem, taken, score = args.name, "last", "ap50"
        measure: Callable[..., dict[str, float]] = average_precision
        if settings["backbone"] != "muffnet":
            raise ValueError(
                "`backbone` of a detector that ships must be 'muffnet'. "
                f"Received: backbone={settings['backbone']!r}"
            )
    else:
        stem = file_stem(args.name, settings["alpha"])
        taken, score, measure = "best", "accuracy", accuracies
    model = keras.saving.load_model(run / f"{taken}.keras", compile=False)
    # Refuses before anything is written.
    catalog_with(args.name, configuration, model, "")
    with written_aside(FOLDER / f"{stem}.weights.h5") as aside:
        halved(model).save_weights(aside)
        before = measure(model, args.data, settings)[score]
        model.load_weights(aside)
        measured = measure(model, args.data, settings)
        after = measured[score]
        print(f"{score}: {before:.2%} in float32, {after:.2%} in float16")
        if after < before - ALLOWED_LOSS:
            raise ValueError(
                f"float16 must not cost more than {ALLOWED_LOSS:.2%}. "
                f"Received: from {before:.2%} to {after:.2%}"
            )
        sha256 = hashlib.sha256(aside.read_bytes()).hexdigest()
        write_csv(FOLDER / f"{stem}.csv", log, list(log[0]))
        with written_aside(FOLDER / f"{stem}.png") as path:
            history = {k: [float(row[k]) for row in log] for k in log[0]}
            plot_curves(history, path, score)
        card = model_card(
            stem,
            args,
            configuration,
            seeds,
            log,
            result,
            measured,
            preprocessing_of(model).describe(),
            about,
        )
        with written_aside(FOLDER / f"{stem}.md") as path:
            path.write_text(card)
    # Next to each other: between the two the checksum refuses the weights.
    enter(args.name, configuration, model, sha256)
    print(f"Files: {FOLDER}/{stem}.*")


def joined_logs(runs: list[pathlib.Path]) -> list[dict[str, str]]:
    """Returns the rows of the logs of runs, their epochs counted on."""
    rows: list[dict[str, str]] = []
    for run in runs:
        with open(run / "log.csv", newline="") as file:
            for row in csv.DictReader(file):
                rows.append({**row, "epoch": str(len(rows) + 1)})
    return rows


def halved(model: "keras.Model") -> "keras.Model":
    """Copies a model with its weights as float16."""
    import keras

    copy = keras.models.clone_model(
        model,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), "dtype": "float16"}
        ),
    )
    copy.set_weights(model.get_weights())
    return copy


def accuracies(
    model: "keras.Model", data: str, settings: dict[str, Any]
) -> dict[str, float]:
    """Top-1 and top-5 accuracy of a classifier on the test images."""
    from keras_muffnet import training
    from keras_muffnet.training import objectives

    feed = training.open_feed(training.Recipe(**settings | {"data": data}))
    model.compile(
        loss="sparse_categorical_crossentropy",  # Keras wants one
        metrics=objectives.accuracies(model.output_shape[-1]),
        jit_compile=False,
    )
    return model.evaluate(feed.evaluation(), verbose=0, return_dict=True)


def average_precision(
    model: "keras.Model", data: str, settings: dict[str, Any]
) -> dict[str, float]:
    """VOC's AP50 of a detector on the test images."""
    from keras_muffnet.data.detection.feed import make_detection_feed
    from keras_muffnet.data.detection.sources import open_detection_source
    from keras_muffnet.training import Detection
    from keras_muffnet.training import DetectionRecipe

    recipe = DetectionRecipe(**settings)
    feed = make_detection_feed(
        open_detection_source(data),
        size=(recipe.size, recipe.size),
        batch_size=recipe.batch_size,
        train_split=None,
        test_split=recipe.test_split,
        on_bad_annotation=recipe.on_bad,
    )
    model.compile(jit_compile=False)
    return Detection(recipe, feed).evaluate(model)


def model_card(
    stem: str,
    args: argparse.Namespace,
    configuration: dict[str, Any],
    seeds: list[str],
    log: list[dict[str, str]],
    result: dict[str, dict[str, Any]],
    measured: dict[str, float],
    preprocessing: str,
    about: str,
) -> str:
    """Returns the model card, in Markdown."""
    from keras_muffnet.training import Recipe
    from keras_muffnet.training import network

    settings = configuration["settings"]
    last = {name: float(value) for name, value in log[-1].items()}
    tested = f"on {configuration['test_images']:,} test images"
    if "ap50" in measured:
        taken = result["last"]
        about_network = f"{configuration['network']} at {settings['size']}x"
        about_network += f"{settings['size']}"
        figures = {"AP50": f"{measured['ap50']:.2%} {tested}"}
        choice = "The weights are those of the last epoch."
        again = (
            f"muffnet evaluate --model {stem} --data {args.data} "
            f"--on-bad {settings['on_bad']}"
        )
    else:
        taken = result["best"]
        used = network.stem_of(Recipe(**settings))
        about_network = (
            f"{configuration['network']}, stem {used!r} at "
            f"{settings['size']}x{settings['size']}"
        )
        figures = {
            "top 1, top 5": f"{measured['accuracy']:.2%}, "
            f"{measured['top5_accuracy']:.2%} {tested}",
            "last epoch": f"{result['last']['accuracy']:.2%} top 1 on the test "
            f"images, {last['accuracy']:.2%} on augmented training images",
        }
        choice = (
            "The epoch was chosen by the accuracy on the validation images."
            if configuration.get("validation_images")
            else "The epoch was chosen by the accuracy on the test images "
            "themselves, as\nthe paper's figures are."
        )
        again = (
            f"muffnet evaluate --model {args.name} --data {args.data} "
            f"--alpha {settings['alpha']}"
        )
    epochs = len(log) - settings["epochs"] + int(taken["epoch"])
    facts = {
        "network": f"{about_network}, {configuration['parameters']:,} weights, "
        "on disk as float16",
        **figures,
        "images": preprocessing,
        "training images": f"{configuration['train_images']:,}",
        "epochs": f"{len(log)}; the weights are of epoch {epochs}",
        "seed": ", then ".join(seeds),
        "backend": ", ".join(
            f"{name} {version}"
            for name, version in configuration["versions"].items()
        ),
        "classes": ", ".join(configuration["classes"]),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    commands = "\n".join(f"    {line}" for line in args.command.splitlines())
    return f"""\
# {stem}

| | |
|---|---|
{table}

Trained by

{commands}

Settings of the last command:

    {json.dumps({k: v for k, v in settings.items() if v is not None})}

{choice} The log has all epochs: `{stem}.csv`.

![Loss and score by epoch]({stem}.png)

Measure again:

    {again}

{about}"""


def enter(
    name: str,
    configuration: dict[str, Any],
    model: "keras.Model",
    sha256: str,
) -> None:
    """Enters the file in the catalog of its kind."""
    path, catalog = catalog_with(name, configuration, model, sha256)
    with written_aside(path) as aside:
        aside.write_text(json.dumps(catalog, indent=2) + "\n")


def catalog_with(
    name: str,
    configuration: dict[str, Any],
    model: "keras.Model",
    sha256: str,
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Returns the file of the catalog, and what it is to hold.

    Raises:
        ValueError: if weights of that name and another width have other
            classes, or are of images made ready in another way.
    """
    from keras_muffnet.detection.ssd import is_detector
    from keras_muffnet.training import Recipe
    from keras_muffnet.training import network

    settings = configuration["settings"]
    path = FOLDER / (DETECTORS if is_detector(model) else CATALOG)
    catalog = json.loads(path.read_text()) if path.exists() else {}
    entry = {
        "class_names": configuration["classes"],
        "size": settings["size"],
    }
    if is_detector(model):
        entry |= {
            "alpha": settings["alpha"],
            "extra_filters": [
                layer.filters
                for layer in model.layers
                if layer.name.startswith("extra")
                and layer.name.endswith("_reduction_conv")
            ],
            "scales": model.layers[-1].scales,
            "sha256": sha256,
        }
    else:
        entry["stem"] = network.stem_of(Recipe(**settings))
        crop = preprocessing_of(model).crop
        if crop is not None:
            entry["crop"] = crop
        known = dict(catalog.get(name, {}))
        checksums = known.pop("sha256", {})
        alpha = str(float(settings["alpha"]))
        if checksums.keys() - {alpha} and known != entry:
            other = [
                key
                for key in sorted(known.keys() | entry.keys())
                if known.get(key) != entry.get(key)
            ]
            raise ValueError(
                "`--name` must be of weights that have the same classes, size, "
                f"stem and crop at each width. Received: {name!r}, whose "
                f"{', '.join(other)} at alpha {alpha} would be another than at "
                f"{', '.join(sorted(checksums.keys() - {alpha}))}"
            )
        entry["sha256"] = {**checksums, alpha: sha256}
    return path, {**catalog, name: entry}


if __name__ == "__main__":
    sys.exit(main())
