"""Exported detectors: the same boxes as Keras, in all formats."""

import argparse
import base64
import io
import json
import re
import sys
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from PIL import ImageDraw

from keras_muffnet import export
from keras_muffnet import quantization
from keras_muffnet.cli import quantize_detector
from keras_muffnet.data import open_detection_source
from keras_muffnet.detection import detector
from keras_muffnet.detection import two_outputs
from keras_muffnet.detection.metrics import Found
from keras_muffnet.evaluation import load_detector
from keras_muffnet.evaluation import load_model
from keras_muffnet.evaluation import load_predictor
from keras_muffnet.litert import read_operations
from keras_muffnet.model_server import ModelServer
from keras_muffnet.training.checkpoints import Checkpoints
from tests.conftest import ROOT
from tests.test_data_detection import write_voc
from tests.test_detection import small_backbone
from tests.test_detection import small_ssd

LABELS = ["round", "square"]


def picture(seed, size=(64, 64)):
    """Shapes on a gradient, with noise."""
    rng = np.random.default_rng(seed)
    height, width = size
    shade = np.linspace(60, 190, width)[None, :, None]
    pixels = shade + rng.normal(0, 8, (height, width, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for k in range(3):
        x, y = rng.integers(0, min(size) - 24, 2)
        shape = (draw.ellipse, draw.rectangle)[k % 2]
        shape((x, y, x + 20, y + 20), fill=tuple(rng.integers(0, 255, 3)))
    return image


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A detector in all formats, with what Keras finds in some images."""
    folder = tmp_path_factory.mktemp("detector")
    keras.utils.set_random_seed(3)
    model = small_ssd()
    model.save(folder / "model.keras")
    pixels = np.stack([np.asarray(picture(k)) for k in range(6)])
    pixels = pixels.astype("float32")
    images = (pixels - 128) / 128
    export.export_saved_model(model, folder / "served", labels=LABELS)
    export.export_litert(model, folder / "float.tflite")
    quantized = quantization.quantize_aware(
        two_outputs(model), images, engine="keras"
    )
    export.export_litert(model, folder / "int8.tflite", quantized=quantized)
    found = [np.asarray(x) for x in detector(model)(images)]
    return folder, pixels, found


@pytest.mark.parametrize("name", ["model.keras", "served", "float.tflite"])
def test_the_same_boxes_in_all_formats(files, name):
    folder, pixels, (boxes, scores, classes, count) = files
    loaded = load_detector(folder / name)
    assert loaded.size == (64, 64)
    got = loaded.detect(pixels)
    assert (count > 5).all()
    np.testing.assert_array_equal(got.count, count)
    np.testing.assert_allclose(got.scores, scores, atol=1e-5)
    np.testing.assert_array_equal(got.classes, classes)
    np.testing.assert_allclose(got.boxes, boxes, atol=1e-2)


def test_int8_finds_nearly_the_same(files):
    folder, pixels, (boxes, scores, classes, _) = files
    got = load_detector(folder / "int8.tflite").detect(pixels)
    # Ranks change where scores are near: the best ones must be found.
    for k in range(len(pixels)):
        for n in range(3):
            same = got.classes[k] == classes[k, n]
            near = np.abs(got.boxes[k] - boxes[k, n]).max(axis=1) < 3
            assert (same & near).any()
    assert np.abs(got.scores[:, 0] - scores[:, 0]).max() < 0.05
    operations = read_operations((folder / "int8.tflite").read_bytes())
    convolutions = [o for o in operations if o.name == "CONV_2D"]
    assert convolutions
    assert all("INT8" in o.dtypes for o in convolutions)
    # In int8 scores would be multiples of 1/256.
    assert "SOFTMAX" not in {o.name for o in operations}
    assert len(np.unique(got.scores * 256 % 1)) > 50


def test_encoded_images_of_any_size(files):
    folder, *_ = files
    encoded = []
    for size in ((48, 100), (64, 64)):
        content = io.BytesIO()
        picture(7, size).save(content, "PNG")
        encoded.append(content.getvalue())
    loaded = tf.saved_model.load(str(folder / "served" / "1"))
    answer = loaded.signatures["serving_bytes"](
        image_bytes=tf.constant(encoded)
    )
    count = answer["num_detections"].numpy()
    assert count.dtype == np.int32
    boxes = answer["boxes"].numpy()
    assert boxes.shape == (2, 100, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    # (y_min, x_min, y_max, x_max), as the model server's page draws it.
    direct = load_detector(folder / "served").detect(
        np.asarray(picture(7), "float32")[None]
    )
    np.testing.assert_allclose(
        boxes[1][:, [1, 0, 3, 2]] * 64, direct.boxes[0], atol=1e-3
    )
    names = answer["labels"].numpy()[1]
    kinds = answer["classes"].numpy()[1]
    for k in range(100):
        wanted = LABELS[kinds[k]] if k < count[1] else ""
        assert names[k].decode() == wanted


def test_a_saved_model_knows_its_classes(files):
    folder, *_ = files
    assert load_detector(folder / "served").class_names == tuple(LABELS)
    assert load_detector(folder / "model.keras").class_names == ()


def test_boxes_are_served(files):
    folder, *_ = files
    content = io.BytesIO()
    picture(0, (90, 120)).save(content, "PNG")
    encoded = base64.b64encode(content.getvalue()).decode()
    request = {
        "signature_name": "serving_bytes",
        "instances": [{"b64": encoded}],
    }
    with ModelServer(folder / "served", model_name="shapes") as server:
        url = f"{server.url}/v1/models/shapes:predict"
        asked = urllib.request.Request(url, json.dumps(request).encode())
        with urllib.request.urlopen(asked) as response:
            [answer] = json.load(response)["predictions"]
    count = answer["num_detections"]
    assert 0 < count <= len(answer["boxes"])
    assert set(answer["labels"][:count]) <= set(LABELS)
    loaded = tf.saved_model.load(str(folder / "served" / "1"))
    found = loaded.signatures["serving_bytes"](
        image_bytes=tf.constant([content.getvalue()])
    )
    np.testing.assert_allclose(answer["boxes"], found["boxes"][0], atol=1e-5)
    np.testing.assert_allclose(answer["scores"], found["scores"][0], atol=1e-5)


def test_the_card_tells_of_boxes(files):
    folder, *_ = files
    card = (folder / "served" / "1" / "README.md").read_text()
    assert "`boxes`" in card
    assert "`predictions`" not in card


def test_wrong_arguments_are_named(files, tmp_path):
    folder, *_ = files
    with pytest.raises(ValueError, match="`labels` must"):
        export.export_saved_model(small_ssd(), tmp_path / "m", labels=["one"])
    with pytest.raises(ValueError, match="`quantized` must be None"):
        export.export_litert(
            small_backbone(), tmp_path / "m.tflite", quantized=lambda x: x
        )
    (tmp_path / "bad.tflite").write_bytes(b"no model")
    with pytest.raises(OSError, match="damaged"):
        load_detector(tmp_path / "bad.tflite")
    with pytest.raises(ValueError, match="`model` must end in"):
        load_detector(folder / "served" / "1" / "README.md")
    with pytest.raises(ValueError, match="`model` must be a detector"):
        load_detector("cifar10")
    with pytest.raises(ValueError, match="`model` must be a classifier"):
        load_predictor(folder / "float.tflite")
    with pytest.raises(ValueError, match="`normalization` must be left out"):
        load_model(folder / "model.keras", normalization=(0, 1))
    with pytest.raises(ValueError, match="`alpha` must be left out"):
        load_model(folder / "served", network={"alpha": 1})


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Images with boxes, of the classes "cat" and "dog"."""
    folder = tmp_path_factory.mktemp("boxes") / "voc"
    names = ["0", "1", "2", "3"]
    write_voc(
        folder,
        {"trainval": names, "test": names[:2]},
        {n: [("cat", (3, 3, 20, 20)), ("dog", (9, 9, 30, 28))] for n in names},
    )
    return folder


def test_an_int8_detector_from_one_command(files, boxes, tmp_path, muffnet):
    folder, *_ = files
    output = tmp_path / "int8"
    printed = muffnet(
        *("quantize", "--model", folder / "model.keras", "--data", boxes),
        *("--output", output, "--epochs", 1, "--batch-size", 2),
    )
    text = (output / "metrics.json").read_text()
    metrics = json.loads(text, parse_constant=pytest.fail)
    assert set(metrics) == {"float32", "int8_post_training", "int8"}
    for name, row in metrics.items():
        path = output / f"{name}.tflite"
        assert row["bytes"] == path.stat().st_size
        assert 0 <= row["ap50"] <= 1
        assert load_detector(path).size == (64, 64)
        # The untrained detector is sure of nothing.
        assert row["iou_with_float"] is None
    assert re.search(r"^int8 .+ -$", printed, re.MULTILINE)
    assert metrics["int8"]["bytes"] < metrics["float32"]["bytes"]


def test_agreement_of_boxes_is_that_of_the_same_class():
    def found(boxes, scores, classes):
        return Found(np.float32(boxes), np.float32(scores), np.array(classes))

    squares = [[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]]
    expected = [found(squares, [0.9, 0.8, 0.1], [0, 1, 0])]
    # The first is half as high, the second of another class, the third unsure.
    others = [[0, 0, 10, 5], [20, 20, 30, 30]]
    mine = [found(others, [0.1, 0.1], [0, 0])]
    assert quantize_detector.agreement(expected, mine) == pytest.approx(0.25)
    none = [found(np.zeros((0, 4)), [], [])]
    assert quantize_detector.agreement(expected, none) == 0
    assert quantize_detector.agreement(none, mine) is None


def test_a_detector_is_evaluated_by_the_same_command(
    files, boxes, tmp_path, muffnet
):
    folder, *_ = files
    command = ("evaluate", "--data", boxes, "--output", tmp_path, "--model")
    printed = muffnet(*command, folder / "float.tflite")
    assert "2 images, 4 objects" in printed
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert (figures["split"], figures["skipped"]) == ("test", 0)
    assert figures["clipped"] == 0 and "2 test images, with 4 obj" in printed
    assert set(figures["voc"]) == {"mean", "cat", "dog"}
    assert (tmp_path / "boxes.png").stat().st_size > 0
    assert f"{figures['voc']['mean']:>8.4f}" in printed
    # Of other classes: by name, and by number.
    error = muffnet(*command, folder / "served", status=1)
    assert "classes of the model, round, square, in that order" in error
    error = muffnet(*command, "bccd", status=1)
    assert "Platelets, RBC, WBC" in error
    error = muffnet(*command, folder / "model.keras", "--mistakes=1", status=1)
    assert "--mistakes must be left out for a detector" in error
    error = muffnet(*command, folder / "model.keras", "--pictures=-1", status=1)
    assert "--pictures must be 0 or more. Received: -1" in error


def test_detect_draws_an_image_and_a_folder(files, tmp_path, muffnet):
    folder, *_ = files
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS))
    images = tmp_path / "images"
    images.mkdir()
    for k in range(2):
        picture(k, (90, 120)).save(images / f"{k}.png")
    settings = ("--labels", labels, "--threshold", "0.2")
    printed = muffnet(
        *("detect", "--model", folder / "model.keras", *settings),
        *(images / "0.png", "--output", tmp_path / "one.png"),
    )
    assert "square 0." in printed or "round 0." in printed
    drawn = np.asarray(Image.open(tmp_path / "one.png"))
    before = np.asarray(picture(0, (90, 120)))
    assert drawn.shape == before.shape
    assert (drawn != before).any()
    printed = muffnet(
        *("detect", "--model", folder / "float.tflite", *settings),
        *(images, "--output", tmp_path / "many"),
    )
    assert printed.replace("1.png", "0.png").count("0.png.png") == 2
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == [
        "0.png.png",
        "1.png.png",
    ]


@pytest.mark.parametrize("missing", ["input", "imageio", "pixels"])
def test_detect_reports_what_is_missing(
    files, tmp_path, monkeypatch, muffnet, missing
):
    folder, *_ = files
    source = tmp_path / ("a.png" if missing == "pixels" else "film.mp4")
    if missing == "imageio":
        source.write_bytes(b"")
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    if missing == "pixels":
        picture(0).save(source)
        source.write_bytes(source.read_bytes()[:900])
    target = tmp_path / f"out{source.suffix}"
    line = muffnet(
        *("detect", "--model", folder / "model.keras", source),
        *("--output", target),
        status=1,
    )
    wanted = {
        "input": f"input must exist. Received: {source}",
        "imageio": f'This needs imageio_ffmpeg: pip install -e "{ROOT}[video]"',
        "pixels": f"input must hold whole images. Received: {source} ",
    }
    assert line.startswith(f"muffnet detect: error: {wanted[missing]}")
    assert not target.exists()


class StopError(Exception):
    pass


def test_batches_larger_than_a_split(boxes, tmp_path, muffnet):
    """Only fine-tuning needs whole batches, and it is refused at once."""
    source = open_detection_source(boxes)
    args = argparse.Namespace(
        train_split="trainval",
        test_split="test",
        batch_size=4,
        calibration_images=3,
        seed=0,
        on_bad="raise",
    )
    images = quantize_detector.calibration_images(args, source, (32, 32))
    assert images.shape == (3, 32, 32, 3)
    # Of two test images.
    assert quantize_detector.compare({}, args, source, (32, 32)) == {}
    small_ssd().save(tmp_path / "m.keras")
    line = muffnet(
        *("quantize", "--model", tmp_path / "m.keras", "--data", boxes),
        *("--output", tmp_path / "int8", "--batch-size", 5),
        status=1,
    )
    assert "training images, 4. Received: batch_size=5" in line
    assert not (tmp_path / "int8").exists()


def test_fine_tuning_resumes_after_the_last_whole_epoch(
    boxes, tmp_path, monkeypatch, capsys
):
    """Where it was stopped between the two, it ends as one left alone."""
    source = open_detection_source(boxes)
    settings = {"seed": 0, "on_bad": "raise", "learning_rate": 0.01}
    settings |= {"train_split": "trainval", "test_split": "test"}
    settings |= {"epochs": 2, "batch_size": 2}

    def tuned(folder, **others):
        keras.utils.set_random_seed(3)
        model = small_ssd()
        quantized = two_outputs(model)
        args = argparse.Namespace(output=folder, **settings | others)
        opened = quantize_detector.open_training(model, args, source)
        quantize_detector.fine_tune(quantized, model, args, *opened)
        return quantized.get_weights()

    whole = tuned(tmp_path / "whole")
    save = Checkpoints.save

    def save_and_stop(self, checkpoint):
        save(self, checkpoint)
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(StopError):
            tuned(tmp_path / "cut")
    with pytest.raises(ValueError, match=r"other settings: epochs=2"):
        tuned(tmp_path / "cut", epochs=3)
    for a, b in zip(tuned(tmp_path / "cut"), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert "1 of 2 epochs were done before" in capsys.readouterr().out
