"""Augments batches on the device, on any Keras backend.

`Transform` is a pure function of images, labels and draws, and can be
compiled. Keras's own layers are used where they change each image on
its own. They do not for a crop (`RandomCrop` cuts a batch at one place), a flip
(done with the crop, in one gather) and color (`RandomColorJitter` draws from
a generator of its own).
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_muffnet.data.augmentation import Augmentation

# What `keras.layers.RandAugment` picks from; the layer's attributes.
OPERATIONS = (
    "random_shear",
    "random_translation",
    "random_rotation",
    "random_brightness",
    "random_color_degeneration",
    "random_contrast",
    "random_sharpness",
    "random_posterization",
    "solarization",
    "auto_contrast",
    "equalization",
)


class Transform:
    """Augments and scales batches.

    Args:
        recipe: what is done.
        mean: pixel value that becomes 0.
        std: what pixels are divided by, less the mean.
        classes: makes one-hot labels of that many; 0 keeps integers.
        data_format: of what comes out; pixels come in channels last.
    """

    def __init__(
        self,
        recipe: Augmentation,
        mean: float,
        std: float,
        classes: int,
        data_format: str,
    ):
        self.recipe = recipe
        self.mean = mean
        self.std = std
        self.classes = classes
        self.data_format = data_format
        # Pixels need more digits than a mixed precision policy would give.
        options = {"dtype": "float32", "data_format": "channels_last"}
        self._mix_up = keras.layers.MixUp(**options)
        self._cut_mix = keras.layers.CutMix(**options)
        self._erasing = keras.layers.RandomErasing(**options)
        if recipe.rand_augment:
            count, strength = recipe.rand_augment
            self._seed_dtype = keras.random.SeedGenerator(0).state.dtype
            self._rand_augment = keras.layers.RandAugment(
                num_ops=count, factor=strength, **options
            )

    def __call__(
        self, images: Any, labels: Any, draws: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Augments a batch.

        Args:
            images: uint8 `(n, height, width, channels)`.
            labels: integers `(n,)`.
            draws: those of `Augmentation.draw`; none for test images, which
                are scaled alone, but perhaps "weights" of the images.

        Returns:
            Images and labels as `Feed.epoch` describes them, and the weights
            that were given.
        """
        x = ops.cast(images, "float32")
        y = ops.one_hot(labels, self.classes) if self.classes else labels
        if "offset" in draws:
            x = self._crop(x, draws["offset"], draws["flip"])
        if "operations" in draws:
            x = self._operate(x, draws["operations"], draws["key"])
        if "color" in draws:
            x = _color(x, draws["color"])
        if "erased" in draws:
            x = self._erasing.transform_images(
                x,
                {
                    "apply_erasing": ops.ones((x.shape[0],), "bool"),
                    "batch_masks": _inside(draws["erased"], x),
                    "fill_value": ops.full_like(x, self.mean),
                },
            )
        if "partner" in draws:
            x, y = self._mix(x, y, draws)
        x = ops.cast((x - self.mean) / self.std, keras.config.floatx())
        if self.data_format == "channels_first":
            x = ops.transpose(x, (0, 3, 1, 2))
        return (x, y, draws["weights"]) if "weights" in draws else (x, y)

    def _crop(self, x: Any, offset: Any, flip: Any) -> Any:
        """Pads, crops and flips in one gather."""
        n, height, width, channels = x.shape
        pad = self.recipe.pad
        edges = [[0, 0], [pad, pad], [pad, pad], [0, 0]]
        x = ops.pad(x, edges, constant_values=self.mean)
        columns = ops.arange(width, dtype="int32")[None]
        columns = ops.where(flip[:, None], width - 1 - columns, columns)
        columns = columns + offset[:, 1:2]
        rows = ops.arange(height, dtype="int32")[None] + offset[:, 0:1]
        first = ops.arange(n, dtype="int32")[:, None] * (height + 2 * pad)
        rows = (first + rows) * (width + 2 * pad)
        pixels = ops.reshape(x, (-1, channels))
        return ops.take(pixels, rows[:, :, None] + columns[:, None], axis=0)

    def _operate(self, x: Any, operations: Any, key: Any) -> Any:
        """RandAugment, with operations of its own for each image.

        The layer itself picks the same ones for a whole batch, or draws
        others, as the version of Keras has it. How strongly
        each acts is drawn by the backend: it follows from seed, epoch and
        step, but another backend draws otherwise.
        """
        layer, seeds = self._rand_augment, Seeds(key, self._seed_dtype)
        drawn = {
            name: getattr(layer, name).get_random_transformation(
                x, training=True, seed=seeds
            )
            for name in OPERATIONS
        }
        x = ops.cast(x, layer.compute_dtype)
        for number in range(operations.shape[1]):
            chosen = operations[:, number, None, None, None]
            for k, name in enumerate(OPERATIONS):
                operated = getattr(layer, name).transform_images(x, drawn[name])
                x = ops.where(chosen == k, operated, x)
        return x

    def _mix(self, x: Any, y: Any, draws: dict[str, Any]) -> tuple[Any, Any]:
        both = {"permutation_order": draws["partner"]}
        if self.recipe.mixup:
            how = {**both, "mix_weight": draws["weight"]}
            x = self._mix_up.transform_images(x, how)
            y = self._mix_up.transform_labels(y, how)
        if self.recipe.cutmix:
            how = {
                **both,
                "batch_masks": _inside(draws["cut"], x),
                "mix_weight": draws["kept"],
            }
            x = self._cut_mix.transform_images(x, how)
            y = self._cut_mix.transform_labels(y, how)
        return x, y


class Seeds(keras.random.SeedGenerator):
    """Seeds that follow from a key which may be traced by a compiler.

    Keras's generator counts in a variable, and starts from a constant.
    """

    def __init__(self, key: Any, dtype: str):
        self._key = ops.cast(key, dtype)
        self._count = 0

    def next(self, ordered: bool = True) -> Any:  # noqa: D102
        self._count += 1
        count = ops.convert_to_tensor([self._count], dtype=self._key.dtype)
        return ops.concatenate([self._key, count])


def _color(x: Any, factors: Any) -> Any:
    """Brightness, contrast and saturation, in this order."""
    brightness, contrast, saturation = (
        factors[:, i, None, None, None] for i in range(3)
    )
    x = ops.clip(x * brightness, 0.0, 255.0)
    mean = ops.mean(_gray(x), axis=(1, 2, 3), keepdims=True)
    x = ops.clip(mean + (x - mean) * contrast, 0.0, 255.0)
    gray = _gray(x)
    return ops.clip(gray + (x - gray) * saturation, 0.0, 255.0)


def _gray(x: Any) -> Any:
    # The luma of ITU-R BT.601, as everywhere.
    weights = ops.convert_to_tensor([0.299, 0.587, 0.114], dtype=x.dtype)
    return ops.sum(x * weights, axis=-1, keepdims=True)


def _inside(boxes: Any, x: Any) -> Any:
    """Which pixels of `x` lie in the boxes: `(n, height, width, 1)`."""
    top, left, bottom, right = (boxes[:, i, None, None] for i in range(4))
    rows = ops.arange(x.shape[1], dtype="int32")[None, :, None]
    columns = ops.arange(x.shape[2], dtype="int32")[None, None]
    inside = (rows >= top) & (rows < bottom)
    inside = inside & (columns >= left) & (columns < right)
    return inside[..., None]


def compiled(transform: Callable) -> Callable:
    """Compiles a function of tensors with the backend's own compiler."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(transform)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(transform)

    def converted(*inputs: Any) -> Any:
        return transform(*keras.tree.map_structure(_tensor, inputs))

    return converted


def _tensor(array: Any) -> Any:
    return ops.convert_to_tensor(array)
