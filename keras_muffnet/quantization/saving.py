"""Quantized models on disk: LiteRT files, and `.keras` files to train on."""

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal

from keras_muffnet._arguments import boolean
from keras_muffnet._files import written_aside
from keras_muffnet.litert.metadata import embed_metadata
from keras_muffnet.quantization._modules import load_module
from keras_muffnet.quantization.calibration import NORMALIZATIONS
from keras_muffnet.quantization.calibration import read_data
from keras_muffnet.quantization.targets import TargetName
from keras_muffnet.quantization.targets import check_file
from keras_muffnet.quantization.targets import check_name

__all__ = ["convert", "load"]

Range = tuple[float, float]
Precision = Literal["int8", "int16", "float16", "dynamic_range"]


def convert(
    model: Any,
    path: str | os.PathLike[str],
    *,
    precision: Precision = "int8",
    target: TargetName = "litert",
    io_dtype: str = "int8",
    softmax: bool = False,
    labels: Sequence[str] | None = None,
    normalization: tuple[float, float] | None = None,
    crop: float | None = None,
    calibration_data: Any = None,
) -> pathlib.Path:
    """Writes a model as a LiteRT file, for one image at a time.

    Where the scaling of its images is known, the file has TFLite Metadata,
    from which mobile tools read it and the classes.

    ```python
    from keras_muffnet import quantization

    quantized = quantization.quantize_aware(model, images)
    quantization.convert(quantized, "int8.tflite")
    quantization.convert(model, "float16.tflite", precision="float16")
    ```

    Args:
        model: what `quantize_aware` returned, trained or not, for "int8";
            otherwise a float Keras 3 model, such as `finish` gives.
        path: where to write, ending in `.tflite`. The file appears once it is
            complete and checked.
        precision: "int8": weights and activations are what `quantize_aware`
            made them. "float16": weights of 16 bits, float activations.
            "dynamic_range": int8 weights; activations are float between
            operations, and quantized as each operation needs them. "int16":
            int8 weights and activations of 16 bits, whose ranges the converter
            finds itself; without shared ranges, and several times slower. The
            model's inputs have to be float32.
        target: what the file is to run on, for "int8"; see `quantize_aware`.
        io_dtype: type of the input and the output for "int8": "int8", "uint8"
            or "float32". Those of the other precisions are the model's.
        softmax: whether an int8 file ends in the softmax that the model ends
            in. By default it ends in logits: in int8 a probability is a
            multiple of 1/256, so that close classes tie.
        labels: names of the classes, for the metadata.
        normalization: mean and standard deviation, in pixels of 0 to 255, that
            the model's images are scaled with; (128, 128) for
            `keras_muffnet.preprocess_input`. None takes what the input's range
            implies, where `quantize_aware` knew it. Neither this nor labels
            can be given but for 1 or 3 channels and one output.
        crop: how images get the model's size, for the metadata; see
            `keras_muffnet.preprocessing.Preprocessing`.
        calibration_data: as in `quantize_aware`, for "int16" alone.

    Returns:
        The path.

    Raises:
        ValueError: if the model was not made by `quantize_aware` or is not a
            float one, or another argument is not as above; or naming the
            operations or kernels that the target cannot run.
        RuntimeError: naming the operations, if LiteRT lacks one, or if any of
            the file's operations comes out in float that should not, or reads
            a variable.
        ImportError: if the packages for quantization are not installed.
    """
    path = check_path(path)
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
    boolean("softmax", softmax)
    if precision != "int8" and (softmax or io_dtype == "uint8"):
        raise ValueError(
            "`softmax` and `io_dtype` are for precision 'int8': other files "
            "end as the model does, in float32. "
            f"Received: {precision=}, {softmax=}, {io_dtype=}"
        )
    check_name(target)
    if target != "litert" and precision != "int8":
        raise ValueError(
            "`target` must be 'litert' unless `precision` is 'int8'. "
            f"Received: target={target!r}, precision={precision!r}"
        )
    if calibration_data is not None and precision != "int16":
        raise ValueError(
            "`calibration_data` must be None unless `precision` is 'int16'. "
            f"Received: precision={precision!r} and calibration data"
        )
    ranges = load_module("weights").read_ranges(model)
    _check_model(model, precision, ranges)
    arrays = None
    if precision == "int16":
        arrays = read_data(calibration_data, model)
    normalization = _checked_normalization(
        normalization, model, labels, ranges.get("input_range")
    )
    if crop is not None and normalization is None:
        raise ValueError(
            "`crop` must be None for a file without metadata, which has one "
            "where the scaling of its images is known: see `normalization`. "
            f"Received: crop={crop!r}"
        )
    conversion = load_module("conversion")
    if precision == "int8":
        content = conversion.convert_quantized(model, io_dtype, softmax)
        check_file(content, io_dtype, target)
    else:
        content = conversion.convert_float(model, precision, arrays)
    if normalization is not None:
        mean, std = normalization
        content = embed_metadata(
            content,
            name=model.name,
            labels=labels,
            mean=mean,
            std=std,
            crop=crop,
        )
    with written_aside(path) as aside:
        aside.write_bytes(content)
    return path


def load(path: str | os.PathLike[str]) -> Any:
    """Reads a model that was saved after `quantize_aware`.

    ```python
    from keras_muffnet import quantization

    quantization.quantize_aware(model, images).save("quantized.keras")
    quantized = quantization.load("quantized.keras")
    ```

    Args:
        path: the `.keras` file that its `save` wrote. Layers of a class of
            your own that were left in float must be registered, by
            `keras.saving.register_keras_serializable`, before it is read.

    Returns:
        The model, with its ranges and, if it was compiled, the optimizer and
        its state: training continues as if it had not been interrupted.

    Raises:
        ValueError: if the file is not of that kind.
        ImportError: if the packages for quantization are not installed.
    """
    try:
        with zipfile.ZipFile(path) as file:
            version = json.loads(file.read("metadata.json"))["keras_version"]
    except (
        zipfile.BadZipFile,
        IsADirectoryError,
        KeyError,
        json.JSONDecodeError,
    ) as error:
        raise ValueError(
            f"`path` must be a `.keras` file. Received: {os.fspath(path)!r}"
        ) from error
    if version.startswith("3."):
        load_module("keras_engine")
        import keras

        model = keras.saving.load_model(path)
    else:
        load_module("tfmot_engine")
        import tf_keras

        model = tf_keras.models.load_model(path)
    if not load_module("weights").read_ranges(model):
        raise ValueError(
            "`path` must hold a model that `quantize_aware` made. "
            f"Received: {os.fspath(path)!r}"
        )
    return model


def check_path(path: str | os.PathLike[str]) -> pathlib.Path:
    is_path = isinstance(path, (str, os.PathLike))
    if not is_path or pathlib.Path(path).suffix != ".tflite":
        raise ValueError(f"`path` must end in '.tflite'. Received: {path!r}")
    return pathlib.Path(path)


def _check_model(
    model: Any, precision: str, ranges: Mapping[str, Range]
) -> None:
    import keras

    if precision == "int8":
        wanted, fits = "a model that `quantize_aware` returned", bool(ranges)
    else:
        wanted = "a float, built Keras 3 model"
        # A sequential model that is not built has none.
        inputs = getattr(model, "inputs", None) or ()
        is_float = isinstance(model, keras.Model) and not ranges
        fits = is_float and len(inputs) > 0
    if not fits:
        raise ValueError(
            f"`model` must be {wanted} for precision {precision!r}. "
            f"Received: {model!r}"
        )
    dtypes = [x.dtype for x in model.inputs]
    if precision == "int16" and {*dtypes} != {"float32"}:
        raise ValueError(
            "`model` must have inputs of float32 for precision 'int16': LiteRT "
            f"does not cast others to 16 bits. Received: {', '.join(dtypes)}"
        )


def _checked_normalization(
    normalization: Any,
    model: Any,
    labels: Sequence[str] | None,
    input_range: Range | None,
) -> tuple[float, float] | None:
    """The scaling for the metadata; None for a file without them."""
    channels, outputs = model.inputs[0].shape[-1], len(model.outputs)
    is_image = len(model.inputs) == 1 and len(model.inputs[0].shape) == 4
    if not is_image or channels not in (1, 3) or outputs != 1:
        if labels is None and normalization is None:
            return None
        raise ValueError(
            "`labels` and `normalization` are for a model of images with 1 or "
            "3 channels, and of one output. Received: a model with "
            f"{channels} channels and {outputs} outputs"
        )
    if normalization is None:
        if input_range is not None:
            normalization = NORMALIZATIONS.get(input_range)
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
