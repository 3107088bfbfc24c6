r"""Measures how fast MuffNet trains: its input, its step, and both together.

    python -m tools.benchmarks.training --data cifar10/ --recipe cifar \
        --output results/training_MACHINE.csv

For each backend that is installed, in a process of its own: images a second of
the recipe's input pipeline alone, of the training step alone on one batch that
stays in memory, and of both together, of MuffNet and of keras.applications'
MobileNetV2 at the same size. The measurements are interleaved, and medians of
their repeats are taken. The share of the time of both together that a step
alone does not take is spent waiting for input. Also told is the most memory
that the process has had, and that of the GPU where the backend tells.
Compiling, and the first steps, do not count.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from keras_muffnet._files import write_csv
from keras_muffnet.cli.common import run as report_failures
from tools.benchmarks import common

PROGRAM = "tools.benchmarks.training"
BACKENDS = ("tensorflow", "jax", "torch")


def main() -> int:
    """Runs the command; returns its exit status."""
    args = parse_args()
    return report_failures(lambda: benchmark(args), "benchmarks/training")


def benchmark(args: argparse.Namespace) -> None:
    """Measures this process's backend, or each in a process of its own."""
    if args.row:
        args.output.write_text(json.dumps(measure(args)))
        return
    rows = []
    for backend in args.backends:
        print(f"{backend} ...", flush=True)
        rows += common.measure_elsewhere(
            PROGRAM,
            backend,
            [*sys.argv[1:], "--row"],
            {"KERAS_BACKEND": backend},
        )
        write_csv(args.output, rows, list(rows[0]))
    for row in rows:
        print("\n" + "\n".join(f"{k:<24}{v}" for k, v in row.items()))


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    from keras_muffnet.training import recipe_names

    installed = [b for b in BACKENDS if importlib.util.find_spec(b)]
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument(
        "--data", required=True, help="see `keras_muffnet.data.open_source`"
    )
    parser.add_argument("--recipe", choices=recipe_names(), default="cifar")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--size", type=int, help="(default: the recipe's)")
    parser.add_argument("--batch-size", type=int, help="(default: likewise)")
    parser.add_argument("--precision", help="(default: likewise)")
    parser.add_argument("--data-format", help="(default: likewise)")
    parser.add_argument(
        "--steps", type=int, default=20, help="in a measurement (default: 20)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="of each (default: 5)"
    )
    parser.add_argument(
        "--no-jit-compile",
        action="store_true",
        help="run without XLA (or torch's compiler)",
    )
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, default=installed
    )
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures MuffNet and its peer on this process's backend."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    from keras_muffnet import training

    overridden: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("data", "alpha", "size", "batch_size", "precision")
        if getattr(args, name) is not None
    }
    if args.data_format is not None:
        overridden["data_format"] = args.data_format
    recipe = dataclasses.replace(
        training.load_recipe(args.recipe), **overridden
    )
    training.configure_keras(recipe)
    feed = training.open_feed(recipe)
    classes = len(feed.class_names)
    muffnet = training.build_network(recipe, classes)
    peer = keras.applications.MobileNetV2(
        input_shape=muffnet.input_shape[1:],
        weights=None,
        classes=classes,
        classifier_activation=None,
    )
    models = {f"MuffNet {recipe.alpha}": muffnet, "MobileNetV2": peer}
    for model in models.values():
        compile_as_trained(model, recipe, classes, not args.no_jit_compile)
    steps = min(args.steps, feed.steps_per_epoch)
    same = one_batch(feed)
    for model in models.values():
        train(model, same(), 3)

    def rate(run: Callable[..., object], *given: Any) -> float:
        begun = time.perf_counter()
        run(*given, steps)
        return steps * recipe.batch_size / (time.perf_counter() - begun)

    rates: dict[str, list[float]] = {"input": []}
    for repeat in range(args.repeats):
        rates["input"].append(rate(read, feed.epoch(repeat)))
        for name, model in models.items():
            for kind, batches in ("step", same()), ("both", feed.epoch(repeat)):
                found = rates.setdefault(f"{name} {kind}", [])
                found.append(rate(train, model, batches))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    return [
        {
            "backend": keras.backend.backend(),
            "model": name,
            "size": recipe.size,
            "batch_size": recipe.batch_size,
            "precision": recipe.precision,
            "data_format": recipe.data_format,
            "device": device(),
            "input_images_s": round(medians["input"], 1),
            "step_images_s": round(medians[f"{name} step"], 1),
            "both_images_s": round(medians[f"{name} both"], 1),
            "waiting_share": round(
                max(0, 1 - medians[f"{name} both"] / medians[f"{name} step"]), 4
            ),
            "input_to_step": round(
                medians["input"] / medians[f"{name} step"], 2
            ),
            "step_to_peer": round(
                medians[f"{name} step"] / medians["MobileNetV2 step"], 3
            ),
            "rss_mib": round(peak_rss()),
            "gpu_mib": peak_gpu(),
            "steps": steps,
            "repeats": args.repeats,
        }
        for name in models
    ]


def compile_as_trained(
    model: Any, recipe: Any, classes: int, jit_compile: bool
) -> None:
    """Compiles a model as a run does."""
    from keras_muffnet.training.objectives import accuracies
    from keras_muffnet.training.objectives import cross_entropy
    from keras_muffnet.training.optimizer import make_optimizer

    model.compile(
        # A rate that no run of this length diverges at.
        make_optimizer(recipe, 1e-3),
        cross_entropy(recipe.label_smoothing, from_logits=True),
        weighted_metrics=accuracies(classes),
        jit_compile="auto" if jit_compile else False,
    )


def one_batch(feed: Any) -> Callable[[], Any]:
    """Returns what gives the first batch again and again."""
    batches = feed.epoch(0)
    if hasattr(batches, "take"):
        # In memory once it was read, by TensorFlow as the others are.
        cached = batches.take(1).cache().repeat()
        return lambda: cached
    first = next(iter(batches))
    return lambda: (first for _ in itertools.count())


def read(batches: Any, steps: int) -> None:
    """Reads so many batches, and waits for the last."""
    for batch in itertools.islice(batches, steps):
        for part in batch:
            if hasattr(part, "block_until_ready"):
                part.block_until_ready()


def train(model: Any, batches: Any, steps: int) -> None:
    """Does so many steps, by `model.fit`, and waits for the last."""
    model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)


def device() -> str:
    """What the backend computes on."""
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.devices()[0].device_kind
    if backend == "torch":
        import torch

        return (
            torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        )
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    if not found:
        return "cpu"
    details = tf.config.experimental.get_device_details(found[0])
    return details.get("device_name", "gpu")


def peak_rss() -> float:
    """The most memory that this process has had, in MiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, KiB elsewhere.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def peak_gpu() -> int | None:
    """The most memory of the GPU that was in use, in MiB, where it is told."""
    import keras

    backend = keras.backend.backend()
    peak = None
    if backend == "jax":
        import jax

        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    elif backend == "torch":
        import torch

        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
    else:
        import tensorflow as tf

        if tf.config.list_logical_devices("GPU"):
            peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return None if peak is None else round(peak / 2**20)


if __name__ == "__main__":
    sys.exit(main())
