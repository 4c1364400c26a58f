"""Pooling heads: from features to one embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileclip.blocks.mobileone import MobileOneBlock


class ConvPoolHead(nn.Module):
    """Widen with a gated depthwise convolution, average over space, project: `y = project(mean(conv(x)))`.

    Shape:
        `(batch, dim, height, width)` to `(batch, embedding_dim)`.

    Args:
        dim: channels in.
        embedding_dim: width of the embedding; None for no projection, which leaves the mean, `expansion * dim` wide.
        expansion: how many times wider the features are before the mean.
        bias: whether the projection has a bias. The papers' has none; open_clip's layout can hold one.

    Source: MobileCLIP Table 9.

    Examples:
        >>> ConvPoolHead(16, embedding_dim=32)(torch.rand(2, 16, 8, 8)).shape  # of any height and width
        torch.Size([2, 32])
    """

    def __init__(self, dim: int, *, embedding_dim: int | None, expansion: int = 2, bias: bool = False) -> None:
        super().__init__()
        pooled_dim = expansion * dim
        self.conv = MobileOneBlock(dim, out_dim=pooled_dim, groups=dim, squeeze_excite=True)
        self.project: nn.Module = (
            nn.Identity() if embedding_dim is None else nn.Linear(pooled_dim, embedding_dim, bias=bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding of the feature map `x`."""
        y: Tensor = self.project(self.conv(x).mean(dim=(2, 3)))
        return y

    def local(self, x: Tensor) -> Tensor:
        """Return the embedding of each place, whose mean over places is the embedding: `project(conv(x))`.

        Shape:
            `(batch, dim, height, width)` to `(batch, embedding_dim, height', width')`.
        """
        y: Tensor = self.project(self.conv(x).movedim(1, -1))
        return y.movedim(-1, 1)


class TextPool(nn.Module):
    """Locates the end token of each text, where pooling reads the features; padding lies behind it.

    Args:
        end_id: the end token's, which every text holds; None for the highest id of each text, which CLIP's is.
    """

    def __init__(self, *, end_id: int | None = None) -> None:
        super().__init__()
        self.end_id = end_id

    def position(self, ids: Tensor) -> Tensor:
        """Return where each text ends: at its first end token.

        Shape:
            `(batch, tokens)` to `(batch,)`.
        """
        return (ids if self.end_id is None else (ids == self.end_id).int()).argmax(dim=-1)

    def inside(self, ids: Tensor) -> Tensor:
        """Return which tokens are of the text: up to its end token.

        Shape:
            `(batch, tokens)` to booleans `(batch, tokens)`.
        """
        return torch.arange(ids.shape[1], device=ids.device) <= self.position(ids)[:, None]


class EndTokenPool(TextPool):
    """Pick the features at the end-of-text token; of several, the first.

    `y[i] = features[i, argmax(ids[i])]`.

    Shape:
        features `(batch, tokens, dim)` and ids `(batch, tokens)` to `(batch, dim)`.

    Args:
        end_id: see `TextPool`.

    Examples:
        >>> ids = torch.tensor([[7, 3, 9, 0], [7, 9, 0, 0]])
        >>> EndTokenPool().position(ids)
        tensor([2, 1])
        >>> EndTokenPool()(torch.rand(2, 4, 16), ids).shape
        torch.Size([2, 16])
    """

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        """Return each text's features at its end token."""
        end = self.position(ids)[:, None, None].expand(-1, 1, features.shape[-1])
        return torch.gather(features, 1, end)[:, 0]


class MeanTokenPool(TextPool):
    """Average the features of a text's tokens, from the first to its end token; padding does not count.

    `y[i] = mean(features[i, : end[i] + 1])`.

    Shape:
        features `(batch, tokens, dim)` and ids `(batch, tokens)` to `(batch, dim)`.

    Args:
        end_id: see `TextPool`.

    Examples:
        >>> features = torch.tensor([[[2.0], [4.0], [9.0]]])
        >>> MeanTokenPool()(features, torch.tensor([[5, 9, 0]]))
        tensor([[3.]])
    """

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        """Return the mean of each text's features."""
        inside = self.inside(ids).to(features.dtype)[..., None]
        return (features * inside).sum(dim=1) / inside.sum(dim=1)
