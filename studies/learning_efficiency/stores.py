"""The training data: views of a share of the images, and the teachers' embeddings.

A store holds views with one strength, a number of views per image and a share of the images. The first training that
needs a store makes it. Teachers add their embeddings one by one, so that another teacher only costs its own work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from examples.quickstart.emoji.joint import JointTeacher, write_tensors
from examples.quickstart.emoji.on_disk import DataSplit
from examples.quickstart.emoji.splits import chance
from examples.quickstart.stored import (
    StoredBatches,
    StoredCaptions,
    StoredSamples,
    StoredTeacher,
    replayed,
    stored_captions,
    stored_teacher,
)
from mobileclip.data import (
    ImageTextSample,
    ReinforcementCard,
    Tokenizer,
    augmentation_rng,
    decode_image,
    read_card,
    read_reinforced_samples,
    write_shards,
)
from mobileclip.progress import track
from mobileclip.reinforce import ReinforcementSpec, TeacherEnsemble, reinforce
from mobileclip.storage import write_text
from mobileclip.tensor_files import read_tensors
from mobileclip.terminal import say
from studies.learning_efficiency.spec import Cell, EfficiencySpec
from studies.learning_efficiency.variants import NUM_VIEWS, VARIANTS, Variant, view_augmentation

_PER_SHARD = 500


@attrs.frozen(kw_only=True)
class Store:
    """The views and images of a store.

    Args:
        view: strength of the views.
        num_views: number of views per image.
        share: share of the training images.
    """

    view: str
    num_views: int
    share: float

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.view}-{self.num_views}-{self.share:g}"


def store_of(cell: Cell, spec: EfficiencySpec) -> Store:
    """Return the store for a training; the smallest shares of the images use the store of the next larger share."""
    variant = VARIANTS[cell.variant]
    return Store(
        view=variant.view,
        num_views=max(NUM_VIEWS, variant.num_views),
        share=max(cell.share, spec.shares[1]),
    )


def belongs(spec: EfficiencySpec, key: str, share: float) -> bool:
    """Return whether an image is in a share; smaller shares are subsets of larger shares."""
    return chance(spec.seed, "student", key) < share


def reinforced(spec: EfficiencySpec, store: Store, teacher: JointTeacher, split: DataSplit) -> Path:
    """Store a teacher's embeddings of a store's views, and return the folder of shards."""
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
    """Make the missing parts of the stores for trainings.

    Args:
        spec: settings of the study.
        cells: the trainings.
        teachers: the teachers that the trainings distil, by name.
        split: the training pictures.

    Raises:
        ValueError: if a teacher's embeddings belong to other images than the store's.
    """
    needed: dict[Store, set[str]] = {}
    for cell in cells:
        needed.setdefault(store_of(cell, spec), set()).update(VARIANTS[cell.variant].teachers)
    for store, names in needed.items():
        views = _views(spec, store)
        if not views.exists():
            write_tensors(views, _view_tensors(spec, store, split))
        for name in sorted(names, key=list(teachers).index):
            path = _file(spec, store, name)
            if path.exists():
                continue
            shards = sorted(map(str, reinforced(spec, store, teachers[name], split).glob("*.tar")))
            samples = list(read_reinforced_samples(shards))
            if tuple(one.key for one in samples) != _keys(read_tensors(views)[0]):
                raise ValueError(f"{path.parent} has other images than {shards[0]} and its neighbours; delete both")
            write_tensors(path, _teacher_tensors(stored_teacher(samples)))


def card_of(spec: EfficiencySpec, store: Store, teacher: str) -> ReinforcementCard:
    """Return the card of a teacher's embeddings: logit scale, width, and the share of recognised views."""
    return read_card(_folder(spec, store) / teacher)


def load_store(spec: EfficiencySpec, store: Store, variant: Variant) -> StoredSamples:
    """Return a store's samples for a variant; processes with the same store share its memory.

    Args:
        spec: settings of the study.
        store: the store.
        variant: variant that selects captions and teachers.
    """
    tensors, _ = read_tensors(_views(spec, store))
    return StoredSamples(
        keys=_keys(tensors),
        pixels=tensors["pixels"],
        real=_captions(tensors, "names" if variant.names else "real"),
        synthetic=_captions(tensors, "synthetic"),
        teachers=tuple(StoredTeacher(**read_tensors(_file(spec, store, name))[0]) for name in variant.teachers),
    )


def cell_batches(spec: EfficiencySpec, cell: Cell, samples: StoredSamples) -> StoredBatches:
    """Return the batches of a training; variants with equal seed and share have the same images in the same order.

    Args:
        spec: settings of the study.
        cell: the training.
        samples: samples of the store, with the embeddings of the variant's teachers.
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
    return _folder(spec, store) / "pictures.safetensors"


def _file(spec: EfficiencySpec, store: Store, teacher: str) -> Path:
    return _folder(spec, store) / f"{teacher}.safetensors"


def _view_tensors(spec: EfficiencySpec, store: Store, split: DataSplit) -> dict[str, Tensor]:
    """Return a store's views and captions, with the augmentations of `reinforce` at the student's size."""
    drawn, policy = (view_augmentation(store.view, size) for size in (spec.teachers[0].image_size, spec.image_size))
    background, tokenizer = spec.student.image.input.background_color, Tokenizer(spec.student.text.input)
    samples = [one for one in split.samples() if belongs(spec, one.key, store.share)]

    def views(sample: ImageTextSample) -> Tensor:
        assert sample.image is not None, "the data set stores every picture"
        size = decode_image(sample.image, orient=False).size
        rngs = (augmentation_rng(spec.seed, sample.key, index) for index in range(store.num_views))
        return replayed(sample.image, [drawn.sample(rng, size) for rng in rngs], policy, background)

    kinds: dict[str, list[tuple[str, ...]]] = {
        "real": [one.captions for one in samples],
        "names": [(one.metadata["label"],) for one in samples],
        "synthetic": [one.syn_captions["syn_text"] for one in samples],
    }
    captions = {
        f"{kind}.{name}": value
        for kind, groups in kinds.items()
        for name, value in attrs.asdict(stored_captions(groups, tokenizer)).items()
    }
    keys = torch.tensor(list("\n".join(one.key for one in samples).encode()), dtype=torch.uint8)
    shown = track(map(views, samples), total=len(samples), title=f"views {store.name}", unit="pictures")
    return {"keys": keys, "pixels": torch.stack(list(shown)), **captions}


def _keys(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(bytes(tensors["keys"].tolist()).decode().split("\n"))


def _captions(tensors: Mapping[str, Tensor], kind: str) -> StoredCaptions:
    return StoredCaptions(**{name: tensors[f"{kind}.{name}"] for name in ("tokens", "rows", "counts")})


def _teacher_tensors(teacher: StoredTeacher) -> dict[str, Tensor]:
    return {"image": teacher.image, "real": teacher.real, "synthetic": teacher.synthetic}
