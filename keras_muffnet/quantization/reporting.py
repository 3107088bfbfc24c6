"""Where a quantized file departs from the float model, layer by layer."""

import collections
import math
import os
import pathlib
import warnings
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from keras_muffnet.litert import LiteRTModel
from keras_muffnet.litert.model import find_departures
from keras_muffnet.plots import plot_layer_noise
from keras_muffnet.quantization.calibration import read_data
from keras_muffnet.quantization.ends import Ends
from keras_muffnet.quantization.keras_engine import build
from keras_muffnet.quantization.keras_engine import call_foreign
from keras_muffnet.quantization.matching import match
from keras_muffnet.quantization.plan import FLOAT_BARRIER
from keras_muffnet.quantization.plan import Plan
from keras_muffnet.quantization.plan import plan_quantization
from keras_muffnet.quantization.steps import FOREIGN
from keras_muffnet.quantization.steps import KERNELS

# Images for which layers are compared, and of how many the values of all
# layers are held at a time.
_COMPARED = 32
_HELD = 8


class Layer(NamedTuple):
    """One quantized output: that of a layer and of what is folded into it.

    Attributes:
        name: of the step of the plan, as the ranges have it.
        operation: what makes it in the file, such as "CONV_2D"; "input" for
            the images; "" if the file has nothing of that name, and then all
            figures are NaN.
        sqnr: signal-to-quantization-noise ratio in dB, 10 log10(sum f^2 /
            sum (f - q)^2) with f of the float model and q of the file. All
            that went wrong up to here is in it.
        own_sqnr: the same with f of the float layer for the inputs that the
            file's layer has. So it is low where an error is made, and not
            where it is passed on.
        cut_off: share of that float layer's values, 0 to 1, that lie beyond
            the limits, so that the file has the lowest or highest level in
            their place. The zeros that a ReLU makes do not count.
        scale: step between two levels; NaN in float.
        limits: lowest and highest value that the output can have.
    """

    name: str
    operation: str
    sqnr: float = math.nan
    own_sqnr: float = math.nan
    cut_off: float = math.nan
    scale: float = math.nan
    limits: tuple[float, float] = (math.nan, math.nan)


class Answer(NamedTuple):
    """How one of the outputs differs; see `Report`.

    Its name is the key of the model's dict of outputs, else the layer's.
    """

    sqnr: float
    agreement: float
    mean_difference: float
    name: str


class Report(NamedTuple):
    """What `keras_muffnet.quantization.report` found; `print` it.

    Attributes:
        path: the file.
        size: its size in bytes.
        operations: how many there are of each.
        float_operations: those that compute in float, or change to float and
            back within the file, such as "CONV_2D #3".
        requantizations: QUANTIZE operations other than at the file's ends.
        sqnr: of the output, before any softmax, in dB; see `Layer`.
        agreement: share of images, 0 to 1, with the same class on top; NaN if
            the output is a single number.
        mean_difference: mean absolute difference between the outputs.
        outputs: the last three for each output, and its name. Above they are
            those of the first.
        images: number of images for the last two figures.
        compared: number of images for all others.
        layers: all quantized outputs, in the order in which they are made.
    """

    path: pathlib.Path
    size: int
    operations: dict[str, int]
    float_operations: tuple[str, ...]
    requantizations: tuple[str, ...]
    sqnr: float
    agreement: float
    mean_difference: float
    outputs: tuple["Answer", ...]
    images: int
    compared: int
    layers: tuple[Layer, ...]

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Names of the layers that were not found in the file."""
        return tuple(x.name for x in self.layers if not x.operation)

    def worst(self, count: int = 5) -> list[Layer]:
        """The layers that make the greatest errors themselves."""
        found = [layer for layer in self.layers if layer.operation]
        return sorted(found, key=lambda layer: layer.own_sqnr)[:count]

    def __str__(self) -> str:
        counts = sorted(self.operations.items(), key=lambda x: (-x[1], x[0]))
        worst = self.worst()
        width = max(len(layer.name) for layer in self.layers)
        head = (
            f"  {'layer':{width}}  {'operation':17}      dB  own dB  cut off"
            "  limits"
        )
        return "\n".join(
            [
                f"{self.path}: {self.size:,} bytes",
                "operations: " + ", ".join(f"{n} {op}" for op, n in counts),
                "in float: " + _listed(self.float_operations),
                "requantizations: " + _listed(self.requantizations),
                "layers not found: " + _listed(self.unmatched),
                *(
                    f"output {answer.name!r}: {answer.sqnr:.1f} dB; on "
                    f"{self.images} images mean difference "
                    f"{answer.mean_difference:.3g}, same class on top in "
                    f"{answer.agreement:.1%}"
                    for answer in self.outputs
                ),
                "",
                f"Layers, on {self.compared} images. dB: signal to "
                "quantization noise. own dB: without the noise",
                "of the layer's inputs; lowest where errors are made. Worst "
                "first, marked * below.",
                "",
                head,
                *(_line(layer, width, "*") for layer in worst),
                "",
                head,
                *(
                    _line(layer, width, "*" if layer in worst else " ")
                    for layer in self.layers
                ),
            ]
        )


def _listed(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (
        f"{len(names)}: {', '.join(names[:shown])}{more}" if names else "none"
    )


def _line(layer: Layer, width: int, mark: str) -> str:
    if not layer.operation:
        return f"{mark} {layer.name:{width}}  not found"
    low, high = layer.limits
    limits = "float" if math.isnan(low) else f"{low:.4g} to {high:.4g}"
    return (
        f"{mark} {layer.name:{width}}  {layer.operation:17}  {layer.sqnr:6.1f}"
        f"  {layer.own_sqnr:6.1f}  {layer.cut_off:7.2%}  {limits}"
    )


def report(
    model: keras.Model,
    tflite: str | os.PathLike[str],
    data: Any,
    picture: str | os.PathLike[str] | None,
) -> Report:
    """Does what `keras_muffnet.quantization.report` says."""
    arrays = read_data(data, model, "data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that say what is in float
        plan = plan_quantization(
            model,
            float_layers="unknown",
            input_shapes=[x.shape[1:] for x in arrays],
        )
    file = _open(tflite, [x.shape[1:] for x in arrays], len(plan.outputs))

    # The float values of all quantized outputs, and of the model's.
    numbers = [k + 1 for k, s in enumerate(plan.steps) if s.range is not None]
    watching = tuple(dict.fromkeys((*numbers, *plan.outputs)))
    watched = build(plan._replace(outputs=watching))
    symbols = dict(zip(watching, watched.outputs, strict=True))
    sizes = {k: math.prod(x.shape[1:]) for k, x in symbols.items()}
    matched, has_softmax = match(plan, sizes, file)
    compared = [x[:_COMPARED] for x in arrays]
    layers, wanted = _compare(plan, watched, watching, file, matched, compared)
    if len(arrays[0]) > _COMPARED:
        outputs = keras.Model(
            watched.inputs, [symbols[k] for k in plan.outputs]
        )
        others = outputs.predict(
            [x[_COMPARED:] for x in arrays], batch_size=_COMPARED, verbose=0
        )
        others = others if isinstance(others, list) else [others]
        wanted = [np.concatenate(x) for x in zip(wanted, others, strict=True)]
    given = LiteRTModel(tflite).predict(
        arrays if len(arrays) > 1 else arrays[0]
    )
    if isinstance(given, dict):
        given = list(given.values())
    given = given if isinstance(given, list) else [given]
    answers = []
    for name, k, x, y, softmax in zip(
        _output_names(plan.ends),
        plan.outputs,
        wanted,
        given,
        has_softmax,
        strict=True,
    ):
        if softmax:
            x = keras.ops.convert_to_numpy(keras.ops.softmax(x))
        answers.append(_compare_answers(name, layers[k], x, y.reshape(x.shape)))
    in_float, requantizations = find_departures(
        pathlib.Path(tflite).read_bytes()
    )
    result = Report(
        pathlib.Path(tflite),
        os.path.getsize(tflite),
        dict(collections.Counter(x.name for x in file.operations())),
        in_float,
        requantizations,
        answers[0].sqnr,
        answers[0].agreement,
        answers[0].mean_difference,
        tuple(answers),
        len(arrays[0]),
        len(compared[0]),
        tuple(
            layers.get(k, Layer(plan.steps[k - 1].name, "")) for k in numbers
        ),
    )
    if picture is not None:
        names, _, sqnr, own_sqnr, *_ = zip(*result.layers, strict=True)
        worst = [layer.name for layer in result.worst()]
        plot_layer_noise(names, sqnr, own_sqnr, worst, picture)
    return result


def _output_names(ends: Ends) -> list[str]:
    names = [*ends.output_names]
    for path, k in keras.tree.flatten_with_path(ends.output_structure):
        if any(isinstance(part, str) for part in path):
            names[k] = "/".join(map(str, path))
    return names


def _compare_answers(
    name: str, layer: Layer, wanted: np.ndarray, given: np.ndarray
) -> Answer:
    same = wanted.argmax(axis=-1) == given.argmax(axis=-1)
    return Answer(
        layer.sqnr,
        float(same.mean()) if wanted.shape[-1] > 1 else math.nan,
        float(np.abs(wanted - given).mean()),
        name,
    )


def _open(
    path: str | os.PathLike[str],
    shapes: Sequence[tuple[int, ...]],
    outputs: int,
) -> LiteRTModel:
    if not os.path.isfile(path):
        raise ValueError(
            f"`tflite` must be a file. Received: {os.fspath(path)!r}"
        )
    try:
        file = LiteRTModel(path, keep_tensors=True)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"`tflite` must be a LiteRT file. Received: {os.fspath(path)!r}"
        ) from error
    taken = [shape[1:] for shape in file.input_shapes.values()]
    if taken != list(shapes) or len(file.outputs) != outputs:
        raise ValueError(
            "`tflite` must take inputs of the model's shapes, "
            f"{', '.join(map(str, shapes))}, and give {outputs} outputs. "
            f"Received: {file.path!r}, which takes "
            f"{', '.join(map(str, taken))} and gives {len(file.outputs)}"
        )
    return file


def _compare(
    plan: Plan,
    watched: keras.Model,
    watching: Sequence[int],
    file: LiteRTModel,
    matched: Mapping[int, int],
    arrays: Sequence[np.ndarray],
) -> tuple[dict[int, Layer], list[np.ndarray]]:
    """Compares the matched tensors of a plan.

    Args:
        plan: the plan.
        watched: its float model, with more outputs.
        watching: the numbers of these outputs in the plan.
        file: the file.
        matched: numbers of its tensors by those of the plan's.
        arrays: for each input the examples to compare them on.

    Returns:
        Their figures by number; and the float model's answers.
    """
    answers: list[list[np.ndarray]] = [[] for _ in plan.outputs]
    in_file = file.tensors()
    tensors = {k: in_file[number] for k, number in matched.items()}
    sums = {k: np.zeros(5) for k in matched}
    count = len(arrays[0])
    for start in range(0, count, _HELD):
        parts = [x[start : start + _HELD] for x in arrays]
        batch = parts if len(parts) > 1 else parts[0]
        floats = dict(zip(watching, watched(batch), strict=True))
        values = file.values(batch, [*matched.values()])
        given = {
            k: x.reshape(floats[k].shape)
            for k, x in zip(matched, values, strict=True)
        }
        given[0] = parts[0]
        for of_output, k in zip(answers, plan.outputs, strict=True):
            of_output.append(keras.ops.convert_to_numpy(floats[k]))
        for k in matched:
            wanted = keras.ops.convert_to_numpy(floats[k])
            own = _run_step(plan, watched, parts, given, k)
            (low, high), margin = tensors[k].limits, tensors[k].scale / 2
            sums[k] += (
                _power(wanted),
                _power(wanted - given[k]),
                _power(own),
                _power(own - given[k]),
                float(((own < low - margin) | (own > high + margin)).sum()),
            )
    nodes = file.nodes()
    operations = {node.outputs[0]: node.operation.name for node in nodes}
    layers = {
        k: Layer(
            plan.steps[k - 1].name,
            operations.get(matched[k], "input"),
            _decibels(signal, noise),
            _decibels(own_signal, own_noise),
            float(cut_off / count / tensors[k].size),
            tensors[k].scale,
            tensors[k].limits,
        )
        for k, (signal, noise, own_signal, own_noise, cut_off) in sums.items()
    }
    return layers, list(map(np.concatenate, answers))


def _run_step(
    plan: Plan,
    model: keras.Model,
    examples: Sequence[np.ndarray],
    given: Mapping[int, Any],
    number: int,
) -> np.ndarray:
    """What a step's float layer makes of the nearest tensors before it."""
    step = plan.steps[number - 1]
    if step.kind == "Input":
        return examples[step.settings["index"]]
    inputs = [
        given[x] if x in given else _run_step(plan, model, examples, given, x)
        for x in step.inputs
    ]
    if step.kind == FLOAT_BARRIER:
        return inputs[0]
    if step.kind == FOREIGN:
        x = inputs if len(inputs) > 1 else inputs[0]
        outputs = call_foreign(step, x, step.settings["operation"])
        return keras.ops.convert_to_numpy(outputs[step.settings["output"]])
    name = step.layer_name if step.kind in KERNELS else step.name
    output = model.get_layer(name)(inputs if len(inputs) > 1 else inputs[0])
    return keras.ops.convert_to_numpy(output)


def _power(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _decibels(signal: float, noise: float) -> float:
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
