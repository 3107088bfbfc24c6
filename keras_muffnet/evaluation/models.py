"""Models by the name that they ship under, or by the file they were saved as.

What is loaded is a classifier or a detector: `load_model` finds out which.
"""

import os
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras

from keras_muffnet._arguments import positive_number
from keras_muffnet._optional import load_optional
from keras_muffnet.blocks import image_shape
from keras_muffnet.detection.ssd import is_detector
from keras_muffnet.detection.ssd import pretrained_ssd
from keras_muffnet.evaluation import classifiers
from keras_muffnet.evaluation import detectors
from keras_muffnet.evaluation.classifiers import Normalization
from keras_muffnet.evaluation.classifiers import Predictor
from keras_muffnet.evaluation.detectors import Detector
from keras_muffnet.layers import ImageInput
from keras_muffnet.litert.model import EXTRA
from keras_muffnet.muffnet import MuffNet
from keras_muffnet.preprocessing import Preprocessing
from keras_muffnet.preprocessing import preprocessing_of
from keras_muffnet.published import published_detectors
from keras_muffnet.published import published_weights

# Names of classes that an error lists.
_SHOWN = 10


def load_model(
    model: str | os.PathLike[str],
    *,
    network: Mapping[str, Any] | None = None,
    normalization: Normalization | None = None,
) -> Predictor | Detector:
    """Loads a classifier or a detector, whatever it was saved as.

    ```python
    from keras_muffnet import data, evaluation

    model = evaluation.load_model("cifar10")
    photos = data.load_images("photos", "test", model.size)
    scores = model.predict(photos.images.astype("float32"))
    ```

    Args:
        model: the name of one that ships, a key of
            `keras_muffnet.published_weights()` or `published_detectors()`; a
            `.keras` file; the weights of a MuffNet, `.weights.h5`; a
            SavedModel, or a folder of its versions, of which the latest is
            taken; or a `.tflite` file.
        network: for weights, the arguments of `keras_muffnet.MuffNet`.
        normalization: mean and standard deviation that a classifier's pixels
            are scaled with. By default what the model was saved with, nothing
            for a Keras model whose first layer scales, and (128, 128)
            otherwise. Those of detectors are scaled by
            `keras_muffnet.preprocess_input`.

    Raises:
        ValueError: if `model` is none of these, does not take one image of
            three channels, or gives neither scores nor objects; if an
            argument is given that does not belong to it; or if the standard
            deviation is not positive.
        OSError: if a file is damaged.
        ImportError: if the package that runs the file is not installed.
    """
    if normalization is not None:
        positive_number("normalization[1]", normalization[1])
    path = pathlib.Path(model)
    # The images of a model that ships may be in a folder of its name.
    ships = os.fspath(model) in {*published_weights(), *published_detectors()}
    if path.is_dir() and not ships:
        _refuse_network(model, network)
        folder = latest_version(path)
        tf = load_optional("tensorflow", "tensorflow")
        loaded = tf.saved_model.load(str(folder))
        signature = loaded.signatures["serving_default"]
        if detectors.gives_objects(signature.structured_outputs):
            _refuse_normalization(model, normalization)
            return detectors.from_saved_model(loaded, folder)
        return classifiers.from_saved_model(loaded, folder, normalization)
    if path.suffix == ".tflite" and path.is_file():
        _refuse_network(model, network)
        if detectors.gives_objects(_litert_outputs(path)):
            _refuse_normalization(model, normalization)
            return detectors.from_litert(path)
        return classifiers.from_litert(path, normalization)
    built = load_keras_model(model, network)
    if is_detector(built):
        _refuse_normalization(model, normalization)
        names = class_names_of(built, model)
        return detectors.from_keras(built)._replace(class_names=names)
    return classifiers.from_keras(built, normalization)


def load_predictor(
    model: str | os.PathLike[str],
    *,
    network: Mapping[str, Any] | None = None,
    normalization: Normalization | None = None,
) -> Predictor:
    """Loads a classifier; see `load_model`.

    Raises:
        ValueError: as there, or if it is a detector.
        OSError: if a file is damaged.
        ImportError: if the package that runs the file is not installed.
    """
    found = load_model(model, network=network, normalization=normalization)
    if not isinstance(found, Predictor):
        raise ValueError(
            "`model` must be a classifier. Received: the detector "
            f"{os.fspath(model)!r}"
        )
    return found


def load_detector(model: str | os.PathLike[str]) -> Detector:
    """Loads a detector; see `load_model`.

    ```python
    import numpy as np
    from keras_muffnet import evaluation

    cells = evaluation.load_detector("bccd")
    found = cells.detect(np.zeros((1, *cells.size, 3), "float32"))
    ```

    Raises:
        ValueError: as there, or if it is not a detector.
        OSError: if a file is damaged.
        ImportError: if the package that runs the file is not installed.
    """
    found = load_model(model)
    if not isinstance(found, Detector):
        raise ValueError(
            "`model` must be a detector. Received: the classifier "
            f"{os.fspath(model)!r}"
        )
    return found


def load_keras_model(
    model: str | os.PathLike[str],
    network: Mapping[str, Any] | None = None,
) -> keras.Model:
    """Loads a model as Keras's own, to train, quantize or export.

    ```python
    from keras_muffnet import evaluation

    model = evaluation.load_keras_model("cifar10", {"alpha": 0.5})
    ```

    Args:
        model: the name of one that ships, a `.keras` file or the weights of a
            MuffNet, `.weights.h5`.
        network: for weights, the arguments of `keras_muffnet.MuffNet`. Of a
            classifier that ships `alpha` alone.

    Returns:
        A `keras.Model`, not compiled.

    Raises:
        ValueError: if `model` is none of these, or `network` does not belong
            to it.
        OSError: if the file is damaged.
    """
    name = os.fspath(model)
    if name in published_detectors():
        _refuse_network(model, network)
        return pretrained_ssd(name)
    if name in published_weights():
        entry = published_weights()[name]
        given = dict(network or {})
        alpha = given.pop("alpha", min(entry.sha256))
        _refuse_network(model, given)
        known = Preprocessing(entry.crop, class_names=entry.class_names)
        image = ImageInput(known.get_config(), shape=image_shape(entry.size))
        return MuffNet(
            input_tensor=image.output,
            alpha=alpha,
            classes=len(entry.class_names),
            stem=entry.stem,
            weights=name,
        )
    path = pathlib.Path(model)
    if not path.exists():
        names = ", ".join([*published_weights(), *published_detectors()])
        raise ValueError(
            f"`model` must be an existing file or folder, or one of {names}. "
            f"Received: model={name!r}"
        )
    if path.suffix == ".keras":
        _refuse_network(model, network)
        return keras.saving.load_model(path, compile=False)
    if path.suffix == ".h5":
        if not network:
            raise ValueError(
                "`network` must be given for weights. "
                f"Received: model={name!r}, network={network!r}"
            )
        return MuffNet(weights=path, **network)
    raise ValueError(
        "`model` must end in .keras or .weights.h5 to be loaded into Keras; a "
        ".tflite file or a folder of a SavedModel can be evaluated alone. "
        f"Received: model={name!r}"
        if path.is_dir() or path.suffix == ".tflite"
        else "`model` must end in .keras, .weights.h5 or .tflite, or be a "
        f"folder that holds a SavedModel. Received: model={name!r}"
    )


def class_names_of(
    built: keras.Model, model: str | os.PathLike[str]
) -> tuple[str, ...]:
    """Returns the classes that a Keras model was trained on; () if unknown.

    Args:
        built: the model.
        model: what `load_keras_model` loaded it by.
    """
    entry = published_detectors().get(os.fspath(model))
    return entry.class_names if entry else preprocessing_of(built).class_names


def latest_version(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a SavedModel, or of the latest of its versions.

    Raises:
        ValueError: if it is none and has none.
    """
    if (folder / "saved_model.pb").exists():
        return folder
    versions = [p for p in folder.iterdir() if p.name.isdecimal()]
    if not versions:
        raise ValueError(
            "`model` must hold saved_model.pb, or versions of a SavedModel "
            f"in folders named 1, 2, ... Received: model={str(folder)!r}"
        )
    return max(versions, key=lambda p: int(p.name))


def check_classes(
    class_names: Sequence[str],
    model_names: Sequence[str],
    model_classes: int | None = None,
) -> None:
    """Compares the classes of images with those of a model.

    Args:
        class_names: those of the images, in order.
        model_names: those of the model, in order; empty where it does not say.
        model_classes: how many it has; None where it does not say.

    Raises:
        ValueError: if they are others, or stand in another order.
    """
    if model_names:
        if tuple(class_names) == tuple(model_names):
            return
        wanted = f"the classes of the model, {_listed(model_names)}"
    elif model_classes in (None, len(class_names)):
        return
    else:
        wanted = f"the {model_classes} classes of the model"
    raise ValueError(
        f"`data` must have {wanted}, in that order. "
        f"Received: {_listed(class_names)}"
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    tail = f" and {more} more" if more > 0 else ""
    return ", ".join(names[:_SHOWN]) + tail


def _litert_outputs(path: pathlib.Path) -> tuple[str, ...]:
    litert = load_optional("ai_edge_litert.interpreter", EXTRA)
    try:
        interpreter = litert.Interpreter(model_path=str(path))
    except (RuntimeError, ValueError) as error:
        raise OSError(f"{str(path)!r} is damaged: {error}") from error
    signatures = interpreter.get_signature_list()
    return tuple(signatures.get("serving_default", {}).get("outputs", ()))


def _refuse_network(
    model: str | os.PathLike[str], network: Mapping[str, Any] | None
) -> None:
    if network:
        raise ValueError(
            f"{', '.join(f'`{name}`' for name in network)} must be left out "
            "except for the weights of a MuffNet. "
            f"Received: model={os.fspath(model)!r}"
        )


def _refuse_normalization(
    model: str | os.PathLike[str], normalization: Normalization | None
) -> None:
    if normalization is not None:
        raise ValueError(
            "`normalization` must be left out for a detector, whose pixels "
            "`keras_muffnet.preprocess_input` scales. "
            f"Received: normalization={normalization}, "
            f"model={os.fspath(model)!r}"
        )
