"""How the modules of other libraries fold: by their own means, as far as they have any."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from mobileclip.registry import Registry

Fold: TypeAlias = Callable[[nn.Module], nn.Module]
"""Takes a module in evaluation mode, which it may change, and returns the folded one."""

folds: Registry[Fold] = Registry("fold")
"""By the name of the package that defines a module's class. What it returns is not looked into any further."""

_MEANS = ("reparameterize", "fuse", "switch_to_deploy")


@folds.register("timm")
def fold_timm(module: nn.Module) -> nn.Module:
    """Fold a model of timm, or a part of one: FastViT, MobileOne, RepVGG and others. The rest of timm stays as it is.

    The arithmetic is timm's, in the model's own precision.
    """
    from timm.utils.model import reparameterize_model

    around = nn.Sequential(module)  # timm folds children alone
    reparameterize_model(around, inplace=True)
    return around[0].eval()


def fold_of(module: nn.Module) -> Fold | None:
    """Return how the package that a module comes from folds it, None if that is not known."""
    return folds.get(type(module).__module__.partition(".")[0])


def warn_if_foldable(module: nn.Module) -> None:
    """Warn of a module that seems to fold in a way that nobody has registered: it stays as it is."""
    cls = type(module)
    means = next((name for name in _MEANS if callable(getattr(cls, name, None))), None)
    if means is not None:
        package = cls.__module__.partition(".")[0]
        warnings.warn(
            f"a {cls.__qualname__} stays unfolded, though it has a method {means!r}: add what folds modules of "
            f"{package} to mobileclip.reparam.folds, as {package!r}",
            stacklevel=2,
        )
