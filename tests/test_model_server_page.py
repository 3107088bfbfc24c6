"""The server's page, in a browser that asks real models.

`render` is tested by itself; the rest drives Chromium, which must be installed
(with its driver) and is not optional where `CI` is set.
"""

import asyncio
import base64
import hashlib
import html.parser
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
import uvicorn
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from selenium.webdriver.support.ui import WebDriverWait
from tensorflow.core.protobuf import saved_model_pb2

from keras_muffnet.model_server import page
from keras_muffnet.model_server.configuration import ModelConfig
from keras_muffnet.model_server.configuration import VersionPolicy
from keras_muffnet.model_server.loader import load
from keras_muffnet.model_server.manager import ModelManager
from keras_muffnet.model_server.rest_service import App

EVIL = '</script><img src=x onerror="window.hacked=1"><!--\'é&/:'
EVIL_SIGNATURE = 'it\'s "100%" $HOME `id`'


# The page as text


class Reader(html.parser.HTMLParser):
    """Collects the elements and the text of the list of models."""

    def __init__(self):
        super().__init__()
        self.tags = []
        self.models = ""
        self._in_models = False

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._in_models = ("id", "models") in attributes

    def handle_data(self, data):
        if self._in_models:
            self.models += data


def read(rendered):
    reader = Reader()
    reader.feed(rendered.decode())
    reader.close()
    return reader


@pytest.mark.parametrize(
    "name",
    ["muffnet", EVIL, "<!--<script>", "\u2028 \ud800 \x00", "é 你", "[]"],
)
def test_render_writes_any_name(name):
    models = [(name, [2**63 - 1, 1]), ("other", [])]
    reader = read(page.render(iter(models)))
    assert json.loads(reader.models) == [
        {"name": name, "versions": [str(2**63 - 1), "1"]},
        {"name": "other", "versions": []},
    ]
    assert reader.tags == read(page.render([])).tags


def test_render_without_models():
    assert json.loads(read(page.render([])).models) == []


def test_page_names_no_other_host_and_fits_its_policy():
    rendered = page.render([("muffnet", [1])]).decode()
    assert not re.search(r"(https?:)?//\w", rendered.replace("// ", ""))
    headers = dict(page.HEADERS)
    policy = headers[b"content-security-policy"].decode()
    for element in ("script", "style"):
        content = rendered.split(f"<{element}>")[1].split(f"</{element}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest())
        assert f"{element}-src 'sha256-{digest.decode()}';" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"referrer-policy"] == b"no-referrer"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"content-type"] == b"text/html; charset=utf-8"


# Models


def _decode(image_bytes):
    """Decodes the first picture, which stands for the batch."""
    image = tf.io.decode_image(
        image_bytes[0], channels=3, expand_animations=False
    )
    return tf.cast(image, tf.float32)[tf.newaxis]


def shares(image_bytes):
    """Answers how much of the picture is red, green and blue."""
    sums = tf.reduce_sum(_decode(image_bytes), axis=(1, 2))
    return {"predictions": sums / tf.reduce_sum(sums, axis=1, keepdims=True)}


def best(image_bytes):
    """Answers the two best of these with their names."""
    scores = shares(image_bytes)["predictions"]
    names = tf.constant(['<img src=x onerror="hacked=1">', "green", "blue"])
    top, places = tf.math.top_k(scores, 2)
    # The worse one first: the page is to sort.
    return {
        "predictions": scores,
        "classes": tf.gather(names, places)[:, ::-1],
        "scores": top[:, ::-1],
    }


BOXES = [
    ([0.25, 0.1, 0.75, 0.4], "dog", 0.8),
    ([0.5, 0.5, 1.0, 1.0], "cat", 0.9),
    ([0.0, 0.6, 0.2, 0.9], "dog", 0.1),
    ([0.0, 0.0, 0.0, 0.0], "padding", 0.95),
]


def detect(image_bytes):
    """Finds what stands above in any picture."""
    places, classes, scores = zip(*BOXES, strict=True)
    found = tf.shape(_decode(image_bytes))[:1]
    return {
        "detection_boxes": tf.constant([places]),
        "detection_classes": tf.constant([classes]),
        "detection_scores": tf.constant([scores]),
        "num_detections": tf.cast(3 * found, tf.float32),
    }


def detect_numbers(image_bytes):
    parts = detect(image_bytes)
    return {
        "boxes": parts["detection_boxes"],
        "classes": tf.constant([[18.0, 17.0, 18.0, 1.0]]),
        "scores": parts["detection_scores"],
    }


def detect_nothing(image_bytes):
    return {name: x[:, :0] for name, x in detect_numbers(image_bytes).items()}


def flatten(images):
    """Answers the pixels that came."""
    return {"values": tf.reshape(images, (1, -1))}


def size(images):
    return {"size": tf.cast(tf.shape(images)[tf.newaxis, 1:], tf.float32)}


def not_finite(image_bytes):
    scores = tf.constant([[float("nan"), -1.0, 3.0, 1.0]])
    names = tf.constant([["NaN", "Infinity", '\\"NaN', "b"]])
    batch = tf.shape(image_bytes)[0]
    return {"scores": scores[:batch], "classes": names[:batch]}


def add(a, b):
    return {"sum": a + b}


def identity(x):
    return {"y": x}


FILE = {"image_bytes": ((None,), tf.string)}


def images(*shape):
    return {"images": ((None, *shape), tf.float32)}


# The models by name, each with its versions' signatures.
MODELS = {
    "shares": {1: {"serving_bytes": (shares, FILE)}},
    "best": {
        1: {"serving_bytes": (shares, FILE)},
        2: {"serving_bytes": (best, FILE)},
    },
    "detector": {
        7: {
            "serving_bytes": (detect, FILE),
            "numbers": (detect_numbers, FILE),
            "nothing": (detect_nothing, FILE),
        }
    },
    "pixels": {
        1: {
            "serving_default": (flatten, images(2, 3, 3)),
            "gray": (flatten, images(2, 3, 1)),
            "any_size": (size, images(None, None, 3)),
            "nan": (not_finite, FILE),
            "same": (identity, {"x": ((None, None, None, 3), tf.float32)}),
        }
    },
    "unfit": {
        1: {
            "add": (
                add,
                {"a": ((None,), tf.float32), "b": ((None,), tf.float32)},
            ),
            "channels_first": (identity, {"x": ((1, 3, 8, 9), tf.float32)}),
            "classify": (identity, {"x": ((None,), tf.string)}),
            "integers": (identity, {"x": (None, tf.int64)}),
            "text": (identity, {"x": ((None, 2), tf.string)}),
        }
    },
    EVIL: {3: {EVIL_SIGNATURE: (shares, FILE)}},
}


def save(path, signatures):
    concrete = {
        key: tf.function(function).get_concrete_function(
            **{
                name: tf.TensorSpec(shape, dtype, name=name)
                for name, (shape, dtype) in inputs.items()
            }
        )
        for key, (function, inputs) in signatures.items()
    }
    tf.saved_model.save(tf.Module(), path, concrete)
    if "classify" in signatures:
        file = path / "saved_model.pb"
        model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
        signature = model.meta_graphs[0].signature_def["classify"]
        signature.method_name = tf.saved_model.CLASSIFY_METHOD_NAME
        file.write_bytes(model.SerializeToString())


# The server


class Site:
    """The server's own application, which can be told to be slow."""

    def __init__(self, folder, executor):
        self.listed = {name: sorted(MODELS[name])[::-1] for name in MODELS}
        self.delay = 0  # seconds before a prediction
        self.asked = 0  # predictions
        configs = []
        for number, (name, versions) in enumerate(MODELS.items()):
            path = folder / str(number)
            for version, signatures in versions.items():
                save(path / str(version), signatures)
            configs.append(ModelConfig(name, path, VersionPolicy()))
            if name == "best":
                # Never more than loading.
                (path / "3").mkdir()
                self.listed[name] = [3, 2, 1]
        self._manager = ModelManager(load)
        self._manager.configure(configs)
        self._manager.available = lambda: self.listed
        self._app = App(self._manager, executor, timeout=60)

    async def __call__(self, scope, receive, send):
        if scope["raw_path"].endswith(b":predict"):
            self.asked += 1
            await asyncio.sleep(self.delay)
        await self._app(scope, receive, send)

    def close(self):
        self._manager.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with ThreadPoolExecutor(4) as executor:
        site = Site(tmp_path_factory.mktemp("models"), executor)
        config = uvicorn.Config(
            site, lifespan="off", log_config=None, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        site.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}
        )
        thread.start()
        yield site
        server.should_exit = True
        thread.join()
        site.close()


# The browser


class Browser:
    """The page as its user sees it."""

    def __init__(self, driver, url):
        self.driver = driver
        self._url = url

    def open(self):
        self.driver.get(self._url)
        self.settle()

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def find_all(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css):
        return self.find(css).text

    def texts(self, css):
        return [element.text for element in self.find_all(css)]

    def wait(self, condition):
        return WebDriverWait(self.driver, 60, 0.02).until(lambda _: condition())

    def settle(self):
        self.wait(
            lambda: self.find("#answer").get_attribute("aria-busy") == "false"
        )

    def pick(self, label, value):
        options = Select(self.find(f"#{label}")).options
        [wanted] = [
            option
            for option in options
            if option.get_attribute("value") == value
        ]
        wanted.click()
        self.settle()

    def choose(self, path):
        self.find("#file").send_keys(str(path))
        self.wait(lambda: self.text("#caption").startswith(path.name))
        self.settle()

    def hand_over(self, event, path):
        """Drops or pastes a file, as far as a script can."""
        content = base64.b64encode(path.read_bytes()).decode()
        self.run(
            """
            const [event, field, name, content] = arguments;
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt());
            const data = new DataTransfer();
            data.items.add(new File([bytes], name));
            const kind = event === "paste" ? ClipboardEvent : DragEvent;
            const options = { [field]: data, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new kind(event, options));
            """,
            event,
            "clipboardData" if event == "paste" else "dataTransfer",
            path.name,
            content,
        )

    def bars(self):
        """Returns name, value and share of the full width of each bar."""
        shares = self.run(
            """
            const width = (element) => element.getBoundingClientRect().width;
            return [...document.querySelectorAll(".bar")].map(
              (bar) => width(bar.firstChild) / width(bar));
            """
        )
        names, values = self.texts("#bars .name"), self.texts("#bars .value")
        return list(zip(names, values, shares, strict=True))

    def answer(self):
        text = self.find("#raw pre").get_attribute("textContent")
        return json.loads(text)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    missing = [
        program
        for program in ("chromium", "chromedriver")
        if shutil.which(program) is None
    ]
    if missing:
        tell = pytest.fail if os.environ.get("CI") else pytest.skip
        tell(f"needs {' and '.join(missing)} on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1200,900",
    ):
        options.add_argument(argument)
    downloads = str(tmp_path_factory.mktemp("downloads"))
    options.add_experimental_option(
        "prefs", {"download.default_directory": downloads}
    )
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver, site):
    browser = Browser(driver, site.url)
    browser.open()
    yield browser
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    # Nothing failed but what the server refused, and no markup ran.
    complaints = [
        entry["message"]
        for entry in driver.get_log("browser")
        if entry["level"] == "SEVERE"
        and "responded with" not in entry["message"]
    ]
    assert complaints == []
    assert browser.run("return window.hacked") is None


def write_png(path, color, width=40, height=20):
    pixels = np.full((height, width, 3), color, np.uint8)
    path.write_bytes(tf.io.encode_png(pixels).numpy())
    return path


@pytest.fixture
def reddish(tmp_path):
    """80% red, 16% green, 4% blue."""
    return write_png(tmp_path / "reddish.png", [200, 40, 10])


def run_shell(line, folder, shell="bash"):
    done = subprocess.run(
        [shell, "-c", line], cwd=folder, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The page in use


def test_models_versions_and_signatures(browser):
    names = [option.text for option in Select(browser.find("#model")).options]
    # A browser shows white space in options as one blank.
    assert names == [" ".join(name.split()) for name in MODELS]
    assert browser.text("#time") == "No picture yet."
    assert browser.text("#sent") == (
        "Version 1. Sends the file as it is, to the input image_bytes."
    )
    browser.pick("model", "best")
    versions = [
        (option.text, option.is_enabled())
        for option in Select(browser.find("#version")).options
    ]
    assert versions == [
        ("Latest", True),
        ("3 (loading)", False),
        ("2", True),
        ("1", True),
    ]
    assert "Version 2." in browser.text("#sent")
    browser.pick("version", "1")
    assert "Version 1." in browser.text("#sent")
    # Another model starts from its latest version again.
    browser.pick("model", "pixels")
    assert browser.find("#version").get_attribute("value") == ""
    signatures = [
        option.text for option in Select(browser.find("#signature")).options
    ]
    assert signatures == ["nan", "serving_default", "any_size", "gray", "same"]


def test_chosen_file_gives_sorted_bars(browser, reddish):
    browser.choose(reddish)
    assert browser.text("#caption") == "reddish.png"
    assert browser.text("#summary") == "Class 0 (80.0%)"
    assert re.fullmatch(r"Answered in [0-9.]+ ms", browser.text("#time"))
    bars = browser.bars()
    assert [bar[:2] for bar in bars] == [
        ("Class 0", "80.0%"),
        ("Class 1", "16.0%"),
        ("Class 2", "4.0%"),
    ]
    widths = [share for _, _, share in bars]
    assert widths == pytest.approx([0.8, 0.16, 0.04], abs=0.005)


def test_names_of_classes_are_text(browser, reddish):
    browser.pick("model", "best")
    browser.choose(reddish)
    assert [bar[:2] for bar in browser.bars()] == [
        ('<img src=x onerror="hacked=1">', "80.0%"),
        ("green", "16.0%"),
    ]
    browser.pick("version", "1")
    assert len(browser.bars()) == 3


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_dropped_and_pasted_files(browser, reddish, event):
    browser.hand_over(event, reddish)
    browser.wait(lambda: browser.text("#summary") == "Class 0 (80.0%)")


def test_drop_shows_where(browser, reddish):
    border = (
        "return getComputedStyle(document.getElementById('drop')).borderColor"
    )
    before = browser.run(border)
    browser.hand_over("dragover", reddish)
    assert browser.run(border) != before
    browser.hand_over("dragleave", reddish)
    assert browser.run(border) == before


@pytest.mark.parametrize("phone", [False, True])
@pytest.mark.parametrize("shape", [(40, 20), (700, 300), (30, 400)])
def test_boxes_lie_where_they_belong(browser, tmp_path, phone, shape):
    if phone:
        show_as_phone(browser)
    browser.pick("model", "detector")
    picture = write_png(tmp_path / "p.png", [0, 90, 0], *shape)
    browser.choose(picture)
    assert browser.text("#summary") == "Objects: 2"
    assert [bar[:2] for bar in browser.bars()] == [
        ("cat", "90.0%"),
        ("dog", "80.0%"),
    ]
    image = browser.find("#preview").rect
    ratio = shape[0] / shape[1]
    assert image["width"] / image["height"] == pytest.approx(ratio, rel=0.02)
    boxes = browser.find_all(".box")
    assert [box.text for box in boxes] == ["dog 80.0%", "cat 90.0%"]
    for box, (place, _, _) in zip(boxes, BOXES[:2], strict=True):
        top, left, bottom, right = place
        expected = {
            "x": image["x"] + left * image["width"],
            "y": image["y"] + top * image["height"],
            "width": (right - left) * image["width"],
            "height": (bottom - top) * image["height"],
        }
        assert box.rect == pytest.approx(expected, abs=1)


def test_threshold_hides_boxes(browser, reddish):
    browser.pick("model", "detector")
    browser.choose(reddish)
    threshold = browser.find("#threshold")
    threshold.send_keys(Keys.HOME)
    assert browser.text("#least-value") == "0%"
    # The fourth is past num_detections.
    assert browser.texts("#bars .name") == ["cat", "dog", "dog"]
    assert len(browser.find_all(".box")) == 3
    threshold.send_keys(Keys.END)
    assert browser.text("#summary") == "Objects: 0"
    assert browser.find_all(".box") == []
    # A picture without an answer has no boxes.
    threshold.send_keys(Keys.HOME)
    browser.pick("model", "shares")
    assert browser.find_all(".box") == []
    assert not threshold.is_displayed()


def test_boxes_by_short_names_and_numbers(browser, reddish):
    browser.pick("model", "detector")
    browser.pick("signature", "numbers")
    browser.choose(reddish)
    assert [box.text for box in browser.find_all(".box")] == [
        "Class 18 80.0%",
        "Class 17 90.0%",
        "Class 1 95.0%",
    ]


DENSE = """
const findings = Array.from({ length: 40 }, (_, k) => {
  const [top, left] = [0.1 * Math.floor(k / 8), 0.11 * (k % 8)];
  const box = [top, left, top + 0.2, left + 0.2];
  return { name: "cell", score: 1 - k / 100, box };
});
answer = { isDetection: true, findings };
showAnswer();
"""


def visible_labels(browser):
    found = [label for label in browser.find_all(".box span") if label.text]
    return [label.rect for label in found]


def test_labels_of_dense_boxes_hide_none(browser, tmp_path):
    browser.pick("model", "detector")
    browser.choose(write_png(tmp_path / "p.png", [0, 90, 0], 400, 300))
    browser.run(DENSE)
    assert len(browser.find_all(".box")) == 40
    labels = visible_labels(browser)
    assert 5 < len(labels) < 40
    image = browser.find("#preview").rect
    for k, a in enumerate(labels):
        assert a["x"] >= image["x"] - 2
        assert a["x"] + a["width"] <= image["x"] + image["width"] + 2
        for b in labels[:k]:
            assert (
                a["x"] + a["width"] <= b["x"] + 1
                or b["x"] + b["width"] <= a["x"] + 1
                or a["y"] + a["height"] <= b["y"] + 1
                or b["y"] + b["height"] <= a["y"] + 1
            )
    # The best has one, and any has it that is pointed at.
    assert browser.find_all(".box span")[-1].text == "cell 100.0%"
    quiet = browser.find_all(".box.quiet")[0]
    assert not quiet.text
    ActionChains(browser.driver).move_to_element(quiet).perform()
    pointed = browser.run(
        "return [...document.querySelectorAll('.box.quiet:hover span')]"
        ".map((x) => getComputedStyle(x).visibility)"
    )
    assert pointed == ["visible"]


def test_no_objects(browser, reddish):
    browser.pick("model", "detector")
    browser.pick("signature", "nothing")
    browser.choose(reddish)
    assert browser.text("#summary") == "Objects: 0"
    assert browser.find_all(".box") == []


def pixels_png(path):
    """2 rows of 3 pixels, all different."""
    pixels = [
        [[0, 128, 255], [10, 20, 30], [1, 2, 3]],
        [[255, 255, 255], [0, 0, 0], [64, 127, 129]],
    ]
    pixels = np.array(pixels, np.uint8)
    path.write_bytes(tf.io.encode_png(pixels).numpy())
    return pixels.reshape(-1, 3).astype(float)


def test_pixels_are_sent_to_a_model_of_tensors(browser, tmp_path, driver):
    path = tmp_path / "pixels.png"
    pixels = pixels_png(path)
    browser.pick("model", "pixels")
    browser.pick("signature", "serving_default")
    assert browser.text("#sent") == (
        "Version 1. Sends pixels to the input images: the picture drawn at "
        "3 \u00d7 2, RGB, each value as (pixel - 128) / 128."
    )
    browser.choose(path)
    scaled = (pixels - 128) / 128
    assert browser.answer() == {"predictions": [scaled.ravel().tolist()]}
    # No shares: from the lowest to the highest, five of them.
    bars = browser.bars()
    assert [bar[1] for bar in bars] == ["0.9922"] * 4 + ["0.007813"]
    widths = [share for _, _, share in bars]
    low, high = scaled.min(), scaled.max()
    fifth = (1 / 128 - low) / (high - low)
    assert widths == pytest.approx([1, 1, 1, 1, fifth], abs=0.005)

    browser.find("#save").click()
    saved = os.path.join(driver.downloads, "request.json")
    browser.wait(lambda: os.path.exists(saved))
    line = browser.text("#curl")
    assert run_shell(line, driver.downloads) == browser.answer()


def test_gray_pixels(browser, tmp_path):
    path = tmp_path / "pixels.png"
    pixels = pixels_png(path)
    browser.pick("model", "pixels")
    browser.pick("signature", "gray")
    assert "3 \u00d7 2, gray" in browser.text("#sent")
    browser.choose(path)
    gray = (pixels @ [0.299, 0.587, 0.114]).round()
    expected = ((gray - 128) / 128).tolist()
    assert browser.answer() == {"predictions": [expected]}


def test_free_size_is_224(browser, reddish):
    browser.pick("model", "pixels")
    browser.pick("signature", "any_size")
    browser.choose(reddish)
    assert browser.answer() == {"predictions": [[224.0, 224.0, 3.0]]}


def test_answer_of_another_kind_is_shown_as_it_is(browser, reddish):
    browser.pick("model", "pixels")
    browser.pick("signature", "same")
    browser.choose(reddish)
    assert browser.text("#summary").startswith("No scores")
    assert browser.text("#raw pre").startswith('{"predictions":[[[[0.5625,')
    assert browser.bars() == []


def test_numbers_that_json_lacks(browser, reddish):
    browser.pick("model", "pixels")
    assert browser.find("#signature").get_attribute("value") == "nan"
    browser.choose(reddish)
    bars = browser.bars()
    assert [bar[:2] for bar in bars] == [
        ('\\"NaN', "3"),
        ("b", "1"),
        ("Infinity", "-1"),
        ("NaN", "NaN"),
    ]
    widths = [share for _, _, share in bars]
    assert widths == pytest.approx([1, 0.5, 0, 0], abs=0.005)


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("model", [EVIL, "best"])
def test_curl_line_gives_the_same_answer(browser, tmp_path, shell, model):
    name = 'it\'s a "cat" $HOME `id` \\n.png'
    picture = write_png(tmp_path / name, [30, 60, 10], 200, 200)
    browser.pick("model", model)
    browser.choose(picture)
    line = browser.text("#curl")
    assert len(line) < 400
    assert run_shell(line, tmp_path, shell) == browser.answer()


def test_curl_line_is_plain_for_plain_names(browser, reddish, site):
    browser.choose(reddish)
    assert browser.text("#curl") == (
        """printf %s '{"signature_name": "serving_bytes", "instances": """
        """[{"b64": "'$(base64 < reddish.png | tr -d '\\n')'"}]}' | """
        f"curl -d @- {site.url}/v1/models/shares:predict"
    )
    assert not browser.find("#save").is_displayed()


def test_curl_line_is_copied(browser, reddish, driver, site):
    browser.choose(reddish)
    browser.find("#copy").click()
    assert browser.text("#copied") == "Copied"
    driver.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"origin": site.url, "permissions": ["clipboardReadWrite"]},
    )
    copied = driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], arguments[0])"
    )
    assert copied == browser.text("#curl")


# What goes wrong


def test_error_of_the_server_is_shown(browser, tmp_path, reddish):
    path = tmp_path / "notes.txt"
    path.write_text("<b>no picture</b>")
    browser.choose(path)
    error = browser.text("#error")
    assert error.startswith("The server answered 400: ")
    assert "Unknown image file format" in error
    assert "cannot show it" in browser.text("#caption")
    browser.choose(reddish)
    assert not browser.find("#error").is_displayed()
    assert browser.find("#frame").is_displayed()
    browser.choose(path)
    assert browser.bars() == []
    browser.pick("model", "pixels")
    browser.pick("signature", "gray")
    assert browser.text("#error") == "The browser cannot decode notes.txt."


def test_model_that_cannot_be_asked(browser, reddish):
    browser.pick("model", "unfit")
    assert browser.text("#error") == (
        "This page cannot send a picture to this model."
    )
    reasons = browser.texts("#reasons li")
    assert sorted(reasons) == [
        "add has 2 inputs, not one.",
        "channels_first takes DT_FLOAT [1, 3, 8, 9] in x.",
        "classify takes tf.Example records in x.",
        "integers takes DT_INT64 of any shape in x.",
        "text takes DT_STRING [-1, 2] in x.",
    ]
    browser.choose(reddish)
    assert "cannot send" in browser.text("#error")
    browser.pick("model", "shares")
    assert browser.text("#summary") == "Class 0 (80.0%)"
    assert not browser.find("#reasons").is_displayed()


def test_list_is_reloaded(browser, site, reddish):
    browser.choose(reddish)
    listed = site.listed
    try:
        site.listed = {"gone": [1]}
        browser.find("#reload").click()
        browser.wait(lambda: browser.text("#listed") == "1 loaded")
        browser.settle()
        assert browser.text("#error") == (
            "The server answered 404: Could not find any versions of model gone"
        )
        site.listed = {}
        browser.find("#reload").click()
        browser.wait(lambda: browser.text("#error") == "No model is loaded.")
    finally:
        site.listed = listed
    browser.find("#reload").click()
    browser.wait(lambda: browser.text("#summary") == "Class 0 (80.0%)")


def test_server_out_of_reach(browser, driver, reddish):
    driver.execute_cdp_cmd("Network.enable", {})
    conditions = {
        "latency": 0,
        "downloadThroughput": -1,
        "uploadThroughput": -1,
    }

    def set_offline(offline):
        driver.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {**conditions, "offline": offline},
        )

    set_offline(True)
    try:
        browser.choose(reddish)
        assert browser.text("#error") == "The server cannot be reached."
        browser.find("#reload").click()
        browser.wait(lambda: "cannot be read" in browser.text("#listed"))
    finally:
        set_offline(False)
    driver.get_log("browser")  # tells of the requests that failed
    browser.find("#predict").click()
    browser.wait(lambda: browser.text("#summary") == "Class 0 (80.0%)")


def test_last_picture_wins(browser, site, tmp_path, reddish):
    green = write_png(tmp_path / "green.png", [0, 200, 0])
    site.delay = 0.5
    asked = site.asked
    try:
        browser.hand_over("drop", reddish)
        browser.wait(lambda: site.asked > asked)
        site.delay = 0
        browser.choose(green)
        assert browser.text("#summary") == "Class 1 (100.0%)"
        time.sleep(0.6)
        assert browser.text("#summary") == "Class 1 (100.0%)"
    finally:
        site.delay = 0


# For everyone, and safe


def show_as_phone(browser):
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True},
    )


@pytest.mark.parametrize("model", [*MODELS])
def test_fits_a_phone(browser, tmp_path, model):
    show_as_phone(browser)
    browser.pick("model", model)
    browser.choose(write_png(tmp_path / ("long" * 30), [1, 2, 3], 900, 50))
    width = browser.run("return document.documentElement.scrollWidth")
    assert width == 320


def test_controls_have_names_and_take_the_keyboard(browser, reddish):
    browser.pick("model", "detector")
    browser.choose(reddish)
    focusable = browser.find_all("select, button, input, summary, pre")
    for element in focusable:
        if element.is_displayed():
            assert element.accessible_name, element.get_attribute("outerHTML")
    browser.run("document.activeElement.blur(); scrollTo(0, 0)")
    reached = []
    for _ in range(20):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        reached.append(
            browser.run(
                "const e = document.activeElement;"
                "return e.id || e.parentElement.id"
            )
        )
    expected = (
        "model version signature reload file predict threshold raw curl copy"
    )
    assert [name for name in expected.split() if name not in reached] == []
    live = browser.find_all("[role=status], [role=alert]")
    assert {element.get_attribute("id") for element in live} == {
        "listed",
        "error",
        "summary",
        "time",
        "copied",
    }


CONTRASTS = r"""
const rgb = (color) => color.match(/[\d.]+/g).map(Number);
const light = (color) => {
  const [r, g, b] = rgb(color).map((value) => {
    value /= 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  for (; element; element = element.parentElement) {
    const color = getComputedStyle(element).backgroundColor;
    if (rgb(color)[3] !== 0) return color;
  }
};
const contrast = (one, two) => {
  const [low, high] = [light(one), light(two)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
return [...document.querySelectorAll("body *")]
  .filter((element) => element.checkVisibility() && [...element.childNodes]
    .some((node) => node.nodeType === 3 && node.data.trim()))
  .map((element) => [
    contrast(getComputedStyle(element).color, ground(element)),
    element.outerHTML.slice(0, 80),
  ]);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser, reddish, tmp_path, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": features}
    )
    ground = browser.run(
        "return getComputedStyle(document.body).backgroundColor"
    )
    brightness = int(re.findall("[0-9]+", ground)[0])
    assert brightness > 200 if scheme == "light" else brightness < 50
    browser.pick("model", "detector")
    browser.choose(reddish)
    contrasts = browser.run(CONTRASTS)
    browser.pick("model", "unfit")
    contrasts += browser.run(CONTRASTS)
    assert len(contrasts) > 40
    assert [entry for entry in contrasts if entry[0] < 4.5] == []


def test_asks_no_other_host(browser, driver, site, reddish):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"http://127.0.0.1:{other.getsockname()[1]}/"
        told = driver.execute_async_script(
            "fetch(arguments[0], {mode: 'no-cors'})"
            ".then(() => arguments[1]('sent'), () => arguments[1]('refused'))",
            address,
        )
        assert told == "refused"
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.accept()
    driver.get_log("browser")
    driver.get_log("performance")
    browser.open()
    for model in ("shares", EVIL):
        browser.pick("model", model)
        browser.choose(reddish)
    events = [
        json.loads(entry["message"])["message"]
        for entry in driver.get_log("performance")
    ]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert site.url + "/v1/models/shares:predict" in urls
    for url in urls:
        assert url.startswith((site.url + "/", f"blob:{site.url}/", "data:"))


def test_markup_is_refused_by_the_browser(browser, driver):
    browser.run(
        """
        const script = document.createElement("script");
        try { script.textContent = "window.hacked = 1"; } catch {}
        document.body.append(script);
        try { document.body.innerHTML += "<img src=x onerror='hacked=1'>"; }
        catch {}
        """
    )
    assert browser.find_all("body > img") == []
    assert browser.run("return window.hacked") is None
    driver.get_log("browser")  # tells of both


def test_photo_is_shown_as_the_model_sees_it(browser, tmp_path):
    """Upright, as its camera asks: exported models turn it, browsers do."""
    # White on the left, which is the top when turned.
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    jpeg = tf.io.encode_jpeg(pixels).numpy()
    # One tag: orientation 6, a quarter turn.
    exif = bytes.fromhex(
        "ffe10022"
        "457869660000"
        "4d4d002a00000008"
        "0001"
        "0112000300000001"
        "00060000"
        "00000000"
    )
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg[:2] + exif + jpeg[2:])
    for model in ("detector", "pixels"):
        browser.pick("model", model)
        browser.choose(path)
        shown = browser.find("#preview").rect
        assert 2 * shown["width"] == pytest.approx(shown["height"], abs=1)
    browser.pick("signature", "serving_default")
    red = browser.answer()["predictions"][0][::3]
    assert red[0] > 0.9 and red[-1] < -0.9
