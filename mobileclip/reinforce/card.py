"""The data card beside reinforced shards: what made them, and which are finished.

Training reads the teachers' dims and logit scales there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import attrs

from mobileclip.data import AugmentationSpec
from mobileclip.data.sample import Layout
from mobileclip.inputs import ImageInput
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import TeacherEnsemble
from mobileclip.serialization import from_json, to_json

CARD = "reinforcement.json"
_PACKAGES = ("mobileclip", "torch", "pillow", "numpy")


@attrs.frozen(kw_only=True)
class TeacherEntry:
    """One teacher.

    Args:
        name: what tells it, weights included, from every other.
        dim: columns of the stored embeddings that are its, in the order of the teachers.
        logit_scale: what it multiplies cosine similarities with.
        image: its image contract.
    """

    name: str
    dim: int
    logit_scale: float
    image: ImageInput


@attrs.frozen(kw_only=True)
class ShardEntry:
    """One finished shard.

    Args:
        source_bytes: size of the shard that it was made of; another size means another shard.
        num_samples: reinforced samples; a shard without any has no file.
        skipped: samples left out, by reason.
    """

    source_bytes: int
    num_samples: int
    skipped: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ReinforcementCard:
    """What made the shards of a directory, and what is in them.

    Args:
        teachers: whose embeddings are concatenated, in order.
        augmentation: the policy.
        num_augmentations: stored augmentations per image.
        seed: of the augmentations.
        layout: form of the embeddings.
        versions: of the packages that the first run used; decoders and resizing may differ in the last bit.
        shards: the finished ones, by name.
    """

    teachers: tuple[TeacherEntry, ...]
    augmentation: AugmentationSpec
    num_augmentations: int
    seed: int
    layout: Layout
    versions: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    shards: Mapping[str, ShardEntry] = attrs.field(factory=dict, eq=False)

    @property
    def teacher_dims(self) -> tuple[int, ...]:
        """Dims of the teachers, as the distillation loss takes them."""
        return tuple(teacher.dim for teacher in self.teachers)

    @property
    def teacher_logit_scales(self) -> tuple[float, ...]:
        """Logit scales of the teachers, as the distillation loss takes them."""
        return tuple(teacher.logit_scale for teacher in self.teachers)

    @property
    def num_samples(self) -> int:
        """Number of samples in the finished shards."""
        return sum(shard.num_samples for shard in self.shards.values())

    @property
    def skipped(self) -> dict[str, int]:
        """Samples left out of the finished shards, by reason."""
        counts: Counter[str] = Counter()
        for shard in self.shards.values():
            counts.update(shard.skipped)
        return dict(counts)


def read_card(directory: str | os.PathLike[str]) -> ReinforcementCard:
    """Return the card of a directory of reinforced shards.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    path = Path(directory) / CARD
    try:
        return from_json(path.read_text(encoding="utf-8"), ReinforcementCard)
    except FileNotFoundError:
        raise ValueError(f"{directory} holds no {CARD}, so it was not reinforced by this library") from None


def open_card(spec: ReinforcementSpec, teachers: TeacherEnsemble) -> ReinforcementCard:
    """Return the card of the job's output, as an earlier run left it or new.

    Raises:
        ValueError: if the output was made with other choices or teachers.
    """
    entries = tuple(
        TeacherEntry(name=one.name, dim=one.dim, logit_scale=one.logit_scale, image=one.image)
        for one in teachers.teachers
    )
    card = ReinforcementCard(
        teachers=entries,
        augmentation=spec.augmentation,
        num_augmentations=spec.num_augmentations,
        seed=spec.seed,
        layout=spec.layout,
        versions={package: metadata.version(package) for package in _PACKAGES},
    )
    if not (Path(spec.output) / CARD).exists():
        Path(spec.output).mkdir(parents=True, exist_ok=True)
        write_card(spec.output, card)
        return card
    found = read_card(spec.output)
    if found != card:
        fields = [field.name for field in attrs.fields(ReinforcementCard) if field.eq is not False]
        different = [name for name in fields if getattr(found, name) != getattr(card, name)]
        raise ValueError(
            f"{spec.output} was reinforced with another choice of {', '.join(different)}; choose another output "
            "directory, or delete it to start again"
        )
    return found


def write_card(directory: str | os.PathLike[str], card: ReinforcementCard) -> None:
    """Write the card; the old one is there until the new one is complete."""
    path = Path(directory) / CARD
    temporary = path.with_name(f".{CARD}.{os.getpid()}.tmp")
    temporary.write_text(to_json(card, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
