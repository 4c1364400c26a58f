"""Between the original and the fine-tuned weights: robust fine-tuning by averaging both models."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from mobileclip.encoders.checkpoints.layouts import form_of

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def interpolate_weights(original: Model, finetuned: Model, alpha: float) -> Model:
    """Return a model between two: `(1 - alpha) * original + alpha * finetuned`, in evaluation mode.

    Every tensor in floating point is interpolated, the logarithm of the logit scale among them; counters are those of
    `finetuned`. So are the running means and variances of batch norms. Where fine-tuning left them alone (frozen batch
    norms) they are equal. Where it moved them, the interpolation is not exact, as a variance is not linear in the
    weights, but it goes from the one model's to the other's. Statistics estimated anew, as for averages of one task's
    weights, would be the new task's at every alpha, and the old ones would be lost at once.

    Args:
        original: the model before, in training form; not changed.
        finetuned: the model after, with the same tensors; not changed.
        alpha: 0 is the original, 1 the fine-tuned model.

    Raises:
        ValueError: if the models have other tensors than one another, are folded, or alpha is outside of [0, 1].

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", section 3.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha goes from 0, the original, to 1, the fine-tuned model; got {alpha}")
    before, after = original.state_dict(), finetuned.state_dict()
    if before.keys() != after.keys():
        different = sorted(before.keys() ^ after.keys())
        raise ValueError(
            f"the models have other tensors, {len(different)} of them, the first is {different[0]!r}; interpolate "
            f"two models of one spec in training form, after adapters were merged"
        )
    for name, tensor in before.items():
        if tensor.shape != after[name].shape:
            raise ValueError(
                f"the models differ in {name!r}: {tuple(tensor.shape)} in the original and "
                f"{tuple(after[name].shape)} in the fine-tuned one; interpolate two models of one spec"
            )
    for model in (original, finetuned):
        if form_of(model) != "training":
            raise ValueError(
                "the models are folded; interpolate them in training form (load with fold=False), fold after: "
                "the average of products is not the product of averages"
            )
    between = copy.deepcopy(finetuned).eval()
    for name, tensor in between.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.lerp(before[name].to(tensor.device, tensor.dtype), after[name], alpha))
    return between
