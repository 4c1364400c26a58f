"""The three forms that a model's weights come in, and the tensors that each form has."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mobileclip.blocks import Buildable, LargeKernelConv, MobileOneBlock, RepCPE, RepMixer
from mobileclip.encoders.dual import DualEncoderSpec
from mobileclip.reparam import reparameterize

Form = Literal["training", "branches_folded", "folded"]

FORMS: tuple[Form, ...] = ("training", "folded", "branches_folded")
COMPILED = "_orig_mod."
"""What stands in the names of a module's tensors once it was compiled."""
_BRANCHED = (MobileOneBlock, RepMixer, LargeKernelConv, RepCPE)


def in_form(model: nn.Module, form: Form, *, inplace: bool = False) -> nn.Module:
    """Return `model`, in training form, brought into `form`.

    Args:
        model: a model in evaluation mode.
        form: `training` leaves it as it is; `branches_folded` folds what the research release and timm fold, which
            leaves norms and scales behind; `folded` folds everything.
        inplace: change the model itself, of which the result alone is used from then on.
    """
    if form == "training":
        return model
    return reparameterize(model, only=_BRANCHED if form == "branches_folded" else (), inplace=inplace)


def skeleton(spec: Buildable, form: Form) -> nn.Module:
    """Return the model of `spec` in `form` without memory for its weights (on the meta device), in evaluation mode.

    Raises:
        ValueError: if its `build` asks for numbers, which there are none of.
    """
    try:
        with torch.device("meta"), _ShapesAlone():
            return in_form(spec.build().eval(), form, inplace=True)
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        first = str(error).partition("\n")[0]
        raise ValueError(
            f"{type(spec).__name__}.build() reads numbers out of tensors (.item(), .tolist() or a condition), "
            f"and checkpoints build it without any; compute them in Python or NumPy ({first})"
        ) from error


class _ShapesAlone(TorchFunctionMode):
    """Skip random numbers and arithmetic: PyTorch would load its whole compiler, for seconds, to run them on meta."""

    _RANDOM = (
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.kaiming_uniform_,
    )
    _ELEMENTWISE = (
        torch.add,
        torch.Tensor.add,
        torch.Tensor.sub,
        torch.Tensor.mul,
        torch.Tensor.neg,
        torch.Tensor.rsqrt,
        torch.Tensor.remainder,
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func in self._RANDOM:
            return args[0] if args else kwargs["tensor"]
        if func in self._ELEMENTWISE and not kwargs:
            shapes = [one.shape for one in args if isinstance(one, torch.Tensor)]
            return torch.empty(np.broadcast_shapes(*shapes), dtype=torch.result_type(args[0], args[-1]))
        if func is torch.Tensor.matmul and args[0].dim() == 2:
            return torch.empty(args[0].shape[:1] + args[1].shape[1:], dtype=args[0].dtype)
        return func(*args, **kwargs)


def tensor_shapes(spec: Hashable, form: Form) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of the model of `spec` in `form`, in order."""
    return {name: shape for name, (shape, _) in _described(spec, form).items()}


def tensor_dtypes(spec: Hashable, form: Form) -> dict[str, torch.dtype]:
    """Return the name and type of every tensor of the model of `spec` in `form`."""
    return {name: dtype for name, (_, dtype) in _described(spec, form).items()}


def require_hashable(spec: object) -> None:
    """Raise unless a spec can be hashed.

    Raises:
        ValueError: if a field of it can be changed.
    """
    try:
        hash(spec)
    except TypeError as error:
        raise ValueError(
            f"{type(spec).__name__} cannot be hashed ({error}), and a spec never changes; decorate it with "
            "@attrs.frozen(kw_only=True), and give its fields tuples in place of lists"
        ) from None


def _described(spec: Hashable, form: Form) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    require_hashable(spec)
    return _known_shapes(spec, form)


@lru_cache(maxsize=128)
def _known_shapes(spec: Hashable, form: Form) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    if isinstance(spec, DualEncoderSpec):  # of two towers that several models have, of which each is built once
        towers = {"image_encoder": spec.image, "text_encoder": spec.text}
        parts = (
            (f"{tower}.{name}", one) for tower, part in towers.items() for name, one in _described(part, form).items()
        )
        return {"logit_scale": ((), torch.float32), **dict(parts)}
    state = state_of(skeleton(cast("Buildable", spec), form))
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a model as files hold them: the logit scale without dimensions, nothing named as compiled.

    Args:
        model: any module of it may be compiled.
    """
    state = {name.replace(COMPILED, ""): tensor for name, tensor in model.state_dict().items()}
    if isinstance(model.spec, DualEncoderSpec):
        state["logit_scale"] = state["logit_scale"].reshape(())
    return state


def form_of(model: nn.Module) -> Form:
    """Return the form that `model`, an encoder with a `.spec`, is in.

    Raises:
        ValueError: if it is in none, since blocks or layers were exchanged after it was built.
    """
    own = {name: tuple(tensor.shape) for name, tensor in state_of(model).items()}
    for form in FORMS:
        described = tensor_shapes(cast("Hashable", model.spec), form)
        if described == own:
            return form
        if described.keys() == own.keys():
            name = next(name for name in own if own[name] != described[name])
            raise ValueError(
                f"{name} has the shape {own[name]}, and the model's spec describes {described[name]}: a file of it "
                "could not be loaded again; change the spec (attrs.evolve) and build the model from it"
            )
    raise ValueError(
        f"this {type(model).__name__} has other tensors than its spec describes in any form; "
        "checkpoints hold models as their spec builds them, in training form or folded"
    )
