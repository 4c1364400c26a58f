"""Bytes per sample, reading speed and faithfulness of every layout of reinforced shards.

Command:   python -m benchmarks storage [--reinforced DIRECTORY]      (needs the extra `test`)
Hardware:  any CPU; bytes and divergences do not depend on it, speeds do
Time:      about three minutes on one core, most of them for teaching two small teachers; seconds with --reinforced
Result:    a table. With 30 augmentations, the compact layout takes about a fifth less than `pth.gz` for the very
           same numbers, and compact8 about two fifths less

Without a directory, two small open_clip models learn drawn scenes, so that embeddings are correlated as real ones are,
and reinforce some more scenes. With one, its own samples are measured, as they are stored: of a directory in bfloat16,
the bfloat16 layouts lose nothing. The columns KL say how far rounding moves the teachers' softmaxes over a batch, in
nats, and for comparison how far another augmentation of the same images moves them. Eight bits are hardest on
embeddings with a few large dims, which published CLIP models have: the row `compact8, outliers` adds two of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import attrs
import numpy as np
import torch
from attrs import validators

from benchmarks.harness import Bench, Case, Row, Value, require, seconds_of
from mobileclip.data import (
    LAYOUTS,
    ImageTextSample,
    Layout,
    ReinforcedSample,
    augmentation_rng,
    datacompdr_augmentation,
    decode_image,
    hash_image,
    read_card,
    read_reinforced_samples,
    write_shard,
)
from mobileclip.data.samples.members import parse_reinforced_sample, parse_stored_sample, sample_members
from mobileclip.losses import TargetDivergence, distillation_target_kl
from mobileclip.progress import track
from mobileclip.reinforce import TeacherEnsemble


@attrs.frozen
class Published:
    """A published data set.

    Args:
        name: what it is called.
        num_samples: image-text pairs in it.
        added_bytes: what it grew by when it was reinforced.
    """

    name: str
    num_samples: float
    added_bytes: float


# By the number of augmentations; table 4c of the paper.
PUBLISHED = {
    30: Published("DataCompDR-12M", 12.8e6, 1.9e12 - 0.9e12),
    10: Published("DataCompDR-1B", 1.28e9, 140e12 - 90e12),
}


@attrs.frozen(kw_only=True)
class StorageBenchSpec(Bench):
    """What to measure.

    Args:
        reinforced: directory of reinforced shards to measure; None to make some.
        num_samples: samples that are measured; also the batch that softmaxes are taken over.
        num_augmentations: augmentations per sample, as far as there are so many.
        teacher_dims: dims of the teachers; None for those of the directory's card.
        teacher_logit_scales: logit scales of the teachers; None for those of the directory's card.
        steps: batches that each teacher learns from, where some are made.
        passes: how often reading is timed; the fastest counts.
        seed: of the scenes, the teachers and the augmentations.
    """

    reinforced: str | None = None
    num_samples: int = attrs.field(default=128, validator=validators.gt(1))
    num_augmentations: tuple[int, ...] = (30, 10, 2)
    teacher_dims: tuple[int, ...] | None = None
    teacher_logit_scales: tuple[float, ...] | None = None
    steps: int = attrs.field(default=300, validator=validators.gt(0))
    passes: int = attrs.field(default=5, validator=validators.gt(0))
    seed: int = 0
    threads: int | None = 1

    smallest: ClassVar[Mapping[str, object]] = {"num_samples": 3, "num_augmentations": (4, 2), "steps": 2, "passes": 1}

    def cases(self) -> Iterator[Case]:
        """Yield all layouts of one set of samples."""
        yield Case(labels={"samples": self.reinforced or "drawn scenes"}, measure=partial(measure, self))


@attrs.frozen(kw_only=True)
class Data:
    """What is measured.

    Args:
        samples: with exact embeddings.
        teacher_dims: dims of the teachers.
        teacher_logit_scales: logit scales of the teachers.
        origin: where the samples come from, for a person.
    """

    samples: Sequence[ReinforcedSample]
    teacher_dims: tuple[int, ...]
    teacher_logit_scales: tuple[float, ...]
    origin: str


@attrs.frozen
class Speed:
    """How long reading takes, in microseconds per sample.

    Args:
        training: for what training reads: one augmentation, one caption and one synthetic caption.
        everything: for all rows.
    """

    training: float
    everything: float


def stored_data(spec: StorageBenchSpec, directory: Path) -> Data:
    """Return samples of a directory.

    Raises:
        ValueError: if it has no shards, or neither a card nor the choices that replace it.
    """
    shards = sorted(directory.glob("*.tar"))
    dims, scales = spec.teacher_dims, spec.teacher_logit_scales
    layout = "unknown layout"
    if dims is None or scales is None:
        card = read_card(directory)
        dims, scales, layout = card.teacher_dims, card.teacher_logit_scales, card.layout
    samples = list(itertools.islice(read_reinforced_samples(shards), spec.num_samples))
    if len(samples) < 2:
        raise ValueError(f"{directory} holds {len(samples)} usable samples; at least 2 are needed")
    return Data(
        samples=samples,
        teacher_dims=dims,
        teacher_logit_scales=scales,
        origin=f"{len(samples)} samples of {directory}, {layout}",
    )


def drawn_data(spec: StorageBenchSpec) -> Data:
    """Return reinforced scenes, of teachers that are made for it."""
    require("open_clip")
    from benchmarks.scene_teachers import SceneTeacherSpec
    from mobileclip.recipes.tiny.scenes import scene_samples

    specs = (
        SceneTeacherSpec(steps=spec.steps, seed=spec.seed),
        SceneTeacherSpec(steps=spec.steps, seed=spec.seed + 1, patch_size=12, image_size=48),
    )
    teachers = TeacherEnsemble(
        tuple(one.build() for one in track(specs, total=len(specs), title="teaching", unit="teachers"))
    )
    plain = scene_samples(spec.num_samples, spec.seed)
    count = max(spec.num_augmentations)
    done = (reinforced(sample, teachers, count, spec.seed) for sample in plain)
    names = ", ".join(teachers.names)
    return Data(
        samples=list(track(done, total=len(plain), title="reinforcing", unit="samples")),
        teacher_dims=teachers.dims,
        teacher_logit_scales=teachers.logit_scales,
        origin=f"{len(plain)} drawn scenes; open_clip models {names}, taught on scenes for {spec.steps} batches",
    )


def reinforced(sample: ImageTextSample, teachers: TeacherEnsemble, count: int, seed: int) -> ReinforcedSample:
    """Return the sample with what the teachers say of it."""
    assert sample.image is not None, "scenes have pictures"
    image = decode_image(sample.image)
    policies = {size: datacompdr_augmentation(size) for size in teachers.image_sizes}
    policy = next(iter(policies.values()))
    params = [policy.sample(augmentation_rng(seed, sample.key, index), image.size) for index in range(count)]
    pixels = {
        size: torch.from_numpy(np.stack([np.asarray(one.apply(image, each)) for each in params])).permute(0, 3, 1, 2)
        for size, one in policies.items()
    }
    return ReinforcedSample(
        **{field.name: getattr(sample, field.name) for field in attrs.fields(ImageTextSample)},
        augmentations=params,
        image_sha256=hash_image(sample.image),
        image_emb=teachers.encode_images(pixels),
        text_emb=teachers.encode_texts(sample.captions),
        syn_text_emb={name: teachers.encode_texts(texts) for name, texts in sample.syn_captions.items()},
    )


def with_augmentations(sample: ReinforcedSample, count: int) -> ReinforcedSample:
    """Return the sample with its first augmentations only."""
    return attrs.evolve(sample, augmentations=sample.augmentations[:count], image_emb=sample.image_emb[:count])


def plain(sample: ImageTextSample) -> ImageTextSample:
    """Return the sample as it was before anything was added to it."""
    fields = {field.name: getattr(sample, field.name) for field in attrs.fields(ImageTextSample)}
    return ImageTextSample(**(fields | {"syn_captions": {}}))


def shard_bytes(samples: Iterable[ImageTextSample], layout: Layout) -> int:
    """Return the size of a shard with these samples, the headers of the tar file included."""
    with TemporaryDirectory() as folder:
        return write_shard(Path(folder) / "0.tar", samples, layout=layout).stat().st_size


def reading_speed(samples: Sequence[ReinforcedSample], layout: Layout, passes: int) -> Speed:
    """Return how long it takes to make samples of members that are in memory."""
    members = {sample.key: sample_members(sample, layout) for sample in samples}

    def training(key: str, stored: Mapping[str, bytes]) -> None:
        sample = parse_stored_sample(key, stored)
        sample.row("image_emb", len(sample.augmentations) // 2)
        sample.row("text_emb", 0)
        for name, texts in sample.syn_captions.items():
            sample.row(f"{name}_emb", len(texts) // 2)

    return Speed(_microseconds(training, members, passes), _microseconds(parse_reinforced_sample, members, passes))


def _microseconds(
    read: Callable[[str, Mapping[str, bytes]], object], members: Mapping[str, Mapping[str, bytes]], passes: int
) -> float:
    def work() -> None:
        for key, stored in members.items():
            read(key, stored)

    return min(1e6 * seconds_of(work).cpu / len(members) for _ in range(passes))


def divergence(data: Data, layout: Layout) -> TargetDivergence:
    """Return how far a layout's rounding moves the softmaxes over the samples' first augmentations and captions."""
    stored = [parse_reinforced_sample(one.key, sample_members(one, layout)) for one in data.samples]
    return _divergence(data, [one.image_emb[0] for one in stored], [one.text_emb[0] for one in stored])


def divergence_of_another_augmentation(data: Data) -> TargetDivergence:
    """Return how far the softmaxes of the second augmentations are from those of the first."""
    return _divergence(data, [one.image_emb[1] for one in data.samples], [one.text_emb[0] for one in data.samples])


def _divergence(data: Data, images: Sequence[np.ndarray], texts: Sequence[np.ndarray]) -> TargetDivergence:
    return distillation_target_kl(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(texts)),
        exact_image=torch.from_numpy(np.stack([one.image_emb[0] for one in data.samples])),
        exact_text=torch.from_numpy(np.stack([one.text_emb[0] for one in data.samples])),
        teacher_dims=data.teacher_dims,
        teacher_logit_scales=data.teacher_logit_scales,
    )


def with_outliers(data: Data, share: float = 0.3) -> Data:
    """Return the data with two dims per teacher that are large in every embedding, as published CLIP models have some.

    Args:
        data: left as it is.
        share: of the embeddings' squared length that the two dims get.
    """
    rise = (share / (1 - share)) ** 0.5

    def raise_two(part: np.ndarray) -> np.ndarray:
        raised: np.ndarray = part / np.linalg.norm(part, axis=1, keepdims=True)
        raised[:, part.shape[1] // 5] += 0.8 * rise
        raised[:, part.shape[1] // 2] -= 0.6 * rise
        raised /= np.linalg.norm(raised, axis=1, keepdims=True)
        return raised

    def each(embeddings: np.ndarray) -> np.ndarray:
        parts = np.split(embeddings, np.cumsum(data.teacher_dims)[:-1], axis=1)
        return np.concatenate([raise_two(part) for part in parts], axis=1)

    samples = [attrs.evolve(one, image_emb=each(one.image_emb), text_emb=each(one.text_emb)) for one in data.samples]
    return attrs.evolve(data, samples=samples)


def bytes_of(data: Data, count: int) -> dict[Layout, dict[str, Value]]:
    """Return what a sample with so many augmentations takes in every layout, and what the published data sets would."""
    cut, num_samples = [with_augmentations(sample, count) for sample in data.samples], len(data.samples)
    bare = shard_bytes(map(plain, data.samples), "npz") / num_samples
    totals = {layout: shard_bytes(cut, layout) / num_samples for layout in LAYOUTS}
    num_rows = count + 1 + sum(map(len, data.samples[0].syn_captions.values()))
    known, found = PUBLISHED.get(count), {}
    for layout, total in totals.items():
        added = total - bare
        found[layout] = {
            "a sample": Value(number=total, unit="bytes"),
            "knowledge": Value(number=added, unit="bytes"),
            "a row": Value(number=added / num_rows, unit="bytes"),
            "of pth.gz": Value(number=added / (totals["pth.gz"] - bare)),
        }
        if known is not None:
            found[layout]["published set"] = Value(number=added * known.num_samples / 1e12, unit="TB")
            found[layout]["as published"] = Value(number=known.added_bytes / 1e12, unit="TB")
    return found


def divergences(found: TargetDivergence) -> dict[str, Value]:
    """Return how far the targets of distillation are moved, in nats, teacher by teacher."""
    return {
        f"KL {way} {index}": Value(number=value, unit="nats")
        for index, both in enumerate(zip(found.image_to_text, found.text_to_image, strict=True))
        for way, value in zip(("image-text", "text-image"), both, strict=True)
    }


def measure(spec: StorageBenchSpec) -> Iterator[Row]:
    """Yield a row for each number of augmentations and each layout; what all layouts lose, with the most of them."""
    data = drawn_data(spec) if spec.reinforced is None else stored_data(spec, Path(spec.reinforced))
    most = len(data.samples[0].augmentations)
    counts = [count for count in spec.num_augmentations if count <= most] or [most]
    notes = {"measured on": data.origin}
    for count in counts:
        for layout, taken in bytes_of(data, count).items():
            lost = divergences(divergence(data, layout)) if count == max(counts) else {}
            if lost:
                speed = reading_speed(data.samples, layout, spec.passes)
                lost["training's three rows"] = Value(number=speed.training, unit="us")
                lost["all rows"] = Value(number=speed.everything, unit="us")
            yield Row(case={"augmentations": str(count), "layout": layout}, values=taken | lost, notes=notes)
    outliers = divergences(divergence(with_outliers(data), "compact8"))
    yield Row(case={"layout": "compact8, outliers"}, values=outliers, notes=notes)
    if min(len(sample.augmentations) for sample in data.samples) > 1:
        another = divergences(divergence_of_another_augmentation(data))
        yield Row(case={"layout": "another augmentation"}, values=another, notes=notes)
