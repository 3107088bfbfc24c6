r"""Compares fine-tuning of published weights with training from scratch.

    python -m tools.benchmarks.transfer --data digits \
        --data tiny_imagenet/ --classes 20 --images-per-class 50 \
        --output results/transfer.csv

For each set of images and seed two runs of the same number of epochs, MuffNet
0.5 at 32x32: the recipe `transfer`, which trains the classifier alone first,
and all layers from random weights at the recipe's higher learning rate. Of an
image folder a sample of its classes and training images is taken, the same in
all runs. Prints the accuracies of the last epochs, as mean and range over the
seeds; interrupted, the same command resumes.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
from typing import Any

from keras_muffnet._files import write_csv
from keras_muffnet._files import written_aside
from keras_muffnet.cli.common import run as report_failures
from keras_muffnet.training import Recipe
from keras_muffnet.training import load_recipe
from tools.benchmarks import common


def main() -> int:
    """Runs the command; returns its exit status."""
    args = parse_args()
    return report_failures(lambda: benchmark(args), "benchmarks/transfer")


def benchmark(args: argparse.Namespace) -> None:
    """Trains, writes and prints."""
    rows = run(args)
    write_csv(args.output, rows, list(rows[0]))
    print_table(rows)


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        help="'digits' or an image folder; may be given several times",
    )
    parser.add_argument(
        "--weights", default="cifar10", help="(default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--epochs", type=int, default=8, help="(default: 8)")
    parser.add_argument(
        "--classes",
        type=int,
        default=20,
        help="taken of a folder, from the first on by name (default: 20)",
    )
    parser.add_argument(
        "--images-per-class",
        type=int,
        default=50,
        help="for training, taken likewise; all test images are taken of "
        "these classes (default: 50)",
    )
    parser.add_argument(
        "--runs",
        type=pathlib.Path,
        default=pathlib.Path("runs/transfer"),
        help="folder of the runs (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("results/transfer.csv"),
        help="(default: %(default)s)",
    )
    return parser.parse_args()


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains what is not trained yet; returns a row a run."""
    rows = []
    for data in args.data:
        name, images = data, data
        if data != "digits":
            folder = pathlib.Path(data)
            name = f"{folder.name}-{args.classes}x{args.images_per_class}"
            images = str(sample(folder, args, args.runs / "images" / name))
        for seed in range(args.seeds):
            for weights in (args.weights, None):
                recipe = make_recipe(images, weights, seed, args.epochs)
                output = args.runs / f"{name}-{weights or 'scratch'}-{seed}"
                result = common.train_or_resume(recipe, output)
                rows.append(
                    {
                        "data": name,
                        "weights": weights or "none",
                        "seed": seed,
                        "epochs": args.epochs,
                        "accuracy": round(result["last"]["accuracy"], 4),
                    }
                )
    return rows


def sample(
    folder: pathlib.Path, args: argparse.Namespace, output: pathlib.Path
) -> pathlib.Path:
    """Makes a folder of links to some of a folder's images."""
    if output.is_dir():
        return output
    test = next((s for s in ("test", "val") if (folder / s).is_dir()), None)
    if test is None or not (folder / "train").is_dir():
        raise ValueError(
            "`--data` must be 'digits' or a folder with train/ and test/ or "
            f"val/. Received: {str(folder)!r}"
        )
    with written_aside(output) as aside:
        for split, count in (("train", args.images_per_class), (test, None)):
            classes = sorted((folder / split).iterdir())[: args.classes]
            for of_class in classes:
                (aside / split / of_class.name).mkdir(parents=True)
                for image in sorted(of_class.iterdir())[:count]:
                    link = aside / split / of_class.name / image.name
                    link.symlink_to(image.resolve())
    return output


def make_recipe(
    data: str, weights: str | None, seed: int, epochs: int
) -> Recipe:
    """Returns the recipe of a run."""
    recipe = dataclasses.replace(
        load_recipe("transfer"),
        data=data,
        size=32,
        stem="cifar",
        # Mirrored digits are none.
        augmentation="plain" if data == "digits" else "cifar",
        freeze_epochs=epochs // 4,
        epochs=epochs,
        seed=seed,
        jit_compile=False,
    )
    if weights is not None:
        return dataclasses.replace(recipe, weights=weights)
    return dataclasses.replace(
        recipe,
        weights=None,
        freeze_epochs=0,
        freeze_norms=False,
        unfreeze_from=None,
    )


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints the mean and the range of the accuracies over the seeds."""
    print(
        f"\n{'data':<28}{'weights':<10}{'mean':>8}{'lowest':>9}{'highest':>9}"
    )
    for data, weights in dict.fromkeys((r["data"], r["weights"]) for r in rows):
        found = [
            row["accuracy"]
            for row in rows
            if (row["data"], row["weights"]) == (data, weights)
        ]
        print(
            f"{data:<28}{weights:<10}{statistics.mean(found):>8.2%}"
            f"{min(found):>9.2%}{max(found):>9.2%}"
        )


if __name__ == "__main__":
    sys.exit(main())
