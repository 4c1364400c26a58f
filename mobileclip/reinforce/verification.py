"""Verification of reinforced shards: readable members, agreement with the card, and recomputed embeddings."""

from __future__ import annotations

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b

import attrs
import numpy as np
import numpy.typing as npt

from mobileclip import storage
from mobileclip.data import ImageTextSample, ReinforcedSample, ReinforcementCard, Skip, TeacherEntry, read_card
from mobileclip.data.buckets import Buckets, leading_bits, num_buckets_for
from mobileclip.data.randomness import derived_seed
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.samples.members import parse_reinforced_sample, parse_sample
from mobileclip.data.shards.files import RawSample, parse, read_shard
from mobileclip.data.skips import CONNECTION_FAILED, attempt
from mobileclip.engines import Engine, FunctionWork, InlineEngine, OrderedResults, SetAside
from mobileclip.hardware import AUTO, pick_device
from mobileclip.progress import Progress
from mobileclip.reinforce.encoding import BatchEncoder, plain_fields
from mobileclip.reinforce.manifest import Manifest, ShardEntry
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import TeacherEnsemble, TeacherSpec, build_ensemble
from mobileclip.serialization import from_json
from mobileclip.terminal import console

# For each layout, the largest norm of the difference that storage can cause in an embedding of unit length; measured
# norms are about half as large.
TOLERANCES = {"npz": 1e-4, "pth.gz": 4e-3, "compact": 4e-3, "compact8": 2e-2}
# Embeddings computed in bfloat16 depend on the device and on the batch.
_HALF_PRECISION_TOLERANCE = 5e-2
MAX_NAMED = 20
"""Number of listed problems per kind; the counts include all problems."""
# A key's hash, and the index of the key's shard.
_KEY = np.dtype([("hash", "u8"), ("shard", "u4")])


@attrs.frozen
class Problem:
    """A problem in a shard.

    Args:
        kind: kind of the problem, such as `wrong_count`, for counting.
        where: name of the shard, followed by the key if the problem is in a sample.
        detail: description of the problem in one line.
    """

    kind: str
    where: str
    detail: str


def _of_skip(skip: Skip) -> Problem:
    return Problem(skip.reason, place(skip.shard, skip.key), skip.detail)


@attrs.frozen(kw_only=True)
class ShardTask:
    """The samples to verify and the samples to recompute in one shard.

    Args:
        entry: the shard's entry in the manifest.
        rows: indices of the samples to parse and check; None for all samples.
        replayed: indices of the samples to return for recomputation.
    """

    entry: ShardEntry
    rows: frozenset[int] | None
    replayed: frozenset[int]

    @property
    def name(self) -> str:
        """Name of the shard."""
        return self.entry.shard


@attrs.frozen(kw_only=True)
class ShardFindings:
    """The result of checking a shard.

    Args:
        num_samples: number of samples read.
        num_checked: number of samples parsed and checked.
        problems: problems of the shard and of its samples.
        replayed: samples for recomputation.
        keys: 64-bit hashes of the keys of all samples.
    """

    num_samples: int
    num_checked: int
    problems: Sequence[Problem]
    replayed: Sequence[ReinforcedSample]
    keys: npt.NDArray[np.uint64]


@attrs.frozen(kw_only=True)
class ShardCheck:
    """Reads a shard once, in any process, and returns the shard's problems.

    Args:
        directory: directory of the shards.
        card: card of the shards.
    """

    directory: str
    card: ReinforcementCard

    def __call__(self, task: ShardTask) -> ShardFindings:
        """Read and check the samples of a shard.

        Raises:
            StorageError: if the shard's store or disk failed.
        """
        shard, problems = task.name, list[Problem]()
        keys, replayed = list[int](), list[ReinforcedSample]()
        lost, unread = list[Skip](), list[Skip]()
        parser = partial(parse_reinforced_sample if self.card.teachers else parse_sample, limits=self.limits)
        num_checked = 0
        for number, raw in enumerate(self.read(shard, unread.append)):
            keys.append(key_hash(raw.key))
            if task.rows is not None and number not in task.rows:
                continue
            sample = parse(raw, parser, lost.append)
            num_checked += sample is not None
            if isinstance(sample, ReinforcedSample):
                problems += self._problems(place(shard, sample.key), sample)
                if number in task.replayed:
                    replayed.append(sample)
        problems += [_of_skip(attrs.evolve(skip, shard=shard)) for skip in lost]
        num_samples = len(keys) - len(lost)
        if num_samples != task.entry.num_samples:
            detail = f"{num_samples} samples, the manifest says {task.entry.num_samples}"
            problems.append(Problem("wrong_count", shard, detail))
        for skip in unread:
            if skip.reason == CONNECTION_FAILED:
                raise skip.error(skip.detail)
            problems.append(Problem(skip.reason, shard, skip.detail))
        return ShardFindings(
            num_samples=num_samples,
            num_checked=num_checked,
            problems=problems,
            replayed=replayed,
            keys=np.array(keys, np.uint64),
        )

    @property
    def limits(self) -> SampleLimits:
        """The size limits of a sample, from the dims in the card."""
        return attrs.evolve(SAMPLE_LIMITS, dim=sum(self.card.teacher_dims) or None)

    def read(self, shard: str, on_skip: Callable[[Skip], None]) -> Iterable[RawSample]:
        """Yield a shard's samples; a missing shard yields no samples, because `verify` reports missing files.

        Args:
            shard: name of the shard.
            on_skip: function that receives the reason if the shard is truncated.
        """
        path = storage.join(self.directory, shard)
        return read_shard(path, on_skip, self.limits) if storage.exists(path) else ()

    def _problems(self, where: str, sample: ReinforcedSample) -> Iterator[Problem]:
        card = self.card
        if len(sample.augmentations) != card.num_augmentations:
            detail = f"{len(sample.augmentations)} augmentations, the card says {card.num_augmentations}"
            yield Problem("wrong_augmentations", where, detail)
        if sample.dim != sum(card.teacher_dims):
            yield Problem("wrong_dim", where, f"embeddings of dim {sample.dim}, the card says {card.teacher_dims}")
            return
        for name, teacher, part in parts_of(sample, card):
            norms = np.linalg.norm(part, axis=-1)
            if np.abs(norms - 1).max(initial=0) > TOLERANCES[card.layout]:
                detail = f"{name} of {teacher.name} has norms {norms.min():.4f} to {norms.max():.4f}, expected 1"
                yield Problem("wrong_norm", where, detail)


def key_hash(key: str) -> int:
    """Return a 64-bit hash of a key, the same in every process."""
    return int.from_bytes(blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest(), "big")


def place(shard: str, key: str) -> str:
    """Return the name of a shard, or of a sample in it, for messages."""
    return f"{shard}/{key}" if key else shard


def parts_of(
    sample: ReinforcedSample, card: ReinforcementCard
) -> Iterator[tuple[str, TeacherEntry, npt.NDArray[np.float32]]]:
    """Yield the name, the teacher and the values of each embedding of a sample."""
    named = {f"{name}_emb": emb for name, emb in sample.syn_text_emb.items()}
    for name, emb in {"image_emb": sample.image_emb, "text_emb": sample.text_emb, **named}.items():
        for teacher, part in zip(card.teachers, np.split(emb, np.cumsum(card.teacher_dims)[:-1], axis=-1), strict=True):
            yield name, teacher, part


@attrs.frozen(kw_only=True)
class Verification:
    """The result of verifying a reinforced directory: counts and errors.

    Args:
        num_shards: number of shards selected for reading.
        num_samples: number of samples read from these shards.
        num_checked: number of samples with checked members, shapes and norms.
        all_shards: number of shards in the manifest.
        all_samples: number of samples in the manifest.
        num_replayed: number of samples with recomputed augmentations and embeddings.
        largest_difference: largest norm of the difference between a stored and a recomputed embedding of one teacher,
            both of unit length; 0 without recomputed embeddings.
        problems: the first problems of each kind, at most `MAX_NAMED`.
        counts: total number of problems by kind.
        notes: checks that were not possible, with reasons.
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
        """Whether there are no problems."""
        return not self.counts

    def __str__(self) -> str:
        lines = [f"{self.num_samples:,} samples in {self.num_shards:,} shards read"]
        if self.num_shards < self.all_shards:
            lines[0] += f", selected from {self.all_samples:,} samples in {self.all_shards:,} shards"
        if self.num_checked < self.num_samples:
            lines.append(f"{self.num_checked:,} of these samples, selected at random, checked")
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
    """Read all or some samples of a reinforced directory, and recompute a few of them.

    The function checks that all files exist with the manifest's sizes. In the selected shards, the function checks the
    numbers of samples, looks for duplicate keys, and checks the members, shapes, norms and number of augmentations of
    every selected sample. For random samples, the function also recomputes the image's hash, the augmentations and the
    embeddings, and compares the recomputed values with the stored values.

    Args:
        directory: local path or URL.
        num_samples: number of samples to recompute; 0 for no recomputation.
        num_shards: number of shards to read, selected at random; None for all shards.
        num_rows: number of samples to check per shard, selected at random; None for all samples.
        teachers: teachers that recompute the embeddings; None for the teachers in the card.
        device: device for recomputing; `auto` selects the best available device.
        seed: seed of the random selection.
        engine: engine that reads the shards; None for this process. The result does not depend on the engine.
        show_progress: whether to show a progress bar.

    Raises:
        ValueError: if the card does not exist or cannot be read.
    """
    verifier = _Verifier(os.fspath(directory))
    if num_samples:
        verifier.load(teachers, str(pick_device(device)))
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
    """Randomly select the samples to verify in each shard; the manifest states the number of samples.

    Args:
        entries: entries of the manifest.
        num_samples: number of samples to recompute, selected uniformly from the checked samples.
        num_shards: number of shards to read; None for all shards.
        num_rows: number of samples to check per shard; None for all samples.
        seed: seed of the random selection.
    """
    chosen: Sequence[int] = range(len(entries))
    if num_shards is not None:
        chosen = sorted(_draw(seed, "shards", len(entries), num_shards))
    some = [entries[index] for index in chosen]
    ends = np.cumsum([entry.num_samples if num_rows is None else min(entry.num_samples, num_rows) for entry in some])
    again: dict[int, set[int]] = defaultdict(set)
    for index in _draw(seed, "samples", int(ends[-1]) if len(ends) else 0, num_samples):
        number = int(np.searchsorted(ends, index, side="right"))
        again[number].add(index - int(ends[number - 1] if number else 0))
    tasks = []
    for number, entry in enumerate(some):
        if num_rows is None or num_rows >= entry.num_samples:
            tasks.append(ShardTask(entry=entry, rows=None, replayed=frozenset(again[number])))
        else:
            rows = list(_draw(seed, f"rows of {entry.shard}", entry.num_samples, num_rows))
            replayed = frozenset(rows[index] for index in again[number])
            tasks.append(ShardTask(entry=entry, rows=frozenset(rows), replayed=replayed))
    return tasks


def _draw(seed: int, what: str, total: int, count: int) -> Collection[int]:
    """Return distinct random numbers below `total`; the function makes no list of all numbers."""
    rng = random.Random(derived_seed(seed, "verify", what))  # noqa: S311 - nothing is secret
    return rng.sample(range(total), min(count, total))


class _Verifier:
    def __init__(self, directory: str) -> None:
        self.directory, self.card = directory, read_card(directory)
        self.entries = [entry for entry in Manifest(directory).entries() if entry.num_samples]
        self.teachers: TeacherEnsemble | None = None
        self.counts, self.named, self.notes = Counter[str](), list[Problem](), list[str]()
        self.largest_difference, self.num_replayed = 0.0, 0

    def add(self, problem: Problem) -> None:
        self.counts[problem.kind] += 1
        if self.counts[problem.kind] <= MAX_NAMED:
            self.named.append(problem)

    def run(self, tasks: Sequence[ShardTask], engine: Engine, *, show_progress: bool) -> Verification:
        num_read = num_checked = 0
        numbers = {task.name: number for number, task in enumerate(tasks)}
        for problem in self._wrong_files():
            self.add(problem)
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
                    self.add(Problem("unreadable_shard", task.name, result.reason))
                    return
                num_read += result.num_samples
                num_checked += result.num_checked
                for problem in result.problems:
                    self.add(problem)
                for sample in result.replayed:
                    replay = partial(self._replay, task.name, sample)
                    attempt(replay, key=sample.key, shard=task.name, on_skip=lambda skip: self.add(_of_skip(skip)))
                records = np.empty(len(result.keys), _KEY)
                records["hash"], records["shard"] = result.keys, numbers[task.name]
                keys.add(records, leading_bits(records["hash"], keys.num_buckets))

            with OrderedResults[ShardTask, ShardFindings](tasks, take) as listener:
                engine.run(FunctionWork(function=check), tasks, listener)
            for problem in _repeated_keys(tasks, keys, check):
                self.add(problem)
        return Verification(
            num_shards=len(tasks),
            num_samples=num_read,
            num_checked=num_checked,
            all_shards=len(self.entries),
            all_samples=sum(entry.num_samples for entry in self.entries),
            num_replayed=self.num_replayed,
            largest_difference=self.largest_difference,
            problems=tuple(self.named),
            counts=dict(self.counts),
            notes=tuple(self.notes),
        )

    def load(self, teachers: TeacherEnsemble | None, device: str) -> None:
        """Use the given teachers, or build the teachers in the card; if the build fails, add a note."""
        specs = [entry.spec for entry in self.card.teachers]
        if not specs:
            self.notes.append("the shards have captions but no embeddings, so nothing was recomputed")
            return
        if teachers is None and None in specs:
            self.notes.append("the card does not say how to build the teachers, so nothing was recomputed")
            return
        family: type[TeacherSpec] = TeacherSpec  # type: ignore[type-abstract]  # JSON says which concrete one
        try:
            built = teachers or build_ensemble([from_json(json.dumps(one), family) for one in specs], device)
        except ValueError as error:
            self.notes.append(f"the teachers cannot be loaded, so nothing was recomputed: {error}")
            return
        for entry, teacher in zip(self.card.teachers, built.teachers, strict=True):
            if entry.weights_sha256 != teacher.weights_sha256:
                detail = f"the weights of {teacher.name} differ from the card's"
                self.add(Problem("wrong_teacher", entry.name, detail))
        self.teachers = built

    def _wrong_files(self) -> Iterator[Problem]:
        known = {entry.shard: entry for entry in self.entries}
        sizes = storage.find_sizes(self.directory, ["", *known])
        for shard, entry in known.items():
            if shard not in sizes:
                yield Problem("missing_shard", shard, "the manifest lists the shard, but the file is missing")
            elif sizes[shard] not in (None, entry.num_bytes):
                yield Problem("wrong_size", shard, f"{sizes[shard]} bytes, the manifest says {entry.num_bytes}")
        for name in sorted(name for name in sizes if name.endswith(".tar") and name not in known):
            yield Problem("unknown_shard", name, "the manifest does not list the shard; a resumed job writes it again")
        total = sum(entry.num_samples for entry in self.entries)
        if total != self.card.num_samples:
            detail = f"{self.card.num_samples} samples, the manifest says {total}"
            yield Problem("wrong_card", "the card", detail)

    def _replay(self, shard: str, sample: ReinforcedSample) -> None:
        """Reinforce the sample again from the stored image and captions, and compare the results."""
        card, where = self.card, place(shard, sample.key)
        assert card.augmentation is not None, "a card with teachers has augmentations"
        spec = ReinforcementSpec(
            augmentation=card.augmentation,
            num_augmentations=card.num_augmentations,
            seed=card.seed,
            layout=card.layout,
        )
        encoder = BatchEncoder(spec=spec, teachers=self.teachers, captioner=None, shard=shard)
        (again,) = encoder([ImageTextSample(**plain_fields(sample))])
        if isinstance(again, Skip):
            self.add(_of_skip(again))
            return
        assert isinstance(again, ReinforcedSample), "there are teachers"
        self.num_replayed += 1
        if sample.image_sha256 not in (None, again.image_sha256):
            self.add(Problem("wrong_image", where, "the image differs from the reinforced image"))
            return
        if sample.augmentations != again.augmentations:
            detail = "the stored augmentations differ from the augmentations that the card's seed reproduces"
            self.add(Problem("wrong_replay", where, detail))
            return
        pairs = zip(parts_of(sample, card), parts_of(again, card), strict=True)
        for (name, teacher, stored), (_, _, computed) in pairs:
            difference = float(np.linalg.norm(stored - computed, axis=-1).max(initial=0))
            self.largest_difference = max(self.largest_difference, difference)
            is_half = (teacher.spec or {}).get("precision") == "bfloat16"
            if difference > max(TOLERANCES[card.layout], _HALF_PRECISION_TOLERANCE * is_half):
                detail = f"{name} of {teacher.name} differs by {difference:.1e} from the recomputed embedding"
                self.add(Problem("wrong_embedding", where, detail))


def _repeated_keys(tasks: Sequence[ShardTask], keys: Buckets, check: ShardCheck) -> Iterator[Problem]:
    """Report duplicate keys: find equal hashes, bucket by bucket, and compare the keys of these hashes."""
    suspects: dict[int, set[int]] = defaultdict(set)
    for bucket in keys:
        _, group, count = np.unique(bucket["hash"], return_inverse=True, return_counts=True)
        for hashed, number in bucket[count[group] > 1].tolist():
            suspects[number].add(hashed)
    first: dict[str, str] = {}
    for number, hashes in sorted(suspects.items()):
        shard = tasks[number].name
        for raw in check.read(shard, lambda _: None):
            if key_hash(raw.key) in hashes:
                if raw.key in first:
                    yield Problem("duplicate_key", place(shard, raw.key), f"the key is also in {first[raw.key]}")
                first.setdefault(raw.key, shard)
