"""Teachers: image-text models that compute stored embeddings, and ensembles of teachers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import attrs
import torch
import torch.nn.functional as F
from attrs import validators
from torch import Tensor

from mobileclip.encoders import DualEncoder, DualEncoderSpec
from mobileclip.encoders.checkpoints import LoadedCheckpoint, read_checkpoint
from mobileclip.hardware import WIDE_PRECISIONS, WidePrecision, dtype_of
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inputs import Color, ImageInput
from mobileclip.interop.open_clip_models import OpenClipSource, read_open_clip
from mobileclip.interop.transformers_models import TransformersSource, read_dual_encoder
from mobileclip.registry import Registry
from mobileclip.reparam import reparameterize
from mobileclip.serialization import register_spec_base
from mobileclip.strict import strict
from mobileclip.tensor_files.weights import weights_sha256


@runtime_checkable
class TextTeacher(Protocol):
    """Interface of a teacher that encodes texts; implementations must be thread-safe."""

    @property
    def name(self) -> str:
        """Display name; the names in an ensemble must differ."""

    @property
    def weights_sha256(self) -> str:
        """Hash of the teacher's weights, from the function `weights_sha256`; a resumed job compares the stored hash."""

    @property
    def dim(self) -> int:
        """Dimension of the joint embedding."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, normalised or not.

        Shape:
            (number of texts, dim).
        """


@runtime_checkable
class Teacher(TextTeacher, Protocol):
    """The interface that reinforcement requires of a teacher of images and texts."""

    @property
    def logit_scale(self) -> float:
        """The teacher's logit scale, a factor of cosine similarities; the distillation loss must use the same scale."""

    @property
    def image(self) -> ImageInput:
        """The teacher's image input, which includes the size of the augmented images."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of images, normalised or not.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, dim).
        """


class NotFiniteError(ValueError):
    """Raised if a teacher returns NaN or infinity."""


@attrs.frozen(eq=False)
class TeacherEnsemble:
    """Several teachers as one: the ensemble normalises each teacher's embedding, then concatenates the embeddings.

    Args:
        teachers: teachers with different names, at least one.

    Raises:
        ValueError: if there is no teacher, a name is duplicated, or teachers have different backgrounds for transparent
            images.

    Source: MobileCLIP, section 4.
    """

    teachers: tuple[Teacher, ...] = attrs.field(converter=tuple[Teacher, ...])

    def __attrs_post_init__(self) -> None:
        if not self.teachers:
            raise ValueError("an ensemble needs at least one teacher")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"teachers must have different names, got {', '.join(self.names)}")
        backgrounds = dict.fromkeys(teacher.image.background for teacher in self.teachers)
        if len(backgrounds) > 1:
            raise ValueError(
                "teachers need the same background for transparent images, but these teachers have "
                f"{', '.join(backgrounds)}; reinforce the data set once for each background"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the teachers."""
        return tuple(teacher.name for teacher in self.teachers)

    @property
    def dims(self) -> tuple[int, ...]:
        """Dims of the teachers, in the form required by the distillation loss."""
        return tuple(teacher.dim for teacher in self.teachers)

    @property
    def dim(self) -> int:
        """Dim of the concatenated embedding."""
        return sum(self.dims)

    @property
    def logit_scales(self) -> tuple[float, ...]:
        """Logit scales of the teachers, in the form required by the distillation loss."""
        return tuple(teacher.logit_scale for teacher in self.teachers)

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """The teachers' different image sizes in pixels, in ascending order."""
        return tuple(sorted({teacher.image.size for teacher in self.teachers}))

    @property
    def background(self) -> Color | None:
        """The background colour for transparent images; None drops the alpha channel."""
        return self.teachers[0].image.background_color

    def encode_images(self, pixels: Mapping[int, Tensor]) -> Tensor:
        """Return the concatenated embeddings of images.

        Shape:
            pixels: (batch, 3, size, size) uint8 for every size; result: (batch, sum of dims) float32.

        Args:
            pixels: the same images at every size of `image_sizes`.

        Raises:
            ValueError: if embeddings do not have the teacher's dim.
            NotFiniteError: if an embedding is not finite.
        """
        return self._join(lambda teacher: teacher.encode_images(pixels[teacher.image.size]))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the concatenated embeddings of texts.

        Shape:
            (number of texts, sum of dims) float32.

        Raises:
            ValueError: if embeddings do not have the teacher's dim.
            NotFiniteError: if an embedding is not finite.
        """
        return self._join(lambda teacher: teacher.encode_texts(texts))

    def _join(self, encode: Callable[[Teacher], Tensor]) -> Tensor:
        return torch.cat([unit_embeddings(teacher, encode(teacher)) for teacher in self.teachers], dim=-1)


def unit_embeddings(teacher: TextTeacher, embedding: Tensor) -> Tensor:
    """Return a teacher's embeddings in float32, normalised to unit length.

    Shape: (batch, dim) -> (batch, dim).

    Raises:
        ValueError: if the embeddings do not have the teacher's dim.
        NotFiniteError: if an embedding is not finite.
    """
    embedding = embedding.float()
    if embedding.shape[-1] != teacher.dim:
        raise ValueError(
            f"teacher {teacher.name} has dim {teacher.dim}, but its embeddings have {embedding.shape[-1]} dimensions; "
            "correct the teacher's dim"
        )
    if not bool(torch.isfinite(embedding).all()):
        raise NotFiniteError(f"teacher {teacher.name} returned NaN or infinity; check its weights and its precision")
    return F.normalize(embedding, dim=-1)


@attrs.frozen(kw_only=True)
class TeacherSpec(ABC):
    """Base class of teacher specs; register a subclass in `teachers` or with the entry point `mobileclip.teacher`.

    Examples:
        >>> from mobileclip.serialization import from_json, to_json
        >>> teacher = OpenClipTeacher(model="ViT-L-14", pretrained="openai")
        >>> from_json(to_json(teacher, unstructure_as=TeacherSpec), TeacherSpec) == teacher
        True
    """

    @abstractmethod
    def build(self, device: str = "cpu") -> Teacher:
        """Return the teacher with loaded weights.

        Args:
            device: device of the teacher, such as `cuda:1`; the teacher returns embeddings on the CPU.

        Raises:
            ValueError: if the weights do not exist or cannot be loaded.
        """


teachers: Registry[type[TeacherSpec]] = Registry("teacher")
"""Teacher specs by name; other packages register specs here or with an entry point in `mobileclip.teacher`."""

register_spec_base(TeacherSpec, teachers)


def build_ensemble(specs: Sequence[TeacherSpec], device: str = "cpu") -> TeacherEnsemble:
    """Return an ensemble of the teachers in the order of `specs`.

    Args:
        specs: specs of at least one teacher; the teachers' names must differ.
        device: device of the teachers.

    Raises:
        ValueError: if `specs` is empty, two teachers have the same name, or a teacher's weights cannot be loaded.
    """
    return TeacherEnsemble([spec.build(device) for spec in specs])


MAX_BATCH = 128


@attrs.frozen(kw_only=True, eq=False)
class ModelTeacher:
    """An image-text model as a teacher.

    Args:
        name: display name.
        clip: the model, which computes on the model's device in the precision of the weights.
        logit_scale: factor of cosine similarities; by default the model's logit scale, rounded to two decimals.
        max_batch: maximum number of images or texts per batch, to limit memory.
        weights_sha256: hash of the loaded weights; the class computes the hash by default.
    """

    name: str
    clip: ImageTextModel
    logit_scale: float = attrs.field(validator=validators.gt(0))
    max_batch: int = attrs.field(default=MAX_BATCH, validator=validators.gt(0))
    weights_sha256: str = attrs.field()

    @logit_scale.default
    def _logit_scale(self) -> float:
        return round(self.clip.similarity_scale, 2)

    @weights_sha256.default
    def _weights_sha256(self) -> str:
        return weights_sha256(self.clip.model.state_dict())

    @property
    def image(self) -> ImageInput:
        """The model's image input."""
        return self.clip.image_input

    @property
    def dim(self) -> int:
        """Dimension of the joint embedding."""
        return self.clip.embedding_dim

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of images.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, dim) float32, on the CPU.
        """
        chunks = torch.split(pixels.movedim(1, -1), self.max_batch) if len(pixels) else ()
        rows = [self.clip.encode_pixels(chunk, normalize=False) for chunk in chunks]
        return torch.cat(rows) if rows else torch.zeros(0, self.dim)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts.

        Shape:
            (number of texts, dim) float32, on the CPU.
        """
        return self.clip.encode_text(list(texts), normalize=False, batch_size=self.max_batch)


def teacher_of(
    stored: LoadedCheckpoint,
    name: Callable[[str], str],
    spec: CheckpointTeacher | OpenClipTeacher | TransformersTeacher,
    device: str,
) -> ModelTeacher:
    """Return the model in a checkpoint as a reparameterized teacher.

    Args:
        stored: the content of the checkpoint.
        name: function that maps the hash of the weights to the display name.
        spec: spec of the teacher, with logit scale, precision and batch size.
        device: device of the computation.

    Raises:
        ValueError: if the checkpoint is not an image-text model.
    """
    if not isinstance(stored.spec, DualEncoderSpec):
        raise ValueError(f"{name('')} has only one tower, but a teacher needs both towers")
    # Hash of the stored weights under this library's names: folding may differ in the last bit between machines.
    sha256 = weights_sha256(stored.tensors)
    built = stored.build()
    model = built if stored.form == "folded" else reparameterize(built, inplace=True)
    assert isinstance(model, DualEncoder)
    own_scale = round(float(model.similarity_scale.detach()), 2)
    model.requires_grad_(requires_grad=False).to(device=device, dtype=dtype_of(spec.precision))
    called = name(sha256)
    return ModelTeacher(
        name=called if spec.precision == "float32" else f"{called}/{spec.precision}",
        clip=ImageTextModel(model),
        logit_scale=own_scale if spec.logit_scale is None else spec.logit_scale,
        max_batch=spec.max_batch,
        weights_sha256=sha256,
    )


@teachers.register("checkpoint")
@attrs.frozen(kw_only=True, field_transformer=strict)
class CheckpointTeacher(TeacherSpec):
    """A checkpoint of an image-text model, folded for inference.

    Args:
        checkpoint: a file in Apple's, open_clip's or this library's layout, in training or folded form; or
            `hf-hub:OWNER/NAME`.
        model: name of the model, such as `mobileclip_b`; None to detect the name from the file.
        logit_scale: factor of cosine similarities; None for the model's own logit scale.
        precision: precision of the computation and of the weights after folding.
        max_batch: maximum number of images or texts per batch.
    """

    checkpoint: str = attrs.field(converter=os.fspath)
    model: str | None = None
    logit_scale: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(WIDE_PRECISIONS))
    max_batch: int = attrs.field(default=MAX_BATCH, validator=validators.gt(0))

    def build(self, device: str = "cpu") -> ModelTeacher:
        """Return the teacher with loaded weights.

        Raises:
            FileNotFoundError: if the file does not exist.
            CheckpointError: if names or shapes of tensors in the file do not match the model.
            ValueError: if the model name is unknown, or the checkpoint has only one tower.
        """
        stored, stem = read_checkpoint(self.checkpoint, self.model), Path(self.checkpoint).stem
        return teacher_of(stored, lambda sha256: f"{stem}-{sha256[:8]}", spec=self, device=device)


@teachers.register("open_clip")
@attrs.frozen(kw_only=True, field_transformer=strict)
class OpenClipTeacher(TeacherSpec):
    """A teacher from open_clip (extra `teachers`).

    Augmented images are square, so the model's own cropping does not matter.

    Args:
        model: name of a model in open_clip, such as `ViT-L-14`; `hf-hub:OWNER/NAME` or `local-dir:PATH`, which include
            weights; or the path of an architecture's JSON file.
        pretrained: open_clip's tag for the model's weights, or the path of a weights file; None if the model includes
            weights. If the weights of a tag need QuickGELU and the architecture does not use it, the teacher adds
            QuickGELU to the architecture.
        logit_scale: factor of cosine similarities; None for the model's own logit scale.
        precision: precision of the weights and the computation. Use bfloat16 on GPUs, and on CPUs with bfloat16
            instructions.
        max_batch: maximum number of images or texts per batch.

    Raises:
        ValueError: if `model` and `pretrained` together name no weights, or two sources of weights.

    Source: MobileCLIP, section 4, for two teachers: `ViT-L-14` with the tags `openai` and `datacomp_xl_s13b_b90k`.
    """

    model: str = attrs.field(default="ViT-L-14", validator=validators.min_len(1))
    pretrained: str | None = "openai"
    logit_scale: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(WIDE_PRECISIONS))
    max_batch: int = attrs.field(default=MAX_BATCH, validator=validators.gt(0))

    def __attrs_post_init__(self) -> None:
        self._source()

    def build(self, device: str = "cpu") -> ModelTeacher:
        """Return the teacher with loaded weights.

        Raises:
            ImportError: if open_clip is not installed.
            ValueError: if open_clip does not have the model or the tag, or the weights do not fit.
        """
        return teacher_of(read_open_clip(self._source()), self._source().name, spec=self, device=device)

    def _source(self) -> OpenClipSource:
        return OpenClipSource(model=self.model, pretrained=self.pretrained)


@teachers.register("transformers")
@attrs.frozen(kw_only=True, field_transformer=strict)
class TransformersTeacher(TeacherSpec):
    """A teacher from transformers (extra `transformers`): a model of type clip, metaclip_2 or siglip.

    The teacher ignores the bias of models with a sigmoid loss, since a constant bias does not change a softmax over
    similarities. Augmented images are square, so the model's own cropping does not matter.

    Args:
        model: a folder written by `save_pretrained`, or `OWNER/NAME` on the hub, such as
            `google/siglip2-so400m-patch14-384`.
        revision: revision of the hub repository; None for the newest revision.
        logit_scale: factor of cosine similarities; None for the model's own logit scale.
        precision: precision of the weights and the computation. Use bfloat16 on GPUs, and on CPUs with bfloat16
            instructions.
        max_batch: maximum number of images or texts per batch.

    Raises:
        ValueError: if `model` is neither a folder nor a name on the hub.
    """

    model: str = attrs.field(converter=os.fspath)
    revision: str | None = None
    logit_scale: float | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    precision: WidePrecision = attrs.field(default="float32", validator=validators.in_(WIDE_PRECISIONS))
    max_batch: int = attrs.field(default=MAX_BATCH, validator=validators.gt(0))

    def build(self, device: str = "cpu") -> ModelTeacher:
        """Return the teacher with loaded weights.

        Raises:
            ValueError: if the model does not exist, lacks weights, or is of an unsupported type.
            ImportError: if transformers is not installed.
        """
        source = TransformersSource(model=self.model, revision=self.revision)
        return teacher_of(read_dual_encoder(source), source.name, spec=self, device=device)
