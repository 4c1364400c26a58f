"""Teachers: image-text models whose embeddings are stored, and ensembles of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import attrs
import torch
import torch.nn.functional as F
from attrs import validators
from torch import Tensor, nn

from mobileclip.inputs import ImageInput


@runtime_checkable
class Teacher(Protocol):
    """What reinforcement needs of a teacher; implementations may be called from several threads at once."""

    @property
    def name(self) -> str:
        """What tells this teacher, weights included, from every other; it is stored and compared when a job resumes."""

    @property
    def dim(self) -> int:
        """Dim of the joint embedding."""

    @property
    def logit_scale(self) -> float:
        """What the teacher multiplies cosine similarities with: the distillation loss needs the same number."""

    @property
    def image(self) -> ImageInput:
        """The image contract; images come augmented at its size."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of images, normalised or not.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, dim).
        """

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, normalised or not.

        Shape:
            (number of texts, dim).
        """


class ImageTextTower(Protocol):
    """A model as this library and open_clip build it."""

    def encode_image(self, image: Tensor) -> Tensor:
        """Return (batch, dim)."""

    def encode_text(self, text: Tensor) -> Tensor:
        """Return (batch, dim)."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the weights; inputs go to the first one's device."""

    def eval(self) -> object:
        """Switch to evaluation mode."""


@attrs.frozen(kw_only=True, eq=False)
class ModelTeacher:
    """A dual encoder of this library, or of open_clip, as a teacher.

    Args:
        name: what tells it, weights included, from every other.
        model: switched to evaluation mode.
        tokenizer: texts to ids.
        image: the image contract of the model.
        dim: dim of its joint embedding.
        logit_scale: what it multiplies cosine similarities with, after exp.
    """

    name: str
    model: ImageTextTower
    tokenizer: Callable[[Sequence[str]], Tensor]
    image: ImageInput
    dim: int = attrs.field(validator=validators.gt(0))
    logit_scale: float = attrs.field(default=100.0, validator=validators.gt(0))

    def __attrs_post_init__(self) -> None:
        self.model.eval()

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of images.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, dim) float32, on the CPU.
        """
        first = next(iter(self.model.parameters()))
        images = normalize_pixels(pixels.to(first.device), self.image).to(first.dtype)
        return self.model.encode_image(images).float().cpu()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts.

        Shape:
            (number of texts, dim) float32, on the CPU.
        """
        device = next(iter(self.model.parameters())).device
        return self.model.encode_text(self.tokenizer(list(texts)).to(device)).float().cpu()


def _teachers(values: Iterable[Teacher]) -> tuple[Teacher, ...]:
    return tuple(values)


@attrs.frozen(eq=False)
class TeacherEnsemble:
    """Several teachers as one: every embedding is normalised, then all are concatenated.

    Args:
        teachers: at least one, with different names.

    Raises:
        ValueError: if there is none, or a name comes twice.

    Source: section 4 of the paper.
    """

    teachers: tuple[Teacher, ...] = attrs.field(converter=_teachers)

    def __attrs_post_init__(self) -> None:
        if not self.teachers:
            raise ValueError("an ensemble needs at least one teacher")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"teachers must have different names, but these are {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the teachers."""
        return tuple(teacher.name for teacher in self.teachers)

    @property
    def dims(self) -> tuple[int, ...]:
        """Dims of the teachers, as the distillation loss takes them."""
        return tuple(teacher.dim for teacher in self.teachers)

    @property
    def dim(self) -> int:
        """Dim of the concatenated embedding."""
        return sum(self.dims)

    @property
    def logit_scales(self) -> tuple[float, ...]:
        """Logit scales of the teachers, as the distillation loss takes them."""
        return tuple(teacher.logit_scale for teacher in self.teachers)

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """Every size, in pixels, at which a teacher wants its images."""
        return tuple(sorted({teacher.image.size for teacher in self.teachers}))

    def encode_images(self, pixels: Mapping[int, Tensor]) -> Tensor:
        """Return the concatenated embeddings of images.

        Shape:
            pixels: (batch, 3, size, size) uint8 for every size; result: (batch, sum of dims) float32.

        Args:
            pixels: the same images at all `image_sizes`.

        Raises:
            ValueError: if a teacher's embeddings have another dim than it says, or are not finite.
        """
        return self._join(lambda teacher: teacher.encode_images(pixels[teacher.image.size]))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the concatenated embeddings of texts.

        Shape:
            (number of texts, sum of dims) float32.

        Raises:
            ValueError: if a teacher's embeddings have another dim than it says, or are not finite.
        """
        return self._join(lambda teacher: teacher.encode_texts(texts))

    def _join(self, encode: Callable[[Teacher], Tensor]) -> Tensor:
        embeddings = []
        for teacher in self.teachers:
            embedding = encode(teacher).float()
            if embedding.shape[-1] != teacher.dim:
                raise ValueError(
                    f"teacher {teacher.name} says that its dim is {teacher.dim}, but its embeddings have "
                    f"{embedding.shape[-1]}; correct its dim"
                )
            if not bool(torch.isfinite(embedding).all()):
                raise ValueError(f"teacher {teacher.name} gave NaN or infinity; check its weights and its precision")
            embeddings.append(F.normalize(embedding, dim=-1))
        return torch.cat(embeddings, dim=-1)


def normalize_pixels(pixels: Tensor, image: ImageInput) -> Tensor:
    """Return `(pixel / 255 - mean) / std`.

    Shape:
        (batch, 3, height, width) uint8 -> the same, float32.

    Args:
        pixels: 0 to 255.
        image: the contract that mean and std are taken from.
    """
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (image.mean, image.std))
    return (pixels.float() / 255 - mean) / std
