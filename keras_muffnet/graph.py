"""Walks the graph of a Keras model: which layer is called on which tensors."""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
from keras import KerasTensor


class Call(NamedTuple):
    """One operation called on tensors.

    Tensors are told apart by identity: the output of one call is the very
    object that is an input of the next.

    Attributes:
        operation: a layer, or a `keras.Operation` such as a plain slice.
        inputs: its input tensors.
        outputs: its output tensors.
        args: all it was called with by position, constants included.
        kwargs: all it was called with by name.
    """

    operation: Any
    inputs: list[KerasTensor]
    outputs: list[KerasTensor]
    args: Sequence[Any]
    kwargs: dict[str, Any]


class Graph(NamedTuple):
    """A model's calls, in an order in which they can run.

    Attributes:
        inputs: the model's input tensors.
        calls: all calls that an output depends on. Those inside a nested model
            stand in place of the model's own, and a layer that is called twice
            stands here twice. With one output the last call makes it.
        outputs: the model's output tensors.
    """

    inputs: list[KerasTensor]
    calls: list[Call]
    outputs: list[KerasTensor]


def trace(
    model: keras.Model,
    input_shapes: Sequence[Sequence[int | None]] | None = None,
) -> Graph:
    """Follows tensors' shapes through a model; nothing is computed.

    Args:
        model: a functional or a built sequential model.
        input_shapes: shapes of the inputs to follow, batch axis included, in
            place of the model's own.

    Returns:
        A `Graph`. Its tensors are symbolic, with a shape and a dtype.

    Raises:
        ValueError: if the model or one inside it is neither functional nor
            sequential, or if `input_shapes` does not fit its inputs.
    """
    _check_traceable(model)
    own = [tuple(x.shape) for x in model.inputs]
    shapes = own if input_shapes is None else [tuple(s) for s in input_shapes]
    if not _fits(shapes, own):
        raise ValueError(
            f"`input_shapes` must fit the model's inputs, of shapes {own}. "
            f"Received: input_shapes={shapes}"
        )
    inputs = [
        KerasTensor(shape, dtype=x.dtype, name=x.name)
        for shape, x in zip(shapes, model.inputs, strict=True)
    ]
    calls: list[Call] = []
    outputs = _trace_model(model, inputs, calls)
    return Graph(inputs, _leading_to(outputs, calls), outputs)


def _leading_to(
    outputs: Sequence[KerasTensor], calls: Sequence[Call]
) -> list[Call]:
    """The calls without those that no output depends on."""
    needed = {id(x) for x in outputs}
    kept = []
    for call in reversed(calls):
        if any(id(x) in needed for x in call.outputs):
            needed.update(id(x) for x in call.inputs)
            kept.append(call)
    return kept[::-1]


def _fits(shapes: list[tuple], own: list[tuple]) -> bool:
    return len(shapes) == len(own) and all(
        len(shape) == len(reference)
        and all(b in (None, a) for a, b in zip(shape, reference, strict=True))
        for shape, reference in zip(shapes, own, strict=True)
    )


def _check_traceable(model: Any) -> None:
    sequential = isinstance(model, keras.Sequential) and model.built
    # Keras exports no class of functional models. Its nodes are not public
    # either: setup.py admits the versions of Keras that were tested. A
    # subclass with a `call` of its own does what its nodes do not tell.
    known = sequential or hasattr(model, "_nodes_by_depth")
    if not known or not type(model).call.__module__.startswith("keras."):
        raise ValueError(
            "`model` must be a functional or a built sequential Keras model. "
            f"Received: {model!r}"
        )


def _trace_model(
    model: keras.Model, inputs: list[KerasTensor], calls: list[Call]
) -> list[KerasTensor]:
    if isinstance(model, keras.Sequential):
        tensors = inputs
        for layer in model.layers:
            tensors = _trace_call(layer, tensors, {}, calls)
        return tensors
    found = dict(zip(map(id, model.inputs), inputs, strict=True))
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = node.arguments.fill_in(found)
            outputs = _trace_call(node.operation, args, kwargs, calls)
            found.update(zip(map(id, node.outputs), outputs, strict=True))
    return [found[id(x)] for x in model.outputs]


def _trace_call(
    operation: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    calls: list[Call],
) -> list[KerasTensor]:
    inputs = [
        x
        for x in keras.tree.flatten([args, kwargs])
        if isinstance(x, KerasTensor)
    ]
    if isinstance(operation, keras.Model):
        _check_traceable(operation)
        return _trace_model(operation, inputs, calls)
    outputs = keras.tree.flatten(operation.compute_output_spec(*args, **kwargs))
    calls.append(Call(operation, inputs, outputs, args, kwargs))
    return outputs
