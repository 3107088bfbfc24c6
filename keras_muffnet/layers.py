"""Layers that Keras lacks."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_muffnet._arguments import positive_integer


@keras.saving.register_keras_serializable(package="keras_muffnet")
class ImageInput(keras.layers.InputLayer):
    """An input that knows how images are made ready for it.

    Being part of the model, the knowledge stays with it through `save`,
    `load_model` and models built on top of its input.
    `keras_muffnet.preprocessing` writes and reads it.

    Args:
        preprocessing: what `Preprocessing.get_config` returns.
        **kwargs: as of `keras.layers.InputLayer`.
    """

    def __init__(
        self, preprocessing: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.preprocessing = dict(preprocessing or {})

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "preprocessing": self.preprocessing}


@keras.saving.register_keras_serializable(package="keras_muffnet")
class ChannelSlice(keras.layers.Layer):
    """Takes channels `start` to `stop` of a batch of feature maps.

    One group of a sharing matrix. It is a layer, not a plain `x[..., a:b]`, so
    that it stands in `model.layers` and whoever walks the graph recognizes it.

    ```python
    import numpy as np
    from keras_muffnet import ChannelSlice

    maps = np.zeros((1, 8, 8, 24), "float32")
    group = ChannelSlice(0, 16)(maps)  # (1, 8, 8, 16)
    ```

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
                "`start` and `stop` must satisfy 0 <= start < stop. "
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


@keras.saving.register_keras_serializable(package="keras_muffnet")
class ChannelShuffle(keras.layers.Layer):
    """Interleaves the channels of groups: first of each, second of each, ...

    Channel k of group g of n channels each moves to place `k * groups + g`.

    Args:
        groups: number of groups that the channels are in, side by side.
        data_format: "channels_last" or "channels_first". Defaults to
            `keras.config.image_data_format()`.

    Input shape: `(batch, height, width, channels)`, or channels first.
    Output shape: the same.

    Raises:
        ValueError: if `groups` does not divide the channels.
    """

    def __init__(
        self, groups: int, data_format: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.groups = positive_integer("groups", groups)
        self.data_format = standardize_data_format(data_format)
        self.axis = 1 if self.data_format == "channels_first" else 3
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[self.axis]
        if channels is None or channels % self.groups:
            raise ValueError(
                f"{self.name!r} shuffles {self.groups} groups, which must "
                f"divide the channels. Received: input_shape={input_shape}"
            )
        self.each = channels // self.groups

    def call(self, inputs: Any) -> Any:
        # The other axes go into one or two: LiteRT transposes few axes fast.
        _, *sizes = ops.shape(inputs)
        if self.axis == 1:
            x = ops.reshape(
                inputs, (-1, self.groups, self.each, sizes[1] * sizes[2])
            )
            x = ops.transpose(x, (0, 2, 1, 3))
        else:
            x = ops.reshape(
                inputs, (-1, sizes[0] * sizes[1], self.groups, self.each)
            )
            x = ops.transpose(x, (0, 1, 3, 2))
        return ops.reshape(x, (-1, *sizes))

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "groups": self.groups,
            "data_format": self.data_format,
        }


@keras.saving.register_keras_serializable(package="keras_muffnet")
class ChannelGather(keras.layers.Layer):
    """Takes channels by their indices, in any order and any number of times.

    Args:
        count: how many channels are taken.
        data_format: "channels_last" or "channels_first". Defaults to
            `keras.config.image_data_format()`.

    Attributes:
        indices: weight of shape `(count,)`, int32, not trainable: the channels
            taken, counted from 0. At first they are spread evenly.

    Input shape: `(batch, height, width, channels)`, or channels first, or
    `(batch, channels)`.
    Output shape: the same with `count` channels.
    """

    def __init__(
        self, count: int, data_format: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.count = positive_integer("count", count)
        self.data_format = standardize_data_format(data_format)

    def _axis(self, rank: int) -> int:
        return 1 if self.data_format == "channels_first" else rank - 1

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[self._axis(len(input_shape))]
        if channels is None:
            raise ValueError(
                f"{self.name!r} must know the number of channels. "
                f"Received: input_shape={input_shape}"
            )
        self.indices = self.add_weight(
            shape=(self.count,),
            dtype="int32",
            initializer=lambda shape, dtype: ops.cast(
                ops.arange(shape[0]) * channels // shape[0], dtype
            ),
            trainable=False,
            name="indices",
        )

    def call(self, inputs: Any) -> Any:
        return ops.take(inputs, self.indices, axis=self._axis(inputs.ndim))

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        shape = list(input_shape)
        shape[self._axis(len(shape))] = self.count
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "count": self.count,
            "data_format": self.data_format,
        }


@keras.saving.register_keras_serializable(package="keras_muffnet")
class LearnedGroupConv2D(keras.layers.Conv2D):
    """1x1 convolution that learns which inputs each group of filters needs.

    CondenseNet's learned group convolution. It computes all inputs for all
    filters, with those masked that `drop` has dropped, for a group at a time.
    After `condensation - 1` drops each group has 1 of `condensation` inputs
    left and `keras_muffnet.baselines.condense` can make a grouped convolution
    of it.

    Args:
        filters: number of filters, divided into the groups side by side.
        learned_groups: number of groups.
        condensation: C; each drop takes 1/C of the inputs from each group.
        group_lasso: weight of the group-lasso loss: the sum, over groups and
            inputs, of the length of the vector of weights from the input to
            the group's filters. It ends with the last drop.
        kernel_initializer: as for `keras.layers.Conv2D`.
        data_format: as for `keras.layers.Conv2D`.

    Attributes:
        mask: weight of shape `(inputs, learned_groups)`, not trainable: 1
            where a group has an input, 0 where that was dropped.

    Input shape: `(batch, height, width, channels)`, or channels first.
    Output shape: the same with `filters` channels.

    Raises:
        ValueError: if the groups do not divide the filters, or `condensation`
            not the input channels.
    """

    # What Keras has there knows of its own weights alone.
    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables

    def __init__(
        self,
        filters: int,
        learned_groups: int,
        condensation: int,
        group_lasso: float = 0.0,
        kernel_initializer: Any = "he_normal",
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters,
            1,
            use_bias=False,
            kernel_initializer=kernel_initializer,
            data_format=data_format,
            **kwargs,
        )
        self.learned_groups = positive_integer("learned_groups", learned_groups)
        self.condensation = _two_or_more("condensation", condensation)
        self.group_lasso = group_lasso
        if filters % learned_groups:
            raise ValueError(
                "`learned_groups` must divide `filters`. Received: "
                f"learned_groups={learned_groups}, filters={filters}"
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        inputs = self.kernel.shape[2]
        if inputs % self.condensation:
            raise ValueError(
                f"{self.name!r} drops 1/{self.condensation} of its inputs at a "
                "time, which must divide the channels. "
                f"Received: input_shape={input_shape}"
            )
        self.mask = self.add_weight(
            shape=(inputs, self.learned_groups),
            initializer="ones",
            trainable=False,
            name="mask",
        )

    def call(self, inputs: Any) -> Any:
        if self.group_lasso:
            self.add_loss(self._lasso())
        return super().call(inputs)

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        each = self.filters // self.learned_groups
        mask = ops.cast(ops.repeat(self.mask, each, axis=1), kernel.dtype)
        return super().convolution_op(inputs, kernel * mask)

    def _lasso(self) -> Any:
        kernel = ops.reshape(
            self.kernel, (self.kernel.shape[2], self.learned_groups, -1)
        )
        mask = ops.cast(self.mask, kernel.dtype)
        squares = ops.sum(ops.square(kernel), axis=-1) * mask
        # The root of a small number instead of 0, where it has no slope.
        lengths = ops.sqrt(ops.maximum(squares, 1e-6)) * mask
        left = self.kernel.shape[2] // self.condensation * self.learned_groups
        unfinished = ops.cast(ops.sum(mask) > left, kernel.dtype)
        return self.group_lasso * unfinished * ops.sum(lengths)

    @property
    def stages(self) -> int:
        """How often inputs are dropped in all."""
        return self.condensation - 1

    @property
    def stage(self) -> int:
        """How often inputs have been dropped."""
        return _stage(self)

    def drop(self) -> None:
        """Drops from each group the inputs with the least mean weight.

        Raises:
            ValueError: if that was done `stages` times already.
        """
        kernel = ops.convert_to_numpy(self.kernel)
        kernel = kernel.reshape(kernel.shape[2], self.learned_groups, -1)
        _drop(self, np.abs(kernel).mean(axis=-1))

    def get_config(self) -> dict[str, Any]:
        config = keras.layers.Layer.get_config(self)
        whole = super().get_config()
        same = ("filters", "kernel_initializer", "data_format")
        return {
            **config,
            **{name: whole[name] for name in same},
            "learned_groups": self.learned_groups,
            "condensation": self.condensation,
            "group_lasso": self.group_lasso,
        }


@keras.saving.register_keras_serializable(package="keras_muffnet")
class PrunedDense(keras.layers.Dense):
    """Dense layer that learns which of its inputs it needs.

    Args:
        units: as for `keras.layers.Dense`.
        condensation: C; all but 1/C of the inputs are dropped, at once.
        **kwargs: as for `keras.layers.Dense`.

    Attributes:
        mask: weight of shape `(inputs, 1)`, not trainable: 1 for an input, 0
            for one that was dropped.

    Input and output shape: those of `keras.layers.Dense`.
    """

    # What Keras has there knows of its own weights alone.
    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables

    def __init__(self, units: int, condensation: int, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.condensation = _two_or_more("condensation", condensation)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.mask = self.add_weight(
            shape=(self.kernel.shape[0], 1),
            initializer="ones",
            trainable=False,
            name="mask",
        )

    def call(self, inputs: Any) -> Any:
        mask = ops.cast(ops.squeeze(self.mask, axis=1), inputs.dtype)
        return super().call(inputs * mask)

    @property
    def stages(self) -> int:
        """How often inputs are dropped in all."""
        return 1

    @property
    def stage(self) -> int:
        """How often inputs have been dropped."""
        return _stage(self)

    def drop(self) -> None:
        """Drops the inputs with the least mean weight.

        Raises:
            ValueError: if that was done already.
        """
        kernel = ops.convert_to_numpy(self.kernel)
        _drop(self, np.abs(kernel).mean(axis=-1, keepdims=True))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "condensation": self.condensation}


def _two_or_more(name: str, value: Any) -> int:
    if positive_integer(name, value) < 2:
        raise ValueError(
            f"`{name}` must be 2 or more. Received: {name}={value!r}"
        )
    return int(value)


def _dropped_at_once(layer: Any) -> int:
    inputs = layer.mask.shape[0]
    return (inputs - inputs // layer.condensation) // layer.stages


def _stage(layer: Any) -> int:
    mask = ops.convert_to_numpy(layer.mask)
    return int((mask[:, 0] == 0).sum()) // _dropped_at_once(layer)


def _drop(layer: Any, size: np.ndarray) -> None:
    """Masks, in each column of `size`, the least of what is left."""
    if layer.stage >= layer.stages:
        raise ValueError(
            f"{layer.name!r} has dropped all inputs that it can drop."
        )
    mask = ops.convert_to_numpy(layer.mask).copy()
    order = np.argsort(np.where(mask > 0, size, np.inf), axis=0, kind="stable")
    least = order[: _dropped_at_once(layer)]
    np.put_along_axis(mask, least, 0, axis=0)
    layer.mask.assign(mask)


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
