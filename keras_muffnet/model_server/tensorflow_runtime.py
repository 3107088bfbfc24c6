"""Runs SavedModels."""

import os
import pathlib
import re
import time
from collections.abc import Callable
from collections.abc import Collection
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from google.protobuf import text_format
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from keras_muffnet.model_server.batching import Batcher
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.metrics import Metrics
from keras_muffnet.model_server.options import LoadOptions
from keras_muffnet.model_server.servable import Servable
from keras_muffnet.model_server.servable import Signature

# Operations that run others, many at a time: loops and data sets.
_PARALLEL = re.compile("While|LoopCond|Dataset")

# Where in the graph an error arose; TensorFlow Serving's errors do not say it.
_FUNCTION_NODE = re.compile(r"\{\{function_node [^}]*\}\} ?")


def load_saved_model(
    path: str | os.PathLike[str],
    name: str,
    version: int,
    batcher: Batcher | None = None,
    metrics: Metrics | None = None,
    options: LoadOptions = LoadOptions(),  # noqa: B008 (frozen)
) -> Servable:
    """Loads a SavedModel, in a graph and a session of its own.

    The v1 loader is used because a session raises the graph's own error, with
    its code, and does not compare a request with the signature's static
    shapes: a fully convolutional network takes images of any size.

    Args:
        path: The version's folder. It is only read.
        name: The model's name.
        version: The version's number.
        batcher: Joins requests of several callers, if given.
        metrics: Counts the runs, if given.
        options: The SavedModel's tags, and how its session runs.

    Raises:
        ValueError: The folder holds no SavedModel with these tags.
    """
    session_config = _session_config(options)
    session = tf.compat.v1.Session(graph=tf.Graph(), config=session_config)
    try:
        with session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(
                session, sorted(options.tags), os.fspath(path)
            )
        signatures = {
            key: _make_signature(
                session,
                meta_graph.graph_def,
                signature_def,
                batcher,
                metrics,
                in_caller=not _sets_inter_op_threads(session_config),
            )
            for key, signature_def in meta_graph.signature_def.items()
            # What has no outputs either is an initializer, which has run.
            if signature_def.outputs and key != "__saved_model_init_op"
        }
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        session.close()
        raise ValueError(
            f"Expected a SavedModel with {_named(options.tags)} in {path}. "
            f"Received: {' '.join(str(error).split())}"
        ) from error
    signature_defs = {
        key: json_format.MessageToDict(
            signature_def,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        for key, signature_def in meta_graph.signature_def.items()
    }
    # Closing cancels what is running. A loop of very cheap operations does not
    # notice; TensorFlow then waits for it to end.
    return Servable(name, version, signatures, signature_defs, session.close)


def _named(tags: Collection[str]) -> str:
    names = ", ".join(map(repr, sorted(tags)))
    return f"the tag {names}" if len(tags) == 1 else f"the tags {names}"


def _session_config(options: LoadOptions) -> config_pb2.ConfigProto:
    config = config_pb2.ConfigProto()
    if options.session_config_file:
        text = pathlib.Path(options.session_config_file).read_text()
        try:
            text_format.Parse(text, config)
        except text_format.ParseError as error:
            raise ValueError(
                "Expected a text proto of type ConfigProto in "
                f"{options.session_config_file}. "
                f"Received: {' '.join(str(error).split())}"
            ) from error
    if options.intra_op_threads:
        config.intra_op_parallelism_threads = options.intra_op_threads
    if options.inter_op_threads:
        config.inter_op_parallelism_threads = options.inter_op_threads
    if options.gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = (
            options.gpu_memory_fraction
        )
    return config


def _sets_inter_op_threads(config: config_pb2.ConfigProto) -> bool:
    return bool(
        config.inter_op_parallelism_threads
        or config.session_inter_op_thread_pool
    )


def _make_signature(
    session: tf.compat.v1.Session,
    graph_def: GraphDef,
    signature_def: SignatureDef,
    batcher: Batcher | None,
    metrics: Metrics | None,
    *,
    in_caller: bool,
) -> Signature:
    inputs = dict(sorted(signature_def.inputs.items()))
    outputs = dict(sorted(signature_def.outputs.items()))
    options = config_pb2.CallableOptions(
        feed=[info.name for info in inputs.values()],
        fetch=[info.name for info in outputs.values()],
    )
    reached = _reached_operations(graph_def, signature_def)
    if in_caller and not any(map(_PARALLEL.search, reached)):
        # In the thread of the request. Most networks are chains, which gain
        # nothing from more threads and lose by waking them; an operation uses
        # all cores all the same. The images of a request, which a data set
        # decodes, are still shared among TensorFlow's threads.
        options.run_options.inter_op_thread_pool = -1
    # `Session.make_callable` has no public form that takes feeds without
    # checking their shapes.
    run = _wrap(session._make_callable_from_options(options), metrics)
    dtypes = {
        name: tf.dtypes.as_dtype(info.dtype).name
        for name, info in inputs.items()
    }
    if batcher is not None and inputs:
        run = batcher.wrap(run)
    ranks = _fixed_ranks(reached, signature_def)
    return Signature(dtypes, tuple(outputs), run, ranks)


def _fixed_ranks(
    reached: Collection[str], signature_def: SignatureDef
) -> dict[str, int]:
    """Returns the ranks of the inputs that must come with that rank.

    TensorFlow Serving leaves ranks to the operations, and most of them answer
    with an error. TensorFlow's convolutions by oneDNN end the process instead
    (tensorflow#111453). So where one can be reached from the outputs every
    input must have its rank; elsewhere those of rank 4 and more, which are
    images.
    """
    ranks = {
        name: len(info.tensor_shape.dim)
        for name, info in signature_def.inputs.items()
        if not info.tensor_shape.unknown_rank
    }
    if any("Conv" in operation for operation in reached):
        return ranks
    return {name: rank for name, rank in ranks.items() if rank >= 4}


def _reached_operations(
    graph_def: GraphDef, signature_def: SignatureDef
) -> set[str]:
    """Returns the kinds of operations that the outputs are computed by."""
    nodes = {node.name: node for node in graph_def.node}
    bodies = {
        function.signature.name: function.node_def
        for function in graph_def.library.function
    }
    names = [info.name for info in signature_def.outputs.values()]
    seen = set()
    reached = set()
    while names:
        # Of an output "node:0", a control input "^node", or a function.
        name = names.pop().lstrip("^").partition(":")[0]
        if name in seen:
            continue
        seen.add(name)
        for node in bodies.get(name, [nodes[name]] if name in nodes else []):
            reached.add(node.op)
            names.extend(node.input if name in nodes else ())
            for attribute in node.attr.values():
                called = (attribute.func, *attribute.list.func)
                names.extend(function.name for function in called)
    return reached


def _wrap(
    call: Callable[..., list[Any]], metrics: Metrics | None
) -> Callable[..., list[np.ndarray]]:
    """Gives a session's callable the form of `Signature.run`."""

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        start = time.perf_counter()
        try:
            return [_to_array(value) for value in call(*arrays)]
        except tf.errors.OpError as error:
            text = _FUNCTION_NODE.sub("", error.message)
            raise ServingError(Code(error.error_code), text) from error
        except UnicodeDecodeError as error:
            # The graph's own error, with a client's bytes in its text, which
            # TensorFlow cannot raise. Its code is lost.
            text = error.object.decode(errors="replace")
            raise invalid_argument(_FUNCTION_NODE.sub("", text)) from error
        finally:
            if metrics is not None:
                metrics.observe_graph_run(time.perf_counter() - start)

    return run


def _to_array(value: Any) -> np.ndarray:
    # A session returns a scalar string as bytes, which NumPy would hold
    # without its trailing zeros unless asked to keep the object.
    return np.asarray(value, dtype=object if isinstance(value, bytes) else None)
