"""The command `muffnet`; `quantize` and `detect` have files of their own."""

import json
import shutil
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_muffnet import MuffNet
from keras_muffnet import count_complexity
from keras_muffnet.cli import common
from keras_muffnet.cli import detect
from keras_muffnet.cli import quantize_classifier
from keras_muffnet.cli.main import COMMANDS
from keras_muffnet.cli.main import main
from keras_muffnet.detection.postprocess import Detections
from keras_muffnet.evaluation.detectors import Detector
from keras_muffnet.litert.metadata import read_metadata
from keras_muffnet.training.loop import Interrupted
from tests.conftest import write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two colors of images, of which a network is soon sure."""
    return write_photos(tmp_path_factory.mktemp("photos"), ("a", "b"), 8, 4)


@pytest.fixture(scope="module")
def truncated(photos, tmp_path_factory):
    """The same images, the second of each class cut short."""
    folder = tmp_path_factory.mktemp("bad") / "photos"
    shutil.copytree(photos, folder)
    for path in folder.glob("*/*/1.png"):
        path.write_bytes(path.read_bytes()[:900])
    return folder


@pytest.fixture(scope="module")
def small_classifier(tmp_path_factory):
    """A model that wants pixels as they are; its file and labels."""
    folder = tmp_path_factory.mktemp("model")
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(x))
    model = keras.Model(x, keras.layers.Dense(2, "softmax")(flat))
    model.save(folder / "m.keras")
    (folder / "labels.txt").write_text("hill\nflower\n")
    return folder, model


def test_without_arguments_it_says_what_it_can_do(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert f"  {name:<10}{text}\n" in printed
    examples = printed[printed.index("examples:") :]
    assert examples.count("\n  muffnet ") == 3


def test_a_command_that_is_none_is_refused(capsys):
    for arguments in (["fit"], ["--data", "x"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert "choose one of train, evaluate, " in capsys.readouterr().err


def test_completion_of_commands_and_flags(capsys):
    assert main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    for name in COMMANDS:
        assert f"_shtab_muffnet_{name}_option_strings=(" in script
    for flag in ("--learning-rate", "--on-bad", "--rest_api_port"):
        assert f" {flag} " in script


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "x/m"), "No space left on dev"),
        (ImportError("This needs PIL:\n pip"), "This needs PIL: pip"),
        (
            tf.errors.InvalidArgumentError(
                None,
                None,
                "{{function_node f}} Bad image [Op:DecodeImage] name: ",
            ),
            "Bad image",
        ),
        (
            tf.errors.InvalidArgumentError(
                None,
                None,
                "Error in user-defined function passed to Map:1 with "
                "iterator: Iterator::Root: ValueError: `a.png` is bad\n"
                "Traceback (most recent call last):\n  File x",
            ),
            "`a.png` is bad",
        ),
    ],
)
def test_what_can_go_wrong_is_one_line(error, line, capsys):
    def work():
        raise error

    assert common.run(work, "muffnet train") == 1
    printed = capsys.readouterr().err
    assert printed.startswith("muffnet train: error: ")
    assert line in printed
    assert printed.count("\n") == 1


def test_what_cannot_be_expected_keeps_its_traceback(capsys):
    def work():
        return [][0]

    with pytest.raises(IndexError):
        common.run(work, "muffnet train")
    assert capsys.readouterr().err == ""


def test_an_interrupted_command_says_so(capsys):
    def work():
        raise KeyboardInterrupt

    assert common.run(work, "muffnet serve") == 130
    assert capsys.readouterr().err == "\nmuffnet serve: interrupted\n"


def test_an_interrupted_run_says_where(capsys):
    def work():
        raise Interrupted("after epoch 1, step 2 of the next")

    assert common.run(work, "muffnet train", "here") == 130
    assert capsys.readouterr().err == (
        "\nmuffnet train: interrupted after epoch 1, step 2 of the next; the "
        "same command resumes here\n"
    )


@pytest.mark.parametrize(
    ("source", "output"),
    [("a.png", "boxes"), ("a.JPG", "a.mp4"), ("a.mp4", "a.png")],
)
def test_detect_writes_what_it_reads(source, output, tmp_path, muffnet):
    (tmp_path / source).write_bytes(b"")
    # Before the model, which may take minutes, is looked for.
    line = muffnet(
        *("detect", "--model", "none.keras", tmp_path / source),
        *("--output", tmp_path / output),
        status=1,
    )
    assert "--output must end " in line
    assert line.endswith(f"Received: {tmp_path / output}")


@pytest.fixture
def one_box(monkeypatch):
    """Has `detect` find one box of the second of two classes."""

    def detect(pixels):
        count = len(pixels)
        return Detections(
            np.full((count, 1, 4), [[2.0, 2, 9, 9]]),
            np.full((count, 1), 0.9),
            np.ones((count, 1), int),
            np.ones(count, int),
        )

    found = Detector((16, 16), detect, ("cat", "dog"), 2)
    monkeypatch.setattr(
        "keras_muffnet.evaluation.load_detector", lambda model: found
    )


def write_film(path, count, height, width):
    """Writes a video of frames of any size."""
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    writer = imageio.get_writer(
        path, format="ffmpeg", fps=5, codec="ffv1", macro_block_size=1
    )
    with writer:
        for k in range(count):
            writer.append_data(np.full((height, width, 3), 40 * k, np.uint8))


@pytest.mark.parametrize("suffix", sorted(detect.VIDEOS))
def test_detect_writes_videos_of_any_size(suffix, one_box, tmp_path, muffnet):
    source, target = tmp_path / "a.mkv", tmp_path / f"b{suffix}"
    write_film(source, 3, 47, 63)
    printed = muffnet("detect", "--model=m", source, "--output", target)
    assert printed.count("  dog 0.900 at (7.9, 5.9, 35.4, 26.4)\n") == 3
    assert f"3 frames, {target}" in printed
    imageio = pytest.importorskip("imageio.v2")
    with imageio.get_reader(target, "ffmpeg") as reader:
        found = reader.get_meta_data()
        assert sum(1 for _ in reader) == 3
    assert found["codec"] == ("vp9" if suffix == ".webm" else "h264")
    assert found["size"] == (64, 48)


def test_detect_says_which_video_fails(one_box, tmp_path, muffnet, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    source, target = tmp_path / "a.mkv", tmp_path / "b.mp4"
    command = ("detect", "--model=m", source, "--output", target)
    source.write_bytes(b"no video")
    line = muffnet(*command, status=1)
    assert f"ffmpeg can read. Received: {source} (" in line
    write_film(source, 3, 16, 16)
    with monkeypatch.context() as patch:
        patch.setitem(detect.VIDEOS, ".mp4", "prores")
        line = muffnet(*command, status=1)
    assert f"error: '{target}' cannot be written: " in line
    monkeypatch.setattr(ffmpeg, "count_frames_and_secs", lambda path: (2, 0.4))
    line = muffnet(*command, status=1)
    assert line.endswith("cannot be written: only 2 of 3 frames arrived")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]


def test_detect_goes_on_after_a_bad_image(one_box, tmp_path, muffnet):
    folder, output = tmp_path / "photos", tmp_path / "out"
    write_photos(folder, ("a",), 3, 0)
    folder /= "train/a"
    (folder / "._0.png").write_bytes(b"what a Mac keeps of a file")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:99])
    command = ("detect", "--model=m", folder, "--output", output)
    line = muffnet(*command, status=1)
    assert f"whole images. Received: {folder / '1.png'} (" in line
    written = sorted(path.name for path in output.iterdir())
    assert written == ["0.png.png", "2.png.png"]
    for path in folder.glob("[0-9].png"):
        path.unlink()
    assert "input must hold images" in muffnet(*command, status=1)


def test_detect_wants_a_label_for_each_class(one_box, tmp_path, muffnet):
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\ncow\n")
    write_photos(tmp_path, ("a",), 1, 0)
    line = muffnet(
        *("detect", "--model=m", "--labels", labels),
        *(tmp_path / "train/a/0.png", "--output", tmp_path / "b.png"),
        status=1,
    )
    assert "--labels must name the 2 classes of the detector" in line
    assert line.endswith("labels.txt, with 3 names")


def test_labels_are_read_as_editors_write_them(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffK\u00fche\r\nhens \r\n\r\n".encode())
    assert common.read_labels(path) == ["K\u00fche", "hens"]
    path.write_bytes(b"K\xfche\n")
    with pytest.raises(ValueError, match="--labels must be a text file in UTF"):
        common.read_labels(path)


def test_count_prints_the_published_counts(muffnet):
    lines = muffnet("count").splitlines()
    assert len(lines) == 1 + 9
    assert not any("DIFFERS" in line for line in lines)
    assert lines[1].startswith("0.5    parameters, 1,000 classes ")
    assert lines[1].split()[-3:] == [*["1,380,641"] * 2, "1.4M"]
    assert lines[9].startswith("1.5    MACs at 32, 10 classes ")
    assert lines[9].split()[-1] == "373M"


@pytest.fixture
def channels_first():
    """Has Keras build networks for images whose channels come first."""
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


def test_counts_are_the_same_with_channels_first(muffnet, channels_first):
    assert "DIFFERS" not in muffnet("count")
    flags = ("--alpha", "0.5", "--size", "32", "--classes", "10")
    lines = muffnet("count", *flags).splitlines()
    assert lines[-1].split() == ["total", "365,891", "40,696,448"]


def test_weights_are_of_a_network_in_keras_s_data_format(channels_first):
    args = mock.Mock(
        model="w.weights.h5", alpha=0.5, size=32, stem=None, classes=10
    )
    assert common.network_arguments(args)["input_shape"] == (3, 32, 32)


def test_count_of_one_network_by_layer(muffnet, small_classifier):
    flags = ("--alpha", "0.5", "--size", "32", "--classes", "10")
    lines = muffnet("count", *flags).splitlines()
    assert lines[-1].split() == ["total", "365,891", "40,696,448"]
    folder, _ = small_classifier
    lines = muffnet("count", "--model", folder / "m.keras").splitlines()
    assert lines[-1].split() == ["total", "386", "384"]
    model = ("--model", folder / "m.keras")
    assert "--alpha must be left out" in muffnet(
        "count", *model, "--alpha=1", status=1
    )


def test_count_of_a_model_that_takes_any_size(
    muffnet, small_classifier, tmp_path
):
    body = MuffNet(include_top=False, alpha=0.1)
    body.save(tmp_path / "body.keras")
    command = ("count", "--model", tmp_path / "body.keras")
    lines = muffnet(*command, "--size=64").splitlines()
    expected = count_complexity(body, input_shape=(64, 64, 3))
    assert lines[-1].split()[-1] == f"{expected.macs:,}"
    assert "--size must be given" in muffnet(*command, status=1)
    assert "positive integer" in muffnet(*command, "--size=0", status=1)
    folder, _ = small_classifier
    error = muffnet(
        *("count", "--model", folder / "m.keras", "--size=9"), status=1
    )
    assert "--size must be left out" in error and "(8, 8, 3)" in error


def test_count_refuses_a_bad_notation(muffnet):
    error = muffnet("count", "--alpha=1", "--sharing=average", status=1)
    assert "`notation` must name three" in error


@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_a_truncated_image_is_one_line(
    on_bad, truncated, small_classifier, muffnet, tmp_path
):
    folder, _ = small_classifier
    data = (f"--data={truncated}", f"--on-bad={on_bad}")
    model = f"--model={folder / 'm.keras'}"
    evaluate = ("evaluate", model, *data, f"--output={tmp_path}")
    if on_bad == "skip":
        printed = muffnet(*evaluate)
        assert "6 validation images; 2 bad ones skipped: '" in printed
        assert "6 images: " in printed
        figures = json.loads((tmp_path / "evaluation.json").read_text())
        assert (figures["split"], figures["skipped"]) == ("val", 2)
        return
    train = ("train", "quick", *data, "--batch-size=8")
    train += (f"--output={tmp_path / 'run'}",)
    quantize = ("quantize", model, *data, f"--output={tmp_path / 'int8'}")
    for command in (train, evaluate, quantize):
        assert "1.png" in muffnet(*command, status=1)
    assert not list(tmp_path.rglob("*.tflite"))


def test_quantize_leaves_bad_images_out(truncated):
    args = mock.Mock(
        data=str(truncated), size=None, train_images=None, seed=0, on_bad="skip"
    )
    args.train_split, args.test_split = "train", "test"
    args.validation_split = args.nested = None
    model = mock.Mock(input_shape=(None, 8, 8, 3))
    with pytest.warns(UserWarning, match=r"2 bad images .*1\.png"):
        train, test, _ = quantize_classifier.load_data(model, args)
    assert train[0].shape == (14, 8, 8, 3) and test[0].shape == (6, 8, 8, 3)
    assert train[1].tolist() == [0] * 7 + [1] * 7


def test_images_of_other_classes_are_refused(muffnet, photos, tmp_path):
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten()]
    keras.Sequential([*layers, keras.layers.Dense(3)]).save(
        tmp_path / "m.keras"
    )
    for command in ("evaluate", "quantize"):
        error = muffnet(
            *(command, "--model", tmp_path / "m.keras", "--data", photos),
            *("--output", tmp_path / "out"),
            status=1,
        )
        assert "must have the 3 classes of the model" in error
        assert error.endswith("Received: a, b")
    assert not (tmp_path / "out").exists()


def test_flags_that_do_not_belong_are_refused(
    muffnet, small_classifier, photos
):
    folder, _ = small_classifier
    evaluate = ("evaluate", f"--model={folder / 'm.keras'}", f"--data={photos}")
    for command, flag in (
        ((*evaluate, "--threshold=0.5"), "--threshold"),
        ((*evaluate, "--size=9"), "--size"),
        ((*evaluate, "--alpha=1"), "`alpha`"),
        (("train", "quick", "--hue=1"), "--hue"),
        (("train", "ssd300_fast", "--mixup=1"), "--mixup"),
        (("train", "ssd300_fast", "--devices=2"), "--devices"),
    ):
        assert f"{flag} must be left out" in muffnet(*command, status=1)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--mistakes=-1", "--mistakes must be 0 or more. Received: -1"),
        ("--batch-size=0", "`batch_size` must be a positive integer"),
    ],
)
def test_evaluate_refuses_numbers_out_of_range(
    flag, message, muffnet, small_classifier, photos
):
    model = f"--model={small_classifier[0] / 'm.keras'}"
    line = muffnet("evaluate", model, f"--data={photos}", flag, status=1)
    assert message in line


def test_export_writes_versions_that_can_be_served(
    small_classifier, tmp_path, muffnet
):
    folder, model = small_classifier
    command = (
        "export",
        f"--model={folder / 'm.keras'}",
        f"--labels={folder / 'labels.txt'}",
        f"--output={tmp_path / 'garden'}",
    )
    muffnet(*command)
    printed = muffnet(*command, "--normalization", "0", "2")
    assert f"{tmp_path / 'garden' / '2' / 'saved_model.pb'}  " in printed
    assert "/v1/models/garden:predict" in printed
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3))
    png = tf.io.encode_png(images[0].astype(np.uint8)).numpy()
    for version, scale in (("1", 1), ("2", 2)):
        loaded = tf.saved_model.load(tmp_path / "garden" / version)
        got = loaded.signatures["serving_bytes"](image_bytes=tf.constant([png]))
        expected = model.predict(images / scale, verbose=0)
        np.testing.assert_allclose(got["predictions"], expected, rtol=1e-5)
        best = [b"hill", b"flower"][expected.argmax()]
        assert got["classes"].numpy()[0, 0] == best


def test_export_of_litert_files(small_classifier, tmp_path, muffnet):
    folder, _ = small_classifier
    base = tmp_path / "garden"
    muffnet(
        *("export", "--model", folder / "m.keras", "--format", "litert"),
        *("--labels", folder / "labels.txt", "--output", base),
    )
    path = base / "1" / "model.tflite"
    metadata = read_metadata(path.read_bytes())
    assert metadata.labels == ("hill", "flower")
    assert (metadata.mean, metadata.std) == ((0.0,) * 3, (1.0,) * 3)
    again = ("export", "--model", path, "--output", base)
    muffnet(*again, "--format", "litert")
    copy = base / "2" / "model.tflite"
    assert copy.read_bytes() == path.read_bytes()
    assert "must be a .keras file" in muffnet(*again, status=1)
    assert len(list(base.iterdir())) == 2
    muffnet(
        *("export", "--model", folder / "m.keras", "--format", "both"),
        *("--labels", folder / "labels.txt", "--output", base),
    )
    assert (base / "3" / "model.tflite").read_bytes() == path.read_bytes()
    assert (base / "3" / "saved_model.pb").exists()


def test_export_from_weights(tmp_path, muffnet, monkeypatch):
    model = MuffNet(input_shape=(32, 32, 3), alpha=0.1, classes=3)
    model.save_weights(tmp_path / "w.weights.h5")
    command = [
        *("export", f"--model={tmp_path / 'w.weights.h5'}"),
        f"--output={tmp_path / 'm'}",
        *("--alpha=0.1", "--size=32"),
    ]
    assert "--classes must be given" in muffnet(*command, status=1)
    assert not (tmp_path / "m").exists()
    built = []

    def export(model, base_path, **_):
        built.append(model)
        return base_path

    monkeypatch.setattr("keras_muffnet.export.export_saved_model", export)
    muffnet(*command, "--classes=3")
    for mine, theirs in zip(built[0].weights, model.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_folder_is_fine_tuned_and_evaluated(photos, forks, tmp_path):
    def command(*arguments):
        # Tracing three networks in TensorFlow would take a minute.
        return forks("torch").run("-m", "keras_muffnet", *arguments)

    output = tmp_path / "run"
    weights = tmp_path / "trained.keras"
    MuffNet(input_shape=(32, 32, 3), alpha=0.1, classes=7).save(weights)
    settings = [
        *("train", "transfer"),
        f"--data={photos}",
        f"--weights={weights}",
        f"--output={output}",
        *("--alpha=0.1", "--size=32", "--stem=auto", "--batch-size=8"),
        *("--epochs=2", "--freeze-epochs=1", "--no-jit-compile"),
        *("--augmentation=cifar", "--warm-up-epochs=0"),
    ]
    trained = command(*settings)
    assert trained.returncode == 0, trained.stderr
    assert "16 training and 8 validation images" in trained.stdout
    result = json.loads((output / "result.json").read_text())
    assert set(result) == {"best", "last"}
    asked = command(
        "evaluate", f"--model={output / 'best.keras'}", f"--data={photos}"
    )
    assert asked.returncode == 0, asked.stderr
    figures = json.loads(
        (output / "evaluation" / "evaluation.json").read_text()
    )
    # What the run says of its best weights is measured again.
    assert figures["images"] == 8
    assert figures["top_1"] == result["best"]["accuracy"]
    assert f"top 1 {figures['top_1']:.2%}" in asked.stdout
    # With another setting the folder is refused, in a line.
    refused = command(*settings, "--seed=1")
    assert refused.returncode == 1
    [line] = [k for k in refused.stderr.splitlines() if "error:" in k]
    assert line.startswith("muffnet train: error: `output` must be a new fol")
    assert line.endswith("seed was 0 and is 1")
    assert "Traceback" not in refused.stderr
