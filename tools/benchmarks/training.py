r"""Measures how fast MuffNet trains: its input, its step, and both together.

    python -m tools.benchmarks.training --data cifar10/ --recipe cifar \
        --alpha 0.5 --output results/training_MACHINE.csv

Each way has a process of its own, and all take turns, round after round:

- each installed backend with Keras's own layers;
- torch after `keras_muffnet.training.accelerate`, on a CPU;
- MuffNet written by hand in PyTorch, channels last ("plain").

Measured are images a second of the recipe's input pipeline alone, of the
training step alone on one batch that stays in memory, by `model.fit`, and of
both together; and the time of the processor (all cores together) that a step,
an evaluation and a prediction take for an image. Where other programs share the
machine, only ratios of the latter mean something. ShuffleNetV2 and MobileNetV2
are measured likewise, in their forms for 32x32 images. Medians of the rounds
are taken. The share of the time of both together that a step alone does not
take is spent waiting for input. `cpu_to_first` is the processor time of a step,
as a share of that of the first way with the same model. Compiling, and the
first steps, do not count.
"""

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from keras_muffnet._files import write_csv

BACKENDS = ("tensorflow", "jax", "torch")
# Each peer at the width that has about the multiply-adds of MuffNet 0.5.
PEERS = {"ShuffleNetV2": 0.5, "MobileNetV2": 0.35}
FUSED, PLAIN, KERAS = "fused", "plain", "keras"

Figures = dict[str, Any]


def main() -> None:
    """Runs the command."""
    args = parse_args()
    if args.way is not None:
        serve(args)
        return
    ways = [(backend, KERAS) for backend in args.backends]
    if "torch" in args.backends:
        ways += [("torch", FUSED), ("torch", PLAIN)]
    workers = [Worker(*way) for way in ways]
    for number in range(args.repeats):
        for worker in workers:
            print(f"round {number + 1}: {worker.label}", flush=True)
            worker.measure()
    rows = [row for worker in workers for row in worker.close()]
    first: dict[str, float] = {}
    for row in rows:
        before = first.setdefault(row["model"], row["step_cpu_ms"])
        row["cpu_to_first"] = round(row["step_cpu_ms"] / before, 3)
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
        "--repeats", type=int, default=5, help="rounds (default: 5)"
    )
    parser.add_argument(
        "--jit-compile",
        action="store_true",
        help="compile by XLA or torch's compiler where Keras does by itself",
    )
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, default=installed
    )
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure ShuffleNetV2 and MobileNetV2, too",
    )
    parser.add_argument("--way", help=argparse.SUPPRESS)
    return parser.parse_args()


class Worker:
    """A process that measures one way when asked to."""

    def __init__(self, backend: str, way: str) -> None:
        self.label = f"{backend}, {way}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *sys.argv[1:], "--way", way],
            env={**os.environ, "KERAS_BACKEND": backend},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str) -> Any:
        """Sends a line and returns what is answered."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.label} failed; its errors are above")
        return json.loads(answer)

    def measure(self) -> None:
        """Has each model measured once."""
        self.ask("measure")

    def close(self) -> list[Figures]:
        """Returns the medians, and ends the process."""
        rows = self.ask("rows")
        self.process.communicate()
        return rows


def serve(args: argparse.Namespace) -> None:
    """Measures at each line of the standard input, until it ends."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    answers = sys.stdout
    sys.stdout = sys.stderr
    bench = Bench(args)
    for line in sys.stdin:
        answer = bench.measure() if line.strip() == "measure" else bench.rows()
        print(json.dumps(answer), file=answers, flush=True)


class Bench:
    """The models of one way, and what was measured of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        from keras_muffnet import training

        self.way = args.way
        overridden: dict[str, Any] = {
            name: getattr(args, name)
            for name in (
                "data",
                "alpha",
                "size",
                "batch_size",
                "precision",
                "data_format",
            )
            if getattr(args, name) is not None
        }
        self.recipe = dataclasses.replace(
            training.load_recipe(args.recipe), **overridden
        )
        training.configure_keras(self.recipe)
        self.feed = training.open_feed(self.recipe)
        self.repeats = args.repeats
        self.steps = min(args.steps, self.feed.steps_per_epoch)
        self.rates: dict[str, list[float]] = {}
        self.round = 0
        self.models = self.build(args.jit_compile, PEERS if args.peers else {})
        self.same = one_batch(self.feed)
        for model in self.models.values():
            model.train(self.same(), 1)

    def build(
        self, jit_compile: bool, peers: dict[str, float]
    ) -> dict[str, Any]:
        """Returns the models, compiled as a run does."""
        from keras_muffnet import baselines
        from keras_muffnet import training

        recipe, classes = self.recipe, len(self.feed.class_names)
        own = f"MuffNet {recipe.alpha}"
        if self.way == PLAIN:
            return {own: Plain(recipe, classes)}
        muffnet = training.build_network(recipe, classes)
        models = {own: muffnet}
        for name, alpha in peers.items():
            models[f"{name} {alpha}"] = getattr(baselines, name)(
                input_shape=muffnet.input_shape[1:],
                alpha=alpha,
                classes=classes,
                classifier_activation=None,
            )
        if self.way == FUSED:
            for model in models.values():
                print(training.accelerate(model))
        return {
            name: Compiled(model, recipe, classes, jit_compile)
            for name, model in models.items()
        }

    def measure(self) -> list[str]:
        """Measures each model once."""
        self.time("input", read, self.feed.epoch(self.round))
        for name, model in self.models.items():
            self.time(f"{name} step", model.train, self.same())
            self.time(f"{name} both", model.train, self.feed.epoch(self.round))
            self.time(f"{name} predict", model.predict, self.same())
            self.time(f"{name} evaluate", model.evaluate, self.same())
        self.round += 1
        return list(self.models)

    def time(self, name: str, work: Callable[..., object], given: Any) -> None:
        """Notes images a second, and processor time of an image in ms."""
        wall, cpu = time.perf_counter(), time.process_time()
        work(given, self.steps)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        images = self.steps * self.recipe.batch_size
        self.rates.setdefault(name, []).append(images / wall)
        self.rates.setdefault(f"{name} cpu", []).append(1000 * cpu / images)

    def rows(self) -> list[Figures]:
        """Returns a row of medians for each model."""
        import keras

        recipe = self.recipe
        found = {k: statistics.median(v) for k, v in self.rates.items()}
        return [
            {
                "backend": keras.backend.backend(),
                "way": self.way,
                "model": name,
                "size": recipe.size,
                "batch_size": recipe.batch_size,
                "precision": recipe.precision,
                "data_format": recipe.data_format,
                "device": device(),
                "input_images_s": round(found["input"], 1),
                "step_images_s": round(found[f"{name} step"], 1),
                "both_images_s": round(found[f"{name} both"], 1),
                "waiting_share": round(
                    max(0, 1 - found[f"{name} both"] / found[f"{name} step"]),
                    4,
                ),
                "step_cpu_ms": round(found[f"{name} step cpu"], 3),
                "evaluate_cpu_ms": round(found[f"{name} evaluate cpu"], 3),
                "predict_cpu_ms": round(found[f"{name} predict cpu"], 3),
                "rss_mib": round(peak_rss()),
                "gpu_mib": peak_gpu(),
                "steps": self.steps,
                "repeats": self.repeats,
            }
            for name in self.models
        ]


class Compiled:
    """A Keras model that is trained by `model.fit`."""

    def __init__(
        self, model: Any, recipe: Any, classes: int, jit_compile: bool
    ) -> None:
        from keras_muffnet.training.objectives import accuracies
        from keras_muffnet.training.objectives import cross_entropy
        from keras_muffnet.training.optimizer import make_optimizer

        self.model = model
        model.compile(
            # A rate that no run of this length diverges at.
            make_optimizer(recipe, 1e-3),
            cross_entropy(recipe.label_smoothing, from_logits=True),
            weighted_metrics=accuracies(classes),
            jit_compile="auto" if jit_compile else False,
        )

    def train(self, batches: Any, steps: int) -> None:
        """Does so many steps, and waits for the last."""
        self.model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)

    def predict(self, batches: Any, steps: int) -> None:
        """Predicts so many batches."""
        self.model.predict(batches, steps=steps, verbose=0)

    def evaluate(self, batches: Any, steps: int) -> None:
        """Evaluates on so many batches."""
        self.model.evaluate(batches, steps=steps, verbose=0)


class Plain:
    """MuffNet in plain PyTorch, with a loop of its own."""

    def __init__(self, recipe: Any, classes: int) -> None:
        import torch

        from tools.benchmarks.plain_muffnet import MuffNet

        network: Any = MuffNet(recipe.alpha, classes)
        self.model = network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), 1e-3, 0.9, nesterov=recipe.nesterov
        )

    def train(self, batches: Any, steps: int) -> None:
        """Does so many steps."""
        self.model.train()
        for images, labels in self._tensors(batches, steps):
            self.optimizer.zero_grad()
            self._loss(images, labels).backward()
            self.optimizer.step()

    def predict(self, batches: Any, steps: int) -> None:
        """Predicts so many batches."""
        import torch

        self.model.eval()
        with torch.inference_mode():
            for images, _ in self._tensors(batches, steps):
                self.model(images)

    def evaluate(self, batches: Any, steps: int) -> None:
        """Evaluates on so many batches."""
        import torch

        self.model.eval()
        with torch.inference_mode():
            for images, labels in self._tensors(batches, steps):
                self._loss(images, labels)

    def _loss(self, images: Any, labels: Any) -> Any:
        from torch.nn.functional import cross_entropy

        return cross_entropy(self.model(images), labels)

    def _tensors(self, batches: Any, steps: int) -> Any:
        import numpy as np
        import torch

        for images, labels in itertools.islice(batches, steps):
            x = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
            yield x, torch.tensor(np.asarray(labels)).long()


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
    """The peak of memory used on the GPU, in MiB; None where not known."""
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
    main()
