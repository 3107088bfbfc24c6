"""Small networks of all kinds, for the table of what can be quantized.

A network is a function of one symbolic input, or of several, in the middle of
a model: a convolution goes before it and a convolution or a dense layer behind.
"""

import functools
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from keras import ops

IMAGE = (12, 12, 3)
SEQUENCE = (16, 3)
VECTOR = (32,)


class Network(NamedTuple):
    """One row of the table.

    Attributes:
        kind: what of the table's sections it is in.
        body: from the symbolic inputs to an output.
        shapes: of the inputs, without the batch axis.
        stem: whether a convolution, or a dense layer, is before the body.
    """

    kind: str
    body: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...] = (IMAGE,)
    stem: bool = True


@functools.cache
def build(network: Network, seed: int = 0) -> keras.Model:
    """A model of random weights, with none at a value that hides mistakes."""
    keras.utils.set_random_seed(seed)
    inputs = [keras.Input(shape) for shape in network.shapes]
    tensors = inputs
    if network.stem:
        tensors = [_stem(x, f"stem{n}") for n, x in enumerate(inputs)]
    body = network.body
    if isinstance(body, layers.Layer):  # made before there was a seed
        body = type(body).from_config(body.get_config())
    outputs = body(*tensors)
    if network.stem and not isinstance(outputs, (list, tuple)):
        outputs = _head(outputs)
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)
    randomize(model)
    return model


def randomize(model: keras.Model) -> None:
    """Gives norms and biases values that no mistake hides behind."""
    rng = np.random.default_rng(2)
    for variable in model.weights:
        name = variable.path.rpartition("/")[2]
        if name in ("gamma", "moving_variance", "scale"):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif name == "alpha":
            variable.assign(rng.uniform(0.05, 0.5, variable.shape))
        elif name in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(scale=0.3, size=variable.shape))


def images(network: Network, count: int, seed: int = 1) -> list[np.ndarray]:
    """Inputs of a network, smooth as photos are, one array for each."""
    rng = np.random.default_rng(seed)
    arrays = []
    for shape in network.shapes:
        x = rng.normal(size=(count, *shape))
        for axis in range(1, len(shape)):
            x = (x + np.roll(x, 1, axis) + np.roll(x, 2, axis)) / np.sqrt(3)
        arrays.append(np.clip(x / 3, -1, 127 / 128).astype(np.float32))
    return arrays


# Names that Keras gives no layer: a body made earlier may have one of those.


def _stem(x: Any, name: str) -> Any:
    rank = len(x.shape)
    norm = layers.BatchNormalization(name=f"{name}_norm")
    if rank == 2:
        return norm(layers.Dense(32, name=name)(x))
    kind = layers.Conv2D if rank == 4 else layers.Conv1D
    return norm(kind(8, 3, padding="same", name=name)(x))


def _head(x: Any) -> Any:
    rank = len(x.shape)
    if rank == 4:
        return layers.Conv2D(6, 1, name="head")(x)
    if rank == 3:
        return layers.Conv1D(6, 1, name="head")(x)
    return layers.Dense(6, name="head")(x)


# Layers and operations that need more than one line.


def _conv(x: Any, activation: Any = None) -> Any:
    return layers.Conv2D(8, 3, padding="same", activation=activation)(x)


def _normed(x: Any, activation: str = "relu") -> Any:
    return layers.Activation(activation)(layers.BatchNormalization()(x))


def _attention_of_patches(x: Any) -> Any:
    """As in MobileViT: among the pixels of one place in all patches."""

    def patches(x: Any) -> Any:
        x = ops.reshape(layers.Conv2D(8, 1)(x), (-1, 4, 3, 12, 8))
        x = ops.reshape(ops.transpose(x, (0, 2, 1, 3, 4)), (-1, 3, 48, 2, 4))
        return ops.transpose(x, (0, 1, 3, 2, 4))

    query, key, value = patches(x), patches(x), patches(x)
    key = ops.transpose(key, (0, 1, 2, 4, 3))
    mixed = ops.matmul(ops.softmax(ops.matmul(query, key) * 0.5), value)
    return ops.reshape(ops.transpose(mixed, (0, 1, 3, 2, 4)), (-1, 12, 12, 8))


def _attention(x: Any) -> Any:
    query, key, value = [layers.Conv2D(8, 1)(x) for _ in range(3)]
    query, key, value = [
        ops.reshape(t, (-1, 144, 8)) for t in (query, key, value)
    ]
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) / np.sqrt(8.0)
    mixed = ops.matmul(ops.softmax(scores, axis=-1), value)
    return x + ops.reshape(mixed, (-1, 12, 12, 8))


def _channel_attention(x: Any) -> Any:
    y = ops.mean(x, axis=(1, 2), keepdims=True)
    y = layers.Conv2D(4, 1, activation="relu")(y)
    return x * layers.Conv2D(8, 1, activation="sigmoid")(y)


def _spatial_attention(x: Any) -> Any:
    pooled = ops.concatenate(
        [ops.mean(x, -1, keepdims=True), ops.max(x, -1, keepdims=True)], -1
    )
    return x * layers.Conv2D(1, 3, padding="same", activation="sigmoid")(pooled)


def _coordinates(x: Any) -> Any:
    line = np.linspace(-1, 1, 12, dtype=np.float32)
    grid = np.stack(np.meshgrid(line, line), -1)[None]
    grid = ops.broadcast_to(grid, (1, 12, 12, 2))
    return layers.Concatenate()([_conv(x), x[..., :2] * 0 + grid])


def _yolo(x: Any) -> Any:
    a = layers.Conv2D(4, 1, activation="sigmoid")(x)
    b = layers.Conv2D(4, 1)(x)
    c = layers.Conv2D(4, 1, activation="tanh")(x)
    return layers.Concatenate()([a, b, c])


def _heads(x: Any) -> Any:
    """One convolution for two levels, each with a norm of its own."""
    shared = layers.Conv2D(8, 3, padding="same")
    a = _normed(shared(x))
    b = _normed(shared(layers.AveragePooling2D(2)(x)))
    return layers.Add()([a, layers.UpSampling2D(2)(b)])


def _backbone() -> keras.Model:
    image = keras.Input((12, 12, 8))
    x = layers.Conv2D(8, 3, padding="same", name="conv")(image)
    return keras.Model(image, layers.ReLU(name="relu")(x), name="backbone")


def _twins(x: Any) -> Any:
    first, second = _backbone(), _backbone()
    second.name = "second"
    return layers.Subtract()([first(x), second(x * 0.5)])


class Block(layers.Layer):
    """A composite layer, as users write them."""

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(filters, 3, padding="same")
        self.norm = layers.BatchNormalization()

    def call(self, x: Any, training: bool = False) -> Any:
        """A residual block."""
        y = self.norm(self.convolution(x), training=training)
        return ops.relu(y) + x


class Subclassed(keras.Model):
    """A subclassed model."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(8)
        self.pool = layers.MaxPooling2D()

    def call(self, x: Any, training: bool = False) -> Any:
        """A block and a pool."""
        return self.pool(self.block(x, training=training))


def _several_readers(x: Any) -> Any:
    x = _conv(x, "relu")
    a = layers.Concatenate()([x, _conv(x)])
    b = layers.MaxPooling2D(3, 1, "same")(x)
    return layers.Concatenate()([a, b, layers.Conv2D(8, 1)(b)])


def _two_dots(x: Any) -> Any:
    a, b = layers.Dense(16)(x), layers.Dense(16)(x)
    return layers.Concatenate()([layers.Dot(1)([a, b]), a])


def _two(kind: type) -> Callable[[Any], Any]:
    return lambda x: kind()([_conv(x), _conv(x)])


def _mixed(x: Any, y: Any) -> Any:
    x = layers.GlobalAveragePooling2D()(_conv(x, "relu"))
    return layers.Dense(8, activation="relu")(layers.Concatenate()([x, y]))


def _channels_first(x: Any) -> Any:
    """A residual block with a gate, two branches and a head."""
    first = {"data_format": "channels_first"}
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, **first)(x)
    x = layers.ReLU()(layers.BatchNormalization(axis=1)(x))
    y = layers.DepthwiseConv2D(3, padding="same", **first)(x)
    x = layers.Add()([x, layers.BatchNormalization(axis=1)(y)])
    gate = layers.GlobalAveragePooling2D(keepdims=True, **first)(x)
    gate = layers.Conv2D(8, 1, activation="sigmoid", **first)(gate)
    x = layers.Multiply()([x, gate])
    x = layers.Concatenate(axis=1)(
        [
            layers.MaxPooling2D(2, **first)(x),
            layers.AveragePooling2D(2, **first)(x),
        ]
    )
    x = layers.PReLU(shared_axes=[2, 3])(x)
    x = x * np.linspace(0.5, 1, 16, dtype="f").reshape(16, 1, 1)
    x = layers.ZeroPadding2D(((0, 1), (2, 3)), **first)(x)
    a, b = ops.split(x, 2, axis=1)
    x = a - b[:, :, ::-1]
    scores = layers.Dense(5)(layers.Flatten(**first)(x))
    return [layers.Conv2D(4, 1, **first)(x), scores, ops.mean(x, axis=(2, 3))]


def _channels_first_sequence(x: Any) -> Any:
    first = {"data_format": "channels_first"}
    x = layers.Conv1D(8, 3, activation="relu", **first)(x)
    x = layers.LayerNormalization(axis=1)(x)
    return layers.Dense(4)(layers.GlobalMaxPooling1D(**first)(x))


def _of(function: Callable[..., Any], **arguments: Any) -> Callable[[Any], Any]:
    return lambda x: function(x, **arguments)


def _pooled(x: Any) -> Any:
    return layers.GlobalAveragePooling2D()(x)


_ACTIVATIONS = (
    *("celu", "elu", "exponential", "gelu", "hard_shrink"),
    *("hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu", "linear"),
    *("log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu"),
    *("sigmoid", "silu", "soft_shrink", "softmax", "softplus", "softsign"),
    *("sparse_plus", "sparse_sigmoid", "squareplus", "tanh", "tanh_shrink"),
)

_LAYERS: dict[str, Callable[[Any], Any]] = {
    "LeakyReLU": layers.LeakyReLU(0.1),
    "PReLU by channel": layers.PReLU(shared_axes=[1, 2]),
    "PReLU": layers.PReLU(),
    "ELU": layers.ELU(0.7),
    "glu": lambda x: ops.glu(x),
    "gelu with tanh": _of(ops.gelu, approximate=True),
    "ReLU of max_value": layers.ReLU(max_value=2.5),
    "ReLU of negative_slope": layers.ReLU(negative_slope=0.2),
    "ReLU of threshold": layers.ReLU(threshold=0.3),
    "Conv2DTranspose": layers.Conv2DTranspose(6, 3, 2, "same"),
    "Conv2DTranspose, BN, ReLU": lambda x: _normed(
        layers.Conv2DTranspose(6, 4, 2, "same", use_bias=False)(x)
    ),
    "Conv2DTranspose, valid": layers.Conv2DTranspose(
        6, 2, 2, activation="relu"
    ),
    "SeparableConv2D": layers.SeparableConv2D(8, 3, activation="relu"),
    "grouped Conv2D": layers.Conv2D(8, 3, groups=2, activation="relu"),
    "dilated Conv2D": layers.Conv2D(8, 3, dilation_rate=2),
    "Dense on maps": layers.Dense(8, activation="relu"),
    "Maximum": _two(layers.Maximum),
    "Minimum": _two(layers.Minimum),
    "Average": _two(layers.Average),
    "Multiply": _two(layers.Multiply),
    "Softmax over channels": layers.Softmax(),
    "Softmax over rows": layers.Softmax(axis=1),
    "Resizing, bilinear": layers.Resizing(17, 9),
    "Resizing, nearest": layers.Resizing(6, 24, interpolation="nearest"),
    "Resizing, bicubic": layers.Resizing(17, 9, interpolation="bicubic"),
    "Resizing, antialias": layers.Resizing(5, 9, antialias=True),
    "ZeroPadding2D": lambda x: _conv(layers.ZeroPadding2D(((1, 2), (0, 3)))(x)),
    "Cropping2D": layers.Cropping2D(((1, 2), (0, 3))),
    "UpSampling2D": layers.UpSampling2D(2, interpolation="bilinear"),
    "UpSampling2D, bicubic": layers.UpSampling2D(2, interpolation="bicubic"),
    "CenterCrop": layers.CenterCrop(7, 8),
    "padding below all, MaxPooling2D": lambda x: layers.MaxPooling2D(3, 2)(
        ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-np.inf)
    ),
    "Permute": layers.Permute((2, 1, 3)),
    "UnitNormalization": layers.UnitNormalization(),
    "LayerNormalization": layers.LayerNormalization(),
    "GroupNormalization": layers.GroupNormalization(4),
    "RMSNormalization": layers.RMSNormalization(),
    "AdaptiveAveragePooling2D": layers.AdaptiveAveragePooling2D(4),
    "AdaptiveMaxPooling2D": layers.AdaptiveMaxPooling2D(3),
    "what does nothing": lambda x: layers.Identity()(
        layers.ActivityRegularization(0.1)(
            layers.GaussianDropout(0.1)(
                layers.AlphaDropout(0.1)(
                    layers.RandomFlip()(layers.GaussianNoise(0.1)(x))
                )
            )
        )
    ),
    "Dropouts": lambda x: layers.SpatialDropout2D(0.2)(layers.Dropout(0.2)(x)),
}

_OF_SEQUENCES: dict[str, Callable[[Any], Any]] = {
    "Conv1D": layers.Conv1D(8, 3, 2, "same", activation="relu"),
    "Conv1D, causal": layers.Conv1D(8, 3, padding="causal", dilation_rate=2),
    "Conv1D, BN, ReLU": lambda x: _normed(layers.Conv1D(8, 3)(x)),
    "DepthwiseConv1D": layers.DepthwiseConv1D(3, 2),
    "SeparableConv1D": layers.SeparableConv1D(8, 3),
    "Conv1DTranspose": layers.Conv1DTranspose(8, 3, 2, "same"),
    "MaxPooling1D": layers.MaxPooling1D(2),
    "AveragePooling1D": layers.AveragePooling1D(3, 2, "same"),
    "GlobalAveragePooling1D": layers.GlobalAveragePooling1D(),
    "GlobalMaxPooling1D": layers.GlobalMaxPooling1D(),
    "adaptive pools": lambda x: layers.AdaptiveMaxPooling1D(4)(
        layers.SpatialDropout1D(0.1)(layers.AdaptiveAveragePooling1D(8)(x))
    ),
    "ZeroPadding1D": lambda x: layers.Conv1D(8, 3)(layers.ZeroPadding1D(2)(x)),
    "Cropping1D": layers.Cropping1D((1, 2)),
    "UpSampling1D": layers.UpSampling1D(2),
    "Dense on sequences": layers.Dense(8, activation="relu"),
    "LayerNormalization of sequences": layers.LayerNormalization(),
    "Permute of sequences": layers.Permute((2, 1)),
    "flattened sequence": layers.Flatten(),
    "residual of sequences": lambda x: (
        x + layers.Conv1D(8, 3, padding="same", activation="silu")(x)
    ),
    "attention of sequences": lambda x: ops.matmul(
        ops.softmax(ops.matmul(x, ops.transpose(x, (0, 2, 1)))), x
    ),
    "Dot of sequences": lambda x: layers.Dot(2)([x, layers.Dense(8)(x)]),
    "MultiHeadAttention": lambda x: x + layers.MultiHeadAttention(2, 4)(x, x),
    "MultiHeadAttention, dropout": lambda x: layers.MultiHeadAttention(
        2, 4, dropout=0.1
    )(x, layers.MaxPooling1D(2)(x)),
    "GroupQueryAttention": lambda x: layers.GroupQueryAttention(4, 4, 2)(x, x),
    "EinsumDense": layers.EinsumDense(
        "abc,cde->abde", (None, 2, 4), bias_axes="e", activation="relu"
    ),
}

_OF_VECTORS: dict[str, Callable[[Any], Any]] = {
    "perceptron": lambda x: _normed(layers.Dense(32)(x)),
    "RepeatVector": lambda x: layers.Conv1D(8, 3, padding="same")(
        layers.RepeatVector(4)(x)
    ),
    "Dot": _two_dots,
    "Dense with gelu": layers.Dense(32, activation="gelu"),
    "UnitNormalization of vectors": layers.UnitNormalization(),
    "LayerNormalization of vectors": layers.LayerNormalization(),
}

_OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "mean": _of(ops.mean, axis=1),
    "mean of maps": _of(ops.mean, axis=(1, 2)),
    "sum": _of(ops.sum, axis=(1, 2)),
    "max": _of(ops.max, axis=2),
    "min": _of(ops.min, axis=(1, 2), keepdims=True),
    "mean over channels": lambda x: x * ops.mean(x, axis=-1, keepdims=True),
    "pad": _of(ops.pad, pad_width=((0, 0), (1, 2), (0, 3), (0, 0))),
    "pad, reflect": _of(
        ops.pad, pad_width=((0, 0), (1, 2), (0, 3), (0, 0)), mode="reflect"
    ),
    "pad with a value": _of(
        ops.pad,
        pad_width=((0, 0), (1, 2), (0, 3), (0, 0)),
        constant_values=0.5,
    ),
    "transpose": _of(ops.transpose, axes=(0, 2, 1, 3)),
    "squeeze": lambda x: ops.squeeze(
        layers.GlobalAveragePooling2D(keepdims=True)(x), (1, 2)
    ),
    "expand_dims": lambda x: _conv(
        ops.expand_dims(ops.expand_dims(_pooled(x), 1), 1)
    ),
    "negative": lambda x: ops.relu(-x),
    "abs": ops.abs,
    "square": ops.square,
    "power": lambda x: x**3,
    "sqrt": lambda x: ops.sqrt(ops.relu(x) + 0.1),
    "exp": ops.exp,
    "log": lambda x: ops.log(ops.sigmoid(x) + 0.1),
    "clip": _of(ops.clip, x_min=-0.5, x_max=1.5),
    "clip above": _of(ops.clip, x_min=0.2, x_max=1.5),
    "maximum": lambda x: ops.maximum(x, 0.3),
    "minimum": lambda x: ops.minimum(_conv(x), x),
    "a constant for each row": lambda x: (
        x + np.linspace(-1, 1, 12, dtype="f").reshape(12, 1, 1)
    ),
    "a constant for each pixel": lambda x: (
        x * np.linspace(0.1, 1, 144, dtype="f").reshape(12, 12, 1)
    ),
    "a constant of more channels": lambda x: (
        x[..., :1] * np.linspace(0.1, 1, 8, dtype="f")
    ),
    "spatial slices": lambda x: x[:, 1:-2, ::2],
    "reversed rows": lambda x: x[:, ::-1],
    "a single row": lambda x: x[:, 3],
    "einsum": lambda x: ops.einsum("bhwc,bhvc->bhwv", x, _conv(x)),
    "einsum with a constant": lambda x: ops.einsum(
        "...c,dc->...d", x, np.linspace(-1, 1, 48, dtype="f").reshape(6, 8)
    ),
    "patch merging": lambda x: ops.concatenate(
        [x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]],
        axis=-1,
    ),
    "split of rows": lambda x: ops.add(*ops.split(x, 2, axis=1)),
    "stack": lambda x: ops.max(ops.stack([x, _conv(x)], axis=1), axis=1),
    "tile": _of(ops.tile, repeats=(1, 2, 1, 1)),
    "repeat": _of(ops.repeat, repeats=2, axis=2),
    "flip": _of(ops.flip, axis=1),
    "roll": _of(ops.roll, shift=2, axis=1),
    "take": _of(ops.take, indices=[3, 1, 1], axis=3),
    "swapaxes": _of(ops.swapaxes, axis1=1, axis2=2),
    "moveaxis": _of(ops.moveaxis, source=1, destination=2),
    "unstack": lambda x: ops.maximum(*ops.unstack(x, axis=1)[:2]),
    "grayscale": lambda x: ops.image.rgb_to_grayscale(x[..., :3]),
    "max_pool": _of(ops.max_pool, pool_size=2),
    "rsqrt": lambda x: ops.rsqrt(ops.square(x) + 1.0),
    "amax and amin": lambda x: ops.amax(x, 1) - ops.amin(x, 1),
    "conv of a constant": lambda x: ops.conv(
        x, np.linspace(-0.3, 0.4, 576, dtype="f").reshape(3, 3, 8, 8) ** 2
    ),
    "depthwise_conv of a constant": lambda x: ops.depthwise_conv(
        x, np.full((3, 3, 8, 1), 1 / 9, "f"), padding="same"
    ),
    "cast": _of(ops.cast, dtype="float32"),
    "resize": _of(ops.image.resize, size=(20, 15)),
    "average_pool": _of(ops.average_pool, pool_size=2),
    "pixel shuffle": lambda x: ops.reshape(
        ops.transpose(
            ops.reshape(x, (-1, 12, 12, 2, 2, 2)), (0, 1, 3, 2, 4, 5)
        ),
        (-1, 24, 24, 2),
    ),
    "broadcast sum": lambda x: x + ops.mean(x, axis=(1, 2), keepdims=True),
    "matmul with a constant": lambda x: ops.matmul(
        x, np.linspace(-1, 1, 48, dtype="f").reshape(8, 6)
    ),
    "attention": _attention,
    "attention of patches": _attention_of_patches,
    "channel attention": _channel_attention,
    "spatial attention": _spatial_attention,
}

# Functions of the same names as activations.
_FUNCTIONS = (
    *("celu", "elu", "hard_shrink", "hard_tanh", "leaky_relu", "log_sigmoid"),
    *("log_softmax", "selu", "soft_shrink", "softplus", "softsign"),
    *("sparse_plus", "sparse_sigmoid", "squareplus", "tanh_shrink"),
)


def _all_functions(x: Any) -> Any:
    """The operations that activations are made of have one rule."""
    outputs = [getattr(ops, name)(x) for name in _FUNCTIONS]
    return [*outputs, ops.threshold(x, 0.2, 0.0)]


NETWORKS: dict[str, Network] = {
    **{
        f"activation {name}": Network("activation", layers.Activation(name))
        for name in _ACTIVATIONS
    },
    **{name: Network("layer", body) for name, body in _LAYERS.items()},
    **{
        name: Network("sequence", body, (SEQUENCE,))
        for name, body in _OF_SEQUENCES.items()
    },
    **{
        name: Network("vector", body, (VECTOR,))
        for name, body in _OF_VECTORS.items()
    },
    **{name: Network("operation", body) for name, body in _OPERATIONS.items()},
    "images and vectors": Network("form", _mixed, (IMAGE, VECTOR)),
    "two images": Network(
        "form",
        lambda x, y: layers.Add()([_conv(x), _conv(y)]),
        (IMAGE, IMAGE),
    ),
    "vectors alone": Network("form", layers.Dense(4), (VECTOR,), False),
    "sequences alone": Network("form", layers.Conv1D(4, 3), (SEQUENCE,), False),
    "activations as functions": Network("form", _all_functions),
    "two outputs": Network("form", lambda x: [_conv(x), _pooled(x)]),
    "composite layer": Network("form", lambda x: Block(8)(x)),
    "subclassed model": Network("form", lambda x: Subclassed()(x)),
    "channels first": Network("form", _channels_first, ((3, 12, 12),), False),
    "sequences with channels first": Network(
        "form", _channels_first_sequence, ((3, 16),), False
    ),
    "norms of one convolution": Network("form", _heads),
    "two copies of a backbone": Network("form", _twins),
    "a layer named images": Network("form", layers.Conv2D(8, 3, name="images")),
    "coordinates": Network("form", _coordinates),
    "several readers": Network("form", _several_readers),
    "YOLO head": Network("form", lambda x: [_yolo(_conv(x, "relu"))]),
}
