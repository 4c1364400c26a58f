"""Batch norms while a pretrained model is trained further: fixed, or shared by all processes.

A batch norm in training mode normalises with the statistics of the batch at hand. Pretraining's batches had tens of
thousands of pictures; those of eight say little about a channel's mean and variance, and what is learned under them
does not fit the running statistics that evaluation takes.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

Model = TypeVar("Model", bound=nn.Module)
BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that stays in evaluation mode: `train()` does not reach it, so its statistics never move.

    It is an `nn.BatchNorm2d` with the same tensors under the same names: it saves, loads and folds as one.

    Shape:
        `(batch, channels, height, width)` in and out.

    Args and errors are those of `nn.BatchNorm2d`.
    """

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:  # noqa: FBT001, FBT002 - torch's signature
        """Stay in evaluation mode, whatever is asked for."""
        del mode
        super().train(mode=False)
        return self


def freeze_batch_norm(model: Model) -> Model:
    """Return `model` with every batch norm fixed, statistics, scales and shifts; `train()` does not undo it.

    Gradients pass through; only what the batch norms hold stays as it is. Which tensors the model has, and their
    names, do not change.

    Args:
        model: changed in place, unless it is itself a batch norm.
    """
    frozen = _exchanged(model, FrozenBatchNorm2d, skip=())
    for module in frozen.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.requires_grad_(requires_grad=False)
    return frozen


def synchronise_batch_norm(model: Model) -> Model:
    """Return `model` with batch norms that take the statistics of all processes' batches together; frozen ones stay.

    Args:
        model: changed in place, unless it is itself a batch norm.

    Raises:
        ValueError: if this is not one of several processes on GPUs: there is nobody to synchronise with, or torch has
            no way to.
    """
    world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world_size < 2:
        raise ValueError(
            "batch norms are synchronised between processes, and this run has one; start it with "
            "torchrun --nproc-per-node N, or freeze the batch norms"
        )
    if not torch.cuda.is_available():
        raise ValueError("torch synchronises batch norms on GPUs only, and there is none; freeze the batch norms")
    return _exchanged(model, nn.SyncBatchNorm, skip=(FrozenBatchNorm2d,))


def ordinary_batch_norm(model: Model) -> Model:
    """Return `model` with plain batch norms in place of frozen and synchronised ones, all trainable again: it folds.

    Args:
        model: changed in place, unless it is itself a batch norm.
    """
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.requires_grad_(requires_grad=True)
    return _exchanged(model, nn.BatchNorm2d, skip=())


def _exchanged(model: Model, cls: type[BatchNorm], *, skip: tuple[type[nn.Module], ...]) -> Model:
    """Exchange batch norms in place for ones of class `cls` with the same tensors, one used twice for one."""
    done: dict[nn.Module, nn.Module] = {}

    def exchanged(module: nn.Module) -> nn.Module:
        if module in done:
            return done[module]
        done[module] = module
        if isinstance(module, BatchNorm) and not isinstance(module, skip):
            if type(module) is not cls:
                done[module] = _like(module, cls)
            return done[module]
        for name, child in list(module.named_children()):
            module.add_module(name, exchanged(child))
        return module

    return cast("Model", exchanged(model))


def _like(norm: BatchNorm, cls: type[BatchNorm]) -> BatchNorm:
    other = cls(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
        device="meta",
    )
    for name, parameter in norm.named_parameters(recurse=False):
        other.register_parameter(name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        other.register_buffer(name, buffer)
    return other.train(norm.training)
