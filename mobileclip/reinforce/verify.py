"""Verification of reinforced shards: what can be read, whether it agrees with the card, and whether it is true."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip import storage
from mobileclip.data import (
    ImageTextSample,
    ReinforcedSample,
    ReinforcementCard,
    ShardSource,
    Skip,
    SkipReport,
    read_card,
    read_reinforced_samples,
    read_samples,
)
from mobileclip.data.randomness import seeded_rng
from mobileclip.data.samples.limits import SAMPLE_LIMITS
from mobileclip.data.skips import attempt
from mobileclip.hardware.devices import AUTO, pick_device
from mobileclip.progress import Progress
from mobileclip.reinforce.encoding import BatchEncoder, plain_fields
from mobileclip.reinforce.manifest import Manifest, ShardEntry
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import TeacherEnsemble, TeacherSpec, build_ensemble
from mobileclip.serialization import from_json
from mobileclip.terminal import console

# Largest norm of a difference between unit-length embeddings that storing explains, by layout; measured values are
# about half of them.
TOLERANCES = {"npz": 1e-4, "pth.gz": 4e-3, "compact": 4e-3, "compact8": 2e-2}
# Embeddings computed in bfloat16 depend on the device and on the batch.
_HALF_PRECISION_TOLERANCE = 5e-2
_MAX_NAMED = 20


@attrs.frozen(kw_only=True)
class Problem:
    """Something wrong.

    Args:
        kind: in a few words, to be counted.
        where: the shard, and the key where it is one sample.
        detail: what exactly.
    """

    kind: str
    where: str
    detail: str


@attrs.frozen(kw_only=True)
class Verification:
    """What verifying a directory found.

    Args:
        num_shards: read whole.
        num_samples: read whole.
        num_replayed: samples whose augmentations and embeddings were computed again.
        largest_difference: norm of the largest difference between a stored and a recomputed embedding of one teacher,
            which are of unit length; 0 where none was recomputed.
        problems: everything wrong, by kind the first ones.
        counts: number of problems by kind, complete.
        notes: what could not be checked, and why.
    """

    num_shards: int
    num_samples: int
    num_replayed: int
    largest_difference: float
    problems: tuple[Problem, ...]
    counts: dict[str, int]
    notes: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.counts

    def __str__(self) -> str:
        lines = [f"{self.num_samples:,} samples in {self.num_shards:,} shards read"]
        if self.num_replayed:
            lines.append(
                f"{self.num_replayed} samples replayed and encoded again: embeddings differ by at most "
                f"{self.largest_difference:.1e}"
            )
        lines += self.notes
        lines += [f"{one.kind}: {one.where}: {one.detail}" for one in self.problems]
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        lines.append(f"{sum(self.counts.values())} problems: {counts}" if counts else "no problems")
        return "\n".join(lines)


def verify(
    directory: str | os.PathLike[str],
    *,
    num_samples: int = 32,
    teachers: TeacherEnsemble | None = None,
    device: str = AUTO,
    seed: int = 0,
    show_progress: bool = True,
) -> Verification:
    """Read every sample of a reinforced directory, and recompute some.

    Checked of all: members, shapes, norms, numbers of augmentations and captions, keys that come twice, the manifest
    and the card. Checked of some, drawn at random: the image is the one that was reinforced, the stored augmentations
    are the ones that the seed gives, and the teachers give the stored embeddings for them.

    Args:
        directory: local or an address.
        num_samples: how many to recompute; 0 for none.
        teachers: who reinforced them; None for the ones that the card describes.
        device: where to recompute; `auto` for the best one there is.
        seed: of the choice.
        show_progress: show a bar.

    Raises:
        ValueError: if there is no card, or it cannot be read.
    """
    return _Verifier(os.fspath(directory), num_samples, teachers, str(pick_device(device)), seed).run(
        show_progress=show_progress
    )


class _Verifier:
    def __init__(
        self, directory: str, num_samples: int, teachers: TeacherEnsemble | None, device: str, seed: int
    ) -> None:
        self.directory = directory
        self.card = read_card(directory)
        self.entries = [entry for entry in Manifest(directory).entries() if entry.num_samples]
        self.counts: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.largest_difference = 0.0
        self.num_replayed = 0
        self.teachers = self._load(teachers, device) if num_samples else None
        total = sum(entry.num_samples for entry in self.entries)
        num_chosen = min(num_samples, total) if self.teachers else 0
        chosen = seeded_rng(seed, "verify").choice(total, num_chosen, replace=False) if num_chosen else ()
        self.chosen = {int(index) for index in chosen}

    def run(self, *, show_progress: bool) -> Verification:
        total = sum(entry.num_samples for entry in self.entries)
        hashes: list[npt.NDArray[np.uint64]] = []
        num_read = 0
        self._check_files()
        with Progress("verifying", total=total, console=console(shown=show_progress)) as progress:
            for entry in self.entries:
                first = sum(map(len, hashes))
                keys = []
                for index, sample in enumerate(self._read(entry)):
                    keys.append(sample.key)
                    self._check_sample(entry.shard, sample)
                    if first + index in self.chosen and isinstance(sample, ReinforcedSample):
                        attempt(
                            partial(self._replay, entry.shard, sample),
                            key=sample.key,
                            shard=entry.shard,
                            on_skip=self._add_skip,
                        )
                    progress.advance()
                if len(keys) != entry.num_samples:
                    self._add("wrong_count", entry.shard, f"{len(keys)} samples, the manifest says {entry.num_samples}")
                hashes.append(np.array([hash(key) & (2**64 - 1) for key in keys], dtype=np.uint64))
                num_read += len(keys)
        self._check_duplicates(hashes)
        return Verification(
            num_shards=len(self.entries),
            num_samples=num_read,
            num_replayed=self.num_replayed,
            largest_difference=self.largest_difference,
            problems=tuple(self.problems),
            counts=dict(self.counts),
            notes=tuple(self.notes),
        )

    def _add(self, kind: str, where: str, detail: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= _MAX_NAMED:
            self.problems.append(Problem(kind=kind, where=where, detail=detail))

    def _add_skip(self, skip: Skip) -> None:
        self._add(skip.reason, _where(skip.shard, skip.key), skip.detail)

    def _load(self, teachers: TeacherEnsemble | None, device: str) -> TeacherEnsemble | None:
        if not self.card.teachers:
            self.notes.append("there are captions and no embeddings, so nothing was recomputed")
            return None
        specs = [entry.spec for entry in self.card.teachers]
        if teachers is None and None in specs:
            self.notes.append("the card does not say how to build the teachers, so nothing was recomputed")
            return None
        try:
            built = teachers or build_ensemble([_teacher_spec(spec) for spec in specs], device)
        except ValueError as error:
            self.notes.append(f"the teachers cannot be loaded, so nothing was recomputed: {error}")
            return None
        for entry, teacher in zip(self.card.teachers, built.teachers, strict=True):
            if entry.weights_sha256 != teacher.weights_sha256:
                self._add("wrong_teacher", entry.name, f"its weights are not the ones of the card: {teacher.name}")
        return built

    def _check_files(self) -> None:
        present = {name for name in storage.find_files(self.directory, recursive=False) if name.endswith(".tar")}
        known = {entry.shard for entry in self.entries}
        for entry in self.entries:
            path = storage.join(self.directory, entry.shard)
            if entry.shard not in present:
                self._add("missing_shard", entry.shard, "the manifest names it, but there is no file")
            elif storage.size(path) != entry.num_bytes:
                detail = f"{storage.size(path)} bytes, the manifest says {entry.num_bytes}"
                self._add("wrong_size", entry.shard, detail)
        for name in sorted(present - known):
            self._add("unknown_shard", name, "the manifest does not name it; a job that goes on makes it again")
        total = sum(entry.num_samples for entry in self.entries)
        if total != self.card.num_samples:
            self._add("wrong_card", "the card", f"it counts {self.card.num_samples} samples, the manifest {total}")

    def _read(self, entry: ShardEntry) -> Iterator[ImageTextSample]:
        path = storage.join(self.directory, entry.shard)
        if not storage.exists(path):
            return
        skips = SkipReport(log=False)
        read = read_reinforced_samples if self.card.teachers else read_samples
        yield from read([path], skips, attrs.evolve(SAMPLE_LIMITS, dim=sum(self.card.teacher_dims) or None))
        for reason, named in skips.named.items():
            for skip in named:
                self._add(reason, _where(entry.shard, skip.key), skip.detail)

    def _check_sample(self, shard: str, sample: ImageTextSample) -> None:
        if not isinstance(sample, ReinforcedSample):
            return
        where = _where(shard, sample.key)
        card = self.card
        if len(sample.augmentations) != card.num_augmentations:
            detail = f"{len(sample.augmentations)} augmentations, the card says {card.num_augmentations}"
            self._add("wrong_augmentations", where, detail)
        if sample.dim != sum(card.teacher_dims):
            self._add("wrong_dim", where, f"embeddings of dim {sample.dim}, the card says {card.teacher_dims}")
            return
        tolerance = TOLERANCES[card.layout]
        for name, emb in _embeddings(sample).items():
            for teacher, part in zip(card.teachers, _split(emb, card), strict=True):
                norms = np.linalg.norm(part, axis=-1)
                if np.abs(norms - 1).max(initial=0) > tolerance:
                    detail = f"{name} of {teacher.name} has norms {norms.min():.4f} to {norms.max():.4f}, expected 1"
                    self._add("wrong_norm", where, detail)

    def _replay(self, shard: str, sample: ReinforcedSample) -> None:
        """Reinforce the sample again, from its image and captions, and compare."""
        assert self.teachers is not None, "samples are only chosen where there are teachers"
        assert self.card.augmentation is not None, "where there are teachers, there are augmentations"
        where = _where(shard, sample.key)
        spec = ReinforcementSpec(
            source=ShardSource(shards=(storage.join(self.directory, shard),)),
            output=self.directory,
            augmentation=self.card.augmentation,
            num_augmentations=self.card.num_augmentations,
            seed=self.card.seed,
            layout=self.card.layout,
        )
        (again,) = BatchEncoder(spec=spec, teachers=self.teachers, captioner=None, shard=shard)(
            [ImageTextSample(**plain_fields(sample))]
        )
        if isinstance(again, Skip):
            self._add(again.reason, where, again.detail)
            return
        assert isinstance(again, ReinforcedSample), "there are teachers"
        self.num_replayed += 1
        if sample.image_sha256 is not None and sample.image_sha256 != again.image_sha256:
            self._add("wrong_image", where, "the image is not the one that was reinforced")
            return
        if sample.augmentations != again.augmentations:
            self._add("wrong_replay", where, "the stored augmentations are not the ones that the card's seed gives")
            return
        for name, emb in _embeddings(sample).items():
            parts = zip(
                self.card.teachers, _split(emb, self.card), _split(_embeddings(again)[name], self.card), strict=True
            )
            for teacher, stored, computed in parts:
                difference = float(np.linalg.norm(stored - computed, axis=-1).max(initial=0))
                self.largest_difference = max(self.largest_difference, difference)
                if difference > self._tolerance(teacher.spec):
                    detail = f"{name} of {teacher.name} differs by {difference:.1e} from what it gives now"
                    self._add("wrong_embedding", where, detail)

    def _tolerance(self, teacher_spec: Any) -> float:
        is_half = teacher_spec is not None and teacher_spec.get("precision") == "bfloat16"
        return max(TOLERANCES[self.card.layout], _HALF_PRECISION_TOLERANCE if is_half else 0.0)

    def _check_duplicates(self, hashes: Sequence[npt.NDArray[np.uint64]]) -> None:
        """Name keys that come twice: found by hash, which is small, and told apart by a second look."""
        if not hashes:
            return
        values, counts = np.unique(np.concatenate(hashes), return_counts=True)
        suspects = set(values[counts > 1].tolist())
        shards: dict[str, str] = {}
        for entry, own in zip(self.entries, hashes, strict=True):
            if suspects.isdisjoint(own.tolist()):
                continue
            for sample in self._read(entry):
                if hash(sample.key) & (2**64 - 1) in suspects:
                    first = shards.setdefault(sample.key, entry.shard)
                    if first != entry.shard:
                        self._add("duplicate_key", _where(entry.shard, sample.key), f"it is in {first} too")


def _teacher_spec(spec: Any) -> TeacherSpec:
    return from_json(json.dumps(spec), TeacherSpec)  # type: ignore[type-abstract]  # JSON says which concrete one


def _where(shard: str, key: str) -> str:
    return f"{shard}/{key}" if key else shard


def _embeddings(sample: ReinforcedSample) -> dict[str, npt.NDArray[np.float32]]:
    named = {f"{name}_emb": emb for name, emb in sample.syn_text_emb.items()}
    return {"image_emb": sample.image_emb, "text_emb": sample.text_emb, **named}


def _split(emb: npt.NDArray[np.float32], card: ReinforcementCard) -> list[npt.NDArray[np.float32]]:
    return np.split(emb, np.cumsum(card.teacher_dims)[:-1], axis=-1)
