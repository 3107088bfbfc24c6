"""The server's options, beside its models."""

import dataclasses

from keras_muffnet._arguments import positive_integer


@dataclasses.dataclass(frozen=True)
class Limits:
    """The bytes that one request may take.

    The defaults are beyond what clients send: 256 MiB of JSON are some eighty
    images of 224 x 224 pixels with all digits, or some thousand photos as
    base64.

    Attributes:
        body: Of a REST request's body, as it is sent.
        unpacked_body: Of that body unpacked, where it comes as gzip.
            TensorFlow Serving's own limit is the default.
        message: Of a gRPC message.
        tensor: Of one tensor of a gRPC message, which may be small itself.

    Raises:
        ValueError: A limit is not a positive integer.
    """

    body: int = 256 * 2**20
    unpacked_body: int = 100 * 2**20
    message: int = 2**30
    tensor: int = 2**30

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            positive_integer(field.name, getattr(self, field.name))


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """How a SavedModel is loaded.

    Attributes:
        tags: Of the graph in the SavedModel that is served.
        session_config_file: A text proto `ConfigProto` of TensorFlow's, or "".
        intra_op_threads: Threads of one operation; 0 for one a CPU.
        inter_op_threads: Operations at a time; 0 for one a CPU.
        gpu_memory_fraction: The part of a GPU's memory that is taken at once;
            0 to take it as it is needed.
        warm_up: Whether the version's warm-up requests are run.
        warm_up_iterations: How often each of them is.
        prefer_tflite: Whether a `.tflite` file is served where a version has
            both that and a SavedModel.
        retries: How often a version that does not load is loaded again.
        retry_seconds: The time between two attempts.
        batching_per_version: Whether each version is batched by the file
            `batching_params.pbtxt` in its folder, those without one not at all.
    """

    tags: frozenset[str] = frozenset({"serve"})
    session_config_file: str = ""
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    gpu_memory_fraction: float = 0.0
    warm_up: bool = True
    warm_up_iterations: int = 1
    prefer_tflite: bool = False
    retries: int = 5
    retry_seconds: float = 60.0
    batching_per_version: bool = False


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What TLS needs: TensorFlow Serving's `SSLConfig`, all in PEM.

    Attributes:
        key: The server's private key.
        chain: The server's certificate, and those that sign it.
        client_authorities: The certificates that sign those of clients, or "".
        ask_clients: Whether a client must show a certificate.
    """

    key: str = dataclasses.field(repr=False)
    chain: str
    client_authorities: str = ""
    ask_clients: bool = False


@dataclasses.dataclass(frozen=True)
class GrpcOptions:
    """How gRPC is served.

    Attributes:
        threads: Requests that are answered at a time.
        socket_path: A UNIX socket to listen on, beside the port if there is
            one, or "".
        channel_arguments: The library's own, by name.
        ssl_config_file: A text proto `SSLConfig`, which turns on TLS, or None.
        health: Whether `grpc.health.v1.Health` is served.
        reflection: Whether clients may ask which services there are.
        tensor_content: Whether answers hold their values as bytes, which is
            faster, in place of numbers.

    Raises:
        ValueError: `threads` is not a positive integer.
    """

    threads: int | None = None
    socket_path: str = ""
    channel_arguments: tuple[tuple[str, int | str], ...] = ()
    ssl_config_file: str | None = None
    health: bool = False
    reflection: bool = False
    tensor_content: bool = False

    def __post_init__(self) -> None:
        if self.threads is not None:
            positive_integer("threads", self.threads)
