"""The base class of reparameterizable modules, and functions that change modules."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Reparameterizable(nn.Module, ABC):
    """A module with a training form and an equal, cheaper inference form.

    Subclasses implement `fold` without regard to their children; `reparameterize` then folds the children of the
    result.

    Examples:
        >>> class Negated(Reparameterizable, nn.Linear):
        ...     def forward(self, x): return -super().forward(x)
        ...     def fold(self): return scale_output(self, -torch.ones(self.out_features))
        >>> reparameterize(Negated(4, 2).eval())
        Linear(in_features=4, out_features=2, bias=True)
    """

    @property
    def foldable(self) -> bool:
        """Whether `fold` changes the module."""
        return True

    @abstractmethod
    def fold(self) -> nn.Module:
        """Return the folded module: a new one, or `self` if there is nothing to fold.

        `reparameterize` calls this method only in evaluation mode, since a convolution cannot express batch statistics.
        """


class LayerScale(nn.Module):
    """A learned factor per channel: `y = gamma * x`.

    Shape:
        `(batch, dim, height, width)` in and out, or `(batch, tokens, dim)` with `spatial=False`.

    Args:
        dim: number of channels.
        initial: initial value of every factor.
        spatial: whether height and width follow the channel dimension.

    Folding: the owning block folds the factors into the last projection of the branch.
    Source: MobileCLIP Table 9; Touvron et al., "Going deeper with Image Transformers", section 3.

    Examples:
        >>> LayerScale(2, initial=0.5)(torch.ones(1, 2, 1, 3))
        tensor([[[[0.5000, 0.5000, 0.5000]],
        <BLANKLINE>
                 [[0.5000, 0.5000, 0.5000]]]], grad_fn=<MulBackward0>)
    """

    def __init__(self, dim: int, *, initial: float = 1e-5, spatial: bool = True) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim, 1, 1) if spatial else (dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` scaled per channel."""
        return x * self.gamma


def refuse_training(module: nn.Module) -> None:
    """Raise an error if `module` or any submodule is in training mode.

    Raises:
        ValueError: if a module is in training mode; the message names the first such module.
    """
    for name, child in module.named_modules():
        if child.training:
            where = f"its part {name!r}" if name else type(module).__name__
            raise ValueError(
                f"cannot fold the module: {where} is in training mode; call model.eval() first "
                "(folding freezes the batch statistics, so a folded model cannot be trained further)"
            )


def children_by_name(module: nn.Module) -> dict[str, nn.Module]:
    """Return the children of `module` by name; unlike in `named_children`, a shared child appears under every name.

    Examples:
        >>> activation = nn.ReLU()
        >>> list(children_by_name(nn.Sequential(activation, nn.Flatten(), activation)))
        ['0', '1', '2']
    """
    return {name: child for name, child in module._modules.items() if child is not None}


def with_children(module: Module, children: dict[str, nn.Module]) -> Module:
    """Return a shallow copy of `module` that shares its parameters, with some children replaced.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        >>> other = with_children(model, {"1": nn.GELU()})
        >>> other[1], model[1], other[0] is model[0]
        (GELU(approximate='none'), ReLU(), True)
    """
    unknown = children.keys() - module._modules.keys()
    assert not unknown, f"{type(module).__name__} has no children {unknown}"
    clone = copy.copy(module)
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, OrderedDict):
            vars(clone)[name] = value.copy()  # so that new hooks of one module do not affect the other
    clone._parameters = dict(module._parameters)
    clone._buffers = dict(module._buffers)
    clone._modules = {**module._modules, **children}
    return clone


def in_class(module: nn.Module, cls: type[Module]) -> Module:
    """Return a module of class `cls` with the parameters, buffers, children, hooks and settings of `module`.

    Args:
        module: original module, which stays unchanged; both modules share their state.
        cls: class of the result; its `forward` uses the attributes of `module`.

    Examples:
        >>> layer = nn.BatchNorm2d(4)
        >>> other = in_class(layer, nn.BatchNorm1d)
        >>> other(torch.zeros(2, 4)).shape, other.weight is layer.weight
        (torch.Size([2, 4]), True)
    """
    other = cls.__new__(cls)
    vars(other).update(vars(module))
    return other


def in_classes(model: Module, cls_of: Callable[[nn.Module], type[nn.Module] | None]) -> Module:
    """Replace modules of `model`, in place, by modules of other classes with the same state; see `in_class`.

    Args:
        model: any module; shared modules stay shared.
        cls_of: function that returns a module's new class; None or the current class keeps the module.

    Returns:
        The model, or its replacement.

    Examples:
        >>> model, known = nn.Sequential(nn.BatchNorm2d(4)), {nn.BatchNorm2d: nn.BatchNorm1d}
        >>> in_classes(model, lambda module: known.get(type(module)))(torch.zeros(2, 4)).shape
        torch.Size([2, 4])
    """
    chosen = ((module, cls_of(module)) for module in model.modules())
    exchanged = {one: in_class(one, cls) for one, cls in chosen if cls is not None and type(one) is not cls}
    for module in list(model.modules()):
        for name, child in children_by_name(module).items():
            if child in exchanged:
                module.add_module(name, exchanged[child])
    return cast("Module", exchanged.get(model, model))


def copied(module: Module) -> Module:
    """Return a deep copy of `module`, in half the time of `copy.deepcopy`.

    Every module has a dozen collections of hooks, mostly empty; the function replaces empty collections instead of
    deep-copying.

    Examples:
        >>> layer = nn.Linear(4, 2)
        >>> other = copied(layer)
        >>> torch.equal(other.weight, layer.weight), other.weight is layer.weight
        (True, False)
    """
    values = (value for part in module.modules() for value in vars(part).values())
    empty = (value for value in values if type(value) in (OrderedDict, dict, set) and not value)
    return copy.deepcopy(module, {id(value): type(value)() for value in empty})


def some_outputs(layer: Module, chosen: slice) -> Module:
    """Return a layer that computes only some outputs of a linear layer or convolution, with shared weights.

    Args:
        layer: linear layer or convolution; of a grouped convolution, choose equally many outputs of every group.
        chosen: rows of the weight to keep.

    Examples:
        >>> layer, x = nn.Linear(4, 6), torch.rand(3, 4)
        >>> torch.allclose(some_outputs(layer, slice(2, 4))(x), layer(x)[:, 2:4])
        True
    """
    part = with_children(layer, {})
    for name, parameter in layer._parameters.items():
        part._parameters[name] = None if parameter is None else nn.Parameter(parameter.detach()[chosen], False)
    return part


def without_identities(layers: dict[str, nn.Module]) -> nn.Sequential:
    """Return a sequence of the layers except identities, in evaluation mode.

    Examples:
        >>> without_identities({"conv": nn.Conv2d(3, 8, 1), "gate": nn.Identity()})
        Sequential(
          (conv): Conv2d(3, 8, kernel_size=(1, 1), stride=(1, 1))
        )
    """
    kept = {name: layer for name, layer in layers.items() if not isinstance(layer, nn.Identity)}
    return nn.Sequential(OrderedDict(kept)).eval()


def is_hooked(module: nn.Module) -> bool:
    """Return whether a module has hooks.

    Examples:
        >>> layer = nn.Linear(4, 2)
        >>> handle = layer.register_forward_hook(lambda module, inputs, output: None)
        >>> is_hooked(layer)
        True
    """
    # PyTorch has no public API for this.
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Switch a module to evaluation mode within the context, then restore the mode of every submodule.

    Examples:
        >>> model = nn.Sequential(nn.Dropout())
        >>> with evaluating(model):
        ...     model[0].training
        False
        >>> model[0].training
        True
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
