"""Walks the graph of a Keras model: which layer is called on which tensors."""

import contextlib
import inspect
import math
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
from keras import KerasTensor

# Letters of another error's message that are shown.
_LONGEST_REASON = 200


class Call(NamedTuple):
    """One operation called on tensors.

    Tensors are distinguished by identity: the output of one call is the very
    object that is an input of the next.

    Attributes:
        operation: a layer, or a `keras.Operation` such as a plain slice.
        inputs: its input tensors.
        outputs: its output tensors.
        args: all it was called with by position, constants included.
        kwargs: all it was called with by name.
        name: the operation's. That of a function in a layer that was opened is
            made from the layer's, and so the same each time.
        closed: why a layer that was to be opened was not; "" for all others.
    """

    operation: Any
    inputs: list[KerasTensor]
    outputs: list[KerasTensor]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    name: str = ""
    closed: str = ""


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
    opens: Callable[[Any], bool] | None = None,
    expressions: Mapping[type, Callable[..., Any]] | None = None,
    knows: Callable[[Call], bool] | None = None,
) -> Graph:
    """Follows tensors' shapes through a model; nothing is computed.

    Args:
        model: a functional or a built sequential model.
        input_shapes: shapes of the inputs to follow, batch axis included, in
            place of the model's own.
        opens: says of a layer whether the calls inside it are to stand in its
            place. They do where its `call` consists of Keras's layers and
            functions. Models that are neither functional nor sequential are
            opened too. None opens no layer.
        expressions: for classes of layers to open a function of the layer, and
            of what it is called with, to follow in place of its `call`.
        knows: says of a call whether it is known. A layer is not opened
            whose own weights are read by what is not. None knows all.

    Returns:
        A `Graph`. Its tensors are symbolic, with a shape and a dtype.

    Raises:
        ValueError: if the model or one inside it is neither functional nor
            sequential, or if `input_shapes` does not fit its inputs.
    """
    _check_traceable(model)
    own = [(None, *x.shape[1:]) for x in model.inputs]
    shapes = own if input_shapes is None else [tuple(s) for s in input_shapes]
    if not fits(shapes, own):
        raise ValueError(
            f"`input_shapes` must fit the model's inputs, of shapes {own}. "
            f"Received: input_shapes={shapes}"
        )
    inputs = [
        KerasTensor(shape, dtype=x.dtype, name=x.name)
        for shape, x in zip(shapes, model.inputs, strict=True)
    ]
    tracer = _Tracer(opens, expressions or {}, knows or (lambda _: True))
    outputs = tracer.trace_model(model, inputs)
    return Graph(inputs, _leading_to(outputs, tracer.calls), outputs)


def as_functional(model: keras.Model) -> keras.Model:
    """A functional model of the layers that a subclassed one calls.

    Args:
        model: any model. A functional or sequential one is given back.

    Raises:
        ValueError: if a subclassed model was not called yet, so that its
            inputs are not known, or its `call` does more than Keras can
            follow.
    """
    if _is_traceable(model) or isinstance(model, keras.Sequential):
        return model
    config = model.get_build_config()
    shapes = config.get("input_shape") if config else None
    if shapes is None:
        raise ValueError(
            "`model` must be called once before, if it is a subclass of "
            "`keras.Model`, so that the shapes of its inputs are known. "
            f"Received: {model!r}"
        )
    inputs = keras.tree.map_shape_structure(
        lambda shape: keras.Input(shape[1:]), shapes
    )
    if isinstance(inputs, dict):
        inputs = {
            name: keras.Input(x.shape[1:], name=name)
            for name, x in inputs.items()
        }
    arguments = {"training": False} if _takes_training(model) else {}
    try:
        with _variables_yield():
            outputs = model.call(inputs, **arguments)
        return keras.Model(inputs, outputs, name=model.name)
    except Exception as error:  # whatever code of others does with symbols
        raise ValueError(
            "`model` must consist of Keras's layers and functions, if it is "
            f"a subclass of `keras.Model`. Received: {model!r}, whose `call` "
            f"cannot be followed: {error}"
        ) from error


def input_structure(model: keras.Model) -> Any:
    """A built model's inputs as it takes them: alone, in a list or a dict."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0]
    return model.input


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


def fits(shapes: list[tuple], own: list[tuple]) -> bool:
    """Whether shapes are those of a model's inputs, where these have sizes."""
    return len(shapes) == len(own) and all(
        len(shape) == len(reference)
        and all(b in (None, a) for a, b in zip(shape, reference, strict=True))
        for shape, reference in zip(shapes, own, strict=True)
    )


def _is_traceable(model: Any) -> bool:
    sequential = isinstance(model, keras.Sequential) and model.built
    # Keras exports no class of functional models. Its nodes are not public
    # either: setup.py admits the versions of Keras that were tested. A
    # subclass with a `call` of its own does what its nodes do not show.
    known = sequential or hasattr(model, "_nodes_by_depth")
    return known and type(model).call.__module__.startswith("keras.")


def _check_traceable(model: Any) -> None:
    if not _is_traceable(model):
        raise ValueError(
            "`model` must be a functional or a built sequential Keras model. "
            f"Received: {model!r}"
        )


class _Tracer:
    """Collects the calls of a model and of the models and layers inside it."""

    def __init__(
        self,
        opens: Callable[[Any], bool] | None,
        expressions: Mapping[type, Callable[..., Any]],
        knows: Callable[[Call], bool],
    ) -> None:
        self.opens = opens
        self.expressions = expressions
        self.knows = knows
        self.calls: list[Call] = []
        # The layers that are open at present, the innermost last, each with
        # the number of functions met in it.
        self.open_layers: list[list[Any]] = []

    def trace_model(
        self, model: keras.Model, inputs: list[KerasTensor]
    ) -> list[KerasTensor]:
        if isinstance(model, keras.Sequential):
            tensors = inputs
            for layer in model.layers:
                tensors = self.trace_call(layer, tensors, {})
            return tensors
        found = dict(zip(map(id, model.inputs), inputs, strict=True))
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                args, kwargs = node.arguments.fill_in(found)
                outputs = self.trace_call(node.operation, args, kwargs)
                found.update(zip(map(id, node.outputs), outputs, strict=True))
        return [found[id(x)] for x in model.outputs]

    def trace_call(
        self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> list[KerasTensor]:
        inputs = _tensors_in([args, kwargs])
        is_layer = isinstance(operation, keras.layers.Layer)
        if is_layer and not _takes_training(operation):
            # Keras drops it itself, but lists it among the arguments.
            kwargs = {k: x for k, x in kwargs.items() if k != "training"}
        if isinstance(operation, keras.Model) and (
            self.opens is None or _is_traceable(operation)
        ):
            _check_traceable(operation)
            inputs = _inputs_of(operation, *args, **kwargs)
            return self.trace_model(operation, inputs)
        closed = ""
        if is_layer and self.opens is not None and self.opens(operation):
            rule = self.expressions.get(type(operation))
            try:
                inner = _open(operation, args, kwargs, rule)
            except _ClosedError as error:
                closed = str(error)
            else:
                start = len(self.calls)
                self.open_layers.append([operation.name, 0])
                outputs = self.trace_model(inner, inputs)
                self.open_layers.pop()
                unknown = self._unknown_of(operation, self.calls[start:])
                if rule is not None or not unknown:
                    return outputs
                del self.calls[start:]
                closed = f"nor is its {unknown}"
        name = operation.name
        if self.open_layers and not is_layer:
            innermost = self.open_layers[-1]
            innermost[1] += 1
            name = f"{innermost[0]}_op{innermost[1]}"
        spec = operation.compute_output_spec(*args, **kwargs)
        if isinstance(operation, keras.layers.EinsumDense):
            # Its own lacks the sizes that its arguments do not name.
            (x,) = inputs
            kernel = KerasTensor(operation.kernel.shape, x.dtype)
            spec = keras.ops.einsum(operation.equation, x, kernel)
        outputs = keras.tree.flatten(spec)
        if type(operation).__name__ == "Reshape" and not is_layer:
            outputs = [_with_known_sizes(outputs[0], inputs[0])]
        self.calls.append(
            Call(operation, inputs, outputs, args, kwargs, name, closed)
        )
        return outputs

    def _unknown_of(self, layer: Any, calls: Sequence[Call]) -> str:
        """What is not known in a layer that has weights of its own."""
        inner = {
            id(v)
            for call in calls
            if isinstance(call.operation, keras.layers.Layer)
            for v in call.operation.weights
        }
        if all(id(v) in inner for v in layer.trainable_weights):
            return ""
        unknown = [call for call in calls if not self.knows(call)]
        return type(unknown[0].operation).__name__ if unknown else ""


def _takes_training(layer: keras.layers.Layer) -> bool:
    return "training" in inspect.signature(layer.call).parameters


def _with_known_sizes(reshaped: KerasTensor, given: KerasTensor) -> KerasTensor:
    """What Keras leaves open in `reshape(x, (shape(x)[0], -1, 8))`."""
    sizes, before = list(reshaped.shape), given.shape
    if sizes.count(None) != 2 or sizes[0] is not None or None in before[1:]:
        return reshaped
    known = math.prod(size for size in sizes if size is not None)
    sizes[sizes.index(None, 1)] = math.prod(before[1:]) // known
    return KerasTensor(sizes, dtype=reshaped.dtype)


@contextlib.contextmanager
def _variables_yield() -> Iterator[None]:
    """Lets `variable * tensor` be recorded as `tensor * variable` is."""
    kind = keras.Variable
    names = ("__add__", "__matmul__", "__mul__", "__sub__", "__truediv__")
    methods = {name: getattr(kind, name) for name in names}

    def yielding(method: Callable[..., Any]) -> Callable[..., Any]:
        def operator(variable: Any, other: Any) -> Any:
            if isinstance(other, KerasTensor):
                return NotImplemented
            return method(variable, other)

        return operator

    for name, method in methods.items():
        setattr(kind, name, yielding(method))
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(kind, name, method)


def _tensors_in(structure: Any) -> list[KerasTensor]:
    flat = keras.tree.flatten(structure)
    return [x for x in flat if isinstance(x, KerasTensor)]


def _inputs_of(
    model: keras.Model, inputs: Any, *_: Any, **__: Any
) -> list[KerasTensor]:
    """What a model is called on, in the order of its own inputs."""
    if isinstance(inputs, dict) and not isinstance(
        input_structure(model), dict
    ):
        # Keras goes by the inputs' names then.
        inputs = [inputs[x.name] for x in model.inputs]
    # What there is no input for, Keras leaves out.
    return _tensors_in(inputs)[: len(model.inputs)]


class _ClosedError(Exception):
    """That Keras cannot follow what a layer does."""


def _open(
    layer: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    rule: Callable[..., Any] | None,
) -> keras.Model:
    """A model of what a layer's `call` does.

    Raises:
        _ClosedError: if Keras cannot follow it, with the reason.
    """
    inputs: list[KerasTensor] = []

    def as_input(x: Any) -> Any:
        if not isinstance(x, KerasTensor):
            return x
        inputs.append(keras.Input(batch_shape=x.shape, dtype=x.dtype))
        return inputs[-1]

    args, kwargs = keras.tree.map_structure(as_input, (list(args), kwargs))
    if rule is not None:
        # An error in it is to be seen.
        outputs = keras.tree.flatten(rule(layer, *args, **kwargs))
        return keras.Model(inputs, outputs)
    if _takes_training(layer):
        kwargs = {**kwargs, "training": False}
    try:
        with _variables_yield():
            outputs = keras.tree.flatten(layer.call(*args, **kwargs))
        # A constant, or a tensor that Keras did not follow, has no history.
        return keras.Model(inputs, outputs)
    except Exception as error:  # what code of others does with symbols
        reason = ""
        if not type(layer).__module__.startswith("keras."):
            reason = f"and Keras cannot follow it ({_in_a_line(error)})"
        raise _ClosedError(reason) from error


def _in_a_line(error: Exception) -> str:
    """An error's message without what Keras puts around and behind it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    plain = plain.partition("\n\nArguments received by")[0]
    plain = re.sub(r"^Exception encountered when calling .*\n+", "", plain)
    words = " ".join(plain.split())
    if len(words) > _LONGEST_REASON:
        words = f"{words[: _LONGEST_REASON - 3]}..."
    return f"{type(error).__name__}: {words}"
