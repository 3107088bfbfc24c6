"""Scales of the weights in `.tflite` files."""

from typing import Any

import numpy as np

from keras_muffnet._optional import load_optional
from keras_muffnet.litert.metadata import pack_model
from keras_muffnet.litert.model import EXTRA
from keras_muffnet.litert.model import operator_of


def with_single_scales(content: bytes) -> bytes:
    """Writes one scale where a file has a list of equal ones.

    The converter writes a scale for each output channel even where all are
    the same. TensorFlow Lite Micro before September 2024 and NNAPI refuse such
    a list for FULLY_CONNECTED.

    Args:
        content: the file's bytes.

    Returns:
        The bytes of the same model, and `content` itself if nothing changes.
    """
    model = _read(content)
    changed = False
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            changed |= _merge(tensor.quantization)
    return pack_model(model, len(content)) if changed else content


def count_dense_scales(content: bytes) -> dict[str, int]:
    """Counts the scales of the kernels of FULLY_CONNECTED.

    Args:
        content: the file's bytes.

    Returns:
        The number of each kernel that has scales, by its tensor's name.

    Raises:
        ImportError: if `ai-edge-litert` is not installed.
    """
    model = _read(content)
    schema = load_optional("ai_edge_litert.schema_py_generated", EXTRA)
    dense = schema.BuiltinOperator.FULLY_CONNECTED
    counts = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            if operator_of(code) != dense:
                continue
            kernel = graph.tensors[operator.inputs[1]]
            scales = getattr(kernel.quantization, "scale", None)
            if scales is not None:
                counts[kernel.name.decode()] = len(scales)
    return counts


def _read(content: bytes) -> Any:
    schema = load_optional("ai_edge_litert.schema_py_generated", EXTRA)
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def _merge(quantization: Any) -> bool:
    """Merges a tensor's equal scales; says whether there were any."""
    scales = None if quantization is None else quantization.scale
    if scales is None or len(scales) < 2 or np.ptp(scales):
        return False
    points = quantization.zeroPoint
    if points is not None and len(points) and np.ptp(points):
        return False
    for name in ("scale", "zeroPoint", "min", "max"):
        values = getattr(quantization, name)
        if values is not None and len(values):
            setattr(quantization, name, values[:1])
    quantization.quantizedDimension = 0
    return True
