import keras
import numpy as np
import pytest

from keras_muffnet import ChannelSlice
from keras_muffnet.layers import ChannelGather
from keras_muffnet.layers import ChannelShuffle


@pytest.mark.parametrize(
    ("data_format", "axis"), [("channels_last", 3), ("channels_first", 1)]
)
def test_takes_the_channels(data_format, axis):
    layer = ChannelSlice(1, 3, data_format=data_format)
    images = np.random.default_rng(0).normal(size=(2, 5, 5, 5))
    taken = keras.ops.convert_to_numpy(layer(images.astype("float32")))
    expected = np.take(images, [1, 2], axis=axis).astype("float32")
    np.testing.assert_array_equal(taken, expected)
    assert layer.compute_output_shape(images.shape) == taken.shape


def test_config_round_trip_takes_the_same_channels():
    layer = ChannelSlice(2, 4, data_format="channels_first", name="group")
    again = ChannelSlice.from_config(layer.get_config())
    images = np.arange(2 * 5 * 3 * 3, dtype="float32").reshape(2, 5, 3, 3)
    np.testing.assert_array_equal(layer(images), again(images))
    assert again.name == "group"


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 1)])
def test_empty_slices_are_refused(start, stop):
    with pytest.raises(ValueError, match=f"start={start}, stop={stop}"):
        ChannelSlice(start, stop)


def test_input_must_have_the_channels():
    with pytest.raises(ValueError, match=r"at least 5 channels.*8, 8, 4"):
        ChannelSlice(0, 5, name="group")(keras.Input((8, 8, 4)))
    with pytest.raises(ValueError, match="ndim=4"):
        ChannelSlice(0, 5)(keras.Input((8,)))


def test_data_format_is_checked():
    with pytest.raises(ValueError, match=r"`data_format`.*'bogus'"):
        ChannelSlice(0, 1, data_format="bogus")


@pytest.mark.parametrize(
    ("data_format", "axis"), [("channels_last", 3), ("channels_first", 1)]
)
def test_shuffles_and_gathers_channels(data_format, axis):
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 6))
    images = images.astype("float32")
    shuffled = ChannelShuffle(3, data_format=data_format)(images)
    expected = np.take(images, [0, 2, 4, 1, 3, 5], axis=axis)
    np.testing.assert_array_equal(shuffled, expected)
    gather = ChannelGather(3, data_format=data_format)
    np.testing.assert_array_equal(
        gather(images), np.take(images, [0, 2, 4], axis=axis)
    )
    gather.indices.assign([5, 5, 1])
    np.testing.assert_array_equal(
        gather(images), np.take(images, [5, 5, 1], axis=axis)
    )
    shape = gather.compute_output_shape(images.shape)
    assert shape == gather(images).shape


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"shuffles 4 groups.*8, 8, 6"):
        ChannelShuffle(4)(keras.Input((8, 8, 6)))
    with pytest.raises(ValueError, match="`groups` must be a positive"):
        ChannelShuffle(0)
    with pytest.raises(ValueError, match="`count` must be a positive"):
        ChannelGather(0)
