import keras
import pytest
from keras import layers

from keras_muffnet import MuffNet
from keras_muffnet import count_complexity
from keras_muffnet.graph import trace


def one_layer(layer, *shape):
    x = keras.Input(shape)
    return count_complexity(keras.Model(x, layer(x)))


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (layers.Conv2D(8, 3, padding="same"), (9, 7, 4), 9 * 7 * 8 * 9 * 4),
        (layers.Conv2D(8, 3, 2, "same"), (9, 7, 4), 5 * 4 * 8 * 9 * 4),
        (layers.Conv2D(8, 3, groups=4), (9, 7, 4), 7 * 5 * 8 * 9 * 1),
        (layers.Conv2D(8, 3, dilation_rate=2), (9, 7, 4), 5 * 3 * 8 * 9 * 4),
        (layers.DepthwiseConv2D(5, 2, "same"), (9, 7, 4), 5 * 4 * 25 * 4),
        (
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            (9, 7, 4),
            7 * 5 * 9 * 8,
        ),
        (
            layers.SeparableConv2D(6, 3),
            (9, 7, 4),
            7 * 5 * (9 * 4 + 4 * 6),
        ),
        (layers.Conv2DTranspose(8, 3, 2), (9, 7, 4), 9 * 7 * 9 * 4 * 8),
        (layers.Conv1D(8, 3), (10, 4), 8 * 3 * 4 * 8),
        (layers.Conv3D(2, 3), (5, 5, 5, 4), 27 * 27 * 4 * 2),
        (layers.Dense(10), (6,), 60),
        (layers.Dense(10), (5, 6), 300),
        (layers.BatchNormalization(), (9, 7, 4), 0),
    ],
)
def test_macs_by_hand(layer, shape, macs):
    counted = one_layer(layer, *shape)
    assert counted.macs == macs
    assert counted.uncounted == ()
    assert counted.parameters == sum(
        int(keras.ops.size(w)) for w in layer.trainable_weights
    )


def test_published_counts_of_mobilenet():
    """MobileNet 1.0: 4.2 million parameters and 569 million multiply-adds."""
    model = keras.applications.MobileNet(weights=None)
    counted = count_complexity(model)
    assert counted.uncounted == ()
    assert round(counted.macs / 1e6) == 569
    assert round(counted.parameters / 1e6, 1) == 4.2


def test_unknown_layers_are_named_not_counted_as_zero():
    x = keras.Input((6, 4), name="x")
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    y = layers.Dense(3, name="dense")(y[:, 0])
    counted = count_complexity(keras.Model(x, y))
    assert "attention" in counted.uncounted
    assert counted.macs == 12
    by_name = {layer.name: layer for layer in counted.layers}
    assert by_name["attention"].macs is None
    assert by_name["attention"].parameters == 4 * (4 * 8) + 3 * 8 + 4
    line = next(x for x in str(counted).splitlines() if "attention" in x)
    assert line.endswith(" ?")
    assert str(counted).splitlines()[-1].startswith("MACs not counted")
    assert "attention" in str(counted).splitlines()[-1]


def test_plain_arithmetic_is_known_to_be_free():
    model = keras.applications.MobileNetV3Small(weights=None)
    counted = count_complexity(model, input_shape=(224, 224, 3))
    assert counted.uncounted == ()
    assert round(counted.parameters / 1e6, 1) == 2.5  # as its paper says


def test_what_no_output_depends_on_is_left_out():
    x = keras.Input((8, 8, 3))
    used = layers.Conv2D(6, 1, use_bias=False, name="used")(x)
    unused = layers.Conv2D(2, 1, name="unused")(x)
    inner = keras.Model(x, [unused, used])
    outer_input = keras.Input((8, 8, 3))
    graph = trace(keras.Model(outer_input, inner(outer_input)[1]))
    assert [call.operation.name for call in graph.calls] == ["used"]
    assert graph.calls[-1].outputs[0] is graph.outputs[0]


def test_shared_layers_and_nested_models():
    conv = layers.Conv2D(3, 1, use_bias=False, name="shared")
    x = keras.Input((8, 8, 3))
    inner = keras.Model(x, conv(conv(x)), name="inner")
    z = keras.Input((8, 8, 3))
    outer = keras.Model(z, conv(inner(inner(z))))
    counted = count_complexity(outer)
    assert counted.parameters == 9
    assert counted.macs == 5 * 64 * 9
    assert [layer.name for layer in counted.layers] == ["shared"]


def test_sequential_and_frozen():
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 1), layers.Flatten()]
    )
    assert count_complexity(model).macs == 64 * 12
    model.layers[0].trainable = False
    assert count_complexity(model).parameters == 0


def test_open_sizes_need_an_input_shape():
    model = MuffNet(alpha=0.5, include_top=False)
    with pytest.raises(ValueError, match=r"`input_shape`.*stem_conv"):
        count_complexity(model)
    counted = count_complexity(model, input_shape=(224, 224, 3))
    static = MuffNet(alpha=0.5, include_top=False, input_shape=(224, 224, 3))
    assert counted == count_complexity(static)
    for shape in ((224, 224, 1), (224, 224), 224):
        with pytest.raises(ValueError, match="`input_shape` must fit the one"):
            count_complexity(model, input_shape=shape)
    with pytest.raises(ValueError, match="`input_shapes` must fit the model"):
        trace(model, [(None, 224, 224, 1)])


def test_counts_by_layer_add_up_and_are_printed():
    counted = count_complexity(MuffNet(alpha=0.5))
    assert counted.macs == sum(layer.macs for layer in counted.layers)
    assert counted.parameters == sum(x.parameters for x in counted.layers)
    lines = str(counted).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "1,380,641" in lines[-1] and "41,601,194" in lines[-1]
    stem = next(line for line in lines if line.startswith("stem_conv"))
    assert "112x112x24" in stem and "648" in stem and "8,128,512" in stem


def test_subclassed_models_cannot_be_walked():
    class Opaque(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="`model` must be a functional"):
        trace(Opaque())
    with pytest.raises(ValueError, match="`model` must be a functional"):
        trace(keras.Sequential([layers.Dense(2)]))
    x = keras.Input((4,))
    with pytest.raises(ValueError, match="`model` must be a functional"):
        trace(keras.Model(x, Opaque()(x)))


def test_trace_follows_plain_operations_in_order():
    x = keras.Input((8, 8, 6))
    a, b = keras.ops.split(x, 2, axis=-1)
    y = layers.Concatenate(name="join")([b, a[..., :2]])
    graph = trace(keras.Model(x, [y, a]))
    assert [tuple(t.shape) for t in graph.outputs] == [
        (None, 8, 8, 5),
        (None, 8, 8, 3),
    ]
    known = {id(t) for t in graph.inputs}
    for call in graph.calls:
        assert {id(t) for t in call.inputs} <= known
        known |= {id(t) for t in call.outputs}
    assert graph.calls[-1].operation.name == "join"
    assert len(graph.calls[0].outputs) == 2
