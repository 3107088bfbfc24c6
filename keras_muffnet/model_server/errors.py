"""The one error that a request can end in."""

import enum


class Code(enum.IntEnum):
    """Canonical status codes, numbered as in TensorFlow and gRPC."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServingError(Exception):
    """A request that cannot be answered.

    Args:
        code: What kind of failure; a transport maps it to its own status.
        message: The text that the client reads.
    """

    def __init__(self, code: Code, message: str):
        super().__init__(message)
        self.code = code


def invalid_argument(message: str) -> ServingError:
    """Returns the error for a request that is wrong in itself."""
    return ServingError(Code.INVALID_ARGUMENT, message)
