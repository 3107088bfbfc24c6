"""Small backbones of KerasHub, for the table of what can be quantized.

KerasHub's configurations of published networks come with their weights from a
server; these are small ones of the same blocks, built without.
"""

import functools
from collections.abc import Callable
from typing import Any

from keras_hub import models

_RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [7],
    "stackwise_num_filters": [64, 64, 64, 64],
    "stackwise_num_blocks": [2, 2, 1, 1],
    "stackwise_num_strides": [1, 2, 2, 2],
}
_CSPNET = {
    "stem_filters": 16,
    "stem_kernel_size": 3,
    "stem_strides": 1,
    "stackwise_depth": [1, 2, 2],
    "stackwise_strides": [1, 2, 2],
    "stackwise_num_filters": [16, 32, 64],
    "block_ratio": [0.5],
}
_EFFICIENTNET = {
    "stackwise_kernel_sizes": [3, 3, 5],
    "stackwise_num_repeats": [1, 2, 2],
    "stackwise_input_filters": [16, 16, 24],
    "stackwise_output_filters": [16, 24, 40],
    "stackwise_expansion_ratios": [1, 4, 6],
    "stackwise_squeeze_and_excite_ratios": [0.0, 0.25, 0.25],
    "stackwise_strides": [1, 2, 2],
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
}
_MOBILENET = {
    "stackwise_expansion": [[40, 56], [64, 144, 144], [72, 72]],
    "stackwise_num_blocks": [2, 3, 2],
    "stackwise_num_filters": [[16, 16], [24, 24, 24], [24, 24]],
    "stackwise_kernel_size": [[3, 3], [5, 5, 5], [5, 5]],
    "stackwise_num_strides": [[2, 1], [2, 1, 1], [1, 1]],
    "stackwise_padding": [[1, 1], [2, 2, 2], [2, 2]],
    "stackwise_se_ratio": [[None, None], [0.25, 0.25, 0.25], [0.3, 0.3]],
    "stackwise_activation": [
        ["relu", "relu"],
        ["hard_swish", "hard_swish", "hard_swish"],
        ["hard_swish", "hard_swish"],
    ],
    "output_num_filters": 96,
    "input_activation": "hard_swish",
    "output_activation": "hard_swish",
    "input_num_filters": 16,
    "depthwise_filters": 8,
    "depthwise_stride": 2,
    "depthwise_residual": False,
    "last_layer_filter": 144,
    "squeeze_and_excite": 0.5,
}
_MOBILENETV5 = {
    "stackwise_block_types": [["er"], ["uir", "uir"]],
    "stackwise_num_blocks": [1, 2],
    "stackwise_num_filters": [[24], [48, 48]],
    "stackwise_strides": [[2], [2, 1]],
    "stackwise_act_layers": [["relu"], ["relu", "relu"]],
    "stackwise_exp_ratios": [[4.0], [6.0, 6.0]],
    "stackwise_se_ratios": [[0.0], [0.0, 0.0]],
    "stackwise_dw_kernel_sizes": [[0], [5, 5]],
    "stackwise_dw_start_kernel_sizes": [[0], [0, 0]],
    "stackwise_dw_end_kernel_sizes": [[0], [0, 0]],
    "stackwise_exp_kernel_sizes": [[3], [0, 0]],
    "stackwise_pw_kernel_sizes": [[1], [0, 0]],
    "stackwise_num_heads": [[0], [0, 0]],
    "stackwise_key_dims": [[0], [0, 0]],
    "stackwise_value_dims": [[0], [0, 0]],
    "stackwise_kv_strides": [[0], [0, 0]],
    "stackwise_use_cpe": [[False], [False, False]],
    "use_msfa": False,
}
_HGNETV2 = {
    "depths": [1, 2, 1],
    "embedding_size": 16,
    "hidden_sizes": [32, 64, 64],
    "stem_channels": [3, 16, 16],
    "hidden_act": "relu",
    "stackwise_stage_filters": [
        (16, 16, 32, 1, 2, 3),
        (32, 16, 64, 2, 2, 3),
        (64, 32, 64, 1, 2, 5),
    ],
    "apply_downsample": [False, True, True],
    "use_lightweight_conv_block": [False, False, True],
}
_MIT = {
    "layerwise_depths": [1, 1],
    "num_layers": 2,
    "layerwise_num_heads": [1, 2],
    "layerwise_sr_ratios": [2, 1],
    "max_drop_path_rate": 0.1,
    "layerwise_patch_sizes": [7, 3],
    "layerwise_strides": [4, 2],
    "hidden_dims": [16, 32],
}


def _sized(make: Callable[..., Any], **settings: Any) -> Callable[[int], Any]:
    return lambda size: make(image_shape=(size, size, 3), **settings)


def _efficientnet(size: int, block: str) -> Any:
    return models.EfficientNetBackbone(
        input_shape=(size, size, 3),
        stackwise_block_types=[block] * 3,
        **_EFFICIENTNET,
    )


def _behind_resnet(size: int, make: Any, **settings: Any) -> Any:
    encoder = models.ResNetBackbone(block_type="basic_block", **_RESNET)
    return make(image_encoder=encoder, image_shape=(size, size, 3), **settings)


BACKBONES: dict[str, Callable[[int], Any]] = {
    **{
        f"KerasHub ResNet {block}{', v2' * v2}": _sized(
            models.ResNetBackbone,
            block_type=block,
            use_pre_activation=v2,
            **_RESNET,
        )
        for block, v2 in (
            *(("basic_block", False), ("bottleneck_block", False)),
            *(("basic_block", True), ("bottleneck_block", True)),
            *(("basic_block_vd", False), ("bottleneck_block_vd", False)),
        )
    },
    **{
        f"KerasHub CSPNet {block}, {stage}": _sized(
            models.CSPNetBackbone,
            block_type=f"{block}_block",
            stage_type=stage,
            **_CSPNET,
        )
        for block, stage in (
            *(("dark", "csp"), ("dark", "cs3")),
            *(("bottleneck", "csp"), ("edge", "cs3")),
        )
    },
    "KerasHub DenseNet": _sized(
        models.DenseNetBackbone, stackwise_num_repeats=[2, 3, 2]
    ),
    **{
        f"KerasHub EfficientNet {block}": functools.partial(
            _efficientnet, block=block
        )
        for block in ("v1", "unfused", "fused")
    },
    "KerasHub HGNetV2": _sized(
        models.HGNetV2Backbone, use_learnable_affine_block=False, **_HGNETV2
    ),
    "KerasHub HGNetV2 with affine blocks": _sized(
        models.HGNetV2Backbone, use_learnable_affine_block=True, **_HGNETV2
    ),
    "KerasHub MiT": _sized(models.MiTBackbone, **_MIT),
    "KerasHub MobileNet": _sized(models.MobileNetBackbone, **_MOBILENET),
    "KerasHub MobileNetV5": _sized(models.MobileNetV5Backbone, **_MOBILENETV5),
    "KerasHub VGG": _sized(
        models.VGGBackbone,
        stackwise_num_repeats=[1, 2, 2],
        stackwise_num_filters=[16, 32, 64],
    ),
    "KerasHub Xception": _sized(
        models.XceptionBackbone,
        stackwise_conv_filters=[[16, 32], [32, 64], [64, 64]],
        stackwise_pooling=[True, True, False],
    ),
    "KerasHub DeepLabV3": functools.partial(
        _behind_resnet,
        make=models.DeepLabV3Backbone,
        spatial_pyramid_pooling_key="P5",
        low_level_feature_key="P2",
        upsampling_size=8,
        dilation_rates=[2, 3],
    ),
    "KerasHub RetinaNet": functools.partial(
        _behind_resnet,
        make=models.RetinaNetBackbone,
        min_level=3,
        max_level=5,
        use_p5=False,
    ),
    "KerasHub BASNet": functools.partial(
        _behind_resnet, make=models.BASNetBackbone, num_classes=1
    ),
}
