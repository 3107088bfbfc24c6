"""Starts and stops the server."""

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from keras_muffnet.model_server.app import App

if TYPE_CHECKING:
    from keras_muffnet.model_server.servable import Servable

_INFERENCE_THREADS = 32  # requests in inference at a time; others wait
_KEEP_ALIVE = 75  # seconds that an idle connection stays open
_GRACE = 2  # seconds that a stop waits, for requests and then for inference


class ModelServer:
    """Serves the latest version of a SavedModel from a thread.

    ```python
    with ModelServer("/models/muffnet", model_name="muffnet") as server:
        url = f"{server.url}/v1/models/muffnet:predict"
    ```

    The server answers from when `__enter__` returns until `__exit__` is called,
    which gives requests two seconds to finish and cancels the rest.

    Args:
        model_base_path: Absolute path of the folder that holds one SavedModel
            for each version, in folders named by number.
        model_name: The model's name in URLs.
        port: TCP port; 0 picks a free one.
        host: Address to listen on.

    Attributes:
        url: `http://HOST:PORT`, while the server runs.
        version: The number of the version served, while the server runs.

    Raises:
        ValueError: `model_base_path` is no absolute path of a folder with a
            version in it, `port` is no port, or, on `__enter__`, the latest
            version is no SavedModel.
        OSError: On `__enter__`, the port cannot be listened on.
    """

    url: str
    version: int

    def __init__(
        self,
        model_base_path: str | os.PathLike,
        *,
        model_name: str = "default",
        port: int = 0,
        host: str = "127.0.0.1",
    ):
        if not 0 <= port <= 65535:
            raise ValueError(
                f"`port` must be from 0 to 65535. Received: port={port}"
            )
        self._path = _latest_version(Path(model_base_path))
        self._model_name = model_name
        self._address = (host, port)

    def __enter__(self) -> "ModelServer":
        # Here, because it imports TensorFlow.
        from keras_muffnet.model_server.servable import Servable

        version = int(self._path.name)
        with ExitStack() as undo:
            servable = Servable(self._path, self._model_name, version)
            executor = ThreadPoolExecutor(_INFERENCE_THREADS)
            undo.callback(_release, servable, executor)
            listener = undo.enter_context(socket.create_server(self._address))
            host, port = listener.getsockname()
            undo.callback(_start(App(servable, executor), listener))
            self._undo = undo.pop_all()
        self.url = f"http://{host}:{port}"
        self.version = version
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()


def _start(app: App, listener: socket.socket) -> Callable[[], None]:
    """Runs the application in a thread; returns what stops it."""
    server = uvicorn.Server(_config(app))
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, name="model_server"
    )
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("The server's thread ended while it started.")
        time.sleep(0.01)

    def stop() -> None:
        server.should_exit = True
        thread.join()

    return stop


def _release(servable: "Servable", executor: Executor) -> None:
    """Frees the model; leaves behind an inference that cannot be cancelled."""

    def release() -> None:
        servable.close()
        executor.shutdown(cancel_futures=True)

    thread = threading.Thread(target=release, daemon=True)
    thread.start()
    thread.join(_GRACE)


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_GRACE,
    )


def _latest_version(base_path: Path) -> Path:
    if not base_path.is_absolute() or not base_path.is_dir():
        raise ValueError(
            "`model_base_path` must be the absolute path of a folder. "
            f"Received: model_base_path={str(base_path)!r}"
        )
    versions = [
        path
        for path in base_path.iterdir()
        if path.name.isascii() and path.name.isdecimal() and path.is_dir()
    ]
    if not versions:
        raise ValueError(
            "`model_base_path` must hold a folder named by a version number, "
            f"such as 1. Received: model_base_path={str(base_path)!r}"
        )
    return max(versions, key=lambda path: int(path.name))
