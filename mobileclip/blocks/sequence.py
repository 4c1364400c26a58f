"""Sequences of blocks, and activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Module = TypeVar("Module", bound=nn.Module)
Made = TypeVar("Made", bound=Tensor | tuple[Tensor, ...])


class BlockSequence(nn.Sequential):
    """A sequence of blocks of equal width: `y = block_n(... block_1(x))`.

    Activation checkpointing, `fully_shard` and exports look for this class to handle a model block by block. If
    `recomputes` is true, each block stores only its input in training, and the backward pass computes the block again.

    Shape:
        input and output as for the blocks.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", for recomputation.

    Examples:
        >>> blocks = BlockSequence(TextRepMixerBlock(8), TransformerLayer(8, num_heads=2))
        >>> blocks(torch.rand(2, 20, 8)).shape
        torch.Size([2, 20, 8])
    """

    recomputes = False

    def forward(self, x: Tensor, *context: object) -> Tensor:
        """Return the last block's output for `x`; every block also receives `context`."""
        for block in self.functions():
            x = block(x, *context)
        return x

    def functions(self) -> Iterator[Callable[..., Tensor]]:
        """Yield the blocks as functions, with recomputation if enabled."""
        return (partial(recomputed, block, block) for block in self) if self.recomputes else iter(self)


class ActivationCheckpointing:
    """Mixin with `set_grad_checkpointing`, the interface of timm and open_clip."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:  # noqa: FBT001, FBT002 - timm's and open_clip's
        """Switch activation checkpointing of the model on or off; see `recompute`."""
        assert isinstance(self, nn.Module)
        recompute(self, enable)


def recompute(model: Module, enable: bool = True) -> Module:  # noqa: FBT001, FBT002 - as timm has it
    """Switch activation checkpointing on or off in every `BlockSequence` of a model.

    Args:
        model: any module, which the function changes in place.
        enable: whether to enable activation checkpointing.

    Returns:
        The model.

    Raises:
        ValueError: if the model has no `BlockSequence`.
    """
    sequences = [module for module in model.modules() if isinstance(module, BlockSequence)]
    if not sequences:
        raise ValueError(
            f"{type(model).__name__} has no BlockSequence to recompute block by block; "
            "put the repeated blocks into mobileclip.blocks.BlockSequence, or train with smaller micro-batches"
        )
    for sequence in sequences:
        sequence.recomputes = enable
    return model


def recomputed(function: Callable[..., Made], module: nn.Module, *inputs: object) -> Made:
    """Return `function(*inputs)` without storing intermediate results; the backward pass calls `function` again.

    Recomputation does not update the running statistics of batch norms.

    Args:
        function: function that uses the parameters of `module` and returns one or more tensors.
        module: module whose running statistics must not change during recomputation.
        inputs: arguments of `function`, stored for the backward pass.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    if torch.compiler.is_compiling():
        # The compiler itself updates running statistics only once, and does not support contexts.
        compiled: Made = checkpoint(function, *inputs, use_reentrant=False)
        return compiled

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), running_statistics_held(module)

    made: Made = checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)
    return made


@contextmanager
def running_statistics_held(module: nn.Module) -> Iterator[None]:
    """Let batch norms use batch statistics without updating their running statistics."""
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches
