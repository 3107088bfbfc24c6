"""The peers: counts, arguments, and what can be done with each of them."""

import keras
import numpy as np
import pytest

from keras_muffnet import baselines
from keras_muffnet import count_complexity
from keras_muffnet.baselines import IGCV2
from keras_muffnet.baselines import IGCV3
from keras_muffnet.baselines import PEERS
from keras_muffnet.baselines import CondenseNet
from keras_muffnet.baselines import DenseNet
from keras_muffnet.baselines import MobileNet
from keras_muffnet.baselines import MobileNetV2
from keras_muffnet.baselines import ResNet
from keras_muffnet.baselines import ShuffleNet
from keras_muffnet.baselines import ShuffleNetV2
from keras_muffnet.complexity import count_operations
from keras_muffnet.export import export_litert
from keras_muffnet.graph import trace
from keras_muffnet.litert import LiteRTModel

# Trainable parameters and multiply-adds, to the unit.
COUNTS = {
    (5, "ShuffleNetV2_0.5"): (352_042, 39_817_216),
    (5, "MobileNet_0.25"): (215_642, 40_823_296),
    (5, "MobileNetV2_0.35"): (399_618, 45_157_248),
    (5, "ResNet20"): (272_474, 40_813_184),
    (5, "ShuffleNetV2_1.0"): (1_263_854, 173_710_848),
    (5, "MobileNet_0.5"): (823_722, 156_357_632),
    (5, "MobileNetV2_0.75"): (1_360_402, 175_442_432),
    (5, "ResNet56"): (855_770, 125_747_840),
    (5, "ResNet110"): (1_730_714, 253_149_824),
    (5, "DenseNet40"): (599_050, 205_906_452),
    (5, "ShuffleNetV2_1.5"): (2_488_874, 368_529_408),
    (5, "MobileNet_0.75"): (1_824_250, 346_603_008),
    (5, "MobileNet_1.0"): (3_217_226, 611_559_424),
    (5, "MobileNetV2_1.0"): (2_237_770, 297_521_664),
    (5, "DenseNet_BC_100"): (769_162, 287_929_692),
    (6, "ShuffleNetV2_0.5"): (1_366_792, 40_476_448),
    (6, "ShuffleNet_0.5 (G=3)"): (718_324, 37_589_856),
    (6, "MobileNet_0.25"): (470_072, 41_030_272),
    (6, "MobileNetV2_0.35"): (1_667_808, 49_259_526),
    (6, "IGCV2_0.25"): (487_640, 46_424_192),
    (6, "ShuffleNetV2_1.0"): (2_279_760, 145_814_296),
    (6, "ShuffleNet_1.0(G=3)"): (1_865_728, 137_460_672),
    (6, "MobileNet_0.5"): (1_331_592, 149_497_088),
    (6, "MobileNetV2_0.75"): (2_628_592, 186_650_528),
    (6, "IGCV2_0.5"): (1_366_472, 157_073_664),
    (6, "IGCV3-D(0.7)"): (2_793_768, 210_309_688),
    (6, "ShuffleNetV2_1.5"): (3_507_720, 298_970_656),
    (6, "ShuffleNet_1.5(G=3)"): (3_442_168, 292_443_552),
    (6, "MobileNet_0.75"): (2_585_560, 325_400_448),
    (6, "MobileNet_1.0"): (4_231_976, 568_740_352),
    (6, "MobileNetV2_1.0"): (3_504_872, 300_774_272),
    (6, "CondenseNet(G=C=8)"): (2_935_416, 261_545_792),
    (6, "IGCV2-1.0"): (4_300_712, 571_048_448),
    (6, "IGCV3-D"): (3_491_688, 312_970_176),
}

# A small network of each kind, made in a second or two.
SMALL = {
    "ShuffleNet": (ShuffleNet, {"alpha": 0.1}),
    "ShuffleNetV2": (ShuffleNetV2, {"alpha": 0.3}),
    "MobileNet": (MobileNet, {"alpha": 0.1}),
    "MobileNetV2": (MobileNetV2, {"alpha": 0.1}),
    "MobileNetV2 gluon": (MobileNetV2, {"alpha": 0.3, "variant": "gluon"}),
    "IGCV2": (IGCV2, {"alpha": 0.1}),
    "IGCV3": (IGCV3, {"alpha": 0.3}),
    "CondenseNet": (
        CondenseNet,
        {"depths": (1, 1, 2, 1, 1), "growth_rates": (8, 8, 8, 16, 16)},
    ),
    "CondenseNet condensed": (
        CondenseNet,
        {
            "depths": (1, 1, 2, 1, 1),
            "growth_rates": (8, 8, 8, 16, 16),
            "condensed": True,
        },
    ),
    "ResNet": (ResNet, {"depth": 8}),
    "DenseNet": (DenseNet, {"depth": 10}),
    "DenseNet BC": (DenseNet, {"depth": 16, "bottleneck": True}),
}
FUNCTIONS = sorted({function.__name__ for function, _ in SMALL.values()})
WITH_STEM = [n for n in FUNCTIONS if n not in ("ResNet", "DenseNet")]


@pytest.fixture(scope="module")
def small():
    """Makes a small network for 16x16 images, each once."""
    models = {}

    def make(name):
        if name not in models:
            keras.utils.set_random_seed(0)
            function, arguments = SMALL[name]
            models[name] = function(
                input_shape=(16, 16, 3), classes=5, **arguments
            )
        return models[name]

    return make


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def row_id(row):
    return f"table{row.table}-{row.label}"


def test_a_row_builds_at_another_size_too():
    [row] = [p for p in PEERS if (p.table, p.label) == (5, "MobileNet_0.25")]
    model = row.build(input_shape=(64, 64, 3), include_top=False)
    assert model.input_shape == (None, 64, 64, 3)
    assert model.output_shape == (None, 2, 2, 256)


@pytest.mark.parametrize("row", PEERS, ids=row_id)
def test_counts(row):
    model = row.build()
    counted = count_complexity(model)
    assert counted.uncounted == ()
    expected = COUNTS[row.table, row.label]
    assert (counted.parameters, counted.macs) == expected
    operations = count_operations(model, row.rule) / 1e6
    assert abs(operations - row.printed_macs) <= row.macs_tolerance
    if row.printed_parameters is not None:
        parameters = counted.parameters / 1e6
        apart = abs(parameters - row.printed_parameters)
        assert apart <= row.parameters_tolerance
    assert model.layers[-1].name == "predictions"


def test_rows_are_those_printed_and_notes_tell_of_other_tolerances():
    assert {(row.table, row.label) for row in PEERS} == set(COUNTS)
    assert len(PEERS) == len(COUNTS)
    for row in PEERS:
        rounded = (row.parameters_tolerance, row.macs_tolerance) == (0.05, 0.5)
        assert rounded == (not row.note), row.label


@pytest.mark.parametrize(
    ("alpha", "network", "arguments"),
    [
        (0.5, "MobileNet", {}),
        (0.35, "MobileNetV2", {}),
        (0.75, "MobileNetV2", {}),
    ],
)
def test_same_function_as_keras_applications(alpha, network, arguments):
    """Keras's weights, in its order, give Keras's outputs."""
    shape = (64, 64, 3)
    theirs = getattr(keras.applications, network)(
        input_shape=shape, alpha=alpha, weights=None, include_top=False
    )
    ours = getattr(baselines, network)(
        input_shape=shape, alpha=alpha, include_top=False, **arguments
    )
    rng = np.random.default_rng(0)
    weights = [
        rng.uniform(0.5, 1, w.shape) * (1 if w.ndim == 1 else 0.1)
        for w in theirs.get_weights()
    ]
    theirs.set_weights(weights)
    ours.set_weights(weights)
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = 1e-5
        if isinstance(layer, keras.layers.ReLU) and network == "MobileNet":
            layer.max_value = None
    images = random_images(2, *shape)
    np.testing.assert_allclose(
        ours.predict(images, verbose=0),
        theirs.predict(images, verbose=0),
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", SMALL)
def test_round_trip_and_a_step_of_training(small, name, tmp_path):
    model = small(name)
    path = tmp_path / "m.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert loaded.to_json() == model.to_json()
    for new, old in zip(loaded.weights, model.weights, strict=True):
        assert new.path == old.path
        np.testing.assert_array_equal(new, old)
    images = random_images(4, 16, 16, 3)
    np.testing.assert_array_equal(loaded(images), model(images))

    loaded.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    history = loaded.fit(images, np.arange(4), batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    # The untrained classifier's choice leaves some of the last scales out.
    for new, old in zip(loaded.weights, model.weights, strict=True):
        if old.path.endswith("kernel"):
            assert not np.array_equal(new, old), old.path


@pytest.mark.parametrize("name", SMALL)
def test_litert_answers_the_same(small, name, tmp_path):
    model = small(name)
    path = export_litert(model, tmp_path / "m.tflite")
    images = random_images(1, 16, 16, 3)
    np.testing.assert_allclose(
        LiteRTModel(path).predict(images),
        model(images),
        rtol=1e-4,
        atol=1e-5,
    )


# Layers of the last feature maps at strides 16 and 32, as docstrings tell.
TAPS = {
    "ShuffleNet": ("stage2_unit8_relu", "stage3_unit4_relu"),
    "ShuffleNetV2": ("stage2_unit8_shuffle", "stage3_unit4_shuffle"),
    "MobileNet": ("block11_pointwise_relu", "block13_pointwise_relu"),
    "MobileNetV2": ("row6_unit1_expand_relu", "row7_unit1_project_bn"),
    "IGCV2": ("stage4_block8_relu", "stage5_block4_relu"),
    "IGCV3": ("row5_unit6_add", "row7_unit1_project_bn"),
    "CondenseNet": ("block4_layer1_concat", "block5_layer1_concat"),
}


@pytest.mark.parametrize("name", WITH_STEM)
def test_stems_and_feature_maps(name):
    function, arguments = SMALL[name]
    for stem, size, maps in [
        ("auto", 224, (14, 7)),
        ("tiny_imagenet", 64, (16, 8)),
        ("auto", 32, (16, 8)),
    ]:
        model = function(
            input_shape=(size, size, 3),
            include_top=False,
            stem=stem,
            **arguments,
        )
        found = tuple(
            model.get_layer(tap).output.shape[1] for tap in TAPS[name]
        )
        assert found == maps, stem
        assert model.output.shape[1] == maps[1]


@pytest.mark.parametrize("name", SMALL)
def test_images_of_any_size(name):
    function, arguments = SMALL[name]
    model = function(include_top=False, **arguments)
    assert model.input_shape == (None, None, None, 3)
    features = model(random_images(1, 35, 40, 3))
    assert np.isfinite(keras.ops.convert_to_numpy(features)).all()
    assert model.output.shape[-1] == features.shape[-1]


def test_logits_pooling_and_name(small):
    function, arguments = SMALL["ShuffleNetV2"]
    model = function(
        input_shape=(16, 16, 3),
        classifier_activation=None,
        name="peer",
        classes=5,
        **arguments,
    )
    assert model.name == "peer"
    assert model.layers[-1].activation is keras.activations.linear
    model.set_weights(small("ShuffleNetV2").get_weights())
    images = random_images(2, 16, 16, 3)
    raw = keras.ops.convert_to_numpy(model(images))
    np.testing.assert_allclose(
        np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True),
        small("ShuffleNetV2")(images),
        rtol=1e-4,
    )
    pooled = function(include_top=False, pooling="max", **arguments)
    assert pooled.output_shape == (None, 1024)


CHANNELS_FIRST = """
import keras, numpy as np
keras.config.set_image_data_format("channels_first")
from keras_muffnet import count_complexity
from tests.test_baselines import SMALL
for name, (function, arguments) in SMALL.items():
    model = function(input_shape=(3, 16, 16), classes=5, **arguments)
    counted = count_complexity(model)
    assert counted.uncounted == ()
    scores = model(np.ones((2, 3, 16, 16), "float32"))
    assert np.isfinite(keras.ops.convert_to_numpy(scores)).all(), name
    print(name, counted.parameters, counted.macs, sep=":")
"""


def test_channels_first_is_the_same_network(run_forked, small):
    printed = run_forked("-c", CHANNELS_FIRST, KERAS_BACKEND="torch")
    lines = [line.split(":") for line in printed.splitlines() if ":" in line]
    assert [name for name, *_ in lines] == list(SMALL)
    for name, *counts in lines:
        counted = count_complexity(small(name))
        assert counts == [str(counted.parameters), str(counted.macs)]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "avg"}, "`pooling` must be None where `include_top`"),
        ({"classes": 0}, "`classes` must be a positive integer"),
        ({"weights": "imagenet"}, "`weights` must be None"),
        ({"input_shape": (32, 32)}, "`input_shape` must be three positive"),
    ],
)
def test_errors_of_all(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(baselines, name)(**arguments)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        *((n, {"stem": "bogus"}, "`stem`.*'bogus'") for n in WITH_STEM),
        *(
            (n, {"alpha": 0}, "`alpha` must be a positive number.*alpha=0")
            for n in WITH_STEM
            if n != "CondenseNet"
        ),
        ("MobileNetV2", {"variant": "x"}, "`variant` must be one of paper, "),
        ("ResNet", {"depth": 21}, "`depth` must be 8.*depth=21"),
        ("ResNet", {"depth": "20"}, "`depth` must be a positive integer"),
        ("DenseNet", {"depth": 41}, r"`depth` must be 3n \+ 4.*depth=41"),
        ("DenseNet", {"growth_rate": 0}, "`growth_rate` must be a positive"),
        ("DenseNet", {"bottleneck": "no"}, "`bottleneck` must be True or"),
        ("IGCV3", {"expand_first": 0}, "`expand_first` must be True or False"),
        ("CondenseNet", {"condensed": 1}, "`condensed` must be True or False"),
        ("CondenseNet", {"depths": (1, 2)}, r"`depths` must be 5.*\(1, 2\)"),
        (
            "CondenseNet",
            {"growth_rates": (8, 8, 8, 8, 9)},
            "`growth_rates` must be 5 positive multiples of 8",
        ),
    ],
)
def test_errors_of_one(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(baselines, name)(**arguments)


def test_counting_rules():
    image = keras.Input((6, 4, 2))
    x = keras.layers.Conv2D(3, 1, use_bias=False)(image)
    x = keras.layers.ReLU(6.0)(x)
    x = keras.layers.AveragePooling2D(2)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, x)
    assert count_operations(model) == 24 * 6
    assert count_operations(model, "+R") == 24 * 6 + 24 * 3
    assert count_operations(model, "+R+P") == 24 * 6 + 24 * 3 * 2 + 6 * 3
    with pytest.raises(ValueError, match=r"`rule` must be one of.*'P'"):
        count_operations(model, "P")


@pytest.mark.parametrize("name", SMALL)
def test_graphs_are_of_layers_alone(small, name):
    for call in trace(small(name)).calls:
        assert isinstance(call.operation, keras.layers.Layer)


def test_public_names():
    for name in baselines.__all__:
        assert name == "PEERS" or getattr(baselines, name).__doc__
    assert set(baselines.__all__) <= set(dir(baselines))
    with pytest.raises(AttributeError, match="bogus"):
        _ = baselines.bogus
