"""The model card: a page of text on an exported model."""

import importlib.metadata
import math
from collections.abc import Sequence

import keras

from keras_muffnet.detection.ssd import is_detector
from keras_muffnet.export.checks import image_shape

_PACKAGES = ("keras", "tensorflow")
# What a detector answers.
_OBJECTS = """\
`boxes`, `(y_min, x_min, y_max, x_max)` as shares of height and width,
  `scores`, `classes`, `num_detections`"""
_BYTES = """\
* `serving_bytes`: `image_bytes`, encoded images, strings `(batch,)`, to
  {outputs}.

Over REST:

    echo '{{"signature_name": "serving_bytes",
           "instances": [{{"b64": "'$(base64 -w0 photo.jpg)'"}}]}}' |
        curl -d @- http://localhost:8501/v1/models/{name}:predict
"""


def model_card(
    model: keras.Model,
    name: str,
    preprocessing: str,
    running: str,
    labels: Sequence[str] | None,
    takes_bytes: bool,
) -> str:
    """Returns the page, in Markdown.

    Args:
        model: the model that is exported.
        name: what it is called where it is served.
        preprocessing: how images are made ready for it.
        running: what became of its layers.
        labels: names of its classes, if they are known.
        takes_bytes: whether it has the signature `serving_bytes`.
    """
    height, width, channels = image_shape(model)
    trainable = sum(math.prod(w.shape) for w in model.trainable_weights)
    versions = [f"{p} {importlib.metadata.version(p)}" for p in _PACKAGES]
    classes, outputs = "not named", "`predictions`"
    if labels is not None:
        classes = f"{len(labels)}: {labels[0]} to {labels[-1]}"
    if is_detector(model):
        outputs = _OBJECTS + (", `labels`" if labels else "")
    default = outputs
    if labels is not None and not is_detector(model):
        outputs += ", and the best `classes` with their `scores`"
    facts = {
        "network": f"{model.name}, {len(model.layers)} layers",
        "parameters": f"{model.count_params():,}, {trainable:,} trainable",
        "input": f"{height or 'any'}x{width or 'any'}x{channels}",
        "images": preprocessing,
        "output": str(model.output_shape),
        "precision": model.dtype_policy.name,
        "graph": running,
        "classes": classes,
        "written with": ", ".join(versions),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    encoded = _BYTES.format(outputs=outputs, name=name) if takes_bytes else ""
    return f"""\
# {name}

| | |
|---|---|
{table}

Signatures, all for TF Serving's predict:

* `serving_default`: `images`, float32 `(batch, height, width, channels)`, to
  {default}.
{encoded}
`assets.extra/config.json` is the network's configuration, which
`keras.models.model_from_json` reads.
"""
