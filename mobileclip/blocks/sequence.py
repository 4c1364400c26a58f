"""Blocks, one after another."""

from __future__ import annotations

from torch import nn


class BlockSequence(nn.Sequential):
    """Blocks of one width, one after another: `y = block_n(... block_1(x))`.

    What handles a model block by block finds them by this class: training that computes activations again, processes
    that share out the parameters of one block at a time, exports that name a layer.

    Shape:
        whatever the blocks take and give.

    Examples:
        >>> blocks = BlockSequence(TextRepMixerBlock(8), TransformerLayer(8, num_heads=2))
        >>> blocks(torch.rand(2, 20, 8)).shape
        torch.Size([2, 20, 8])
    """
