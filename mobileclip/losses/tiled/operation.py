"""The terms of a loss as one operation of PyTorch: what a tile holds is there once, for the values and the gradients.

An operation, because `torch.compile` would unroll the tiles into its graph and reorder them: memory is bounded only as
long as they come one after the other.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mobileclip.losses.formulas import compute_dtype
from mobileclip.losses.tiled.batch import EmbeddingBatch
from mobileclip.losses.tiled.processes import Processes
from mobileclip.losses.tiled.sigmoid import add_sigmoid_terms
from mobileclip.losses.tiled.softmax import add_softmax_terms
from mobileclip.losses.tiled.tiles import TermSum

_LIBRARY = torch.library.Library("mobileclip", "FRAGMENT")  # type: ignore[no-untyped-call]
# The fields of `EmbeddingBatch`, then the arguments of `pair_terms`.
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "pair_terms(Tensor image, Tensor text, Tensor? syn_text, Tensor logit_scale, Tensor? logit_bias, "
    "Tensor? teacher_image, Tensor? teacher_text, Tensor? teacher_syn_text, int[] teacher_dims, "
    "float[] teacher_logit_scales, float?[] teacher_biases, bool contrastive, bool gradients, str? group_name) "
    "-> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_NUM_INPUTS = 5  # that gradients are by: image, text, syn_text, logit_scale, logit_bias


def pair_terms(batch: EmbeddingBatch, *, contrastive: bool, gradients: bool, group_name: str | None) -> list[Tensor]:
    """Return the terms, summed over the caption sets, then the gradients of each.

    The contrastive term where it is asked for, then the distillation term where there are teachers. Gradients are by
    image, text and, where given, synthetic captions, then by the scale and, where given, the bias, as one vector.

    Args:
        batch: this process's embeddings.
        contrastive: whether the first term is wanted.
        gradients: whether this process wants gradients.
        group_name: name of the group that the batch is spread over; None where this process has the whole batch.

    Raises:
        ValueError: what `EmbeddingBatch.check` raises.
    """
    processes, image = Processes(group_name), batch.image
    batch.check(processes)
    wanted = processes.any(gradients, image.device)
    softmax = batch.logit_bias is None
    terms = [
        TermSum(image, dtype=compute_dtype(image), gradients=wanted, bias=not softmax) if term else None
        for term in (contrastive, batch.teacher_dims)
    ]
    active = [term for term in terms if term is not None]
    with torch.autocast(image.device.type, enabled=False):
        for text, teacher_text in batch.captions():
            student, teachers = batch.student(text, processes), batch.teachers(teacher_text, processes)
            for term in active:
                term.begin(student)
            if batch.logit_bias is None:
                add_softmax_terms(*terms, student=student, teachers=teachers, gradients=wanted, processes=processes)
            else:
                add_sigmoid_terms(
                    *terms,
                    student=student,
                    teachers=teachers,
                    bias=batch.logit_bias,
                    teacher_biases=batch.teacher_biases,
                    gradients=wanted,
                    processes=processes,
                )
            for term in active:
                term.end(processes)
        found = [term.finish(len(image) * (2 if softmax else 1), processes) for term in active]
    return [value for value, *_ in found] + [one for _, *by_inputs in found for one in by_inputs if gradients]


@torch.library.impl(_LIBRARY, "pair_terms", "CompositeExplicitAutograd")
def _compute(*arguments: Any) -> list[Tensor]:
    *embeddings, contrastive, gradients, group_name = arguments
    return pair_terms(EmbeddingBatch(*embeddings), contrastive=contrastive, gradients=gradients, group_name=group_name)


@torch.library.register_fake("mobileclip::pair_terms", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shapes(*arguments: Any) -> list[Tensor]:
    *embeddings, contrastive, gradients, _ = arguments
    batch = EmbeddingBatch(*embeddings)
    num_terms, dtype = contrastive + bool(batch.teacher_dims), compute_dtype(batch.image)
    by_embeddings = (batch.image, batch.text, batch.syn_text)
    num_shared = 1 if batch.logit_bias is None else 2
    found = [batch.image.new_empty((), dtype=dtype) for _ in range(num_terms)]
    for _ in range(num_terms if gradients else 0):
        found += [torch.empty_like(one, dtype=dtype) for one in by_embeddings if one is not None]
        found.append(batch.image.new_empty(num_shared, dtype=dtype))
    return found


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.mobileclip.pair_terms.default(*arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.like = [None if one is None else (one.shape, one.dtype, one.device) for one in inputs[:_NUM_INPUTS]]
        ctx.num_arguments = len(inputs)
        ctx.num_terms = sum(one.ndim == 0 for one in output)
        ctx.save_for_backward(*output[ctx.num_terms :])

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        factors, others = outer[: ctx.num_terms], outer[ctx.num_terms :]
        # What is compiled gets zeros for None, and PyTorch refuses second derivatives of it.
        if any(one is not None for one in others) and not torch.compiler.is_compiling():
            raise RuntimeError(
                "the losses compute their first derivative with their value and have no second one; "
                "mobileclip.losses.dense_loss can be differentiated twice"
            )
        found: list[Tensor | None] = [None] * ctx.num_arguments
        share = len(ctx.saved_tensors) // ctx.num_terms
        for term, factor in enumerate(factors):
            image, text, *syn_text, shared = ctx.saved_tensors[term * share : (term + 1) * share]
            by_inputs = (image, text, syn_text[0] if syn_text else None, *shared, None)
            for place, gradient in enumerate(by_inputs[:_NUM_INPUTS]):
                known = found[place]
                if factor is None or gradient is None or not ctx.needs_input_grad[place]:
                    continue
                found[place] = factor * gradient if known is None else torch.addcmul(known, factor, gradient)
        for place, like in enumerate(ctx.like):
            if (gradient := found[place]) is not None:
                shape, dtype, device = like
                found[place] = gradient.reshape(shape).to(device=device, dtype=dtype)
        return tuple(found)


def evaluate(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the terms of the operation, called with its arguments in order; they pass gradients on to its inputs.

    Raises:
        ValueError: what `EmbeddingBatch.check` raises.
    """
    *_, gradients, _ = arguments
    if gradients:
        return cast("tuple[Tensor, ...]", _Differentiable.apply(*arguments))  # type: ignore[no-untyped-call]
    return tuple(torch.ops.mobileclip.pair_terms.default(*arguments))
