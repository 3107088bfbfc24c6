"""SSD: counts, levels, anchors, box code, matching, loss, suppression."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_muffnet import MuffNet
from keras_muffnet import count_complexity
from keras_muffnet.detection import SSD
from keras_muffnet.detection import SSDLoss
from keras_muffnet.detection import boxes as box_functions
from keras_muffnet.detection import detector
from keras_muffnet.detection import find_levels
from keras_muffnet.detection.anchors import SCALES
from keras_muffnet.detection.anchors import anchor_boxes
from keras_muffnet.detection.matching import match
from keras_muffnet.detection.postprocess import detections
from tests import detection_references as reference

SIZE = (64, 96)
MAPS = [(4, 6), (2, 3), (1, 2)]
SCALES3 = (0.2, 0.4, 0.7, 0.9)
RATIOS3 = ((1.0, 2.0, 0.5), (1.0, 2.0, 0.5), (1.0,))
ANCHORS = anchor_boxes(SIZE, MAPS, SCALES3, RATIOS3)


def random_boxes(rng, count, least=2.0, size=SIZE):
    sides = rng.uniform(least, 40, (count, 2))
    limits = np.maximum(np.array(size[::-1]) - sides, 0)
    low = rng.uniform(0, 1, (count, 2)) * limits
    return np.concatenate([low, low + sides], axis=1).astype("float32")


def small_backbone(shape=(64, 64, 3)):
    x = inputs = keras.Input(shape)
    for k, filters in enumerate((4, 4, 6, 8, 8), start=1):
        x = keras.layers.Conv2D(
            filters, 3, strides=2, padding="same", name=f"conv{k}"
        )(x)
        x = keras.layers.ReLU(name=f"relu{k}")(x)
    return keras.Model(inputs, x, name="small")


def small_ssd(shape=(64, 64, 3), classes=2):
    return SSD(small_backbone(shape), classes, extra_filters=(8, 8, 8, 8))


@pytest.mark.parametrize(
    ("classes", "parameters", "macs"),
    [(20, 13_781_550, 4_193_276_928), (80, 22_630_710, 6_310_560_768)],
)
def test_counts_of_ssd512_on_mobilenet(classes, parameters, macs):
    # GluonCV's figures: 13.78M and 4.19G for VOC, 22.63M and 6.31G for COCO.
    backbone = keras.applications.MobileNet(
        input_shape=(512, 512, 3), include_top=False, weights=None
    )
    assert count_complexity(backbone).macs == pytest.approx(2.97e9, rel=2e-3)
    model = SSD(backbone, classes)
    counted = count_complexity(model)
    assert (counted.parameters, counted.macs) == (parameters, macs)
    assert model.output_shape == (None, 6132, classes + 5)


@pytest.mark.parametrize(
    ("size", "rows", "anchors"),
    [
        (512, (32, 16, 8, 4, 2, 1), 6132),
        (300, (19, 10, 5, 3, 2, 1), 2268),
        (64, (4, 2, 1, 1, 1, 1), 64 + 24 + 6 + 6 + 4 + 4),
    ],
)
def test_muffnet_is_the_default_backbone(size, rows, anchors):
    model = SSD(
        MuffNet(input_shape=(size, size, 3), alpha=0.1, include_top=False),
        classes=3,
        extra_filters=(8, 8, 8, 8),
    )
    last = model.layers[-1]
    assert last.maps == [(n, n) for n in rows]
    assert model.output_shape == (None, anchors, 8)
    assert last.anchors.shape == (anchors, 4)


def test_default_backbone_and_shape():
    model = SSD(classes=20)
    assert model.name == "ssd_muffnet_1"
    assert model.input_shape == (None, 512, 512, 3)
    assert model.output_shape == (None, 6132, 25)


@pytest.mark.parametrize(
    ("build", "levels"),
    [
        (
            lambda: MuffNet(
                input_shape=(96, 96, 3), alpha=0.1, include_top=False
            ),
            ["stage2_output", "head_relu"],
        ),
        (
            lambda: keras.applications.MobileNet(
                input_shape=(300, 300, 3), include_top=False, weights=None
            ),
            ["conv_pw_11_relu", "conv_pw_13_relu"],
        ),
        (
            lambda: keras.applications.MobileNetV2(
                input_shape=(96, 96, 3), include_top=False, weights=None
            ),
            ["block_13_expand_relu", "out_relu"],
        ),
        (
            lambda: keras.applications.ResNet50(
                input_shape=(96, 96, 3), include_top=False, weights=None
            ),
            ["conv4_block6_out", "conv5_block3_out"],
        ),
        (small_backbone, ["relu4", "relu5"]),
    ],
)
def test_levels_are_found(build, levels):
    assert find_levels(build()) == levels


def test_a_backbone_of_free_size_is_copied_with_its_weights():
    backbone = MuffNet(alpha=0.1, include_top=False)
    model = SSD(backbone, 2, (64, 64, 3), extra_filters=(8, 8, 8, 8))
    layer = model.get_layer("stage1_layer1_a_depthwise_conv")
    theirs = backbone.get_layer(layer.name)
    assert layer is not theirs
    np.testing.assert_array_equal(layer.kernel, theirs.kernel)
    own = small_backbone()
    taken = SSD(own, 2, levels=["conv3", "relu5"])
    assert taken.get_layer("conv1") is own.get_layer("conv1")
    assert taken.layers[-1].maps[0] == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "`classes` must be a positive integer"),
        ({"input_shape": (64, 64)}, "`input_shape` must be three"),
        ({"input_shape": (16, 64, 3)}, "`input_shape` must be of 32"),
        ({"input_shape": (96, 96, 3)}, "`backbone` must take images"),
        ({"backbone": "muffnet"}, "`backbone` must be a functional"),
        ({"levels": ["relu4", "none"]}, "`levels` must be names"),
        ({"scales": (0.1, 0.2)}, "`scales` must be 7 positive numbers"),
        ({"ratios": ((1.0,),)}, "`ratios` must be 6 rows"),
        ({"ratios": ((2.0,),) * 6}, "`ratios` must be 6 rows"),
        ({"extra_filters": (8, -8)}, "`extra_filters` must be a positive"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SSD(**{"backbone": small_backbone(), "classes": 2, **arguments})


def test_a_backbone_without_the_strides_is_refused():
    x = inputs = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(4, 3, strides=16, padding="same")(x)
    with pytest.raises(ValueError, match="a map of stride 32"):
        SSD(keras.Model(inputs, x), 2)


def test_a_saved_detector_knows_its_anchors(tmp_path):
    model = SSD(
        small_backbone(),
        2,
        extra_filters=(8, 8),
        scales=(0.1, 0.2, 0.4, 0.6, 0.9),
        ratios=((1.0, 2.0),) * 4,
    )
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(
        loaded.layers[-1].anchors, model.layers[-1].anchors
    )
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3))
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )


def test_output_is_float32_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_ssd()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.layers[1].compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"


def test_anchors_of_ssd512():
    maps = [(n, n) for n in (32, 16, 8, 4, 2, 1)]
    anchors = anchor_boxes((512, 512), maps)
    assert anchors.shape == (6132, 4)
    sides = anchors[:, 2:] - anchors[:, :2]
    # The first cell of each level: its center is half a step in.
    first = np.cumsum(
        [0]
        + [
            n * n * a
            for (n, _), a in zip(maps, (4, 6, 6, 6, 4, 4), strict=True)
        ]
    )[:-1]
    centers = (anchors[first, :2] + anchors[first, 2:]) / 2
    steps = np.array([16, 32, 64, 128, 256, 512])
    np.testing.assert_allclose(centers, np.stack([steps / 2] * 2, 1), atol=1e-4)
    # GluonCV's sizes are rounded to 0.1 pixels, but for the last: 492.
    sizes = np.array([51.2, 102.4, 189.4, 276.4, 363.52, 450.6, 492])
    np.testing.assert_allclose(np.array(SCALES) * 512, sizes, atol=0.55)
    np.testing.assert_allclose(sides[first, 0], sizes[:-1], atol=0.1)
    second = np.sqrt(sizes[:-1] * sizes[1:])
    np.testing.assert_allclose(sides[first + 1, 0], second, rtol=1e-3)
    ratios = sides[:, 0] / sides[:, 1]
    np.testing.assert_allclose(ratios[:4], [1, 1, 2, 0.5], rtol=1e-5)
    np.testing.assert_allclose(
        ratios[first[1] :][:6], [1, 1, 2, 0.5, 3, 1 / 3], rtol=1e-5
    )
    np.testing.assert_allclose(
        sides[2, 0] * sides[2, 1], sides[0, 0] * sides[0, 1], rtol=1e-5
    )
    # Along a row first.
    np.testing.assert_allclose(anchors[4] - anchors[0], [16, 0, 16, 0])


def test_iou_is_that_of_the_formula():
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 17), random_boxes(rng, 23)
    a[0], b[0] = b[1], [5, 5, 5, 9]  # the same box; one without an area
    got = ops.convert_to_numpy(box_functions.iou(a, b))
    np.testing.assert_allclose(got, reference.iou_table(a, b), atol=1e-6)
    assert got[0, 1] == 1
    assert not got[:, 0].any()


def test_box_code_is_that_of_the_formula_and_back():
    rng = np.random.default_rng(2)
    boxes = random_boxes(rng, len(ANCHORS), least=1.0)
    codes = ops.convert_to_numpy(box_functions.encode(boxes, ANCHORS))
    wanted = [
        reference.encode(b.astype(float), a.astype(float))
        for b, a in zip(boxes, ANCHORS, strict=True)
    ]
    np.testing.assert_allclose(codes, wanted, rtol=1e-4, atol=1e-4)
    back = ops.convert_to_numpy(box_functions.decode(codes, ANCHORS))
    np.testing.assert_allclose(back, boxes, atol=1e-3)
    # Nothing becomes infinite: no area here, a code beyond all there.
    assert np.isfinite(
        box_functions.encode(np.zeros((1, 4), "float32"), ANCHORS[:1])
    ).all()
    wild = np.full((1, 4), 1e4, "float32")
    assert np.isfinite(box_functions.decode(wild, ANCHORS[:1])).all()
    clipped = box_functions.clip(
        np.array([[-5.0, 3, 200, 64.5]], "float32"), SIZE
    )
    np.testing.assert_array_equal(clipped, [[0, 3, 96, 64]])


def padded(objects, rows):
    """Targets as the loss takes them, of lists of (class, box)."""
    targets = np.zeros((len(objects), rows, 5), "float32")
    targets[..., 0] = -1
    for k, listed in enumerate(objects):
        for n, (kind, box) in enumerate(listed):
            targets[k, n] = [kind, *box]
    return targets


def scene(rng, count):
    boxes = random_boxes(rng, count)
    return [(int(rng.integers(3)), box) for box in boxes]


@pytest.mark.parametrize("count", [1, 5, 30, 200])
def test_matching_is_the_greedy_one(count):
    rng = np.random.default_rng(count)
    batch = [random_boxes(rng, count), random_boxes(rng, max(1, count // 2))]
    if count > 4:
        batch[0][3] = batch[0][1]  # twice the same: each gets an anchor
    # Of two shapes, so that JAX compiles for two alone.
    rows = max(count, 30) + 3
    boxes = np.zeros((2, rows, 4), "float32")
    valid = np.zeros((2, rows), bool)
    for k, listed in enumerate(batch):
        boxes[k, : len(listed)] = listed
        valid[k, : len(listed)] = True
    got = ops.convert_to_numpy(match(ANCHORS, boxes, ops.array(valid)))
    for k, listed in enumerate(batch):
        np.testing.assert_array_equal(got[k], reference.match(ANCHORS, listed))
    own = set(got[0].tolist()) - {-1}
    # As many as there can be; more objects than anchors cannot all have one.
    assert count > 30 or own == set(range(count))


SCENES = {
    "some objects": [6, 3],
    "no object at all": [0, 0],
    "one image without": [0, 4],
    "200 objects": [200, 1],
}


@pytest.mark.parametrize("name", SCENES)
def test_loss_is_that_of_the_formula(name):
    rng = np.random.default_rng(3)
    objects = [scene(rng, count) for count in SCENES[name]]
    answers = rng.normal(size=(2, len(ANCHORS), 3 + 5)).astype("float32")
    loss = SSDLoss(ANCHORS)
    got = float(loss(padded(objects, 200), answers))
    assert got == pytest.approx(
        reference.loss(ANCHORS, objects, answers), rel=1e-4
    )
    if name == "no object at all":
        assert got == 0


def test_loss_of_a_single_pixel_is_finite_and_found():
    objects = [[(1, np.array([50.0, 30, 51, 31], "float32"))]] * 2
    answers = np.zeros((2, len(ANCHORS), 8), "float32")
    got = float(SSDLoss(ANCHORS)(padded(objects, 200), answers))
    assert got == pytest.approx(
        reference.loss(ANCHORS, objects, answers), rel=1e-4
    )
    assert got > 4 * np.log(4)


def test_loss_survives_saving():
    loss = SSDLoss(ANCHORS, negatives=2)
    again = SSDLoss.from_config(loss.get_config())
    np.testing.assert_array_equal(again.anchors, ANCHORS)
    assert again.negatives == 2


def crowded(rng, images=3):
    """Answers with many boxes on top of one another."""
    answers = rng.normal(size=(images, len(ANCHORS), 3 + 5)) * 1.5
    answers[..., 0] += 1.0
    answers[..., -4:] *= 0.5
    return answers.astype("float32")


@pytest.mark.parametrize(("before", "after"), [(400, 100), (40, 100), (400, 7)])
def test_suppression_is_the_greedy_one(before, after):
    rng = np.random.default_rng(4)
    answers = crowded(rng)
    found = detections(
        answers[..., :-4],
        answers[..., -4:],
        ANCHORS,
        SIZE,
        before_nms=before,
        after_nms=after,
    )
    boxes, scores, kinds, counts = map(ops.convert_to_numpy, found)
    for k, answer in enumerate(answers):
        wanted = reference.detections(answer, ANCHORS, SIZE, before, after)
        assert 5 < counts[k] == len(wanted)
        for n, (score, kind, box) in enumerate(wanted):
            assert scores[k, n] == pytest.approx(score, rel=1e-5)
            assert kinds[k, n] == kind
            np.testing.assert_allclose(boxes[k, n], box, atol=2e-3)
        assert not scores[k, len(wanted) :].any()
        assert not boxes[k, len(wanted) :].any()
        assert (kinds[k, len(wanted) :] == -1).all()


def test_an_image_without_objects_has_no_detections():
    answers = np.zeros((1, len(ANCHORS), 8), "float32")
    answers[..., 0] = 20.0
    found = detections(answers[..., :-4], answers[..., -4:], ANCHORS, SIZE)
    assert int(found.count[0]) == 0
    assert not np.asarray(found.scores).any()


def test_suppression_runs_down_a_long_chain():
    # Each box overlaps the next alone: every other one stays.
    scores = np.linspace(3, 1, len(ANCHORS))
    anchors = np.stack(
        [[10 * k, 0, 10 * k + 30, 10] for k in range(len(ANCHORS))]
    ).astype("float32")
    answers = np.zeros((1, len(ANCHORS), 6), "float32")
    answers[0, :, 1] = scores
    found = detections(
        answers[..., :-4], answers[..., -4:], anchors, (10, 100_000)
    )
    kept = np.asarray(found.boxes)[0, : int(found.count[0]), 0]
    np.testing.assert_allclose(kept, np.arange(0, 10 * len(ANCHORS), 20))


def test_it_learns_compiled_with_objects_and_without():
    keras.utils.set_random_seed(0)
    model = small_ssd()
    model.compile(
        keras.optimizers.Adam(3e-3),
        SSDLoss(model.layers[-1].anchors),
        # PyTorch would need a compiler for C++.
        jit_compile=keras.backend.backend() != "torch",
    )
    rng = np.random.default_rng(0)
    images = rng.normal(0, 0.1, (16, 64, 64, 3)).astype("float32")
    objects = []
    for k, image in enumerate(images):
        x, y = rng.integers(0, 40, 2)
        kind = k % 2
        image[y : y + 24, x : x + 24, kind] += 2
        objects.append([(kind, (x, y, x + 24, y + 24))])
    images[-1], objects[-1] = 0, []  # an empty image
    targets = padded(objects, 3)
    losses = model.fit(
        images, targets, batch_size=16, epochs=150, verbose=0
    ).history["loss"]
    assert losses[-1] < 0.25 * losses[0]
    boxes, scores, kinds, counts = map(
        ops.convert_to_numpy, detector(model, least_score=0.3)(images)
    )
    right = [
        counts[k] > 0
        and kinds[k, 0] == objects[k][0][0]
        and reference.iou(boxes[k, 0], objects[k][0][1]) > 0.5
        for k in range(15)
    ]
    assert sum(right) >= 12
    assert scores[-1, 0] < 0.5


def test_other_models_have_no_detector():
    with pytest.raises(ValueError, match="`model` must be a detector"):
        detector(small_backbone())
