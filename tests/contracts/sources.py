"""Contract suite of sources of pairs: units are values, samples can be stored, and skips are counted."""

from __future__ import annotations

import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import attrs

from mobileclip.data import ImageTextSample, SkipReport, read_samples, write_shard
from mobileclip.datasets import Source
from mobileclip.datasets.sources import Unit

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
        AssertionError: if something of it is not so.
    """
    units = source.units()
    assert len(units) > 1
    _check_names([unit.name for unit in units])
    for others in (source.units(), pickle.loads(pickle.dumps(units))):
        assert [_known(unit) for unit in others] == [_known(unit) for unit in units]
    found = [_read(unit) for unit in units]
    for number in reversed(range(len(units))):
        assert _shown(_read(units[number])) == _shown(found[number]), f"{units[number].name} is another alone"
    _check_samples(units, found, skipped)
    _check_stopping(units[0], found[0])
    _check_changes(source, changes, are_alone=True)
    _check_changes(source, rewrites, are_alone=False)
    if remove is not None:
        units = source.units()
        remove()
        for unit in units:
            samples, left_out = _read(unit)
            assert not samples
            assert left_out, f"the files of {unit.name} are gone, and nothing is counted as left out"


def _check_names(names: list[str]) -> None:
    assert len(set(names)) == len(names), names
    for path in map(PurePosixPath, names):
        assert path.suffix == ".tar"
        assert not path.is_absolute()
        assert ".." not in path.parts


def _check_samples(units: Sequence[Unit], found: Sequence[_Read], skipped: Mapping[str, int]) -> None:
    left_out: Counter[str] = Counter()
    for unit, (samples, counts) in zip(units, found, strict=True):
        left_out.update(counts)
        assert samples, f"{unit.name} has no sample; give a source with one in each unit"
        count = unit.count()
        assert count is None or count >= len(samples)
    assert left_out == skipped
    everything = [sample for samples, _ in found for sample in samples]
    assert len({sample.key for sample in everything}) == len(everything)
    with tempfile.TemporaryDirectory() as folder:
        path = write_shard(Path(folder) / "a.tar", everything)
        stored = [(sample.key, sample.captions, sample.image) for sample in read_samples(path)]
    assert stored == [(one.key, one.captions, one.image) for one in everything]


def _check_stopping(unit: Unit, found: _Read) -> None:
    reading = iter(unit.read(SkipReport(log=False)))
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert _shown(_read(unit)) == _shown(found), "it is read as another after a reading that was stopped"


def _check_changes(source: Source, changes: Sequence[Callable[[], object]], *, are_alone: bool) -> None:
    before = [_known(unit) for unit in source.units()]
    for number, change in enumerate(changes):
        change()
        after = [_known(unit) for unit in source.units()]
        if are_alone:
            assert after[:-1] == before[:-1], f"change {number} is of the last unit alone"
        for one, other in zip(before[-1][2:], after[-1][2:], strict=True):
            assert one != other, f"fingerprint or content is what it was before change {number}"
        before = after


def _known(unit: Unit) -> tuple[str, int | None, str, str]:
    return unit.name, unit.count(), unit.fingerprint(), unit.content()


def _read(unit: Unit) -> _Read:
    report = SkipReport(log=False)
    samples = list(unit.read(report))
    assert report.num_read == len(samples)
    return samples, dict(report.counts)


def _shown(read: _Read) -> tuple[list[dict[str, object]], dict[str, int]]:
    return [attrs.asdict(sample, recurse=False) for sample in read[0]], read[1]
