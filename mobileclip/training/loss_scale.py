"""Loss scaling for float16, whose small gradients would otherwise underflow to zero."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_FIRST, _STEPS_TO_GROWTH = 2.0**16, 2_000


class LossScale(nn.Module):
    """The factor of a loss whose gradients pass through float16.

    A step whose gradient overflows is left out, and halves it; 2,000 steps in a row that do not double it. Its numbers
    are buffers, so that they are saved and restored with the module that holds it.

    Source: `torch.amp.GradScaler`, with which the released scripts train.

    Examples:
        >>> scale = LossScale()
        >>> [scale.leaves_out(is_finite=finite) for finite in (True, False)], scale.factor.item()
        ([False, True], 32768.0)
    """

    factor: Tensor
    num_finite: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(_FIRST))
        self.register_buffer("num_finite", torch.tensor(0))

    def backward(self, loss: Tensor, parameters: Iterable[Tensor]) -> None:
        """Give each parameter the loss's gradient, without the factor that it was computed with."""
        (loss * self.factor).backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.factor)

    def leaves_out(self, *, is_finite: bool) -> bool:
        """Update the factor after a step; return whether the step is skipped because its gradient overflowed.

        Args:
            is_finite: whether the loss and its gradient are. At a factor of 1 it is not to blame, and nothing is left
                out.
        """
        if is_finite:
            self.num_finite += 1
            if self.num_finite == _STEPS_TO_GROWTH:
                self.factor *= 2
                self.num_finite.zero_()
            return False
        if self.factor <= 1:
            return False
        self.factor /= 2
        self.num_finite.zero_()
        return True
