"""Layers that stay as they are: copies, and their classes elsewhere."""

from collections.abc import Iterable
from typing import Any

import keras

from keras_muffnet.quantization.layouts import LIBRARIES


def clone_layer(layer: keras.layers.Layer, name: str = "") -> Any:
    """Makes a layer of the same configuration, without its weights.

    Args:
        layer: the layer.
        name: the new one's; that of the layer if none is given.
    """
    if isinstance(layer, keras.layers.Lambda):
        # Its function would be read from bytes, which Keras holds unsafe.
        return keras.layers.Lambda(
            layer.function, arguments=layer.arguments, name=name or layer.name
        )
    config = layer.get_config()
    return type(layer).from_config({**config, "name": name or layer.name})


def modules_to_import(operations: Iterable[Any]) -> list[str]:
    """Names the modules that register what a saved model consists of.

    Args:
        operations: layers, and functions, which have no class of their own.

    Returns:
        The names of the modules, none for Keras's layers and this package's.

    Raises:
        ValueError: naming the first layer that another process cannot load.
    """
    modules: dict[str, None] = {}
    for outer in operations:
        inner: Iterable[Any] = getattr(outer, "_flatten_layers", list)()
        for layer in inner:
            kind = type(layer)
            name = kind.__module__
            if isinstance(layer, keras.layers.Lambda):
                _refuse(layer)
            if name.startswith(LIBRARIES):
                continue
            known = keras.saving.get_registered_name(kind) != kind.__name__
            if not known or name == "__main__":
                _refuse(layer)
            modules[name] = None
    return list(modules)


def _refuse(layer: keras.layers.Layer) -> None:
    raise ValueError(
        f"`model` cannot be converted with layer {layer.name!r} "
        f"({type(layer).__name__}) left in float unless Keras runs on "
        "TensorFlow: another process converts it, and does not know the class. "
        "Set KERAS_BACKEND=tensorflow; or register the class, by "
        "`keras.saving.register_keras_serializable`, in a module that can be "
        "imported"
    )
