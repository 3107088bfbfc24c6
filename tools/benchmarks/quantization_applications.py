r"""Quantizes the CNNs that libraries for Keras 3 can build.

    pip install kimm keras-hub
    python -m tools.benchmarks.quantization_applications \
        --output results/quantization_applications.csv

The networks: each constructor of `keras.applications`, those of kimm, and the
backbones of KerasHub for images, at the smallest input that each takes, with
random weights; of a library that is not installed none. The statistics of
batch normalization are those of 64 digits. `quantize_post_training` and
TensorFlow's converter make an int8 file of each, calibrated on these digits,
and both are compared with the float network on 64 others: signal to
quantization noise in dB, operations left in float, seconds of processor time.

Interrupted, the same command resumes with the next network; `--only` takes some
networks, or some libraries.
"""

import argparse
import concurrent.futures
import functools
import gc
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_muffnet.cli.common import run as report_failures
from tools.benchmarks import common

IMAGES = 64
SIZES = (32, 64, 71, 75, 96, 128, 224)
CLASSES = 10
# Of more, float and int8 copies take over 4 GB.
MOST_PARAMETERS = 150e6
WAYS = ("converter", "post_training")
COLUMNS = (
    *("network", "input", "parameters"),
    *(
        f"{way}_{column}"
        for way in WAYS
        for column in ("sqnr", "float_operations", "seconds", "error")
    ),
)


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="+", default=[], metavar="NETWORK")
    args = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return report_failures(
        lambda: benchmark(args), "benchmarks/quantization_applications"
    )


def benchmark(args: argparse.Namespace) -> None:
    """Measures the networks that have no row yet."""
    from keras_muffnet._files import write_csv

    rows = common.read_rows(args.output, "network")
    names = [
        name
        for name in constructors()
        if name not in rows
        and (not args.only or {name, name.split()[0]} & {*args.only})
    ]
    for name, row in measured(names):
        rows[name] = {**dict.fromkeys(COLUMNS, ""), "network": name, **row}
        print(*rows[name].values(), sep=" | ", flush=True)
        write_csv(args.output, rows.values(), COLUMNS)
    _pool().shutdown()


def measured(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measures in another process, which a file of one way may end."""
    for name in names:
        try:
            yield name, in_process(name, WAYS)
        except concurrent.futures.BrokenExecutor:
            row = {}
            for way in WAYS:
                try:
                    row.update(in_process(name, [way]))
                except concurrent.futures.BrokenExecutor:
                    row[f"{way}_error"] = "the process ended"
            yield name, row


def in_process(name: str, ways: Sequence[str]) -> dict[str, Any]:
    """Runs `measure` in a process that starts with the first network."""
    try:
        return _pool().submit(measure, name, ways).result()
    except concurrent.futures.BrokenExecutor:
        _pool.cache_clear()
        raise
    except Exception as error:
        return {f"{way}_error": common.shortened(error) for way in ways}


@functools.cache
def _pool() -> concurrent.futures.ProcessPoolExecutor:
    return concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=8
    )


def constructors() -> dict[str, Callable[[int], Any]]:
    """What builds each network for images of a size, by library and name."""
    from keras import applications

    found: dict[str, Callable[[int], Any]] = {}
    for name in _public(applications):
        found[f"keras {name}"] = _classifier(getattr(applications, name))
    try:
        from kimm import models
    except ImportError:
        print("kimm is not installed")
    else:
        _register_kimm_layers()
        for name in _public(models):
            if name != "BaseModel":
                found[f"kimm {name}"] = _classifier(getattr(models, name))
    try:
        from tools.benchmarks import quantization_backbones
    except ImportError:
        print("keras-hub is not installed")
    else:
        found.update(quantization_backbones.BACKBONES)
    return found


def _register_kimm_layers() -> None:
    """Says what two layers of kimm's do that Keras does not follow.

    That of GhostNetV3, MobileOne and RepVGG calls branches on other sizes than
    it has built them for; that of vision transformers repeats a weight as often
    as there are examples.
    """
    import keras
    from kimm.layers import PositionEmbedding
    from kimm.layers import ReparameterizableConv2D

    from keras_muffnet.quantization import register_rule

    @register_rule(ReparameterizableConv2D)
    def branches(layer: Any, inputs: Any) -> Any:
        padded = layer.zero_padding(inputs) if layer.zero_padding else inputs
        ends = [layer.skip(inputs)] if layer.skip else []
        for branch, x in (
            *([(layer.conv_scale, inputs)] if layer.conv_scale else []),
            *((branch, padded) for branch in layer.conv_kxk),
        ):
            for inner in branch.layers:
                x = inner(x)
            ends.append(x)
        x = keras.layers.Add()(ends) if len(ends) > 1 else ends[0]
        return layer.act(x) if layer.act else x

    @register_rule(PositionEmbedding)
    def positions(layer: Any, inputs: Any, mask: Any = None) -> Any:
        token = keras.ops.convert_to_numpy(layer.cls_token)
        first = inputs[:, :1] * 0.0 + token
        x = keras.ops.concatenate([first, inputs], axis=1)
        return x + keras.ops.convert_to_numpy(layer.pos_embed)


def _public(module: Any) -> list[str]:
    return [name for name in dir(module) if name[0].isupper()]


def _classifier(make: Callable[..., Any]) -> Callable[[int], Any]:
    return lambda size: make(
        input_shape=(size, size, 3),
        weights=None,
        classes=CLASSES,
        classifier_activation=None,
    )


def measure(name: str, ways: Sequence[str]) -> dict[str, Any]:
    """Makes a network's files and compares them with it."""
    import keras
    import tensorflow as tf

    from tools.benchmarks.quantization import load_digits
    from tools.benchmarks.quantization_networks import randomize

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    model = build(constructors()[name])
    row: dict[str, Any] = {
        "input": model.input_shape[1],
        "parameters": model.count_params(),
    }
    if row["parameters"] > MOST_PARAMETERS:
        return {**row, **{f"{w}_error": "too large for 4 GB" for w in ways}}
    (images, _), (test, _) = load_digits(model)
    randomize(model)
    set_statistics(model, images[:IMAGES])
    for way in ways:
        found = quantize(model, images[:IMAGES], test[:IMAGES], way)
        row.update({f"{way}_{key}": value for key, value in found.items()})
    # Closed graphs sit in reference cycles.
    gc.collect()
    return row


def build(make: Callable[[int], Any]) -> Any:
    """Builds a network for the smallest images that it takes."""
    for size in SIZES[:-1]:
        try:
            return make(size)
        except ValueError:
            continue
    return make(SIZES[-1])


def set_statistics(model: Any, images: np.ndarray) -> None:
    """Sets those of batch normalization, as one step of training would.

    Its outputs are mostly positive, so that activations cut off little. With
    half of them cut off, each random layer makes differences larger than they
    were, and of a hundred layers the last would give noise alone.
    """
    import keras

    rng = np.random.default_rng(3)
    norm = keras.layers.BatchNormalization
    # Keras has no public way to all the layers inside others. KerasHub's
    # EfficientNet has some that are never called.
    for layer in model._flatten_layers():
        if isinstance(layer, norm) and layer.built:
            layer.momentum = 0.0
            if layer.scale:
                layer.gamma.assign(rng.uniform(0.2, 0.6, layer.gamma.shape))
            if layer.center:
                layer.beta.assign(rng.normal(0.5, 0.3, layer.beta.shape))
        for rate in ("rate", "drop_path_rate"):
            if hasattr(layer, rate):
                setattr(layer, rate, 0.0)
    model(images, training=True)


def quantize(
    model: Any, images: np.ndarray, test: np.ndarray, way: str
) -> dict[str, Any]:
    """Makes a file in one way and compares it with the model."""
    from tools.benchmarks import quantization_coverage

    start = time.process_time()
    try:
        content = quantization_coverage.make_file(model, [images], way)
        seconds = time.process_time() - start
        figures = quantization_coverage.compare(model, content, [test])
    except Exception as error:  # a network that a way does not take
        return {"error": common.shortened(error)}
    return {
        "sqnr": round(figures.sqnr, 1),
        "float_operations": figures.float_operations,
        "seconds": round(seconds),
    }


if __name__ == "__main__":
    sys.exit(main())
