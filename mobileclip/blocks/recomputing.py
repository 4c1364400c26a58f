"""Activation checkpointing: activations are recomputed in the backward pass, which saves memory and costs time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mobileclip.blocks.sequence import BlockSequence

Module = TypeVar("Module", bound=nn.Module)
Made = TypeVar("Made", bound=Tensor | tuple[Tensor, ...])


class RecomputingSequence(BlockSequence):
    """Activation checkpointing: in training, each block keeps only its input and recomputes the rest in backward.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost".
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last block makes of `x`."""
        for block in self:
            x = recomputed(block, block, x)
        return x


class ActivationCheckpointing:
    """A model that recomputes its blocks by the name that timm and open_clip have for it; a base beside `nn.Module`."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:  # noqa: FBT001, FBT002 - timm's and open_clip's
        """Switch activation checkpointing on or off: blocks keep only inputs, and recompute the rest in backward."""
        assert isinstance(self, nn.Module)
        recompute(self, enable)


def recompute(model: Module, enable: bool = True) -> Module:  # noqa: FBT001, FBT002 - as timm has it
    """Switch on activation checkpointing in every `BlockSequence` of a model.

    As `fully_shard` does, it changes the classes of modules in place: parameters, names and hooks stay.

    Args:
        model: any module; it is changed.
        enable: False keeps activations again.

    Returns:
        The model.

    Raises:
        ValueError: if there is no `BlockSequence` in it.
    """
    sequences = [module for module in model.modules() if isinstance(module, BlockSequence)]
    if not sequences:
        raise ValueError(
            f"{type(model).__name__} has no BlockSequence, so there is nothing to compute again block by block; "
            "put its repeated blocks into mobileclip.blocks.BlockSequence, or train it with smaller micro-batches"
        )
    for sequence in sequences:
        sequence.__class__ = RecomputingSequence if enable else BlockSequence
    return model


def recomputed(function: Callable[..., Made], module: nn.Module, *inputs: object) -> Made:
    """Return `function(*inputs)`, computed again when its gradient is asked for.

    Batch statistics are counted once: the second time leaves the running ones as they are.

    Args:
        function: what is computed, one tensor or several; its parameters are those of `module`.
        module: whose batch norms are held while it is computed again.
        inputs: its inputs, which are kept.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    if torch.compiler.is_compiling():
        # The compiler counts statistics once by itself, and takes no contexts.
        compiled: Made = checkpoint(function, *inputs, use_reentrant=False)
        return compiled

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), running_statistics_held(module)

    made: Made = checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)
    return made


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
