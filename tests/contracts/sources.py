"""Contract suite of sources of pairs: units are values, samples can be stored, and skips are counted."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TypeVar

import attrs

from mobileclip.data import ImageTextSample, SkipReport, read_samples, write_shard
from mobileclip.datasets import Source
from mobileclip.datasets.sources import Unit

T = TypeVar("T")
_Read = tuple[list[ImageTextSample], dict[str, int]]


def check_source(
    source: Source,
    *,
    skipped: Mapping[str, int] = MappingProxyType({}),
    changes: Sequence[Callable[[], object]] = (),
    rewrites: Sequence[Callable[[], object]] = (),
    remove: Callable[[], object] | None = None,
) -> None:
    """Check that a source is read the same way every time, in parts or as a whole, and that what is bad is counted.

    Units have names of their own, go to a worker and come back as they are, and their fingerprints are the same until
    something changes. Each of them alone gives what it gives among the others, so that a job can go on at any of them.
    Keys are unique and can be stored.

    Args:
        source: with at least two units, and a sample in each.
        skipped: how many of its samples and files are left out, by reason.
        changes: each changes something of what the last unit holds, and nothing else.
        rewrites: each changes what the last unit holds, and something that other units have to do with.
        remove: removes everything that is read, at the end.

    Raises:
        AssertionError: if something of it is not so; the message says what.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import PIL.Image
        >>> from mobileclip.datasets import ClassFolderSource
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        ...         Path(folder, name).parent.mkdir(exist_ok=True)
        ...         PIL.Image.new("RGB", (8, 8)).save(Path(folder, name))
        ...     mobileclip.testing.check_source(ClassFolderSource(path=Path(folder), samples_per_shard=2))
        ...     mobileclip.testing.check_source(ClassFolderSource(path=Path(folder)))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        AssertionError: ClassFolderSource(...) has 1 units; give a source with two at least
    """
    units = source.units()
    assert len(units) > 1, f"{source!r} has {len(units)} units; give a source with two at least"
    _check_names([unit.name for unit in units])
    alike = [("asked again", source.units()), ("in a worker", pickle.loads(pickle.dumps(units)))]
    for when, others in alike:
        _same("units", [_known(unit) for unit in units], [_known(unit) for unit in others], when)
    found = [_read(unit) for unit in units]
    for unit in reversed(units):
        _same(f"samples of {unit.name}", _shown(found[units.index(unit)]), _shown(_read(unit)), "read alone")
    _check_samples(units, found, skipped)
    _check_stopping(units[0], found[0])
    _check_changes(source, changes, are_alone=True)
    _check_changes(source, rewrites, are_alone=False)
    if remove is not None:
        units = source.units()
        remove()
        for unit in units:
            samples, left_out = _read(unit)
            assert not samples, f"{unit.name} gives {len(samples)} samples of files that are gone"
            assert left_out, f"the files of {unit.name} are gone, and nothing is counted as left out"


def _check_names(names: list[str]) -> None:
    assert len(set(names)) == len(names), f"units have the same name: {names}"
    for name in names:
        path = PurePosixPath(name)
        is_fine = path.suffix == ".tar" and not path.is_absolute() and ".." not in path.parts
        assert is_fine, f"unit {name!r} is no name of a shard below a folder, such as 00/00000000.tar"


def _check_samples(units: Sequence[Unit], found: Sequence[_Read], skipped: Mapping[str, int]) -> None:
    for unit, (samples, _) in zip(units, found, strict=True):
        count = unit.count()
        assert samples, f"{unit.name} has no sample; give a source with one in each unit"
        assert count is None or count >= len(samples), f"{unit.name} counts {count} and gives {len(samples)} samples"
    left_out: dict[str, int] = {}
    for _, counts in found:
        left_out = {reason: left_out.get(reason, 0) + counts.get(reason, 0) for reason in {*left_out, *counts}}
    _same("what is left out", dict(skipped), left_out, "counted")
    everything = [sample for samples, _ in found for sample in samples]
    keys = [sample.key for sample in everything]
    assert len(set(keys)) == len(keys), f"samples have the same key: {keys}"
    with tempfile.TemporaryDirectory() as folder:
        path = write_shard(Path(folder) / "a.tar", everything)
        stored = [(sample.key, sample.captions, sample.image) for sample in read_samples(path)]
    _same("samples", [(one.key, one.captions, one.image) for one in everything], stored, "stored in a shard")


def _check_stopping(unit: Unit, found: _Read) -> None:
    reading = iter(unit.read(SkipReport(log=False)))
    next(reading)
    close = getattr(reading, "close", None)
    assert close is not None, f"reading {unit.name} cannot be stopped; let `read` be a generator"
    close()
    _same(f"samples of {unit.name}", _shown(found), _shown(_read(unit)), "read after a reading that was stopped")


def _check_changes(source: Source, changes: Sequence[Callable[[], object]], *, are_alone: bool) -> None:
    before = [_known(unit) for unit in source.units()]
    for number, change in enumerate(changes):
        change()
        after = [_known(unit) for unit in source.units()]
        if are_alone:
            _same("units", before[:-1], after[:-1], f"known after change {number} of the last one alone")
        for what, one, other in zip(("name", "count", "fingerprint", "content"), before[-1], after[-1], strict=True):
            if what in ("fingerprint", "content"):
                assert one != other, f"the {what} of the last unit is what it was before change {number}"
        before = after


def _known(unit: Unit) -> tuple[str, int | None, str, str]:
    return unit.name, unit.count(), unit.fingerprint(), unit.content()


def _read(unit: Unit) -> _Read:
    report = SkipReport(log=False)
    samples = list(unit.read(report))
    assert report.num_read == len(samples), f"{unit.name} gives {len(samples)} samples, and counts {report.num_read}"
    return samples, dict(report.counts)


def _shown(read: _Read) -> tuple[list[dict[str, object]], dict[str, int]]:
    return [attrs.asdict(sample, recurse=False) for sample in read[0]], read[1]


def _same(what: str, expected: T, found: T, when: str) -> None:
    assert found == expected, f"{what} are others when {when}: {found!r:.1000}, not {expected!r:.1000}"
