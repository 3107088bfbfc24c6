"""Requests that a SavedModel carries, to be run before it is served.

The first run of a graph is slow; these are TensorFlow Serving's way to have it
over with: a TFRecord file of `PredictionLog`s in the version's folder.
"""

import logging
import os
import pathlib
import time

import tensorflow as tf

from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.servable import Servable

logger = logging.getLogger(__name__)

PATH = "assets.extra/tf_serving_warmup_requests"
MAX_REQUESTS = 1000


def warm_up(
    servable: Servable, path: str | os.PathLike[str], iterations: int = 1
) -> None:
    """Runs a version's warm-up requests, if it has some.

    Args:
        servable: The version.
        path: Its folder.
        iterations: How often each request is run.

    Raises:
        ServingError: The file is damaged, or a request failed.
    """
    file = pathlib.Path(path, PATH)
    if not file.exists():
        return
    # Here, because what has no such file does not need the package.
    from tensorflow_serving.apis import prediction_log_pb2

    from keras_muffnet.model_server import proto_api

    handlers = {
        "predict_log": proto_api.predict,
        "classify_log": proto_api.classify,
        "regress_log": proto_api.regress,
        "multi_inference_log": proto_api.multi_inference,
    }
    start = time.perf_counter()
    count = 0
    try:
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            count += 1
            if count > MAX_REQUESTS:
                raise invalid_argument(
                    f"Expected at most {MAX_REQUESTS} warm-up requests in "
                    f"{file}. Received more"
                )
            log = prediction_log_pb2.PredictionLog.FromString(record)
            kind = log.WhichOneof("log_type")
            if kind not in handlers:
                raise invalid_argument(
                    f"Unsupported log type for warm-up: {kind}"
                )
            for _ in range(iterations):
                handlers[kind](servable, getattr(log, kind).request)
        if not count and file.stat().st_size:
            # Less than a record's head is read as the end of the file.
            raise ValueError("less than a record")
    except ServingError as error:
        raise ServingError(
            error.code, f"Warm-up request {count} of {file} failed: {error}"
        ) from error
    except Exception as error:
        raise invalid_argument(
            f"Expected a TFRecord file of PredictionLogs in {file}. "
            f"Received: {' '.join(str(error).split())}"
        ) from error
    logger.info(
        "%s version %d warmed up with %d requests in %.2f s",
        servable.name,
        servable.version,
        count,
        time.perf_counter() - start,
    )
