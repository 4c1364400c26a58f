"""What trainings read: the views of a share of the pictures, and what each teacher said of them.

A store is made for a strength of views, a number of them and a share of the pictures, when a training first needs it.
Teachers add what they say one by one, so that one more costs its own work alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from examples.learning_efficiency.spec import Cell, EfficiencySpec
from examples.learning_efficiency.variants import FIRST, NUM_VIEWS, VARIANTS
from examples.learning_efficiency.views import view_augmentation
from examples.quickstart.emoji import DataSplit
from examples.quickstart.emoji.joint import JointTeacher, write_tensors
from examples.quickstart.emoji.splits import chance
from examples.quickstart.stored import (
    StoredBatches,
    StoredCaptions,
    StoredSamples,
    StoredTeacher,
    store_samples,
    stored_teacher,
)
from mobileclip.data import ReinforcementCard, read_card, read_reinforced_samples, write_shards
from mobileclip.reinforce import ReinforcementSpec, TeacherEnsemble, reinforce
from mobileclip.storage import write_text
from mobileclip.tensor_files import read_tensors
from mobileclip.terminal import say

_PER_SHARD = 500


@attrs.frozen(kw_only=True)
class Store:
    """Which views of which pictures.

    Args:
        view: their strength.
        num_views: for each picture.
        share: of the training pictures.
    """

    view: str
    num_views: int
    share: float

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.view}-{self.num_views}-{self.share:g}"


def store_of(cell: Cell, spec: EfficiencySpec) -> Store:
    """Return where a training reads: the smallest shares of the pictures read from the next larger one's store."""
    variant = VARIANTS[cell.variant]
    return Store(
        view=variant.view,
        num_views=max(NUM_VIEWS, variant.num_views),
        share=max(cell.share, spec.shares[1]),
    )


def belongs(spec: EfficiencySpec, key: str, share: float) -> bool:
    """Return whether a picture is among a share of them; smaller shares are parts of larger ones."""
    return chance(spec.seed, "student", key) < share


def reinforced(spec: EfficiencySpec, store: Store, teacher: JointTeacher, split: DataSplit) -> Path:
    """Store what a teacher says of a store's views; return the folder of shards."""
    source = spec.output / "pictures" / f"{store.share:g}"
    if not (source / "done").exists():
        samples = [sample for sample in split.samples() if belongs(spec, sample.key, store.share)]
        write_shards(source, samples, samples_per_shard=_PER_SHARD)
        write_text(source / "done", f"{len(samples)}\n")
    folder: Path = _folder(spec, store) / teacher.model.spec.name
    report = reinforce(
        ReinforcementSpec(
            source=sorted(map(str, source.glob("*.tar"))),
            output=str(folder),
            augmentation=view_augmentation(store.view, teacher.image.size),
            num_augmentations=store.num_views,
            seed=spec.seed,
        ),
        teachers=TeacherEnsemble([teacher]),
    )
    say(f"{store.name}, teacher {teacher.model.spec.name}: {report}")
    return folder


def make_stores(
    spec: EfficiencySpec, cells: Sequence[Cell], teachers: Mapping[str, JointTeacher], split: DataSplit
) -> None:
    """Make what is missing of the stores that trainings need.

    Args:
        spec: the choices.
        cells: the trainings.
        teachers: by name; the first one's shards are where every store's views come from.
        split: the training pictures.
    """
    needed: dict[Store, set[str]] = {}
    for cell in cells:
        needed.setdefault(store_of(cell, spec), {FIRST}).update(VARIANTS[cell.variant].teachers)
    for store, names in needed.items():
        for name in sorted(names, key=list(teachers).index):
            path = _file(spec, store, name)
            if path.exists():
                continue
            shards = sorted(map(str, reinforced(spec, store, teachers[name], split).glob("*.tar")))
            if name == FIRST and not _views(spec, store).exists():
                augmentation = view_augmentation(store.view, spec.image_size)
                samples = store_samples(shards, augmentation=augmentation, student=spec.student)
                write_tensors(_views(spec, store), _view_tensors(samples))
                write_tensors(path, _teacher_tensors(samples.teachers[0]))
            else:
                write_tensors(path, _teacher_tensors(stored_teacher(list(read_reinforced_samples(shards)))))


def card_of(spec: EfficiencySpec, store: Store, teacher: str) -> ReinforcementCard:
    """Return the card of what a teacher said: its scale, its dim, and how far it recognises the views."""
    return read_card(_folder(spec, store) / teacher)


def load_store(spec: EfficiencySpec, store: Store, teachers: Sequence[str]) -> StoredSamples:
    """Return a store; processes that read the same one share its memory.

    Args:
        spec: the choices.
        store: which.
        teachers: whose words are read, in this order.
    """
    tensors, _ = read_tensors(_views(spec, store))
    return StoredSamples(
        keys=tuple(bytes(tensors["keys"].tolist()).decode().split("\n")),
        pixels=tensors["pixels"],
        real=_captions(tensors, "real"),
        synthetic=_captions(tensors, "synthetic"),
        teachers=tuple(StoredTeacher(**read_tensors(_file(spec, store, name))[0]) for name in teachers),
    )


def cell_batches(spec: EfficiencySpec, cell: Cell, samples: StoredSamples) -> StoredBatches:
    """Return the batches of a training; variants of one seed and share see the same pictures in the same order.

    Args:
        spec: the choices.
        cell: the training.
        samples: of its store, with the words of its variant's teachers.
    """
    variant = VARIANTS[cell.variant]
    members = [index for index, key in enumerate(samples.keys) if belongs(spec, key, cell.share)]
    return StoredBatches(
        samples=samples,
        batch_size=spec.batch_size,
        seed=cell.seed,
        synthetic_captions=variant.synthetic_captions,
        teachers=tuple(range(len(variant.teachers))),
        num_views=variant.num_views,
        num_captions=variant.num_captions,
        matched=variant.matched,
        members=torch.tensor(members),
    )


def _folder(spec: EfficiencySpec, store: Store) -> Path:
    return spec.output / "stores" / store.name


def _views(spec: EfficiencySpec, store: Store) -> Path:
    return _folder(spec, store) / "views.safetensors"


def _file(spec: EfficiencySpec, store: Store, teacher: str) -> Path:
    return _folder(spec, store) / f"{teacher}.safetensors"


def _view_tensors(samples: StoredSamples) -> dict[str, Tensor]:
    captions = {
        f"{kind}.{name}": value
        for kind, one in (("real", samples.real), ("synthetic", samples.synthetic))
        for name, value in attrs.asdict(one).items()
    }
    keys = torch.tensor(list("\n".join(samples.keys).encode()), dtype=torch.uint8)
    return {"keys": keys, "pixels": samples.pixels, **captions}


def _captions(tensors: Mapping[str, Tensor], kind: str) -> StoredCaptions:
    return StoredCaptions(**{name: tensors[f"{kind}.{name}"] for name in ("tokens", "rows", "counts")})


def _teacher_tensors(teacher: StoredTeacher) -> dict[str, Tensor]:
    return {"image": teacher.image, "real": teacher.real, "synthetic": teacher.synthetic}
