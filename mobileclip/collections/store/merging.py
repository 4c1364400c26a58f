"""Merges indexes of one model: of each file the latest rows are kept, and each index is merged whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from mobileclip.collections.store.rows import Row
from mobileclip.collections.store.store import Store
from mobileclip.progress import Progress
from mobileclip.terminal import console


@attrs.frozen(kw_only=True)
class MergeReport:
    """The report of a merge: rows copied, replaced and left.

    Args:
        num_copied: rows that were copied.
        num_replaced: rows that they took the place of.
        num_left: rows that were not copied, since the index holds the same or a later state of their files.
    """

    num_copied: int = 0
    num_replaced: int = 0
    num_left: int = 0

    def __str__(self) -> str:
        """Say it in a line."""
        parts = [f"{self.num_copied:,} rows copied"]
        parts += [f"{self.num_replaced:,} older ones replaced"] if self.num_replaced else []
        parts += [f"{self.num_left:,} known already"] if self.num_left else []
        return ", ".join(parts)


@attrs.define(eq=False)
class _HeldFile:
    """A file of which an index has rows.

    Args:
        state: decides between two indexes; the greater one is kept.
        ids: of its rows.
    """

    state: tuple[int, bool, bool]
    ids: list[int]


def merge_stores(target: Store, sources: list[Store], *, show_progress: bool = True) -> MergeReport:
    """Copy the rows of indexes into another, which the caller holds; each is copied whole or not at all.

    Of a file that two hold, the rows of its latest change are kept; of the same change, those of an index that has read
    it to its end, then those that could be read, then those that are there first.

    Args:
        target: the index that is written to.
        sources: the others, of the same model.
        show_progress: whether to show how far it is.

    Raises:
        ValueError: if an index is damaged, or was written to meanwhile.
        OSError: if one cannot be read, or nothing can be written.
    """
    report = MergeReport()
    with Progress("merging", total=0, unit="rows", console=console(shown=show_progress)) as bar:
        for source in sources:
            report = _merge_one(target, source, report, bar)
    target.compact()
    return report


def _merge_one(target: Store, source: Store, report: MergeReport, bar: Progress) -> MergeReport:
    theirs, ours = _held_files(source), _held_files(target)
    wanted = {path: file for path, file in theirs.items() if path not in ours or file.state > ours[path].state}
    removed = [number for path in wanted if path in ours for number in ours[path].ids]
    chosen = sorted(number for file in wanted.values() for number in file.ids)
    bar.expect(start := bar.done + len(chosen))

    def rows() -> Iterator[Row]:
        for row in source.rows(chosen):
            yield attrs.evolve(row, id=None)
            bar.advance()
        if bar.done != start:
            raise ValueError(
                f"{source.folder} was written to meanwhile; run this again when that is done: nothing was copied of it"
            )

    target.append(
        rows(),
        removed=removed,
        finished=[one for one in source.finished if one.path in wanted],
        inputs=source.inputs,
    )
    return MergeReport(
        num_copied=report.num_copied + len(chosen),
        num_replaced=report.num_replaced + len(removed),
        num_left=report.num_left + sum(len(file.ids) for file in theirs.values()) - len(chosen),
    )


def _held_files(store: Store) -> dict[str, _HeldFile]:
    """Return the files that an index holds rows of, by their paths."""
    finished = {one.path for one in store.finished}
    files: dict[str, _HeldFile] = {}
    for number, path, mtime_ns, problem in store.values("id", "path", "mtime_ns", "problem"):
        state = (mtime_ns, path in finished, problem is None)
        held = files.setdefault(path, _HeldFile(state, []))
        held.state = max(held.state, state)
        held.ids.append(number)
    return files
