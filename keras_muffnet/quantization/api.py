"""What users call: checks of arguments, then the modules that do the work."""

import importlib
import json
import numbers
import os
import pathlib
import zipfile
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import Literal
from typing import NamedTuple

import numpy as np

from keras_muffnet._arguments import positive_integer
from keras_muffnet._files import written_aside
from keras_muffnet.litert.metadata import embed_metadata

if TYPE_CHECKING:
    import keras

    from keras_muffnet.quantization.reporting import Report

__all__ = [
    "Finished",
    "cluster",
    "convert",
    "finish",
    "load",
    "prune",
    "quantize_aware",
    "quantize_post_training",
    "report",
]

Range = tuple[float, float]
Engine = Literal["tfmot", "keras"]
Precision = Literal["int8", "int16", "float16", "dynamic_range"]

# How images are scaled that no range is given for: the first of these that the
# calibration data fits in, with the mean and the standard deviation in pixels.
# All but the last put each pixel exactly on a level; the second is that of
# `keras_muffnet.preprocess_input`.
_NORMALIZATIONS = {
    (0.0, 1.0): (0.0, 255.0),
    (-1.0, 127 / 128): (128.0, 128.0),
    (0.0, 255.0): (0.0, 1.0),
    (-1.0, 1.0): (127.5, 127.5),
}


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
    calibration_data: np.ndarray | Mapping[str, Range],
    *,
    engine: Engine = "tfmot",
    input_range: Range | None = None,
    float_layers: Iterable[str] = (),
    weight_bits: Mapping[str, int] | None = None,
) -> Any:
    """Makes a trainable copy of a model that computes as if in integers.

    Its activations are rounded within ranges that are found here, by running
    the float model on the calibration data, and stay as they are; kernels are
    rounded too, per output channel. Batch normalisation is part of the kernels
    by then: its statistics do not change any more. Weights that are zero stay
    zero, so that a pruned model stays as sparse.

    The copy gives logits: a softmax at the model's end is left out. In int8 a
    probability is a multiple of 1/256, so that close classes tie.

    Args:
        model: a trained functional or sequential Keras 3 model of one input, a
            batch of channels-last images of fixed size.
        calibration_data: float images `(n, height, width, channels)`, scaled
            as the model wants them; some hundreds of the training split. Or
            the ranges that `finish` gave.
        engine: "tfmot" or "keras"; see above.
        input_range: lowest and highest value of the scaled images. None finds
            it in the data, where it is (0, 1), (0, 255) or that of
            `keras_muffnet.preprocess_input`, and otherwise takes the data's.
        float_layers: names of layers to leave in float.
        weight_bits: 4 or 8 for the kernels of the layers named; others have 8.

    Returns:
        A `tf_keras.Model` or, with engine "keras", a `keras.Model`, not
        compiled. Train it gently: SGD with a learning rate that decays from
        5e-4 or less. Its `save` keeps the ranges and, once it is compiled, the
        optimizer's state; `load` reads them.

    Raises:
        ValueError: naming the layer and the reason, if the model has a layer
            that cannot be quantized; or if an argument is not as above.
        ImportError: if the packages for quantization are not installed.
    """
    from keras_muffnet.quantization import plan

    if engine not in ("tfmot", "keras"):
        raise ValueError(
            f"`engine` must be 'tfmot' or 'keras'. Received: engine={engine!r}"
        )
    planned = plan.plan_quantization(
        model, float_layers=float_layers, weight_bits=weight_bits
    )
    build = _load(f"{engine}_engine").build
    if isinstance(calibration_data, Mapping):
        if input_range is not None:
            raise ValueError(
                "`input_range` must be None if `calibration_data` are ranges, "
                f"which hold it. Received: input_range={input_range!r}"
            )
        found = _checked_ranges(calibration_data, planned)
        limits = found[plan.INPUT_RANGE]
    else:
        limits = _checked_input_range(
            calibration_data, planned, model, input_range
        )
        calibrate = _load("keras_engine").calibrate
        found = calibrate(planned, calibration_data)
    return build(planned, plan.find_ranges(planned, found, limits))


def quantize_post_training(
    model: "keras.Model",
    calibration_data: np.ndarray,
    path: str | os.PathLike[str],
    *,
    input_range: Range | None = None,
    float_layers: Iterable[str] = (),
    weight_bits: Mapping[str, int] | None = None,
    io_dtype: str = "int8",
    labels: Sequence[str] | None = None,
    normalization: tuple[float, float] | None = None,
) -> pathlib.Path:
    """Writes a model as a quantized LiteRT file, without training it.

    What `quantize_aware` and `convert` do, one after the other, with the
    engine "keras".

    Args:
        model: see `quantize_aware`.
        calibration_data: images; see `quantize_aware`.
        path: where to write, ending in `.tflite`.
        input_range: see `quantize_aware`.
        float_layers: see `quantize_aware`.
        weight_bits: see `quantize_aware`.
        io_dtype: see `convert`.
        labels: see `convert`.
        normalization: see `convert`.

    Returns:
        The path.

    Raises:
        ValueError, ImportError, RuntimeError: as those do.
    """
    _check_path(path)
    quantized = quantize_aware(
        model,
        calibration_data,
        engine="keras",
        input_range=input_range,
        float_layers=float_layers,
        weight_bits=weight_bits,
    )
    return convert(
        quantized,
        path,
        io_dtype=io_dtype,
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
        A `tf_keras.Model` that gives logits, not compiled.

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
    planned = plan.plan_quantization(model)
    return _load("tfmot_engine").build_prunable(planned, sparsity, steps)


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
            of the kernel with the batch normalisation multiplied in. A kernel
            of no more weights stays as it is.

    Returns:
        A `tf_keras.Model` that gives logits, not compiled.

    Raises:
        ValueError: as `quantize_aware`, or if an argument is not as above.
        ImportError: if the packages for quantization are not installed.
    """
    from keras_muffnet.quantization import plan

    if positive_integer("clusters", clusters) < 2:
        raise ValueError(
            f"`clusters` must be at least 2. Received: {clusters!r}"
        )
    planned = plan.plan_quantization(model)
    return _load("tfmot_engine").build_clusterable(planned, clusters)


def finish(quantized_model: Any, model: "keras.Model") -> Finished:
    """Brings trained weights, and the ranges, back to a Keras 3 model.

    Args:
        quantized_model: what `quantize_aware`, `prune` or `cluster` returned,
            trained.
        model: the model that it was made of. It is left as it is.

    Returns:
        The float model and its ranges, of which a model that was not quantized
        has none.

    Raises:
        ValueError: if the two do not belong together.
    """
    return Finished(*_load("weights").finish(quantized_model, model))


def convert(
    model: Any,
    path: str | os.PathLike[str],
    *,
    precision: Precision = "int8",
    io_dtype: str = "int8",
    labels: Sequence[str] | None = None,
    normalization: tuple[float, float] | None = None,
    calibration_data: np.ndarray | None = None,
) -> pathlib.Path:
    """Writes a model as a LiteRT file, for one image at a time.

    Where the scaling of its images is known, the file has TFLite Metadata,
    which tells mobile tools of it and of the classes.

    Args:
        model: what `quantize_aware` returned, trained or not, for "int8";
            otherwise a float Keras 3 model of one input, such as `finish`
            gives.
        path: where to write, ending in `.tflite`. The file appears once it is
            complete and checked.
        precision: "int8": weights and activations are what `quantize_aware`
            made them. "float16": weights of 16 bits, float activations.
            "dynamic_range": int8 weights; activations are float between
            operations, and quantized as each operation needs them. "int16":
            int8 weights and activations of 16 bits, whose ranges the converter
            finds itself; without shared ranges, and several times slower.
        io_dtype: type of the input and the output for "int8": "int8", "uint8"
            or "float32". Those of the other precisions are float32.
        labels: names of the classes, for the metadata.
        normalization: mean and standard deviation, in pixels of 0 to 255, that
            the model's images are scaled with; (128, 128) for
            `keras_muffnet.preprocess_input`. None takes what the input's range
            implies, where `quantize_aware` knew it. Neither this nor labels
            can be given but for 1 or 3 channels and one output.
        calibration_data: images as in `quantize_aware`, for "int16" alone.

    Returns:
        The path.

    Raises:
        ValueError: if the model was not made by `quantize_aware` or is not a
            float one, or another argument is not as above.
        RuntimeError: naming the operations, if any of the file's operations
            comes out in float that should not, or reads a variable.
        ImportError: if the packages for quantization are not installed.
    """
    path = _check_path(path)
    if precision not in ("int8", "int16", "float16", "dynamic_range"):
        raise ValueError(
            "`precision` must be 'int8', 'int16', 'float16' or "
            f"'dynamic_range'. Received: precision={precision!r}"
        )
    if io_dtype not in ("int8", "uint8", "float32"):
        raise ValueError(
            "`io_dtype` must be 'int8', 'uint8' or 'float32'. "
            f"Received: io_dtype={io_dtype!r}"
        )
    ranges = _load("weights").read_ranges(model)
    _check_model(model, precision, ranges)
    if precision == "int16":
        _check_images(calibration_data, tuple(model.input_shape[1:]))
    normalization = _checked_normalization(
        normalization, model, labels, ranges.get("input_range")
    )
    conversion = _load("conversion")
    if precision == "int8":
        content = conversion.convert_quantized(model, io_dtype)
    else:
        content = conversion.convert_float(model, precision, calibration_data)
    if normalization is not None:
        mean, std = normalization
        content = embed_metadata(
            content, name=model.name, labels=labels, mean=mean, std=std
        )
    with written_aside(path) as aside:
        aside.write_bytes(content)
    return path


def load(path: str | os.PathLike[str]) -> Any:
    """Reads a model that was saved after `quantize_aware`.

    Args:
        path: the `.keras` file that its `save` wrote.

    Returns:
        The model, with its ranges and, if it was compiled, the optimizer and
        its state: training goes on as if it had not been interrupted.

    Raises:
        ValueError: if the file is not of that kind.
        ImportError: if the packages for quantization are not installed.
    """
    try:
        with zipfile.ZipFile(path) as file:
            version = json.loads(file.read("metadata.json"))["keras_version"]
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"`path` must be a `.keras` file. Received: {os.fspath(path)!r}"
        ) from error
    if version.startswith("3."):
        _load("keras_engine")
        import keras

        model = keras.saving.load_model(path)
    else:
        _load("tfmot_engine")
        import tf_keras

        model = tf_keras.models.load_model(path)
    if not _load("weights").read_ranges(model):
        raise ValueError(
            "`path` must hold a model that `quantize_aware` made. "
            f"Received: {os.fspath(path)!r}"
        )
    return model


def report(
    model: "keras.Model",
    tflite: str | os.PathLike[str],
    data: np.ndarray,
    *,
    picture: str | os.PathLike[str] | None = None,
) -> "Report":
    """Compares a LiteRT file with the float model, layer by layer.

    For when accuracy fell: it says which layers lose most, and whether a
    layer makes an error or passes one on.

        report = quantization.report(model, "model.tflite", images[:100])
        print(report)

    Args:
        model: the float Keras 3 model, such as `finish` gives.
        tflite: the file, of `convert` or of the LiteRT converter itself, made
            of that model. Its layers are found by their names; those that are
            not found are listed.
        data: float images `(n, height, width, channels)`, scaled as the model
            wants them; some dozens. The layers are compared on the first 32,
            the outputs on all.
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
    return _load("reporting").report(model, tflite, data, picture)


def _check_path(path: str | os.PathLike[str]) -> pathlib.Path:
    if pathlib.Path(path).suffix != ".tflite":
        raise ValueError(f"`path` must end in '.tflite'. Received: {path!r}")
    return pathlib.Path(path)


def _check_model(
    model: Any, precision: str, ranges: Mapping[str, Range]
) -> None:
    import keras

    if precision == "int8":
        wanted, fits = "a model that `quantize_aware` returned", bool(ranges)
    else:
        wanted = "a float Keras 3 model of one input"
        # A sequential model that is not built has none.
        inputs = getattr(model, "inputs", None) or ()
        is_float = isinstance(model, keras.Model) and not ranges
        fits = is_float and len(inputs) == 1
    if not fits:
        raise ValueError(
            f"`model` must be {wanted} for precision {precision!r}. "
            f"Received: {model!r}"
        )


def _checked_normalization(
    normalization: Any,
    model: Any,
    labels: Sequence[str] | None,
    input_range: Range | None,
) -> tuple[float, float] | None:
    """The scaling for the metadata; None for a file without them."""
    channels, outputs = model.input_shape[-1], len(model.outputs)
    if channels not in (1, 3) or outputs != 1:
        if labels is None and normalization is None:
            return None
        raise ValueError(
            "`labels` and `normalization` are for a model of images with 1 or "
            "3 channels, and of one output. Received: a model with "
            f"{channels} channels and {outputs} outputs"
        )
    if normalization is None:
        if input_range is not None:
            normalization = _NORMALIZATIONS.get(input_range)
        if normalization is None and labels is not None:
            raise ValueError(
                "`normalization` must be given with `labels`, since the "
                "scaling of the model's images is not known"
            )
    elif (
        not isinstance(normalization, (tuple, list)) or len(normalization) != 2
    ):
        raise ValueError(
            "`normalization` must be a mean and a standard deviation. "
            f"Received: {normalization!r}"
        )
    return normalization


def _checked_ranges(ranges: Mapping[str, Range], plan: Any) -> dict:
    needed = [s.name for s in plan.steps if s.range is not None]
    missing = [name for name in needed if name not in ranges]
    if missing:
        raise ValueError(
            "`calibration_data` must be images or have a range for each "
            f"quantized layer. Missing: {', '.join(missing)}"
        )
    return dict(ranges)


def _checked_input_range(
    data: Any, plan: Any, model: Any, limits: Range | None
) -> Range:
    """Checks the calibration data and says within what limits images lie."""
    _check_images(data, plan.input_shape)
    low, high = float(data.min()), float(data.max())
    if limits is not None:
        if not limits[0] <= low <= high <= limits[1]:
            raise ValueError(
                "`calibration_data` must lie within `input_range`, "
                f"{tuple(limits)}. Received: values in [{low}, {high}]"
            )
        return float(limits[0]), float(limits[1])
    _check_scale(low, high, model)
    for limits in _NORMALIZATIONS:
        if limits[0] <= low and high <= limits[1]:
            return limits
    return low, high


def _check_images(data: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(data, np.ndarray) or data.dtype.kind != "f":
        found = getattr(data, "dtype", type(data).__name__)
        raise ValueError(
            "`calibration_data` must be a float array, scaled as the model "
            f"wants its images. Received: {found}"
        )
    if data.ndim != 4 or data.shape[1:] != shape or not len(data):
        raise ValueError(
            "`calibration_data` must have shape (n, "
            f"{', '.join(map(str, shape))}), with n at least 1. "
            f"Received: an array of shape {data.shape}"
        )
    low, high = data.min(), data.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(
            "`calibration_data` must be finite. Received: values in "
            f"[{low}, {high}]"
        )


def _check_scale(low: float, high: float, model: Any) -> None:
    """Raises if pixels seem to be scaled twice or not at all."""
    from keras_muffnet.graph import trace

    first = trace(model).calls[0].operation
    scales = type(first).__name__ in ("Rescaling", "Normalization")
    if low >= 0 and high > 2 and not scales:
        raise ValueError(
            "`calibration_data` must be scaled as in training: it holds pixels "
            f"in [{low}, {high}], and the model starts without a Rescaling "
            "layer. Scale them, with `keras_muffnet.preprocess_input` for "
            "instance, or give `input_range=(0, 255)` if it was trained on "
            "such pixels"
        )
    if scales and low >= -2 and high <= 2:
        raise ValueError(
            "`calibration_data` must be scaled as in training: it holds values "
            f"in [{low}, {high}], and the model starts with layer "
            f"{first.name!r}, which scales pixels of 0 to 255 itself. Give "
            "`input_range` if it was trained on such values"
        )


def _load(module: str) -> Any:
    """Imports one of the modules that need more packages."""
    try:
        return importlib.import_module(f"{__package__}.{module}")
    except ImportError as error:
        if (error.name or "").startswith("keras_muffnet"):
            raise
        raise ImportError(
            f"Quantization needs {error.name}: "
            'pip install "keras-muffnet[quantization]"'
        ) from error
