"""Labeled images of TensorFlow Datasets."""

import os
from typing import Any

import numpy as np

from keras_muffnet._optional import load_optional
from keras_muffnet.data.examples import Examples
from keras_muffnet.data.examples import Source
from keras_muffnet.data.examples import split_named
from keras_muffnet.data.records import RecordExamples
from keras_muffnet.data.records import record_positions


def tfds_named(source: str) -> Any:
    """The builder of a data set of TensorFlow Datasets, not prepared yet."""
    tfds = load_optional("tensorflow_datasets", "datasets")
    try:
        return tfds.builder(source.removeprefix("tfds:"), try_gcs=False)
    except (AssertionError, ValueError) as error:
        # Behind the first line it lists a thousand names.
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            "`source` must name a data set of TensorFlow Datasets after "
            f"'tfds:'. Received: source={source!r}: {reason}"
        ) from None


def tfds_builder(source: str) -> tuple[Any, list[str], tuple[str, ...]]:
    """Prepares a data set of TensorFlow Datasets.

    Returns:
        Its builder, the keys of image and label, and the class names.
    """
    tfds = load_optional("tensorflow_datasets", "datasets")
    builder = tfds_named(source)
    features = dict(builder.info.features.items())
    keys = list(builder.info.supervised_keys or [])
    kinds = [features.get(key) for key in keys]
    if not (
        len(kinds) == 2
        and isinstance(kinds[0], tfds.features.Image)
        and kinds[0].np_dtype == np.uint8
        and isinstance(kinds[1], tfds.features.ClassLabel)
    ):
        raise ValueError(
            "`source` must be a data set of 8-bit images, each with a class. "
            f"Received: source={source!r}, of {kinds}"
        )
    builder.download_and_prepare()
    return builder, keys, tuple(kinds[1].names)


def tfds_split(builder: Any, source: str, split: str) -> Any:
    """A split of TensorFlow Datasets, or a slice of one."""
    try:
        return builder.info.splits[split]
    except (KeyError, ValueError):
        raise ValueError(
            f"`split` must be of {sorted(builder.info.splits)}, or a slice "
            f"such as 'train[:10%]', for {source!r}. Received: split={split!r}"
        ) from None


def tfds_records(
    builder: Any, source: str, split: str
) -> tuple[list[str], list[np.ndarray]]:
    """The files of a split, and the positions in each of its records."""
    files, positions = [], []
    for shard in tfds_split(builder, source, split).file_instructions:
        if ".tfrecord" not in os.path.basename(shard.filename):
            raise ValueError(
                "`source` must be prepared as TFRecords (file_format="
                f"'tfrecord'). Received: {source!r}, which has "
                f"{shard.filename!r}"
            )
        files.append(shard.filename)
        found = record_positions(shard.filename)[shard.skip :]
        positions.append(found[: shard.take] if shard.take > 0 else found)
    return files, positions


def open_tfds(source: str) -> Source:
    """Opens a data set of TensorFlow Datasets."""
    builder, keys, names = tfds_builder(source)

    own = {split_named(name) or name: name for name in builder.info.splits}
    splits = [name for name in ("train", "val", "test") if name in own]

    def split(name: str) -> Examples:
        files, positions = tfds_records(builder, source, own.get(name, name))
        return RecordExamples(files, positions, len(names), (keys[0], keys[1]))

    return Source(
        source, names, (*splits, *sorted(set(own) - set(splits))), split
    )
