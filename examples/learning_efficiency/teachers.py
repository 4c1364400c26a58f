"""The ensemble: trained once, kept as files, scored, and asked about the student's pictures and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from examples.learning_efficiency.data import Roles
from examples.learning_efficiency.finetune import FineTunedTeacher, fine_tune, load_teacher, save_model
from examples.learning_efficiency.spec import EfficiencySpec
from examples.learning_efficiency.students import Scores, picture, replace_text, score_embeddings
from examples.quickstart.emoji.teachers import PROMPTS
from examples.quickstart.emoji.trunks import TextTrunk
from mobileclip.data import ImageTextSample, augmentation_rng, decode_image, write_shards
from mobileclip.evaluation import ensemble_prompts
from mobileclip.reinforce import ReinforcementSpec, TeacherEnsemble, reinforce
from mobileclip.reinforce.agreement import plain_augmentation
from mobileclip.serialization import from_json, to_json
from mobileclip.terminal import say

_BATCH = 64
_CHOICES = "teachers.json"


@attrs.frozen(kw_only=True)
class TeacherScores:
    """How good a teacher is on both parts of the held-out drawings."""

    validation: Scores
    test: Scores


def build_teachers(spec: EfficiencySpec, roles: Roles) -> tuple[FineTunedTeacher, ...]:
    """Return the teachers, trained where their files are not there yet."""
    trunk = TextTrunk()
    paths = [spec.output / "teachers" / f"{one.name}.safetensors" for one in spec.teachers]
    for one, path in zip(spec.teachers, paths, strict=True):
        if not path.exists():
            save_model(path, fine_tune(one, roles, trunk))
    return tuple(load_teacher(path, trunk) for path in paths)


def score_teachers(
    spec: EfficiencySpec, roles: Roles, teachers: Sequence[FineTunedTeacher]
) -> dict[str, TeacherScores]:
    """Return the scores of every teacher, and of the ensemble, whose similarity is the mean over its members'."""
    ensembles = {one.model.spec.name: TeacherEnsemble([one]) for one in teachers}
    ensembles["ensemble"] = TeacherEnsemble(teachers)
    scores = {}
    for name, ensemble in ensembles.items():
        path = spec.output / "teachers" / f"{name}.json"
        if not path.exists():
            replace_text(path, to_json(_teacher_scores(ensemble, roles), indent=1))
        scores[name] = from_json(path.read_text(encoding="utf-8"), TeacherScores)
    return scores


def _teacher_scores(ensemble: TeacherEnsemble, roles: Roles) -> TeacherScores:
    prompts = [prompt.format(name) for name in roles.class_names for prompt in PROMPTS]
    texts = ensemble.encode_texts(prompts)
    # Prompts are averaged teacher by teacher, so that each has the same say.
    parts = [
        part.reshape(len(roles.class_names), len(PROMPTS), -1)
        for part in torch.split(texts, list(ensemble.dims), dim=-1)
    ]
    classes = torch.cat([ensemble_prompts(part) for part in parts], dim=-1)

    def scores(samples: Sequence[ImageTextSample]) -> Scores:
        images = [decode_image(picture(sample)) for sample in samples]
        pixels = {size: torch.from_numpy(_plain(images, size)) for size in ensemble.image_sizes}
        return score_embeddings(ensemble.encode_images(pixels), classes, torch.tensor(roles.labels(samples)))

    return TeacherScores(validation=scores(roles.validation), test=scores(roles.test))


def _plain(images: Sequence[Image.Image], size: int) -> npt.NDArray[np.uint8]:
    """Return whole pictures as a teacher sees them.

    Shape:
        (pictures, 3, size, size).
    """
    policy = plain_augmentation(size)
    rng = augmentation_rng(0, "", 0)
    views = [np.asarray(policy.apply(image, policy.sample(rng, image.size))) for image in images]
    pixels: npt.NDArray[np.uint8] = np.stack(views).transpose(0, 3, 1, 2)
    return pixels


def reinforce_both(spec: EfficiencySpec, roles: Roles, teachers: Sequence[FineTunedTeacher]) -> Mapping[bool, Path]:
    """Store what the teachers say of the student's pictures under both policies; return the folders, by strength."""
    source = spec.output / "student"
    if not (source / "done").exists():
        write_shards(source, roles.student, samples_per_shard=500)
        replace_text(source / "done", str(len(roles.student)))
    size = max(one.image.size for one in teachers)
    directories = {}
    for strong in (False, True):
        directories[strong] = spec.output / f"reinforced-{'strong' if strong else 'weak'}"
        report = reinforce(
            ReinforcementSpec(
                source=sorted(map(str, source.glob("*.tar"))),
                output=str(directories[strong]),
                augmentation=spec.policy(strong=strong, size=size),
                num_augmentations=spec.num_augmentations,
            ),
            teachers=TeacherEnsemble(teachers),
        )
        say(f"{'strong' if strong else 'weak'} augmentation: {report}")
    return directories
