"""Images for training, as tf.data pipelines. Needs TensorFlow."""

from keras_muffnet.optional import load_optional

load_optional("tensorflow", extra="tensorflow")

from keras_muffnet.data.digits import load_digits as load_digits
from keras_muffnet.data.pipeline import make_dataset as make_dataset
from keras_muffnet.data.sources import ImageSet as ImageSet
from keras_muffnet.data.sources import load_images as load_images
