"""Quantization: what a model becomes before anything is rounded.

The steps that a model is rewritten in compute what the model does, and the
plan puts the ranges where LiteRT wants them.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from keras_muffnet import ChannelSlice
from keras_muffnet import MuffNet
from keras_muffnet import StageSpec
from keras_muffnet.graph import trace
from keras_muffnet.layers import ChannelGather
from keras_muffnet.layers import ChannelShuffle
from keras_muffnet.quantization import keras_engine
from keras_muffnet.quantization.layouts import kind_of
from keras_muffnet.quantization.lowering import is_unknown
from keras_muffnet.quantization.lowering import lower
from keras_muffnet.quantization.plan import FLOAT_BARRIER
from keras_muffnet.quantization.plan import plan_quantization
from keras_muffnet.quantization.ranges import find_ranges
from keras_muffnet.quantization.rules import RULES
from keras_muffnet.quantization.rules.shapes import IDLE
from keras_muffnet.quantization.steps import INPUT_RANGE
from tools.benchmarks.quantization_networks import NETWORKS as COVERED
from tools.benchmarks.quantization_networks import build
from tools.benchmarks.quantization_networks import images as covered_inputs

SHAPE = (8, 8, 4)
CHANNELS = SHAPE[-1]


def of_each_channel(seed=0):
    return np.random.default_rng(seed).uniform(0.5, 2, CHANNELS).astype("f")


def images(count=3, shape=SHAPE):
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, *shape)).astype("float32")


def make_model(network, shape=SHAPE):
    """A model of random weights, with none at a value that hides mistakes."""
    keras.utils.set_random_seed(0)
    image = keras.Input(shape)
    return randomized(keras.Model(image, network(image)))


def randomized(model):
    rng = np.random.default_rng(2)
    for variable in model.weights:
        name = variable.path.rpartition("/")[2]
        if name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif name in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(size=variable.shape))
    return model


# One network for each thing that is rewritten. Each takes images of `SHAPE`.


def adapted(x):
    layer = layers.Normalization()
    layer.adapt(3 * images(50) + 1)
    return layer(x)


def after_concatenation(x):
    return layers.BatchNormalization()(layers.Concatenate()([x, x * 2.0]))


def cut_off(x):
    return layers.ReLU(1)(layers.ReLU(6.0)(layers.ReLU()(x * 4.0)) - 1.0)


def nested_functional(x):
    image = keras.Input(SHAPE)
    y = layers.Conv2D(3, 1, name="inner")(image)
    inner = keras.Model(image, [y, layers.ReLU()(y)])
    return layers.Add()(inner(x))


def nested_sequential(x):
    inner = keras.Sequential(
        [layers.Conv2D(3, 1), keras.Sequential([layers.BatchNormalization()])]
    )
    return inner(x)


def shared(x):
    convolution = layers.Conv2D(CHANNELS, 3, padding="same", name="shared")
    norm = layers.BatchNormalization()
    relu = layers.ReLU()
    return relu(norm(convolution(relu(norm(convolution(x))))))


def sliced(x):
    return ops.concatenate([x[..., 1:3], x[..., -1:], x[:, :, :, :2]], axis=-1)


def split(x):
    a, b, c = ops.split(x, [1, 3], axis=-1)
    d, e = ops.split(x, 2, axis=-1)
    return layers.Concatenate()([c, b, a, e, d])


def gathered(x):
    layer = ChannelGather(5)
    x = layer(x)
    layer.indices.assign([3, 0, 0, 2, 1])
    vector = ChannelGather(3)(layers.GlobalAveragePooling2D()(x))
    return layers.Dense(4)(vector)


def noise(x):
    x = layers.GaussianNoise(0.5)(layers.Identity()(x))
    x = layers.Dropout(0.5, noise_shape=(None, 1, 1, 1))(x)
    return layers.SpatialDropout2D(0.5)(layers.Dropout(0.5)(x))


def vectors(x):
    x = layers.Dense(5)(layers.Flatten()(x))
    x = layers.Dense(6, activation="relu")(layers.BatchNormalization()(x))
    return layers.BatchNormalization()(x)


def vector_scaled(x):
    return layers.BatchNormalization()(layers.GlobalMaxPooling2D()(x)) + 1.0


def squeeze(x):
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Multiply()([x, layers.Conv2D(4, 1, activation="silu")(y)])


NETWORKS = {
    "convolution": layers.Conv2D(6, 3, 2, "same", activation="relu"),
    "grouped": layers.Conv2D(6, 3, groups=2),
    "dilated": layers.Conv2D(6, 3, dilation_rate=2, use_bias=False),
    "depthwise": layers.DepthwiseConv2D(3, 2, depth_multiplier=3),
    "separable": layers.SeparableConv2D(
        5, 3, padding="same", depth_multiplier=2, activation="relu6"
    ),
    "separable without bias": lambda x: layers.BatchNormalization()(
        layers.SeparableConv2D(5, (3, 3), use_bias=False)(x)
    ),
    "norm alone": layers.BatchNormalization(),
    "norm behind concatenation": after_concatenation,
    "norm behind convolution": lambda x: layers.BatchNormalization()(
        layers.Conv2D(6, 3)(x)
    ),
    "norm behind depthwise": lambda x: layers.BatchNormalization(scale=False)(
        layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False)(x)
    ),
    "norm without center": lambda x: layers.BatchNormalization(center=False)(
        layers.Conv2D(6, 3, use_bias=False)(x)
    ),
    "norm without either": layers.BatchNormalization(center=False, scale=False),
    "norms of vectors": vectors,
    "norm of pooled": vector_scaled,
    "rescaling": layers.Rescaling(0.3, offset=-1.0),
    "rescaling by channel": layers.Rescaling(of_each_channel()),
    "normalization": adapted,
    "normalization given": layers.Normalization(
        mean=of_each_channel(), variance=of_each_channel(1)
    ),
    "normalization inverted": layers.Normalization(
        mean=0.5, variance=4.0, invert=True
    ),
    "relus": cut_off,
    "convolution with hard_sigmoid": layers.Conv2D(
        6, 1, activation="hard_sigmoid"
    ),
    **{
        f"{name} layer": layers.Activation(name)
        for name in (
            "hard_sigmoid",
            "hard_silu",
            "linear",
            "relu",
            "relu6",
            "sigmoid",
            "silu",
            "tanh",
        )
    },
    **{
        f"{name} op": getattr(ops, name)
        for name in (
            "hard_sigmoid",
            "hard_silu",
            "relu",
            "relu6",
            "sigmoid",
            "silu",
            "tanh",
        )
    },
    "plus": lambda x: x + of_each_channel(),
    "plus on the left": lambda x: ops.add(of_each_channel(), x),
    "minus": lambda x: x - of_each_channel(),
    "minus on the left": lambda x: ops.subtract(of_each_channel(), x),
    "times": lambda x: x * of_each_channel().reshape(1, 1, CHANNELS),
    "times on the left": lambda x: -3 * x,
    "divided": lambda x: ops.true_divide(ops.divide(x, 3.0), of_each_channel()),
    "chained": lambda x: (2.0 - layers.Conv2D(6, 3)(x) * 0.5) / 3.0,
    "tensors by op": lambda x: (x + x * x) * ops.tanh(x) - x,
    "three tensors": lambda x: layers.Add()(
        [x, layers.Multiply()([x, x * 0.5, 1.0 - x]), layers.ReLU()(x)]
    ),
    "difference": lambda x: layers.Subtract()([x, layers.Conv2D(4, 1)(x)]),
    "slices": sliced,
    "channel slice": ChannelSlice(1, 3),
    "channel gather": gathered,
    "channel shuffle": lambda x: ChannelShuffle(2)(layers.Conv2D(6, 1)(x)),
    "split": split,
    "stacked": lambda x: layers.Concatenate(axis=1)([x, x - 1.0]),
    "pools": lambda x: layers.AveragePooling2D(3, 1, "same")(
        layers.MaxPooling2D(3, 2, "same")(x)
    ),
    "global pools": lambda x: layers.Concatenate()(
        [layers.GlobalMaxPooling2D()(x), layers.GlobalAveragePooling2D()(x)]
    ),
    "squeeze": squeeze,
    "padded": lambda x: layers.Cropping2D(((0, 1), (2, 0)))(
        layers.ZeroPadding2D(((1, 2), (0, 3)))(x)
    ),
    "enlarged": lambda x: layers.UpSampling2D((1, 2), interpolation="bilinear")(
        layers.UpSampling2D(2)(x)
    ),
    "reshaped": lambda x: ops.reshape(
        layers.Permute((2, 1, 3))(layers.Reshape((4, -1, CHANNELS))(x)),
        (-1, 2, 32, CHANNELS),
    ),
    "noise": noise,
    "nested functional": nested_functional,
    "nested sequential": nested_sequential,
    "shared": shared,
}


@pytest.fixture(params=NETWORKS)
def any_model(request):
    return make_model(NETWORKS[request.param])


def assert_same(plan, model, expected=None):
    x = images(shape=plan.input_shape)
    built = keras_engine.build(plan)(x, training=False)
    if expected is None:
        expected = model(x, training=False)
    for ours, theirs in zip(
        keras.tree.flatten(built), keras.tree.flatten(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_steps_compute_what_the_model_does(any_model):
    assert_same(plan_quantization(any_model), any_model)


def test_every_rule_is_among_the_networks():
    models = [
        *map(make_model, NETWORKS.values()),
        *map(build, COVERED.values()),
    ]
    used = set(IDLE)
    for model in models:
        for call in trace(model, opens=is_unknown).calls:
            used.add(kind_of(call.operation))
    # Not in all versions of Keras.
    used |= {"op DepthToSpace", "op SpaceToDepth"}
    assert used >= set(RULES)


@pytest.mark.parametrize("name", COVERED)
def test_layers_of_subclasses_that_change_nothing_are_written_alike(name):
    model = build(COVERED[name])
    called = {
        id(call.operation): call.operation
        for call in trace(model, opens=is_unknown).calls
        if isinstance(call.operation, layers.Layer)
    }
    steps = plan_quantization(model).steps
    classes = {layer: type(layer) for layer in called.values()}
    try:
        for layer, kind in classes.items():
            layer.__class__ = type("Mine", (kind,), {})
        others = plan_quantization(model).steps
    finally:
        for layer, kind in classes.items():
            layer.__class__ = kind
    assert [s.kind for s in others] == [s.kind for s in steps]


@pytest.mark.parametrize("name", COVERED)
def test_the_steps_of_what_the_table_lists_compute_the_same(name):
    model = build(COVERED[name])
    inputs = covered_inputs(COVERED[name], 3)
    inputs = inputs if len(inputs) > 1 else inputs[0]
    built = keras_engine.build(plan_quantization(model))
    for ours, theirs in zip(
        keras.tree.flatten(built(inputs, training=False)),
        keras.tree.flatten(model(inputs, training=False)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_model_of_two_outputs_keeps_them_in_order():
    def network(x):
        x = layers.Conv2D(5, 3, activation="relu")(x)
        return [layers.Conv2D(3, 1)(x), layers.GlobalAveragePooling2D()(x), x]

    model = make_model(network)
    plan = plan_quantization(model)
    assert len(plan.outputs) == 3
    assert_same(plan, model)


def in_a_list(a, b):
    return [a, b]


def in_a_tuple(a, b):
    return (a, b)


def by_names(a, b):
    return {"z": a, "a": b}


@pytest.mark.parametrize(
    ("own", "given"),
    [
        (in_a_list, by_names),
        (in_a_tuple, by_names),
        (by_names, by_names),
        (in_a_list, lambda a, b: {"b": a, **by_names(a, b)}),
        (lambda a, b: [a, [b]], in_a_list),
        (lambda a, b: {"p": b, "q": [a]}, lambda a, b: {"p": b, "q": [a]}),
    ],
)
def test_a_model_inside_is_called_as_keras_does(own, given):
    a, b = keras.Input(SHAPE, name="z"), keras.Input(SHAPE, name="a")
    inner = keras.Model(own(a, b), layers.Subtract()([a, b * 2.0]))

    def network(x):
        parts = layers.Conv2D(CHANNELS, 1)(x), layers.Conv2D(CHANNELS, 1)(x)
        return inner(given(*parts))

    model = make_model(network)
    assert_same(plan_quantization(model), model)


def test_an_output_that_is_read_again_is_not_folded():
    def network(x):
        x = layers.Conv2D(5, 3)(x)
        y = layers.BatchNormalization()(x)
        return [x, y, layers.ReLU()(y)]

    model = make_model(network)
    assert_same(plan_quantization(model), model)


@pytest.mark.parametrize("as_layer", [True, False])
def test_a_softmax_at_the_end_is_left_out(as_layer):
    def network(x):
        x = layers.GlobalAveragePooling2D()(x)
        if as_layer:
            return layers.Activation("softmax")(layers.Dense(3)(x))
        return layers.Dense(3, activation="softmax")(x)

    model = make_model(network)
    plan = plan_quantization(model)
    assert plan.steps[-1].kind == "Dense"
    logits = keras_engine.build(plan)(images())
    np.testing.assert_allclose(
        ops.softmax(logits), model(images()), rtol=1e-5, atol=1e-5
    )


def test_a_model_read_from_a_file_becomes_the_same(any_model, tmp_path):
    any_model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(plan_quantization(model), any_model)


def test_a_sequential_model_is_taken():
    model = keras.Sequential(
        [keras.Input(SHAPE), layers.Conv2D(3, 1), layers.BatchNormalization()]
    )
    assert_same(plan_quantization(randomized(model)), model)


def test_a_muffnet_becomes_the_same():
    model = small_muffnet(
        StageSpec([[2, 1, 3], [0, 4, 2], [0, 0, 5]]),
        StageSpec("none", 2, 8),
        classifier_activation=None,
    )
    assert_same(plan_quantization(randomized(model)), model)


# What becomes of scales and offsets.


def small_muffnet(*specs, **kwargs):
    return MuffNet(
        input_shape=(16, 16, 3), classes=4, stages=specs, stem="cifar", **kwargs
    )


def step_kinds(network, **kwargs):
    """The kinds of a network's steps, that of the input left out."""
    plan = plan_quantization(make_model(network), **kwargs)
    return [step.kind for step in plan.steps[1:]]


def test_no_normalization_nor_affine_step_is_left(any_model):
    kinds = {step.kind for step in lower(any_model).steps}
    assert not kinds & {"Affine", "BatchNormalization", "Rescaling"}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("norm behind convolution", ["Conv2D"]),
        ("norm behind depthwise", ["DepthwiseConv2D"]),
        ("separable without bias", ["DepthwiseConv2D", "Conv2D"]),
        ("chained", ["Conv2D"]),
        ("convolution with hard_sigmoid", ["Conv2D", "ReLU"]),
        ("norm alone", ["DepthwiseConv2D"]),
        ("divided", ["DepthwiseConv2D"]),
        ("hard_sigmoid op", ["DepthwiseConv2D", "ReLU"]),
        ("silu op", ["Activation", "Multiply"]),
        ("nested sequential", ["Conv2D"]),
        (
            "norm of pooled",
            ["GlobalMaxPooling2D", "Reshape", "DepthwiseConv2D", "Reshape"],
        ),
        ("norms of vectors", ["Reshape", "Dense", "Dense", "ReLU", "Reshape"]),
    ],
)
def test_scales_and_offsets_go_into_the_kernel_before(name, kinds):
    found = step_kinds(NETWORKS[name])
    assert found[: len(kinds)] == kinds
    if name != "norms of vectors":
        assert len(found) == len(kinds)


def test_a_scale_alone_does_not_learn():
    steps = lower(make_model(NETWORKS["norm behind concatenation"])).steps
    (norm,) = [s for s in steps if "batch_norm" in "".join(s.sources)]
    assert not norm.trainable
    built = keras_engine.build(
        plan_quantization(make_model(NETWORKS["norm behind concatenation"]))
    )
    assert not built.trainable_weights


def two_homes(x):
    """A norm behind two convolutions, neither of which has a bias."""
    norm = layers.BatchNormalization(name="norm")
    x = norm(layers.Conv2D(CHANNELS, 1, use_bias=False)(x))
    return norm(layers.Conv2D(CHANNELS, 1, use_bias=False)(x))


def test_a_norm_goes_into_no_two_kernels():
    # Each would learn an offset of its own, for which it has one place.
    plan = plan_quantization(make_model(two_homes))
    norms = [s for s in plan.steps if s.sources == ("norm",)]
    assert [s.kind for s in norms] == ["DepthwiseConv2D"] * 2
    assert not any(s.trainable for s in norms)
    model = make_model(two_homes)
    assert_same(plan_quantization(model), model)


def test_an_offset_goes_into_no_kernel_without_a_bias():
    def network(x):
        x = layers.Conv2D(3, 1, use_bias=False, name="conv")(x)
        return ops.hard_sigmoid(x * 2.0)

    model = make_model(network)
    assert step_kinds(network) == ["Conv2D", "DepthwiseConv2D", "ReLU"]
    assert_same(plan_quantization(model), model)


# Where ranges are.


def ranges_of(model, **kwargs):
    return plan_quantization(model, **kwargs).ranges


def test_units_are_quantized_once_at_their_end():
    plan = plan_quantization(small_muffnet(StageSpec("none", 2, 8)))
    quantized = [s.name for s in plan.steps if s.range is not None]
    block = "stage1_layer2"
    assert [name for name in quantized if name.startswith(block)] == [
        f"{block}_pointwise1_relu",
        # The batch normalization has become part of these two.
        f"{block}_depthwise_conv",
        f"{block}_pointwise2_conv",
        # Before the addition both operands are quantized, after it the ReLU.
        f"{block}_relu",
    ]
    assert quantized[:2] == [INPUT_RANGE, "stem_relu"]
    assert quantized[-3:] == ["head_relu", "avg_pool", "predictions"]


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (StageSpec("average", 4, 8), 4),
        (StageSpec("geometric", 5, 16), 5),
        (StageSpec("linear", 3, 9), 3),
        (StageSpec("dense", 4, 8), 4),
        (StageSpec([[2, 1, 3], [0, 4, 2], [0, 0, 5]]), 3),
    ],
    ids=["average", "geometric", "linear", "dense", "matrix"],
)
def test_layers_of_a_federated_stage_share_one_range(spec, count):
    layers_of_stage = tuple(f"stage1_layer{i + 1}_relu" for i in range(count))
    assert layers_of_stage in ranges_of(small_muffnet(spec))


def test_layers_of_a_plain_chain_have_ranges_of_their_own():
    ranges = ranges_of(small_muffnet(StageSpec("none", 4, 8)))
    assert {len(names) for names in ranges} == {1}


def test_stages_do_not_share_a_range():
    ranges = ranges_of(
        small_muffnet(StageSpec("average", 2, 4), StageSpec("average", 2, 6))
    )
    for stage in ("stage1", "stage2"):
        assert (f"{stage}_layer1_relu", f"{stage}_layer2_relu") in ranges


def joined(x):
    a = layers.Conv2D(4, 1, activation="relu", name="a")(x)
    b = layers.Conv2D(4, 1, name="b")(x)
    b = layers.Dropout(0.1)(layers.MaxPooling2D(3, 1, "same")(b))
    b = layers.Permute((2, 1, 3))(layers.ZeroPadding2D(1)(b))
    b = layers.Cropping2D(1)(layers.UpSampling2D(1)(b))
    b = layers.Reshape(SHAPE)(layers.AveragePooling2D(1)(b))
    y = layers.Concatenate()([a, b[..., :3]])
    y = layers.Conv2D(2, 1, name="c")(y)
    y = layers.GlobalMaxPooling2D()(layers.BatchNormalization(name="d")(y))
    return layers.Dense(3, name="e")(y)


def test_what_moves_values_has_its_input_s_range():
    plan = plan_quantization(make_model(joined))
    first, second, *others = plan.ranges
    assert first == (INPUT_RANGE,)
    assert sorted(second) == ["a_relu", "b"]
    assert others == [("c",), ("e",)]


def test_nothing_is_said_of_the_ranges_of_a_network_without_training(recwarn):
    keras.utils.set_random_seed(0)
    model = MuffNet(input_shape=(32, 32, 3), alpha=0.1, classes=2)
    plan = plan_quantization(model)
    data = np.random.default_rng(0).uniform(-1, 1, (32, 32, 32, 3))
    found = keras_engine.calibrate(plan, data.astype("float32"))
    find_ranges(plan, found, (-1.0, 1.0))
    assert not [w for w in recwarn if "joined" in str(w.message)]


def test_a_shared_range_spans_what_each_of_its_steps_needs():
    plan = plan_quantization(make_model(joined))
    found = {"a_relu": (0.0, 3.0), "b": (-1.0, 2.0), "c": (1, 2), "e": (0, 0)}
    assert find_ranges(plan, found, (-2.0, 2.0)) == [
        (-2.0, 2.0),
        (-1.0, 3.0),
        (0.0, 2),  # a range includes zero
        (0.0, 1.0),  # and is not empty
    ]


def test_calibration_finds_what_single_outputs_need():
    plan = plan_quantization(make_model(joined))
    x = images(250)
    built = keras_engine.build(plan)
    inner = keras.Model(
        built.input, [built.get_layer("a_relu").output, *built.outputs]
    )
    a, e = map(np.asarray, inner(x))
    found = keras_engine.calibrate(plan, x)
    assert set(found) == {"a_relu", "b", "c", "e"}
    # The mean of what three batches need, of 84 and twice 83 images.
    batches = np.split(a, [84, 167])
    expected = [
        np.mean([batch.min() for batch in batches]),
        np.mean([batch.max() for batch in batches]),
    ]
    np.testing.assert_allclose(found["a_relu"], expected, rtol=1e-5)
    assert found["a_relu"][1] < a.max()
    # Three numbers an image are few.
    np.testing.assert_allclose(found["e"], [e.min(), e.max()], rtol=1e-5)


def test_the_greatest_of_few_values_is_no_exception():
    rng = np.random.default_rng(0)
    limits = np.sort(rng.normal(size=(200, 2)), axis=-1)
    few, many = (keras_engine.Extremes(limits, size) for size in (50, 500))
    found = keras_engine.mean_limits({"few": few, "many": many})
    assert found["few"] == (limits.min(), limits.max())
    assert found["many"][1] < limits.max()


@pytest.mark.parametrize(
    ("function", "before", "found", "expected"),
    [
        (lambda x: ops.clip(x, 0.2, 1.5), (-3, 4), (0.2, 1.5), (0.0, 1.5)),
        (lambda x: ops.maximum(x, 0.3), (-3, 2), (0.3, 2.0), (0.0, 2.0)),
        (lambda x: ops.minimum(x, 0.3), (-2, 4), (-2.0, 0.3), (-2.0, 0.3)),
    ],
)
def test_what_a_constant_replaces_needs_no_range(
    function, before, found, expected
):
    plan = plan_quantization(
        make_model(lambda x: function(layers.Conv2D(5, 3, name="conv")(x)))
    )
    names = plan.steps[-1].name, "conv"
    limits = dict(zip(names, (found, before), strict=True))
    _, (low, high) = find_ranges(plan, limits, (-1.0, 1.0))
    # As wide, but for the next level.
    width = expected[1] - expected[0]
    assert low == pytest.approx(expected[0], abs=0.02 * width)
    assert high == pytest.approx(expected[1], abs=0.02 * width)
    scale = (high - low) / 255
    constant = found[1] if expected[0] else found[0]
    assert constant / scale == pytest.approx(round(constant / scale), abs=1e-3)
    assert low / scale == pytest.approx(round(low / scale), abs=1e-3)
    again = find_ranges(plan, dict.fromkeys(names, (low, high)), (-1.0, 1.0))
    assert again[1] == pytest.approx((low, high))


def test_a_jump_is_halfway_between_two_levels():
    plan = plan_quantization(
        make_model(
            lambda x: ops.hard_shrink(layers.Conv2D(5, 3, name="conv")(x))
        )
    )
    names = "conv", plan.steps[-1].name
    found = dict.fromkeys(names, (-3.0, 4.0))
    _, (low, high) = find_ranges(plan, found, (-1.0, 1.0))
    # At 18.2 levels before.
    assert high - low == pytest.approx(0.5 / 17.5 * 255)


def test_values_that_are_not_finite_are_refused_by_layer():
    plan = plan_quantization(make_model(joined))
    found = dict.fromkeys(["a_relu", "b", "c", "e"], (0.0, 1.0))
    with pytest.raises(ValueError, match=r"finite.*'c' gives .*inf"):
        find_ranges(plan, {**found, "c": (0.0, np.inf)}, (0.0, 1.0))


def test_without_sharing_concatenations_have_a_range_of_their_own():
    model = make_model(joined)
    ranges = ranges_of(model, share_ranges=False)
    concatenation = next(
        layer.name
        for layer in model.layers
        if isinstance(layer, layers.Concatenate)
    )
    assert sorted(ranges) == sorted(
        [
            (INPUT_RANGE,),
            ("a_relu",),
            ("b",),
            (concatenation,),
            ("c",),
            ("e",),
        ]
    )


def test_what_is_joined_with_the_input_has_its_range():
    def network(x):
        y = layers.Conv2D(2, 1, name="conv")(layers.ZeroPadding2D(1)(x))
        return layers.Concatenate()([x, layers.Cropping2D(1)(y)])

    plan = plan_quantization(make_model(network))
    assert plan.ranges == ((INPUT_RANGE, "conv"),)
    assert find_ranges(plan, {"conv": (-3.0, 0.5)}, (0.0, 1.0)) == [(-3.0, 1.0)]


@pytest.mark.parametrize(
    ("activation", "limits"),
    [
        ("sigmoid", (0.0, 255 / 256)),
        ("tanh", (-1.0, 127 / 128)),
        ("hard_sigmoid", (0.0, 1.0)),
        ("relu", None),
        ("relu6", None),
    ],
)
def test_some_ranges_are_known_beforehand(activation, limits):
    network = layers.Conv2D(2, 1, activation=activation)
    plan = plan_quantization(make_model(network))
    assert plan.fixed[-1] == limits
    assert plan.fixed[0] is None
    name = plan.steps[-1].name
    found = {s.name: (-9.0, 9.0) for s in plan.steps if s.range is not None}
    ranges = dict(
        zip(
            plan.ranges,
            find_ranges(plan, found, (0.0, 1.0)),
            strict=True,
        )
    )
    assert ranges[(name,)] == (limits or (-9.0, 9.0))


def test_what_the_range_cuts_off_has_no_upper_limit_of_its_own():
    plan = plan_quantization(make_model(NETWORKS["hard_sigmoid layer"]))
    found = {s.name: (0.0, 1.0) for s in plan.steps if s.range is not None}
    model = keras_engine.build(plan, find_ranges(plan, found, (-2.0, 2.0)))
    # Behind it stands what bears the output's name.
    last = [x for x in model.layers if keras_engine.output_range(x)][-1]
    assert last.layer.max_value is None
    assert last.output_range == (0.0, 1.0)


@pytest.mark.parametrize("kind", ["convolution", "dense", "sum", "product"])
def test_a_relu_goes_into_the_operation_before(kind):
    def network(x):
        operation = {
            "convolution": lambda: layers.Conv2D(2, 1)(x),
            "dense": lambda: layers.Dense(2)(layers.Flatten()(x)),
            "sum": lambda: layers.Add()([x, x]),
            "product": lambda: layers.Multiply()([x, x]),
        }[kind]
        return layers.ReLU(name="relu")(operation())

    assert ranges_of(make_model(network)) == ((INPUT_RANGE,), ("relu",))


def test_a_relu_beside_another_reader_is_a_unit_of_its_own():
    def network(x):
        x = layers.Conv2D(2, 1, name="conv")(x)
        return layers.Add(name="add")([x, layers.ReLU(name="relu")(x)])

    ranges = ((INPUT_RANGE,), ("conv",), ("relu",), ("add",))
    assert ranges_of(make_model(network)) == ranges


def test_a_relu_of_what_is_an_output_too_is_a_unit_of_its_own():
    def network(x):
        x = layers.Conv2D(2, 1, name="conv")(x)
        return [x, layers.ReLU(name="relu")(x)]

    ranges = ((INPUT_RANGE,), ("conv",), ("relu",))
    assert ranges_of(make_model(network)) == ranges


def test_calls_of_one_layer_share_weights_and_range():
    def network(x):
        layer = layers.Conv2D(CHANNELS, 1, name="twice")
        return layer(layer(x))

    plan = plan_quantization(make_model(network))
    assert plan.ranges == ((INPUT_RANGE,), ("twice", "twice_call2"))
    assert len(keras_engine.build(plan).weights) == 2


# Layers left in float, and kernels of fewer bits.


def chain(x):
    x = layers.Conv2D(4, 1, activation="relu", name="a")(x)
    x = layers.Add(name="sum")([x, layers.Conv2D(4, 1, name="b")(x)])
    x = layers.BatchNormalization(name="norm")(x)
    return layers.Dense(3, name="last")(layers.GlobalMaxPooling2D()(x))


def steps_of(network, **kwargs):
    plan = plan_quantization(make_model(network), **kwargs)
    return {step.name: step for step in plan.steps}


def test_barriers_stand_before_float_layers_alone():
    steps = steps_of(chain, float_layers=["sum", "norm"])
    barriers = [s for s in steps.values() if s.kind == FLOAT_BARRIER]
    names = list(steps)
    assert [names[s.inputs[0] - 1] for s in barriers] == ["a_relu", "b"]
    inputs = [names[number - 1] for number in steps["sum"].inputs]
    assert inputs == [barrier.name for barrier in barriers]
    assert [names[number - 1] for number in steps["norm"].inputs] == ["sum"]
    assert {n for n, s in steps.items() if not s.bits} == {"sum", "norm"}


def test_between_two_float_layers_there_is_no_range():
    steps = steps_of(chain, float_layers=["sum", "norm", "b"])
    assert steps["b"].range is None
    assert steps["sum"].range is None
    assert steps["norm"].range is not None
    # What an integer layer reads, too, is quantized, and kept float after.
    steps = steps_of(chain, float_layers=["a", "sum"])
    assert steps["a_relu"].range is not None
    assert steps["sum_float"].kind == FLOAT_BARRIER


def test_barriers_do_not_change_what_is_computed():
    model = make_model(chain)
    plan = plan_quantization(model, float_layers=["a", "sum", "last"])
    assert FLOAT_BARRIER in {step.kind for step in plan.steps}
    assert_same(plan, model)


def test_a_layer_in_float_that_moves_values_joins_nothing():
    def network(x):
        x = layers.Conv2D(4, 1, name="conv")(x)
        return layers.MaxPooling2D(2, name="pool")(x)

    plan = plan_quantization(make_model(network), float_layers=["pool"])
    assert plan.ranges == ((INPUT_RANGE,), ("conv",), ("pool",))


def test_bits_are_those_of_the_layers_named():
    steps = steps_of(chain, weight_bits={"b": 4, "last": 8})
    assert {n: s.bits for n, s in steps.items() if s.weights} == {
        "a": 8,
        "b": 4,
        "norm": 8,
        "last": 8,
    }
    assert steps["sum"].bits == 8


# What is refused. Each message names the layer and says why.


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.LSTM(2, name="odd"), "none of the known kinds"),
        (layers.Conv2D(2, 1, activation=ops.sin, name="odd"), "Found: sin"),
        (layers.ReLU(0, 0.1, 1.0, name="odd"), "no negative slope"),
        (layers.BatchNormalization(axis=2, name="odd"), "last axis"),
        (layers.Concatenate(axis=0, name="odd"), "batch"),
        (layers.Softmax(axis=(1, 2), name="odd"), "over one axis"),
        (
            layers.Resizing(3, 3, crop_to_aspect_ratio=True, name="odd"),
            "crop_to_aspect_ratio=True",
        ),
        (
            layers.EinsumDense("abcd,ed->abce", (8, 8, 3), name="odd"),
            "first axes",
        ),
        (layers.AdaptiveMaxPooling2D(3, name="odd"), "divides"),
        (layers.Conv2DTranspose(2, 3, dilation_rate=2, name="odd"), "dilated"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_quantized_is_refused_by_name(layer, reason):
    def network(x):
        if isinstance(layer, layers.LSTM):
            return layer(ops.reshape(x, (-1, 64, CHANNELS)))
        several = isinstance(layer, layers.Concatenate)
        x = layer([x, x] if several else x)
        return layers.GlobalMaxPooling2D()(x)

    model = make_model(network)
    with pytest.raises(ValueError, match=f"layer 'odd' .*{reason}"):
        plan_quantization(model)


def pad_below_all(x, width=1, value=-np.inf, channels=0):
    widths = [[0, 0], [width, width], [width, width], [0, channels]]
    return ops.pad(x, widths, constant_values=value)


PADS_THAT_SHOW = (
    pad_below_all,
    lambda x: pad_below_all(x) * 2.0,
    lambda x: layers.AveragePooling2D(3, 2)(pad_below_all(x)),
    lambda x: layers.MaxPooling2D(3, 2)(pad_below_all(x, 2)),
    lambda x: layers.MaxPooling2D(3, 2, "same")(pad_below_all(x)),
    lambda x: layers.MaxPooling2D(3, 2)(pad_below_all(x, channels=1)),
)


@pytest.mark.parametrize(
    ("operation", "name", "reason"),
    [
        (ops.sin, "sin", "none of the known kinds"),
        (lambda x: x[1:, ...], "get_item", "batch axis alone"),
        (lambda x: ops.split(x, 2, axis=0), "split", "batch axis alone"),
        (lambda x: ops.mean(x, axis=0), "mean", "batch axis alone"),
        (lambda x: ops.reshape(x, (2, -1)), "reshape", "batch axis alone"),
        (lambda x: ops.reshape(x, (-1, 4)), "reshape", "batch axis alone"),
        (lambda x: ops.expand_dims(x, 0), "expand_dims", "batch axis alone"),
        (lambda x: ops.transpose(x, (1, 0, 2, 3)), "transpose", "batch axis"),
        (lambda x: x[..., 3:2], "get_item", "empty"),
        (lambda x: 1.0 / x, "true_divide", "not the other way round"),
        (lambda x: ops.divide(x, x), "divide", "a constant"),
        (lambda x: x ** of_each_channel(), "power", r"its exponent.*\(4,\)"),
        (lambda x: ops.clip(x, -of_each_channel(), 3), "clip", "its x_min"),
        (
            lambda x: ops.leaky_relu(x, of_each_channel()),
            "leaky_relu",
            "one number as its negative_slope",
        ),
        (
            lambda x: ops.pad(
                x,
                [[0, 0], [1, 1], [1, 1], [0, 0]],
                constant_values=of_each_channel(),
            ),
            "pad",
            "one number as its constant_values",
        ),
        *(
            (
                lambda x, pool=pool: pool(ops.reshape(x, (-1, 4, 4, 4, 4)), 2),
                "",
                "over sequences or images",
            )
            for pool in (
                ops.average_pool,
                ops.max_pool,
                lambda x, size: layers.AveragePooling3D(size)(x),
                lambda x, size: layers.MaxPooling3D(size)(x),
            )
        ),
        (lambda x: x**1.5, "power", "exponent of 2, 3, 4.*Found: 1.5"),
        (lambda x: ops.pad(x, 1), "pad", "batch axis alone"),
        *(
            (lambda x, pads=pads: pads(x), "pad", "has a scale.*Found: -inf")
            for pads in PADS_THAT_SHOW
        ),
        (lambda x: ops.max(x, 1, initial=0.0), "max", "no initial value"),
        (lambda x: x[:, 0, 0] + x, "add", "same number of axes"),
        (lambda x: ops.einsum("abcd->abc", x), "einsum", "two operands"),
        (
            lambda x: ops.einsum("abcd,abcd->abcd", x, x),
            "einsum",
            "must sum over the axes",
        ),
        (
            lambda x: ops.dot_product_attention(x, x, x, is_causal=True),
            "dot_product_attention",
            "must not be causal",
        ),
    ],
)
def test_what_operation_cannot_be_quantized_is_refused(operation, name, reason):
    model = make_model(operation)
    with pytest.raises(ValueError, match=rf"layer '{name}\w*' .*{reason}"):
        plan_quantization(model)


@pytest.mark.parametrize("value", [-np.inf, -1e9])
@pytest.mark.parametrize(
    "pooling",
    [
        layers.MaxPooling2D(3, 2),
        lambda x: ops.max_pool(x, 2, 1),
    ],
)
def test_padding_below_all_before_max_pooling_needs_no_range(value, pooling):
    model = make_model(lambda x: pooling(pad_below_all(x, value=value)))
    plan = plan_quantization(model)
    images = np.random.default_rng(0).normal(size=(2, *plan.input_shape)) - 4
    wanted = keras.ops.convert_to_numpy(model(images))
    assert np.isfinite(wanted).all() and wanted.max() < 0
    np.testing.assert_allclose(
        keras_engine.build(plan)(images), wanted, rtol=1e-5
    )


@pytest.mark.parametrize("layer", [layers.AveragePooling3D, layers.MaxPool3D])
def test_pooling_of_volumes_may_be_left_in_float(layer):
    model = make_model(layer(2, name="odd"), shape=(4, 4, 4, 2))
    for float_layers in (["odd"], ["odd_op1"]):
        assert_same(plan_quantization(model, float_layers=float_layers), model)


def test_a_masked_softmax_is_refused():
    def network(x):
        return layers.Softmax(name="odd")(x, mask=np.ones(CHANNELS, bool)) * 2.0

    model = make_model(network)
    with pytest.raises(ValueError, match=r"layer 'odd' .*no mask"):
        plan_quantization(model)


def test_channels_first_are_turned_once():
    def network(x):
        first = {"data_format": "channels_first"}
        x = layers.Conv2D(4, 3, **first)(x)
        x = layers.ReLU()(layers.BatchNormalization(axis=1)(x))
        x = layers.Concatenate(axis=1)([x, layers.ReLU(6)(x)])
        return layers.GlobalMaxPooling2D(**first)(x)

    plan = plan_quantization(make_model(network))
    kinds = [step.kind for step in plan.steps]
    assert kinds.count("Permute") == 1


@pytest.fixture
def channels_first_everywhere():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


def test_the_data_format_may_be_set_for_all_of_keras(
    channels_first_everywhere,
):
    def network(x):
        x = layers.Rescaling([0.5, 2.0, 1.0, 1.5])(x)
        x = layers.Conv2D(5, 3)(layers.UpSampling2D()(x))
        return layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(x))

    model = make_model(network, (4, 8, 8))
    assert_same(plan_quantization(model), model)


def test_inputs_of_no_one_size_are_refused():
    image = keras.Input((None, 8, 4))
    model = keras.Model(image, layers.ReLU()(image))
    with pytest.raises(ValueError, match=r"one size.*\(None, 8, 4\)"):
        plan_quantization(model)
    plan = plan_quantization(model, input_shapes=[(6, 8, 4)])
    assert plan.input_shapes == ((6, 8, 4),)


def two_norms(x):
    shared = layers.Conv2D(CHANNELS, 1, name="shared")
    x = layers.BatchNormalization(gamma_initializer="zeros")(shared(x))
    return layers.BatchNormalization()(shared(x))


def once_without_relu(x):
    shared = layers.Conv2D(CHANNELS, 1, name="shared")
    return shared(layers.ReLU()(shared(x)))


@pytest.mark.parametrize("network", [two_norms, once_without_relu])
def test_calls_with_different_layers_behind_have_weights_of_their_own(network):
    model = make_model(network)
    plan = plan_quantization(model)
    calls = [s for s in plan.steps if s.kind == "Conv2D"]
    assert [s.layer_name for s in calls] == ["shared", "shared_call2"]
    assert not any(s.trainable for s in calls)
    assert_same(plan, model)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "hard_sigmoid"])
def test_what_has_a_prescribed_range_is_joined_with_what_has_not(activation):
    def network(x):
        a = layers.Conv2D(2, 1, activation=activation, name="a")(x)
        return layers.Concatenate()([a, layers.Conv2D(2, 1, name="b")(x)])

    model = make_model(network)
    plan = plan_quantization(model)
    assert plan.fixed[-1] is None
    assert "b" in plan.ranges[-1] and len(plan.ranges[-1]) > 1
    # What the range would have cut off is an operation of its own.
    assert ("Bound" in {s.kind for s in plan.steps}) == (
        activation == "hard_sigmoid"
    )
    assert_same(plan, model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"float_layers": ["lost"]}, "'lost'; close to it: last"),
        ({"weight_bits": {"nrm": 4}}, "'nrm'; close to it: norm"),
        ({"float_layers": ["unlike"]}, "'unlike'$"),
        ({"float_layers": "last"}, "`float_layers` .*several.*'last'"),
        ({"weight_bits": {"sum": 4}}, "with a kernel.*'sum'"),
        ({"weight_bits": {"a": 2}}, "4 or 8.*2 for 'a'"),
        ({"weight_bits": {"a": 16}}, "4 or 8.*16 for 'a'"),
    ],
)
def test_arguments_that_do_not_fit_the_model_are_refused(arguments, message):
    model = make_model(chain)
    with pytest.raises(ValueError, match=message):
        plan_quantization(model, **arguments)
