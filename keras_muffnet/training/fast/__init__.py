"""Training and inference on a CPU at its speed, with Keras's own layers."""

from keras_muffnet.training.fast.model import accelerate as accelerate

__all__ = ["accelerate"]
