"""The card of a reinforcement, and the check that an output is not mixed from two."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.data import CaptionerEntry, ReinforcementCard, TeacherEntry, card_of_shards, find_card, write_card
from mobileclip.data.shards.sidecars import CARD
from mobileclip.datasets import ShardSource
from mobileclip.extras import VERSION
from mobileclip.reinforce.captioners import Captioner, CaptionerSpec, SeveralCaptioners, caption_sets
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import TeacherEnsemble, TeacherSpec, build_ensemble
from mobileclip.serialization import to_json

_PACKAGES = ("torch", "pillow", "numpy")


def open_card(
    spec: ReinforcementSpec, teachers: TeacherEnsemble | None, captioner: Captioner | None
) -> ReinforcementCard:
    """Return the card of the job's output, as an earlier run left it, or a new one, which is then written.

    Raises:
        ValueError: if the output was made with other choices, teachers or captioners.
    """
    card = _card(spec, teachers, captioner)
    found = find_card(spec.output)
    if found is None:
        write_card(spec.output, card)
        return card
    _refuse_difference(spec.output, found, card)
    return found


def close_card(spec: ReinforcementSpec) -> None:
    """Remove the card of an output in which nothing is: it is free for other choices then."""
    storage.remove(storage.join(spec.output, CARD))


def refuse_other_choices(spec: ReinforcementSpec) -> bool:
    """Return whether the output has a card, after comparing what can be told without loading a teacher.

    Raises:
        ValueError: if the output was made with other choices.
    """
    found = find_card(spec.output)
    if found is None:
        return False
    wanted = attrs.evolve(found, seed=spec.seed, layout=spec.layout)
    if found.teachers:
        wanted = attrs.evolve(wanted, augmentation=spec.augmentation, num_augmentations=spec.num_augmentations)
    _refuse_difference(spec.output, found, wanted)
    if spec.teachers and [entry.spec for entry in found.teachers] != [
        _as_json(one, TeacherSpec) for one in spec.teachers
    ]:
        # The same weights may have moved to another place.
        captioner = None if spec.captioner is None else spec.captioner.build("cpu")
        open_card(spec, build_ensemble(spec.teachers, "cpu"), captioner)
    return True


def _refuse_difference(output: str, found: ReinforcementCard, wanted: ReinforcementCard) -> None:
    fields = [field.name for field in attrs.fields(ReinforcementCard) if field.eq is not False]
    different = [name for name in fields if getattr(found, name) != getattr(wanted, name)]
    if different:
        raise ValueError(
            f"{output} was reinforced with another choice of {', '.join(different)}; delete it to start over, "
            "or keep it and choose another `--output`"
        )


def _card(spec: ReinforcementSpec, teachers: TeacherEnsemble | None, captioner: Captioner | None) -> ReinforcementCard:
    specs = spec.teachers or (None,) * len(teachers.teachers if teachers else ())
    return ReinforcementCard(
        teachers=tuple(
            TeacherEntry(
                name=one.name,
                weights_sha256=one.weights_sha256,
                dim=one.dim,
                logit_scale=one.logit_scale,
                image=one.image,
                spec=None if teacher_spec is None else _as_json(teacher_spec, TeacherSpec),
            )
            for one, teacher_spec in zip(teachers.teachers if teachers else (), specs, strict=True)
        ),
        captioners=(*_earlier_captioners(spec), *_own_captioners(spec, captioner)),
        augmentation=spec.augmentation if teachers else None,
        num_augmentations=spec.num_augmentations if teachers else 0,
        seed=spec.seed,
        layout=spec.layout,
        versions={"mobileclip": VERSION, **{package: metadata.version(package) for package in _PACKAGES}},
    )


def _own_captioners(spec: ReinforcementSpec, captioner: Captioner | None) -> tuple[CaptionerEntry, ...]:
    if captioner is None:
        return ()
    several = spec.captioner.sets if isinstance(spec.captioner, SeveralCaptioners) else ()
    specs: dict[str, CaptionerSpec | None] = {one.name: one.captioner for one in several}
    specs = specs or {spec.caption_set: spec.captioner}
    return tuple(
        CaptionerEntry(
            name=one.name,
            weights_sha256=one.weights_sha256,
            caption_set=name,
            seed=spec.seed,
            spec={} if (own := specs.get(name)) is None else _as_json(own, CaptionerSpec),
        )
        for name, one in caption_sets(captioner, spec.caption_set).items()
    )


def _earlier_captioners(spec: ReinforcementSpec) -> tuple[CaptionerEntry, ...]:
    """Return who captioned the source, where it is the output of an earlier step."""
    if not isinstance(spec.source, ShardSource):
        return ()
    card = card_of_shards([spec.source.units()[0].path])
    return () if card is None else card.captioners


def _as_json(spec: Any, family: type) -> dict[str, Any]:
    return dict(json.loads(to_json(spec, unstructure_as=family)))
