"""TensorFlow Serving's gRPC services."""

import contextlib
import importlib
import logging
import time
from collections.abc import Callable
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.apis import model_management_pb2
from tensorflow_serving.apis import model_service_pb2_grpc
from tensorflow_serving.apis import prediction_service_pb2_grpc

from keras_muffnet._optional import load_optional
from keras_muffnet.model_server import configuration
from keras_muffnet.model_server import proto_api
from keras_muffnet.model_server.errors import Code
from keras_muffnet.model_server.errors import ServingError
from keras_muffnet.model_server.errors import invalid_argument
from keras_muffnet.model_server.manager import ModelManager
from keras_muffnet.model_server.metrics import Metrics
from keras_muffnet.model_server.options import GrpcOptions
from keras_muffnet.model_server.options import Limits

logger = logging.getLogger(__name__)

_MAX_DETAILS = 1024  # characters of an error
_SERVICES = (
    "tensorflow.serving.ModelService",
    "tensorflow.serving.PredictionService",
)


class GrpcServer:
    """Serves gRPC.

    A request is answered by one thread from its beginning to its end: an event
    loop that hands it to a thread costs half as much again.
    What is left is mostly threads that wake each other, on several cores, for
    the interpreter's lock: an empty handler takes 120 us of processor time a
    request with 2 threads or on one core, 380 with 32 on two cores.

    Args:
        manager: What to serve.
        executor: The threads that answer requests.
        metrics: Counts requests, if given.
        address: Host and port; port 0 picks a free one, None has the socket of
            `options` alone.
        limits: How large a request may be.
        options: How they are served.
        grace: Seconds that a stop waits for requests.

    Attributes:
        port: The port listened on, or None.

    Raises:
        OSError: The port or the socket cannot be listened on.
        ImportError: The package of a service that `options` ask for is not
            installed.
    """

    def __init__(
        self,
        manager: ModelManager,
        executor: ThreadPoolExecutor,
        metrics: Metrics | None,
        address: tuple[str, int | None],
        limits: Limits,
        options: GrpcOptions,
        grace: float,
    ):
        self._grace = grace
        arguments: Sequence[tuple[str, int | str]] = [
            ("grpc.max_send_message_length", -1),
            # What is larger is answered RESOURCE_EXHAUSTED by the library.
            ("grpc.max_receive_message_length", limits.message),
            # A second server on a port in use must fail, not take half the
            # requests.
            ("grpc.so_reuseport", 0),
            *options.channel_arguments,
        ]
        server = self._server = grpc.server(executor, options=arguments)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _PredictionService(manager, metrics, limits, options), server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            _ModelService(manager), server
        )
        if options.health:
            _add_health(server)
        if options.reflection:
            _add_reflection(server, options.health)
        self.port = _listen(server, address, options)
        server.start()

    def close(self) -> None:
        """Stops, once requests have had their time to finish."""
        self._server.stop(self._grace).wait()


def _listen(
    server: grpc.Server, address: tuple[str, int | None], options: GrpcOptions
) -> int | None:
    host, port = address
    if options.socket_path:
        try:
            server.add_insecure_port(f"unix:{options.socket_path}")
        except RuntimeError as error:
            raise OSError(
                "Expected the path of a UNIX socket that can be made. "
                f"Received: {options.socket_path}"
            ) from error
    if port is None:
        return None
    host = f"[{host}]" if ":" in host else host
    certificate = None
    if options.ssl_config_file is not None:
        certificate = configuration.read_certificate(options.ssl_config_file)
    try:
        if certificate is None:
            return server.add_insecure_port(f"{host}:{port}")
        credentials = grpc.ssl_server_credentials(
            [(certificate.key.encode(), certificate.chain.encode())],
            certificate.client_authorities.encode() or None,
            certificate.ask_clients,
        )
        return server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        raise OSError(
            "Expected a port that is free and, for TLS, a key with its "
            f"certificate. Received: port={port} on {host}"
        ) from error


def _add_health(server: grpc.Server) -> None:
    health = load_optional("grpc_health.v1.health", "serving")
    messages = load_optional("grpc_health.v1.health_pb2", "serving")
    service = load_optional("grpc_health.v1.health_pb2_grpc", "serving")

    # The models are loaded before the server starts. The whole server is "".
    servicer = health.HealthServicer()
    for name in ("", *_SERVICES):
        servicer.set(name, messages.HealthCheckResponse.SERVING)
    service.add_HealthServicer_to_server(servicer, server)


def _add_reflection(server: grpc.Server, has_health: bool) -> None:
    reflection = load_optional("grpc_reflection.v1alpha.reflection", "serving")
    # Describe the services. Those before tensorflow-serving-api 2.21 are of a
    # protobuf that is long gone; clients then see the services' names alone.
    with contextlib.suppress(AttributeError):
        importlib.import_module("tensorflow_serving.apis.model_service_pb2")
        importlib.import_module(
            "tensorflow_serving.apis.prediction_service_pb2"
        )
    names = [*_SERVICES, reflection.SERVICE_NAME]
    names += ["grpc.health.v1.Health"] if has_health else []
    reflection.enable_server_reflection(names, server)


def _abort(context: grpc.ServicerContext, error: ServingError) -> None:
    details = str(error)
    if len(details) > _MAX_DETAILS:
        details = details[:_MAX_DETAILS] + "...TRUNCATED"
    context.abort(_STATUS_CODES[error.code], details)


_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference, GetModelMetadata."""

    def __init__(
        self,
        manager: ModelManager,
        metrics: Metrics | None,
        limits: Limits,
        options: GrpcOptions,
    ):
        self._manager = manager
        self._metrics = metrics
        self._predict = partial(
            proto_api.predict,
            max_tensor_bytes=limits.tensor,
            as_content=options.tensor_content,
        )

    def Predict(self, request: Any, context: Any) -> Any:
        return self._answer("Predict", self._predict, request, context)

    def Classify(self, request: Any, context: Any) -> Any:
        return self._answer("Classify", proto_api.classify, request, context)

    def Regress(self, request: Any, context: Any) -> Any:
        return self._answer("Regress", proto_api.regress, request, context)

    def MultiInference(self, request: Any, context: Any) -> Any:
        handle = proto_api.multi_inference
        return self._answer("MultiInference", handle, request, context)

    def GetModelMetadata(self, request: Any, context: Any) -> Any:
        handle = proto_api.metadata
        return self._answer("GetModelMetadata", handle, request, context)

    def _answer(
        self,
        api: str,
        handle: Callable[[Any, Any], Any],
        request: Any,
        context: Any,
    ) -> Any:
        start = time.perf_counter()
        model, status = "", "OK"
        try:
            model, version, label = _read_spec(request)
            with self._manager.lease(model, version, label) as servable:
                return handle(servable, request)
        except ServingError as error:
            status = error.code.name
            _abort(context, error)
        except Exception:
            status = Code.INTERNAL.name
            logger.exception("%s failed", api)
            context.abort(grpc.StatusCode.INTERNAL, "Internal error")
        finally:
            if self._metrics is not None:
                seconds = time.perf_counter() - start
                self._metrics.observe(model, api, "GRPC", status, seconds)


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

    def __init__(self, manager: ModelManager):
        self._manager = manager

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        response = get_model_status_pb2.GetModelStatusResponse()
        try:
            model, version, _ = _read_spec(request)
            statuses = self._manager.statuses(model, version)
        except ServingError as error:
            _abort(context, error)
            raise
        for status in statuses:
            entry = response.model_version_status.add(
                version=status.version, state=int(status.state)
            )
            if status.error is not None:
                entry.status.error_code = int(status.error.code)
                entry.status.error_message = str(status.error)
        return response

    def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:
        try:
            self._manager.configure(configuration.model_configs(request.config))
        except ServingError as error:
            logger.warning("Configuration refused: %s", error)
            _abort(context, error)
        return model_management_pb2.ReloadConfigResponse()
