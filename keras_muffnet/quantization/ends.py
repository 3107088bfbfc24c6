"""What a model's inputs and outputs are called, and how they are arranged."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras

from keras_muffnet.graph import Graph
from keras_muffnet.graph import input_structure


class Ends(NamedTuple):
    """The outside of a model, which its quantized copy keeps.

    Attributes:
        name: the model's.
        input_names: one for each input.
        input_structure: the number of each input, 0 for the first, arranged as
            the model takes them.
        output_names: one for each output; losses and metrics go by them. Of
            several outputs of one layer the second has a number behind it.
        output_structure: the number of each output, 0 for the first, arranged
            as the model gives them: by itself, in a list or in a dict.
        softmax: for each output the axis of the softmax that it ends in, which
            is not part of the plan; None where there is none.
    """

    name: str
    input_names: tuple[str, ...]
    input_structure: Any
    output_names: tuple[str, ...]
    output_structure: Any
    softmax: tuple[int | None, ...]


def read_ends(model: keras.Model, graph: Graph, foreign: set[int]) -> Ends:
    """Reads the ends of a functional or a built sequential model.

    Args:
        model: the model.
        graph: its calls, as they are written in steps.
        foreign: numbers of the outputs, 0 for the first, made by layers that
            stay as they are.
    """
    read = {id(x) for call in graph.calls for x in call.inputs}
    makers = {
        id(x): call.operation for call in graph.calls for x in call.outputs
    }
    softmax = tuple(
        None
        if id(x) in read or k in foreign
        else _softmax_axis(makers.get(id(x)))
        for k, x in enumerate(graph.outputs)
    )
    given = input_structure(model)
    if any(len(path) > 1 for path, _ in keras.tree.flatten_with_path(given)):
        names = keras.tree.map_structure(lambda x: x.name, given)
        raise ValueError(
            "`model` must take its inputs alone, in a list or in a dict. "
            f"Received: a model that takes {names}"
        )
    takes = keras.tree.pack_sequence_as(given, [*range(len(model.inputs))])
    names, structure = [model.layers[-1].name], 0
    if not isinstance(model, keras.Sequential):
        names = model.output_names
        numbers = list(range(len(graph.outputs)))
        structure = keras.tree.pack_sequence_as(model.output, numbers)
    return Ends(
        model.name,
        tuple(x.name for x in model.inputs),
        takes,
        _numbered(names),
        structure,
        softmax,
    )


def _numbered(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each of which occurs once."""
    unique: list[str] = []
    for name in names:
        tried, count = name, 1
        while tried in unique:
            count += 1
            tried = f"{name}_{count}"
        unique.append(tried)
    return tuple(unique)


def _softmax_axis(operation: Any) -> int | None:
    """The axis of a softmax layer, function or activation."""
    if isinstance(operation, keras.layers.Softmax):
        return operation.axis
    if getattr(operation, "activation", None) is keras.activations.softmax:
        return -1
    if not isinstance(operation, keras.layers.Layer) and (
        type(operation).__name__ == "Softmax"
    ):
        return operation.axis
    return None
