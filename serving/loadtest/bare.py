"""The model without a server: exports it, writes requests, calls it.

A command per line of input, as JSON, a result per line. It is a process of its
own, which run.py starts, so that TensorFlow is in no other's way.
"""

import base64
import functools
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import orjson
import tensorflow as tf

from keras_muffnet import MuffNet
from keras_muffnet.export import export_litert
from keras_muffnet.export import export_saved_model
from keras_muffnet.export import publish_litert
from keras_muffnet.export.saved_model import decode_images
from keras_muffnet.quantization import quantize_post_training

_IMAGES = 8
_PHOTO = (375, 500)  # height and width, as of most images of ImageNet


def main() -> None:
    """Runs commands until the input ends."""
    commands: dict[str, Any]
    commands = {"export": export, "write_bodies": write_bodies, "call": call}
    for line in sys.stdin:
        values = json.loads(line)
        result = commands[values.pop("command")](**values)
        print(json.dumps(result), flush=True)


def export(base_path: str, tiny: bool, form: str = "folded") -> None:
    """Exports MuffNet 0.5 at 224x224, or a model that costs next to nothing.

    Args:
        base_path: the folder of the versions.
        tiny: whether the model costs next to nothing.
        form: "folded" and "layers" are SavedModels, "litert_float" is a version
            that holds both formats, and "litert_int8" a LiteRT file.
    """
    keras.utils.set_random_seed(0)
    model = MuffNet(alpha=0.5)
    if tiny:
        layers = [keras.layers.Flatten(), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.tflite")
        if form == "litert_int8":
            rng = np.random.default_rng(0)
            images = rng.uniform(-1, 0.99, (8, *model.input_shape[1:]))
            quantize_post_training(model, images.astype(np.float32), path)
            publish_litert(path, base_path)
            return
        if form == "litert_float":
            export_litert(model, path)
        export_saved_model(
            model,
            base_path,
            fold=form != "layers",
            litert=path if form == "litert_float" else None,
        )


def write_bodies(path: str, folder: str) -> dict[str, list[str]]:
    """Writes requests of one image each; returns the files by signature.

    Args:
        path: the SavedModel, whose input size the float images have.
        folder: where to write.
    """
    files: dict[str, list[str]] = {}
    for signature, images in _inputs(path).items():
        files[signature] = []
        for number, image in enumerate(images.numpy()):
            if signature == "serving_bytes":
                image = {"b64": base64.b64encode(image).decode()}
            body = {"signature_name": signature, "instances": [image]}
            file = pathlib.Path(folder, f"{signature}-{number}.json")
            file.write_bytes(
                orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
            )
            files[signature].append(str(file))
    return files


def call(
    path: str, signature: str, batch: int, seconds: float
) -> dict[str, Any]:
    """Calls a signature again and again with one batch.

    Returns:
        The form of the load generator's results, with images as requests and
        the latency of the whole call.
    """
    images = _inputs(path)[signature]
    images = tf.gather(images, [i % _IMAGES for i in range(batch)])
    name = "image_bytes" if signature == "serving_bytes" else "images"
    predict = _load(path).signatures[signature]
    predict(**{name: images})  # the first call of a shape prepares for others
    latencies = []
    begin = end = time.perf_counter()
    while end < begin + seconds:
        start = end
        predict(**{name: images})["predictions"].numpy()
        end = time.perf_counter()
        latencies.append(round(1000 * (end - start), 3))
    return {
        "requests": len(latencies) * batch,
        "failures": {},
        "latencies": latencies,
        "throughput": len(latencies) * batch / (end - begin),
        "generator_cpu": None,
    }


@functools.cache
def _load(path: str) -> Any:
    return tf.saved_model.load(path)


@functools.cache
def _inputs(path: str) -> dict[str, tf.Tensor]:
    """Makes the same images in each of the two forms."""
    signature = _load(path).signatures["serving_default"]
    shape = signature.structured_input_signature[1]["images"].shape[1:]
    photos = tf.stack([_make_photo(seed) for seed in range(_IMAGES)])
    return {
        "serving_bytes": photos,
        "serving_default": decode_images(photos, *shape),
    }


def _make_photo(seed: int) -> tf.Tensor:
    """Makes a JPEG of some 50 kB: noise of all scales, as photographs have."""
    random = np.random.default_rng(seed)
    pixels = np.full((*_PHOTO, 3), 128.0)
    for size in (2, 4, 8, 16, 32, 64, 128, 256):
        noise = random.normal(scale=100 / size**0.5, size=(size, size, 3))
        pixels += tf.image.resize(noise, _PHOTO, "bicubic").numpy()
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return tf.io.encode_jpeg(pixels, quality=90)


if __name__ == "__main__":
    main()
