"""Images with boxes as people have them: what becomes of each."""

import builtins
import errno
import io
import json
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from keras_muffnet.data import make_detection_feed
from keras_muffnet.data import open_detection_source

SIZE = (30, 40)  # height and width


def jpeg(value=0, turned=None, size=SIZE):
    pixels = np.full((*size, 3), value, np.uint8)
    pixels[:8, :8] = 255  # marks the first corner of the file
    exif = Image.Exif()
    if turned:
        exif[0x0112] = turned
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    return file.getvalue()


def xml(name="cat", box=(5, 6, 20, 24), size=SIZE):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bounds = "".join(f"<{k}>{v}</{k}>" for k, v in sides)
    return (
        f"<annotation><size><width>{size[1]}</width><height>{size[0]}"
        f"</height></size><object><name>{name}</name><bndbox>{bounds}"
        "</bndbox></object></annotation>"
    )


def coco(names, prefix="", categories=("cat", "dog"), size=SIZE):
    return json.dumps(
        {
            "images": [
                {
                    "id": i,
                    "file_name": prefix + name,
                    "height": size[0],
                    "width": size[1],
                }
                for i, name in enumerate(names)
            ],
            "annotations": [
                {
                    "id": i,
                    "image_id": i,
                    "category_id": 1 + i % 2,
                    "bbox": [4, 5, 16, 19],
                }
                for i in range(len(names))
            ],
            "categories": [
                {"id": i, "name": name} for i, name in enumerate(categories, 1)
            ],
        }
    )


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = content.encode()
        path.write_bytes(content)


def voc(ids, images="JPEGImages/", annotations="Annotations/"):
    return {
        name: content
        for i in ids
        for name, content in (
            (f"{images}{i}.jpg", jpeg()),
            (f"{annotations}{i}.xml", xml(("cat", "dog")[int(i) % 2])),
        )
    }


def yolo(ids, images, labels):
    return {
        name: content
        for i in ids
        for name, content in (
            (f"{images}{i}.jpg", jpeg()),
            # The box of the others, in shares of the image.
            (f"{labels}{i}.txt", f"{int(i) % 2} 0.3 0.483333 0.4 0.633333\n"),
        )
    }


IMAGES = {f"{i}.jpg": jpeg() for i in "0123"}


def under(folder, files):
    return {f"{folder}/{name}": content for name, content in files.items()}


MAIN = "ImageSets/Main"
NAMES = "names: [cat, dog]\n"
LAYOUTS = {
    # files; images in each split
    "VOC with lists": (
        {
            **voc("0123"),
            f"{MAIN}/train.txt": "0\n1\n",
            f"{MAIN}/val.txt": "2\n3\n",
        },
        {"train": 2, "val": 2, "test": 2, "trainval": 2},
    ),
    "VOC, lists with extensions": (
        {
            **voc("012"),
            f"{MAIN}/train.txt": "0.jpg\n1.xml\n",
            f"{MAIN}/test.txt": "JPEGImages\\2.jpg\r\n",
        },
        {"train": 2, "test": 1},
    ),
    "VOC without lists": (voc("0123"), {"train": 4}),
    "VOC, only train": (
        {**voc("01"), f"{MAIN}/train.txt": "0\n1\n"},
        {"train": 2, "trainval": 2},
    ),
    "a flat folder of images and XML": (voc("0123", "", ""), {"train": 4}),
    "images and annotations": (
        voc("0123", "images/", "annotations/"),
        {"train": 4},
    ),
    "flat folders of splits": (
        {
            **voc("01", "train/", "train/"),
            **voc("2", "valid/", "valid/"),
            **voc("3", "test/", "test/"),
        },
        {"train": 2, "val": 1, "test": 1},
    ),
    "COCO, images beside annotations": (
        {
            "annotations/instances_train2017.json": coco(["0.jpg", "1.jpg"]),
            "annotations/instances_val2017.json": coco(["2.jpg", "3.jpg"]),
            **under("images", IMAGES),
        },
        {"train": 2, "val": 2, "test": 2, "trainval": 2},
    ),
    "COCO, images in folders of splits": (
        {
            "annotations/instances_train.json": coco(["0.jpg", "1.jpg"]),
            **under("images/train", IMAGES),
        },
        {"train": 2},
    ),
    "COCO with a byte order mark": (
        {
            "annotations/instances_train.json": "\ufeff"
            + coco(["0.jpg", "1.jpg"]),
            **under("train", IMAGES),
        },
        {"train": 2},
    ),
    "COCO with Windows separators": (
        {
            "annotations/instances_train.json": coco(
                ["0.jpg", "1.jpg"], "images\\part\\"
            ),
            **under("images/part", IMAGES),
        },
        {"train": 2},
    ),
    "Roboflow": (
        {
            "train/_annotations.coco.json": coco(["0.jpg", "1.jpg"]),
            "valid/_annotations.coco.json": coco(["2.jpg", "3.jpg"]),
            **under("train", IMAGES),
            **under("valid", IMAGES),
        },
        {"train": 2, "val": 2, "test": 2},
    ),
    "COCO by name": (
        {
            "train.json": coco(["0.jpg", "1.jpg"]),
            "annotations/val_1.json": coco(["2.jpg", "3.jpg"]),
            **under("images", IMAGES),
        },
        {"train": 2, "val": 2, "test": 2},
    ),
    "YOLO": (
        {
            "data.yaml": "path: .\ntrain: images/train\nval: images/val\n"
            "names:\n  0: cat\n  1: dog\n",
            **yolo("01", "images/train/", "labels/train/"),
            **yolo("23", "images/val/", "labels/val/"),
        },
        {"train": 2, "val": 2, "test": 2},
    ),
    "YOLO of Roboflow": (
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\n"
            "test: ../test/images\nnc: 2\n" + NAMES,
            **yolo("01", "train/images/", "train/labels/"),
            **yolo("2", "valid/images/", "valid/labels/"),
            **yolo("3", "test/images/", "test/labels/"),
        },
        {"train": 2, "val": 1, "test": 1},
    ),
    "YOLO with lists, boxes beside images": (
        {
            "data.yaml": "train: train.txt\n" + NAMES,
            "train.txt": "./all/0.jpg\nall\\1.jpg\n",
            **yolo("01", "all/", "all/"),
        },
        {"train": 2},
    ),
    "YOLO of labelImg": (
        {"classes.txt": "cat\ndog\n", **yolo("012", "", "")},
        {"train": 3},
    ),
    "YOLO of labelImg, labels apart": (
        {
            "labels/classes.txt": "cat\r\ndog\r\n",
            **yolo("01", "images/", "labels/"),
        },
        {"train": 2},
    ),
    "YOLO of labelImg, in splits": (
        {
            **yolo("01", "Train/", "Train/"),
            "Train/classes.txt": "cat\ndog\n",
            **yolo("2", "valid/", "valid/"),
            "valid/classes.txt": "cat\ndog\n",
        },
        {"train": 2, "val": 1, "test": 1},
    ),
    "YOLO of labelImg, in splits of labels": (
        {
            "labels/classes.txt": "cat\ndog\n",
            **yolo("01", "images/train/", "labels/train/"),
            **yolo("2", "images/test/", "labels/test/"),
        },
        {"train": 2, "test": 1},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    files, splits = LAYOUTS[name]
    write(tmp_path, files)
    source = open_detection_source(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert set(source.splits) <= set(splits)
    for split, count in splits.items():
        examples = source.split(split)
        assert len(examples) == count, split
        for i in range(count):
            assert examples.read(i)[:2] == b"\xff\xd8"
    if missing := {"train", "val", "test"} - set(splits):
        with pytest.raises(ValueError, match="validation_split"):
            source.split(min(missing))
    feed = make_detection_feed(
        source,
        size=SIZE,
        batch_size=1,
        augment=False,
        test_split="train",
        mean=0,
        std=1,
    )
    assert not feed.skipped and not feed.clipped
    for i, truth in enumerate(feed.ground_truth()):
        assert truth.classes.tolist() == [i % 2]
        np.testing.assert_allclose(truth.boxes, [[4, 5, 20, 24]], atol=1e-3)


@pytest.mark.parametrize(
    "name", ["VOC without lists", "COCO with a byte order mark", "YOLO of Ro"]
)
def test_a_part_is_held_out(tmp_path, name):
    if name.startswith("VOC"):
        write(tmp_path, voc(map(str, range(30))))
    elif name.startswith("COCO"):
        names = [f"{i}.jpg" for i in range(30)]
        write(tmp_path, {"annotations/instances_train.json": coco(names)})
        write(tmp_path / "train", dict.fromkeys(names, jpeg()))
    else:
        write(tmp_path, {"data.yaml": "train: images\n" + NAMES})
        write(tmp_path, yolo(map(str, range(30)), "images/", "labels/"))

    def ids(split, seed=1):
        source = open_detection_source(
            tmp_path, validation_split=0.3, seed=seed
        )
        assert source.splits == ("train", "val")
        examples = source.split(split)
        return {examples.name(i) for i in range(len(examples))}

    assert len(ids("train") | ids("val")) == 30
    assert not ids("train") & ids("val") and 3 <= len(ids("val")) <= 16
    assert ids("val") == ids("test") != ids("val", seed=2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        open_detection_source(tmp_path, validation_split=2)


def test_a_part_is_not_held_out_of_two(tmp_path):
    write(tmp_path, LAYOUTS["Roboflow"][0])
    with pytest.raises(ValueError, match="None where there are validation"):
        open_detection_source(tmp_path, validation_split=0.3)


@pytest.mark.parametrize(
    "names", [("cat", "Cat"), ("traffic light", "traffic_light", "x")]
)
def test_class_names_that_are_near(tmp_path, names):
    write(tmp_path, {"train.json": coco(["0.jpg"], categories=names)})
    write(tmp_path / "images", IMAGES)
    with pytest.warns(UserWarning, match="probably one") as caught:
        open_detection_source(tmp_path)
    assert f"{names[0]!r} and {names[1]!r}" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_detection_source(tmp_path, class_names=names[:1])


@pytest.mark.parametrize("turned", [5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["upright", "stored"])
def test_turned_images_are_as_their_boxes_are(tmp_path, turned, kind):
    """The annotation's size says on which of the two boxes were drawn."""
    size = SIZE[::-1] if kind == "upright" else SIZE
    files = {
        "0.jpg": jpeg(0, turned),
        "0.xml": xml(box=(1, 1, 8, 8), size=size),
    }
    write(tmp_path, files)
    feed = make_detection_feed(
        open_detection_source(tmp_path),
        size=size,
        batch_size=1,
        augment=False,
        test_split="train",
        mean=0,
        std=1,
    )
    [truth] = feed.ground_truth()
    assert truth.size == size and not feed.skipped
    x, _ = feed.evaluation()[0]
    corner = x[0, :8, :8].mean()
    # The file's first corner is white; where it lies, EXIF tells.
    first = kind == "stored" or turned == 5
    assert corner > 200 if first else corner < 60


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "its class is 2, not of 0 to 1"),
        ("0 0.5 0.5 0.1", "it has 3 numbers, not 4"),
        ("cat 0.5 0.5 0.1 0.1", "it is 'cat 0.5 0.5 0.1 0.1'"),
        ("0 0.5 0.5 0 0.1", "has no area"),
        ("0 2 2 0.1 0.1", "is outside of 40 x 30 pixels"),
    ],
)
def test_bad_rows_of_yolo(tmp_path, label, message):
    write(tmp_path, {"data.yaml": "train: images\n" + NAMES})
    write(tmp_path, yolo("01", "images/", "labels/"))
    path = tmp_path / "labels/1.txt"
    path.write_text(f"\n{label}\n")
    source = open_detection_source(tmp_path / "data.yaml")
    given = {"size": SIZE, "batch_size": 1, "test_split": "train"}
    with pytest.raises(ValueError, match="1 bad objects") as error:
        make_detection_feed(source, **given)
    assert f"{path!s}, row 2" in str(error.value)
    assert message in str(error.value)
    feed = make_detection_feed(source, on_bad_annotation="skip", **given)
    assert len(feed.skipped) == 2  # of both splits
    # An outline becomes its box; what has no file has no objects.
    path.write_text("1 0.1 0.2 0.5 0.2 0.5 0.8 0.1 0.7\n")
    (tmp_path / "labels/0.txt").unlink()
    [empty, truth] = make_detection_feed(source, **given).ground_truth()
    assert not len(empty.boxes)
    np.testing.assert_allclose(truth.boxes, [[4, 6, 20, 24]], rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: images\nnames: 3\n", "a list of names"),
        ("names: [cat\n", "a list of names"),
        ("train: [no/such]\nnames: [cat]\n", "'no/such', which is not at"),
    ],
)
def test_bad_files_of_yolo(tmp_path, content, message):
    write(tmp_path, {"data.yaml": content})
    with pytest.raises(ValueError, match=message) as error:
        open_detection_source(tmp_path).split("train")
    assert "\n" not in str(error.value) and "data.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dog\ncat\n", r"the same classes .*\['cat', 'dog'\]"),
        ("cat\ndog\n\nb\xe4r\n", "in UTF-8"),
    ],
)
def test_bad_lists_of_labelimg(tmp_path, content, message):
    write(tmp_path, {"train/classes.txt": "cat\ndog\n"})
    write(tmp_path, {"val/classes.txt": content.encode("latin-1")})
    with pytest.raises(ValueError, match=message) as error:
        open_detection_source(tmp_path)
    assert str(tmp_path / "val/classes.txt") in str(error.value)
    for split in ("train", "val"):
        write(tmp_path, {f"{split}/classes.txt": "\n"})
    with pytest.raises(ValueError, match="must have classes"):
        open_detection_source(tmp_path)


@pytest.mark.parametrize(
    ("function", "closed"),
    [("open", "labels/more/1.txt"), ("scandir", "images/more")],
)
def test_what_may_not_be_read_is_not_left_out(
    tmp_path, monkeypatch, function, closed
):
    write(tmp_path, {"data.yaml": "train: images\n" + NAMES})
    write(tmp_path, yolo("01", "images/more/", "labels/more/"))
    source = open_detection_source(tmp_path)
    closed = str(tmp_path / closed)
    owner = {"open": builtins, "scandir": os}[function]
    known = getattr(owner, function)

    def refused(path, *args, **kwargs):
        if str(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", closed)
        return known(path, *args, **kwargs)

    # Root, as whom tests may run, may read all.
    monkeypatch.setattr(owner, function, refused)
    with pytest.raises((OSError, ValueError), match="denied") as error:
        make_detection_feed(source, size=SIZE, batch_size=1, test_split="train")
    assert closed in str(error.value)


def test_annotations_of_which_nothing_is_left(tmp_path):
    given = {"size": SIZE, "batch_size": 1, "test_split": "train"}
    write(tmp_path / "bad", {**voc("0"), "Annotations/0.xml": xml(box="5555")})
    source = open_detection_source(tmp_path / "bad")
    with pytest.raises(ValueError, match=r"a good object in each .*no area"):
        make_detection_feed(source, on_bad_annotation="skip", **given)
    write(tmp_path / "none", {"data.yaml": "train: images\n" + NAMES})
    write(tmp_path / "none", {"images/0.jpg": jpeg()})
    source = open_detection_source(tmp_path / "none")
    with pytest.raises(ValueError, match=r"a good object.*1 images without"):
        make_detection_feed(source, **given)
