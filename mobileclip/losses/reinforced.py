"""The reinforced loss: softmax or sigmoid, with a contrastive term, a distillation term or both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import attrs
import torch
from attrs import converters, validators
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from mobileclip.hardware import in_float64
from mobileclip.losses.specs import EmbeddingBatch, LossSpec, LossTerms, check_pair, compute_dtype, losses
from mobileclip.losses.tiled import tiled_terms
from mobileclip.strict import strict

MOST_DENSE_PAIRS = 512 * 512
"""Largest number of image-text pairs for which the dense backend is as fast as the tiled backend."""


def _ints(values: Iterable[int]) -> tuple[int, ...]:
    return tuple(values)


def _numbers(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(_number(value) for value in values)


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _positive(_: object, attribute: attrs.Attribute[Any], values: tuple[float, ...]) -> None:
    for value in values:
        if not value > 0:
            raise ValueError(f"{attribute.name} must be positive, but {values} contains {value}")


@losses.register("reinforced")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcedLossSpec(LossSpec):
    """The options of CLIP's or SigLIP's loss over all pairs in a batch, with or without teachers.

    The defaults are DataCompDR's teachers and the term weights of MobileCLIP-S0, S1 and S2.

    Args:
        teacher_dims: embedding dims of the teachers, in the order of concatenation; may be empty without distillation.
        teacher_logit_scales: inverse temperature of each teacher, after `exp`, in the order of `teacher_dims`; 100 each
            by default.
        tuned_scales: whether `teacher_logit_scales` were tuned for the student, as in MobileCLIP2; tuned scales may
            differ from the scales in the data set's card.
        distill_weight: weight `w` of the distillation term in MobileCLIP's Eq. 2, at least 0: 0.75 for MobileCLIP-B, 1
            for the smaller models, 0 to ignore teachers.
        contrastive_weight: weight `1 - w` of the contrastive term in MobileCLIP's Eq. 2, at least 0; by default 0, or 1
            without distillation.
        initial_logit_bias: initial bias of the student's logits in SigLIP's sigmoid loss (SigLIP: -10); None selects
            CLIP's softmax loss.
        teacher_logit_biases: for a sigmoid loss, the bias of each teacher in order, or None for a teacher with a
            softmax loss. None for the whole argument if all teachers have a softmax loss.
        sigmoid_distillation: distillation term of a sigmoid loss: `divergence` from the teachers' probabilities, or
            `release` for the loss with soft signs in the published code.
        backend: `dense` computes the whole matrix of logits, `tiled` computes one tile at a time; None selects by batch
            size and number of processes.

    Raises:
        ValueError: if the teachers' options differ in length, a number is out of range, `distill_weight` and
            `contrastive_weight` are both 0, distillation has no teachers, or options of a sigmoid loss are set for a
            softmax loss.

    Examples:
        >>> ReinforcedLossSpec(teacher_dims=(768, 512, 512)).teacher_logit_scales
        (100.0, 100.0, 100.0)
        >>> ReinforcedLossSpec(distill_weight=0.75, contrastive_weight=0.25).term_names
        ('contrastive', 'distillation')
        >>> ReinforcedLossSpec(distill_weight=0).term_names
        ('contrastive', None)
        >>> siglip = ReinforcedLossSpec(initial_logit_bias=-10, teacher_logit_biases=(-10, None))
        >>> siglip.teacher_biases  # SigLIP's teacher, then CLIP's
        (-10.0, None)
    """

    teacher_dims: tuple[int, ...] = attrs.field(default=(768, 768), converter=_ints, validator=_positive)
    teacher_logit_scales: tuple[float, ...] = attrs.field(
        default=attrs.Factory(lambda own: (100.0,) * len(own.teacher_dims), takes_self=True),
        converter=_numbers,
        validator=_positive,
    )
    tuned_scales: bool = False
    distill_weight: float = attrs.field(default=1.0, validator=validators.ge(0))
    contrastive_weight: float = attrs.field(
        default=attrs.Factory(lambda own: 0.0 if own.distill_weight else 1.0, takes_self=True),
        validator=validators.ge(0),
    )
    initial_logit_bias: float | None = attrs.field(default=None, converter=_number)
    teacher_logit_biases: tuple[float | None, ...] | None = attrs.field(
        default=None, converter=converters.optional(_numbers)
    )
    sigmoid_distillation: Literal["divergence", "release"] = "divergence"
    backend: Literal["dense", "tiled"] | None = None

    def __attrs_post_init__(self) -> None:
        if self.contrastive_weight == 0 and self.distill_weight == 0:
            raise ValueError(
                "contrastive_weight and distill_weight are both 0; set at least one of them to a positive number"
            )
        if self.distill_weight > 0 and not self.teacher_dims:
            raise ValueError("teacher_dims is empty; pass one number per teacher, or set distill_weight=0")
        softmax = "logit bias per teacher, None for a teacher with a softmax loss"
        for name, wanted in (("teacher_logit_scales", "logit scale per teacher"), ("teacher_logit_biases", softmax)):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.teacher_dims):
                raise ValueError(
                    f"teacher_dims {self.teacher_dims} has {len(self.teacher_dims)} teachers, but {name} {values} has "
                    f"{len(values)}; pass one {wanted}"
                )
        if self.initial_logit_bias is None and (self.teacher_logit_biases or self.sigmoid_distillation == "release"):
            raise ValueError(
                "teacher_logit_biases and sigmoid_distillation need a sigmoid loss; set initial_logit_bias"
            )

    @property
    def needs_teachers(self) -> bool:
        """Whether the loss has a distillation term, which needs teacher embeddings."""
        return self.distill_weight > 0

    @property
    def about_teachers(self) -> dict[str, tuple[float, ...]]:
        """Teacher options that must equal the data set's card, so not tuned scales; empty without distillation."""
        names = ("teacher_dims", *(() if self.tuned_scales else ("teacher_logit_scales",)))
        return {name: getattr(self, name) for name in names} if self.needs_teachers else {}

    @property
    def term_names(self) -> tuple[str | None, str | None]:
        """Names of the terms with positive weight; None for a term with weight 0."""
        return "contrastive" if self.contrastive_weight > 0 else None, "distillation" if self.needs_teachers else None

    @property
    def teacher_biases(self) -> tuple[float | None, ...]:
        """Logit bias of each teacher; None for a teacher with a softmax loss."""
        return self.teacher_logit_biases or (None,) * len(self.teacher_dims)

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> ReinforcedLoss:
        """Return the loss; see `LossSpec.build`."""
        return ReinforcedLoss(self, process_group=process_group)


class ReinforcedLoss(nn.Module):
    """The loss of reinforced training, summed over the images' real captions and, if given, their synthetic captions.

    The loss is `contrastive_weight * L_contrastive + distill_weight * L_distillation`; both terms are functions of
    `logits = logit_scale * image @ text.T`. The loss computes in float32, or in float64 if the student's embeddings are
    in float64. The loss normalises the teachers' embeddings, since stored embeddings are rounded and a scale of 100
    amplifies the error.

    With `initial_logit_bias`, the loss adds its parameter `logit_bias` to the logits. Add `logit_bias` to the
    optimiser, without weight decay, and to checkpoints; the gradient of `logit_bias` is already the mean over
    processes. A teacher with a softmax loss has no bias, so the sigmoid of its logits would match nearly every pair.
    The loss therefore uses the mean of the teacher's two softmaxes (images over texts and texts over images) as the
    probability of a pair.

    The tiled backend computes the values and gradients of the dense backend with memory that grows linearly with the
    batch, over any number of processes; `torch.compile` treats the tiled backend as one operation. The tiled backend
    computes gradients together with the value. Only the dense backend supports second derivatives.

    Shape: image, text, syn_text (B, D); teacher_image, teacher_text, teacher_syn_text (B, sum of teacher_dims) ->
    scalars.

    Args:
        spec: options of the loss; by default the options for MobileCLIP-S0, S1 and S2.
        process_group: processes that share the batch; see `LossSpec.build`.

    Raises:
        ValueError: if `process_group` is set with the dense backend.

    Source: MobileCLIP Eq. 2 and 3. For the sigmoid loss: Zhai et al., Sigmoid Loss for Language Image Pre-Training,
        2023, which starts with a logit scale of 10.

    Differs: the distillation term is the divergence, which is zero if the student equals the ensemble; the release
        reports the cross-entropy, which has the same gradient. Over several processes, a text's targets are the text's
        distribution over all images; one code path of the release uses the transpose of the images' targets, which is
        not a distribution. The release distils SigLIP with `-logsigmoid((2 p - 1) * logits)`
        (`sigmoid_distillation="release"`), which is not a divergence: the minimum is at infinite logits, not at the
        teachers' `p`, and a pair with `p = 1/2` has no gradient. The release uses 0 for a missing bias
        (`teacher_logit_biases` of 0), stored teacher embeddings without normalisation, and only real captions.

    Examples:
        >>> loss = ReinforcedLoss(ReinforcedLossSpec(teacher_dims=(4,), teacher_logit_scales=(10.0,)))
        >>> image, text = nn.functional.normalize(torch.rand(2, 8, 4), dim=-1)
        >>> terms = loss(image=image, text=text, logit_scale=10.0, teacher_image=image, teacher_text=text)
        >>> abs(terms.distillation.item()) < 1e-5  # the student agrees with its teacher
        True
    """

    def __init__(
        self, spec: ReinforcedLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
    ) -> None:
        super().__init__()
        self.spec = ReinforcedLossSpec() if spec is None else spec
        if process_group is not None and self.spec.backend == "dense":
            raise ValueError(
                "backend 'dense' needs one process with the whole batch; use 'tiled', or leave backend out"
            )
        # Store the group's name, since a custom operation accepts only plain values, and a group cannot be copied.
        self.group_name = None if process_group is None else process_group.group_name
        bias = self.spec.initial_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    def contrastive(self, logits: Tensor) -> Tensor:
        """Return the contrastive term of (B, B) logits with images as rows."""
        size = len(logits)
        if self.logit_bias is None:
            own = torch.arange(size, device=logits.device)
            return (F.cross_entropy(logits, own) + F.cross_entropy(logits.mT, own)) / 2
        signs = 2 * torch.eye(size, dtype=logits.dtype, device=logits.device) - 1
        return -F.logsigmoid(signs * (logits + self.logit_bias)).sum() / size

    def distillation(self, logits: Tensor, teachers: Iterable[Tensor]) -> Tensor:
        """Return the distillation term of (B, B) logits with images as rows, given the logits of each teacher."""
        if self.logit_bias is None:
            return distillation_loss(logits, *_mean_softmaxes(teachers))
        logits = logits + self.logit_bias
        p = torch.zeros_like(logits)
        for teacher, bias in zip(teachers, self.spec.teacher_biases, strict=True):
            p += (teacher.softmax(1) + teacher.softmax(0)) / 2 if bias is None else torch.sigmoid(teacher + bias)
        p = (p / len(self.spec.teacher_dims)).clamp_max(1)  # rounding may give more than 1
        if self.spec.sigmoid_distillation == "release":
            return -F.logsigmoid((2 * p - 1) * logits).sum() / len(logits)
        match = F.kl_div(F.logsigmoid(logits), p, reduction="sum")
        no_match = F.kl_div(F.logsigmoid(-logits), 1 - p, reduction="sum")
        return (match + no_match) / len(logits)

    def forward(
        self,
        *,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor | float,
        teacher_image: Tensor | None = None,
        teacher_text: Tensor | None = None,
        syn_text: Tensor | None = None,
        teacher_syn_text: Tensor | None = None,
    ) -> LossTerms:
        """Return the loss of a batch.

        Args:
            image: the student's unit-length image embeddings.
            text: the student's unit-length embeddings of the real captions.
            logit_scale: the student's inverse temperature, after `exp`.
            teacher_image: the teachers' embeddings of the student's augmented images, concatenated; ignored without
                distillation.
            teacher_text: the teachers' embeddings of the real captions, concatenated; ignored without distillation.
            syn_text: the student's unit-length embeddings of the synthetic captions; None for real captions only.
            teacher_syn_text: the teachers' embeddings of the synthetic captions, concatenated; None for real captions
                only.

        Raises:
            ValueError: if batch sizes or dims differ, teachers are missing, or distillation has only one of `syn_text`
                and `teacher_syn_text`.
        """
        spec = self.spec
        scale = logit_scale if isinstance(logit_scale, Tensor) else torch.tensor(logit_scale, dtype=torch.float64)
        student = (image, text, syn_text, scale, self.logit_bias)
        if spec.needs_teachers:
            stored = (None if one is None else one.detach() for one in (teacher_image, teacher_text, teacher_syn_text))
            dims, scales, biases = spec.teacher_dims, spec.teacher_logit_scales, spec.teacher_biases
            batch = EmbeddingBatch(*student, *stored, dims, scales, biases)  # type: ignore[call-arg, arg-type]
        else:
            batch = EmbeddingBatch(*student, None, None, None, (), (), ())
        if self._is_dense(image):
            contrastive, distillation = self._dense_terms(batch)
        else:
            contrastive, distillation = tiled_terms(
                batch,
                contrastive=spec.contrastive_weight > 0,
                distillation=spec.needs_teachers,
                release=spec.sigmoid_distillation == "release",
                group_name=self.group_name,
            )
        contrastive, distillation = spec.contrastive_weight * contrastive, spec.distill_weight * distillation
        return LossTerms(contrastive, distillation, contrastive + distillation)

    def extra_repr(self) -> str:
        """Return the spec, for `repr`."""
        return repr(self.spec)

    def _is_dense(self, image: Tensor) -> bool:
        if self.spec.backend is not None:
            return self.spec.backend == "dense"
        alone = self.group_name is None and not torch.compiler.is_compiling()
        return alone and image.ndim > 0 and len(image) ** 2 <= MOST_DENSE_PAIRS

    def _dense_terms(self, batch: EmbeddingBatch) -> tuple[Tensor, Tensor]:
        batch.check()
        contrastive = distillation = batch.image.new_zeros((), dtype=compute_dtype(batch.image))
        with torch.autocast(batch.image.device.type, enabled=False):
            for text, teacher_text in batch.captions():
                logits = similarity_logits(batch.image, text, batch.logit_scale)
                if self.spec.contrastive_weight > 0:
                    contrastive = contrastive + self.contrastive(logits)
                if batch.teacher_image is not None and teacher_text is not None:
                    dims, scales = batch.teacher_dims, batch.teacher_logit_scales
                    teachers = teacher_logits(batch.teacher_image, teacher_text, dims, scales)
                    distillation = distillation + self.distillation(logits, teachers)
        return contrastive, distillation


def similarity_logits(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Return the scaled similarity of every image with every text, `logit_scale * image @ text.T`.

    The function first casts low-precision embeddings to float32: at a scale of 100, a product in bfloat16 has an error
    of tenths of a logit.

    Shape: image (B, D), text (B, D) -> (B, B), with images as rows.
    """
    dtype = compute_dtype(image)
    scale = logit_scale.to(dtype).reshape(()) if isinstance(logit_scale, Tensor) else logit_scale
    return scale * (image.to(dtype) @ text.to(dtype).mT)


def distillation_loss(logits: Tensor, over_texts: Tensor, over_images: Tensor) -> Tensor:
    """Return the divergence of the student's softmaxes from the teachers' softmaxes, as the mean of both directions.

    The value is `(KL(over_texts || softmax(logits)) + KL(over_images || softmax(logits.T))) / 2`, each averaged over
    its rows. `mobileclip.losses.tiled` computes the same value over several processes, without a matrix of all pairs.

    Shape: logits (B, B) with images as rows, over_texts (B, B), over_images (B, B) with texts as rows -> ().

    Source: MobileCLIP Eq. 3.

    Differs: the release reports the cross-entropy, which is larger by the targets' entropy; the gradient is the same.

    Examples:
        >>> logits = torch.rand(4, 4)
        >>> abs(distillation_loss(logits, logits.softmax(1), logits.T.softmax(1)).item()) < 1e-6
        True
    """
    image_to_text = F.kl_div(logits.log_softmax(dim=1), over_texts, reduction="batchmean")
    text_to_image = F.kl_div(logits.mT.log_softmax(dim=1), over_images, reduction="batchmean")
    return (image_to_text + text_to_image) / 2


@torch.no_grad()
def teacher_targets(
    image: Tensor, text: Tensor, *, teacher_dims: Sequence[int], teacher_logit_scales: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return two distributions of the teacher ensemble: of images over texts, and of texts over images.

    The first distribution is `1/K sum_k softmax(scale_k * image_k @ text_k.T)`; the second has image and text
    exchanged.

    Shape: image, text (B, sum of dims) -> (B, B) with images as rows, (B, B) with texts as rows; each row sums to one.

    Args:
        image: the teachers' image embeddings, concatenated; the function normalises each teacher's embeddings.
        text: the teachers' text embeddings, concatenated in the order of `teacher_dims`.
        teacher_dims: embedding dim of each teacher.
        teacher_logit_scales: inverse temperature of each teacher, after `exp`, in the order of `teacher_dims`.

    Differs: one code path of the release uses the transpose of the first distribution as the second; the rows of the
        transpose do not sum to one.

    Examples:
        >>> teachers = {"teacher_dims": (4, 3), "teacher_logit_scales": (100.0, 50.0)}
        >>> over_texts, over_images = teacher_targets(torch.rand(5, 7), torch.rand(5, 7), **teachers)
        >>> torch.allclose(over_images.sum(dim=1), torch.ones(5))
        True
    """
    return _mean_softmaxes(teacher_logits(image, text, teacher_dims, teacher_logit_scales))


def _mean_softmaxes(teachers: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    over_texts, over_images, count = torch.zeros(()), torch.zeros(()), 0
    for count, logits in enumerate(teachers, 1):
        over_texts = logits.softmax(dim=1) if count == 1 else over_texts.add_(logits.softmax(dim=1))
        over_images = logits.mT.softmax(dim=1) if count == 1 else over_images.add_(logits.mT.softmax(dim=1))
    return over_texts.div_(count), over_images.div_(count)


def teacher_logits(image: Tensor, text: Tensor, dims: Sequence[int], scales: Sequence[float]) -> Iterator[Tensor]:
    """Yield each teacher's `scale_k * image_k @ text_k.T`, computed with normalised embeddings.

    Shape: image, text (B, sum of dims) -> (B, B) per teacher, with images as rows.
    """
    images, texts = (torch.split(one.to(compute_dtype(one)), list(dims), dim=1) for one in (image, text))
    for image_k, text_k, scale in zip(images, texts, scales, strict=True):
        yield similarity_logits(F.normalize(image_k, dim=1), F.normalize(text_k, dim=1), scale)


def dense_loss(spec: LossSpec, *, logit_bias: Tensor | float = 0.0, **embeddings: Any) -> LossTerms:
    """Return the loss of `spec`, computed by the dense backend.

    Args:
        spec: spec of a reinforced loss.
        logit_bias: bias of the student's logits in a sigmoid loss; ignored for a softmax loss.
        embeddings: keyword arguments of the loss; see `ReinforcedLoss.forward`.

    Raises:
        ValueError: if `spec` is not the spec of a reinforced loss.

    Examples:
        >>> image, text = nn.functional.normalize(torch.rand(2, 8, 4), dim=-1)
        >>> dense = dense_loss(ContrastiveLossSpec(), image=image, text=text, logit_scale=10.0)
        >>> torch.allclose(dense.total, ContrastiveLoss()(image=image, text=text, logit_scale=10.0).total)
        True
    """
    if not isinstance(spec, ReinforcedLossSpec):
        raise ValueError(f"{type(spec).__name__} has no dense form; dense_loss is for the reinforced losses only")
    loss = attrs.evolve(spec, backend="dense").build()
    bias = {} if loss.logit_bias is None else {"logit_bias": torch.as_tensor(logit_bias)}
    terms: LossTerms = torch.func.functional_call(loss, bias, kwargs=embeddings)
    return terms


ContrastiveLossSpec = partial(ReinforcedLossSpec, teacher_dims=(), distill_weight=0.0)
"""The contrastive loss of CLIP, which matches every image to its text in the batch, and every text to its image."""
SigmoidLossSpec = partial(ReinforcedLossSpec, teacher_dims=(), distill_weight=0.0, initial_logit_bias=-10.0)
"""The sigmoid loss of SigLIP, with an initial bias so low that almost no pair matches."""
ReinforcedSigmoidLossSpec = partial(ReinforcedLossSpec, initial_logit_bias=-10.0)
"""The divergence of the student's sigmoid probabilities from the teachers' probabilities."""
losses.add("contrastive", ContrastiveLossSpec)
losses.add("sigmoid", SigmoidLossSpec)
losses.add("reinforced_sigmoid", ReinforcedSigmoidLossSpec)


def ContrastiveLoss(  # noqa: N802
    spec: ReinforcedLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
) -> ReinforcedLoss:
    """Return the contrastive loss; see `ReinforcedLoss`.

    Examples:
        >>> alike = torch.full((8, 4), 0.5)
        >>> ContrastiveLoss()(image=alike, text=alike, logit_scale=10.0).total  # 8 identical pairs: log(8)
        tensor(2.0794)
    """
    return ReinforcedLoss(spec or ContrastiveLossSpec(), process_group=process_group)


def SigmoidLoss(  # noqa: N802
    spec: ReinforcedLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
) -> ReinforcedLoss:
    """Return the sigmoid loss of SigLIP; see `ReinforcedLoss`.

    Examples:
        >>> loss = SigmoidLoss()(image=torch.eye(4), text=torch.eye(4), logit_scale=10.0)
        >>> round(loss.total.item(), 4)  # 10 * 1 - 10 for a match: log(2); 10 * 0 - 10 for three others: close to 0
        0.6933
    """
    return ReinforcedLoss(spec or SigmoidLossSpec(), process_group=process_group)


def ReinforcedSigmoidLoss(  # noqa: N802
    spec: ReinforcedLossSpec | None = None, *, process_group: distributed.ProcessGroup | None = None
) -> ReinforcedLoss:
    """Return SigLIP's loss with teachers; see `ReinforcedLoss`.

    Examples:
        >>> spec = ReinforcedSigmoidLossSpec(teacher_dims=(4,), teacher_logit_scales=(10,), teacher_logit_biases=(-10,))
        >>> image, text = nn.functional.normalize(torch.rand(2, 8, 4), dim=-1)
        >>> teachers = {"teacher_image": image, "teacher_text": text}
        >>> terms = ReinforcedSigmoidLoss(spec)(image=image, text=text, logit_scale=10.0, **teachers)
        >>> abs(terms.distillation.item()) < 1e-5  # the student agrees with its teacher
        True
    """
    return ReinforcedLoss(spec or ReinforcedSigmoidLossSpec(), process_group=process_group)


@attrs.frozen(kw_only=True)
class TargetDivergence:
    """KL divergence between each teacher's exact and stored targets, in nats, averaged over the batch.

    Args:
        image_to_text: KL divergence for the images' distributions over the texts, one value per teacher.
        text_to_image: KL divergence for the texts' distributions over the images, one value per teacher.

    Examples:
        >>> TargetDivergence(image_to_text=(0.25, 0.5), text_to_image=(0.25, 1.0)).mean
        0.5
    """

    image_to_text: tuple[float, ...]
    text_to_image: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the teachers and both directions."""
        values = self.image_to_text + self.text_to_image
        return sum(values) / len(values)


@torch.no_grad()
def distillation_target_kl(
    stored_image: Tensor,
    stored_text: Tensor,
    *,
    exact_image: Tensor,
    exact_text: Tensor,
    teacher_dims: Sequence[int],
    teacher_logit_scales: Sequence[float],
) -> TargetDivergence:
    """Return each teacher's KL divergence between the softmaxes from exact and from stored embeddings.

    The value is `KL(softmax(scale * exact_image @ exact_text.T) || softmax(scale * stored_image @ stored_text.T))`, and
    the divergence with image and text exchanged, each averaged over rows. Like the loss, the function normalises the
    embeddings; the whole computation is in float64, since the divergence is small.

    Shape: all embeddings (B, sum of dims) -> one value per teacher.

    Args:
        stored_image: the teachers' stored image embeddings, concatenated.
        stored_text: the teachers' stored text embeddings, in the order of the images.
        exact_image: the teachers' exact image embeddings, concatenated.
        exact_text: the teachers' exact text embeddings, in the order of the images.
        teacher_dims: embedding dim of each teacher, in order of concatenation.
        teacher_logit_scales: inverse temperature of each teacher, after `exp`.

    Raises:
        ValueError: if the batch sizes differ, the embedding dim is not the sum of `teacher_dims`, or
            `teacher_logit_scales` does not have one value per teacher.

    Source: MobileCLIP Eq. 3, for the targets.

    Examples:
        >>> image, text = nn.functional.normalize(torch.randn(2, 8, 64), dim=-1)
        >>> stored, exact = (image.bfloat16(), text.bfloat16()), {"exact_image": image, "exact_text": text}
        >>> 0 < distillation_target_kl(*stored, **exact, teacher_dims=(64,), teacher_logit_scales=(100.0,)).mean < 0.1
        True
    """
    check_pair(stored_image, stored_text, ("stored_image", "stored_text"))
    check_pair(exact_image, exact_text, ("exact_image", "exact_text"))
    check_pair(stored_image, exact_image, ("stored_image", "exact_image"))
    if sum(teacher_dims) != stored_image.shape[1] or len(teacher_dims) != len(teacher_logit_scales):
        raise ValueError(
            f"teacher_dims {tuple(teacher_dims)} must sum to the embeddings' dim {stored_image.shape[1]}, and "
            f"teacher_logit_scales {tuple(teacher_logit_scales)} must have one value per teacher"
        )
    stored, exact = (
        teacher_logits(in_float64(image), in_float64(text), teacher_dims, teacher_logit_scales)
        for image, text in ((stored_image, stored_text), (exact_image, exact_text))
    )
    found = [(_divergence(a, b), _divergence(a.mT, b.mT)) for a, b in zip(stored, exact, strict=True)]
    image_to_text, text_to_image = zip(*found, strict=True)
    return TargetDivergence(image_to_text=image_to_text, text_to_image=text_to_image)


def _divergence(logits: Tensor, targets: Tensor) -> float:
    predicted, target = logits.log_softmax(dim=1), targets.log_softmax(dim=1)
    return float(F.kl_div(predicted, target, reduction="batchmean", log_target=True))
