"""Verification of reinforced shards: what can be read, whether it agrees with the card, and whether it is true."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip import storage
from mobileclip.data import ImageTextSample, ReinforcedSample, ReinforcementCard, Skip, TeacherEntry, read_card
from mobileclip.data.buckets import Buckets, leading_bits, num_buckets_for
from mobileclip.data.randomness import random_index, seeded_rng
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.samples.members import parse_reinforced_sample, parse_sample
from mobileclip.data.shards.files import RawSample, parse, read_shard
from mobileclip.data.skips import CONNECTION_FAILED, attempt
from mobileclip.datasets import ShardSource
from mobileclip.engines import Engine, FunctionWork, InlineEngine, InOrder, SetAside
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


# Embeddings computed in bfloat16 depend on the device and on the batch.
_HALF_PRECISION_TOLERANCE = 5e-2
# A key's hash, and the number of the shard that has it.
_KEY = np.dtype([("hash", "u8"), ("shard", "u4")])


@attrs.frozen(kw_only=True)
class Verification:
    """The result of verifying a reinforced directory: counts and errors.

    Args:
        num_shards: read whole.
        num_samples: read whole.
        num_checked: samples of which members, shapes and norms were looked at.
        all_shards: that the manifest names.
        all_samples: that it counts.
        num_replayed: samples whose augmentations and embeddings were computed again.
        largest_difference: norm of the largest difference between a stored and a recomputed embedding of one teacher,
            which are of unit length; 0 where none was recomputed.
        problems: everything wrong, by kind the first ones.
        counts: number of problems by kind, complete.
        notes: what could not be checked, and why.
    """

    num_shards: int
    num_samples: int
    num_checked: int
    all_shards: int
    all_samples: int
    num_replayed: int
    largest_difference: float
    problems: tuple[Problem, ...]
    counts: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.counts

    def __str__(self) -> str:
        lines = [f"{self.num_samples:,} samples in {self.num_shards:,} shards read"]
        if self.num_shards < self.all_shards:
            lines[0] += f", drawn from {self.all_samples:,} in {self.all_shards:,}"
        if self.num_checked < self.num_samples:
            lines.append(f"{self.num_checked:,} of them, drawn at random, checked")
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
    num_shards: int | None = None,
    num_rows: int | None = None,
    teachers: TeacherEnsemble | None = None,
    device: str = AUTO,
    seed: int = 0,
    engine: Engine | None = None,
    show_progress: bool = True,
) -> Verification:
    """Read the samples of a reinforced directory, or some of them, and recompute a few.

    Checked of the directory: that all files are there, with the sizes that the manifest says. Checked of every shard
    that is read: the number of samples, and keys that come twice. Checked of every sample: members, shapes, norms, the
    number of augmentations. Checked of some, drawn at random: the image is the one that was reinforced, the stored
    augmentations are the ones that the seed gives, and the teachers give the stored embeddings for them.

    Args:
        directory: local or a URL.
        num_samples: how many to recompute; 0 for none.
        num_shards: how many to read, drawn at random; None for all.
        num_rows: how many samples to check of each, drawn at random; None for all.
        teachers: who reinforced them; None for the ones that the card describes.
        device: where to recompute; `auto` for the best one there is.
        seed: of the choices.
        engine: who reads; None for this process. The result does not depend on it.
        show_progress: show a bar.

    Raises:
        ValueError: if there is no card, or it cannot be read.
    """
    verifier = _Verifier(os.fspath(directory), num_samples, teachers, str(pick_device(device)))
    tasks = choose_tasks(
        verifier.entries,
        num_samples=num_samples if verifier.teachers else 0,
        num_shards=num_shards,
        num_rows=num_rows,
        seed=seed,
    )
    return verifier.run(tasks, engine or InlineEngine(device="cpu"), show_progress=show_progress)


def choose_tasks(
    entries: Sequence[ShardEntry], *, num_samples: int, num_shards: int | None, num_rows: int | None, seed: int
) -> list[ShardTask]:
    """Return the samples to verify in each shard, drawn at random from their counts.

    Args:
        entries: of the manifest.
        num_samples: that are computed again; each of those that are checked is as likely.
        num_shards: that are read; None for all.
        num_rows: that are checked of each; None for all.
        seed: of the choices.
    """
    chosen: Sequence[int] = range(len(entries))
    if num_shards is not None and num_shards < len(entries):
        chosen = sorted(_draw(seed, "shards", len(entries), num_shards))
    some = [entries[index] for index in chosen]
    counts = np.array([entry.num_samples for entry in some], np.int64)
    ends = np.cumsum(counts if num_rows is None else np.minimum(counts, num_rows))
    again: dict[int, set[int]] = defaultdict(set)
    for index in _draw(seed, "samples", int(ends[-1]) if len(ends) else 0, num_samples):
        number = int(np.searchsorted(ends, index, side="right"))
        again[number].add(index - int(ends[number - 1] if number else 0))
    tasks = []
    for number, entry in enumerate(some):
        if num_rows is None or num_rows >= entry.num_samples:
            tasks.append(ShardTask(entry=entry, rows=None, replayed=frozenset(again[number])))
            continue
        rows = tuple(sorted(_draw(seed, f"rows of {entry.shard}", entry.num_samples, num_rows)))
        tasks.append(ShardTask(entry=entry, rows=rows, replayed=frozenset(rows[index] for index in again[number])))
    return tasks


def _draw(seed: int, what: str, total: int, count: int) -> Collection[int]:
    """Return different numbers below a total, without a list of them all (Floyd's algorithm)."""
    rng, drawn = seeded_rng(seed, "verify", what), set[int]()
    for last in range(total - min(count, total), total):
        index = random_index(rng, last + 1)
        drawn.add(last if index in drawn else index)
    return drawn


class _Verifier:
    def __init__(self, directory: str, num_samples: int, teachers: TeacherEnsemble | None, device: str) -> None:
        self.directory = directory
        self.card = read_card(directory)
        self.entries = [entry for entry in Manifest(directory).entries() if entry.num_samples]
        self.found = Problems()
        self.notes: list[str] = []
        self.largest_difference = 0.0
        self.num_replayed = 0
        self.teachers = self._load(teachers, device) if num_samples else None

    def run(self, tasks: Sequence[ShardTask], engine: Engine, *, show_progress: bool) -> Verification:
        num_read = num_checked = 0
        numbers = {task.name: number for number, task in enumerate(tasks)}
        self._check_files()
        check = ShardCheck(directory=self.directory, card=self.card)
        total = sum(task.entry.num_samples for task in tasks)
        with (
            Buckets(_KEY, num_buckets_for(total, _KEY.itemsize)) as keys,
            Progress("verifying", total=total, console=console(shown=show_progress)) as progress,
        ):

            def take(task: ShardTask, result: ShardFindings | SetAside) -> None:
                nonlocal num_read, num_checked
                progress.advance(task.entry.num_samples)
                if isinstance(result, SetAside):
                    self.found.add("unreadable_shard", task.name, result.reason)
                    return
                num_read += result.num_samples
                num_checked += result.num_checked
                self._enter(result)
                records = np.empty(len(result.keys), _KEY)
                records["hash"], records["shard"] = result.keys, numbers[task.name]
                keys.add(records, leading_bits(records["hash"], keys.num_buckets))

            with InOrder[ShardTask, ShardFindings](tasks, take) as listener:
                engine.run(FunctionWork(function=check), tasks, listener)
            self._check_duplicates(tasks, keys, check)
        return Verification(
            num_shards=len(tasks),
            num_samples=num_read,
            num_checked=num_checked,
            all_shards=len(self.entries),
            all_samples=sum(entry.num_samples for entry in self.entries),
            num_replayed=self.num_replayed,
            largest_difference=self.largest_difference,
            problems=tuple(self.found.named),
            counts=dict(self.found.counts),
            notes=tuple(self.notes),
        )

    def _enter(self, findings: ShardFindings) -> None:
        self.found.extend(findings.problems)
        for sample in findings.replayed:
            attempt(
                partial(self._replay, findings.shard, sample),
                key=sample.key,
                shard=findings.shard,
                on_skip=self.found.add_skip,
            )

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
                self.found.add("wrong_teacher", entry.name, f"its weights are not the ones of the card: {teacher.name}")
        return built

    def _check_files(self) -> None:
        known = {entry.shard: entry for entry in self.entries}
        sizes = storage.find_sizes(self.directory, ["", *known])
        for shard, entry in known.items():
            if shard not in sizes:
                self.found.add("missing_shard", shard, "the manifest names it, but there is no file")
            elif sizes[shard] not in (None, entry.num_bytes):
                detail = f"{sizes[shard]} bytes, the manifest says {entry.num_bytes}"
                self.found.add("wrong_size", shard, detail)
        for name in sorted(name for name in sizes if name.endswith(".tar") and name not in known):
            self.found.add("unknown_shard", name, "the manifest does not name it; a job that goes on makes it again")
        total = sum(entry.num_samples for entry in self.entries)
        if total != self.card.num_samples:
            detail = f"it counts {self.card.num_samples} samples, the manifest {total}"
            self.found.add("wrong_card", "the card", detail)

    def _replay(self, shard: str, sample: ReinforcedSample) -> None:
        """Reinforce the sample again, from its image and captions, and compare."""
        assert self.teachers is not None, "samples are only chosen where there are teachers"
        assert self.card.augmentation is not None, "where there are teachers, there are augmentations"
        where = place(shard, sample.key)
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
            self.found.add(again.reason, where, again.detail)
            return
        assert isinstance(again, ReinforcedSample), "there are teachers"
        self.num_replayed += 1
        if sample.image_sha256 is not None and sample.image_sha256 != again.image_sha256:
            self.found.add("wrong_image", where, "the image is not the one that was reinforced")
            return
        if sample.augmentations != again.augmentations:
            self.found.add(
                "wrong_replay", where, "the stored augmentations are not the ones that the card's seed gives"
            )
            return
        computed = {(name, teacher.name): part for name, teacher, part in parts_of(again, self.card)}
        for name, teacher, stored in parts_of(sample, self.card):
            difference = float(np.linalg.norm(stored - computed[name, teacher.name], axis=-1).max(initial=0))
            self.largest_difference = max(self.largest_difference, difference)
            if difference > self._tolerance(teacher.spec):
                detail = f"{name} of {teacher.name} differs by {difference:.1e} from what it gives now"
                self.found.add("wrong_embedding", where, detail)

    def _tolerance(self, teacher_spec: Any) -> float:
        is_half = teacher_spec is not None and teacher_spec.get("precision") == "bfloat16"
        return max(TOLERANCES[self.card.layout], _HALF_PRECISION_TOLERANCE if is_half else 0.0)

    def _check_duplicates(self, tasks: Sequence[ShardTask], keys: Buckets, check: ShardCheck) -> None:
        """Name keys that come twice: found by their hashes, bucket by bucket, and told apart by a second look."""
        suspects: dict[int, list[npt.NDArray[np.uint64]]] = defaultdict(list)
        for bucket in keys:
            by_hash = bucket[np.argsort(bucket["hash"])]
            is_same = np.zeros(len(by_hash) + 1, bool)
            is_same[1:-1] = by_hash["hash"][1:] == by_hash["hash"][:-1]
            repeated = by_hash[is_same[1:] | is_same[:-1]]
            for number in np.unique(repeated["shard"]).tolist():
                suspects[number].append(repeated["hash"][repeated["shard"] == number])
        first: dict[str, str] = {}
        for number, hashes in sorted(suspects.items()):
            shard, wanted = tasks[number].entry.shard, set(np.concatenate(hashes).tolist())
            for raw in check.read(shard, []):
                if key_hash(raw.key) not in wanted:
                    continue
                if raw.key in first:
                    self.found.add("duplicate_key", place(shard, raw.key), f"it is in {first[raw.key]} too")
                first.setdefault(raw.key, shard)


def _teacher_spec(spec: Any) -> TeacherSpec:
    return from_json(json.dumps(spec), TeacherSpec)  # type: ignore[type-abstract]  # JSON says which concrete one
