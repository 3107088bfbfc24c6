"""Quantization of Keras 3 image models, to int8 LiteRT files.

Post-training, in one call:

    from keras_muffnet import quantization

    quantization.quantize_post_training(model, images[:500], "model.tflite")

With training under fake quantization:

    quantized = quantization.quantize_aware(model, images[:500])
    quantized.compile(keras.optimizers.SGD(5e-4, momentum=0.9), ...)
    quantized.fit(images, labels)
    quantization.convert(quantized, "model.tflite")
    model, ranges = quantization.finish(quantized, model)

Two engines build the same plan and agree to the last level. "keras", the
default, builds a `keras.Model`: it needs no second Keras, is compiled with the
same optimizers and losses as the float model, and trains on JAX and PyTorch,
too. `engine="tfmot"` uses TensorFlow's Model Optimization toolkit, for those
whose training is built on it. It knows tf_keras, the former Keras 2, alone; so
the model is rebuilt there, and compiled with `tf_keras.optimizers`. Both Keras
versions live in one process, whichever is imported first. But tfmot sets the
environment variable `TF_USE_LEGACY_KERAS`, so that from then on `tf.keras`
means tf_keras, in this process and in those that it starts: code that counts
on `tf.keras` being Keras 3 belongs in another one.

For those who come from tfmot:

=============================================  ================================
tfmot                                          here
=============================================  ================================
`quantize_model(model)`                        `quantize_aware(model, images)`
`quantize_annotate_layer`, to quantize some    `float_layers=[...]`, those not
`quantize_annotate_layer(layer, config)`       `weight_bits={"conv1": 4}`,
with a custom `QuantizeConfig`                 `per_channel={"conv1": False}`
`quantize_apply`, `quantize_scope`             not needed; `load` reads a file
a `QuantizeConfig` for a layer of one's own    `register_rule`, or leave the
                                               layer in float
`Default8BitQuantizeScheme`                    `target="tflite-micro"` etc.
`MovingAverageQuantizer`                       ranges of the calibration data;
                                               `range_estimator="mse"`
`prune_low_magnitude`, `cluster_weights`       `prune`, `cluster`
`strip_pruning`, `strip_clustering`            `finish`
`TFLiteConverter`                              `convert`
=============================================  ================================

Nothing of this is loaded before one of the functions is called.
"""

from typing import TYPE_CHECKING

from keras_muffnet._lazy import lazy_names
from keras_muffnet.quantization.api import Finished as Finished
from keras_muffnet.quantization.api import cluster as cluster
from keras_muffnet.quantization.api import finish as finish
from keras_muffnet.quantization.api import prune as prune
from keras_muffnet.quantization.api import quantize_aware as quantize_aware
from keras_muffnet.quantization.api import (
    quantize_post_training as quantize_post_training,
)
from keras_muffnet.quantization.api import report as report
from keras_muffnet.quantization.saving import convert as convert
from keras_muffnet.quantization.saving import load as load

if TYPE_CHECKING:
    from keras_muffnet.quantization.lowering import (
        register_rule as register_rule,
    )

# Of a module that imports Keras and, with it, its backend.
__getattr__, __dir__ = lazy_names(__name__, {"register_rule": "lowering"})
