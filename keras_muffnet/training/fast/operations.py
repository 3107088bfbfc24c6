"""Operations of PyTorch with gradients, on the kernels in `kernels.c`.

All tensors are float32 on the CPU, `(batch, height, width, channels)`. The
kernels are compiled when they are first loaded, which takes some seconds.
"""

import ctypes
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch.autograd.function import once_differentiable

# No -ffast-math: a NaN must stay one, or a run would not notice it.
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")


@functools.cache
def kernels() -> ctypes.CDLL:
    """Compiles and loads the kernels, once a process.

    Returns:
        The library.

    Raises:
        OSError: if there is no C compiler, or it fails; with what it said.
    """
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        raise OSError(f"no C compiler: {compiler} was not found")
    source = pathlib.Path(__file__).with_name("kernels.c")
    with tempfile.TemporaryDirectory() as folder:
        # Not kept: it is for this machine's processor alone.
        library = pathlib.Path(folder, "kernels.so")
        done = subprocess.run(
            [compiler, *_FLAGS, str(source), "-o", str(library)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise OSError(f"{compiler} failed: {done.stderr.strip()[-500:]}")
        # PyTorch is loaded, and so its OpenMP, and its threads, are used.
        return ctypes.CDLL(str(library))


def _call(name: str, *arguments: Any) -> None:
    """Calls a kernel on tensors, numbers and None."""
    given = [
        ctypes.c_void_p(x.data_ptr())
        if isinstance(x, torch.Tensor)
        else ctypes.c_int64(x)
        if isinstance(x, int)
        else ctypes.c_float(x)
        if isinstance(x, float)
        else x
        for x in arguments
    ]
    if getattr(kernels(), name)(*given):
        raise MemoryError(f"no memory for {name}")


def _sizes(x: torch.Tensor) -> tuple[int, int]:
    """Rows and channels."""
    channels = x.shape[-1]
    return x.numel() // channels, channels


def _new(x: torch.Tensor, channels: int | None = None) -> torch.Tensor:
    if channels is None:
        return torch.empty(x.shape, dtype=x.dtype)
    return torch.empty(channels, dtype=x.dtype)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sizes: Sequence[int]) -> Any:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.sizes = x.shape, sizes
        return tuple(part.detach() for part in x.split(sizes, dim=-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        return _joined(grads, ctx.sizes, ctx.shape[:-1]), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parts: torch.Tensor) -> torch.Tensor:
        ctx.sizes = [part.shape[-1] for part in parts]
        return _joined(parts, ctx.sizes, parts[0].shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return tuple(grad.split(ctx.sizes, dim=-1))


def split(x: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Splits channels into groups, which are views.

    Its gradient is put together once, not added up group by group.
    """
    return _Split.apply(x, sizes)


def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Puts groups of channels side by side."""
    return _Join.apply(*parts)


def dense(x: torch.Tensor) -> torch.Tensor:
    """Returns the tensor itself, or a copy if it is a view of some channels."""
    return x if x.is_contiguous() else join([x])


def _row_stride(x: torch.Tensor) -> int | None:
    """Numbers from one row of channels to the next, if always as many."""
    stride = x.stride(-2)
    expected = stride
    for axis in range(x.ndim - 2, -1, -1):
        if x.shape[axis] != 1 and x.stride(axis) != expected:
            return None
        expected *= x.shape[axis]
    return stride if x.shape[-1] == 1 or x.stride(-1) == 1 else None


def _joined(
    parts: Sequence[torch.Tensor | None], sizes: Sequence[int], shape: Any
) -> torch.Tensor:
    strides = []
    parts = list(parts)
    for k, part in enumerate(parts):
        stride = None if part is None else _row_stride(part)
        if part is not None and stride is None:
            part = parts[k] = part.contiguous()
            stride = part.shape[-1]
        strides.append(stride or 0)
    count, channels = len(parts), sum(sizes)
    y = torch.empty((*shape, channels), dtype=torch.float32)
    _call(
        "join",
        (ctypes.c_void_p * count)(
            *(None if part is None else part.data_ptr() for part in parts)
        ),
        (ctypes.c_int64 * count)(*strides),
        (ctypes.c_int64 * count)(*sizes),
        count,
        y.numel() // channels,
        channels,
        y,
    )
    return y


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        gamma: torch.Tensor,
        beta: torch.Tensor,
        add: torch.Tensor | None,
        epsilon: float,
        limit: float,
    ) -> Any:
        rows, channels = _sizes(x)
        mean, variance = _new(x, channels), _new(x, channels)
        _call("moments", x, rows, channels, mean, variance)
        inverse = torch.rsqrt(variance + epsilon)
        scale = gamma * inverse
        shift = beta - mean * scale
        y = normalize(x, scale, shift, add, limit)
        ctx.added, ctx.limit = add is not None, limit
        masks = y if ctx.added and limit else None
        ctx.save_for_backward(x, masks, mean, inverse, scale, shift)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor, *_: Any) -> Any:
        x, y, mean, inverse, scale, shift = ctx.saved_tensors
        g = dense(g)
        rows, channels = _sizes(x)
        total, product = _new(x, channels), _new(x, channels)
        given = (g, x, y, rows, channels, mean, scale, shift, ctx.limit)
        _call("gradient_sums", *given, total, product)
        k1 = scale * inverse * inverse * product / rows
        k2 = scale * total / rows
        dx = _new(x)
        masked = None if y is None else _new(x)
        _call("gradient", *given, scale, k1, k2, dx, masked)
        added = (g if masked is None else masked) if ctx.added else None
        return dx, product * inverse, total, added, None, None


def batch_norm(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    add: torch.Tensor | None,
    epsilon: float,
    limit: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalizes by the batch's own statistics.

    Args:
        x: the input.
        gamma: scale of each channel.
        beta: offset of each channel.
        add: what is added afterwards, of the shape of `x`, or None.
        epsilon: added to the variance.
        limit: of the ReLU that follows: infinity, or 0 if there is none.

    Returns:
        The output, and of each channel the mean and the biased variance.
    """
    add = None if add is None else dense(add)
    return _BatchNorm.apply(dense(x), gamma, beta, add, epsilon, limit)


def normalize(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    add: torch.Tensor | None,
    limit: float,
) -> torch.Tensor:
    """Scales, shifts, adds, applies ReLU as above. Without a gradient."""
    y = _new(x)
    _call("normalize", x, add, *_sizes(x), scale, shift, limit, y)
    return y


# Zeros before and after the rows, and before and after the columns.
Pads = tuple[tuple[int, int], ...]


def _symmetric(
    weight: torch.Tensor, pads: Pads
) -> tuple[torch.Tensor, list[int]]:
    """Pads a kernel in front where more of the input is padded after it.

    PyTorch pads both sides of the input alike; Keras's "same" has one more at
    the end where the sum is odd.
    """
    (top, bottom), (left, right) = pads
    if pads != ((bottom, bottom), (right, right)):
        weight = functional.pad(weight, (right - left, 0, bottom - top, 0))
    return weight, [bottom, right]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        kernel: torch.Tensor,
        stride: int,
        pads: Pads,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.stride, ctx.pads = stride, pads
        weight, padding = _symmetric(kernel.permute(2, 3, 0, 1), pads)
        y = torch.conv2d(
            x.permute(0, 3, 1, 2),
            weight,
            None,
            stride,
            padding,
            1,
            x.shape[-1],
        )
        return y.permute(0, 2, 3, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, kernel = ctx.saved_tensors
        g = dense(g)
        size, channels = kernel.shape[0], x.shape[-1]
        dx = None
        if ctx.needs_input_grad[0]:
            weight, padding = _symmetric(kernel.permute(2, 3, 0, 1), ctx.pads)
            dx = torch.ops.aten.convolution_backward(
                g.permute(0, 3, 1, 2),
                x.permute(0, 3, 1, 2),
                weight,
                None,
                [ctx.stride] * 2,
                padding,
                [1, 1],
                False,
                [0, 0],
                channels,
                [True, False, False],
            )[0]
            dx = dx.permute(0, 2, 3, 1).contiguous()
        dk = torch.empty(kernel.shape, dtype=kernel.dtype)
        _call(
            "depthwise_kernel_gradient",
            x,
            g,
            *x.shape[:3],
            *g.shape[1:3],
            channels,
            size,
            ctx.stride,
            ctx.pads[0][0],
            ctx.pads[1][0],
            dk,
        )
        return dx, dk, None, None


def depthwise(
    x: torch.Tensor,
    kernel: torch.Tensor,
    stride: int,
    pads: Pads,
) -> torch.Tensor:
    """Depthwise convolution with a gradient that is faster for large kernels.

    Args:
        x: the input.
        kernel: of shape `(size, size, channels, 1)`.
        stride: the same for height and width.
        pads: zeros around the input; at an end as many as at the beginning,
            or one more.
    """
    return _Depthwise.apply(dense(x), kernel, stride, pads)


def convolution(
    x: torch.Tensor,
    kernel: torch.Tensor,
    stride: int,
    pads: Pads,
    groups: int,
) -> torch.Tensor:
    """Convolution of a Keras kernel, `(height, width, inputs, filters)`."""
    x = dense(x)
    weight, padding = _symmetric(kernel.permute(3, 2, 0, 1), pads)
    y = torch.conv2d(
        x.permute(0, 3, 1, 2), weight, None, stride, padding, 1, groups
    )
    return y.permute(0, 2, 3, 1).contiguous()
