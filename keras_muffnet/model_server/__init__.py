"""An embedded model server that speaks TensorFlow Serving's REST and gRPC APIs.

`ModelServer` loads on first use, so that importing this package starts
neither TensorFlow nor a server.
"""

from typing import TYPE_CHECKING
from typing import Any

from keras_muffnet._optional import load_optional

if TYPE_CHECKING:
    from keras_muffnet.model_server.server import ModelServer

__all__ = ["ModelServer"]

_REQUIREMENTS = (
    "numpy",
    "google.protobuf",
    "uvicorn",
    "httptools",
    "uvloop",
    "orjson",
)


def __getattr__(name: str) -> Any:
    if name != "ModelServer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for requirement in _REQUIREMENTS:
        load_optional(requirement, "serving")
    from keras_muffnet.model_server.server import ModelServer

    return ModelServer
