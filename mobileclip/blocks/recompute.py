"""Activations computed again in the backward pass instead of being kept: memory for time, with the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mobileclip.blocks.picking import pick


@runtime_checkable
class ComputesOneToken(Protocol):
    """A block that computes one token of each sequence for less than all of them."""

    def at(self, x: Tensor, index: Tensor | int) -> Tensor:
        """Return the block's output at `index` of each sequence."""
        ...


class BlockSequence(nn.Sequential):
    """Blocks one after another, each of which keeps its input alone while training if `recompute` is set.

    Shape:
        whatever the blocks take and give.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost".
    """

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last block makes of `x`."""
        if not self.recompute:
            y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return y
        for block in self:
            x = recomputed(block, block, x)
        return x

    def at(self, x: Tensor, index: Tensor | int) -> Tensor:
        """Return one token of each sequence behind all blocks, `pick(self(x), index)`.

        In evaluation mode, the last block computes that token alone, if it can: nothing depends on the others any more.

        Shape:
            `(batch, tokens, dim)` and `(batch,)` to `(batch, dim)`.
        """
        *blocks, last = self
        # Backward passes recompute blocks in sequence.
        if self.training or not isinstance(last, ComputesOneToken):
            return pick(self(x), index)
        for block in blocks:
            x = block(x)
        return last.at(x, index)


def set_recompute(model: nn.Module, *, enabled: bool) -> int:
    """Let every `BlockSequence` of `model` compute its activations again, or keep them; return how many there are."""
    sequences = [module for module in model.modules() if isinstance(module, BlockSequence)]
    for sequence in sequences:
        sequence.recompute = enabled
    return len(sequences)


def recomputed(function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """Return `function(x)`, computed again when its gradient is asked for.

    Batch statistics are counted once: the second time leaves the running ones as they are.

    Args:
        function: what is computed; its parameters are those of `module`.
        module: whose batch norms are held while it is computed again.
        x: its input.
    """
    if not torch.is_grad_enabled():
        return function(x)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), running_statistics_held(module)

    y: Tensor = checkpoint(function, x, use_reentrant=False, context_fn=contexts)
    return y


@contextmanager
def running_statistics_held(module: nn.Module) -> Iterator[None]:
    """Let batch norms use the statistics of their batch without adding them to the running ones."""
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
