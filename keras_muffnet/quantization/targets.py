"""What runs int8 files, and what each of these runtimes cannot run.

LiteRT itself runs all that is written here. The others differ in the
operations that they have in int8, and by whether they take a scale for each
output channel of a dense kernel:

- "tflite-micro": TensorFlow Lite Micro, any release since 2021.
- "ethos-u": Arm's Ethos-U NPUs; the file is to be compiled by Vela.
- "edge-tpu": Coral's Edge TPU; the file is to be compiled by its compiler.
- "nnapi": Android's Neural Networks API, from Android 11 on.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING
from typing import Any
from typing import Literal
from typing import NamedTuple
from typing import get_args

from keras_muffnet.litert import read_operations
from keras_muffnet.litert.model import find_departures
from keras_muffnet.litert.scales import count_dense_scales

if TYPE_CHECKING:
    # It imports Keras and, with it, its backend.
    from keras_muffnet.quantization.steps import Step

TargetName = Literal["litert", "tflite-micro", "ethos-u", "edge-tpu", "nnapi"]

# Those that all of them have.
_COMMON = (
    "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D "
    "FULLY_CONNECTED LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PAD PRELU "
    "QUANTIZE RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SLICE "
    "SOFTMAX SPLIT SQUEEZE STRIDED_SLICE SUB TANH TRANSPOSE TRANSPOSE_CONV"
)


class Target(NamedTuple):
    """A runtime of int8 files.

    Attributes:
        title: what it is called.
        operations: those that it has in int8, as `.tflite` files name them.
        bits: of kernels.
        dense_per_channel: whether a dense kernel may have several scales.
    """

    title: str
    operations: frozenset[str]
    bits: tuple[int, ...] = (8,)
    dense_per_channel: bool = False


def _with(names: str) -> frozenset[str]:
    return frozenset((*_COMMON.split(), *names.split()))


TARGETS = {
    "tflite-micro": Target(
        "TensorFlow Lite Micro",
        _with(
            "ABS BATCH_MATMUL DEPTH_TO_SPACE DEQUANTIZE ELU EXP EXPAND_DIMS "
            "HARD_SWISH L2_NORMALIZATION LEAKY_RELU LOG_SOFTMAX MIRROR_PAD NEG "
            "PACK PADV2 REDUCE_MAX RSQRT SPACE_TO_DEPTH SPLIT_V "
            "SQUARED_DIFFERENCE SUM UNPACK"
        ),
        bits=(4, 8),
    ),
    "ethos-u": Target(
        "Ethos-U",
        _with(
            "ABS BATCH_MATMUL ELU EXP EXPAND_DIMS GELU HARD_SWISH LEAKY_RELU "
            "LOG MIRROR_PAD NEG PACK PADV2 REDUCE_MAX REDUCE_MIN "
            "RELU_0_TO_1 RELU_N1_TO_1 RSQRT SPLIT_V SQUARED_DIFFERENCE SUM "
            "TILE UNPACK"
        ),
        dense_per_channel=True,
    ),
    "edge-tpu": Target(
        "the Edge TPU",
        _with(
            "EXPAND_DIMS L2_NORMALIZATION PACK REDUCE_MAX REDUCE_MIN "
            "RELU_N1_TO_1 RSQRT SPACE_TO_DEPTH SQUARED_DIFFERENCE SUM"
        ),
    ),
    "nnapi": Target(
        "NNAPI",
        _with(
            "DEPTH_TO_SPACE DEQUANTIZE ELU EXPAND_DIMS HARD_SWISH "
            "PACK PADV2 REDUCE_MAX REDUCE_MIN RELU_N1_TO_1 SPACE_TO_DEPTH "
            "TILE"
        ),
    ),
}

# The operation that a kind of step becomes, where a target may lack it.
_OPERATIONS = {
    "MatMul": "BATCH_MATMUL",
    "Tile": "TILE",
}
_FUNCTIONS = {
    "abs": "ABS",
    "exp": "EXP",
    "gelu": "GELU",
    "l2_normalize": "L2_NORMALIZATION",
    "leaky_relu": "LEAKY_RELU",
    "log": "LOG",
    "log_softmax": "LOG_SOFTMAX",
    "rsqrt": "RSQRT",
    "sqrt": "SQRT",
}
_REDUCTIONS = {"max": "REDUCE_MAX", "min": "REDUCE_MIN", "sum": "SUM"}


def check_name(target: Any) -> None:
    """Raises for a target that there is not."""
    names = get_args(TargetName)
    if target not in names:
        raise ValueError(
            f"`target` must be one of {', '.join(map(repr, names))}. "
            f"Received: target={target!r}"
        )


def fit_steps(
    steps: Iterable["Step"], target: TargetName
) -> tuple["Step", ...]:
    """Makes a plan's steps such as a target can run.

    Args:
        steps: the steps.
        target: the target.

    Returns:
        The steps, with one scale for dense kernels where there may be no more.

    Raises:
        ValueError: naming all layers that the target cannot run, and why.
    """
    if target == "litert":
        return tuple(steps)
    runtime, fitted, wrong = TARGETS[target], [], []
    for step in steps:
        reason = _reason(step, runtime)
        if reason:
            wrong.append(f"{', '.join(step.sources) or step.name}: {reason}")
        if step.kind == "Dense" and not runtime.dense_per_channel:
            step = step._replace(per_channel=False)
        fitted.append(step)
    if wrong:
        raise ValueError(
            f"`model` cannot run on {runtime.title}: "
            f"{'; '.join(dict.fromkeys(wrong))}"
        )
    return tuple(fitted)


def _reason(step: "Step", runtime: Target) -> str:
    """Why a step cannot run on a target; none if it can."""
    if not step.bits:
        return "is left in float"
    if step.weights and step.bits not in runtime.bits:
        return f"has a kernel of {step.bits} bits"
    operation = _OPERATIONS.get(step.kind, "")
    function = step.settings.get("function", "")
    if step.kind == "Function":
        operation = _FUNCTIONS.get(function, "")
    elif step.kind == "Reduce":
        operation = _REDUCTIONS.get(function, "")
    if operation and operation not in runtime.operations:
        return f"becomes {operation}, which it has not"
    return ""


def check_file(content: bytes, io_dtype: str, target: TargetName) -> None:
    """Raises if a target cannot run a file.

    Args:
        content: the `.tflite` file's bytes.
        io_dtype: type of the file's ends. If it is float32, operations that
            change to float and back are at the ends.
        target: the target.

    Raises:
        ValueError: naming the operations, or the kernels.
    """
    if target == "litert":
        return
    runtime = TARGETS[target]
    if io_dtype == "float32" and target in ("ethos-u", "edge-tpu"):
        raise ValueError(
            f"`io_dtype` must be 'int8' or 'uint8' for {runtime.title}. "
            "Received: io_dtype='float32'"
        )
    in_float, _ = find_departures(content)
    wrong = [f"{name} is left in float" for name in in_float]
    ends = {"QUANTIZE", "DEQUANTIZE"} if io_dtype == "float32" else set()
    for number, (name, dtypes) in enumerate(read_operations(content)):
        label = f"{name} #{number}"
        if label in in_float:
            continue
        if name not in runtime.operations | ends:
            wrong.append(f"{label} is none of its operations in int8")
        if "INT4" in dtypes and 4 not in runtime.bits:
            wrong.append(f"{label} has a kernel of 4 bits")
    if not runtime.dense_per_channel:
        wrong += [
            f"{name} has {count} scales, of which it takes one"
            for name, count in count_dense_scales(content).items()
            if count > 1
        ]
    if wrong:
        raise ValueError(
            f"`model` cannot run on {runtime.title}: "
            f"{'; '.join(dict.fromkeys(wrong))}. Give `quantize_aware` the "
            "same `target`"
        )
