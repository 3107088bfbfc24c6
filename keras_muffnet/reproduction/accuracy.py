"""Accuracies of the tables' rows, measured by identical training."""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras

from keras_muffnet._files import locked
from keras_muffnet._files import read_csv
from keras_muffnet._files import write_csv
from keras_muffnet.blocks import image_shape
from keras_muffnet.reproduction.tables import Row
from keras_muffnet.training import Recipe
from keras_muffnet.training import configure_keras
from keras_muffnet.training import fit
from keras_muffnet.training import load_recipe
from keras_muffnet.training import open_feed

# Recipes beside the paper's, and the last table that each is for. At the size
# of "ranking" the rows of tables 5 and 6 do not cost the same.
OWN_RECIPES = {"quick": 6, "ranking": 4}
# What has a training of its own, or none here.
LEFT_OUT = {
    "CondenseNet(G=C=8)": "is condensed while it is trained, as none other is",
}


class Measurement(NamedTuple):
    """A trained network.

    Attributes:
        table: number of the table; 1 for all of tables 1-4, which share rows.
        row: the row's label.
        data: the images, as they were asked for.
        recipe: name of the recipe.
        epochs: passes over the training images.
        seed: of weights, order and augmentation.
        train_images: number of training images.
        test_images: number of test images.
        accuracy: share of test images that the last weights get right.
    """

    table: int
    row: str
    data: str
    recipe: str
    epochs: int
    seed: int
    train_images: int
    test_images: int
    accuracy: float


class Summary(NamedTuple):
    """Measurements that differ by their seed alone.

    Attributes:
        data: the images.
        recipe: name of the recipe.
        epochs: passes over the training images.
        seeds: how many there are.
        images: number of test images.
        mean: of the accuracies, as a share.
        spread: their standard deviation; NaN for a single seed.
    """

    data: str
    recipe: str
    epochs: int
    seeds: int
    images: int
    mean: float
    spread: float

    @property
    def error(self) -> float:
        """Standard error of the mean, of seeds and test images, as a share."""
        seeds = 0.0 if math.isnan(self.spread) else self.spread**2 / self.seeds
        return math.sqrt(seeds + self.mean * (1 - self.mean) / self.images)


def recipe_for(
    mode: str, table: int, data: str | None, epochs: int | None
) -> tuple[str, Recipe]:
    """Returns the name and the recipe that a table's rows are trained by.

    Args:
        mode: one of `OWN_RECIPES`, or "full" for the paper's recipe: "cifar"
            for table 5, "imagenet" for the others, at a learning rate of 0.4
            in tables 1-4 (section 5.1).
        table: 1 to 6.
        data: the images, in place of the recipe's.
        epochs: passes over them, in place of the recipe's.

    Raises:
        ValueError: if `mode` is none of these or not for the table, or a
            setting is wrong.
    """
    if mode not in (*OWN_RECIPES, "full"):
        raise ValueError(
            f"`mode` must be 'full' or one of {', '.join(OWN_RECIPES)}. "
            f"Received: mode={mode!r}"
        )
    if table > OWN_RECIPES.get(mode, table):
        raise ValueError(
            f"`mode` {mode!r} is for tables 1 to {OWN_RECIPES[mode]}. "
            f"Received: table={table}"
        )
    name = mode
    if mode == "full":
        name = "cifar" if table == 5 else "imagenet"
    changes: dict[str, Any] = {}
    if name == "imagenet" and table < 5:
        changes["learning_rate"] = 0.4
    if data is not None:
        # One name for `photos` and `photos/`.
        changes["data"] = data.rstrip("/") or data
    if epochs is not None:
        changes["epochs"] = epochs
    return name, dataclasses.replace(load_recipe(name), **changes)


def measure(
    rows: Sequence[Row],
    mode: str,
    data: str | None,
    epochs: int | None,
    seeds: int,
    path: pathlib.Path,
    runs: pathlib.Path,
) -> list[Measurement]:
    """Trains what is missing in a CSV file, and returns all of it.

    Row by row, all seeds: interrupted, the rows that there are can be compared.
    What was begun resumes at its last checkpoint. Other processes may add rows
    to the file meanwhile.

    Args:
        rows: what to train; tables 1 to 6.
        mode: see `recipe_for`.
        data: the images, in place of the recipe's.
        epochs: in place of the recipe's.
        seeds: how many of each row, from 0 on.
        path: the CSV file; it may not exist yet.
        runs: folder of the runs.

    Raises:
        ValueError: if a setting is wrong; see also `training.fit`.
    """
    # Refuses what is wrong before the first is trained.
    recipes = {
        row.table: recipe_for(mode, row.table, data, epochs) for row in rows
    }
    for row in rows:
        if row.label in LEFT_OUT:
            print(f"{row.label} is left out: it {LEFT_OUT[row.label]}.")
            continue
        name, recipe = recipes[row.table]
        table = _shared_table(row.table)
        for seed in range(seeds):
            key = table, row.label, str(recipe.data), name, recipe.epochs, seed
            if any(found[:6] == key for found in read(path)):
                continue
            print(f"\n{row.label}, recipe {name}, seed {seed}", flush=True)
            folder = runs.joinpath(*(_as_name(part) for part in key))
            found = _train(
                row, dataclasses.replace(recipe, seed=seed), name, folder
            )
            add(path, found)
    return read(path)


def _train(
    row: Row, recipe: Recipe, name: str, folder: pathlib.Path
) -> Measurement:
    keras.backend.clear_session()
    configure_keras(recipe)
    feed = open_feed(recipe)
    model = row.build(
        input_shape=image_shape(recipe.size),
        **({} if recipe.stem == "auto" else {"stem": recipe.stem}),
        classes=len(feed.class_names),
        classifier_activation=None,
    )
    # As `training.build_network` has it.
    model.layers[-1].dtype_policy = keras.DTypePolicy("float32")
    result = fit(model, recipe, feed, folder)
    assert recipe.data is not None  # `open_feed` refuses it
    return Measurement(
        _shared_table(row.table),
        row.label,
        recipe.data,
        name,
        recipe.epochs,
        recipe.seed,
        feed.train_size,
        feed.test_size,
        # Not the best: that would be chosen by the test images.
        round(result["last"]["accuracy"], 6),
    )


def summarize(row: Row, measurements: Iterable[Measurement]) -> list[Summary]:
    """Means over seeds of what was measured of a row.

    Args:
        row: of table 1 to 6.
        measurements: of any rows.

    Returns:
        A `Summary` for each data set, recipe and number of epochs.
    """
    groups: dict[tuple[str, str, int], list[Measurement]] = {}
    for found in measurements:
        if (found.table, found.row) == (_shared_table(row.table), row.label):
            key = found.data, found.recipe, found.epochs
            groups.setdefault(key, []).append(found)
    summaries = []
    for key, group in sorted(groups.items()):
        values = [found.accuracy for found in group]
        summaries.append(
            Summary(
                *key,
                len(values),
                group[0].test_images,
                statistics.fmean(values),
                statistics.stdev(values) if len(values) > 1 else math.nan,
            )
        )
    return summaries


def read(path: pathlib.Path) -> list[Measurement]:
    """Reads measurements of a CSV file; none where there is no file."""
    kinds = Measurement.__annotations__
    return [
        Measurement(**{k: kinds[k](v) for k, v in line.items()})
        for line in read_csv(path, Measurement._fields)
    ]


def add(path: pathlib.Path, found: Measurement) -> None:
    """Adds a measurement to a CSV file, in place of one of the same training.

    Rows that another process added meanwhile stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        rows = {row[:6]: row for row in [*read(path), found]}
        write_csv(
            path,
            map(Measurement._asdict, sorted(rows.values())),
            Measurement._fields,
        )


def _shared_table(table: int) -> int:
    return 1 if table <= 4 else table


def _as_name(part: Any) -> str:
    return "".join(c if c.isalnum() or c in "+-._" else "_" for c in str(part))
