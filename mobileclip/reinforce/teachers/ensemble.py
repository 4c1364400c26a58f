"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from mobileclip.inputs import Color
from mobileclip.reinforce.teachers.protocol import Teacher, TextTeacher


class NotFiniteError(ValueError):
    """A teacher gave NaN or infinity, for one input or for all."""


def _teachers(values: Iterable[Teacher]) -> tuple[Teacher, ...]:
    return tuple(values)


@attrs.frozen(eq=False)
class TeacherEnsemble:
    """Several teachers as one: every embedding is normalised, then all are concatenated.

    Args:
        teachers: at least one, with different names.

    Raises:
        ValueError: if there is none, a name comes twice, or they put transparent pictures on different backgrounds.

    Source: section 4 of the paper.
    """

    teachers: tuple[Teacher, ...] = attrs.field(converter=_teachers)

    def __attrs_post_init__(self) -> None:
        if not self.teachers:
            raise ValueError("an ensemble needs at least one teacher")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"teachers must have different names, but these are {', '.join(self.names)}")
        backgrounds = dict.fromkeys(teacher.image.background for teacher in self.teachers)
        if len(backgrounds) > 1:
            raise ValueError(
                f"teachers see transparent pictures on one background, but these are for {', '.join(backgrounds)}; "
                "reinforce the data set once for each"
            )

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

    @property
    def background(self) -> Color | None:
        """The colour that transparent images are put on; None where their transparency is dropped."""
        return self.teachers[0].image.background_color

    def encode_images(self, pixels: Mapping[int, Tensor]) -> Tensor:
        """Return the concatenated embeddings of images.

        Shape:
            pixels: (batch, 3, size, size) uint8 for every size; result: (batch, sum of dims) float32.

        Args:
            pixels: the same images at all `image_sizes`.

        Raises:
            ValueError: if a teacher's embeddings have another dim than it says.
            NotFiniteError: if some are not finite.
        """
        return self._join(lambda teacher: teacher.encode_images(pixels[teacher.image.size]))

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the concatenated embeddings of texts.

        Shape:
            (number of texts, sum of dims) float32.

        Raises:
            ValueError: if a teacher's embeddings have another dim than it says.
            NotFiniteError: if some are not finite.
        """
        return self._join(lambda teacher: teacher.encode_texts(texts))

    def _join(self, encode: Callable[[Teacher], Tensor]) -> Tensor:
        return torch.cat([unit_embeddings(teacher, encode(teacher)) for teacher in self.teachers], dim=-1)


def unit_embeddings(teacher: TextTeacher, embedding: Tensor) -> Tensor:
    """Return a teacher's embeddings in float32 and of unit length.

    Shape:
        (batch, dim) -> the same.

    Raises:
        ValueError: if they have another dim than it says.
        NotFiniteError: if some are not finite.
    """
    embedding = embedding.float()
    if embedding.shape[-1] != teacher.dim:
        raise ValueError(
            f"teacher {teacher.name} says that its dim is {teacher.dim}, but its embeddings have "
            f"{embedding.shape[-1]}; correct its dim"
        )
    if not bool(torch.isfinite(embedding).all()):
        raise NotFiniteError(f"teacher {teacher.name} gave NaN or infinity; check its weights and its precision")
    return F.normalize(embedding, dim=-1)
