"""Folders and archives of images as people have them: what becomes of each."""

import io
import os
import pathlib
import re
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from keras_muffnet.data import PLAIN
from keras_muffnet.data import balanced_class_weights
from keras_muffnet.data import make_feed
from keras_muffnet.data import open_source
from keras_muffnet.data.examples import held_out
from keras_muffnet.data.layout import SUFFIXES


def png(value=0, size=(4, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(root, files):
    """Writes files: of a list, images; of a mapping, what it gives."""
    if not isinstance(files, dict):
        files = {name: png(i) for i, name in enumerate(files)}
    for name, content in files.items():
        path = pathlib.Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content)


def opened(path, **arguments):
    """A source, what each split holds, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = open_source(path, **arguments)
        held = {
            split: sorted(
                (examples.key(i), source.class_names[examples.label(i)])
                for i in range(len(examples))
            )
            for split in source.splits
            for examples in [source.split(split)]
        }
    return source, held, [str(warning.message) for warning in caught]


def counts(path, **arguments):
    source, held, message = opened(path, **arguments)
    return (
        source.class_names,
        {split: len(found) for split, found in held.items()},
        message,
    )


CLASSES = ("cat", "dog")
TWO = ["cat/1.png", "cat/2.png", "dog/1.png"]
ONE = ["cat/3.png", "dog/4.png"]
LABELS = "file,label\n1.png,cat\n2.png,cat\n3.png,dog\n"


def under(folder, files):
    return [f"{folder}/{file}" for file in files]


LAYOUTS = {
    # name: files; classes; images by split; what a warning says
    "classes alone": (TWO, CLASSES, {"train": 3}, None),
    "only train": (under("train", TWO), CLASSES, {"train": 3}, None),
    "train and test": (
        under("train", TWO) + under("test", ONE),
        CLASSES,
        {"train": 3, "test": 2},
        None,
    ),
    "capitals": (
        under("Train", TWO) + under("TEST", ONE),
        CLASSES,
        {"train": 3, "test": 2},
        None,
    ),
    "valid": (
        under("train", TWO) + under("valid", ONE),
        CLASSES,
        {"train": 3, "val": 2},
        None,
    ),
    "training and validation": (
        under("training", TWO) + under("validation", ONE),
        CLASSES,
        {"train": 3, "val": 2},
        None,
    ),
    "all three": (
        under("train", TWO) + under("val", ONE) + under("testing", ONE[:1]),
        CLASSES,
        {"train": 3, "val": 2, "test": 1},
        "no image in 'test' of 1: 'dog'",
    ),
    "one folder around": (
        under("photos/data/train", TWO),
        CLASSES,
        {"train": 3},
        None,
    ),
    "classes with a folder around": (
        under("photos", TWO),
        CLASSES,
        {"train": 3},
        None,
    ),
    "a class called train": (
        ["train/1.png", "bus/1.png", "car/1.png"],
        ("bus", "car", "train"),
        {"train": 3},
        None,
    ),
    "one class": (["cat/1.png"], ("cat",), {"train": 1}, "one class only"),
    "every suffix": (
        [
            f"train/a/{i}{suffix}"
            for i, suffix in enumerate(
                [
                    "jpe",
                    "jfif",
                    "jpg",
                    "JPEG",
                    "tif",
                    "tiff",
                    "webp",
                    "avif",
                    "heic",
                    "heif",
                    "png",
                    "bmp",
                    "gif",
                ]
            )
        ]
        + ["train/b/1.png"],
        ("a", "b"),
        {"train": len(SUFFIXES) + 1},
        None,
    ),
    "rubbish": (
        [
            *under("train", TWO),
            *("train/Thumbs.db", "train/cat/Thumbs.db", "train/.DS_Store"),
            *("labels.csv", "README", "train/cat/desktop.ini"),
            *("train/dog/notes.txt", "README.md", "__MACOSX/train/cat/._1.png"),
        ],
        CLASSES,
        {"train": 3},
        "left out 9 files.*'Thumbs.db' \\(2 times\\)",
    ),
    "other folders": (
        [*under("train", TWO), "extra/1.png", "extra/2.png"],
        CLASSES,
        {"train": 3},
        "left out 2 files",
    ),
    "accents of a Mac": (
        {
            "train/caf\u00e9/1.png": png(1),
            "train/tea/1.png": png(2),
            "test/cafe\u0301/2.png": png(3),
            "test/tea/2.png": png(4),
        },
        ("caf\u00e9", "tea"),
        {"train": 2, "test": 2},
        None,
    ),
    "CSV beside a folder": (
        {
            "labels.csv": LABELS,
            **{f"images/{i}.png": png(i) for i in (1, 2, 3)},
        },
        CLASSES,
        {"train": 3},
        "left out 1 files.*labels.csv",
    ),
    "CSV among the images": (
        {"labels.csv": LABELS, **{f"{i}.png": png(i) for i in (1, 2, 3)}},
        CLASSES,
        {"train": 3},
        None,
    ),
    "Kaggle": (
        {
            "train.csv": "id,breed\n00a,pug\n00b,collie\n",
            "sample_submission.csv": "id,breed\n99z,pug\n",
            "train/00a.jpg": png(1),
            "train/00b.jpg": png(2),
            "test/99z.jpg": png(3),
        },
        ("collie", "pug"),
        {"train": 2},
        "left out 3 files",
    ),
    "CSV with byte order mark, semicolons and backslashes": (
        {
            "data/l.csv": "\ufeffImage;Label\nimgs\\1.png;2\nimgs\\2.png;10\n",
            "data/imgs/1.png": png(1),
            "data/imgs/2.png": png(2),
        },
        ("2", "10"),
        {"train": 2},
        None,
    ),
    "CSV with splits": (
        {
            "l.csv": "path,class,split\n1.png,a,train\n2.png,b,train\n"
            "3.png,a,valid\n4.png,b,test\n",
            **{f"images/{i}.png": png(i) for i in range(1, 5)},
        },
        ("a", "b"),
        {"train": 2, "val": 1, "test": 1},
        None,
    ),
    "a CSV file a split": (
        {
            "train_labels.csv": "file,label\n1.png,a\n2.png,b\n",
            "test_labels.csv": "file,label\n3.png,a\n",
            **{f"images/{i}.png": png(i) for i in range(1, 4)},
        },
        ("a", "b"),
        {"train": 2, "test": 1},
        None,
    ),
    "CSV in folders of splits": (
        {
            "train/labels.csv": "file,label\n1.png,a\n2.png,b\n",
            "val/labels.csv": "file,label\n1.png,b\n",
            **{f"{p}.png": png() for p in ("train/1", "train/2", "val/1")},
        },
        ("a", "b"),
        {"train": 2, "val": 1},
        None,
    ),
    "CSV beside one folder of folders": (
        {
            "l.csv": "file,label\n2020/1.png,a\n2021/2.png,b\n",
            "i/2020/1.png": png(1),
            "i/2021/2.png": png(2),
        },
        ("a", "b"),
        {"train": 2},
        None,
    ),
    "CSV of something else around": (
        {"l.csv": "file,label\nx,a\ny,b\n"}
        | {f"i/train/{file}": png(i) for i, file in enumerate(TWO)},
        CLASSES,
        {"train": 3},
        None,
    ),
    "CSV with paths from above the data": (
        {
            "l.csv": "file,label\n/home/me/set/i/a/1.png,a\n../i/b/1,b\n",
            "i/a/1.png": png(1),
            "i/b/1.png": png(2),
        },
        ("a", "b"),
        {"train": 2},
        None,
    ),
    "CSV with ends of paths": (
        {
            "l.csv": "file,label\na/1,a\nb/1.png,b\n",
            "i/a/1.png": png(1),
            "i/b/1.png": png(2),
        },
        ("a", "b"),
        {"train": 2},
        None,
    ),
    "images without a row": (
        {"l.csv": "file,label\n1,a\n2,b\n"}
        | {f"images/{i}.png": png(i) for i in (1, 2, 3)},
        ("a", "b"),
        {"train": 2},
        "left out 2 files",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    files, classes, images, message = LAYOUTS[name]
    write(tmp_path / "set", files)
    found = counts(tmp_path / "set")
    assert found[:2] == (classes, images)
    if message is not None:
        assert any(re.search(message, t) for t in found[2])
    elif not any(n.endswith(".csv") for n in files):
        assert not found[2]


@pytest.mark.parametrize("name", LAYOUTS)
def test_archives_are_read_as_folders_are(tmp_path, name):
    files = LAYOUTS[name][0]
    write(tmp_path / "set", files)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted((tmp_path / "set").rglob("*")):
            if path.is_file():
                # As some programs on Windows name them.
                inside = str(path.relative_to(tmp_path)).replace("/", "\\")
                archive.writestr(inside, path.read_bytes())
    _, as_folder, _ = opened(tmp_path / "set")
    _, as_archive, _ = opened(tmp_path / "a.zip")
    assert as_folder == as_archive


ERRORS = {
    "nothing": ([], "folder for each class.*which has none"),
    "images alone": (["1.png"], "folder for each class.*which has none"),
    "train with images alone": (
        ["train/1.png", "test/1.png"],
        "a CSV file of files and labels.*train'",
    ),
    "test alone": (under("test", TWO), "train/ beside.*not there"),
    "two validations": (
        under("train", TWO) + under("val", ONE) + under("valid", ONE),
        "one folder for 'val'.*/val' and .*/valid'",
    ),
    "an image of no class": (
        [*under("train", TWO), "train/1.png"],
        "nothing but images in the folders of classes.*train/1.png'",
    ),
    "a class of the test split alone": (
        [*under("train", TWO), "test/cow/1.png"],
        "the classes of .*test' in its train/ too.*'cow'",
    ),
    "nested classes": (
        ["train/pets/cat/1.png", "train/wild/fox/1.png"],
        "`nested` must say.*'top'.*'path'",
    ),
    "a file without its image": (
        {"l.csv": "file,label\n1,a\nno,b\n", "i/1.png": png()},
        "files that are not there: 1: 'no'",
    ),
    "a file whose name is in another folder": (
        {
            "l.csv": "file,label\ni/cat/1.png,cat\ni/cat/2.png,cat\n",
            "i/cat/1.png": png(1),
            "i/dog/2.png": png(2),
        },
        "files that are not there: 1: 'i/cat/2.png'",
    ),
    "a file without suffix whose name is in another folder": (
        {
            "l.csv": "file,label\ncat/1,cat\ncat/2,cat\n",
            "i/cat/1.png": png(1),
            "i/dog/2.png": png(2),
        },
        "files that are not there: 1: 'cat/2'",
    ),
    "a name in two folders": (
        {
            "l.csv": "file,label\n1.png,cat\n",
            "i/cat/1.png": png(1),
            "i/dog/1.png": png(2),
        },
        "one image for each.*'1.png'.*'i/cat/1.png', 'i/dog/1.png'",
    ),
    "a name with two suffixes": (
        {
            "l.csv": "file,label\n1,cat\n",
            "i/1.jpg": png(1),
            "i/1.png": png(2),
        },
        "one image for each.*'1'.*'i/1.jpg', 'i/1.png'",
    ),
    "two labels": (
        {"l.csv": "file,label\n1,a\n1.png,b\n", "i/1.png": png()},
        "one label for each file.*'a' and 'b' for '1.png'",
    ),
    "no label": (
        {"l.csv": "file,label\n1,\n", "i/1.png": png()},
        "a label.*for each file|a label, and",
    ),
    "cells that are missing": (
        {"l.csv": "file,label\n1,a\n2\n", "i/1.png": png()},
        "1 in row 3 and 2 in the first",
    ),
    "two CSV files": (
        {
            "a.csv": "file,label\n1,a\n",
            "b.csv": "file,label\n1,a\n",
            "i/1.png": png(),
        },
        "one CSV file of labels for 'train'.*a.csv' and .*b.csv'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(tmp_path, name):
    files, message = ERRORS[name]
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", files)
    with pytest.raises(ValueError, match=message) as error:
        open_source(tmp_path / "set")
    assert "\n" not in str(error.value)
    assert "Received: " in str(error.value)


def test_nested_folders(tmp_path):
    write(tmp_path, ["pet/cat/1.png", "pet/dog/a/2.png", "wild/3.png"])
    source, held, _ = opened(tmp_path, nested="top")
    assert source.class_names == ("pet", "wild")
    assert [label for _, label in held["train"]] == ["pet", "pet", "wild"]
    source, held, _ = opened(tmp_path, nested="path")
    assert source.class_names == ("pet/cat", "pet/dog/a", "wild")
    with pytest.raises(ValueError, match="`nested` must be None, 'top' or"):
        open_source(tmp_path, nested="deep")


def test_a_folder_linked_into_itself_is_read_once(tmp_path):
    write(tmp_path, under("train", TWO))
    (tmp_path / "train/cat/again").symlink_to(tmp_path / "train")
    (tmp_path / "more").symlink_to(tmp_path)
    _, images, message = counts(tmp_path)
    assert images == {"train": 3} and "left out 2 files" in message[0]
    # A folder linked to from elsewhere is one as any other.
    write(tmp_path / "pool", ["1.png"])
    (tmp_path / "train/cow").symlink_to(tmp_path / "pool")
    assert counts(tmp_path)[0] == ("cat", "cow", "dog")


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_of_another_encoding(tmp_path):
    root = os.fsencode(tmp_path)
    for name in (b"caf\xe9", b"tea"):
        os.makedirs(root + b"/" + name)
        with open(root + b"/" + name + b"/gr\xfc\xdf.png", "wb") as file:
            file.write(png())
    source, _, _ = opened(tmp_path)
    assert source.class_names == ("caf\u00e9", "tea")
    encoded, label = source.split("train").read(0)
    assert encoded == png() and label == 0
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("xx/1.png", png())
        archive.writestr("y/1.png", png())
    # A Mac writes UTF-8 without saying so.
    raw = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(raw.replace(b"xx/", b"\xc3\xa9/"))
    assert open_source(tmp_path / "a.zip").class_names == ("y", "\u00e9")


def test_a_locked_archive_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        write(tmp_path / "set", TWO)
        archive.add(tmp_path / "set", "./set")
    assert counts(tmp_path / "a.tar")[1] == {"train": 3}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/1.png", png())
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    for at in (raw.index(b"PK\3\4") + 6, raw.index(b"PK\1\2") + 8):
        raw[at] |= 1  # locked by a password
    (tmp_path / "a.zip").write_bytes(raw)
    with pytest.raises(ValueError, match=r"whole archive.*a\.zip'.*password"):
        open_source(tmp_path / "a.zip")


def test_links_in_an_archive_are_followed(tmp_path):
    write(tmp_path / "set", TWO)
    (tmp_path / "set/dog/2.png").hardlink_to(tmp_path / "set/dog/1.png")
    (tmp_path / "set/cat/0.png").symlink_to("again.png")
    (tmp_path / "set/cat/again.png").symlink_to("../dog/1.png")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "set", "set")
    assert opened(tmp_path / "a.tar.gz")[1] == opened(tmp_path / "set")[1]
    train = open_source(tmp_path / "a.tar.gz").split("train")
    contents = {train.key(i): train.read(i)[0] for i in range(len(train))}
    assert contents["cat/0.png"] == contents["dog/1.png"]
    for target in ("gone.png", "/etc/passwd", "0.png"):
        (tmp_path / "set/cat/0.png").unlink()
        (tmp_path / "set/cat/0.png").symlink_to(target)
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.add(tmp_path / "set", "set")
        with pytest.raises(ValueError, match=r"'set/cat/0\.png'.*no file in"):
            open_source(tmp_path / "a.tar")


def names_of(source, split):
    examples = source.split(split)
    return {examples.key(i) for i in range(len(examples))}


def test_a_part_is_held_out(tmp_path):
    files = [f"{c}/{i}.png" for c in "abc" for i in range(40)]
    write(tmp_path / "one", files)
    write(tmp_path / "two/train", [*files, "a/more.png", "b/more.png"])
    source = open_source(tmp_path / "one", validation_split=0.2, seed=3)
    assert source.splits == ("train", "val")
    train, val = names_of(source, "train"), names_of(source, "val")
    assert train | val == set(files) and not train & val
    assert val == names_of(source, "test")  # which stands in
    for name in "abc":
        assert 3 <= sum(key[0] == name for key in val) <= 14
    # Elsewhere, and with more images, the same ones are.
    more = open_source(tmp_path / "two", validation_split=0.2, seed=3)
    assert names_of(more, "val") - {"a/more.png", "b/more.png"} == val
    other = open_source(tmp_path / "one", validation_split=0.2, seed=4)
    assert names_of(other, "val") != val
    half = open_source(tmp_path / "one", validation_split=0.5, seed=3)
    assert val < names_of(half, "val")
    for name in ("train[:10%]", "all"):  # slices of TensorFlow Datasets
        with pytest.raises(ValueError, match="holds a part of these out"):
            source.split(name)
    write(tmp_path / "one/train", [])
    write(tmp_path / "two/val", ["a/1.png"])
    with pytest.raises(ValueError, match="None where there are validation"):
        open_source(tmp_path / "two", validation_split=0.2)
    for wrong in (0, 1, -0.1, "0.2", True):
        with pytest.raises(ValueError, match=r"between 0 and 1\. Received"):
            open_source(tmp_path / "one", validation_split=wrong)


def test_a_part_of_the_digits_is_held_out():
    source = open_source("digits", validation_split=0.25)
    assert source.splits == ("train", "val", "test")
    sizes = [len(source.split(split)) for split in source.splits]
    assert sizes[0] + sizes[1] == 1437 and sizes[2] == 360
    images, labels = source.split("val").arrays((8, 8))
    assert len(images) == sizes[1] and len(np.unique(labels)) == 10


def test_each_class_is_on_both_sides():
    keys = [f"{c}/{i}" for c in range(200) for i in range(2)]
    labels = [c for c in range(200) for _ in range(2)]
    for fraction in (0.01, 0.99):
        held = held_out(keys, labels, fraction, 0).reshape(200, 2)
        assert (held.sum(1) == 1).all()
    assert not held_out(["a"], [0], 0.99, 0).any()
    many = held_out([str(i) for i in range(20000)], [0] * 20000, 0.2, 1)
    assert abs(many.mean() - 0.2) < 0.01


def test_class_weights(tmp_path):
    write(tmp_path, [f"a/{i}.png" for i in range(6)] + ["b/1.png", "b/2.png"])
    weights = balanced_class_weights(open_source(tmp_path).split("train"))
    assert weights == pytest.approx({0: 8 / 12, 1: 2.0})
    assert (6 * weights[0] + 2 * weights[1]) / 8 == pytest.approx(1)
    for cache in (True, False):
        feed = make_feed(
            open_source(tmp_path),
            PLAIN,
            size=(4, 4),
            batch_size=4,
            test_split="train",
            class_weight="balanced",
            backend="arrays",
            cache=cache,
        )
        for epoch in range(2):
            batches = feed.epoch(epoch)
            for step in range(len(batches)):
                _, labels, given = batches[step]
                expected = [weights[label] for label in np.asarray(labels)]
                np.testing.assert_allclose(given, expected, rtol=1e-6)
        assert len(feed.evaluation()[0]) == 2
    with pytest.raises(ValueError, match="`class_weight` must be 'balanced'"):
        make_feed(
            open_source(tmp_path),
            PLAIN,
            size=(4, 4),
            batch_size=4,
            class_weight="even",
        )


def test_what_looks_wrong_is_warned_of(tmp_path):
    rng = np.random.default_rng(0)

    def noise(side):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (side, side, 3), "uint8")
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    files = {f"train/a/{i}.png": noise(4) for i in range(9)}
    files |= {f"test/a/{i}.png": noise(4) for i in range(4)}
    files["train/a/large.png"] = noise(41)

    def duplicates(path, split="test"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_feed(
                open_source(path),
                PLAIN,
                size=(4, 4),
                batch_size=2,
                test_split=split,
                backend="arrays",
                cache=False,
            )
        texts = [str(warning.message) for warning in caught]
        assert any("one class only" in text for text in texts)
        [large] = [text for text in texts if "100 times" in text]
        assert "'train'" in large and "1: " in large
        assert "train/a/large.png" in large
        return [text for text in texts if "the same images" in text]

    for name in ("set", "set.zip"):
        for again in (False, True):
            if again:
                files["test/a/again.png"] = files["train/a/5.png"]
            else:
                files.pop("test/a/again.png", None)
            if name == "set":
                write(tmp_path / name, files)
            else:
                with zipfile.ZipFile(tmp_path / name, "w") as archive:
                    for file, content in files.items():
                        archive.writestr(file, content)
            same = duplicates(tmp_path / name)
            assert len(same) == again
            for text in same:
                assert "in 'train' and 'test': 1: " in text
                assert "test/a/again.png" in text
            # Twice the same split is not the same images in two.
            assert not duplicates(tmp_path / name, "train")
