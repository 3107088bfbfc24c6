r"""Makes weights that ship with the package of a run of tools/train.py.

    python tools/publish_weights.py --run runs/cifar_cpu --name cifar10 \
        --data cifar10/ --card about.md \
        --command "python tools/train.py cifar_cpu --data cifar10/"

Takes the run's best weights, halves them to float16, and evaluates both on the
test images: the accuracy may not fall by more than one image in a thousand.
Then the weights, a model card, the run's log and its curves are written to
`keras_muffnet/weights/`, and their checksum to `catalogue.json` there. The
model card is the run's figures, and the text of `--card` on the images.
"""

import argparse
import csv
import hashlib
import json
import pathlib
import shutil
from typing import TYPE_CHECKING
from typing import Any

from keras_muffnet.files import written_aside
from keras_muffnet.published import CATALOGUE
from keras_muffnet.published import FOLDER
from keras_muffnet.published import file_stem

if TYPE_CHECKING:
    import keras

ALLOWED_LOSS = 0.001


def main() -> None:
    """Runs the command."""
    args = parse_args()
    try:
        publish(args)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"publish_weights: error: {error}") from error


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run", required=True, type=pathlib.Path, help="folder of the run"
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
        help="Markdown on the images: what they are, licence, intended use",
    )
    parser.add_argument(
        "--command", required=True, help="what the run was started with"
    )
    return parser.parse_args()


def publish(args: argparse.Namespace) -> None:
    """Evaluates, and writes the files."""
    import keras

    import keras_muffnet.layers  # noqa: F401  for models that are loaded

    configuration = json.loads((args.run / "configuration.json").read_text())
    result = json.loads((args.run / "result.json").read_text())
    settings = configuration["settings"]
    about = args.card.read_text()
    model = keras.saving.load_model(args.run / "best.keras", compile=False)
    stem = file_stem(args.name, settings["alpha"])
    with written_aside(FOLDER / f"{stem}.weights.h5") as aside:
        halved(model).save_weights(aside)
        before = accuracy(model, args.data, settings["size"])
        model.load_weights(aside)
        after = accuracy(model, args.data, settings["size"])
        print(f"Top 1: {before:.2%} in float32, {after:.2%} in float16")
        if after < before - ALLOWED_LOSS:
            raise ValueError(
                f"float16 must not cost more than {ALLOWED_LOSS:.2%}. "
                f"Received: from {before:.2%} to {after:.2%}"
            )
        sha256 = hashlib.sha256(aside.read_bytes()).hexdigest()
    shutil.copy(args.run / "log.csv", FOLDER / f"{stem}.csv")
    shutil.copy(args.run / "curves.png", FOLDER / f"{stem}.png")
    card = model_card(stem, args, configuration, result["best"], after, about)
    with written_aside(FOLDER / f"{stem}.md") as aside:
        aside.write_text(card)
    enter(args.name, configuration, sha256)
    print(f"Files: {FOLDER}/{stem}.*")


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


def accuracy(model: "keras.Model", data: str, size: int) -> float:
    """Top-1 accuracy on the test images."""
    from keras_muffnet import data as images

    feed = images.make_feed(
        images.open_source(data),
        images.PLAIN,
        size=(size, size),
        batch_size=250,
        train_split="test",  # the other one is not opened
    )
    model.compile(
        loss="sparse_categorical_crossentropy",  # Keras wants one
        metrics=["accuracy"],
        jit_compile=False,
    )
    _, found = model.evaluate(feed.evaluation(), verbose=0)
    return found


def model_card(
    stem: str,
    args: argparse.Namespace,
    configuration: dict[str, Any],
    best: dict[str, Any],
    top_1: float,
    about: str,
) -> str:
    """Returns the model card, in Markdown."""
    settings = configuration["settings"]
    with open(args.run / "log.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    facts = {
        "network": f"{configuration['network']}, stem {settings['stem']!r} at "
        f"{settings['size']}x{settings['size']}, "
        f"{configuration['parameters']:,} weights, on disk as float16",
        "top 1, top 5": f"{top_1:.2%}, {best['top5_accuracy']:.2%} on "
        f"{configuration['test_images']:,} test images",
        "last epoch": f"{float(last['val_accuracy']):.2%} top 1 on the test "
        f"images, {float(last['accuracy']):.2%} on augmented training images",
        "training images": f"{configuration['train_images']:,}",
        "epochs": f"{settings['epochs']}; the weights are of epoch "
        f"{best['epoch']:.0f}",
        "seed": settings["seed"],
        "backend": ", ".join(
            f"{name} {version}"
            for name, version in configuration["versions"].items()
        ),
        "classes": ", ".join(configuration["classes"]),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"""\
# {stem}

| | |
|---|---|
{table}

Trained by

    {args.command}

with the recipe

    {json.dumps({k: v for k, v in settings.items() if v is not None})}

The epoch was chosen by the accuracy on the test images themselves, as the
paper's figures are; the log has all epochs: `{stem}.csv`.

![Loss and accuracy by epoch]({stem}.png)

Measure again: `python tools/evaluate.py --model
keras_muffnet/weights/{stem}.weights.h5 --alpha {settings["alpha"]} --size
{settings["size"]} --data {args.data}`

{about}"""


def enter(name: str, configuration: dict[str, Any], sha256: str) -> None:
    """Enters the file in the catalogue."""
    path = FOLDER / CATALOGUE
    catalogue = json.loads(path.read_text()) if path.exists() else {}
    settings = configuration["settings"]
    entry = catalogue.setdefault(name, {"sha256": {}})
    entry |= {
        "class_names": configuration["classes"],
        "stem": "cifar" if settings["stem"] == "auto" else settings["stem"],
        "size": settings["size"],
    }
    entry["sha256"][str(float(settings["alpha"]))] = sha256
    with written_aside(path) as aside:
        aside.write_text(json.dumps(catalogue, indent=2) + "\n")


if __name__ == "__main__":
    main()
