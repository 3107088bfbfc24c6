"""LiteRT (`.tflite`) files: how they run, what they hold, their metadata."""

from keras_muffnet.litert.model import LiteRTModel as LiteRTModel
from keras_muffnet.litert.model import read_operations as read_operations
