"""SSD: a detector on top of any backbone.

"SSD: Single Shot MultiBox Detector" (Liu et al., 2016), with levels and heads
as GluonCV's SSD512 has them, which section 5.4 of the MuffNet paper uses.
"""

import collections
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import KerasTensor
from keras import layers

from keras_muffnet._arguments import positive_integer
from keras_muffnet.blocks import batch_norm
from keras_muffnet.blocks import channel_axis
from keras_muffnet.blocks import image_shape
from keras_muffnet.detection.anchors import RATIOS
from keras_muffnet.detection.anchors import SCALES
from keras_muffnet.detection.anchors import anchor_boxes
from keras_muffnet.detection.anchors import check_anchors
from keras_muffnet.detection.postprocess import Detections
from keras_muffnet.detection.postprocess import detections
from keras_muffnet.graph import trace
from keras_muffnet.muffnet import MuffNet
from keras_muffnet.published import detector_file
from keras_muffnet.published import published_detectors

# Strides of the backbone's maps that are levels.
STRIDES = (16, 32)
# Filters of the levels behind the backbone.
EXTRA_FILTERS = (512, 512, 256, 256)
# The least filters of the 1x1 convolution that each of them starts with.
_LEAST_MIDDLE = 128


@keras.saving.register_keras_serializable(package="keras_muffnet")
class SSDPredictions(layers.Concatenate):
    """Joins class logits and box codes; knows the anchors that they are of.

    The last layer of what `SSD` builds.

    Args:
        image_size: height and width of the network's input in pixels.
        maps: rows and columns of each level's map.
        scales: see `anchors.anchor_boxes`.
        ratios: see `anchors.anchor_boxes`.

    Input: logits `(batch, anchors, classes + 1)`, background first, and codes
    `(batch, anchors, 4)`; see `boxes.encode`.
    Output: float32 `(batch, anchors, classes + 5)`.
    """

    def __init__(
        self,
        image_size: Sequence[int],
        maps: Sequence[Sequence[int]],
        scales: Sequence[float],
        ratios: Sequence[Sequence[float]],
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"axis": -1, "dtype": "float32", **kwargs})
        height, width = image_size
        self.image_size = (height, width)
        self.maps = [(rows, columns) for rows, columns in maps]
        self.scales = list(scales)
        self.ratios = [list(row) for row in ratios]

    @property
    def anchors(self) -> np.ndarray:
        """float32 `(anchors, 4)` in pixels of the input."""
        return anchor_boxes(
            self.image_size, self.maps, self.scales, self.ratios
        )

    def get_config(self) -> dict[str, Any]:
        """Returns what makes the same layer."""
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "maps": self.maps,
            "scales": self.scales,
            "ratios": self.ratios,
        }


def SSD(
    backbone: keras.Model | None = None,
    classes: int = 80,
    input_shape: Sequence[int] | None = None,
    levels: Sequence[str] | None = None,
    extra_filters: Sequence[int] = EXTRA_FILTERS,
    scales: Sequence[float] = SCALES,
    ratios: Sequence[Sequence[float]] = RATIOS,
    name: str | None = None,
) -> keras.Model:
    """Builds a detector.

    Its levels are the last maps of stride 16 and 32 of the backbone, and four
    more behind them, each half the size of the one before. At 512x512 they have
    32, 16, 8, 4, 2 and 1 rows and 6,132 anchors, at 300x300 19, 10, 5, 3, 2 and
    1 rows and 2,268 anchors.

    ```python
    from keras_muffnet.detection import SSD, SSDLoss, detector

    model = SSD(classes=20, input_shape=(300, 300, 3))
    model.compile("sgd", SSDLoss(model.layers[-1].anchors))
    detect = detector(model)
    ```

    `model.fit(images, targets)` trains it, and `detect(images)` finds objects.

    Args:
        backbone: a functional Keras model without classifier, whose input is
            of `input_shape` or of free size. One of `input_shape` becomes part
            of the detector itself; of one of free size a copy, weights
            included. Defaults to `MuffNet(include_top=False)`.
        classes: number of classes, background left out.
        input_shape: shape of an image, of static size; channels first where
            Keras's data format says so. Defaults to that of the backbone if it
            is static, and to 512x512x3 if not.
        levels: names of the backbone's layers whose outputs are the first
            levels, finest first. By default they are found: of each stride the
            last layer that all paths lead through.
        extra_filters: filters of the levels behind the backbone, each a 1x1
            convolution to as many, at least 128, and a 3x3 convolution of
            stride 2.
        scales: sides of the anchors as shares of the image's side: one a
            level, and one more.
        ratios: width to height of the anchors: a row a level, each starting
            with 1.
        name: name of the model; by default "ssd" and that of the backbone.

    Returns:
        A Functional `keras.Model`. Its output is float32 `(batch, anchors,
        classes + 5)`: logits of the classes, background first, then the box
        code. Its last layer, `SSDPredictions`, knows the anchors.

    Raises:
        ValueError: if an argument is not one of the above, a level is not
            found, or the backbone does not take `input_shape`.
    """
    classes = positive_integer("classes", classes)
    for filters in extra_filters:
        positive_integer("extra_filters", filters)
    count = len(STRIDES if levels is None else levels) + len(extra_filters)
    check_anchors(count, scales, ratios)
    shape = _check_shape(input_shape, backbone)
    if backbone is None:
        backbone = MuffNet(input_shape=shape, include_top=False)
    model = _at_shape(backbone, shape)
    if levels is None:
        levels = find_levels(model)
    maps = [_output(model, level) for level in levels]
    for number, filters in enumerate(extra_filters, start=1):
        maps.append(_extra_level(maps[-1], filters, f"extra{number}"))
    logits, codes = [], []
    for number, (x, row) in enumerate(zip(maps, ratios, strict=True), start=1):
        anchors = len(row) + 1
        head = f"level{number}"
        logits.append(_head(x, anchors, classes + 1, f"{head}_classes"))
        codes.append(_head(x, anchors, 4, f"{head}_boxes"))
    x = SSDPredictions(
        _size(shape),
        [_size(x.shape[1:]) for x in maps],
        scales,
        ratios,
        name="predictions",
    )(
        [
            layers.Concatenate(axis=1, name="classes")(logits),
            layers.Concatenate(axis=1, name="boxes")(codes),
        ]
    )
    return keras.Model(model.input, x, name=name or f"ssd_{backbone.name}")


def pretrained_ssd(name: str) -> keras.Model:
    """Builds a detector whose weights ship with the package.

    ```python
    import numpy as np
    from keras_muffnet.detection import detector, pretrained_ssd

    model = pretrained_ssd("bccd")
    images = np.zeros((1, 300, 300, 3), "float32")
    boxes, scores, classes, count = detector(model)(images)
    ```

    Args:
        name: a key of `keras_muffnet.published_detectors()`, which has its
            classes and the size of its images. Pixels are scaled by
            `keras_muffnet.preprocess_input`.

    Returns:
        A Functional `keras.Model`, as `SSD` builds it.

    Raises:
        ValueError: if none of that name ships.
        OSError: if the file of the weights is damaged.
    """
    published = published_detectors()
    if name not in published:
        raise ValueError(
            f"`name` must be one of {', '.join(published)}. "
            f"Received: name={name!r}"
        )
    path = detector_file(name)
    entry = published[name]
    model = SSD(
        MuffNet(
            input_shape=image_shape(entry.size),
            alpha=entry.alpha,
            include_top=False,
            stem="imagenet",
        ),
        len(entry.class_names),
        extra_filters=entry.extra_filters,
        scales=entry.scales,
        name=f"ssd_{name}",
    )
    model.load_weights(path)
    return model


def find_levels(
    backbone: keras.Model, strides: Sequence[int] = STRIDES
) -> list[str]:
    """Finds the layers that give a backbone's last maps of some strides.

    A layer counts only if all paths from the input to the output lead through
    it: the end of a stage, not the inside of a block that the next one starts
    with. Layers that only pad do not count.

    ```python
    import keras
    from keras_muffnet.detection import find_levels

    backbone = keras.applications.MobileNet(
        input_shape=(224, 224, 3), include_top=False, weights=None
    )
    find_levels(backbone)  # ['conv_pw_11_relu', 'conv_pw_13_relu']
    ```

    Args:
        backbone: a functional model of images of static size, without
            classifier.
        strides: image size to map size, for each level wanted.

    Returns:
        A layer's name for each stride.

    Raises:
        ValueError: if there is no map of one of the strides, naming it.
    """
    graph = trace(backbone)
    image = _size(graph.inputs[0].shape[1:])
    unread = collections.Counter(
        id(x) for call in graph.calls for x in call.inputs
    )
    alive = {id(x) for x in graph.inputs}
    found: dict[int, str] = {}
    for call in graph.calls:
        unread.subtract(id(x) for x in call.inputs)
        alive -= {id(x) for x in call.inputs if not unread[id(x)]}
        alive |= {id(x) for x in call.outputs}
        shape = call.outputs[0].shape
        if (
            len(alive) > 1
            or len(shape) != 4
            or isinstance(call.operation, layers.ZeroPadding2D)
        ):
            continue
        for stride in strides:
            # Some backbones round down.
            if all(
                n in (side // stride, -(-side // stride))
                for n, side in zip(_size(shape[1:]), image, strict=True)
            ):
                found[stride] = call.operation.name
    missing = [stride for stride in strides if stride not in found]
    if missing:
        raise ValueError(
            f"`backbone` must have a map of stride {missing[0]} that all paths "
            "lead through; `levels` may name other layers. "
            f"Received: backbone={backbone.name!r}"
        )
    return [found[stride] for stride in strides]


def detector(model: keras.Model, **settings: Any) -> Any:
    """Returns a function from images to objects.

    ```python
    import numpy as np
    from keras_muffnet.detection import detector, pretrained_ssd

    detect = detector(pretrained_ssd("bccd"), least_score=0.4)
    found = detect(np.zeros((1, 300, 300, 3), "float32"))
    ```

    Args:
        model: what `SSD` built.
        **settings: least_score, iou_threshold, before_nms and after_nms of
            `postprocess.detections`.

    Returns:
        A function that takes float images as the model does, and gives
        `Detections` of tensors.

    Raises:
        ValueError: if the model does not end as `SSD`'s does.
    """
    layer = predictions_layer(model)
    anchors = layer.anchors

    def detect(images: Any) -> Detections:
        answer = model(images, training=False)
        return detections(
            answer[..., :-4],
            answer[..., -4:],
            anchors,
            layer.image_size,
            **settings,
        )

    return detect


def two_outputs(model: keras.Model) -> keras.Model:
    """Returns a detector as a model of two outputs, with the same layers.

    For quantization, where logits and codes need ranges of their own.

    ```python
    from keras_muffnet.detection import pretrained_ssd, two_outputs

    logits, codes = two_outputs(pretrained_ssd("bccd")).outputs
    ```

    Args:
        model: what `SSD` built.

    Returns:
        A functional model, from images to logits `(batch, anchors,
        classes + 1)` and codes `(batch, anchors, 4)`.

    Raises:
        ValueError: if the model does not end as `SSD`'s does.
    """
    return keras.Model(
        model.input, predictions_layer(model).input, name=model.name
    )


def is_detector(model: keras.Model) -> bool:
    """Whether a model ends as `SSD`'s does."""
    return isinstance(model.layers[-1], SSDPredictions)


def predictions_layer(model: keras.Model) -> SSDPredictions:
    """Returns the last layer of what `SSD` built.

    Raises:
        ValueError: if the model does not end in one.
    """
    layer = model.layers[-1]
    if not is_detector(model):
        raise ValueError(
            "`model` must be a detector, as `keras_muffnet.detection.SSD` "
            f"builds it. Received: {model!r}, which ends in {layer!r}"
        )
    return layer


def _check_shape(
    input_shape: Sequence[int] | None, backbone: keras.Model | None
) -> tuple[int, ...]:
    if backbone is not None and (
        not isinstance(backbone, keras.Model)
        or not hasattr(backbone, "inputs")
        or len(backbone.inputs) != 1
        or len(backbone.outputs) != 1
    ):
        raise ValueError(
            "`backbone` must be a functional Keras model with one input and "
            f"one output. Received: backbone={backbone!r}"
        )
    own = None if backbone is None else tuple(backbone.input_shape[1:])
    if input_shape is None:
        if own is not None and None not in own:
            return own
        channels = 3 if own is None else own[channel_axis() - 1]
        return image_shape(512, channels)
    shape = list(input_shape)
    if len(shape) != 3 or not all(
        isinstance(side, (int, np.integer)) and side > 0 for side in shape
    ):
        raise ValueError(
            "`input_shape` must be three positive integers. "
            f"Received: input_shape={input_shape!r}"
        )
    if min(_size(shape)) < max(STRIDES):
        raise ValueError(
            f"`input_shape` must be of {max(STRIDES)} pixels or more a side. "
            f"Received: input_shape={input_shape!r}"
        )
    if own is not None and any(
        theirs not in (None, wanted)
        for theirs, wanted in zip(own, shape, strict=True)
    ):
        raise ValueError(
            "`backbone` must take images of `input_shape`, "
            f"{tuple(shape)}. Received a backbone of input shape {own}"
        )
    return tuple(shape)


def _at_shape(backbone: keras.Model, shape: tuple[int, ...]) -> keras.Model:
    """The backbone itself, or where its size is free a copy of one size."""
    if tuple(backbone.input_shape[1:]) == shape:
        return backbone
    copy = keras.models.clone_model(backbone, input_tensors=keras.Input(shape))
    copy.set_weights(backbone.get_weights())
    return copy


def _output(model: keras.Model, level: str) -> KerasTensor:
    names = [layer.name for layer in model.layers]
    if level not in names:
        raise ValueError(
            "`levels` must be names of the backbone's layers. "
            f"Received: {level!r}, which is none of {', '.join(names)}"
        )
    x = model.get_layer(level).output
    if isinstance(x, list) or len(x.shape) != 4:
        raise ValueError(
            "`levels` must name layers whose output is a feature map. "
            f"Received: {level!r}"
        )
    return x


def _size(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of a shape without the batch axis."""
    height, width = [n for k, n in enumerate(shape, 1) if k != channel_axis()]
    return height, width


def _extra_level(x: KerasTensor, filters: int, name: str) -> KerasTensor:
    """A level of half the size: 1x1, then 3x3 of stride 2."""
    for part, kernel, strides, channels in (
        ("pointwise", 1, 1, max(_LEAST_MIDDLE, filters)),
        ("reduction", 3, 2, filters),
    ):
        x = layers.Conv2D(
            channels,
            kernel,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0, "fan_out", "untruncated_normal"
            ),
            name=f"{name}_{part}_conv",
        )(x)
        x = batch_norm(x, f"{name}_{part}")
        x = layers.ReLU(name=f"{name}_{part}_relu")(x)
    return x


def _head(x: KerasTensor, anchors: int, values: int, name: str) -> KerasTensor:
    """What a level says of its anchors: `(batch, anchors of it, values)`."""
    x = layers.Conv2D(
        anchors * values,
        3,
        padding="same",
        # Xavier's of magnitude 2, as MXNet has it.
        kernel_initializer=keras.initializers.VarianceScaling(
            2 / 3, "fan_avg", "uniform"
        ),
        name=f"{name}_conv",
    )(x)
    if channel_axis() == 1:
        x = layers.Permute((2, 3, 1), name=f"{name}_channels_last")(x)
    return layers.Reshape((-1, values), name=f"{name}_reshape")(x)
