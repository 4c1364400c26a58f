"""Operations on weights for fine-tuning: frozen or synchronised batch norms, and interpolation of two models."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from mobileclip.encoders.checkpoints.layouts import form_of
from mobileclip.reparam import in_classes

Model = TypeVar("Model", bound=nn.Module)
BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that always stays in evaluation mode: `train()` has no effect, so the statistics do not change.

    This class is an `nn.BatchNorm2d` with the same tensors and names, so saving, loading and folding work as usual.

    Shape: `(batch, channels, height, width)` for input and output.

    Arguments and errors are those of `nn.BatchNorm2d`.
    """

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:  # noqa: FBT001, FBT002 - torch's signature
        """Keep the norm in evaluation mode, for any `mode`."""
        del mode
        super().train(mode=False)
        return self


def freeze_batch_norm(model: Model) -> Model:
    """Return `model` with frozen batch norms: statistics, scales and shifts stay fixed, even after `train()`.

    Gradients pass through the frozen batch norms. The model keeps its tensors and their names.

    Args:
        model: model, modified in place unless it is itself a batch norm.
    """
    frozen = in_classes(model, lambda module: FrozenBatchNorm2d if isinstance(module, BatchNorm) else None)
    for module in frozen.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eval().requires_grad_(requires_grad=False)
    return frozen


def synchronise_batch_norm(model: Model) -> Model:
    """Return `model` with batch norms that use the statistics of all processes' batches; frozen norms stay frozen.

    Args:
        model: model, modified in place unless it is itself a batch norm.

    Raises:
        ValueError: if the run has only one process, or no CUDA device is available.
    """
    world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world_size < 2:
        raise ValueError(
            "synchronised batch norms need several processes, but this run has one; start the run with torchrun "
            "--nproc-per-node N, or freeze the batch norms"
        )
    if not torch.cuda.is_available():
        raise ValueError(
            "torch synchronises batch norms only on GPUs, but no CUDA device is available; freeze the batch norms"
        )
    synchronised = in_classes(model, lambda module: nn.SyncBatchNorm if _is_ordinary(module) else None)
    for module in synchronised.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.process_group = None
    return synchronised


def ordinary_batch_norm(model: Model) -> Model:
    """Return `model`, ready for folding: plain, trainable batch norms replace frozen and synchronised batch norms.

    Args:
        model: model, modified in place unless it is itself a batch norm.
    """
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.requires_grad_(requires_grad=True)
    return in_classes(model, lambda module: nn.BatchNorm2d if isinstance(module, BatchNorm) else None)


def _is_ordinary(module: nn.Module) -> bool:
    return isinstance(module, BatchNorm) and not isinstance(module, FrozenBatchNorm2d)


@torch.no_grad()
def interpolate_weights(original: Model, finetuned: Model, alpha: float) -> Model:
    """Return the interpolation of two models, `(1 - alpha) * original + alpha * finetuned`, in evaluation mode.

    The function interpolates every floating-point tensor, including the log of the logit scale and the running
    statistics of batch norms. Integer counters come from `finetuned`. With frozen batch norms, both models have the
    same statistics. Otherwise the interpolation is approximate, since a variance is not linear in the weights.
    Statistics estimated on the new task would be wrong for the old tasks at every alpha.

    Args:
        original: the model before fine-tuning, in training form; not modified.
        finetuned: the model after fine-tuning, with the same tensors; not modified.
        alpha: interpolation weight: 0 gives the original model, 1 the fine-tuned model.

    Raises:
        ValueError: if the models have different tensors or are reparameterized, or if alpha is outside [0, 1].

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", section 3.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 (the original model) and 1 (the fine-tuned model); got {alpha}")
    before, after = original.state_dict(), finetuned.state_dict()
    if before.keys() != after.keys():
        different = sorted(before.keys() ^ after.keys())
        raise ValueError(
            f"the models differ in {len(different)} tensors, such as {different[0]!r}; interpolate two models of "
            "one spec in training form, after merging adapters"
        )
    for name, tensor in before.items():
        if tensor.shape != after[name].shape:
            raise ValueError(
                f"the models differ in {name!r}: {tuple(tensor.shape)} in the original model and "
                f"{tuple(after[name].shape)} in the fine-tuned model; interpolate two models of one spec"
            )
    for model in (original, finetuned):
        if form_of(model) != "training":
            raise ValueError(
                "the models are folded; interpolate them in training form (load them with fold=False) and fold the "
                "result: the average of products is not the product of averages"
            )
    between = copy.deepcopy(finetuned).eval()
    for name, tensor in between.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.lerp(before[name].to(tensor.device, tensor.dtype), after[name], alpha))
    return between
