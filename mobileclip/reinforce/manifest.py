"""The manifest of a reinforcement, its missing shards, and the card: sources, teachers and captioner of an output."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.data import (
    CaptionerEntry,
    ImageTextSample,
    ReinforcementCard,
    Skip,
    SkipReport,
    TeacherEntry,
    ViewAgreement,
    card_of_shards,
    find_card,
    write_card,
)
from mobileclip.data.shards.sidecars import CARD, MANIFEST, shard_folder
from mobileclip.datasets import ShardSource, Unit
from mobileclip.datasets.sources.base import UNREACHABLE
from mobileclip.datasets.sources.shards import ShardUnit
from mobileclip.extras import VERSION
from mobileclip.reinforce.captioners import Captioner, CaptionerSpec, SeveralCaptioners, caption_sets
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import TeacherEnsemble, TeacherSpec, build_ensemble
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import split_lines, strict

TAIL = "manifest.tail.jsonl"
"""File beside the manifest in an object store, which cannot append: its newest lines, until they are written there."""

SKIPPED = "skipped"
"""Folder in the output with a file for every shard that samples were left out of."""

# Ten million lines, and a thousand of each reason.
_MAX_BYTES, _MAX_SKIP_BYTES = 2**31, 2**28
# No shard has so many.
_MAX_SAMPLES = 2**36
# The manifest names files below its own folder.
_PART = r"(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f]+"
_FILE_NAME = rf"{_PART}(?:/{_PART})*"
# Runs that try to reach an image.
_MOST_ATTEMPTS = 3


@attrs.frozen(kw_only=True, field_transformer=strict)
class ShardEntry:
    """One finished shard.

    Args:
        shard: its path below the output, with `/` between folders; a shard without samples has no file.
        fingerprint: fingerprint of its input; a changed input needs a new shard.
        num_samples: samples in it.
        num_bytes: its size.
        skipped: numbers of skipped samples by reason.
        agreement: agreement of the teachers on its views; None without a measurement.
        attempts: number of runs that tried to download all its images.
    """

    shard: str = attrs.field(validator=validators.matches_re(_FILE_NAME))
    fingerprint: str
    num_samples: int = attrs.field(validator=[validators.ge(0), validators.lt(_MAX_SAMPLES)])
    num_bytes: int = attrs.field(validator=validators.ge(0))
    skipped: Mapping[str, int] = attrs.field(factory=dict)
    agreement: ViewAgreement | None = None
    attempts: int = attrs.field(default=1, validator=validators.gt(0))

    @property
    def is_pending(self) -> bool:
        """Whether some images could not be downloaded; the next run tries them again."""
        return UNREACHABLE in self.skipped and self.attempts < _MOST_ATTEMPTS


class Manifest(dict[str, ShardEntry]):
    """The finished shards of an output directory, a mapping that is as durable as the files.

    The manifest appends and syncs lines; later lines replace earlier ones. Readers ignore a truncated last line, and
    the next append removes it. In an object store, a small second file holds the newest lines, so that the long file is
    rarely uploaded.

    Args:
        directory: directory of the shards, local or a URL.
        most_in_tail: most entries of the small file, at least 1; an object store uploads the small file for every
            entry, and the manifest when the small file is full.

    Raises:
        ValueError: if a line other than the last is damaged.
    """

    def __init__(self, directory: str | os.PathLike[str], *, most_in_tail: int = 256) -> None:
        self._most_in_tail = most_in_tail
        self.path = storage.join(os.fspath(directory), MANIFEST)
        self._tail_path = storage.join(os.fspath(directory), TAIL)
        self._remote = storage.is_remote(self.path)
        entries, self._num_whole_bytes = _read(self.path)
        self._tail = _read(self._tail_path)[0] if self._remote else {}
        super().__init__(entries | self._tail)

    def entries(self) -> tuple[ShardEntry, ...]:
        """Return all entries."""
        return tuple(self.values())

    def add(self, entry: ShardEntry) -> None:
        """Add a finished shard, replacing an entry of the same name."""
        self[entry.shard] = entry
        if self._remote:
            self._tail[entry.shard] = entry
            if len(self._tail) < self._most_in_tail:
                _write(self._tail_path, self._tail)
            else:
                self.close()
            return
        if self._num_whole_bytes is not None:
            os.truncate(self.path, self._num_whole_bytes)
            self._num_whole_bytes = None
        with Path(self.path).open("ab") as stream:
            stream.write(_line(entry))
            stream.flush()
            os.fsync(stream.fileno())

    def close(self) -> None:
        """Merge an object store's small file into the long file."""
        if self._tail:
            _write(self.path, self)
            storage.remove(self._tail_path)
            self._tail.clear()


def _read(path: str) -> tuple[dict[str, ShardEntry], int | None]:
    """Return a file's entries, and the number of bytes in complete lines if the last line is truncated."""
    text = storage.read_if_there(path, limit=_MAX_BYTES) or b""
    *lines, torn = text.split(b"\n")
    entries = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = from_json(line.decode(), ShardEntry)
        except ValueError as error:
            raise ValueError(
                f"line {number} of {path} is damaged ({error}); delete the line, and its shard is made again"
            ) from None
        entries[entry.shard] = entry
    return entries, len(text) - len(torn) if torn else None


def _write(path: str, entries: Mapping[str, ShardEntry]) -> None:
    with storage.atomic_write(path) as stream:
        stream.writelines(map(_line, entries.values()))


def _line(entry: ShardEntry) -> bytes:
    # Of most shards there is one attempt, which need not be said a million times.
    return to_json(entry).replace(', "attempts": 1}', "}").encode() + b"\n"


def refuse_own_input(spec: ReinforcementSpec, units: Sequence[Unit]) -> None:
    """Refuse an output whose shards would take the place of the source's.

    Raises:
        ValueError: if it is one.
    """
    place = cache(_place)
    for unit in units:
        if not isinstance(unit, ShardUnit) or storage.file_name(unit.path) != storage.file_name(unit.name):
            continue
        target = storage.join(spec.output, unit.name)
        # Links to folders are followed once a folder.
        same = (
            storage.is_same(unit.path, target)
            if not storage.is_remote(unit.path) and storage.local_path(unit.path).is_symlink()
            else place(shard_folder(unit.path)) == place(shard_folder(target))
        )
        if same:
            raise ValueError(f"the output would replace {unit.path}; choose another output directory")


@attrs.frozen(kw_only=True)
class UnreachedRows(Unit):
    """The rows of a finished shard whose images could not be reached.

    Args:
        unit: source of the shard.
        entry: entry of the shard.
        output: output of the job.
    """

    unit: Unit
    entry: ShardEntry
    output: str

    def fingerprint(self) -> str:
        """Return the complete unit's fingerprint."""
        return self.unit.fingerprint()

    def count(self) -> int:
        """Return how many rows there are."""
        return self.entry.skipped[UNREACHABLE]

    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the rows in the shard's file of skipped samples, and add other skips to the report."""
        content = storage.read_if_there(_skips_path(self.output, self.name), limit=_MAX_SKIP_BYTES) or b""
        skips = [from_json(line, Skip) for line in split_lines(content.decode())]
        names = {skip.key for skip in skips if skip.reason == UNREACHABLE}
        report.counts.update(self.entry.skipped)
        report.counts[UNREACHABLE] -= len(names)
        report.counts = +report.counts
        for skip in skips:
            if skip.reason != UNREACHABLE:
                report.named.setdefault(skip.reason, []).append(skip)
        yield from self.unit.read_again(names, report)


def write_skips(output: str, shard: str, skips: SkipReport) -> None:
    """Write a shard's file of skipped samples, or remove it if there are none."""
    path = _skips_path(output, shard)
    if not skips.counts:
        storage.remove(path)
        return
    storage.make_directory_of(path)
    with storage.atomic_write(path) as stream:
        for named in skips.named.values():
            stream.writelines(to_json(skip).encode() + b"\n" for skip in named)


def _skips_path(output: str, shard: str) -> str:
    return storage.join(storage.join(output, SKIPPED), f"{shard}.jsonl")


def pending_units(spec: ReinforcementSpec, units: Sequence[Unit], manifest: Manifest) -> list[Unit]:
    """Return units without a finished shard or with a changed input, and the missing rows of others.

    The function lists folders of object stores, a thousand files per request. Web servers cannot list, so it does not
    detect their changed inputs.

    Args:
        spec: the options.
        units: units of its source.
        manifest: manifest of its output; a shard without an entry may be anything.

    Raises:
        OSError: if a store cannot be reached.
    """
    entered = [unit for unit in units if unit.name in manifest]
    sizes = storage.find_sizes(spec.output, [unit.name for unit in entered if manifest[unit.name].num_samples])
    whole = [
        unit
        for unit in entered
        if not manifest[unit.name].num_samples or sizes.get(unit.name) == manifest[unit.name].num_bytes
    ]
    assert spec.source is not None, "units are of a source"
    now = spec.source.fingerprints(whole)
    # Where the input is gone, what was made of it stays.
    changed = {name for name, fingerprint in now.items() if fingerprint != manifest[name].fingerprint}
    finished = {unit.name for unit in whole} - changed
    return [
        UnreachedRows(name=unit.name, unit=unit, entry=manifest[unit.name], output=spec.output)
        if unit.name in finished
        else unit
        for unit in units
        if unit.name not in finished or manifest[unit.name].is_pending
    ]


def _place(folder: str) -> str:
    return folder if storage.is_remote(folder) else str(storage.local_path(folder).resolve())


_PACKAGES = ("torch", "pillow", "numpy")


def open_card(
    spec: ReinforcementSpec, teachers: TeacherEnsemble | None, captioner: Captioner | None
) -> ReinforcementCard:
    """Return the card of the job's output, or write a new card.

    Raises:
        ValueError: if the output has other options, teachers or captioners.
    """
    card = _card(spec, teachers, captioner)
    found = find_card(spec.output)
    if found is None:
        write_card(spec.output, card)
        return card
    _refuse_difference(spec.output, found, card)
    return found


def close_card(spec: ReinforcementSpec) -> None:
    """Remove the card of an empty output, so that a job with other options may use it."""
    storage.remove(storage.join(spec.output, CARD))


def refuse_other_choices(spec: ReinforcementSpec) -> bool:
    """Return whether the output has a card, after comparing the options that need no teacher.

    Raises:
        ValueError: if the output has other options.
    """
    found = find_card(spec.output)
    if found is None:
        return False
    wanted = attrs.evolve(found, seed=spec.seed, layout=spec.layout)
    if found.teachers:
        wanted = attrs.evolve(wanted, augmentation=spec.augmentation, num_augmentations=spec.num_augmentations)
    _refuse_difference(spec.output, found, wanted)
    if spec.teachers and [entry.spec for entry in found.teachers] != [
        _as_json(one, TeacherSpec) for one in spec.teachers
    ]:
        # The same weights may have moved to another place.
        captioner = None if spec.captioner is None else spec.captioner.build("cpu")
        open_card(spec, build_ensemble(spec.teachers, "cpu"), captioner)
    return True


def _refuse_difference(output: str, found: ReinforcementCard, wanted: ReinforcementCard) -> None:
    fields = [field.name for field in attrs.fields(ReinforcementCard) if field.eq is not False]
    different = [name for name in fields if getattr(found, name) != getattr(wanted, name)]
    if different:
        raise ValueError(
            f"{output} was reinforced with another choice of {', '.join(different)}; delete it to start over, "
            "or keep it and choose another `--output`"
        )


def _card(spec: ReinforcementSpec, teachers: TeacherEnsemble | None, captioner: Captioner | None) -> ReinforcementCard:
    specs = spec.teachers or (None,) * len(teachers.teachers if teachers else ())
    return ReinforcementCard(
        teachers=tuple(
            TeacherEntry(
                name=one.name,
                weights_sha256=one.weights_sha256,
                dim=one.dim,
                logit_scale=one.logit_scale,
                image=one.image,
                spec=None if teacher_spec is None else _as_json(teacher_spec, TeacherSpec),
            )
            for one, teacher_spec in zip(teachers.teachers if teachers else (), specs, strict=True)
        ),
        captioners=(*_earlier_captioners(spec), *_own_captioners(spec, captioner)),
        augmentation=spec.augmentation if teachers else None,
        num_augmentations=spec.num_augmentations if teachers else 0,
        seed=spec.seed,
        layout=spec.layout,
        versions={"mobileclip": VERSION, **{package: metadata.version(package) for package in _PACKAGES}},
    )


def _own_captioners(spec: ReinforcementSpec, captioner: Captioner | None) -> tuple[CaptionerEntry, ...]:
    if captioner is None:
        return ()
    several = spec.captioner.sets if isinstance(spec.captioner, SeveralCaptioners) else ()
    specs: dict[str, CaptionerSpec | None] = {one.name: one.captioner for one in several}
    specs = specs or {spec.caption_set: spec.captioner}
    return tuple(
        CaptionerEntry(
            name=one.name,
            weights_sha256=one.weights_sha256,
            caption_set=name,
            seed=spec.seed,
            spec={} if (own := specs.get(name)) is None else _as_json(own, CaptionerSpec),
        )
        for name, one in caption_sets(captioner, spec.caption_set).items()
    )


def _earlier_captioners(spec: ReinforcementSpec) -> tuple[CaptionerEntry, ...]:
    """Return who captioned the source, where it is the output of an earlier step."""
    if not isinstance(spec.source, ShardSource):
        return ()
    card = card_of_shards([spec.source.units()[0].path])
    return () if card is None else card.captioners


def _as_json(spec: Any, family: type) -> dict[str, Any]:
    return dict(json.loads(to_json(spec, unstructure_as=family)))
