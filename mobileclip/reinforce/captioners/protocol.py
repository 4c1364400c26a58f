"""The interface of a captioner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from PIL import Image


@runtime_checkable
class Captioner(Protocol):
    """The interface that reinforcement requires of a captioner."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def weights_sha256(self) -> str:
        """Hash of its weights, as `weights_sha256` of the teachers makes it."""

    @property
    def num_captions(self) -> int:
        """Captions per image."""

    def caption(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[tuple[str, ...]]:
        """Return the captions of every image.

        An image and its seed decide its captions, whatever other images come with it, and in whatever order.

        Args:
            images: as they are, not augmented.
            seeds: one per image, any integer.

        Raises:
            ImageError: if an image cannot be brought to the captioner's input; the others then have no captions either.
        """


def require_seeds(images: Sequence[Image.Image], seeds: Sequence[int]) -> None:
    """Raise a ValueError unless there is one seed per image."""
    if len(seeds) != len(images):
        raise ValueError(f"{len(images)} images come with {len(seeds)} seeds; one per image is expected")
