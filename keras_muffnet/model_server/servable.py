"""One version of a model, loaded and ready to run."""

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import numpy as np

from keras_muffnet.model_server.errors import invalid_argument


@dataclass(frozen=True)
class Signature:
    """One way to call a model.

    Attributes:
        inputs: The dtype's name of each input, such as `"float32"`.
        outputs: The names of the outputs.
        run: Takes one array for each input, in order, and returns one array
            for each output. Strings are object arrays of `bytes`. Raises
            `ServingError`. Many threads may call it at a time.
        ranks: The rank of each input that `run` must not get in another rank.
    """

    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    run: Callable[..., list[np.ndarray]]
    ranks: Mapping[str, int] = field(default_factory=dict)

    def check_ranks(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Refuses inputs of a rank that would end the process.

        Raises:
            ServingError: An input has another rank than it must have.
        """
        for index, name in enumerate(self.inputs):
            rank = self.ranks.get(name)
            shape = inputs[name].shape
            if rank is not None and rank != len(shape):
                raise invalid_argument(
                    f"Expects arg[{index}] ({name}) to have rank {rank} but "
                    f"shape {list(shape)} is provided"
                )


@dataclass(frozen=True)
class Servable:
    """One version of a model, whatever runs it.

    Attributes:
        name: The model's name.
        version: The version's number.
        signatures: The signatures that can be run, by name.
        signature_defs: Every signature as the JSON form of its `SignatureDef`.
        close: Cancels what is running, where that is possible, and frees the
            model.
    """

    name: str
    version: int
    signatures: Mapping[str, Signature]
    signature_defs: Mapping[str, Mapping[str, Any]]
    close: Callable[[], None]

    def signature(self, key: str) -> Signature:
        """Returns the signature named `key`, for a request in JSON.

        Raises:
            ServingError: The model has no such signature, or it takes no
                inputs.
        """
        if key not in self.signature_defs:
            raise invalid_argument(
                f'Serving signature name: "{key}" not found in signature def'
            )
        signature = self.signatures.get(key)
        if signature is None or not signature.inputs:
            raise invalid_argument(
                f"Failed to get input map for signature: {key}"
            )
        return signature

    def run(
        self, signature: Signature, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Runs the model once. Many threads may do so at a time.

        Args:
            signature: One of this servable's signatures.
            inputs: An array for each of its inputs, of that input's dtype and
                any shape. Strings are object arrays of `bytes`.

        Returns:
            An array for each output, in the order of the outputs' names.

        Raises:
            ServingError: An input has a wrong rank, or an operation failed; it
                has that operation's code.
        """
        signature.check_ranks(inputs)
        arrays = [inputs[name] for name in signature.inputs]
        values = signature.run(*arrays)
        return dict(zip(signature.outputs, values, strict=True))
