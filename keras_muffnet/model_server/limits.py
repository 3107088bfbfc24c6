"""How large a request may be."""

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
