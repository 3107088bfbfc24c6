"""Writes models for TF Serving and for LiteRT. Needs TensorFlow."""

from keras_muffnet._optional import load_optional

load_optional("tensorflow", extra="tensorflow")

from keras_muffnet.export.decoding import decode_images as decode_images
from keras_muffnet.export.litert import export_litert as export_litert
from keras_muffnet.export.litert import publish_litert as publish_litert
from keras_muffnet.export.saved_model import (
    export_saved_model as export_saved_model,
)
