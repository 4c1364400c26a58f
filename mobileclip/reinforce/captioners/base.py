"""What a captioner is: its interface, the family of specs, and several captioners as one."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import attrs
from attrs import validators
from PIL import Image

from mobileclip.data.randomness import derived_seed
from mobileclip.data.samples.sample import SYN_NAME
from mobileclip.registry import Registry
from mobileclip.serialization import open_family
from mobileclip.strict import repeated, strict


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


@attrs.frozen(kw_only=True)
class CaptionerSpec(ABC):
    """Base class of captioner specs; register your own in `captioners` or by an entry point.

    Examples:
        >>> from mobileclip.serialization import from_json, to_json
        >>> captioner = CocaCaptioner()
        >>> from_json(to_json(captioner, unstructure_as=CaptionerSpec), CaptionerSpec) == captioner
        True
    """

    @abstractmethod
    def build(self, device: str = "cpu") -> Captioner:
        """Return the captioner, its weights loaded.

        Args:
            device: where it computes, such as `cuda:1`.

        Raises:
            ValueError: if there are no such weights, or they cannot be used.
        """


captioners: Registry[type[CaptionerSpec]] = Registry("captioner")
"""Captioners by name; third parties add theirs here or by an entry point in `mobileclip.captioner`."""

open_family(CaptionerSpec, captioners)


@attrs.frozen(kw_only=True, field_transformer=strict)
class CaptionSet:
    """A captioner, and what its captions are called.

    Args:
        name: of the set, `syn_text` or `syn_text_NAME`.
        captioner: who writes it.
    """

    name: str = attrs.field(validator=validators.matches_re(SYN_NAME))
    captioner: CaptionerSpec


def _sets(values: Iterable[CaptionSet]) -> tuple[CaptionSet, ...]:
    return tuple(values)


@captioners.register("several")
@attrs.frozen(kw_only=True, field_transformer=strict)
class SeveralCaptioners(CaptionerSpec):
    """Several captioners, whose captions are stored in sets of their own, as MobileCLIP2's are.

    One job with all of them stores what one job for each, after one another, does.

    Args:
        sets: at least one, with different names.

    Raises:
        ValueError: if there is none, or a name comes twice.

    Source: MobileCLIP2, section 3: captions of several models are complementary.
    """

    sets: tuple[CaptionSet, ...] = attrs.field(converter=_sets, validator=validators.min_len(1))

    def __attrs_post_init__(self) -> None:
        if twice := repeated(one.name for one in self.sets):
            raise ValueError(f"two sets of captions are called {twice[0]}; name one syn_text_NAME")

    def build(self, device: str = "cpu") -> CaptionerEnsemble:
        """Return the captioners, their weights loaded.

        Raises:
            ValueError: if one cannot be loaded.
        """
        return CaptionerEnsemble({one.name: one.captioner.build(device) for one in self.sets})


class CaptionerEnsemble:
    """Loaded captioners by the names of their sets; where one captioner is expected, all of them as one.

    Args:
        sets: at least one.
    """

    def __init__(self, sets: Mapping[str, Captioner]) -> None:
        self.sets = dict(sets)

    @property
    def name(self) -> str:
        """What people call them."""
        return " + ".join(one.name for one in self.sets.values())

    @property
    def weights_sha256(self) -> str:
        """Hash of the hashes of their weights."""
        return hashlib.sha256("".join(one.weights_sha256 for one in self.sets.values()).encode()).hexdigest()

    @property
    def num_captions(self) -> int:
        """Captions per image, of all of them."""
        return sum(one.num_captions for one in self.sets.values())

    def caption(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[tuple[str, ...]]:
        """Return the captions of every image, one captioner's after the other's, each drawn with numbers of its own."""
        written = [one.caption(images, [derived_seed(seed, name) for seed in seeds]) for name, one in self.sets.items()]
        return [tuple(text for texts in of_image for text in texts) for of_image in zip(*written, strict=True)]


def caption_sets(captioner: Captioner, name: str) -> Mapping[str, Captioner]:
    """Return captioners by the names of their sets.

    Args:
        captioner: one, or several.
        name: of the set of one.
    """
    return captioner.sets if isinstance(captioner, CaptionerEnsemble) else {name: captioner}
