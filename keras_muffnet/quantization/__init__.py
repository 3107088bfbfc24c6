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

Nothing of this is loaded before one of the functions is called.
"""

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
