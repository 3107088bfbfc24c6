"""Running `.tflite` files; those that this package makes are tested with it."""

import numpy as np
import tensorflow as tf

from keras_muffnet.litert import LiteRTModel


def test_integers_without_a_scale_stand_for_themselves(tmp_path):
    # A file that takes pixels as they are and gives the number of a class.
    @tf.function(input_signature=[tf.TensorSpec((1, 2, 2, 3), tf.uint8)])
    def brightest(image):
        return tf.argmax(
            tf.reduce_sum(tf.cast(image, tf.float32), (1, 2)), axis=-1
        )

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [brightest.get_concrete_function()]
    )
    path = tmp_path / "model.tflite"
    path.write_bytes(converter.convert())
    pixels = np.random.default_rng(0).integers(0, 256, (20, 2, 2, 3), "uint8")
    answers = LiteRTModel(path).predict(pixels.astype("float32"))
    assert answers.dtype == np.float32
    expected = pixels.sum(axis=(1, 2), dtype=int).argmax(axis=-1)
    assert len(set(expected)) == 3
    np.testing.assert_array_equal(answers, expected)
