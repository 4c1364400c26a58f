"""Refuses folds that would lose what a part computes: the algebra reads weights, not `forward`."""

from __future__ import annotations

from torch import nn

from mobileclip.reparam.module import LayerScale, is_hooked

PLAIN: set[type[nn.Module]] = {nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.SyncBatchNorm, LayerScale}
"""Layers whose weights say what they compute. A subclass with a forward of its own adds itself if that still holds."""

_EMPTY = {nn.Identity, nn.ModuleList, nn.Sequential, nn.ModuleDict}
_ALGEBRA = ("fold", "scaled", "shifted")
# Methods that say what a layer computes.
_COMPUTE = ("forward", "_conv_forward", "__call__")


def refuse_lost(module: nn.Module, folded: nn.Module) -> None:
    """Raise if a fold has lost what a part computes.

    Args:
        module: before.
        folded: what its `fold` returned; parts that are in both are as they were.

    Raises:
        ValueError: naming the first part that is gone and may have computed more than the algebra has read.
    """
    kept = set(folded.modules())
    for name, part in module.named_modules():
        if part in kept or "parametrizations" in name.split("."):  # what makes a weight is in the weight that is read
            continue
        shown = f"its part {name!r}" if name else "the block itself"
        is_copied = not name and type(folded) is type(module)  # hooks and all
        if is_hooked(part) and not is_copied:
            raise ValueError(f"{shown} has hooks, which nothing would call any more; remove them first")
        if not _is_plain(part):
            raise ValueError(
                f"{shown} is a {type(part).__name__} whose forward the algebra does not know; merge adapters first, "
                "put back what the block was made with, or give the class a fold of its own"
            )


def _is_plain(part: nn.Module) -> bool:
    """Whether a part computes what the algebra takes it for: a subclass must not have a forward alone."""
    cls = type(part)
    if "forward" in vars(part):  # replaced for this one module
        return False
    forward = _owner(cls, "forward")
    for known in PLAIN | _EMPTY:
        if issubclass(cls, known) and all(
            _owner(cls, one) is _owner(known, one) for one in _COMPUTE if hasattr(known, one)
        ):
            return True
    methods = [method for method in _ALGEBRA if hasattr(cls, method)]
    return bool(methods) and all(issubclass(_owner(cls, method), forward) for method in methods)


def _owner(cls: type, name: str) -> type:
    """Return the class that defines an attribute of `cls`."""
    return next(base for base in cls.__mro__ if name in vars(base))
