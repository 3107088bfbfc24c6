"""What users call to quantize: checks of arguments, then the work itself."""

import numbers
import os
import pathlib
import warnings
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import Literal
from typing import NamedTuple

from keras_muffnet._arguments import boolean
from keras_muffnet._arguments import limits
from keras_muffnet._arguments import positive_integer
from keras_muffnet.quantization import calibration
from keras_muffnet.quantization import targets
from keras_muffnet.quantization._modules import load_module
from keras_muffnet.quantization.saving import check_path
from keras_muffnet.quantization.saving import convert
from keras_muffnet.quantization.targets import TargetName

if TYPE_CHECKING:
    import keras

    from keras_muffnet.quantization.estimation import Estimator
    from keras_muffnet.quantization.reporting import Report

__all__ = [
    "Finished",
    "cluster",
    "finish",
    "prune",
    "quantize_aware",
    "quantize_post_training",
    "report",
]

Range = tuple[float, float]
Shape = tuple[int, ...]
Engine = Literal["tfmot", "keras"]


class Finished(NamedTuple):
    """What `finish` returns.

    Attributes:
        model: a float Keras 3 model with the weights that were trained.
        ranges: the limits of what is quantized, by name of the layer or of the
            part of it. `quantize_aware` takes them in place of images.
    """

    model: "keras.Model"
    ranges: dict[str, Range]


def quantize_aware(
    model: "keras.Model",
    calibration_data: Any,
    *,
    engine: Engine = "keras",
    input_shape: Shape | Sequence[Shape] | None = None,
    input_range: Range | None = None,
    float_layers: Iterable[str] | Literal["unknown"] = (),
    weight_bits: Mapping[str, int] | None = None,
    per_channel: bool | Mapping[str, bool] = True,
    target: TargetName = "litert",
    range_estimator: "Estimator" = "min-max",
) -> Any:
    """Makes a trainable copy of a model that computes as if in integers.

    Its activations are rounded within ranges that are found here, by running
    the float model on the calibration data, and stay as they are; kernels are
    rounded too, per output channel. Batch normalization is part of the kernels
    by then: its statistics do not change any more. Weights that are zero stay
    zero, so that a pruned model stays as sparse.

    The copy has the model's name, the names and the structure of its outputs,
    and its layers that are not trained; so it is compiled with the same losses
    and metrics. Weights outside kernels and batch normalization, such as those
    of PReLU, are constants in it; a warning names them. A softmax that the
    model ends in stays in training, in float; `convert` leaves it out of the
    file unless asked for. Regularizers and constraints of kernels stay, as if
    nothing were multiplied into these; a warning names those that have no
    place any more.

    ```python
    import keras
    from keras_muffnet import quantization

    quantized = quantization.quantize_aware(model, images)
    quantized.compile(
        keras.optimizers.SGD(5e-4), "sparse_categorical_crossentropy"
    )
    quantized.fit(images, labels)
    quantization.convert(quantized, "model.tflite")
    ```

    Args:
        model: a trained Keras 3 model, functional or sequential; or a subclass
            that was called before and whose `call` consists of Keras's layers
            and functions. It may have several inputs.
        calibration_data: some hundreds of examples of the training split,
            scaled as the model wants them, in any form that `predict` takes:
            an array `(n, height, width, channels)` of any numbers, a list or
            dict of arrays for several inputs, a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a generator or a PyTorch loader of
            batches, with labels or not. Of batches the first 1,000 examples
            are read. Or the ranges that `finish` gave.
        engine: "keras" or "tfmot"; see `keras_muffnet.quantization`.
        input_shape: size of the images, `(height, width, channels)`, for a
            model that takes several sizes; of several inputs a list of those
            of each. None takes the model's own.
        input_range: lowest and highest value of the scaled images. None takes
            that of a common scaling, (0, 1), (0, 255), (-1, 1) or that of
            `keras_muffnet.preprocess_input`, where the data nearly fill it,
            and otherwise the data's own.
        float_layers: names of layers to leave in float; those that cannot be
            quantized may be among them. "unknown" leaves all of these in
            float, and a warning says which they are. On JAX and PyTorch those
            of a class of your own must be registered; see `load`.
        weight_bits: 4 or 8 for the kernels of the layers named; others have 8.
        per_channel: whether each output channel of a kernel has a scale of its
            own, as is most exact. False gives each kernel one scale; a dict
            does so for the layers named, as in `{"conv1": False}`.
        target: what the file is to run on: "litert", "tflite-micro",
            "ethos-u", "edge-tpu" or "nnapi"; see
            `keras_muffnet.quantization.targets`. What it cannot run is named
            before anything is trained. Where it takes but one scale for a
            dense kernel, there is one.
        range_estimator: how the ranges of activations are found. "min-max"
            covers what batches of 100 examples need in the mean, and of less
            than 10,000 values all; "mse" has the least mean squared error, so
            that rare large values are cut off; "percentile" cuts off the 1e-5
            lowest and highest.

    Returns:
        A `keras.Model` or, with engine "tfmot", a `tf_keras.Model`, not
        compiled. Train it gently: SGD with a learning rate that decays from
        5e-4, or a tenth of it if the loss rises. Its `save` keeps the ranges
        and, once it is compiled, the optimizer's state; `load` reads them.

    Raises:
        ValueError: naming the layer and the reason, if the model has a layer
            that cannot be quantized; or if an argument is not as above.
        ImportError: if the packages for quantization are not installed.
    """
    return _quantize(
        model,
        calibration_data,
        engine=engine,
        input_shape=input_shape,
        input_range=input_range,
        target=target,
        range_estimator=range_estimator,
        bias_correction=False,
        trains=True,
        float_layers=float_layers,
        weight_bits=weight_bits,
        per_channel=per_channel,
    )


def _quantize(
    model: "keras.Model",
    calibration_data: Any,
    *,
    engine: Engine,
    input_shape: Shape | Sequence[Shape] | None,
    input_range: Range | None,
    target: TargetName,
    range_estimator: "Estimator",
    bias_correction: bool,
    trains: bool,
    **settings: Any,
) -> Any:
    """Plans, calibrates and builds; the settings are the plan's."""
    import keras

    from keras_muffnet.quantization.custom import modules_to_import
    from keras_muffnet.quantization.plan import plan_quantization
    from keras_muffnet.quantization.ranges import find_ranges

    if engine not in ("tfmot", "keras"):
        raise ValueError(
            f"`engine` must be 'keras' or 'tfmot'. Received: engine={engine!r}"
        )
    if range_estimator not in ("min-max", "percentile", "mse"):
        raise ValueError(
            "`range_estimator` must be 'min-max', 'percentile' or 'mse'. "
            f"Received: range_estimator={range_estimator!r}"
        )
    if input_range is not None:
        limits("input_range", input_range)
    boolean("bias_correction", bias_correction)
    targets.check_name(target)
    model = _functional(model)
    planned = plan_quantization(
        model, input_shapes=_checked_shapes(input_shape, model), **settings
    )
    planned = planned._replace(steps=targets.fit_steps(planned.steps, target))
    foreign = {
        step.sources[0]: step.settings["operation"]
        for step in planned.steps
        if step.kind == "Foreign"
    }
    if engine == "tfmot" and foreign:
        raise ValueError(
            "`engine` must be 'keras' for a model with layers that are left in "
            f"float for want of a rule: {', '.join(foreign)}. "
            "Received: engine='tfmot'"
        )
    if foreign and keras.backend.backend() != "tensorflow":
        # Not after training: `convert` could not write the file.
        modules_to_import(foreign.values())
    if trains:
        _warn_of_lost(planned, engine)
    build = load_module(f"{engine}_engine").build
    inputs = [step.name for step in planned.steps[: len(model.inputs)]]
    if _are_ranges(calibration_data):
        if input_range is not None:
            raise ValueError(
                "`input_range` must be None if `calibration_data` are ranges, "
                f"which hold it. Received: input_range={input_range!r}"
            )
        found = _checked_ranges(calibration_data, planned)
    else:
        data = calibration.read_data(
            calibration_data, model, shapes=planned.input_shapes
        )
        bounds = calibration.input_limits(data, model, input_range)
        estimation = load_module("estimation")
        if range_estimator == "min-max" and not bias_correction:
            calibrate = load_module("keras_engine").calibrate
            found = calibrate(planned, data if len(data) > 1 else data[0])
        else:
            observed = estimation.observe(planned, data)
            found = estimation.estimate(observed, range_estimator)
            if bias_correction:
                planned = estimation.correct_biases(planned, observed.means)
        found.update(zip(inputs, bounds, strict=True))
    return build(planned, find_ranges(planned, found, found[inputs[0]]))


def _warn_of_lost(planned: Any, engine: Engine) -> None:
    """Says what of the float model's training goes on in another way."""
    lost = [*planned.lost]
    if engine == "tfmot":
        lost += [
            f"{step.sources[0]}.{name}"
            for step in planned.steps
            for name in step.penalties
        ]
        moved = [s.sources[0] for s in planned.steps if not s.trains_bias]
        if moved:
            warnings.warn(
                "Batch normalization that is not trained changes its shift "
                "with engine 'tfmot', where it is the bias of these layers: "
                f"{', '.join(dict.fromkeys(moved))}",
                stacklevel=4,
            )
    if planned.constant:
        warnings.warn(
            "These weights are not trained further, as they are constants in "
            f"the model that is quantized: {', '.join(planned.constant)}",
            stacklevel=4,
        )
    if lost:
        warnings.warn(
            "These regularizers and constraints have no place in the model "
            f"that is quantized: {', '.join(dict.fromkeys(lost))}",
            stacklevel=4,
        )


def _are_ranges(data: Any) -> bool:
    """Whether calibration data are ranges by name, not arrays."""
    return isinstance(data, Mapping) and all(
        isinstance(x, (tuple, list)) and len(x) == 2 for x in data.values()
    )


def quantize_post_training(
    model: "keras.Model",
    calibration_data: Any,
    path: str | os.PathLike[str],
    *,
    input_shape: Shape | Sequence[Shape] | None = None,
    input_range: Range | None = None,
    float_layers: Iterable[str] | Literal["unknown"] = (),
    weight_bits: Mapping[str, int] | None = None,
    per_channel: bool | Mapping[str, bool] = True,
    target: TargetName = "litert",
    range_estimator: "Estimator" = "mse",
    bias_correction: bool = True,
    io_dtype: str = "int8",
    softmax: bool = False,
    labels: Sequence[str] | None = None,
    normalization: tuple[float, float] | None = None,
) -> pathlib.Path:
    """Writes a model as a quantized LiteRT file, without training it.

    What `quantize_aware` and `convert` do, one after the other. Without
    training the ranges of least error and corrected biases are the default:
    on 1,000 photos they are closer to the float model.

    ```python
    from keras_muffnet import quantization

    quantization.quantize_post_training(model, images, "model.tflite")
    ```

    Args:
        model: see `quantize_aware`.
        calibration_data: images; see `quantize_aware`.
        path: where to write, ending in `.tflite`.
        input_shape: see `quantize_aware`.
        input_range: see `quantize_aware`.
        float_layers: see `quantize_aware`.
        weight_bits: see `quantize_aware`.
        per_channel: see `quantize_aware`.
        target: see `quantize_aware`.
        range_estimator: see `quantize_aware`.
        bias_correction: whether what the rounding of a kernel adds to each
            channel's mean is taken out of its bias. Not if `calibration_data`
            are ranges.
        io_dtype: see `convert`.
        softmax: see `convert`.
        labels: see `convert`.
        normalization: see `convert`.

    Returns:
        The path.

    Raises:
        ValueError, ImportError, RuntimeError: as those do.
    """
    check_path(path)
    boolean("softmax", softmax)
    quantized = _quantize(
        model,
        calibration_data,
        engine="keras",
        input_shape=input_shape,
        input_range=input_range,
        target=target,
        range_estimator=range_estimator,
        bias_correction=bias_correction,
        trains=False,
        float_layers=float_layers,
        weight_bits=weight_bits,
        per_channel=per_channel,
    )
    return convert(
        quantized,
        path,
        target=target,
        io_dtype=io_dtype,
        softmax=softmax,
        labels=labels,
        normalization=normalization,
    )


def prune(model: "keras.Model", sparsity: float, steps: int) -> Any:
    """Makes a float copy of a model whose kernels lose weights in training.

    tfmot sets the smallest weights of each convolution and dense layer to zero,
    more and more of them; the first convolution and depthwise ones stay whole.
    Train the copy as gently as a quantized one, for `steps` steps, with
    `tensorflow_model_optimization.sparsity.keras.UpdatePruningStep()` among the
    callbacks. Then `finish` brings the weights back, and `quantize_aware` keeps
    the zeros. A `.tflite` file is as large as before, but compresses better.

    Args:
        model: see `quantize_aware`.
        sparsity: share of each kernel that is zero in the end, in (0, 1).
        steps: number of training steps. The share rises over the first three
            quarters of them.

    Returns:
        A `tf_keras.Model`, not compiled.

    Raises:
        ValueError: as `quantize_aware`, or if an argument is not as above.
        ImportError: if the packages for quantization are not installed.
    """
    from keras_muffnet.quantization import plan

    if not isinstance(sparsity, numbers.Real) or not 0 < sparsity < 1:
        raise ValueError(
            "`sparsity` must be a number that lies between 0 and 1. "
            f"Received: {sparsity!r}"
        )
    positive_integer("steps", steps)
    planned = plan.plan_quantization(_functional(model))
    return load_module("tfmot_engine").build_prunable(planned, sparsity, steps)


def cluster(model: "keras.Model", clusters: int) -> Any:
    """Makes a float copy of a model whose kernels have few values each.

    tfmot lets the weights of each convolution and dense layer share a few
    values, which are trained; the first convolution and depthwise ones stay as
    they are. Train the copy gently, bring its weights back with `finish`, and
    use `quantize_post_training`: training under fake quantization would move
    the weights apart again.

    Args:
        model: see `quantize_aware`.
        clusters: number of values of each kernel, at least 2. They are those
            of the kernel with the batch normalization multiplied in. A kernel
            of no more weights stays as it is.

    Returns:
        A `tf_keras.Model`, not compiled.

    Raises:
        ValueError: as `quantize_aware`, or if an argument is not as above.
        ImportError: if the packages for quantization are not installed.
    """
    from keras_muffnet.quantization import plan

    if positive_integer("clusters", clusters) < 2:
        raise ValueError(
            f"`clusters` must be at least 2. Received: {clusters!r}"
        )
    planned = plan.plan_quantization(_functional(model))
    return load_module("tfmot_engine").build_clusterable(planned, clusters)


def finish(quantized_model: Any, model: "keras.Model") -> Finished:
    """Brings trained weights, and the ranges, back to a Keras 3 model.

    ```python
    from keras_muffnet import quantization

    quantized = quantization.quantize_aware(model, images)
    trained, ranges = quantization.finish(quantized, model)
    ```

    Args:
        quantized_model: what `quantize_aware`, `prune` or `cluster` returned,
            trained.
        model: the model that it was made of. It is left as it is.

    Returns:
        The float model and its ranges, of which a model that was not quantized
        has none. In place of a subclassed model it is a functional one of the
        same layers.

    Raises:
        ValueError: if the two do not belong together.
    """
    model = _functional(model)
    return Finished(*load_module("weights").finish(quantized_model, model))


def report(
    model: "keras.Model",
    tflite: str | os.PathLike[str],
    data: Any,
    *,
    picture: str | os.PathLike[str] | None = None,
) -> "Report":
    """Compares a LiteRT file with the float model, layer by layer.

    For when accuracy fell: it says which layers lose most, and whether a
    layer makes an error or passes one on.

    ```python
    from keras_muffnet import quantization

    quantization.quantize_post_training(model, images, "int8.tflite")
    print(quantization.report(model, "int8.tflite", images[:100]))
    ```

    Args:
        model: the float Keras 3 model, such as `finish` gives.
        tflite: the file, of `convert` or of the LiteRT converter itself, made
            of that model. Its layers are found by their names; those that are
            not found are listed.
        data: some dozens of examples, in any form of `calibration_data` of
            `quantize_aware`. The layers are compared on the first 32, the
            outputs on all.
        picture: where to draw the layers' signal-to-noise ratios, such as
            "report.png"; its suffix gives the format.

    Returns:
        A `Report`: printed, a table. Its attributes are the figures:
        signal-to-quantization-noise ratios in dB, shares of values cut off,
        float operations and requantizations, agreement of the top classes.

    Raises:
        ValueError: if the file is none of this model, or another argument is
            not as above; or naming the layer, if the model has one that
            cannot be quantized.
        ImportError: if the packages for quantization, or for a picture
            matplotlib, are not installed.
    """
    model = _functional(model)
    return load_module("reporting").report(model, tflite, data, picture)


def _checked_shapes(given: Any, model: Any) -> list[Shape] | None:
    """A size for each input."""
    if given is None:
        return None
    own = [tuple(x.shape[1:]) for x in model.inputs]
    try:
        several = all(isinstance(x, (tuple, list)) for x in given)
        shapes = [tuple(x) for x in given] if several else [tuple(given)]
    except TypeError:
        shapes = []
    fits = len(shapes) == len(own) and all(
        len(shape) == len(wanted)
        and all(
            isinstance(size, numbers.Integral)
            and int(size) > 0
            and known in (None, size)
            for size, known in zip(shape, wanted, strict=True)
        )
        for shape, wanted in zip(shapes, own, strict=False)
    )
    if not fits:
        raise ValueError(
            "`input_shape` must fit the model's inputs, of shape "
            f"{', '.join(map(str, own))} without the batch axis. "
            f"Received: input_shape={given!r}"
        )
    return [tuple(map(int, shape)) for shape in shapes]


def _functional(model: Any) -> Any:
    """The model, if it is one of Keras 3, with its calls to be followed."""
    import keras

    from keras_muffnet.graph import as_functional

    if isinstance(model, keras.Model):
        if load_module("weights").read_ranges(model):
            raise ValueError(
                "`model` must be a float model. Received: "
                f"{model!r}, which `quantize_aware` returned; `finish` gives "
                "the float model of it"
            )
        return as_functional(model)
    kind = type(model)
    old = any(c.__module__.startswith("tf_keras.") for c in kind.__mro__)
    raise ValueError(
        f"`model` must be a Keras 3 model. Received: {model!r}"
        + (
            f", of tf_keras ({kind.__module__}). Build it again with the same "
            "layers of `keras` and copy the weights: "
            "`new_model.set_weights(model.get_weights())`"
            if old
            else ""
        )
    )


def _checked_ranges(ranges: Mapping[str, Range], plan: Any) -> dict:
    needed = [s.name for s in plan.steps if s.range is not None]
    missing = [name for name in needed if name not in ranges]
    if missing:
        raise ValueError(
            "`calibration_data` must be images or have a range for each "
            f"quantized layer. Missing: {', '.join(missing)}"
        )
    return {
        name: limits(f"calibration_data[{name!r}]", x)
        for name, x in ranges.items()
    }
