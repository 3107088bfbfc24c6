"""TensorFlow Serving's gRPC services."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import grpc
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis import model_management_pb2
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_muffnet.model_server import configuration
from keras_muffnet.model_server import proto_api
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.limits import Limits
from keras_muffnet.model_server.manager import ModelManager
from keras_muffnet.model_server.metrics import Metrics

logger = logging.getLogger(__name__)

_MAX_DETAILS = 1024  # characters of an error
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    # A second server on a port in use must fail, not take half the requests.
    ("grpc.so_reuseport", 0),
]


class GrpcServer:
    """Serves gRPC from a thread with an event loop of its own.

    Args:
        manager: What to serve.
        executor: Where inference runs, so that the event loop stays free.
        metrics: Counts requests, if given.
        address: Host and port; port 0 picks a free one.
        limits: How large a request may be.
        grace: Seconds that a stop waits for requests.

    Attributes:
        port: The port listened on.

    Raises:
        OSError: The port cannot be listened on.
    """

    def __init__(
        self,
        manager: ModelManager,
        executor: Executor,
        metrics: Metrics | None,
        address: tuple[str, int],
        limits: Limits,
        grace: float,
    ):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="grpc_server", daemon=True
        )
        self._thread.start()
        self._grace = grace
        services = (
            _PredictionService(manager, executor, metrics, limits),
            _ModelService(manager, executor),
        )
        try:
            self.port = self._await(self._start(services, address, limits))
        except BaseException:
            self._end()
            raise

    async def _start(
        self, services: Any, address: tuple[str, int], limits: Limits
    ) -> int:
        # What is larger is answered RESOURCE_EXHAUSTED by the library.
        size = ("grpc.max_receive_message_length", limits.message)
        self._server = grpc.aio.server(options=[*_OPTIONS, size])
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            services[0], self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            services[1], self._server
        )
        host, port = address
        host = f"[{host}]" if ":" in host else host
        try:
            port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(
                f"Expected a port that is free. Received: port={port} on {host}"
            ) from error
        await self._server.start()
        return port

    def close(self) -> None:
        """Stops, once requests have had their time to finish."""
        self._await(self._server.stop(self._grace))
        self._end()

    def _await(self, awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _abort(context: Any, error: ServingError) -> None:
    details = str(error)
    if len(details) > _MAX_DETAILS:
        details = details[:_MAX_DETAILS] + "...TRUNCATED"
    await context.abort(_STATUS_CODES[error.code], details)


_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference, GetModelMetadata."""

    def __init__(
        self,
        manager: ModelManager,
        executor: Executor,
        metrics: Metrics | None,
        limits: Limits,
    ):
        self._manager = manager
        self._executor = executor
        self._metrics = metrics
        self._predict = partial(
            proto_api.predict, max_tensor_bytes=limits.tensor
        )

    async def Predict(self, request: Any, context: Any) -> Any:
        return await self._answer("Predict", self._predict, request, context)

    async def Classify(self, request: Any, context: Any) -> Any:
        return await self._answer(
            "Classify", proto_api.classify, request, context
        )

    async def Regress(self, request: Any, context: Any) -> Any:
        return await self._answer(
            "Regress", proto_api.regress, request, context
        )

    async def MultiInference(self, request: Any, context: Any) -> Any:
        return await self._answer(
            "MultiInference", proto_api.multi_inference, request, context
        )

    async def GetModelMetadata(self, request: Any, context: Any) -> Any:
        return await self._answer(
            "GetModelMetadata", proto_api.metadata, request, context
        )

    async def _answer(
        self,
        api: str,
        handle: Callable[[Any, Any], Any],
        request: Any,
        context: Any,
    ) -> Any:
        start = time.perf_counter()
        model, status = "", "OK"
        loop = asyncio.get_running_loop()
        try:
            model, version, label = _read_spec(request)
            return await loop.run_in_executor(
                self._executor,
                self._run,
                handle,
                request,
                model,
                version,
                label,
            )
        except ServingError as error:
            status = error.code.name
            await _abort(context, error)
        except Exception:
            status = Code.INTERNAL.name
            logger.exception("%s failed", api)
            await context.abort(grpc.StatusCode.INTERNAL, "Internal error")
        finally:
            if self._metrics is not None:
                seconds = time.perf_counter() - start
                self._metrics.observe(model, api, "GRPC", status, seconds)

    def _run(
        self,
        handle: Callable[[Any, Any], Any],
        request: Any,
        model: str,
        version: int | None,
        label: str | None,
    ) -> Any:
        with self._manager.lease(model, version, label) as servable:
            return handle(servable, request)


def _read_spec(request: Any) -> tuple[str, int | None, str | None]:
    """Returns the model's name, and its version or label where one is given."""
    # The tasks of a MultiInference are all for one model.
    message = request.tasks[0] if getattr(request, "tasks", None) else request
    if not (hasattr(message, "model_spec") and message.HasField("model_spec")):
        raise invalid_argument("Missing ModelSpec")
    spec = message.model_spec
    if not spec.name:
        raise invalid_argument("ModelSpec has no name specified.")
    chosen = spec.WhichOneof("version_choice")
    return (
        spec.name,
        spec.version.value if chosen == "version" else None,
        spec.version_label if chosen == "version_label" else None,
    )


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, manager: ModelManager, executor: Executor):
        self._manager = manager
        self._executor = executor

    async def GetModelStatus(self, request: Any, context: Any) -> Any:
        response = get_model_status_pb2.GetModelStatusResponse()
        try:
            model, version, _ = _read_spec(request)
            statuses = self._manager.statuses(model, version)
        except ServingError as error:
            await _abort(context, error)
            raise
        for status in statuses:
            entry = response.model_version_status.add(
                version=status.version, state=int(status.state)
            )
            if status.error is not None:
                entry.status.error_code = int(status.error.code)
                entry.status.error_message = str(status.error)
        return response

    async def HandleReloadConfigRequest(
        self, request: Any, context: Any
    ) -> Any:
        loop = asyncio.get_running_loop()
        try:
            configs = configuration.model_configs(request.config)
            await loop.run_in_executor(
                self._executor, self._manager.configure, configs
            )
        except ServingError as error:
            logger.warning("Configuration refused: %s", error)
            await _abort(context, error)
        return model_management_pb2.ReloadConfigResponse()
