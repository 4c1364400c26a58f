"""Reparameterizes a model for inference: replaces every reparameterizable block by its single-branch form."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from mobileclip.registry import Registry
from mobileclip.reparam.fuse import BATCH_NORMS
from mobileclip.reparam.module import (
    LayerScale,
    Reparameterizable,
    children_by_name,
    copied,
    is_hooked,
    refuse_training,
)

PLAIN: set[type[nn.Module]] = {nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.SyncBatchNorm, LayerScale}
"""Layers whose weights determine the computation; add a subclass only if its weights determine its `forward`."""

_EMPTY = {nn.Identity, nn.ModuleList, nn.Sequential, nn.ModuleDict}
_ALGEBRA = ("fold", "scaled", "shifted")
# Methods that define the computation of a layer.
_COMPUTE = ("forward", "_conv_forward", "__call__")


def refuse_lost(module: nn.Module, folded: nn.Module) -> None:
    """Raise an error if folding dropped the computation of a submodule.

    Args:
        module: original module.
        folded: result of the module's `fold`; the function does not check submodules that `folded` keeps.

    Raises:
        ValueError: if a dropped submodule may compute more than its weights express; the message names the
            first dropped submodule.
    """
    kept = set(folded.modules())
    for name, part in module.named_modules():
        if part in kept or "parametrizations" in name.split("."):  # the weight includes its parametrization
            continue
        shown = f"its part {name!r}" if name else "the block itself"
        is_copied = not name and type(folded) is type(module)  # the copy keeps the hooks
        if is_hooked(part) and not is_copied:
            raise ValueError(f"{shown} has hooks, and folding would drop the hooks; remove the hooks first")
        if not _is_plain(part):
            raise ValueError(
                f"{shown} is a {type(part).__name__} whose forward cannot be folded; merge adapters first, "
                "restore the block's original layer, or define fold() in the class"
            )


def _is_plain(part: nn.Module) -> bool:
    """Return whether a module computes only its class's formula; a subclass with its own `forward` needs a `fold`."""
    cls = type(part)
    if "forward" in vars(part):  # replaced on this instance only
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


Fold: TypeAlias = Callable[[nn.Module], nn.Module]
"""A function from a module in evaluation mode to the folded module; the function may change the module in place."""

folds: Registry[Fold] = Registry("fold")
"""Fold functions by top-level package of the module's class; each function must also fold the submodules."""

_MEANS = ("reparameterize", "fuse", "switch_to_deploy")


@folds.register("timm")
def fold_timm(module: nn.Module) -> nn.Module:
    """Fold a timm module, such as FastViT, MobileOne or RepVGG; modules that timm cannot fold stay unchanged.

    timm computes the folded weights in the precision of the original weights.
    """
    from timm.utils.model import reparameterize_model

    around = nn.Sequential(module)  # timm folds only children
    reparameterize_model(around, inplace=True)
    return around[0].eval()


def fold_of(module: nn.Module) -> Fold | None:
    """Return the fold function for the package of a module's class, or None if no fold function is registered."""
    return folds.get(type(module).__module__.partition(".")[0])


def warn_if_foldable(module: nn.Module) -> None:
    """Warn if a module seems foldable but has no fold function; the module stays unchanged."""
    cls = type(module)
    means = next((name for name in _MEANS if callable(getattr(cls, name, None))), None)
    if means is not None:
        package = cls.__module__.partition(".")[0]
        warnings.warn(
            f"a {cls.__qualname__} stays unfolded, though it has a method {means!r}: register a fold function for "
            f"modules of {package} in mobileclip.reparam.folds, under the name {package!r}",
            stacklevel=2,
        )


Module = TypeVar("Module", bound=nn.Module)

_TOLERANCE = 0.1  # times the square root of the dtype's eps: in float32, 3.5e-5 of the largest output


def reparameterize(
    model: Module,
    *,
    only: tuple[type[Reparameterizable], ...] = (),
    inplace: bool = False,
    check: Tensor | tuple[Tensor, ...] | None = None,
) -> Module:
    """Return `model` in its inference form, with equal outputs and fewer operations.

    The function replaces every reparameterizable module, including the root, by its inference form;
    `mobileclip.reparam.folds` has functions for modules of other libraries. `reparameterize` also removes wrappers of
    `torch.compile` and DistributedDataParallel, so compile the result again. Folding a folded model changes nothing.
    The arithmetic runs in float64, so bfloat16 and float16 models lose precision only in one final cast.

    Args:
        model: any module in evaluation mode. The result has the same class, unless the root itself folds into a module
            of a different class (a RepMixer becomes a convolution).
        only: classes to fold; empty for all. Apple's code, for example, does not fold some norms and scales.
        inplace: whether to fold `model` itself instead of a copy; afterwards, use only the result.
        check: an example input, or a tuple of inputs, to compare outputs before and after folding; None for no check.

    Raises:
        ValueError: if a submodule is in training mode, the weights are sharded, a removed submodule may compute more
            than its weights express (an adapter, a hook, its own `forward`, a replaced activation or norm), or the
            outputs for `check` differ.

    Examples:
        >>> model, x = nn.Sequential(mobileclip.blocks.RepMixer(8), nn.ReLU()).eval(), torch.rand(1, 8, 6, 6)
        >>> folded = reparameterize(model)
        >>> folded[0], torch.allclose(folded(x), model(x), atol=1e-5)
        (Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=8), True)
    """
    refuse_training(model)
    inputs = (check,) if isinstance(check, Tensor) else check
    with torch.no_grad():
        kept = copied(model) if inplace and inputs is not None else model
        folded = cast("Module", _folded(model if inplace else copied(model), only, {}))
        if inputs is not None:
            _refuse_unequal(kept, folded, inputs)
    return folded


def _folded(
    module: nn.Module, only: tuple[type[Reparameterizable], ...], done: dict[nn.Module, nn.Module], path: str = ""
) -> nn.Module:
    """Fold `module` in place, or into a new module; the mapping `done` keeps shared modules shared."""
    if module in done:
        return done[module]
    if (inner := _unwrapped(module, path)) is not None:
        return _folded(inner, only, done, path)
    folded = module
    if isinstance(module, Reparameterizable):
        folded = _fold(module, path) if not only or isinstance(module, only) else module
    elif not only and (fold := fold_of(module)) is not None:
        done[module] = folded = fold(module)
        return folded
    else:
        warn_if_foldable(module)
    done[module] = done[folded] = folded
    for name, child in children_by_name(folded).items():
        folded.add_module(name, _folded(child, only, done, f"{path}.{name}" if path else name))
    return folded


def _unwrapped(module: nn.Module, path: str) -> nn.Module | None:
    """Return the module inside a PyTorch wrapper, or None if the module is not a wrapper.

    Raises:
        ValueError: if the weights are sharded over processes.
    """
    if _is_one(module, "torch.distributed.fsdp", "FSDPModule", "FullyShardedDataParallel"):
        raise ValueError(
            f"cannot fold the {type(module).__name__} {path!r}: each process holds only a shard of the weights; gather "
            "the weights into an unsharded model first, with "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict"
        )
    if _is_one(module, "torch._dynamo.eval_frame", "OptimizedModule"):
        return cast("nn.Module", module._orig_mod)  # noqa: SLF001 - there is no public attribute
    is_parallel = _is_one(module, "torch.nn.parallel", "DistributedDataParallel", "DataParallel")
    return cast("nn.Module", module.module) if is_parallel else None


def _is_one(module: nn.Module, place: str, *names: str) -> bool:
    """Return whether a module is an instance of the named classes, without a slow import of the classes."""
    there = sys.modules.get(place)
    return isinstance(module, tuple(getattr(there, name) for name in names if hasattr(there, name)))


def _fold(module: Reparameterizable, path: str) -> nn.Module:
    """Return the folded module; weights computed only from frozen weights stay frozen."""
    try:
        folded = module.fold()
        refuse_lost(module, folded)
    except (AttributeError, ValueError) as error:  # a replaced submodule may lack attributes that `fold` reads
        shown = f"{type(module).__name__} {path!r}" if path else type(module).__name__
        raise ValueError(f"cannot fold the {shown} into an equal module: {error}") from error
    before, after = dict.fromkeys(module.parameters()), dict.fromkeys(folded.parameters())
    trains = any(parameter.requires_grad for parameter in before if parameter not in after)
    for parameter in after:
        if parameter not in before:
            parameter.requires_grad_(trains)
    return folded


def _refuse_unequal(model: nn.Module, folded: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    wanted, given = _tensors(model(*inputs)), _tensors(folded(*inputs))
    for number, (own, other) in enumerate(zip(wanted, given, strict=True)):
        allowed = _TOLERANCE * torch.finfo(own.dtype).eps ** 0.5 * float(own.abs().max())
        difference = float((own - other).abs().max())
        if not difference <= allowed:
            raise ValueError(
                f"the folded model is not equal to the original: output {number} differs by {difference:.2g}, but at "
                f"most {allowed:.2g} is allowed; fold the submodules one by one to find the module that computes more "
                "than its class defines"
            )


def _tensors(output: object) -> list[Tensor]:
    leaves = tree_flatten(output)[0]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def foldable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and module of each branch, batch norm and layer scale that folding would remove.

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
    """Return whether `model` has nothing left to fold; see `foldable_modules`.

    Examples:
        >>> mixer = mobileclip.blocks.RepMixer(8).eval()
        >>> is_folded(mixer), is_folded(reparameterize(mixer))
        (False, True)
    """
    return next(foldable_modules(model), None) is None
