r"""Compares the recipe `transfer` with training from scratch on small folders.

    python -m tools.benchmarks.transfer --data tiny_imagenet/ --data cifar10/ \
        --data bccd/ --data digits --weights cifar10 tiny_imagenet \
        --output results/transfer.csv

Of each set of images a small folder is made: of an image folder the first
classes by name, of a Pascal VOC folder crops of its objects, and scikit-learn's
digits. For each folder and seed there are a run of the recipe from each of the
weights, and one of all layers from random weights, at the recipe's higher
learning rate and else with its settings; all on the backend that `muffnet
train` takes. A folder named as the weights are is left out for them: it has
images that they were trained on. Digits are not augmented, since mirrored ones
are none. Prints the accuracies of the last epochs, as mean and range over the
seeds; interrupted, the same command resumes.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_muffnet._files import written_aside
from keras_muffnet.cli.train import choose_backend
from keras_muffnet.data.decoding import rgb_with_pillow
from keras_muffnet.published import published_weights
from keras_muffnet.training.recipe import Recipe
from keras_muffnet.training.recipe import load_recipe
from tools.benchmarks import common

# Crops of smaller objects show nothing.
LEAST_SIDE = 10
# Class and pixels, uint8 `(height, width, 3)`.
Photo = tuple[str, np.ndarray]


def main() -> int:
    """Runs the command; returns its exit status."""
    return common.tabulate(parse_args(), run, print_table, "transfer")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = common.make_parser(__doc__, "transfer")
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        help="'digits', an image folder, or a folder of Pascal VOC; one named "
        "as weights are has their training images; may be given several times",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        choices=published_weights(),
        help="published ones to start from (default: the recipe's)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument(
        "--classes",
        type=int,
        default=10,
        help="taken of each, from the first on by name (default: 10)",
    )
    parser.add_argument(
        "--train-images",
        type=int,
        default=30,
        help="taken of each class for training (default: 30)",
    )
    parser.add_argument(
        "--test-images",
        type=int,
        default=30,
        help="taken of each class for the test (default: 30)",
    )
    return parser.parse_args()


def run(args: argparse.Namespace) -> common.Rows:
    """Trains what is not trained yet; returns a row a run."""
    recipe = load_recipe("transfer")
    recipe = dataclasses.replace(recipe, epochs=args.epochs or recipe.epochs)
    choose_backend(recipe)
    rows = []
    for data in args.data:
        counts = {"train": args.train_images, "test": args.test_images}
        images = pathlib.Path(data).name
        name = f"{images}-{args.classes}x{args.train_images}"
        folder = args.runs / "images" / f"{name}-{args.test_images}"
        sample(data, folder, args.classes, counts)
        starts = args.weights or [recipe.weights]
        if images in starts:
            print(f"{data}: not from weights {images!r}, trained on its images")
            starts = [weights for weights in starts if weights != images]
        for seed in range(args.seeds):
            settings: dict[str, Any] = {"data": str(folder), "seed": seed}
            if data == "digits":
                settings["augmentation"] = "plain"
            tuned = dataclasses.replace(recipe, **settings)
            kinds = [
                dataclasses.replace(tuned, weights=weights)
                for weights in starts
            ]
            for kind in (*kinds, from_scratch(tuned)):
                weights = kind.weights or "none"
                output = args.runs / f"{name}-{weights}-{seed}"
                result = common.train_or_resume(kind, output)
                rows.append(
                    {
                        "data": name,
                        "weights": weights,
                        "seed": seed,
                        "epochs": kind.epochs,
                        "accuracy": round(result["last"]["accuracy"], 4),
                    }
                )
    return rows


def from_scratch(recipe: Recipe) -> Recipe:
    """The same training of all layers of a random network."""
    return dataclasses.replace(
        recipe,
        weights=None,
        freeze_epochs=0,
        freeze_norms=False,
        unfreeze_from=None,
        unfrozen_learning_rate=None,
    )


def sample(
    data: str, output: pathlib.Path, classes: int, counts: dict[str, int]
) -> None:
    """Makes an image folder of some of the images, always the same.

    Args:
        data: see `--data`.
        output: the folder; one that is there is left as it is.
        classes: how many, from the first on by name.
        counts: images of a class in each split, at most.
    """
    from PIL import Image

    if output.is_dir():
        return
    with written_aside(output) as aside:
        for split, count in counts.items():
            taken: Counter[str] = Counter()
            for name, pixels in photos(data, split, classes):
                if taken[name] == count:
                    continue
                path = aside / split / name / f"{taken[name]:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
                taken[name] += 1


def photos(data: str, split: str, classes: int) -> Iterator[Photo]:
    """Gives the images of a split, of the first classes by name."""
    if data == "digits":
        return digits(split, classes)
    if pathlib.Path(data, "Annotations").is_dir():
        return crops(data, split, classes)
    return whole_images(data, split, classes)


def digits(split: str, classes: int) -> Iterator[Photo]:
    """Gives scikit-learn's digits."""
    from keras_muffnet.data import load_digits

    images, labels = load_digits(8)[split == "test"]
    for pixels, label in zip(images, labels, strict=True):
        if label < classes:
            yield str(label), pixels


def whole_images(data: str, split: str, classes: int) -> Iterator[Photo]:
    """Gives the images of a folder."""
    from keras_muffnet.data import open_source

    source = open_source(data)
    examples = source.split(split)
    for position in range(len(examples)):
        if examples.label(position) < classes:
            encoded, label = examples.read(position)
            yield (
                source.class_names[label],
                np.asarray(rgb_with_pillow(encoded)),
            )


def crops(data: str, split: str, classes: int) -> Iterator[Photo]:
    """Gives the objects of images with boxes, cut out."""
    from keras_muffnet.data import open_detection_source
    from keras_muffnet.data.detection.annotations import Problem

    source = open_detection_source(data)
    examples = source.split(split)
    for position in range(len(examples)):
        try:
            objects = examples.describe(position).objects
            pixels = np.asarray(rgb_with_pillow(examples.read(position)))
        except (OSError, ValueError):  # of BCCD one image is missing
            continue
        for item in objects:
            if isinstance(item, Problem) or item.label >= classes:
                continue
            left, top, right, bottom = (max(0, round(x)) for x in item.box)
            cut = pixels[top:bottom, left:right]
            if min(cut.shape[:2]) >= LEAST_SIDE:
                yield source.class_names[item.label], cut


def print_table(rows: common.Rows) -> None:
    """Prints the mean and the range of the accuracies over the seeds."""
    print(
        f"\n{'data':<28}{'weights':<15}{'mean':>8}{'lowest':>9}{'highest':>9}"
    )
    for data, weights in dict.fromkeys((r["data"], r["weights"]) for r in rows):
        found = [
            row["accuracy"]
            for row in rows
            if (row["data"], row["weights"]) == (data, weights)
        ]
        print(
            f"{data:<28}{weights:<15}{statistics.mean(found):>8.2%}"
            f"{min(found):>9.2%}{max(found):>9.2%}"
        )


if __name__ == "__main__":
    sys.exit(main())
