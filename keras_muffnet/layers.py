"""Layers that Keras lacks."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="keras_muffnet")
class ChannelSlice(keras.layers.Layer):
    """Takes channels `start` to `stop` of a batch of feature maps.

    One group of a sharing matrix. It is a layer, not a plain `x[..., a:b]`, so
    that it stands in `model.layers` and whoever walks the graph recognises it.

    Args:
        start: first channel taken, counted from 0.
        stop: the channel after the last one taken.
        data_format: "channels_last" or "channels_first". Defaults to
            `keras.config.image_data_format()`.

    Input shape: `(batch, height, width, channels)`, or channels first.
    Output shape: the same with `stop - start` channels.

    Raises:
        ValueError: if the input has fewer than `stop` channels, or
            `0 <= start < stop` does not hold.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= start < stop:
            raise ValueError(
                "`start` and `stop` must fulfil 0 <= start < stop. "
                f"Received: start={start}, stop={stop}"
            )
        self.start = start
        self.stop = stop
        self.data_format = standardize_data_format(data_format)
        self.axis = 1 if self.data_format == "channels_first" else 3
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[self.axis]
        if channels is None or channels < self.stop:
            raise ValueError(
                f"{self.name!r} takes channels {self.start} to {self.stop}, so "
                f"its input must have at least {self.stop} channels. "
                f"Received: input_shape={input_shape}"
            )

    def call(self, inputs: Any) -> Any:
        # Plain slicing lowers to STRIDED_SLICE, which LiteRT's CPU delegate
        # runs; `keras.ops.slice` lowers to SLICE, which splits the delegate.
        if self.axis == 1:
            return inputs[:, self.start : self.stop]
        return inputs[..., self.start : self.stop]

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        shape = list(input_shape)
        shape[self.axis] = self.stop - self.start
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "start": self.start,
            "stop": self.stop,
            "data_format": self.data_format,
        }


def standardize_data_format(data_format: str | None) -> str:
    """Returns the image data format, Keras's own where none is given.

    Raises:
        ValueError: if it is not "channels_last" or "channels_first".
    """
    if data_format is None:
        return str(keras.config.image_data_format())
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            "`data_format` must be None, 'channels_last' or 'channels_first'. "
            f"Received: data_format={data_format!r}"
        )
    return data_format
