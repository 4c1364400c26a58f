"""Fold a whole model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import nn

from mobileclip.reparam.algebra import BATCH_NORMS
from mobileclip.reparam.module import LayerScale, Reparameterizable, children_by_name, refuse_training

Module = TypeVar("Module", bound=nn.Module)


def reparameterize(model: Module, *, only: tuple[type[Reparameterizable], ...] = (), inplace: bool = False) -> Module:
    """Return `model` folded: the same outputs, fewer operations; the original is not changed.

    Every module that knows an inference form is replaced by it, the root included, from the outside in. Folding again
    changes nothing. The arithmetic runs in float64 and is cast back once, so that bfloat16 and float16 models lose no
    more than that cast.

    Args:
        model: any module in evaluation mode. The result is of the same class, unless the root itself is one that folds
            into another (a RepMixer becomes a convolution).
        only: fold these classes alone; empty for everything. Used to reach the partly folded form of the
            research release, which keeps some norms and scales.
        inplace: fold the model itself, for which no memory of a copy is needed; use the result alone from then on.

    Raises:
        ValueError: if any part of the model is in training mode.

    Examples:
        >>> model, x = nn.Sequential(mobileclip.blocks.RepMixer(8), nn.ReLU()).eval(), torch.rand(1, 8, 6, 6)
        >>> folded = reparameterize(model)
        >>> folded[0], torch.allclose(folded(x), model(x), atol=1e-5)
        (Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8), True)
    """
    refuse_training(model)
    with torch.no_grad():
        return cast("Module", _folded(model if inplace else copy.deepcopy(model), only, {}))


def _folded(
    module: nn.Module, only: tuple[type[Reparameterizable], ...], done: dict[nn.Module, nn.Module]
) -> nn.Module:
    """Fold `module` in place, or into another; `done` keeps what is used in several places one module."""
    if module in done:
        return done[module]
    folded = module
    if isinstance(module, Reparameterizable) and (not only or isinstance(module, only)):
        folded = module.fold()
    done[module] = done[folded] = folded
    for name, child in children_by_name(folded).items():
        folded.add_module(name, _folded(child, only, done))
    return folded


def foldable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and module of everything that folding would remove: branches, batch norms and layer scales.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        >>> [name for name, module in foldable_modules(model)]
        ['1']
    """
    for name, module in model.named_modules():
        if isinstance(module, (*BATCH_NORMS, LayerScale)) or (
            isinstance(module, Reparameterizable) and module.foldable
        ):
            yield name, module


def is_folded(model: nn.Module) -> bool:
    """Return whether nothing foldable is left in `model`.

    Examples:
        >>> mixer = mobileclip.blocks.RepMixer(8).eval()
        >>> is_folded(mixer), is_folded(reparameterize(mixer))
        (False, True)
    """
    return next(foldable_modules(model), None) is None
