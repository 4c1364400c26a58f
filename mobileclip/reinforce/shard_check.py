"""One reinforced shard, read and held against the manifest and the card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip import storage
from mobileclip.data import ImageTextSample, ReinforcedSample, ReinforcementCard, Skip, TeacherEntry
from mobileclip.data.samples.members import parse_reinforced_sample, parse_sample
from mobileclip.data.samples.sample import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards.files import RawSample, parse, read_shard
from mobileclip.data.skips import CONNECTION_FAILED
from mobileclip.reinforce.manifest import ShardEntry

# Largest norm of a difference between unit-length embeddings that storing explains, by layout; measured values are
# about half of them.
TOLERANCES = {"npz": 1e-4, "pth.gz": 4e-3, "compact": 4e-3, "compact8": 2e-2}
MAX_NAMED = 20
"""Problems of a kind that are named; all of them are counted."""


@attrs.frozen(kw_only=True)
class Problem:
    """A problem that was found in a shard.

    Args:
        kind: in a few words, to be counted.
        where: the shard, and the key where it is one sample.
        detail: what exactly.
    """

    kind: str
    where: str
    detail: str


@attrs.define(kw_only=True)
class Problems:
    """Everything wrong: counted by kind, and of each kind the first ones."""

    counts: Counter[str] = attrs.field(factory=Counter)
    named: list[Problem] = attrs.field(factory=list)

    def add(self, kind: str, where: str, detail: str) -> None:
        """Count a problem."""
        self.counts[kind] += 1
        if self.counts[kind] <= MAX_NAMED:
            self.named.append(Problem(kind=kind, where=where, detail=detail))

    def add_skip(self, skip: Skip) -> None:
        """Enter what could not be read."""
        self.add(skip.reason, place(skip.shard, skip.key), skip.detail)

    def extend(self, other: Problems) -> None:
        """Add the problems of another check."""
        for problem in other.named:
            if sum(one.kind == problem.kind for one in self.named) < MAX_NAMED:
                self.named.append(problem)
        self.counts.update(other.counts)


@attrs.frozen(kw_only=True)
class ShardTask:
    """The samples of a shard to verify, and those to compute again.

    Args:
        entry: of the manifest.
        rows: numbers of the samples that are parsed and checked, ascending; None for all.
        replayed: numbers of those that are given back, to be computed again.
    """

    entry: ShardEntry
    rows: tuple[int, ...] | None
    replayed: frozenset[int]

    @property
    def name(self) -> str:
        """Name of the shard."""
        return self.entry.shard


@attrs.frozen(kw_only=True)
class ShardFindings:
    """The result of checking a shard.

    Args:
        shard: its name.
        num_samples: that were read.
        num_checked: of them, that were parsed.
        problems: what is wrong.
        replayed: the samples that are computed again.
        keys: of all samples, 64-bit hashes.
    """

    shard: str
    num_samples: int
    num_checked: int
    problems: Problems
    replayed: tuple[ReinforcedSample, ...]
    keys: npt.NDArray[np.uint64]


@attrs.frozen(kw_only=True)
class ShardCheck:
    """Reads a shard once, in whatever process, and says what is wrong with it.

    Args:
        directory: of the shards.
        card: that describes them.
    """

    directory: str
    card: ReinforcementCard

    def __call__(self, task: ShardTask) -> ShardFindings:
        """Return what is in the shard.

        Raises:
            StorageError: if its store or disk failed.
        """
        shard, problems = task.entry.shard, Problems()
        keys: list[int] = []
        replayed: list[ReinforcedSample] = []
        rows = None if task.rows is None else frozenset(task.rows)
        num_checked = num_unusable = 0
        unread: list[Skip] = []
        for number, raw in enumerate(self.read(shard, unread)):
            keys.append(key_hash(raw.key))
            if rows is not None and number not in rows:
                continue
            num_checked += 1
            sample = self._parse(shard, raw, problems)
            if isinstance(sample, ReinforcedSample):
                self._check(shard, sample, problems)
                if number in task.replayed:
                    replayed.append(sample)
            num_unusable += sample is None
        if len(keys) - num_unusable != task.entry.num_samples:
            detail = f"{len(keys) - num_unusable} samples, the manifest says {task.entry.num_samples}"
            problems.add("wrong_count", shard, detail)
        for skip in unread:
            if skip.reason == CONNECTION_FAILED:
                raise skip.error(skip.detail)
            problems.add(skip.reason, shard, skip.detail)
        return ShardFindings(
            shard=shard,
            num_samples=len(keys) - num_unusable,
            num_checked=num_checked - num_unusable,
            problems=problems,
            replayed=tuple(replayed),
            keys=np.array(keys, np.uint64),
        )

    def read(self, shard: str, unread: list[Skip]) -> Iterable[RawSample]:
        """Yield what a shard holds; nothing of one that is not there, which the list of files tells.

        Args:
            shard: its name.
            unread: gets the reason if it breaks off.
        """
        path = storage.join(self.directory, shard)
        return read_shard(path, unread.append, self._limits()) if storage.exists(path) else ()

    def _limits(self) -> SampleLimits:
        return attrs.evolve(SAMPLE_LIMITS, dim=sum(self.card.teacher_dims) or None)

    def _parse(self, shard: str, raw: RawSample, problems: Problems) -> ImageTextSample | None:
        parser = parse_reinforced_sample if self.card.teachers else parse_sample
        limits = self._limits()
        return parse(
            raw,
            lambda key, members: parser(key, members, limits),
            lambda skip: problems.add(skip.reason, place(shard, skip.key), skip.detail),
        )

    def _check(self, shard: str, sample: ReinforcedSample, problems: Problems) -> None:
        where, card = place(shard, sample.key), self.card
        if len(sample.augmentations) != card.num_augmentations:
            detail = f"{len(sample.augmentations)} augmentations, the card says {card.num_augmentations}"
            problems.add("wrong_augmentations", where, detail)
        if sample.dim != sum(card.teacher_dims):
            problems.add("wrong_dim", where, f"embeddings of dim {sample.dim}, the card says {card.teacher_dims}")
            return
        tolerance = TOLERANCES[card.layout]
        for name, teacher, part in parts_of(sample, card):
            norms = np.linalg.norm(part, axis=-1)
            if np.abs(norms - 1).max(initial=0) > tolerance:
                detail = f"{name} of {teacher.name} has norms {norms.min():.4f} to {norms.max():.4f}, expected 1"
                problems.add("wrong_norm", where, detail)


def key_hash(key: str) -> int:
    """Return 64 bits of a key's hash, the same in every process."""
    return int.from_bytes(blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest(), "big")


def place(shard: str, key: str) -> str:
    """Return the name of a shard, or of a sample in it, for messages."""
    return f"{shard}/{key}" if key else shard


def parts_of(
    sample: ReinforcedSample, card: ReinforcementCard
) -> Iterator[tuple[str, TeacherEntry, npt.NDArray[np.float32]]]:
    """Yield a sample's embeddings by name and teacher."""
    named = {f"{name}_emb": emb for name, emb in sample.syn_text_emb.items()}
    for name, emb in {"image_emb": sample.image_emb, "text_emb": sample.text_emb, **named}.items():
        for teacher, part in zip(card.teachers, np.split(emb, np.cumsum(card.teacher_dims)[:-1], axis=-1), strict=True):
            yield name, teacher, part
