"""The manifest of a reinforcement's finished shards, and the card with teachers, captioners and options."""

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
"""Small file with the newest lines, next to the manifest in an object store, where files cannot grow."""

SKIPPED = "skipped"
"""Folder in the output with a file for every shard with skipped samples."""

# Limits in bytes, for ten million lines of the manifest, and for a thousand skipped samples per reason.
_MAX_BYTES, _MAX_SKIP_BYTES = 2**31, 2**28
# No shard has so many skipped samples.
_MAX_SAMPLES = 2**36
# The manifest names files below its own folder.
_PART = r"(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f]+"
_FILE_NAME = rf"{_PART}(?:/{_PART})*"
# Number of runs that try to download an image.
_MOST_ATTEMPTS = 3


@attrs.frozen(kw_only=True, field_transformer=strict)
class ShardEntry:
    """An entry of the manifest: one finished shard.

    Args:
        shard: path of the shard below the output, with `/` between folders; a shard without samples has no file.
        fingerprint: fingerprint of the shard's input; if the input changes, the job writes the shard again.
        num_samples: number of samples in the shard.
        num_bytes: size of the shard in bytes.
        skipped: number of skipped samples by reason.
        agreement: agreement of the teachers on the shard's views; None without a measurement.
        attempts: number of runs that tried to download all images of the shard.
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
        """Whether the next run tries again to download missing images."""
        return UNREACHABLE in self.skipped and self.attempts < _MOST_ATTEMPTS


class Manifest(dict[str, ShardEntry]):
    """A durable mapping from shard names to entries, for the finished shards in an output directory.

    The manifest appends and syncs lines; only the newest line of a shard counts. Readers ignore an incomplete last
    line, and the next append removes this line. In an object store, a second, small file holds the newest lines, so
    that the manifest rarely uploads the long file.

    Args:
        directory: directory of the shards, local or a URL.
        most_in_tail: maximum number of entries in the small file, at least 1. In an object store, every new entry
            uploads the small file, and a full small file triggers the upload of the long file.

    Raises:
        ValueError: if a line other than the last line is damaged.
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
        """Add the entry of a finished shard, and replace an earlier entry of this shard."""
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
    """Return a file's entries, and the length of its complete lines in bytes if the last line is incomplete."""
    text = storage.read_if_exists(path, limit=_MAX_BYTES) or b""
    *lines, torn = text.split(b"\n")
    entries = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = from_json(line.decode(), ShardEntry)
        except ValueError as error:
            raise ValueError(
                f"line {number} of {path} is damaged ({error}); delete the line to write its shard again"
            ) from None
        entries[entry.shard] = entry
    return entries, len(text) - len(torn) if torn else None


def _write(path: str, entries: Mapping[str, ShardEntry]) -> None:
    with storage.atomic_write(path) as stream:
        stream.writelines(map(_line, entries.values()))


def _line(entry: ShardEntry) -> bytes:
    # Most shards have one attempt; leaving out this value saves space.
    return to_json(entry).replace(', "attempts": 1}', "}").encode() + b"\n"


def refuse_own_input(spec: ReinforcementSpec, units: Sequence[Unit]) -> None:
    """Raise an error if the output's shards would replace the source's shards.

    Raises:
        ValueError: if a shard of the source would be replaced.
    """
    place = cache(_place)
    for unit in units:
        if not isinstance(unit, ShardUnit) or storage.file_name(unit.path) != storage.file_name(unit.name):
            continue
        target = storage.join(spec.output, unit.name)
        # Links to folders are resolved once per folder.
        same = (
            storage.is_same(unit.path, target)
            if not storage.is_remote(unit.path) and storage.local_path(unit.path).is_symlink()
            else place(shard_folder(unit.path)) == place(shard_folder(target))
        )
        if same:
            raise ValueError(f"the output would replace {unit.path}; choose a different output directory")


@attrs.frozen(kw_only=True)
class UnreachedRows(Unit):
    """The rows of a finished shard whose images could not be downloaded.

    Args:
        unit: the source's unit for the shard.
        entry: entry of the shard.
        output: output directory or URL of the job.
    """

    unit: Unit
    entry: ShardEntry
    output: str

    def fingerprint(self) -> str:
        """Return the complete unit's fingerprint."""
        return self.unit.fingerprint()

    def count(self) -> int:
        """Return the number of rows."""
        return self.entry.skipped[UNREACHABLE]

    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the rows listed in the shard's file of skipped samples, and add other skipped samples to the report."""
        content = storage.read_if_exists(_skips_path(self.output, self.name), limit=_MAX_SKIP_BYTES) or b""
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
    """Write a shard's file of skipped samples; remove the file if there are no skipped samples."""
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
    """Return units without a finished shard or with a changed input, and the missing rows of the other units.

    The function lists folders of object stores, a thousand files per request. Web servers cannot list files, so the
    function does not detect changed inputs on web servers.

    Args:
        spec: options of the reinforcement.
        units: units of the spec's source.
        manifest: manifest of the output; the function also returns units without an entry.

    Raises:
        OSError: if a store does not respond.
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
    # If the input no longer exists, its shard stays.
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
    """Return the card of the job's output; write a new card if there is none.

    Raises:
        ValueError: if the output was written with different options, teachers or captioners.
    """
    card = _card(spec, teachers, captioner)
    found = find_card(spec.output)
    if found is None:
        write_card(spec.output, card)
        return card
    _refuse_difference(spec.output, found, card)
    return found


def close_card(spec: ReinforcementSpec) -> None:
    """Remove the card of an empty output, so that a job with different options can use the output."""
    storage.remove(storage.join(spec.output, CARD))


def refuse_other_choices(spec: ReinforcementSpec) -> bool:
    """Compare the output's card with all options that do not need loaded teachers; return whether there is a card.

    Raises:
        ValueError: if the output was written with different options.
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
        # The same weights may have a different path now.
        captioner = None if spec.captioner is None else spec.captioner.build("cpu")
        open_card(spec, build_ensemble(spec.teachers, "cpu"), captioner)
    return True


def _refuse_difference(output: str, found: ReinforcementCard, wanted: ReinforcementCard) -> None:
    fields = [field.name for field in attrs.fields(ReinforcementCard) if field.eq is not False]
    different = [name for name in fields if getattr(found, name) != getattr(wanted, name)]
    if different:
        raise ValueError(
            f"{output} was reinforced with different values of {', '.join(different)}; delete the folder to start "
            "over, or choose a different `--output`"
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
    """Return the captioners of the source, if the source is the output of an earlier reinforcement."""
    if not isinstance(spec.source, ShardSource):
        return ()
    card = card_of_shards([spec.source.units()[0].path])
    return () if card is None else card.captioners


def _as_json(spec: Any, family: type) -> dict[str, Any]:
    return dict(json.loads(to_json(spec, unstructure_as=family)))
