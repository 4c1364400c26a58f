"""Terms whose gradients are computed with their values: what a tile holds is there once, for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import attrs
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@attrs.frozen(eq=False)
class Term:
    """One term of a loss.

    Args:
        value: a scalar.
        gradients: its gradient by each input, in the inputs' order; None where none was asked for.
    """

    value: Tensor
    gradients: Sequence[Tensor] | None


Evaluate = Callable[[], Sequence[Term]]


class _Evaluated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, evaluate: Evaluate, *inputs: Tensor) -> tuple[Tensor, ...]:
        terms = evaluate()
        ctx.set_materialize_grads(False)
        ctx.like = [(one.shape, one.dtype, one.device) for one in inputs]
        ctx.save_for_backward(*(gradient for term in terms for gradient in term.gradients or ()))
        return tuple(term.value for term in terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(ctx.like)
        found: list[Tensor | None] = [None] * count
        for term, factor in enumerate(outer):
            for place in range(count):
                if factor is None or not ctx.needs_input_grad[place + 1]:
                    continue
                more = factor * ctx.saved_tensors[term * count + place]
                known = found[place]
                found[place] = more if known is None else known.add_(more)
        cast_back = (
            None if gradient is None else gradient.reshape(shape).to(device=device, dtype=dtype)
            for gradient, (shape, dtype, device) in zip(found, ctx.like, strict=True)
        )
        return None, *cast_back


def differentiable(evaluate: Evaluate, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the values of the terms, which pass their gradients on to the inputs.

    Args:
        evaluate: computes the terms from the inputs; called at once, without recording.
        inputs: what the gradients are by.
    """
    return cast("tuple[Tensor, ...]", _Evaluated.apply(evaluate, *inputs))  # type: ignore[no-untyped-call]


def wants_gradients(inputs: Sequence[Tensor]) -> bool:
    """Return whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(one.requires_grad for one in inputs)
