"""Starts and stops the server."""

import logging
import os
import pathlib
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from collections.abc import Iterable
from concurrent.futures import Executor
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import uvicorn

from keras_muffnet._arguments import positive_integer
from keras_muffnet.model_server import configuration
from keras_muffnet.model_server.batching import Batcher
from keras_muffnet.model_server.batching import BatchingParameters
from keras_muffnet.model_server.configuration import ModelConfig
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.http_protocol import HttpProtocol
from keras_muffnet.model_server.loader import load
from keras_muffnet.model_server.manager import ModelManager
from keras_muffnet.model_server.manager import find_versions
from keras_muffnet.model_server.metrics import Metrics
from keras_muffnet.model_server.options import Certificate
from keras_muffnet.model_server.options import GrpcOptions
from keras_muffnet.model_server.options import Limits
from keras_muffnet.model_server.options import LoadOptions
from keras_muffnet.model_server.rest_service import App

logger = logging.getLogger(__name__)

# Requests in inference at a time; others wait. Those that wait for others of
# their batch count, hence more of them with batching.
_INFERENCE_THREADS = 32
_BATCHING_THREADS = 256
_KEEP_ALIVE = 75  # seconds that an idle connection stays open
_GRACE = 2  # seconds that a stop waits, for requests and then for inference


class ModelServer:
    """Serves models from threads of its own.

    ```python
    import os
    from keras_muffnet import export
    from keras_muffnet.model_server import ModelServer

    export.publish_litert("model.tflite", "served/flowers")
    folder = os.path.abspath("served/flowers")
    with ModelServer(folder, model_name="flowers") as server:
        url = f"{server.url}/v1/models/flowers:predict"
    ```

    The server answers from when `__enter__` returns, with every model loaded,
    until `__exit__` is called, which gives requests two seconds to finish and
    cancels the rest. Paths are those of files and folders on this machine.

    Args:
        model_base_path: Absolute path of the folder that holds one model for
            each version, in folders named by number. The largest is served.
        model_name: That model's name.
        model_config_file: A text proto `ModelServerConfig` with models and
            their versions and labels, instead of `model_base_path`.
        port: TCP port of REST; 0 picks a free one, None has no REST.
        grpc_port: TCP port of gRPC; 0 picks a free one, None has none.
        host: Address to listen on.
        runtime: `"tensorflow"` serves SavedModels, `"litert"` `.tflite` files,
            `"auto"` what a version's folder holds; of one that holds both
            LiteRT runs what it can, where it gives the same answers.
        enable_batching: Whether requests of several clients are joined.
        batching_parameters_file: A text proto `BatchingParameters`, for
            `enable_batching`.
        monitoring_config_file: A text proto `MonitoringConfig`.
        timeout: Seconds that a REST request may take.
        threads: REST requests that are answered at a time; 32 by default, and
            256 with batching.
        limits: How large a request may be.
        loading: How versions are loaded.
        grpc: How gRPC is served.
        ssl_config_file: A text proto `SSLConfig`, which turns on TLS for REST.
        file_system_poll_seconds: How often folders are looked at for versions;
            0 or less for never again.
        config_poll_seconds: How often `model_config_file` is read again; 0 for
            never.
        allow_labels_for_unavailable: Whether a new label may be given to a
            version that is not loaded.
        cors: Whether pages of other origins may use the REST API.
        show_page: Whether `GET /` answers with a page to try models on.

    Attributes:
        url: `http://HOST:PORT`, or `https`, while the server runs; "" without
            REST.
        grpc_port: The port of gRPC, while the server runs with it.

    Raises:
        ValueError: An argument or a file that it names is wrong, or, on
            `__enter__`, a model has no version that loads.
        ImportError: On `__enter__`, a package that is needed is not installed.
        OSError: A file cannot be read, or, on `__enter__`, a port cannot be
            listened on.
    """

    url: str

    def __init__(
        self,
        model_base_path: str | os.PathLike[str] | None = None,
        *,
        model_name: str = "default",
        model_config_file: str | os.PathLike[str] | None = None,
        port: int | None = 0,
        grpc_port: int | None = None,
        host: str = "127.0.0.1",
        runtime: str = "auto",
        enable_batching: bool = False,
        batching_parameters_file: str | os.PathLike[str] | None = None,
        monitoring_config_file: str | os.PathLike[str] | None = None,
        timeout: float = 30.0,
        threads: int | None = None,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        loading: LoadOptions = LoadOptions(),  # noqa: B008
        grpc: GrpcOptions = GrpcOptions(),  # noqa: B008
        ssl_config_file: str | os.PathLike[str] | None = None,
        file_system_poll_seconds: float = 1.0,
        config_poll_seconds: float = 0.0,
        allow_labels_for_unavailable: bool = False,
        cors: bool = False,
        show_page: bool = True,
    ):
        for name, number in (("port", port), ("grpc_port", grpc_port)):
            if number is not None and not 0 <= number <= 65535:
                raise ValueError(
                    f"`{name}` must be from 0 to 65535. "
                    f"Received: {name}={number}"
                )
        if port is None and grpc_port is None and not grpc.socket_path:
            raise ValueError(
                "One of `port`, `grpc_port` and `grpc.socket_path` must be "
                "given. Received: none"
            )
        if threads is not None:
            positive_integer("threads", threads)
        if runtime not in ("auto", "tensorflow", "litert"):
            raise ValueError(
                "`runtime` must be 'auto', 'tensorflow' or 'litert'. "
                f"Received: runtime={runtime!r}"
            )
        if not timeout > 0:
            raise ValueError(
                f"`timeout` must be a positive number. Received: {timeout}"
            )
        if (model_base_path is None) == (model_config_file is None):
            raise ValueError(
                "One of `model_base_path` and `model_config_file` must be "
                f"given. Received: {model_base_path!r}, {model_config_file!r}"
            )
        self._config_file = model_config_file
        if model_base_path is not None:
            self._configs = configuration.single_model(
                model_name, model_base_path
            )
        else:
            self._configs = self._read_configs()
        if batching_parameters_file is not None and not enable_batching:
            raise ValueError(
                "`batching_parameters_file` needs `enable_batching`. "
                f"Received: {os.fspath(batching_parameters_file)!r}"
            )
        self._batching: BatchingParameters | None = None
        if batching_parameters_file is not None:
            self._batching = configuration.read_batching_parameters(
                batching_parameters_file
            )
        elif enable_batching:
            self._batching = BatchingParameters()
        self._metrics_path: str | None = None
        if monitoring_config_file is not None:
            self._metrics_path = configuration.read_monitoring_config(
                monitoring_config_file
            )
        self._host = host
        self._port = port
        self._limits = limits
        self._loading = loading
        self._grpc = grpc
        self._certificate: Certificate | None = None
        if ssl_config_file is not None:
            self._certificate = configuration.read_certificate(ssl_config_file)
        if grpc.ssl_config_file is not None:
            # Before models are loaded, which takes a while.
            configuration.read_certificate(grpc.ssl_config_file)
        self.grpc_port = grpc_port
        self._runtime = runtime
        self._threads = threads or (
            _BATCHING_THREADS if enable_batching else _INFERENCE_THREADS
        )
        self._allow_labels = allow_labels_for_unavailable
        self._polls = (file_system_poll_seconds, config_poll_seconds)
        self._app_options: dict[str, Any] = {
            "timeout": timeout,
            "limits": limits,
            "cors": cors,
            "show_page": show_page,
        }

    def __enter__(self) -> "ModelServer":
        metrics = Metrics() if self._metrics_path else None
        with ExitStack() as undo:
            batcher = None
            if self._batching is not None:
                batcher = Batcher(self._batching, metrics)
            manager = ModelManager(
                partial(
                    load,
                    runtime=self._runtime,
                    batcher=batcher,
                    metrics=metrics,
                    options=self._loading,
                ),
                allow_labels_for_unavailable=self._allow_labels,
                retries=self._loading.retries,
                retry_seconds=self._loading.retry_seconds,
                metrics=metrics,
            )
            # Their threads start when they are needed.
            executor = ThreadPoolExecutor(self._threads)
            grpc_threads = self._grpc.threads or self._threads
            grpc_executor = ThreadPoolExecutor(grpc_threads)
            executors = (executor, grpc_executor)
            undo.callback(_release, manager, executors, batcher)
            try:
                manager.configure(self._configs)
            except ServingError as error:
                raise ValueError(str(error)) from error
            undo.callback(self._start_polling(manager))
            url = ""
            if self._port is not None:
                listener = undo.enter_context(_listen(self._host, self._port))
                app = App(
                    manager,
                    executor,
                    metrics=metrics,
                    metrics_path=self._metrics_path,
                    **self._app_options,
                )
                url = self._url(listener)
            if self.grpc_port is not None or self._grpc.socket_path:
                # Here, because its stubs import TensorFlow.
                from keras_muffnet.model_server.grpc_service import GrpcServer

                grpc_server = GrpcServer(
                    manager,
                    grpc_executor,
                    metrics,
                    (self._host, self.grpc_port),
                    self._limits,
                    self._grpc,
                    _GRACE,
                )
                undo.callback(grpc_server.close)
                self.grpc_port = grpc_server.port
            if url:
                undo.callback(_start(app, listener, self._certificate))
            self._undo = undo.pop_all()
        self._manager = manager
        self.url = url
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    @property
    def versions(self) -> dict[str, list[int]]:
        """The versions loaded of each model, newest first."""
        return self._manager.available()

    def missing_versions(self) -> dict[str, pathlib.Path]:
        """Returns the base paths of models that have no version to load yet."""
        return {
            config.name: config.base_path
            for config in self._configs
            if not config.policy.select(find_versions(config.base_path) or ())
        }

    def _url(self, listener: socket.socket) -> str:
        scheme = "http" if self._certificate is None else "https"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{scheme}://{host}:{listener.getsockname()[1]}"

    def _read_configs(self) -> list[ModelConfig]:
        assert self._config_file is not None
        return configuration.read_model_configs(self._config_file)

    def _start_polling(self, manager: ModelManager) -> Callable[[], None]:
        """Looks for new versions and configurations; returns what ends it."""
        stop = threading.Event()

        def repeat(task: Callable[[], None], seconds: float) -> None:
            reported = ""
            while not stop.wait(seconds):
                try:
                    task()
                except Exception as error:
                    if str(error) != reported:
                        logger.error("%s", error)
                    reported = str(error)
                else:
                    reported = ""

        def reload() -> None:
            # Applied each time, because gRPC may have set something else.
            manager.configure(self._read_configs())

        tasks = zip((manager.poll, reload), self._polls, strict=True)
        for task, seconds in tasks:
            if seconds > 0 and (task is not reload or self._config_file):
                threading.Thread(
                    target=repeat, args=(task, seconds), daemon=True
                ).start()
        return stop.set


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _start(
    app: App, listener: socket.socket, certificate: Certificate | None
) -> Callable[[], None]:
    """Runs the application in a thread; returns what stops it."""
    server = uvicorn.Server(_config(app, certificate))
    thread = threading.Thread(
        target=server.run,
        kwargs={"sockets": [listener]},
        name="model_server",
        daemon=True,
    )
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("The server's thread ended while it started.")
        time.sleep(0.01)

    def stop() -> None:
        server.should_exit = True
        thread.join(5 * _GRACE)

    return stop


def _release(
    manager: ModelManager,
    executors: Iterable[Executor],
    batcher: Batcher | None,
) -> None:
    """Frees the models; leaves behind what cannot be canceled."""

    def release() -> None:
        if batcher is not None:
            batcher.close()
        manager.close()
        for executor in executors:
            executor.shutdown(cancel_futures=True)

    thread = threading.Thread(target=release, daemon=True)
    thread.start()
    thread.join(_GRACE)


def _config(app: App, certificate: Certificate | None) -> uvicorn.Config:
    options: dict[str, Any] = {
        "http": HttpProtocol,
        "loop": "uvloop",
        "ws": "none",
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_keep_alive": _KEEP_ALIVE,
        "timeout_graceful_shutdown": _GRACE,
    }
    if certificate is None:
        return uvicorn.Config(app, **options)
    # Python's ssl reads files only.
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "ssl_keyfile": certificate.key,
            "ssl_certfile": certificate.chain,
            "ssl_ca_certs": certificate.client_authorities,
        }
        for name, text in files.items():
            if text:
                options[name] = os.path.join(folder, name)
                pathlib.Path(options[name]).write_text(text)
        if certificate.ask_clients:
            options["ssl_cert_reqs"] = ssl.CERT_REQUIRED
        config = uvicorn.Config(app, **options)
        config.load()
    return config
