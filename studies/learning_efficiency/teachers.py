"""Trains the teachers once, stores them as files, and scores them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from examples.quickstart.emoji.joint import JointTeacher, write_tensors
from examples.quickstart.emoji.on_disk import DrawnDataset
from examples.quickstart.emoji.teachers import all_captions
from examples.quickstart.emoji.trunks import TextTrunk
from mobileclip.progress import Progress
from mobileclip.reinforce import TeacherEnsemble
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text
from mobileclip.tensor_files import read_tensors
from mobileclip.terminal import console
from studies.learning_efficiency.finetune import FineTuneSpec, class_prompts, fine_tune, load_teacher
from studies.learning_efficiency.scoring import HeldOut, Scores, held_out, score_teachers
from studies.learning_efficiency.spec import Cell, EfficiencySpec
from studies.learning_efficiency.variants import VARIANTS


@attrs.frozen(kw_only=True)
class TeacherScores:
    """The scores of an ensemble.

    Args:
        names: names of the members.
        scores: scores by the name of the held-out part.
    """

    names: tuple[str, ...]
    scores: Mapping[str, Scores]


def ensembles_of(cells: Iterable[Cell]) -> list[tuple[str, ...]]:
    """Return the ensembles that trainings distil, the smallest first."""
    needed = {VARIANTS[cell.variant].teachers for cell in cells} - {()}
    return sorted(needed, key=lambda names: (len(names), names))


def untrained(spec: EfficiencySpec, ensembles: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the members of ensembles without existing files."""
    return [one.name for one in _members(spec, ensembles) if not _file(spec, one.name).exists()]


def build_teachers(
    spec: EfficiencySpec, dataset: DrawnDataset, ensembles: Sequence[tuple[str, ...]]
) -> dict[str, JointTeacher]:
    """Return the members of ensembles by name, and train the members without existing files."""
    if not ensembles:
        return {}
    prompts = [
        *class_prompts(dataset.train.class_names),
        *(row for part in dataset.tests for row in class_prompts(part.class_names)),
    ]
    groups = [*map(all_captions, dataset.train.samples()), *prompts]
    texts = list(dict.fromkeys(text for group in groups for text in group))
    trunk = text_trunk(texts, _file(spec, "texts"))
    teachers = {}
    for one in _members(spec, ensembles):
        path = _file(spec, one.name)
        if not path.exists():
            fine_tune(one, dataset.train, trunk, path)
        teachers[one.name] = load_teacher(path, trunk)
    return teachers


def score_ensembles(
    spec: EfficiencySpec,
    dataset: DrawnDataset,
    teachers: Mapping[str, JointTeacher],
    ensembles: Iterable[tuple[str, ...]],
) -> list[TeacherScores]:
    """Return the scores of ensembles on the held-out drawings, and reuse stored scores."""
    parts: dict[str, HeldOut] = {}
    found = []
    for names in ensembles:
        path = spec.output / "teachers" / f"{'-'.join(names)}.json"
        if not path.exists():
            parts = parts or held_out(dataset, [one.image for one in teachers.values()])
            scores = score_teachers(TeacherEnsemble([teachers[name] for name in names]), parts)
            write_text(path, to_json(TeacherScores(names=names, scores=scores), indent=1) + "\n")
        found.append(_read(path))
    return found


def _read(path: Path) -> TeacherScores:
    return from_json(path.read_text(encoding="utf-8"), TeacherScores)


def _members(spec: EfficiencySpec, ensembles: Iterable[tuple[str, ...]]) -> list[FineTuneSpec]:
    needed = {name for names in ensembles for name in names}
    return [one for one in spec.teachers if one.name in needed]


def _file(spec: EfficiencySpec, name: str) -> Path:
    return spec.output / "teachers" / f"{name}.safetensors"


_PART = 512


def text_trunk(texts: Sequence[str], path: Path) -> TextTrunk:
    """Return a text trunk with cached features of texts.

    Args:
        texts: texts with cached features; the trunk can also encode other texts.
        path: file of the features, which the function writes if it is missing or has other texts.
    """
    trunk = TextTrunk()
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    if path.exists():
        tensors, metadata = read_tensors(path)
        if metadata.get("texts") == digest:
            trunk.remember(texts, tensors["features"])
            return trunk
    with Progress("teachers read captions", total=len(texts), unit="texts", console=console()) as progress:
        for start in range(0, len(texts), _PART):
            part = texts[start : start + _PART]
            trunk(part)
            progress.advance(len(part))
    write_tensors(path, {"features": trunk(texts)}, {"texts": digest})
    return trunk
