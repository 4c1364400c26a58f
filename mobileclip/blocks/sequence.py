"""A sequential container for blocks of one width."""

from __future__ import annotations

from torch import nn


class BlockSequence(nn.Sequential):
    """Blocks of one width, one after another: `y = block_n(... block_1(x))`.

    Activation checkpointing, `fully_shard` and exports look for this class to handle a model block by block.

    Shape:
        whatever the blocks take and give.

    Examples:
        >>> blocks = BlockSequence(TextRepMixerBlock(8), TransformerLayer(8, num_heads=2))
        >>> blocks(torch.rand(2, 20, 8)).shape
        torch.Size([2, 20, 8])
    """
