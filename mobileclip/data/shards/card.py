"""The data card beside reinforced shards: what made them and what came out. Training reads it before it trusts them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data.augmentation.replay import AugmentationSpec
from mobileclip.data.samples.sample import Layout
from mobileclip.data.shards.counts import MOST_FOLDERS_ABOVE, folders_above, shard_folder
from mobileclip.inputs import ImageInput
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict

CARD = "reinforcement.json"
# A card has a few teachers and a few counts.
_MAX_BYTES = 2**24


@attrs.frozen(kw_only=True, field_transformer=strict)
class TeacherEntry:
    """One teacher.

    Args:
        name: of the model and its pretraining.
        weights_sha256: hash of its weights; a name alone does not tell two files apart.
        dim: columns of the stored embeddings that are its, in the order of the teachers.
        logit_scale: what it multiplies cosine similarities with.
        image: its image contract: size, interpolation, mean and std.
        spec: how to build it again, as JSON; None where it was built by hand.
    """

    name: str
    weights_sha256: str
    dim: int = attrs.field(validator=validators.gt(0))
    logit_scale: float
    image: ImageInput
    spec: Mapping[str, Any] | None = attrs.field(default=None, eq=False)


@attrs.frozen(kw_only=True, field_transformer=strict)
class CaptionerEntry:
    """The captioner that generated a set of synthetic captions, with its weights, seed and settings.

    Args:
        name: of the model and its pretraining.
        weights_sha256: hash of its weights.
        caption_set: name of its captions' set.
        seed: of the captions.
        spec: its settings, as JSON: number of captions, top-p, ...
    """

    name: str
    weights_sha256: str
    caption_set: str
    seed: int
    spec: Mapping[str, Any]


def _fraction() -> Any:
    return attrs.field(validator=[validators.ge(0), validators.le(1)])


@attrs.frozen(kw_only=True, field_transformer=strict)
class ViewAgreement:
    """Share of stored augmented views that the teachers match to the same caption as the plain image.

    A picture, or a view of it, is taken for that one of these pictures whose caption is the nearest. Only captions that
    no other of them has are compared.

    Args:
        num_samples: pictures that were compared.
        num_views: stored views of them.
        agreement: share of the views that are taken for the same as the plain picture.
        plain_accuracy: share of the plain pictures that are taken for themselves.
        view_accuracy: share of the views that are taken for their picture.
    """

    num_samples: int = attrs.field(validator=validators.gt(1))
    num_views: int = attrs.field(validator=validators.gt(0))
    agreement: float = _fraction()
    plain_accuracy: float = _fraction()
    view_accuracy: float = _fraction()

    @property
    def ratio(self) -> float | None:
        """The views' accuracy over the plain pictures'; None where these have none."""
        return self.view_accuracy / self.plain_accuracy if self.plain_accuracy else None

    def __str__(self) -> str:
        return (
            f"teachers take {self.agreement:.0%} of the stored views for the same as the plain picture "
            f"({self.num_views:,} views of {self.num_samples:,} pictures); the nearest caption is their own for "
            f"{self.plain_accuracy:.1%} of the plain pictures and for {self.view_accuracy:.1%} of the views, where "
            f"guessing gives {1 / self.num_samples:.1%}"
        )


@attrs.frozen(kw_only=True, field_transformer=strict)
class ReinforcementCard:
    """The data card of reinforced shards: teachers, captioners, augmentation, layout and sample counts.

    Args:
        teachers: whose embeddings are concatenated, in order; none where there are only captions so far.
        captioners: who wrote the synthetic captions, earlier steps first.
        augmentation: the policy; None where there are only captions so far.
        num_augmentations: stored augmentations per image.
        seed: of the augmentations.
        layout: form of the embeddings.
        versions: of the packages that the first run used; decoders and resizing may differ in the last bit.
        num_shards: finished shards that hold samples.
        num_samples: samples in them.
        num_bytes: their size.
        skipped: samples left out, by reason.
        agreement: how far the teachers recognise the stored views of the first shard; None where it was not measured.
    """

    teachers: tuple[TeacherEntry, ...] = ()
    captioners: tuple[CaptionerEntry, ...] = ()
    augmentation: AugmentationSpec | None = None
    num_augmentations: int = attrs.field(default=0, validator=validators.ge(0))
    seed: int = 0
    layout: Layout
    versions: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    num_shards: int = attrs.field(default=0, eq=False, validator=validators.ge(0))
    num_samples: int = attrs.field(default=0, eq=False, validator=validators.ge(0))
    num_bytes: int = attrs.field(default=0, eq=False, validator=validators.ge(0))
    skipped: Mapping[str, int] = attrs.field(factory=dict, eq=False)
    agreement: ViewAgreement | None = attrs.field(default=None, eq=False)

    @property
    def teacher_dims(self) -> tuple[int, ...]:
        """Dims of the teachers, as the distillation loss takes them."""
        return tuple(teacher.dim for teacher in self.teachers)

    @property
    def teacher_logit_scales(self) -> tuple[float, ...]:
        """Logit scales of the teachers, as the distillation loss takes them."""
        return tuple(teacher.logit_scale for teacher in self.teachers)

    def in_columns(self, columns: tuple[int, int]) -> ReinforcementCard:
        """Return the card of those teachers whose embeddings are the given columns, the last one excluded.

        Raises:
            ValueError: if the columns cut through a teacher's, or hold none's.
        """
        stops = list(itertools.accumulate(self.teacher_dims))
        places = [(stop - dim, stop) for dim, stop in zip(self.teacher_dims, stops, strict=True)]
        chosen = [place for place in places if columns[0] <= place[0] and place[1] <= columns[1]]
        if not chosen or (chosen[0][0], chosen[-1][1]) != columns:
            raise ValueError(f"columns {columns} are not those of whole teachers, whose own are {places}")
        teachers = [one for one, place in zip(self.teachers, places, strict=True) if place in chosen]
        # What was measured of all teachers says nothing of some.
        agreement = self.agreement if len(teachers) == len(self.teachers) else None
        return attrs.evolve(self, teachers=tuple(teachers), agreement=agreement)

    def differences(self, loss: Mapping[str, Sequence[float]]) -> list[str]:
        """Return what a loss says otherwise than the teachers who reinforced the data, a sentence for each choice.

        Args:
            loss: its `teacher_dims` and `teacher_logit_scales`, or one of them.
        """
        names = ", ".join(teacher.name for teacher in self.teachers) or "no teachers"
        return [
            f"{name} is {tuple(value)}, and the data was reinforced by {names} with {own}"
            for name, value in loss.items()
            if tuple(value) != (own := getattr(self, name))
        ]


def read_card(directory: str | os.PathLike[str]) -> ReinforcementCard:
    """Return the card of a directory of reinforced shards.

    Args:
        directory: local or a URL.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    card = find_card(directory)
    if card is None:
        raise ValueError(f"{os.fspath(directory)} holds no {CARD}, so it was not reinforced by this library")
    return card


def find_card(directory: str | os.PathLike[str]) -> ReinforcementCard | None:
    """Return the card of a directory, or None where there is none.

    Args:
        directory: local or a URL.

    Raises:
        ValueError: if it cannot be read.
    """
    path = storage.join(os.fspath(directory), CARD)
    content = storage.read_if_there(path, limit=_MAX_BYTES)
    if content is None:
        return None
    try:
        return from_json(content.decode(), ReinforcementCard)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def card_of_shards(shards: Sequence[str]) -> ReinforcementCard | None:
    """Return the card of shards that lie in one folder or in several, or None where there is none.

    It lies beside the shards, or above several folders of them.

    Args:
        shards: their paths or URLs.

    Raises:
        ValueError: if a card cannot be read, folders were reinforced differently, or one has a card and another none.
    """
    find = lru_cache(maxsize=None)(find_card)
    folders = list(dict.fromkeys(map(shard_folder, shards)))
    most_above = MOST_FOLDERS_ABOVE if len(folders) > 1 else 0
    cards, without = dict[str, ReinforcementCard](), list[str]()
    for folder in folders:
        above = folders_above(folder, most_above)
        found = next(((place, card) for place in above if (card := find(place)) is not None), None)
        if found is None:
            without.append(folder)
        else:
            cards.setdefault(*found)
    first = next(iter(cards), None)
    if first is None:
        return None
    if without:
        raise ValueError(
            f"{first} was reinforced and has a {CARD}, and {without[0]} has none, so nothing says what its samples "
            "hold; take them apart, or put the card there that its shards were made with"
        )
    other = next((folder for folder, card in cards.items() if card != cards[first]), None)
    if other is not None:
        raise ValueError(
            f"{first} and {other} were reinforced differently, so what teachers say about their samples does not go "
            "together; take them apart"
        )
    return cards[first]


def write_card(directory: str | os.PathLike[str], card: ReinforcementCard) -> None:
    """Write the card; the old one is there until the new one is complete."""
    with storage.atomic_write(storage.join(os.fspath(directory), CARD)) as stream:
        stream.write((to_json(card, indent=1) + "\n").encode())
