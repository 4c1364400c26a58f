"""The loss's terms as one operation of PyTorch: each tile is computed once, for values and gradients.

An operation, because `torch.compile` would unroll the tiles into its graph and reorder them: memory is bounded only as
long as they come one after the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mobileclip.losses.embeddings import EmbeddingBatch, compute_dtype
from mobileclip.losses.tiled.collectives import Processes
from mobileclip.losses.tiled.terms import CaptionSet, TermSum

_LIBRARY = torch.library.Library("mobileclip", "FRAGMENT")  # type: ignore[no-untyped-call]
# The fields of `EmbeddingBatch`, then the arguments of `pair_terms`.
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "pair_terms(Tensor image, Tensor text, Tensor? syn_text, Tensor logit_scale, Tensor? logit_bias, "
    "Tensor? teacher_image, Tensor? teacher_text, Tensor? teacher_syn_text, int[] teacher_dims, "
    "float[] teacher_logit_scales, float?[] teacher_biases, bool contrastive, bool release, str? group_name, "
    "bool gradients) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_NUM_INPUTS = 5  # that gradients are by: image, text, syn_text, logit_scale, logit_bias
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tiled_terms(
    batch: EmbeddingBatch, *, contrastive: bool, distillation: bool, release: bool, group_name: str | None
) -> tuple[Tensor, Tensor]:
    """Return the contrastive term and the distillation term, zero where it is not wanted; they carry gradients.

    Args:
        batch: this process's embeddings.
        contrastive: whether the first is wanted.
        distillation: whether the second is wanted, for which the batch has teachers.
        release: whether a sigmoid loss distils by the release's loss with soft signs.
        group_name: name of the group that the batch is spread over; None where this process has the whole batch.

    Raises:
        ValueError: what `EmbeddingBatch.check` raises, or if the processes' batches do not fit together.
    """
    student = (batch.image, batch.text, batch.syn_text, batch.logit_scale, batch.logit_bias)
    gradients = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in student)
    operation = _Differentiable.apply if gradients else torch.ops.mobileclip.pair_terms.default
    found = [*operation(*batch, contrastive, release, group_name, gradients)]  # type: ignore[no-untyped-call]
    zero = batch.image.new_zeros((), dtype=compute_dtype(batch.image))
    return found.pop(0) if contrastive else zero, found[0] if distillation else zero


@torch.library.impl(_LIBRARY, "pair_terms", "CompositeExplicitAutograd")
def pair_terms(*arguments: Any) -> list[Tensor]:
    """Return the wanted terms, summed over the caption sets, then the gradients of each.

    Gradients are by image, text and, where given, synthetic captions, then by the scale and, where given, the bias, as
    one vector.
    """
    *fields, contrastive, release, group_name, gradients = arguments
    batch, processes = EmbeddingBatch(*fields), Processes(group_name)
    _check(batch, processes)
    image, biased = batch.image, batch.logit_bias is not None
    wanted = processes.any(gradients, image.device)
    sums = [
        TermSum(image, dtype=compute_dtype(image), gradients=wanted, bias=biased) if term else None
        for term in (contrastive, batch.teacher_dims)
    ]
    active = [one for one in sums if one is not None]
    with torch.autocast(image.device.type, enabled=False):
        for text, teacher_text in batch.captions():
            captions = CaptionSet(batch, text, teacher_text, release=release, processes=processes)
            for one in active:
                one.begin(captions.student)
            captions.add_to(*sums)
            del captions  # its memory is free before the next one takes its own
            for one in active:
                one.end(processes)
        found = [one.finish(len(image) * (1 if biased else 2), processes) for one in active]
    return [value for value, *_ in found] + [one for _, *by_inputs in found for one in by_inputs if gradients]


def _check(batch: EmbeddingBatch, processes: Processes) -> None:
    """Raise, on every process, unless the embeddings of all processes fit together."""
    error: ValueError | None = None
    try:
        batch.check()
    except ValueError as found:
        error = found
    image = batch.image
    facts = {
        "the number of pairs": image.shape[0] if image.ndim else 0,
        "the embeddings' dim": image.shape[-1] if image.ndim else 0,
        "the number of caption sets": len(batch.captions()),
    }
    exchanged = {
        "text embeddings": batch.text,
        "synthetic captions' embeddings": batch.syn_text,
        "teachers' text embeddings": batch.teacher_text,
        "teachers' synthetic captions": batch.teacher_syn_text,
    }
    for name, one in exchanged.items():
        facts[f"the dtype of the {name}"] = -1 if one is None or one.dtype not in _DTYPES else _DTYPES.index(one.dtype)
    processes.agree(facts, error, image.device)


@torch.library.register_fake("mobileclip::pair_terms", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shapes(*arguments: Any) -> list[Tensor]:
    *fields, contrastive, _, _, gradients = arguments
    batch = EmbeddingBatch(*fields)
    num_terms, dtype = contrastive + bool(batch.teacher_dims), compute_dtype(batch.image)
    found = [batch.image.new_empty((), dtype=dtype) for _ in range(num_terms)]
    for _ in range(num_terms if gradients else 0):
        embeddings = (batch.image, *(text for text, _ in batch.captions()))
        found += [torch.empty_like(one, dtype=dtype) for one in embeddings]
        found.append(batch.image.new_empty(1 if batch.logit_bias is None else 2, dtype=dtype))
    return found


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.mobileclip.pair_terms.default(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.like = [None if one is None else (one.shape, one.dtype, one.device) for one in inputs[:_NUM_INPUTS]]
        ctx.num_rest = len(inputs) - _NUM_INPUTS
        ctx.num_terms = sum(one.ndim == 0 for one in output)
        ctx.save_for_backward(*output[ctx.num_terms :])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        factors, others = outer[: ctx.num_terms], outer[ctx.num_terms :]
        # What is compiled gets zeros for None, and PyTorch refuses second derivatives of it.
        if any(one is not None for one in others) and not torch.compiler.is_compiling():
            raise RuntimeError(
                "the tiles compute their first derivative with their value and have no second one; "
                "mobileclip.losses.dense_loss can be differentiated twice, as can a loss with backend='dense'"
            )
        found: list[Tensor | None] = [None] * _NUM_INPUTS
        share = len(ctx.saved_tensors) // ctx.num_terms
        for term, factor in enumerate(factors):
            image, text, *syn_text, shared = ctx.saved_tensors[term * share : (term + 1) * share]
            by_inputs = (image, text, syn_text[0] if syn_text else None, *shared, None)
            for place, gradient in enumerate(by_inputs[:_NUM_INPUTS]):
                if factor is not None and gradient is not None and ctx.needs_input_grad[place]:
                    known = found[place]
                    found[place] = factor * gradient if known is None else torch.addcmul(known, factor, gradient)
        fitted = (
            None if one is None else one.reshape(like[0]).to(dtype=like[1], device=like[2])
            for one, like in zip(found, ctx.like, strict=True)
        )
        return (*fitted, *[None] * ctx.num_rest)
