"""Objectives: modules that compute the loss of a batch, with micro-batches that fit into memory."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import singledispatch
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import attrs
import torch
from attrs import validators
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from mobileclip.blocks.sequence import recompute, recomputed
from mobileclip.data import Batch, LabelledBatch, MixingSpec, RangeNumbers, ReinforcedBatch, TextBatch, normalize_pixels
from mobileclip.encoders import CoCa
from mobileclip.encoders.dual import MAX_LOGIT_SCALE
from mobileclip.losses import CaptionLossSpec, LossSpec, LossTerms, ReinforcedLossSpec, TextDistillationLossSpec, losses
from mobileclip.reparam import evaluating
from mobileclip.strict import strict
from mobileclip.training.cpu import fuse_for_cpu
from mobileclip.training.distributed import World
from mobileclip.training.selection import Learnability, PairLosses, choose_pairs

if TYPE_CHECKING:
    from mobileclip.data import RangeAugment
    from mobileclip.data.augmentation.mixing import Mixture
    from mobileclip.encoders import DualEncoder
    from mobileclip.inputs import ImageInput
    from mobileclip.training.spec import TrainingSpec


P = ParamSpec("P")
Result = TypeVar("Result")
# One row per sample of a batch; all rows are split into micro-batches together.
Rows: TypeAlias = Tensor | RangeNumbers


def max_logit_scale(model: nn.Module) -> float:
    """Return the maximum logit scale of `model`, or CLIP's maximum if the model has none."""
    most: float = getattr(model, "max_logit_scale", MAX_LOGIT_SCALE)
    return most


class Objective(nn.Module, ABC):
    """A model, its loss and its augmentation as one module, with all trained parameters.

    The objective computes the loss on the whole batch; the towers may process micro-batches.

    Args:
        spec: training options.
        model: model with a `spec`, which checkpoints store; the objective moves the model to the device, and sets it to
            training mode.
        world: the processes of the run.

    Raises:
        ValueError: if `channels_last` is set on the CPU.
    """

    model: Any

    def __init__(self, spec: TrainingSpec, *, model: nn.Module, world: World) -> None:
        super().__init__()
        if spec.channels_last and world.device.type == "cpu":
            raise ValueError(
                "channels_last is for GPUs; on the CPU, convolutional stages use this format by default; leave "
                "channels_last out"
            )
        self.spec = spec
        self.model = model
        if hasattr(model.spec, "image"):
            # Stored here: the model creates a new spec on each access, which the compiler cannot trace.
            self._contract = self.image_input
        self.loss = spec.loss.build(process_group=world.group)
        self.range_augment = None if spec.range_augment is None else spec.range_augment.build()
        self.loss_scale = LossScale() if spec.precision == "float16" else None
        # RangeAugment's operations run in random order, and the compiler would compile each order separately.
        self._changed = self.not_compiled(self._change)
        self.to(world.device).train()
        if spec.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if spec.memory.recompute:
            recompute(model)
        if world.device.type == "cpu":
            fuse_for_cpu(model)
        if spec.compile == "step":
            self.compile()
        elif spec.compile == "towers":
            for tower in self.towers:
                tower.compile()

    @property
    @abstractmethod
    def towers(self) -> tuple[nn.Module, ...]:
        """The model's encoders (and a captioner's decoder), which `compile="towers"` compiles."""

    @property
    def image_input(self) -> ImageInput:
        """The model's image input; not available for text towers."""
        contract: ImageInput = self.model.spec.image.input
        return contract

    @property
    def term_names(self) -> tuple[str | None, ...]:
        """Names of the loss terms in the log, without the total; None for a term that is not logged."""
        return self.spec.loss.term_names

    @property
    def readings(self) -> dict[str, float]:
        """Additional values of the model for the log, by name, such as its logit scale."""
        scale = getattr(self.model, "logit_scale", None)
        return {} if scale is None else {"logit_scale": scale.exp().item()}

    @property
    def uses_all_weights(self) -> bool:
        """Whether every weight gets a gradient; otherwise DistributedDataParallel searches for unused weights."""
        return True

    @abstractmethod
    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[Tensor, ...]:
        """Return the terms of the loss in the order of `term_names`, followed by the total.

        Args:
            batch: batch on the device; images are uint8 pixels or normalised floats.
            progress: finished fraction of the run, from 0 to 1.

        Raises:
            ValueError: if the batch lacks an input of the loss.
        """

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp the logit scale, if any, to its bounds; the training loop calls this after each optimiser step."""
        if (scale := getattr(self.model, "logit_scale", None)) is not None:
            least, most = self.spec.min_logit_scale, max_logit_scale(self.model)
            scale.clamp_(min=None if least is None else math.log(least), max=math.log(most))

    def normalized(self, image: Tensor) -> Tensor:
        """Return normalised images in the model's memory format; floating-point images are already normalised."""
        memory_format = torch.channels_last if self.spec.channels_last else torch.contiguous_format
        if image.is_floating_point():
            return image.contiguous(memory_format=memory_format)
        return normalize_pixels(image, self._contract, memory_format=memory_format)

    def image_rows(self, image: Tensor, progress: float) -> tuple[Tensor] | tuple[Tensor, Rows]:
        """Return the inputs of `images_of`: pixels and, with RangeAugment, the parameters of RangeAugment.

        Without micro-batches or in a compiled step, this function already applies RangeAugment (outside the compiled
        code), and returns the changed images and RangeAugment's loss terms.

        Args:
            image: images of the whole batch, as stored in `batch.image`.
            progress: finished fraction of the run, from 0 to 1.
        """
        augment = self.range_augment
        if augment is None or not augment.training:
            return (image,)
        if self._piece_size(image) is None or torch.compiler.is_compiling():
            changed, terms = self._changed(augment, image, progress)
            return changed, terms
        return image, augment.draw(len(image), progress=progress, device=image.device)

    def images_of(self, image: Tensor, numbers: Rows | None = None) -> tuple[Tensor, ...]:
        """Return normalised images and, with RangeAugment, the loss term of each image.

        Args:
            image: all or some of the images from `image_rows`.
            numbers: RangeAugment's parameters for the images in `image`, or RangeAugment's loss terms if `image_rows`
                has already changed the images; None without RangeAugment.
        """
        image = self.normalized(image)
        if self.range_augment is None or numbers is None:
            return (image,)
        if isinstance(numbers, Tensor):
            return image, numbers
        return self.range_augment.change(image, numbers, mean=self._contract.mean, std=self._contract.std)

    def not_compiled(self, function: Callable[P, Result]) -> Callable[P, Result]:
        """Return the function, excluded from compilation if `torch.compile` compiles whole steps."""
        if self.spec.compile != "step":
            return function  # PyTorch's compiler takes seconds to import
        left_out: Callable[P, Result] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return left_out

    def _change(self, augment: RangeAugment, image: Tensor, progress: float) -> tuple[Tensor, ...]:
        return self.images_of(image, augment.draw(len(image), progress=progress, device=image.device))

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the model's autocast context."""
        narrow = torch.float16 if self.spec.precision == "float16" else torch.bfloat16
        return torch.autocast(device.type, dtype=narrow, enabled=self.spec.precision != "float32")

    def in_pieces(
        self, encode: Callable[..., tuple[Tensor, ...]], module: nn.Module, *inputs: Rows
    ) -> tuple[Tensor, ...]:
        """Return `encode(*inputs)`, computed in micro-batches; the backward pass recomputes each micro-batch.

        Args:
            encode: function that maps each input row independently to a row of each output tensor.
            module: the module with the parameters of `encode`.
            inputs: inputs of equal length, such as pixels that `encode` normalises.
        """
        size = self._piece_size(inputs[0])
        if size is None:
            return encode(*inputs)
        pieces = zip(*(rows.split(size) for rows in inputs), strict=True)
        made = [recomputed(encode, module, *piece) for piece in pieces]
        return tuple(torch.cat(parts) for parts in zip(*made, strict=True))

    def _piece_size(self, rows: Rows) -> int | None:
        """Return the micro-batch size; None for the whole batch."""
        size = self.spec.memory.micro_batch
        return None if size is None or len(rows) <= size else size


class ImageTextObjective(Objective):
    """The objective of an image-text model: the contrastive and distillation loss on images with texts.

    Args:
        spec: training options.
        model: the student.
        world: the processes of the run.

    Raises:
        ValueError: if the model is a classifier, if `compile` is set on a CPU with several threads, or for the reasons
            listed in `Objective`.
    """

    model: DualEncoder

    def __init__(self, spec: TrainingSpec, *, model: nn.Module, world: World) -> None:
        if not hasattr(model, "encode_text"):
            raise ValueError(
                f"{type(spec.loss).__name__} is for image-text models, but the model is a classifier; use "
                "CrossEntropySpec"
            )
        if spec.compile is not None and world.device.type == "cpu" and torch.get_num_threads() > 1:
            # Observed with PyTorch 2.13, for a text tower with convolutions: a kernel wrote 15 numbers past the end.
            raise ValueError(
                "compile is for GPUs or a single CPU thread: for several CPU threads, PyTorch's compiler generates "
                "kernels that write out of bounds of the token embedding's gradient "
                "(github.com/pytorch/pytorch/issues/191837); leave compile out, or set OMP_NUM_THREADS=1"
            )
        super().__init__(spec, model=model, world=world)
        self._learned_from = self.not_compiled(self._learnable)

    @property
    def towers(self) -> tuple[nn.Module, ...]:
        """The image encoder and the text encoder."""
        return self.model.image_encoder, self.model.text_encoder

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[Tensor, ...]:
        """Return the contrastive term, the distillation term and the total."""
        if not isinstance(batch, ReinforcedBatch):
            raise ValueError(
                f"{type(self.spec.loss).__name__} needs images with texts, but the batches are {type(batch).__name__}"
            )
        if self.spec.selection.is_active:
            batch = self._learned_from(batch)
        embeddings, augmentation = self._embed(batch, progress)
        terms: LossTerms = self.loss(**embeddings, **self._teachers(batch))
        return terms.contrastive, terms.distillation, with_mean(terms.total, augmentation)

    def _embed(self, batch: ReinforcedBatch, progress: float) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the embeddings for the loss, and RangeAugment's loss terms if any."""
        # Real and synthetic captions go through the text tower together, as one batch of twice the size.
        texts = {"text": batch.text} | ({} if batch.syn_text is None else {"syn_text": batch.syn_text})
        with self.autocast(batch.image.device):
            rows = self.image_rows(batch.image, progress)
            image_embedding, *augmentation = self.in_pieces(self._encode_image, self.model.image_encoder, *rows)
            text = torch.cat(list(texts.values()))
            (text_embedding,) = self.in_pieces(self._encode_text, self.model.text_encoder, text)
        return {
            "image": _unit(image_embedding),
            **dict(zip(texts, _unit(text_embedding).chunk(len(texts)), strict=True)),
            "logit_scale": self.model.logit_scale.exp(),
        }, augmentation

    @torch.no_grad()
    def _learnable(self, batch: ReinforcedBatch) -> ReinforcedBatch:
        """Return the selected samples of a batch; for the selection, the student runs in evaluation mode."""
        loss, selection = self.spec.loss, self.spec.selection
        assert isinstance(loss, ReinforcedLossSpec), "checked by the spec"
        teachers = self._stored(batch)
        with evaluating(self.model), self.autocast(batch.image.device):
            image = torch.cat([self.model.encode_image(self.normalized(one)) for one in self._parts(batch.image)])
            texts = {
                name: torch.cat([self.model.encode_text(one) for one in self._parts(ids)])
                for name, ids in (("text", batch.text), ("syn_text", batch.syn_text))
                if ids is not None
            }
        dims, scales = list(loss.teacher_dims), loss.teacher_logit_scales
        of_images = torch.split(teachers["teacher_image"], dims, dim=1)
        captions = [
            Learnability(
                student=PairLosses(image, text, self.model.logit_scale.exp()),
                teachers=[
                    PairLosses(*one)
                    for one in zip(
                        of_images, torch.split(teachers[f"teacher_{name}"], dims, dim=1), scales, strict=True
                    )
                ],
            )
            for name, text in texts.items()
        ]
        draws = torch.rand(selection.num_chunks, len(batch), dtype=torch.float64)
        return batch.at(choose_pairs(selection, captions, draws))

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        return torch.split(rows, self._piece_size(rows) or len(rows))

    def _encode_image(self, image: Tensor, *numbers: Rows) -> tuple[Tensor, ...]:
        image, *augmentation = self.images_of(image, *numbers)
        return self.model.encode_image(image), *augmentation

    def _encode_text(self, text: Tensor) -> tuple[Tensor]:
        return (self.model.encode_text(text),)

    def _teachers(self, batch: ReinforcedBatch) -> dict[str, Tensor]:
        return self._stored(batch) if self.spec.loss.needs_teachers else {}

    def _stored(self, batch: ReinforcedBatch) -> dict[str, Tensor]:
        """Return the stored teacher embeddings of a batch.

        Raises:
            ValueError: if the batch has no teacher embeddings.
        """
        if batch.teacher_image is None or batch.teacher_text is None:
            there = [name for name in attrs.fields_dict(ReinforcedBatch) if getattr(batch, name) is not None]
            raise ValueError(
                f"{type(self.spec.loss).__name__} needs teachers' embeddings, but the batches only have "
                f"{', '.join(there)}; train on reinforced shards, or use a loss without teachers"
            )
        teachers = {"teacher_image": batch.teacher_image, "teacher_text": batch.teacher_text}
        if batch.teacher_syn_text is not None:
            teachers["teacher_syn_text"] = batch.teacher_syn_text
        return teachers


def _unit(embedding: Tensor) -> Tensor:
    """Return embeddings of length 1, computed in float32, because bfloat16 has an error of up to 1/256."""
    return F.normalize(upcast(embedding), dim=-1)


def with_mean(total: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """Return `total` plus the mean of each tensor in `terms`; every tensor has one value per image."""
    for term in terms:
        total = total + term.mean()
    return total


def upcast(embedding: Tensor) -> Tensor:
    """Return an embedding in float32; an embedding in float64 stays unchanged."""
    return embedding.to(torch.promote_types(embedding.dtype, torch.float32))


@singledispatch
def build_objective(loss: LossSpec, *, spec: TrainingSpec, model: nn.Module, world: World) -> Objective:
    """Return the objective for a loss spec; a spec class without a registered objective counts as an image-text loss.

    Register your own objective for a loss spec class with `build_objective.register`.

    Args:
        loss: spec of the loss; the spec's class selects the objective.
        spec: training options.
        model: the student.
        world: the processes of the run.

    Raises:
        ValueError: if the loss does not fit the kind of model, such as cross-entropy for an image-text model, or for
            the reasons listed in `Objective`.
    """
    del loss
    return ImageTextObjective(spec, model=model, world=world)


def is_of_texts(loss: LossSpec) -> bool:
    """Return whether a loss is for image-text models, that is, no other objective is registered for its spec class."""
    return build_objective.dispatch(type(loss)) is build_objective.dispatch(object)


@losses.register("cross_entropy")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CrossEntropySpec(LossSpec):
    """Cross-entropy over classes: `-sum_c t_c log softmax(logits)_c`, averaged over the batch.

    The target `t` is one-hot, or a mixture of classes for mixed images. Label smoothing then scales targets by `1 -
    label_smoothing` and distributes the rest over all classes.

    Args:
        label_smoothing: fraction of the target to distribute over all classes, in [0, 1).
        mixing: settings of mixup and CutMix; None for neither.

    Source: FastViT (arXiv 2303.14189), with label smoothing 0.1, mixup 0.2 and CutMix 1.0; Szegedy et al. 2016, section
        7, for label smoothing.

    Examples:
        >>> loss = CrossEntropySpec(label_smoothing=0.1).build()
        >>> loss(torch.zeros(2, 4), torch.tensor([0, 3]))  # ln 4 for all labels
        tensor(1.3863)
    """

    label_smoothing: float = attrs.field(default=0.0, validator=[validators.ge(0), validators.lt(1)])
    mixing: MixingSpec | None = None

    @property
    def needs_teachers(self) -> bool:
        """False: the loss needs labels, but no teachers."""
        return False

    @property
    def term_names(self) -> tuple[str | None, str | None]:
        """None for both terms: the loss has neither a contrastive nor a distillation term."""
        return None, None

    def build(self, *, process_group: distributed.ProcessGroup | None = None) -> nn.CrossEntropyLoss:
        """Return the loss of logits `(batch, classes)` with labels `(batch,)` or probabilities `(batch, classes)`."""
        del process_group  # the mean over processes equals the mean over their images
        return nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)


class ClassificationObjective(Objective):
    """The objective of a classifier: cross-entropy on batches of images and labels.

    Args:
        spec: training options with a cross-entropy loss.
        model: the classifier, or another module that maps images to logits.
        world: the processes of the run.

    Raises:
        ValueError: if the model is an image-text model, or for the reasons listed in `Objective`.
    """

    def __init__(self, spec: TrainingSpec, *, model: nn.Module, world: World) -> None:
        if hasattr(model, "encode_text"):
            raise ValueError(
                f"cross-entropy is for classifiers, but the model is a {type(model).__name__}; put its image encoder "
                "into a mobileclip.encoders.Classifier"
            )
        super().__init__(spec, model=model, world=world)
        assert isinstance(spec.loss, CrossEntropySpec), "the loss class selects the objective"
        self._draw = None if spec.loss.mixing is None else self.not_compiled(spec.loss.mixing.draw)

    @property
    def towers(self) -> tuple[nn.Module, ...]:
        """The image encoder."""
        return (getattr(self.model, "image_encoder", self.model),)

    @property
    def term_names(self) -> tuple[str | None, ...]:
        """Empty: the loss has no terms besides the total."""
        return ()

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[Tensor, ...]:
        """Return the total loss as the only term."""
        if not isinstance(batch, LabelledBatch):
            raise ValueError(f"cross-entropy needs images with labels, but the batches are {type(batch).__name__}")
        image = batch.image
        mixture = None if self._draw is None else self._draw(image.shape, image.device)
        with self.autocast(image.device):
            logits, *augmentation = self._logits(self.image_rows(image, progress), mixture)
        logits = upcast(logits)
        targets = F.one_hot(batch.label, logits.shape[1]).to(logits.dtype)
        if mixture is not None:
            targets = mixture.between(targets, targets.flip(0))
        return (with_mean(self.loss(logits, targets), augmentation),)

    def _logits(self, rows: tuple[Rows, ...], mixture: Mixture | None) -> tuple[Tensor, ...]:
        """Return the logits, and RangeAugment's loss terms if any."""
        partners = () if mixture is None else tuple(one.flip(0) for one in rows)

        def encode(*pieces: Any) -> tuple[Tensor, ...]:
            image, *augmentation = self.images_of(*pieces[: len(rows)])
            if mixture is not None:
                image = mixture.images(image, self.images_of(*pieces[len(rows) :])[0])
            return self.model(image), *augmentation

        return self.in_pieces(encode, self.model, *rows, *partners)


@build_objective.register(CrossEntropySpec)
def _(loss: CrossEntropySpec, *, spec: TrainingSpec, model: nn.Module, world: World) -> ClassificationObjective:
    del loss
    return ClassificationObjective(spec, model=model, world=world)


class CaptionObjective(Objective):
    """The objective of a captioner: the caption loss and the contrastive loss on images with one caption each.

    Args:
        spec: training options with a `CaptionLossSpec`.
        model: the captioner.
        world: the processes of the run.

    Raises:
        ValueError: if the model is not a captioner, or for the reasons listed in `Objective`.
    """

    model: CoCa

    def __init__(self, spec: TrainingSpec, *, model: nn.Module, world: World) -> None:
        if not isinstance(model, CoCa):
            raise ValueError(
                f"CaptionLossSpec is for captioners, but the model is a {type(model).__name__}; build one with "
                "mobileclip.encoders.CoCaSpec"
            )
        super().__init__(spec, model=model, world=world)

    @property
    def towers(self) -> tuple[nn.Module, ...]:
        """The image encoder, the text encoder and the decoder."""
        return self.model.image_encoder, self.model.text_encoder, self.model.decoder

    @property
    def uses_all_weights(self) -> bool:
        """Whether every weight gets a gradient; without a contrastive term, logit scale and projections get none."""
        return self.spec.loss.contrastive_weight > 0  # type: ignore[attr-defined, no-any-return]

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[Tensor, ...]:
        """Return the contrastive term, the caption term and the total."""
        if not isinstance(batch, ReinforcedBatch) or batch.syn_text is not None:
            given = "images with two captions each" if isinstance(batch, ReinforcedBatch) else type(batch).__name__
            raise ValueError(
                f"a captioner needs batches of images with one caption each, got {given}; set captions to 'real', "
                "'synthetic' or 'either'"
            )
        rows = self.image_rows(batch.image, progress)
        with self.autocast(batch.image.device):
            image, text, sums, *augmentation = self.in_pieces(self._encode, self.model, batch.text, *rows)
        terms: LossTerms = self.loss.of_sums(  # type: ignore[operator]
            image=image,
            text=text,
            logit_scale=self.model.logit_scale.reshape(()).exp(),
            sums=sums,
            labels=batch.text[:, 1:],
        )
        return terms.contrastive, terms.distillation, with_mean(terms.total, augmentation)

    def _encode(self, text: Tensor, image: Tensor, *numbers: Rows) -> tuple[Tensor, ...]:
        """Return image and text embeddings and each caption's negative log-likelihood, without storing the logits."""
        image, *augmentation = self.images_of(image, *numbers)
        out = self.model(image, text)
        return upcast(out.image), upcast(out.text), self.loss.sums(out.logits, out.labels), *augmentation  # type: ignore[operator]


@build_objective.register(CaptionLossSpec)
def _(loss: CaptionLossSpec, *, spec: TrainingSpec, model: nn.Module, world: World) -> CaptionObjective:
    del loss
    return CaptionObjective(spec, model=model, world=world)


class TextDistillationObjective(Objective):
    """The objective of text-tower distillation: the loss on texts with a teacher's embeddings.

    Args:
        spec: training options with a `TextDistillationLossSpec`.
        model: the text tower, which maps token ids to embeddings with the teacher's dimension.
        world: the processes of the run.

    Raises:
        ValueError: if the model embeds images, if the spec has options for images, or for the reasons listed in
            `Objective`.
    """

    def __init__(self, spec: TrainingSpec, *, model: nn.Module, world: World) -> None:
        if hasattr(model.spec, "image"):
            raise ValueError(
                f"TextDistillationLossSpec is for text towers, but the model is a {type(model).__name__}; train only "
                "its text_encoder, with a TextEncoderSpec"
            )
        of_images = [name for name in ("range_augment", "channels_last") if getattr(spec, name)]
        if of_images:
            raise ValueError(f"a text tower has no images; leave out the image options {' and '.join(of_images)}")
        super().__init__(spec, model=model, world=world)

    @property
    def towers(self) -> tuple[nn.Module, ...]:
        """The text tower."""
        return (self.model,)

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[Tensor, ...]:
        """Return the relation term, the cosine term and the total."""
        del progress
        if not isinstance(batch, TextBatch):
            raise ValueError(
                "TextDistillationLossSpec needs texts with their teacher's embeddings, but the batches are "
                f"{type(batch).__name__}; use mobileclip.data.TextPipelineSpec"
            )
        with self.autocast(batch.text.device):
            (embedding,) = self.in_pieces(lambda text: (self.model(text),), self.model, batch.text)
        terms: LossTerms = self.loss(upcast(embedding), batch.teacher_text)
        return terms.contrastive, terms.distillation, terms.total


@build_objective.register(TextDistillationLossSpec)
def _(loss: TextDistillationLossSpec, *, spec: TrainingSpec, model: nn.Module, world: World) -> Objective:
    del loss
    return TextDistillationObjective(spec, model=model, world=world)


_FIRST, _STEPS_TO_GROWTH = 2.0**16, 2_000


class LossScale(nn.Module):
    """A factor for the loss that keeps gradients within the range of float16.

    If the gradient overflows, the run skips the step and halves the factor; after 2,000 steps without overflow, the run
    doubles the factor. The state is in buffers, so checkpoints include the state.

    Source: `torch.amp.GradScaler`, as in Apple's scripts.

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
        """Compute the gradients of the scaled loss, and divide the gradients by the factor."""
        (loss * self.factor).backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.factor)

    def leaves_out(self, *, is_finite: bool) -> bool:
        """Update the factor after a step; return whether to skip the step because the gradient overflowed.

        Args:
            is_finite: whether the loss and its gradient are finite. At a factor of 1, the method always returns False.
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
