"""Do federated networks fit high frequencies better? A check of section 4.

A federated and a plain network of equal multiply-adds, as small as in the
paper's figure 4, each learn a sine from samples; how far they stay from it, by
its frequency, is what section 4 makes a statement about. With images of a
single pixel, s0 = 1, all convolutions are 1x1: the input is a number in [0, 1],
and many of them side by side make an "image".
"""

import functools
import pathlib
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import KerasTensor
from keras import layers

from keras_muffnet._files import locked
from keras_muffnet._files import read_csv
from keras_muffnet._files import write_csv
from keras_muffnet.blocks import federated_stage
from keras_muffnet.complexity import count_complexity
from keras_muffnet.federation import SharingMatrix

# Figure 4: M[i, j] = 32 in a stage of 4 feature maps.
GROUP = 32
LAYERS = 4
NETWORKS = ("federated", "plain")
# Periods of the target over the input's range.
FREQUENCIES = (1, 2, 4, 6, 8, 12)
STEPS = 2000
LEARNING_RATE = 2e-3
_IMAGES, _PIXELS = 8, 32  # of a step
_TEST = 4096


class Cell(NamedTuple):
    """A trained network.

    Attributes:
        network: one of `NETWORKS`.
        frequency: periods of the sine over the input's range.
        seed: of the weights, the samples and the sine's phase.
        macs: multiply-adds for an input.
        error: root mean square of the difference, over that of the sine.
    """

    network: str
    frequency: int
    seed: int
    macs: int
    error: float


def run(path: pathlib.Path, seeds: int, steps: int = STEPS) -> list[Cell]:
    """Trains what is missing in a CSV file, and returns all of it.

    The file is written after each network, so that an interrupted run resumes.
    Other processes may add rows to it meanwhile.

    Args:
        path: the file; it may not exist yet.
        seeds: how many of each network and frequency.
        steps: of the training.

    Raises:
        ValueError: if the file holds something else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _by_key(read(path))
    for seed in range(seeds):
        for frequency in FREQUENCIES:
            for network in NETWORKS:
                key = (network, frequency, seed)
                if key in done:
                    continue
                found = train(network, frequency, seed, steps)
                with locked(path.parent):
                    done = _by_key([*read(path), found])
                    rows = sorted(done.values(), key=_order)
                    write_csv(path, map(Cell._asdict, rows), Cell._fields)
                print(
                    f"seed {seed}, {frequency:>2} periods, {network:<9} "
                    f"error {found.error:.4f}",
                    flush=True,
                )
    return sorted(done.values(), key=_order)


def _by_key(cells: list[Cell]) -> dict[tuple[str, int, int], Cell]:
    return {cell[:3]: cell for cell in cells}


def _order(cell: Cell) -> tuple[Any, ...]:
    return cell.frequency, cell.network, cell.seed


def train(network: str, frequency: int, seed: int, steps: int = STEPS) -> Cell:
    """Trains one network on one sine.

    Args:
        network: one of `NETWORKS`.
        frequency: periods of the sine over the input's range.
        seed: of the weights, the samples and the sine's phase.
        steps: of Adam, each on 256 new samples.
    """
    # The other network of the same seed gets the same samples.
    rng = np.random.default_rng([seed, frequency])
    phase = rng.uniform()

    def sampled(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = np.sqrt(2) * np.sin(2 * np.pi * (frequency * x + phase))
        return x.astype("float32"), y.astype("float32")

    model = _compiled(network, steps)
    keras.utils.set_random_seed(seed)
    model.set_weights(_model(network).get_weights())
    for variable in model.optimizer.variables:
        if variable is not model.optimizer.learning_rate:
            variable.assign(np.zeros(variable.shape, variable.dtype))
    x, y = sampled(rng.uniform(size=(steps * _IMAGES, *model.input_shape[1:])))
    model.fit(x, y, batch_size=_IMAGES, shuffle=False, verbose=0)
    x, y = sampled(np.linspace(0, 1, _TEST).reshape(-1, *model.input_shape[1:]))
    fitted = model.predict(x, verbose=0)
    error = float(np.sqrt(np.mean((fitted - y) ** 2) / np.mean(y**2)))
    macs = count_complexity(model).macs // _PIXELS
    return Cell(network, frequency, seed, macs, round(error, 6))


@functools.cache
def _compiled(network: str, steps: int) -> keras.Model:
    """A model for all trainings: tracing one takes as long as training it."""
    model = _model(network)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
        ),
        loss="mse",
        # Keras has no more than one on PyTorch.
        steps_per_execution=(
            1 if keras.backend.backend() == "torch" else min(steps, 100)
        ),
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _model(network: str) -> keras.Model:
    inputs = keras.Input((_PIXELS, 1, 1))
    if network == "federated":
        rows = np.triu(np.full((LAYERS, LAYERS), GROUP))
        x = _pointwise(inputs, GROUP * LAYERS, False, "layer1")
        x = federated_stage(
            x, SharingMatrix.from_rows(rows), False, "stage", _pointwise
        )
    else:
        x = inputs
        for number in range(LAYERS):
            x = _pointwise(x, plain_width(), False, f"layer{number + 1}")
    x = layers.Conv2D(1, 1, name="output")(x)
    return keras.Model(inputs, x, name=network)


@functools.cache
def plain_width() -> int:
    """Width at which the plain network has the federated one's cost."""
    target = count_complexity(_model("federated")).macs // _PIXELS
    # (L - 1) m^2 between the layers, and m to and from them.
    a = LAYERS - 1
    return round(float((-2 + np.sqrt(4 + 4 * a * target)) / (2 * a)))


def _pointwise(
    x: KerasTensor, filters: int, residual: bool, name: str
) -> KerasTensor:
    """A 1x1 convolution with ReLU: the layers of lemma 1."""
    del residual  # there is none in section 4
    return layers.Conv2D(
        filters,
        1,
        activation="relu",
        kernel_initializer="he_normal",
        # From zeros, all of the first layer's kinks would be at the input 0.
        bias_initializer=keras.initializers.RandomUniform(-1, 1),
        name=name,
    )(x)


def summarize(cells: list[Cell]) -> list[dict[str, Any]]:
    """Medians over the seeds, and which network was nearer, by frequency.

    Args:
        cells: of `run`.
    """
    lines = []
    for frequency in sorted({cell.frequency for cell in cells}):
        federated, plain = (
            {
                cell.seed: cell.error
                for cell in cells
                if (cell.network, cell.frequency) == (network, frequency)
            }
            for network in NETWORKS
        )
        both = federated.keys() & plain.keys()
        nearer = sum(federated[seed] < plain[seed] for seed in both)
        lines.append(
            {
                "row": f"{frequency} periods",
                **{
                    f"{name}, median error": f"{np.median(list(errors)):.4f}"
                    for name, errors in (
                        ("federated", federated.values()),
                        ("plain", plain.values()),
                    )
                    if errors
                },
                "federated nearer": f"{nearer} of {len(both)} seeds",
            }
        )
    return lines


def read(path: pathlib.Path) -> list[Cell]:
    """Reads the cells of a CSV file; none where there is no file."""
    kinds = Cell.__annotations__
    return [
        Cell(**{k: kinds[k](v) for k, v in row.items()})
        for row in read_csv(path, Cell._fields)
    ]
