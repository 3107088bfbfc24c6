"""Metadata in LiteRT (`.tflite`) files, and such files as C headers.

Mobile tools (Android Studio, the TFLite Task library, MediaPipe) take from
the metadata how pixels are scaled and what the classes are called. It is a
flatbuffer of its own, one of the model's buffers; the files that it names,
such as the labels, follow the model as a ZIP archive.
"""

import io
import json
import re
import zipfile
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from keras_muffnet._optional import load_optional
from keras_muffnet.litert.model import EXTRA
from keras_muffnet.preprocessing import MEAN
from keras_muffnet.preprocessing import STD

_MODEL_IDENTIFIER = b"TFL3"
_METADATA_IDENTIFIER = b"M001"
_METADATA_NAME = b"TFLITE_METADATA"
_LABELS_FILE = "labels.txt"
_CROP_FILE = "preprocessing.json"
_TENSOR_AXIS_LABELS = 2
_RGB, _GRAYSCALE = 1, 2
_COLOR_SPACES = {_RGB: "RGB", _GRAYSCALE: "GRAYSCALE"}
# Codes of unions.
_FEATURE, _IMAGE, _NORMALIZATION = 1, 2, 1
# What every parser reads; later ones only add content that is not used here.
_MIN_PARSER_VERSION = "1.0.0"
# The alignment that the .tflite schema demands of buffers.
_BUFFER_ALIGNMENT = 16

# The part of the schema that is used, version 1.5.0 of
# https://github.com/tensorflow/tflite-support/blob/master/
# tensorflow_lite_support/metadata/metadata_schema.fbs
# For each table its fields: the number in the table, and the kind of value.
# A table is named, [x] is a vector of x, and a dict a union of tables, by
# code; the code has the field number before the union's.
_FIELDS: dict[str, dict[str, tuple[int, Any]]] = {
    "ModelMetadata": {
        "name": (0, str),
        "description": (1, str),
        "subgraph_metadata": (3, ["SubGraphMetadata"]),
        "min_parser_version": (7, str),
    },
    "SubGraphMetadata": {
        "input_tensor_metadata": (2, ["TensorMetadata"]),
        "output_tensor_metadata": (3, ["TensorMetadata"]),
    },
    "TensorMetadata": {
        "name": (0, str),
        "content": (3, "Content"),
        "process_units": (4, ["ProcessUnit"]),
        "stats": (5, "Stats"),
        "associated_files": (6, ["AssociatedFile"]),
    },
    "Content": {
        "content_properties": (
            1,
            {_FEATURE: "FeatureProperties", _IMAGE: "ImageProperties"},
        ),
    },
    "FeatureProperties": {},
    "ImageProperties": {"color_space": (0, int)},
    "ProcessUnit": {"options": (1, {_NORMALIZATION: "NormalizationOptions"})},
    "NormalizationOptions": {"mean": (0, [float]), "std": (1, [float])},
    "Stats": {"max": (0, [float]), "min": (1, [float])},
    "AssociatedFile": {"name": (0, str), "type": (2, int)},
}

# The most that a table above needs; those that are not set take no room.
_FIELD_COUNT = 8

# Reserved words of C and C++; those with a leading "_" are refused anyway.
_KEYWORDS = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char
char16_t char32_t char8_t class co_await co_return co_yield compl concept
const const_cast consteval constexpr constinit continue decltype default
delete do double dynamic_cast else enum explicit export extern false float
for friend goto if inline int long mutable namespace new noexcept not not_eq
nullptr operator or or_eq private protected public register
reinterpret_cast requires restrict return short signed sizeof static
static_assert static_cast struct switch template this thread_local throw
true try typedef typeid typename typeof typeof_unqual union unsigned using
virtual void volatile wchar_t while xor xor_eq
"""


class Metadata(NamedTuple):
    """What a `.tflite` file of an image model says about itself.

    Attributes:
        name: name of the model.
        description: what it does; may be empty.
        labels: names of the classes in the order of the output's last axis,
            or None if the file has none.
        mean: subtracted from the pixels, in [0, 255], of each channel.
        std: what that difference is divided by, for each channel.
        minimum: of the scaled pixels, for each channel.
        maximum: of the scaled pixels, for each channel.
        color_space: "RGB", "GRAYSCALE" or "UNKNOWN".
        input_name: name of the tensor that takes the image.
        output_name: name of the tensor that holds the answer.
        crop: how images get their size; see `Preprocessing.crop` of
            `keras_muffnet.preprocessing`.
    """

    name: str
    description: str
    labels: tuple[str, ...] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    color_space: str
    input_name: str
    output_name: str
    crop: float | None = None


def embed_metadata(
    content: bytes,
    *,
    name: str,
    description: str = "",
    labels: Sequence[str] | None = None,
    mean: float | Sequence[float] = MEAN,
    std: float | Sequence[float] = STD,
    crop: float | None = None,
) -> bytes:
    """Puts metadata into a `.tflite` file of an image model.

    The format is that of https://ai.google.dev/edge/litert/conversion/
    tensorflow/metadata. Metadata and associated files that `content` has are
    replaced; nothing else of the model changes. `mean` and `std` are those of
    the float model for a quantized one too: the file itself holds how the
    scaled pixels are quantized. The defaults are those of
    `keras_muffnet.preprocess_input`. (The TFLite Task library, whatever the
    metadata, takes no int8 input: float32 and uint8 only.)

    Args:
        content: the file's bytes. The model has one input, of shape
            `(batch, height, width, 1 or 3)`, and one output.
        name: name of the model.
        description: what it does.
        labels: names of the classes, as many as the output's last axis.
        mean: subtracted from pixels in [0, 255]; a number, or one for each
            channel.
        std: what that difference is divided by; likewise.
        crop: the share of an image's shorter side that is kept, its center,
            where images are not resized as a whole. The format has no field
            for it: it goes into a file of its own, `preprocessing.json`.

    Returns:
        The bytes of a `.tflite` file, which with labels or a crop is a ZIP
        archive of `labels.txt` and `preprocessing.json` as well.

    Raises:
        ImportError: if `ai-edge-litert` is not installed.
        ValueError: if an argument is not as above, or the weights lie
            outside of the model's flatbuffer, as in files above 2 GB.
    """
    flatbuffers = load_optional("flatbuffers", EXTRA)
    schema = load_optional("ai_edge_litert.schema_py_generated", EXTRA)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(
            f"`name` must be a string with text. Received: {name!r}"
        )
    if not isinstance(description, str):
        raise ValueError(
            f"`description` must be a string. Received: {description!r}"
        )
    model = schema.ModelT.InitFromObj(_root(schema, content))
    image, answer = _ends(model)
    channels = _shape(image)[-1]
    means = _per_channel("mean", mean, channels)
    stds = _per_channel("std", std, channels)
    if np.any(stds <= 0):
        raise ValueError(f"`std` must be positive. Received: std={std}")
    looks = {"color_space": _RGB if channels == 3 else _GRAYSCALE}
    scaling = {"mean": means, "std": stds}
    inputs = {
        "name": image.name or "",
        "content": {"content_properties": (_IMAGE, looks)},
        "process_units": [{"options": (_NORMALIZATION, scaling)}],
        "stats": {"max": (255 - means) / stds, "min": (0 - means) / stds},
    }
    outputs: dict[str, Any] = {
        "name": answer.name or "",
        "content": {"content_properties": (_FEATURE, {})},
    }
    if labels is not None:
        check_labels(labels, (_shape(answer) or (1,))[-1])
        if len(set(labels)) != len(labels):
            twice = sorted({x for x in labels if labels.count(x) > 1})
            raise ValueError(
                f"`labels` must be unique. Received twice: {twice}"
            )
        file = {"name": _LABELS_FILE, "type": _TENSOR_AXIS_LABELS}
        outputs["associated_files"] = [file]
    graph = {
        "input_tensor_metadata": [inputs],
        "output_tensor_metadata": [outputs],
    }
    metadata = {
        "name": name,
        "description": description,
        "subgraph_metadata": [graph],
        "min_parser_version": _MIN_PARSER_VERSION,
    }
    builder = flatbuffers.Builder()
    builder.Finish(
        _pack(builder, "ModelMetadata", metadata), _METADATA_IDENTIFIER
    )
    _set_metadata(schema, model, bytes(builder.Output()))
    packed = pack_model(model, len(content))
    files = {}
    if labels is not None:
        files[_LABELS_FILE] = "\n".join(labels) + "\n"
    if crop is not None:
        files[_CROP_FILE] = json.dumps({"crop": crop}) + "\n"
    return _append_files(packed, files)


def read_metadata(content: bytes) -> Metadata:
    """Reads the metadata of a `.tflite` file of an image model.

    Args:
        content: the file's bytes.

    Returns:
        The metadata. What the file does not say is empty.

    Raises:
        ImportError: if `ai-edge-litert` is not installed.
        ValueError: if the file is not a `.tflite` file, has no metadata, or
            lacks the labels that these name.
    """
    flatbuffers = load_optional("flatbuffers", EXTRA)
    schema = load_optional("ai_edge_litert.schema_py_generated", EXTRA)
    model = _root(schema, content)
    entries = [model.Metadata(k) for k in range(model.MetadataLength())]
    buffers = [e.Buffer() for e in entries if e.Name() == _METADATA_NAME]
    data = model.Buffers(buffers[0]).DataAsNumpy() if buffers else None
    packed = data.tobytes() if isinstance(data, np.ndarray) else b""
    if packed[4:8] != _METADATA_IDENTIFIER:
        raise ValueError(
            "`content` must hold metadata. Received a .tflite file without"
        )
    start = flatbuffers.Table(packed, 0).Indirect(0)
    root = _unpack(flatbuffers.Table(packed, start), "ModelMetadata")
    graph, *_ = root.get("subgraph_metadata") or [{}]
    image, *_ = graph.get("input_tensor_metadata") or [{}]
    answer, *_ = graph.get("output_tensor_metadata") or [{}]
    units = [u for u in image.get("process_units", []) if "options" in u]
    _, scaling = units[0]["options"] if units else (0, {})
    stats = image.get("stats", {})
    _, looks = image.get("content", {}).get("content_properties", (0, {}))
    files = [
        file["name"]
        for file in answer.get("associated_files", [])
        if file.get("type") == _TENSOR_AXIS_LABELS
    ]
    return Metadata(
        name=root.get("name", ""),
        description=root.get("description", ""),
        labels=_read_lines(content, files[0]) if files else None,
        mean=scaling.get("mean", ()),
        std=scaling.get("std", ()),
        minimum=stats.get("min", ()),
        maximum=stats.get("max", ()),
        color_space=_COLOR_SPACES.get(looks.get("color_space"), "UNKNOWN"),
        input_name=image.get("name", ""),
        output_name=answer.get("name", ""),
        crop=_read_crop(content),
    )


def c_header(content: bytes, name: str) -> str:
    """Writes bytes as a C header, as TFLite Micro takes a `.tflite` file.

    It defines `const unsigned char NAME[]`, aligned to 16 bytes, and
    `const unsigned int NAME_len`, in C99 and later and in C++. In C it is to
    be included in one source file only.

    Args:
        content: the file's bytes.
        name: a C identifier without a leading or a double underscore, which C
            and C++ reserve.

    Raises:
        ValueError: if `content` is empty or `name` is not of that kind.
    """
    if not isinstance(content, bytes | bytearray) or not content:
        raise ValueError(
            f"`content` must be bytes, at least one. Received: {content!r:.80}"
        )
    if (
        not isinstance(name, str)
        or not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name)
        or "__" in name
        or name in _KEYWORDS.split()
    ):
        raise ValueError(
            "`name` must be a C identifier, no keyword of C or C++ and without "
            f"a leading or a double underscore. Received: name={name!r}"
        )
    guard, align = f"{name.upper()}_H_", f"{name.upper()}_ALIGN"
    written = "".join(f"0x{byte:02x}, " for byte in range(256)).encode()
    letters = np.frombuffer(written, np.uint8).reshape(256, 6)
    numbers = letters[np.frombuffer(content, np.uint8)]
    numbers[11::12, -1] = ord("\n")  # instead of the space
    rows = numbers.tobytes().decode().rstrip()
    return f"""\
#ifndef {guard}
#define {guard}

#if defined(__cplusplus) && __cplusplus >= 201103L
#define {align} alignas(16)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define {align} _Alignas(16)
#elif defined(__GNUC__)
#define {align} __attribute__((aligned(16)))
#else
#error "Define here how this compiler aligns an array to 16 bytes."
#endif

{align} const unsigned char {name}[] = {{
{rows}
}};
const unsigned int {name}_len = {len(content)};

#endif /* {guard} */
"""


def _root(schema: Any, content: bytes) -> Any:
    if (
        not isinstance(content, bytes | bytearray)
        or content[4:8] != _MODEL_IDENTIFIER
    ):
        raise ValueError(
            "`content` must be the bytes of a .tflite file. Received: "
            f"{content!r:.80}"
        )
    return schema.Model.GetRootAsModel(content, 0)


def _ends(model: Any) -> tuple[Any, Any]:
    """The model's input and output tensor."""
    graph = model.subgraphs[0]
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            "`content` must be a model with one input and one output. "
            f"Received: {len(graph.inputs)} inputs and {len(graph.outputs)} "
            "outputs"
        )
    image, answer = [graph.tensors[k] for k in (*graph.inputs, *graph.outputs)]
    shape = _shape(image)
    if len(shape) != 4 or shape[-1] not in (1, 3):
        raise ValueError(
            "`content` must be a model of images with 1 or 3 channels, the "
            f"last axis. Received a model with input shape {shape}"
        )
    # Offsets from the start of the file, which moving would make wrong.
    if any(buffer.offset for buffer in model.buffers) or any(
        operator.largeCustomOptionsOffset
        for subgraph in model.subgraphs
        for operator in subgraph.operators or ()
    ):
        raise ValueError(
            "`content` must hold all of the model in its flatbuffer. Received "
            "a file with weights after it, as converters write above 2 GB"
        )
    return image, answer


def _shape(tensor: Any) -> tuple[int, ...]:
    # A scalar may have none at all.
    return () if tensor.shape is None else tuple(map(int, tensor.shape))


def _per_channel(argument: str, value: Any, channels: int) -> np.ndarray:
    values = np.atleast_1d(value)
    if (
        values.dtype.kind not in "iuf"
        or values.shape not in {(1,), (channels,)}
        or not np.all(np.isfinite(values))
    ):
        raise ValueError(
            f"`{argument}` must be a finite number, or one for each of the "
            f"{channels} channels. Received: {argument}={value!r}"
        )
    return np.broadcast_to(values, channels).astype(np.float32)


def check_labels(labels: Sequence[str], count: int) -> None:
    """Checks names of classes.

    Args:
        labels: the names.
        count: how many there must be.

    Raises:
        ValueError: if they are not as many strings, each a line of text.
    """
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise ValueError(
            f"`labels` must be a sequence of strings. Received: {labels!r}"
        )
    for label in labels:
        # Readers drop blank lines, which would number the labels anew.
        if (
            not isinstance(label, str)
            or not label.strip()
            or label.splitlines() != [label]
        ):
            raise ValueError(
                "`labels` must be strings with text, of one line each. "
                f"Received: {label!r}"
            )
    if len(labels) != count:
        raise ValueError(
            f"`labels` must be {count}, as many as the output's last axis. "
            f"Received: {len(labels)} labels"
        )


def _set_metadata(schema: Any, model: Any, packed: bytes) -> None:
    data = np.frombuffer(packed, np.uint8)
    model.metadata = model.metadata or []
    for entry in model.metadata:
        if entry.name == _METADATA_NAME:
            model.buffers[entry.buffer].data = data
            return
    model.metadata.append(
        schema.MetadataT(name=_METADATA_NAME, buffer=len(model.buffers))
    )
    model.buffers.append(schema.BufferT(data=data))


def pack_model(model: Any, size: int) -> bytes:
    """Writes a `.tflite` file.

    Args:
        model: the file's content, as a `ModelT`.
        size: about how many bytes there will be.

    Returns:
        The file's bytes.
    """
    flatbuffers = load_optional("flatbuffers", EXTRA)
    builder = _aligning(flatbuffers.Builder)(size)
    builder.Finish(model.Pack(builder), _MODEL_IDENTIFIER)
    return bytes(builder.Output())


def _aligning(builder: Any) -> Any:
    """A flatbuffer builder that aligns vectors of bytes as the schema wants.

    The classes made of the schema do not; weights would lie where TFLite Micro
    and some kernels cannot read them.
    """

    class AligningBuilder(builder):
        def StartVector(
            self, item_size: int, count: int, alignment: int
        ) -> int:
            if item_size == 1:
                alignment = _BUFFER_ALIGNMENT
            return super().StartVector(item_size, count, alignment)

    return AligningBuilder


def _pack(builder: Any, table: str, values: dict[str, Any]) -> int:
    """Writes a table of the metadata schema; gives its offset."""
    fields = [(*_FIELDS[table][name], value) for name, value in values.items()]
    # What a table refers to is written before it.
    offsets = [_pack_child(builder, kind, value) for _, kind, value in fields]
    builder.StartObject(_FIELD_COUNT)
    for (number, kind, value), offset in zip(fields, offsets, strict=True):
        if kind is int:
            builder.PrependInt8Slot(number, value, 0)
            continue
        if isinstance(kind, dict):
            builder.PrependUint8Slot(number - 1, value[0], 0)
        builder.PrependUOffsetTRelativeSlot(number, offset, 0)
    return builder.EndObject()


def _pack_child(builder: Any, kind: Any, value: Any) -> int:
    if kind is int:
        return 0  # in the table itself
    if kind is str:
        return builder.CreateString(value)
    if kind == [float]:
        return builder.CreateNumpyVector(value)
    if isinstance(kind, str):
        return _pack(builder, kind, value)
    if isinstance(kind, dict):
        code, fields = value
        return _pack(builder, kind[code], fields)
    offsets = [_pack(builder, kind[0], item) for item in value]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _unpack(table: Any, name: str) -> dict[str, Any]:
    """Reads a table of the metadata schema: the fields that are there."""
    values = {
        field: _unpack_field(table, number, kind)
        for field, (number, kind) in _FIELDS[name].items()
    }
    return {field: x for field, x in values.items() if x is not None}


def _unpack_field(table: Any, number: int, kind: Any) -> Any:
    offset = table.Offset(4 + 2 * number)
    if not offset:
        return None
    position = table.Pos + offset
    if kind is int:
        return table.Bytes[position]
    if kind is str:
        return table.String(position).decode()
    if isinstance(kind, list):
        count, start = table.VectorLen(offset), table.Vector(offset)
        if kind == [float]:
            return tuple(
                np.frombuffer(table.Bytes, "<f4", count, start).tolist()
            )
        items = [table.Indirect(start + 4 * k) for k in range(count)]
        return [_unpack(type(table)(table.Bytes, k), kind[0]) for k in items]
    child = type(table)(table.Bytes, table.Indirect(position))
    if isinstance(kind, str):
        return _unpack(child, kind)
    code = _unpack_field(table, number - 1, int)
    return (code, _unpack(child, kind[code])) if code in kind else None


def _append_files(content: bytes, files: dict[str, str]) -> bytes:
    if not files:
        return content
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        for name, text in files.items():
            # Neither compressed nor dated: tools map the text into memory,
            # and the same arguments give the same bytes.
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)
    return file.getvalue()


def _read_crop(content: bytes) -> float | None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            crop = json.loads(archive.read(_CROP_FILE))["crop"]
    except (zipfile.BadZipFile, KeyError):  # a file without
        return None
    return float(crop)


def _read_lines(content: bytes, name: str) -> tuple[str, ...]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return tuple(archive.read(name).decode().splitlines())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"`content` must hold the file {name!r}, which its metadata name. "
            "Received a file without"
        ) from error
