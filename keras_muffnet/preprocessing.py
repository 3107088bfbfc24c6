"""How images are made ready for a network, and how a model remembers it.

Keras is imported by what needs it, on use, so that the constants are there
for all parts of the package.
"""

import dataclasses
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

if TYPE_CHECKING:
    import keras

# `preprocess_input` subtracts the mean and divides by the standard deviation.
MEAN = STD = 128.0
# What multiplies by less is taken to scale pixels of 0 to 255.
_PIXEL_SCALE = 0.1
# Classes that give pixels as they are, or moved; all "Random" layers do too.
_LEAVING_SCALES = {
    *("AugMix", "Cast", "CenterCrop", "Cropping2D", "CutMix", "GaussianNoise"),
    *("Dropout", "Identity", "MixUp", "Permute", "RandAugment", "Reshape"),
    *("Resizing", "SpatialDropout2D", "ZeroPadding2D"),
}
# Its file in the folder `assets.extra` of a SavedModel.
PREPROCESSING_FILE = "preprocessing.json"


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images are made ready for a model, and what its classes are called.

    An image is decoded to RGB, brought to the model's size, bilinearly with
    antialiasing and rounded to whole levels, and scaled.

    Attributes:
        crop: None where the whole image is resized, whatever its aspect
            ratio. Else the share of the shorter side that is kept: the image
            is resized so that this share is the model's size, and its center
            is cropped. 0.875 makes 256 and 224 of section 5.1.
        mean: pixel value in [0, 255] that becomes 0.
        std: what pixels are divided by, less the mean.
        class_names: a name for each class, or empty.

    Raises:
        ValueError: if an attribute is not as described.
    """

    crop: float | None = None
    mean: float = MEAN
    std: float = STD
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ValueError(
                f"`crop` must be None or in (0, 1]. Received: crop={self.crop}"
            )
        if not self.std > 0:
            raise ValueError(
                f"`std` must be positive. Received: std={self.std}"
            )
        # JSON has lists; a frozen dataclass is changed this way.
        object.__setattr__(self, "class_names", tuple(self.class_names))

    def get_config(self) -> dict[str, Any]:
        """Returns the attributes as JSON has them."""
        return {
            **dataclasses.asdict(self),
            "class_names": list(self.class_names),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Preprocessing":
        """Makes one of what `get_config` returned, possibly by a later version.

        What this version does not know is left out.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in config.items() if k in names})

    def scale(self, pixels: Any) -> Any:
        """Scales float pixels in [0, 255] for the model."""
        if (self.mean, self.std) == (0.0, 1.0):
            return pixels
        return (pixels - self.mean) / self.std

    def describe(self, scaling: str | None = None) -> str:
        """Describes in a line how an image is resized and scaled.

        Args:
            scaling: what to say in place of `mean` and `std`.
        """
        resizing = "resized as a whole"
        if self.crop is not None:
            resizing = (
                "resized and cropped to its center, "
                f"{self.crop:g} of the shorter side"
            )
        if scaling is None:
            scaling = "pixels in [0, 255]"
            if (self.mean, self.std) == (0.0, 1.0):
                scaling += ", which it scales"
            else:
                scaling += f" scaled by (x - {self.mean:g}) / {self.std:g}"
        return f"{resizing}, {scaling}"


def preprocessing_of(model: "keras.Model") -> Preprocessing:
    """Returns how images are made ready for a model.

    It is what `with_preprocessing` gave the model. One without takes whole
    images, scaled as `preprocess_input` does or, where its first layer scales
    pixels, not at all; see `scales_pixels`.

    Args:
        model: a functional or sequential model.

    Returns:
        The `Preprocessing`. Class names are empty where the model no longer
        ends in the layer that they were given for.
    """
    from keras_muffnet.layers import ImageInput

    for layer in model.layers:
        if isinstance(layer, ImageInput):
            found = Preprocessing.from_config(layer.preprocessing)
            if _names_classes(model, found.class_names):
                return found
            return dataclasses.replace(found, class_names=())
    if scales_pixels(model):
        return Preprocessing(mean=0.0, std=1.0)
    return Preprocessing()


def _names_classes(model: "keras.Model", names: tuple[str, ...]) -> bool:
    """Whether a model still ends in the layer of so many classes."""
    shape = model.output_shape
    if model.layers[-1].name != "predictions" or not isinstance(shape, tuple):
        return False
    # A detector answers with the background and four codes of a box, too.
    classes = shape[-1] - 5 if len(shape) == 3 else shape[-1]
    return len(names) == classes


def center_box(
    xp: Any, height: Any, width: Any, size: tuple[int, int], crop: float
) -> tuple[Any, Any, Any, Any]:
    """Finds the center of an image, as `Preprocessing.crop` says.

    Args:
        xp: `numpy`, or TensorFlow's functions under NumPy's names.
        height: of the image, float64.
        width: of the image, float64.
        size: height and width in pixels that the crop is to have.
        crop: share of the shorter side that is kept, in (0, 1].

    Returns:
        Height and width to resize the image to, and top and left of the crop
        in it: whole numbers, float64.
    """
    tall, wide = (round(side / crop) for side in size)
    scale = xp.maximum(tall / height, wide / width)
    new_height, new_width = xp.rint(height * scale), xp.rint(width * scale)
    top = xp.floor((new_height - size[0]) / 2)
    left = xp.floor((new_width - size[1]) / 2)
    return new_height, new_width, top, left


def image_input(
    model: "keras.Model", preprocessing: Preprocessing
) -> "keras.KerasTensor":
    """Makes an input like a model's own that knows how images are made ready.

    Args:
        model: a functional model with one input.
        preprocessing: what it is to know.

    Returns:
        The Keras tensor, for `keras.models.clone_model`.

    Raises:
        ValueError: if the model has another number of inputs.
    """
    from keras_muffnet.layers import ImageInput

    if len(model.inputs) != 1:
        raise ValueError(
            "`model` must have one input. Received a model with "
            f"{len(model.inputs)}: {model.name!r}"
        )
    [x] = model.inputs
    return ImageInput(
        preprocessing=preprocessing.get_config(),
        batch_shape=x.shape,
        dtype=x.dtype,
        name=x.name,
    ).output


def with_preprocessing(
    model: "keras.Model", preprocessing: Preprocessing
) -> "keras.Model":
    """Returns a copy of a model that knows how images are made ready for it.

    `save` and `keras.saving.load_model` keep it, and so do the exporters and
    all commands of this package.

    Args:
        model: a functional model with one input.
        preprocessing: what it is to know.

    Returns:
        The copy, not compiled, with the same weights.

    Raises:
        ValueError: if the model has another number of inputs.
    """
    import keras

    copy = keras.models.clone_model(
        model, input_tensors=image_input(model, preprocessing)
    )
    copy.set_weights(model.get_weights())
    return copy


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Scales pixels from [0, 255] to [-1, 127/128]: `(x - 128) / 128`.

    With these numbers a quantized model's int8 input is the pixel minus 128,
    exactly.

    ```python
    import numpy as np
    from keras_muffnet import preprocess_input

    images = np.full((1, 32, 32, 3), 128, "uint8")
    scaled = preprocess_input(images)  # float32 zeros
    ```

    Args:
        x: array or tensor of images, pixels in [0, 255], of any shape.
        data_format: None, "channels_last" or "channels_first". The scaling is
            the same for each channel, so either gives the same.

    Returns:
        An array, if `x` is one, or a tensor, of Keras's float type and the
        shape of `x`. `x` itself is left as it is.

    Raises:
        ValueError: if `data_format` is none of the above.
    """
    import keras

    from keras_muffnet.layers import standardize_data_format

    standardize_data_format(data_format)
    if isinstance(x, (np.ndarray, np.generic, list, tuple)):
        return (np.asarray(x, dtype=keras.config.floatx()) - MEAN) / STD
    return (keras.ops.cast(x, keras.config.floatx()) - MEAN) / STD


def scales_pixels(model: "keras.Model") -> bool:
    """Whether a model takes pixels as they are, in [0, 255].

    It is assumed to if the first thing that it does, but for resizing and
    augmentation, is a `keras.layers.Rescaling` or a
    `keras.layers.Normalization` that makes small numbers of such pixels. All
    others are assumed to take pixels scaled by `preprocess_input`, models
    whose graph is not known too.

    Args:
        model: a Keras model.
    """
    return is_pixel_scaling(first_operation(model))


def is_pixel_scaling(first: Any) -> bool:
    """Whether an operation makes small numbers of pixels in [0, 255].

    Args:
        first: what `first_operation` gives.
    """
    import keras

    if isinstance(first, keras.layers.Rescaling):
        scale = np.abs(np.asarray(first.scale))
    elif isinstance(first, keras.layers.Normalization):
        variance = keras.ops.convert_to_numpy(first.variance)
        scale = 1 / np.sqrt(np.maximum(variance, 1e-12))
        if first.invert:
            return False
    else:
        return False
    # A channel that is the same in all images says nothing.
    return bool(np.median(scale) < _PIXEL_SCALE)


def first_operation(model: "keras.Model") -> Any:
    """What a model does first with images, but for resizing and augmentation.

    Args:
        model: a Keras model.

    Returns:
        A layer or a function; None where the graph is not known, or does
        nothing else.
    """
    from keras_muffnet.graph import trace

    try:
        # A subclassed model inside it is taken as one layer.
        calls = trace(model, opens=lambda layer: False).calls
    except ValueError:  # A subclass, with a `call` of its own.
        return None
    for call in calls:
        kind = type(call.operation)
        name = kind.__name__
        passes = name in _LEAVING_SCALES or name.startswith("Random")
        if not (passes and kind.__module__.startswith("keras.")):
            return call.operation
    return None
