"""The interface of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from mobileclip.inputs import ImageInput


@runtime_checkable
class TextTeacher(Protocol):
    """The interface of a teacher of texts, which may be called from several threads at once."""

    @property
    def name(self) -> str:
        """Display name; names in an ensemble differ."""

    @property
    def weights_sha256(self) -> str:
        """Hash of its weights, as `weights_sha256` makes it: it is stored, and compared when a job resumes."""

    @property
    def dim(self) -> int:
        """Dim of the joint embedding."""

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
        """What the teacher multiplies cosine similarities with: the distillation loss needs the same number."""

    @property
    def image(self) -> ImageInput:
        """The image contract; images come augmented at its size."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of images, normalised or not.

        Shape:
            (batch, 3, size, size) uint8 -> (batch, dim).
        """
