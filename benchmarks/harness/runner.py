"""The base class of benchmarks, and a runner that measures case by case and stores each result at once."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import torch
from attrs import validators

from benchmarks.harness.apart import LostProcessError, in_own_process
from benchmarks.harness.results import Machine, Results, Row, commit, load_average, read_results, write_results
from benchmarks.harness.table import failures, markdown, terminal_table
from mobileclip.extras import install_library
from mobileclip.progress import duration
from mobileclip.serialization import to_json
from mobileclip.storage import write_text
from mobileclip.terminal import print_table, say
from mobileclip.terminal.common import common_flags

if TYPE_CHECKING:
    from typing_extensions import Self

Measure = Callable[[], Iterable[Row]]


@attrs.frozen(kw_only=True)
class Case:
    """One thing to measure.

    Args:
        labels: unique description of the case, such as the model and the batch.
        measure: function that returns one row per side; must be picklable if `apart` is true.
        apart: whether to measure the case in its own process. If the process fails, the case becomes a failed row, and
            the run continues.
    """

    labels: Mapping[str, str]
    measure: Measure
    apart: bool = False


@attrs.frozen(kw_only=True)
class Bench:
    """Base class of all benchmarks.

    Args:
        output: JSON file for the results, with the table as Markdown next to it; cases in the file are not measured
            again. None to only print the table.
        threads: number of PyTorch's threads on the processor; None for PyTorch's default.
        tiny: whether to use tiny settings that only show whether the benchmark runs.
    """

    output: Path | None = None
    threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    tiny: bool = False

    selects: ClassVar[frozenset[str]] = frozenset()
    """Settings that select cases without changing them."""
    smallest: ClassVar[Mapping[str, object]] = {}
    """Settings for `tiny`."""

    def cases(self) -> Iterable[Case]:
        """Return the cases, in the order of measurement."""
        raise NotImplementedError

    def small(self) -> Self:
        """Return the benchmark with the settings for `tiny`."""
        choices: Mapping[str, Any] = self.smallest
        return attrs.evolve(self, **choices)

    def finish(self, results: Results) -> None:
        """Finish after all measurements, for example with a chart."""


def require(*modules: str, extras: tuple[str, ...] = ("test",)) -> None:
    """Exit with the install command if packages are missing, before any work.

    Args:
        modules: modules that must be installed.
        extras: extras that install the modules.

    Raises:
        SystemExit: if one is not.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise SystemExit(f"{names} cannot be imported, so there is nothing to compare: {install_library(*extras)}")


def run(bench: Bench, name: str) -> Results:
    """Measure the missing cases, print the table, and return all results.

    Args:
        bench: the benchmark.
        name: name of the benchmark.

    Raises:
        ValueError: if the results file has other settings.
    """
    bench = bench.small() if bench.tiny else bench
    before = torch.get_num_threads()
    try:
        _set_up(bench.threads)
        return _run(bench, name)
    finally:
        torch.set_num_threads(before)


def _set_up(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that it built a model without pretrained weights


def _run(bench: Bench, name: str) -> Results:
    cases = list(bench.cases())
    choices = json.loads(to_json(bench))
    now = Results(benchmark=name, choices=choices, machine=Machine.here(getattr(bench, "device", "cpu")))
    ignored = bench.selects | {"output"}
    results = now if bench.output is None else read_results(bench.output, now, selects=ignored)
    left = [case for case in cases if not _is_known(case, results.rows)]
    if len(left) < len(cases):
        _tell(f"{bench.output} has {len(cases) - len(left)} cases from before: {len(left)} are left")
    for place, case in enumerate(left, 1):
        rows = list(_measured(case, bench))
        kept = [row for row in results.rows if row.failure is None or not _is_of(case, row)]
        results = attrs.evolve(results, rows=(*kept, *rows))
        if bench.output is not None:
            write_results(bench.output, results)
            write_text(bench.output.with_suffix(".md"), markdown(results.rows))
        told = ", ".join(case.labels.values()) or name
        _tell(f"{place} of {len(left)}: {told}: {rows[0].failure or duration(rows[0].seconds)}")
    print_table(terminal_table(results), *failures(results.rows), min_width=160)
    bench.finish(results)
    return results


def _tell(progress: str) -> None:
    """Print the progress of a run, unless `--quiet` is given."""
    if not common_flags().quiet:
        say(progress, error=True)


def _is_of(case: Case, row: Row) -> bool:
    return case.labels.items() <= row.case.items()


def _is_known(case: Case, rows: Iterable[Row]) -> bool:
    return any(_is_of(case, row) and row.failure is None for row in rows)


def _measured(case: Case, bench: Bench) -> Iterator[Row]:
    """Yield the rows of a case with their common fields."""
    load, started = load_average(), time.monotonic()
    try:
        found = _apart(case, bench) if case.apart else list(case.measure())
    except LostProcessError as error:
        if not case.apart:
            raise
        found = [Row(failure=str(error))]
    seconds = round(time.monotonic() - started, 1)
    for row in found:
        yield attrs.evolve(row, case={**case.labels, **row.case}, seconds=seconds, load=load, commit=commit())


def _apart(case: Case, bench: Bench) -> list[Row]:
    log = None
    if bench.output is not None:
        log = bench.output.with_suffix("") / f"{'-'.join(case.labels.values()).replace('/', '-').replace(' ', '-')}.log"
    call = partial(_in_child, case.measure, bench.threads)
    return in_own_process(call, log=log)


def _in_child(measure: Measure, threads: int | None) -> list[Row]:
    _set_up(threads)
    return list(measure())
