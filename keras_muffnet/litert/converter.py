"""From TensorFlow functions to LiteRT files."""

import re
import tempfile
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_muffnet.litert.model import read_operations

# Operations of a file whose weights were not frozen: right answers, ten times
# slower.
_UNFROZEN = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}
# Letters of the converter's message that are shown.
_LONGEST_REASON = 200


def convert_function(
    function: Any, configure: Callable[[Any], None] | None = None
) -> bytes:
    """Converts a function to a LiteRT file that holds its weights.

    Args:
        function: a concrete function of TensorFlow, whose arguments and
            outputs become the file's.
        configure: sets what it likes of the `tf.lite.TFLiteConverter`.

    Returns:
        The `.tflite` file's bytes.

    Raises:
        RuntimeError: if LiteRT has no operation for one of the function's, or
            the file would hold variables.
        ImportError: if ai-edge-litert, which checks that, is not installed.
    """
    # Holding the variables, not the model, saves nothing but this function:
    # TensorFlow would write down every layer, which takes a minute.
    module = tf.Module()
    module.used = function.variables
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=function)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if configure is not None:
            configure(converter)
        try:
            content = converter.convert()
        except Exception as error:  # TensorFlow exports no class of its errors
            raise RuntimeError(
                f"The model cannot be a LiteRT file: {_reason(error)}"
            ) from error
    unfrozen = _UNFROZEN & {op.name for op in read_operations(content)}
    if unfrozen:
        raise RuntimeError(
            "The converted model must hold its weights as constants. "
            f"Found operations: {', '.join(sorted(unfrozen))}"
        )
    return content


def _reason(error: Exception) -> str:
    """What the converter says, without the graph that it prints."""
    text = str(error)
    missing = re.search(r"^TF Select ops: (.*)", text, re.MULTILINE)
    if missing:
        return f"LiteRT has no operation for {missing[1]}"
    # Where in the graph it is stands in front, in parentheses.
    said = re.search(r"error: (?:loc\(.*\): )?(.*)", text)
    words = " ".join((said[1] if said else text).split())
    if len(words) > _LONGEST_REASON:
        words = f"{words[: _LONGEST_REASON - 3]}..."
    return words or type(error).__name__
