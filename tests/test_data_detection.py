import json

import numpy as np
import pytest
from PIL import Image

from keras_muffnet.data import SSDAugmentation
from keras_muffnet.data import make_detection_feed
from keras_muffnet.data import open_detection_source
from keras_muffnet.data.detection import augmentation as ssd_augmentation
from keras_muffnet.data.examples import split_given

WIDTH, HEIGHT = 40, 30


def picture(seed=0, width=WIDTH, height=HEIGHT):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), "uint8")
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


def xml(objects, size=(WIDTH, HEIGHT)):
    """Objects are of name, four coordinates and, optionally, difficult."""
    text = "<annotation><filename>other.png</filename>"
    if size:
        text += f"<size><width>{size[0]}</width><height>{size[1]}</height>"
        text += "<depth>3</depth></size>"
    for name, box, *difficult in objects:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        text += f"<object><name>{name}</name><bndbox>"
        text += "".join(f"<{k}>{v}</{k}>" for k, v in sides) + "</bndbox>"
        # Parts of a person have boxes of their own.
        text += "<part><name>head</name><bndbox><xmin>x</xmin></bndbox></part>"
        text += "".join(f"<difficult>{d}</difficult>" for d in difficult)
        text += "</object>"
    return text + "</annotation>"


def write_voc(root, lists, annotations, suffix="jpg"):
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for name, ids in lists.items():
        text = "".join(f"{i}\n" for i in ids)
        (root / f"ImageSets/Main/{name}.txt").write_text(text)
    for i, (id_, objects) in enumerate(annotations.items()):
        (root / f"Annotations/{id_}.xml").write_text(xml(objects))
        picture(i).save(root / f"JPEGImages/{id_}.{suffix}")
    return root


VOC = {
    "a": [("dog", (1, 1, 40, 30), 0), ("cat", (3, 5, 10, 20), 1)],
    "b": [("cat", (11.5, 2, 20, 30))],
    "c": [],
    "d": [("cat", (2, 2, 9, 9), 0)],
    "t": [("dog", (5, 6, 8, 9), 1), ("cat", (1, 1, 2, 2))],
    "u": [],
}
LISTS = {"train": "abcd", "test": "tu"}


@pytest.fixture
def voc(tmp_path):
    return write_voc(tmp_path / "voc", LISTS, VOC)


def feed_of(source, **options):
    if not hasattr(source, "split"):
        source = open_detection_source(source)
    given = {"size": (12, 16), "batch_size": 2, **options}
    return make_detection_feed(source, **given)


def joined(batches):
    parts = [batches[i] for i in range(len(batches))]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def test_voc_folder(voc):
    source = open_detection_source(voc)
    assert source.class_names == ("cat", "dog") and source.first_pixel == 1
    feed = feed_of(source)
    assert (feed.train_size, feed.test_size, feed.steps_per_epoch) == (4, 2, 2)
    assert feed.max_objects == 2 and feed.skipped == feed.clipped == ()
    assert feed.report() == (
        "4 training and 2 test images, with 4 and 2 objects (coordinates from "
        "1); 0 bad images and 0 bad objects skipped; 0 boxes clipped"
    )
    first, second = feed.ground_truth()
    assert (first.id, first.size) == ("t", (HEIGHT, WIDTH))
    assert first.boxes.dtype == np.float32
    assert first.boxes.tolist() == [[4, 5, 8, 9], [0, 0, 2, 2]]
    assert first.classes.tolist() == [1, 0]
    assert first.difficult.tolist() == [True, False]
    assert first.crowd.tolist() == [False, False]
    assert first.area.tolist() == [16, 4]
    assert second.id == "u" and second.boxes.shape == (0, 4)
    x, y = joined(feed.evaluation())
    assert x.shape == (2, 12, 16, 3) and x.dtype == y.dtype == np.float32
    scale = np.array([16 / 40, 12 / 30] * 2)
    np.testing.assert_allclose(y[0, :, 1:], first.boxes * scale, rtol=1e-6)
    assert y[0, :, 0].tolist() == [1, 0]
    assert y[1].tolist() == [[-1, 0, 0, 0, 0]] * 2
    original = Image.open(voc / "JPEGImages/t.jpg")
    pixels = original.resize((16, 12), Image.BILINEAR)
    np.testing.assert_allclose(x[0], (np.float32(pixels) - 128) / 128)


def test_a_feed_that_only_evaluates(voc):
    (voc / "JPEGImages/a.jpg").unlink()  # a training image
    feed = feed_of(voc, train_split=None, batch_size=9)
    assert (feed.train_size, feed.test_size, feed.steps_per_epoch) == (0, 2, 0)
    assert feed.report().startswith("2 test images, with 2 objects (")
    assert len(joined(feed.evaluation())[0]) == len(feed.ground_truth()) == 2
    with pytest.raises(ValueError, match="`train_split` must be given"):
        feed.epoch(0)


def test_reports_name_the_split_that_is_given(voc):
    lists = voc / "ImageSets/Main"
    (lists / "test.txt").rename(lists / "val.txt")
    for asked, given in (("test", "val"), ("trainval", "train")):
        feed = feed_of(voc, train_split=None, test_split=asked)
        assert feed.test_split == given
    assert feed.report().startswith("4 training images, with 4 objects")
    splits = ("VOC2007/val", "VOC2012/train", "VOC2012/trainval")
    asked = "VOC2007/test + VOC2012/trainval"
    assert split_given(asked, splits) == "VOC2007/val+VOC2012/trainval"


def test_difficult_objects_are_targets_unless_told_otherwise(voc):
    _, y = joined(feed_of(voc, train_difficult=False).evaluation())
    assert y[:, :, 0].tolist() == [[0], [-1]]  # a row is enough now
    feed = feed_of(voc, train_difficult=False, augment=False, batch_size=4)
    _, y = joined(feed.epoch(0))
    assert (y[..., 0] >= 0).sum() == 3
    assert len(feed.ground_truth()[0].classes) == 2


def test_coordinates_from_0_are_found(voc):
    assert open_detection_source(voc, first_pixel=0).first_pixel == 0
    path = voc / "Annotations/b.xml"
    path.write_text(xml([("cat", (0, 3, 40, 20))]))
    source = open_detection_source(voc)
    assert source.first_pixel == 0
    feed = feed_of(source)
    assert feed.ground_truth()[0].boxes[0].tolist() == [5, 6, 8, 9]
    assert "(coordinates from 0)" in feed.report() and not feed.clipped
    feed = feed_of(open_detection_source(voc, first_pixel=1))
    [(name, reason)] = feed.clipped
    assert name == f"{path}, object 0" and "(-1, 2, 40, 20) reaches" in reason
    assert feed.report().endswith("1 boxes clipped")


def test_several_voc_folders(tmp_path):
    for year in (2007, 2012):
        root = tmp_path / f"VOC{year}"
        write_voc(root, {"trainval": "ab", "test": "tu"}, VOC, "png")
    source = open_detection_source(tmp_path)
    train = source.split("VOC2007/trainval+VOC2012/trainval")
    assert [train.id(i) for i in range(len(train))] == ["a", "b"] * 2
    assert train.name(2) == str(tmp_path / "VOC2012/JPEGImages/a.png")
    with pytest.raises(ValueError, match=r"VOC2012/test.*split='trainval'"):
        source.split("trainval")
    feed = feed_of(
        source,
        train_split="VOC2007/trainval+VOC2012/trainval",
        test_split="VOC2007/test",
    )
    assert feed.train_size == 4 and feed.test_size == 2


def write_xml(*objects, **options):
    return lambda root: (root / "Annotations/a.xml").write_text(
        xml(objects, **options)
    )


def box_of(*box, name="cat"):
    return write_xml(("cat", (1, 1, 9, 9)), (name, box))


def damage(root):
    path = root / "JPEGImages/a.jpg"
    path.write_bytes(path.read_bytes()[:-50])


BAD_OBJECTS = {
    "no area": (box_of(5, 6, 5, 9), r"\(5, 6, 5, 9\) has no area"),
    "a click": (box_of(5, 6, 5, 6), r"\(5, 6, 5, 6\) has no area"),
    "turned": (box_of(9, 2, 3, 8), r"\(9, 2, 3, 8\) has no area"),
    "outside": (box_of(45, 2, 50, 9), r"\(44, 1, 50, 9\) is outside of 40 x"),
    "no number": (box_of("x", 2, 3, 4), r"box is \['x', '2', '3', '4'\]"),
    "no box": (box_of("", "", "", ""), r"box is \['', '', '', ''\]"),
    "infinite": (box_of(1, 2, "inf", 4), r"box is \(0, 1, inf, 4\)"),
    "not a number": (box_of(1, 2, "nan", 4), r"box is \(0, 1, nan, 4\)"),
    "class": (box_of(1, 2, 3, 4, name="cow"), "class is 'cow', not listed"),
    "no class": (box_of(1, 2, 3, 4, name=""), "class is '', not listed"),
    "flag": (
        write_xml(("cat", (1, 1, 9, 9)), ("cat", (1, 1, 9, 9), "?")),
        r"difficult is '\?', not 0 or 1",
    ),
}
BAD_IMAGES = {
    "size": (write_xml(size=(30, 40)), "picture of 30 x 40 .* has 40 x 30"),
    "size text": (write_xml(size=("", 40)), r"has a size of \['40', ''\]"),
    "xml": (
        lambda root: (root / "Annotations/a.xml").write_text("<annotation>"),
        "Annotations/a.xml' cannot be read: no element",
    ),
    "no xml": (
        lambda root: (root / "Annotations/a.xml").unlink(),
        "a.xml' cannot be read: No such file",
    ),
    "no image": (
        lambda root: (root / "JPEGImages/a.jpg").unlink(),
        "JPEGImages/a.jpg': No such file",
    ),
    "no pixels": (
        lambda root: (root / "JPEGImages/a.jpg").write_text("<html>"),
        "JPEGImages/a.jpg': it is not an image",
    ),
    "damaged": (damage, "JPEGImages/a.jpg': image file is truncated"),
}


@pytest.mark.parametrize("kind", [*BAD_OBJECTS, *BAD_IMAGES])
def test_broken_voc_annotations_are_named(voc, kind):
    break_it, message = {**BAD_OBJECTS, **BAD_IMAGES}[kind]
    break_it(voc)
    source = open_detection_source(voc, class_names=["dog", "cat"])
    with pytest.raises(ValueError, match=message) as error:
        feed_of(source)
    of_object = kind in BAD_OBJECTS
    assert ("a.xml, object 1'" in str(error.value)) == of_object
    feed = feed_of(source, on_bad_annotation="skip")
    assert len(feed.skipped) == 1 and feed.train_size == 3 + of_object
    skipped = (0, 1) if of_object else (1, 0)
    report = "{} bad images and {} bad objects skipped (".format(*skipped)
    assert report in feed.report() and feed.skipped[0].name in feed.report()
    assert len(joined(feed.epoch(0))[0]) == 2 + 2 * of_object


def test_damaged_pixels_are_named_in_the_epoch(voc):
    damage(voc)
    feed = feed_of(voc, cache=False, batch_size=4)
    with pytest.raises(ValueError, match=r"a\.jpg': image file is truncated"):
        joined(feed.epoch(0))
    feed = feed_of(voc, cache=False, on_bad_annotation="skip")
    assert feed.train_size == 3 and len(feed.skipped) == 1


def test_repeated_ids_are_named(voc):
    (voc / "ImageSets/Main/train.txt").write_text("a\nb\n\na \nc\n")
    with pytest.raises(ValueError, match=r"1 bad im.*a\.jpg': it is listed a"):
        feed_of(voc)
    assert feed_of(voc, on_bad_annotation="skip").train_size == 3


def test_boxes_are_clipped_to_their_image(voc):
    write_xml(("cat", (-3, 20, 60, 45)), ("dog", (1, 1, 40.05, 30)))(voc)
    feed = feed_of(open_detection_source(voc, first_pixel=1), augment=False)
    [(name, _)] = feed.clipped  # the other one is within rounding
    assert name.endswith("a.xml, object 0")
    _, y = joined(feed.epoch(0))
    boxes = np.round(y[..., 1:].reshape(-1, 4).astype(float), 4).tolist()
    assert [0, 7.6, 16, 12] in boxes


# COCO


def write_coco(root, split="train", change=None):
    content = {
        "images": [
            {"id": 5, "file_name": "x.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 9, "file_name": "y.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 7, "file_name": "z.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 90, "bbox": [0, 0, 4, 5]},
            {
                "id": 2,
                "image_id": 5,
                "category_id": 3,
                "bbox": [2.5, 3, 10, 20],
                "area": 77.5,
                "iscrowd": 0,
            },
            {
                "id": 3,
                "image_id": 9,
                "category_id": 3,
                "bbox": [1, 1, 1, 1],
                "iscrowd": 1,
            },
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 3, "name": "car"},
            {"id": 44, "name": "bottle"},
        ],
    }
    if change:
        change(content)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    for i, name in enumerate("xyz"):
        picture(i).save(root / split / f"{name}.jpg")
    path = root / f"annotations/instances_{split}.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_folder(tmp_path):
    write_coco(tmp_path, "train2017")
    write_coco(tmp_path, "val2017")
    source = open_detection_source(tmp_path)
    # By id, without the gaps.
    assert source.class_names == ("car", "bottle", "toothbrush")
    assert source.split("train").name(0) == str(tmp_path / "train2017/x.jpg")
    feed = feed_of(source)  # val stands in for test
    truth = feed.ground_truth()
    assert [t.id for t in truth] == [5, 9, 7]
    assert truth[0].boxes.tolist() == [[2.5, 3, 12.5, 23]]
    assert truth[0].area.tolist() == [77.5] and truth[1].area[0] == 20
    assert truth[1].boxes.tolist() == [[0, 0, 4, 5], [1, 1, 2, 2]]
    assert truth[1].classes.tolist() == [2, 0]
    assert truth[1].crowd.tolist() == [False, True]
    assert truth[2].boxes.shape == (0, 4)
    _, y = joined(feed.evaluation())
    assert y[:, :, 0].tolist() == [[0], [2], [-1]]  # no crowd
    _, y = joined(feed_of(source, train_crowd=True).evaluation())
    assert y[:, :, 0].tolist() == [[0, -1], [2, 0], [-1, -1]]
    with pytest.raises(ValueError, match=r"'train2017', 'val2017'.*'other'"):
        source.split("other")


def test_coco_in_other_places(tmp_path):
    train = write_coco(tmp_path / "a")
    source = open_detection_source(train, images=tmp_path / "a/train")
    feed = feed_of(source, test_split="train")
    assert feed.train_size == feed.test_size == 3
    test = write_coco(tmp_path / "b", "val")
    (tmp_path / "b/val").rename(tmp_path / "b/test")  # as the split is called
    source = open_detection_source({"train": train, "test": test})
    assert source.split("test").name(1) == str(tmp_path / "b/test/y.jpg")
    for split in ("train", "valid"):
        (tmp_path / "c" / split).mkdir(parents=True)
        text = train.read_text()
        beside = tmp_path / "c" / split / "_annotations.coco.json"
        beside.write_text(text)
        picture().save(tmp_path / "c" / split / "x.jpg")
    source = open_detection_source(tmp_path / "c")
    assert source.split("valid").name(0) == str(tmp_path / "c/valid/x.jpg")
    assert len(source.split("test")) == 3


def of_annotation(key, value, row=1):
    return lambda content: content["annotations"][row].update({key: value})


def of_image(key, value, row=1):
    return lambda content: content["images"][row].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_annotation("bbox", [1, 2, 0, 4]), r"2': .*\(1, 2, 1, 6\) has no a"),
        (of_annotation("bbox", [1, 2, -3, 4]), r"2': .*has no area"),
        (of_annotation("bbox", [50, 2, 3, 4]), r"2': .*is outside of 40 x 30"),
        (of_annotation("bbox", [1, 2, 3]), r"2': its bbox is \[1, 2, 3\]"),
        (of_annotation("bbox", None), r"2': its bbox is None"),
        (of_annotation("area", "big"), r"2': its bbox is"),
        (of_annotation("category_id", 4), r"2': its category_id is 4, not"),
        (of_annotation("category_id", [4]), r"2': its category_id is \[4\]"),
        (of_annotation("image_id", 6), r"2': its image_id 6 is that of no im"),
        (of_annotation("id", 1), r"annotation 1': its id is that of another"),
        (of_annotation("iscrowd", 2), r"2': its iscrowd is 2, not 0 or 1"),
        (
            lambda content: content["annotations"].append("x"),
            r"annotation 3 of the list': it is 'x'",
        ),
        (of_image("width", 41), r"y.jpg': .*41 x 30 .*, and it has 40 x 30"),
        (of_image("width", "40"), r"y.jpg': its height and width in .*\(30, "),
        (of_image("file_name", "w.jpg"), r"train/w.jpg': No such file"),
        (of_image("id", 5), r"y.jpg': its id 5 in .*image before"),
    ],
)
def test_broken_coco_annotations_are_named(tmp_path, change, message):
    write_coco(tmp_path, "train", change)
    write_coco(tmp_path, "test")
    source = open_detection_source(tmp_path)
    with pytest.raises(ValueError, match=message):
        feed_of(source)
    feed = feed_of(source, on_bad_annotation="skip")
    # The annotations of an image that lost its id belong to none.
    expected = 3 if "its id 5" in message else 1
    assert len(feed.skipped) == expected and feed.test_size == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), "has no lists images, annotations, c"),
        (lambda c: c["categories"].pop(0), "its category_id is 90, not listed"),
        (lambda c: c["categories"][0].pop("id"), "id and a name for each cat"),
        (lambda c: c["categories"][0].update(id=3), r"several \[3\]"),
        (lambda c: c["categories"][0].update(name="car"), r"several \['car'\]"),
        (lambda c: c["images"][0].pop("id"), "id and a file_name for each ima"),
        (lambda c: c["images"].clear(), "split 'train' has none"),
    ],
)
def test_broken_coco_files_are_named(tmp_path, change, message):
    path = write_coco(tmp_path, "train", change)
    with pytest.raises(ValueError, match=message) as error:
        feed_of(open_detection_source(path), test_split="train")
    assert str(path) in str(error.value)


def test_coco_classes_are_those_wanted(tmp_path):
    path = write_coco(tmp_path)
    source = open_detection_source(path, class_names=["toothbrush"])
    with pytest.raises(ValueError, match=r"2': its class is 'car', not list"):
        feed_of(source, test_split="train")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"train\.json', which cannot be re"):
        open_detection_source(path)


# TensorFlow Datasets


@pytest.fixture(scope="module")
def tfds(tmp_path_factory):
    """TensorFlow Datasets with one data set more, as coco and voc are."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyBoxes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="png"),
                "image/id": np.int64,
                "objects": tfds.features.Sequence(
                    {
                        "area": np.int64,
                        "bbox": tfds.features.BBoxFeature(),
                        "is_crowd": np.bool_,
                        "is_difficult": np.bool_,
                        "label": tfds.features.ClassLabel(names=["a", "b"]),
                    }
                ),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {
                "train": self._generate_examples(0),
                "validation": self._generate_examples(2),
            }

        def _generate_examples(self, crowds):
            for i in range(4):
                objects = [
                    {
                        "area": 10 + k,
                        "bbox": tfds.features.BBox(0.1 * k, 0.25, 0.5, 1.0),
                        "is_crowd": k < crowds,
                        "is_difficult": k == 2,
                        "label": "ab"[k % 2],
                    }
                    for k in range(i)
                ]
                image = np.full((20, 40, 3), i, np.uint8)
                yield i, {"image": image, "image/id": i, "objects": objects}

    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.core.constants, "DATA_DIR", str(folder))
        yield tfds


def test_tensorflow_datasets(tfds):
    source = open_detection_source("tfds:tiny_boxes")
    assert source.class_names == ("a", "b")
    options = {"test_split": "validation", "mean": 0.0, "std": 1.0}
    feed = feed_of(source, **options)
    x, y = joined(feed.evaluation())
    for i, truth in enumerate(feed.ground_truth()):
        n = int(truth.id)  # which image it is, in whatever order
        assert (x[i] == n).all() and truth.size == (20, 40)
        boxes = [[10, 2 * k, 40, 10] for k in range(n)]
        np.testing.assert_allclose(
            truth.boxes, np.reshape(boxes, (-1, 4)), rtol=1e-5
        )
        assert truth.classes.tolist() == [0, 1, 0][:n]
        assert truth.crowd.tolist() == [True, True, False][:n]
        assert truth.difficult.tolist() == [False, False, True][:n]
        assert truth.area.tolist() == [10, 11, 12][:n]
        assert (y[i, :, 0] >= 0).sum() == max(n - 2, 0)
    assert len(joined(feed.epoch(0))[0]) == 4
    source = open_detection_source("tfds:tiny_boxes", class_names=["b"])
    with pytest.raises(ValueError, match=r"record \d, object 0': its class is"):
        feed_of(source, **options)
    with pytest.raises(ValueError, match=r"`class_names` must be.*\['c'\]"):
        open_detection_source("tfds:tiny_boxes", class_names=["b", "c"])
    with pytest.raises(ValueError, match=r"a bbox and a label.*'tfds:mnist'"):
        open_detection_source("tfds:mnist")


# The feed


def test_batches_follow_from_seed_epoch_and_step(voc):
    given = [joined(feed_of(voc, seed=3).epoch(2)) for _ in range(2)]
    streamed = joined(feed_of(voc, seed=3, cache=False).epoch(2))
    rest = joined(feed_of(voc, seed=3).epoch(2, start_step=1))
    for i in range(2):
        np.testing.assert_array_equal(given[0][i], given[1][i])
        np.testing.assert_array_equal(given[0][i], streamed[i])
        np.testing.assert_array_equal(given[0][i][2:], rest[i])
    # An image is augmented alike in whatever batch it is.
    whole = joined(feed_of(voc, seed=3, batch_size=4).epoch(2))
    np.testing.assert_array_equal(given[0][0], whole[0])
    for seed, epoch in ((4, 2), (3, 1)):
        other = joined(feed_of(voc, seed=seed).epoch(epoch))
        assert (other[0] != given[0][0]).any()


def test_an_epoch_shows_each_image_once(voc):
    feed = feed_of(voc, augment=False, batch_size=3)
    assert feed.steps_per_epoch == 1
    every = joined(feed_of(voc, augment=False, batch_size=1).epoch(0))[0]
    assert len(np.unique(every.reshape(4, -1), axis=0)) == 4
    for epoch in range(3):
        x, _ = joined(feed.epoch(epoch))
        assert len(np.unique(x.reshape(3, -1), axis=0)) == 3


def test_channels_first(voc):
    last, first = (
        feed_of(voc, data_format=f"channels_{where}")
        for where in ("last", "first")
    )
    for name, arguments in (("epoch", (1,)), ("evaluation", ())):
        x = joined(getattr(last, name)(*arguments))[0]
        y = joined(getattr(first, name)(*arguments))[0]
        assert y.shape[1:] == (3, 12, 16) and y.flags.c_contiguous
        np.testing.assert_array_equal(x.transpose(0, 3, 1, 2), y)


def test_many_objects_and_single_pixels(voc):
    many = [
        ("cat", (1 + k % 30, 1 + k // 30, 2 + k % 30, 9)) for k in range(200)
    ]
    write_xml(*many, ("dog", (1, 1, 9, 9)))(voc)
    with pytest.raises(
        ValueError, match=r"102 bad objects: .*object 99': it i"
    ):
        feed_of(voc, max_objects=99)
    feed = feed_of(voc, max_objects=99, on_bad_annotation="skip", seed=1)
    assert len(feed.skipped) == 102 and feed.train_size == 4
    _, y = joined(feed.epoch(0))
    assert y.shape == (4, 99, 5)
    feed = feed_of(voc)
    assert feed.max_objects == 201
    for epoch in range(5):
        x, y = joined(feed.epoch(epoch))
        assert np.isfinite(x).all() and y.shape == (4, 201, 5)
    write_xml(("cat", (7, 8, 8, 9)))(voc)
    names = ["cat", "dog"]
    source = open_detection_source(voc, class_names=names, first_pixel=0)
    for epoch in range(20):
        _, y = joined(feed_of(source, seed=epoch).epoch(0))
        sides = y[..., 3:] - y[..., 1:3]
        assert (sides[y[..., 0] >= 0] > 0).all()


def test_images_without_any_object(voc):
    (voc / "ImageSets/Main/train.txt").write_text("c\nc2\nd\n")
    (voc / "Annotations/c2.xml").write_text(xml([], size=None))
    picture().save(voc / "JPEGImages/c2.PNG")
    source = open_detection_source(voc, class_names=["cat", "dog"])
    feed = feed_of(source, batch_size=3, augment=False, test_split="train")
    assert feed.max_objects == 1
    for epoch in range(5):
        x, y = joined(feed.epoch(epoch))
        assert np.isfinite(x).all() and (y[..., 0] == -1).sum() == 2


def test_large_jpegs_are_decoded_smaller(tmp_path):
    root = write_voc(tmp_path / "large", {"train": "a", "test": "a"}, {"a": []})
    picture(1, 800, 600).save(root / "JPEGImages/a.jpg", quality=95)
    (root / "Annotations/a.xml").write_text(
        xml([("cat", (201, 151, 400, 450))], size=(800, 600))
    )
    feed = feed_of(root, size=(30, 40), batch_size=1)
    still = SSDAugmentation(
        brightness=0,
        contrast=(1, 1),
        saturation=(1, 1),
        hue=0,
        expansion=1,
        crop=False,
        flip=False,
    )
    feed = feed_of(root, size=(30, 40), batch_size=1, augment=still)
    assert feed._train.pixels[0].shape == (150, 200, 3)  # of at least 100, 134
    (x, y), (x2, y2) = joined(feed.epoch(0)), joined(feed.evaluation())
    np.testing.assert_allclose(y, y2, rtol=1e-6)
    assert y[0, 0].tolist() == [0, 10, 7.5, 20, 22.5]
    assert np.abs(x - x2).max() < 0.2


FIT = """
import keras
import numpy as np

feed = make_detection_feed(source, size=(12, 16), batch_size=2, seed=3)
layers = keras.layers
model = keras.Sequential(
    [
        keras.Input((12, 16, 3)),
        layers.Flatten(),
        layers.Dense(10),
        layers.Reshape((2, 5)),
    ]
)
model.compile("sgd", "mse")
for epoch in range(2):
    history = model.fit(feed.epoch(epoch), shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
assert np.isfinite(model.evaluate(feed.evaluation(), verbose=0))
"""


def test_fit_and_evaluate(voc):
    names = {"make_detection_feed": make_detection_feed}
    exec(FIT, {**names, "source": open_detection_source(voc)})


def test_jax_fits_without_tensorflow(run_forked, voc):
    code = f"""
import sys
sys.modules["tensorflow"] = None
from keras_muffnet.data import make_detection_feed, open_detection_source
source = open_detection_source({str(voc)!r})
{FIT}
print(feed.epoch(2)[0][1].tolist())
"""
    printed = run_forked("-c", code, KERAS_BACKEND="jax")
    _, y = feed_of(voc, seed=3).epoch(2)[0]
    assert json.loads(printed) == y.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 300}, "`size` must be a height and a width.*300"),
        ({"size": (300, 0)}, r"`size\[1\]` must be a positive integer.*0"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer.*0"),
        ({"batch_size": 5}, "`batch_size` must be at most .* 4.*=5"),
        ({"max_objects": 0}, "`max_objects` must be a positive integer.*0"),
        ({"seed": -1}, "`seed` must be an integer, 0 or more.*-1"),
        ({"augment": "ssd"}, "`augment` must be True, False or.*'ssd'"),
        ({"on_bad_annotation": "no"}, "must be 'raise' or 'skip'.*'no'"),
        ({"data_format": "NCHW"}, "`data_format` must be 'channels_f.*'NCHW'"),
        ({"test_split": "val"}, r"\['test', 'train'\].*split='val'"),
    ],
)
def test_argument_errors(voc, options, message):
    with pytest.raises(ValueError, match=message):
        feed_of(voc, **options)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("no/such", {}, r"`source` must be a folder .*Pascal VOC.*'no/such'"),
        (None, {}, r"`source` must be a folder .*None"),
        ({}, {}, r"`source` must be a folder .*\{\}"),
        ("voc", {"class_names": []}, r"`class_names` must .*=\(\)"),
        ("voc", {"class_names": "aa"}, r"`class_names` must .*different"),
        ("voc", {"images": "x"}, "`images` must be None for Pascal VOC.*'x'"),
        (
            {"train": "a.json"},
            {"first_pixel": 1},
            "`first_pixel` must be None for COCO.*=1",
        ),
        (
            "tfds:coco",
            {"images": "x"},
            "`images` must be None for TensorFlow Datasets.*'x'",
        ),
        ("voc", {"first_pixel": 2}, "`first_pixel` must be 0, 1 or None.*2"),
    ],
)
def test_source_errors(voc, source, options, message):
    with pytest.raises(ValueError, match=message):
        open_detection_source(voc if source == "voc" else source, **options)
    with pytest.raises(ValueError, match=r"from open_detection_source.*'voc'"):
        make_detection_feed("voc", size=(2, 2), batch_size=1)
    feed = feed_of(voc)
    with pytest.raises(ValueError, match=r"\[0, 2\).*start_step=2"):
        feed.epoch(0, 2)


# The augmentation

SAME_COLOURS = {
    "brightness": 0,
    "contrast": (1, 1),
    "saturation": (1, 1),
    "hue": 0,
}


def random_boxes(rng, count, width, height):
    corners = rng.random((count, 2, 2)) * (width - 8, height - 8)
    low, high = corners.min(axis=1), corners.max(axis=1) + 4
    return np.concatenate([low, high], axis=1)


def overlap(box, other):
    """Intersection over union, from its formula."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    both = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return both / (sum(areas) - both)


def test_crops_meet_their_bounds():
    rng = np.random.default_rng(0)
    numbers = 7 + 4 * 50 * 6
    whole, met = 0, np.zeros(6)
    for _ in range(300):
        boxes = random_boxes(rng, 1, 100, 80)
        u = rng.random(numbers)
        crop = ssd_augmentation.draw_crop(u, boxes, 80, 100)
        left, top, right, bottom = crop
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 80
        whole += crop == (0, 0, 100, 80)
        least = min(overlap(box, crop) for box in boxes)
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = (centers >= crop[:2]) & (centers < crop[2:])
        assert inside.all(axis=1).any()
        if crop != (0, 0, 100, 80):
            scale = np.sqrt((right - left) * (bottom - top) / 8000)
            assert 0.27 < scale <= 1
            aspect = (right - left) / (bottom - top) / (100 / 80)
            assert 0.45 < aspect < 2.2
        met += least >= np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.0])
    assert 30 < whole < 150  # of up to seven candidates
    assert met[0] > met[1] > met[2] > met[3] > 0


def test_each_candidate_meets_its_own_bound(monkeypatch):
    """With one bound alone, what is not the whole image meets it."""
    rng = np.random.default_rng(1)
    for bound, count in ((0.1, 3), (0.3, 2), (0.5, 1), (0.7, 1), (0.9, 1)):
        monkeypatch.setattr(ssd_augmentation, "CONSTRAINTS", (bound,))
        crops = 0
        for _ in range(200):
            boxes = random_boxes(rng, count, 100, 80)
            u = rng.random(2 + 4 * 50)
            u[:2] = 1 - np.arange(2)  # the crop comes first
            crop = ssd_augmentation.draw_crop(u, boxes, 80, 100)
            if crop != (0, 0, 100, 80):
                crops += 1
                assert min(overlap(box, crop) for box in boxes) >= bound
        assert crops > 0, bound


def test_boxes_follow_what_they_are_around():
    """A bright rectangle is found where its box comes to lie."""
    size = 60, 90
    augmentation = SSDAugmentation(**SAME_COLOURS)
    rng = np.random.default_rng(2)
    shrunk, flipped = 0, 0
    for position in range(200):
        height, width = rng.integers(40, 120, 2)
        left, top = rng.integers(0, (width - 12, height - 12))
        right = rng.integers(left + 10, width)
        bottom = rng.integers(top + 10, height)
        image = np.zeros((height, width, 3), np.uint8)
        image[top:bottom, left:right] = 255
        # A mark in the upper left quarter shows which way round it is.
        image[top : (top + bottom) // 2, left : (left + right) // 2, 1] = 0
        x, boxes, kept = augmentation(
            image,
            np.array([[left, top, right, bottom]], float),
            (7, 1, position),
            size,
            mean=0.0,
            std=1.0,
        )
        assert x.shape == (*size, 3) and x.dtype == np.float32
        assert kept.tolist() == [True] and boxes.dtype == np.float32
        [box] = boxes
        assert (box >= 0).all() and (box <= [90, 60, 90, 60]).all()
        assert (box[2:] > box[:2]).all()
        seen = x[..., 0] > 127
        rows, columns = (np.flatnonzero(seen.any(axis=a)) for a in (1, 0))
        if len(rows) > 2 and len(columns) > 2:
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            scale = max(1, 60 / height, 90 / width)
            # Nearest neighbors are off by up to a pixel of the original.
            assert np.abs(box - found).max() < 1.6 + 3 * scale / 2
        marked = (seen & (x[..., 1] < 127)).mean(axis=0)
        shrunk += (box[2] - box[0]) / 90 < (right - left) / width * 0.9
        middle = (box[0] + box[2]) / 2
        flipped += marked @ (np.arange(90) + 0.5 - middle) > 0
    assert 20 < shrunk < 100 and 70 < flipped < 130


def test_boxes_without_their_center_are_dropped():
    augmentation = SSDAugmentation(**SAME_COLOURS, flip=False, expansion=1)
    image = np.zeros((80, 100, 3), np.uint8)
    boxes = random_boxes(np.random.default_rng(3), 30, 100, 80)
    dropped = 0
    for position in range(50):
        _, left, kept = augmentation(image, boxes, (0, 0, position), (80, 100))
        assert kept.shape == (30,) and len(left) == kept.sum() > 0
        assert (left >= 0).all() and (left <= [100, 80, 100, 80]).all()
        dropped += (~kept).any()
    assert dropped > 0
    one = np.array([[10.0, 20, 30, 40]])
    for position in range(50):
        _, left, kept = augmentation(image, one, (0, 0, position), (80, 100))
        assert kept.all() and len(left) == 1  # some candidate has it


def colors_by_hand(pixel, u):
    """The changes of color, one after the other, from their formulas."""

    def brightness(x):
        return x + 32 * (2 * u[1] - 1) if u[0] < 0.5 else x

    def contrast(x):
        return x * (0.5 + u[3]) if u[2] < 0.5 else x

    def saturation(x):
        factor = 0.5 + u[5]
        gray = 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]
        return gray + (x - gray) * factor if u[4] < 0.5 else x

    def hue(x):
        if u[6] >= 0.5:
            return x
        luma = 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]
        i = 0.596 * x[0] - 0.274 * x[1] - 0.321 * x[2]
        q = 0.211 * x[0] - 0.523 * x[1] + 0.311 * x[2]
        angle = 18 * np.pi * (2 * u[7] - 1)
        i, q = (
            np.cos(angle) * i - np.sin(angle) * q,
            np.sin(angle) * i + np.cos(angle) * q,
        )
        return np.array(
            [
                luma + 0.956 * i + 0.621 * q,
                luma - 0.272 * i - 0.647 * q,
                luma - 1.107 * i + 1.705 * q,
            ]
        )

    x = brightness(pixel.astype(float))
    if u[8] < 0.5:
        return contrast(hue(saturation(x)))
    return hue(saturation(contrast(x)))


def test_colors_change_as_their_formulas_say():
    augmentation = SSDAugmentation(expansion=1, crop=False, flip=False)
    pixel = np.array([200, 90, 30], np.uint8)
    image = np.tile(pixel, (4, 5, 1))
    changed = 0
    for position in range(60):
        x, _, _ = augmentation(
            image, np.zeros((0, 4)), (1, 2, position), (4, 5), 128.0, 64.0
        )
        u = ssd_augmentation.uniforms(1, 2, np.array([position]), 9)[0]
        expected = (colors_by_hand(pixel, u) - 128) / 64
        # The matrices of the formulas are each other's inverse to 3 digits.
        np.testing.assert_allclose(
            x, np.broadcast_to(expected, x.shape), atol=0.05
        )
        changed += np.abs(expected * 64 + 128 - pixel).max() > 1
    assert 40 < changed < 60  # all but a sixteenth


def test_the_canvas_is_the_mean_color():
    image = np.full((30, 40, 3), 255, np.uint8)
    augmentation = SSDAugmentation(**SAME_COLOURS, crop=False)
    shares = []
    for position in range(100):
        x, _, _ = augmentation(
            image, np.zeros((0, 4)), (0, 0, position), (60, 80), 55.0, 2.0
        )
        assert set(np.unique(x)) <= {0.0, 100.0}
        shares.append((x > 0).mean())
    shares = np.array(shares)
    assert 30 < (shares == 1).sum() < 70
    # Expanded by up to 4, in both directions.
    assert 1 / 20 < shares.min() < 1 / 8


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2000, 3)])
def test_images_of_odd_shapes(shape):
    image = np.full((*shape, 3), 9, np.uint8)
    box = np.array([[0, 0, shape[1], shape[0]]], float)
    for position in range(60):
        x, boxes, kept = SSDAugmentation()(
            image, box, (0, 0, position), (20, 10)
        )
        assert x.shape == (20, 10, 3) and np.isfinite(x).all()
        assert kept.all() and (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"brightness": -1}, "`brightness` must be 0 or more.*-1"),
        ({"hue": float("nan")}, "`hue` must be 0 or more.*nan"),
        ({"contrast": (1.5, 0.5)}, "`contrast` must be two rising factors"),
        ({"saturation": (1,)}, "`saturation` must be two rising factors"),
        ({"expansion": 0.5}, "`expansion` must be 1 or more.*0.5"),
    ],
)
def test_augmentation_errors(options, message):
    with pytest.raises(ValueError, match=message):
        SSDAugmentation(**options)
