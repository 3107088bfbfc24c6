"""MuffNet in plain PyTorch: what a user would reach by hand."""

import torch
from torch import nn

from keras_muffnet import presets
from keras_muffnet.federation import reduction_middle


class MuffNet(nn.Module):
    """The paper's network for 32x32 images, `(batch, 3, 32, 32)`.

    Args:
        alpha: width multiplier.
        classes: units of the classifier, which gives logits.
    """

    def __init__(self, alpha: float, classes: int) -> None:
        super().__init__()
        stages = presets.stages_from_notation(presets.PAPER_NOTATION, alpha)
        channels = presets.STEM_FILTERS
        parts = conv_bn_relu(3, channels, 3)
        stride = 1
        for stage in stages:
            width = stage.matrix.output_channels[0]
            parts += [Reduction(channels, width, stride), Stage(stage)]
            channels = stage.matrix.input_channels[-1]
            stride = 2
        parts += conv_bn_relu(channels, presets.HEAD_FILTERS, 1)
        parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        parts += [nn.Linear(presets.HEAD_FILTERS, classes)]
        self.parts = nn.Sequential(*parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits, `(batch, classes)`."""
        return self.parts(x)


class Stage(nn.Module):
    """A federated stage."""

    def __init__(self, stage: presets.StageSpec) -> None:
        super().__init__()
        matrix = self.matrix = stage.matrix
        self.blocks = nn.ModuleList(
            Normal(inputs, outputs, bool(stage.residual))
            for inputs, outputs in zip(
                matrix.input_channels[:-1],
                matrix.output_channels[1:],
                strict=True,
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the output of the stage."""
        columns: list[list[torch.Tensor]] = [[] for _ in self.matrix.rows]
        for i, row in enumerate(self.matrix.rows):
            if i > 0:
                x = self.blocks[i - 1](torch.cat(columns[i - 1], 1))
            for j, group in enumerate(x.split(row[i:], 1), start=i):
                if group.shape[1]:
                    columns[j].append(group)
        return torch.cat(columns[-1], 1)


class Normal(nn.Module):
    """A normal block, or a residual one."""

    def __init__(self, inputs: int, outputs: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.parts = nn.Sequential(
            *conv_bn_relu(inputs, inputs, 1),
            *depthwise_bn(inputs, 3),
            *conv_bn(inputs, outputs, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the output of the block."""
        y = self.parts(x)
        return torch.relu_(y + x if self.residual else y)


class Reduction(nn.Module):
    """A reduction block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = reduction_middle(inputs, outputs)
        self.a = nn.Sequential(
            *depthwise_bn(inputs, 5, stride), *conv_bn(inputs, outputs, 1)
        )
        self.b = nn.Sequential(
            *conv_bn_relu(inputs, middle, 1),
            *depthwise_bn(middle, 5, stride),
            *conv_bn(middle, outputs, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the output of the block."""
        return torch.relu_(self.a(x) + self.b(x))


def conv_bn(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    """Convolution and batch normalization."""
    return [
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def conv_bn_relu(inputs: int, outputs: int, size: int) -> list[nn.Module]:
    """The same, and ReLU."""
    return [*conv_bn(inputs, outputs, size), nn.ReLU(inplace=True)]


def depthwise_bn(channels: int, size: int, stride: int = 1) -> list[nn.Module]:
    """Depthwise convolution and batch normalization."""
    return [
        nn.Conv2d(
            channels,
            channels,
            size,
            stride,
            size // 2,
            groups=channels,
            bias=False,
        ),
        nn.BatchNorm2d(channels),
    ]
