"""What a model must be to be exported."""

from typing import Any

import keras


def image_shape(model: Any) -> tuple[int | None, int | None, int]:
    """Returns height, width and channels of the images that a model takes.

    Args:
        model: a Keras model with one image input and one output. Height and
            width may be free.

    Raises:
        ValueError: if it is not of that kind, or Keras does not run on
            TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "Exporting needs Keras to run on TensorFlow: set KERAS_BACKEND. "
            f"Received: KERAS_BACKEND={keras.backend.backend()}"
        )
    if not isinstance(model, keras.Model) or not hasattr(model, "inputs"):
        raise ValueError(
            "`model` must be a functional or a built sequential Keras model. "
            f"Received: {model!r}"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "`model` must have one input and one output. Received a model "
            f"with {len(model.inputs)} and {len(model.outputs)}"
        )
    shape = tuple(model.inputs[0].shape[1:])
    if len(shape) != 3 or shape[-1] is None:
        raise ValueError(
            "`model` must take channels-last images. "
            f"Received a model with input shape {model.input_shape}"
        )
    return shape
