import io
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_muffnet.data import open_source
from keras_muffnet.data import records
from keras_muffnet.data import write_records


def encoded(value, kind="PNG", mode="RGB", size=(4, 4)):
    file = io.BytesIO()
    color = value if mode == "L" else (value,) * len(mode)
    Image.new(mode, size, color).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Classes a and b; the pixels of image i are i."""
    root = tmp_path / "set"
    for i, path in enumerate(
        ["train/b/x.png", "train/b/y.PNG", "train/a/z.png", "val/b/v.png"]
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encoded(i))
    return root


def contents(examples):
    """Value of the first pixel and label of each image, in order."""
    read = [examples.read(i) for i in range(len(examples))]
    return [
        (np.asarray(Image.open(io.BytesIO(x)))[0, 0, 0], y) for x, y in read
    ]


def test_folder(folder):
    (folder / "train/a/.hidden").touch()
    source = open_source(folder)
    assert source.class_names == ("a", "b") and source.name == str(folder)
    train = source.split("train")
    assert contents(train) == [(2, 0), (0, 1), (1, 1)]
    assert train.name(0) == str(folder / "train/a/z.png")
    assert contents(source.split("test")) == [(3, 1)]  # val/ stands in
    (folder / "train/a/film.mp4").touch()
    assert len(open_source(folder).split("train")) == 4  # raised by reading


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize("top", ["", "set/"])
def test_archive_holds_what_its_folder_does(folder, tmp_path, kind, top):
    (folder / "train/.DS_Store").touch()
    path = tmp_path / f"a.{kind}"
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    names = [f"{top}{file.relative_to(folder)}" for file in files]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file, name in zip(files, names, strict=True):
                archive.write(file, name)
    else:
        mode = f"w:{kind[4:]}"
        with tarfile.open(path, mode) as archive:
            for file, name in zip(files, names, strict=True):
                archive.add(file, name)
    source, original = open_source(path), open_source(folder)
    assert source.class_names == original.class_names
    for split in ("train", "test"):
        packed, loose = source.split(split), original.split(split)
        assert contents(packed) == contents(loose)
        for i in range(len(packed)):
            assert packed.name(i).startswith(f"{path}/{top}")
            assert packed.name(i).endswith(loose.name(i)[len(str(folder)) :])


def test_damaged_archives_are_named(folder, tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "set")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"whole archive.*a\.tar\.gz', which"):
        open_source(path)
    path = tmp_path / "b.zip"
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"whole archive.*b\.zip', which"):
        open_source(path)
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.add(folder / "val", "val")
    with pytest.raises(ValueError, match=r"hold train/.*c\.tar/train', which"):
        open_source(tmp_path / "c.tar")


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        ("train/c/", "train", r"train/c', which is empty"),
        ("val/c/1.png", "test", r"the classes of .*/val' in.*1: 'c'"),
        ("train/1.png", "train", r"nothing but images.*1: .*train/1\.png'"),
        ("", "all", "must be of 2: 'train', 'val'.*'all'"),
    ],
)
def test_folder_errors(folder, change, split, message):
    path = folder / change
    path.parent.mkdir(exist_ok=True)
    path.mkdir(exist_ok=True) if change[-1:] in ("", "/") else path.touch()
    with pytest.raises(ValueError, match=message):
        open_source(folder).split(split)


def test_missing_splits_are_named(folder):
    (folder / "val").rename(folder / "other")
    with pytest.raises(ValueError, match=r"of 1: 'train', which .*'test'"):
        open_source(folder).split("test")
    (folder / "train").rename(folder / "test")
    with pytest.raises(ValueError, match=r"hold train/ beside.*set/train'"):
        open_source(folder)


@pytest.mark.parametrize("source", ["no/such", "", None, "a.txt"])
def test_no_source(source):
    with pytest.raises(ValueError, match=r"`source` must be 'digits'.*tar\.xz"):
        open_source(source)


def test_nested_is_for_folders_of_images(folder, tmp_path):
    write_records(open_source(folder), tmp_path / "records", "train")
    for source in ("digits", "tfds:mnist", tmp_path / "records"):
        with pytest.raises(ValueError, match="`nested` must be None for"):
            open_source(source, nested="top")


def test_digits():
    source = open_source("digits")
    assert source.class_names == tuple("0123456789")
    assert len(source.split("train")) == 1437
    with pytest.raises(ValueError, match=r"of 2: 'train', 'test'.*'val'"):
        source.split("val")


@pytest.mark.parametrize("shards", [1, 2])
def test_records_give_what_their_source_does(folder, tmp_path, shards):
    source = open_source(folder)
    target = tmp_path / "records"
    for split in ("train", "val"):
        paths = write_records(source, target, split, shards)
        assert len(paths) == shards and all(p.parent == target for p in paths)
    read = open_source(target)
    assert read.class_names == ("a", "b")
    expected = contents(source.split("train"))
    # Record i went to file i % shards.
    ordered = [x for s in range(shards) for x in expected[s::shards]]
    assert contents(read.split("train")) == ordered
    name = target / f"train-00000-of-{shards:05}.tfrecord"
    assert read.split("train").name(0) == f"{name}, record 0"
    assert contents(read.split("test")) == [(3, 1)]
    with pytest.raises(ValueError, match=r"of 2: 'train', 'val'.*'other'"):
        read.split("other")


def test_records_are_one_complete_set(folder, tmp_path):
    source = open_source(folder)
    target = tmp_path / "records"
    write_records(source, target, "val")
    old = write_records(source, target, "train", shards=3)
    kept = [(path, path.read_bytes()) for path in old]
    new = write_records(source, target, "train", shards=2)
    assert sorted(target.glob("train-*")) == new
    assert len(open_source(target).split("train")) == 3
    assert len(open_source(target).split("val")) == 1
    # As after a writer that was stopped.
    for path, content in kept:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"one complete set.* 5: 'train-00000"):
        open_source(target)
    for path in new:
        path.unlink()
    assert len(open_source(target).split("train")) == 3
    old[1].unlink()
    with pytest.raises(ValueError, match=r"one complete set.* 2: 'train-00000"):
        open_source(target)
    old[0].rename(target / "train-a")
    old[2].rename(target / "train-b")
    assert len(open_source(target).split("train")) == 2


def test_records_of_others_are_read():
    features = {
        "image/height": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[-3, 300])
        ),
        "image/class/label": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[1234567])
        ),
        "box": tf.train.Feature(float_list=tf.train.FloatList(value=[1.5])),
        "image/encoded": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[b"pixels" * 50])
        ),
        "other": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[b"x", b""])
        ),
    }
    keys = (records.IMAGE_KEY, records.LABEL_KEY)

    def parse():
        example = tf.train.Example(features=tf.train.Features(feature=features))
        return records.parse_example(example.SerializeToString(), *keys)

    assert parse() == (b"pixels" * 50, 1234567)
    features["image/class/label"].int64_list.value[0] = -1
    assert parse()[1] == -1
    del features["image/encoded"]
    with pytest.raises(
        ValueError, match="image at 'image/encoded' and a label"
    ):
        parse()
    for junk in (b"", b"\xff" * 30, b"\x0a\x7fshort", encoded(1)):
        with pytest.raises(ValueError, match="a record of an image"):
            records.parse_example(junk, *keys)


def test_truncated_record_files_are_named(folder, tmp_path):
    [path] = write_records(open_source(folder), tmp_path, "train")
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) - 100, 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"tfrecord', which ends within"):
            open_source(tmp_path).split("train")
    path.write_bytes(struct.pack("<Q", 2**63) + whole)
    with pytest.raises(ValueError, match=r"ends within record 0"):
        open_source(tmp_path).split("train")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="split 'train' has none"):
        open_source(tmp_path).split("train")
    (tmp_path / "classes.txt").write_text("")
    with pytest.raises(ValueError, match=r"name its classes.*classes\.txt'"):
        open_source(tmp_path)


def test_labels_out_of_range_are_told(folder, tmp_path):
    write_records(open_source(folder), tmp_path, "train")
    (tmp_path / "classes.txt").write_text("only\n", encoding="utf-8-sig")
    assert open_source(tmp_path).class_names == ("only",)
    train = open_source(tmp_path).split("train")
    assert contents(open_source(folder).split("train"))[0][1] == 0
    train.read(0)
    with pytest.raises(ValueError, match="label is 1, not of the 1 classes"):
        train.read(1)


def test_digits_cannot_become_records(tmp_path):
    with pytest.raises(ValueError, match=r"encoded images.*the digits"):
        write_records(open_source("digits"), tmp_path, "train")
    assert not list(tmp_path.glob("*.tfrecord"))
