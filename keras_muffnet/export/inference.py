"""How an exported model is run."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_muffnet.folding import FoldedModel

# A graph with its constants must stay below 2 GB, and some runtimes copy it.
_MOST_BYTES = 2**30


def make_inference_fn(
    model: keras.Model, fold: bool
) -> tuple[Callable[[Any], Any], str]:
    """Returns a function that runs a model on images, and its kind in words.

    Args:
        model: a Keras model with one input and one output.
        fold: whether to fold batch normalization and to write weights as
            constants, where the model's graph allows; see
            `keras_muffnet.folding`. Where it does not, a warning gives the
            reason.
    """
    as_it_is = functools.partial(model, training=False)
    if not fold:
        return as_it_is, "layers as they are, weights as variables"
    try:
        folded = FoldedModel(model)
        if folded.nbytes > _MOST_BYTES:
            raise ValueError(
                f"the weights, {folded.nbytes:,} bytes, are more than a graph "
                f"should hold, {_MOST_BYTES:,} bytes"
            )
    except ValueError as error:
        warnings.warn(
            f"Exported with its layers as they are, not folded: {error}",
            stacklevel=3,
        )
        return as_it_is, "layers as they are, which could not be folded"
    parts = [f"{len(folded.folded)} normalizations folded into kernels"]
    if folded.lines:
        parts.append(f"{len(folded.lines)} into a scale and an offset")
    if folded.left:
        parts.append(f"{len(folded.left)} left as they are")
    return folded, ", ".join(parts)
