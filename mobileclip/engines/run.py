"""Manages a run with an output folder or URL: lock, status file, and list of failed units.

For a local output, a file lock prevents a second run at the same time. Object stores have no locks: two runs with the
same output in a store do the work twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from typing import Any

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.engines.pool import Engine, InlineEngine
from mobileclip.engines.units import EntryT, Listener, NamedUnit, SetAside, UnitT, Work
from mobileclip.progress import Pace, duration
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import split_lines, strict
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

RUN = "run"
"""Name of the folder with the files of a run, in the output."""
STATUS = f"{RUN}/status.json"
"""Path of the file with the status of the last run, in the output."""
SET_ASIDE = "set_aside.jsonl"
"""Name of the file with one line per failed unit, in the output."""

_RUNNING = "running"
# A run writes the file four times a minute.
_SILENT_SECONDS = 120.0
_MAX_BYTES, _MAX_LIST_BYTES = 2**26, 2**31
_LOOKS = 4
_TIME = "%Y-%m-%d %H:%M:%S UTC"


@attrs.frozen(kw_only=True, field_transformer=strict)
class RunningUnit:
    """A unit in progress.

    Args:
        worker: name of the worker, such as `worker 0 (process 4711)`.
        unit: name of the unit.
        seconds: time since the worker got the unit, in seconds.
    """

    worker: str
    unit: str
    seconds: float = attrs.field(validator=validators.ge(0))


@attrs.frozen(kw_only=True, field_transformer=strict)
class Status:
    """The progress of a run; the text form warns if the run is unfinished and the status is older than two minutes.

    Args:
        state: `running`, `finished`, or `ended` (stopped early).
        began: start of the run in UTC, by the clock of the run's machine.
        written: time of writing the status in UTC, by the clock of the run's machine.
        num_units: number of units of the current or last work; 0 for work without units.
        num_done_before: number of units finished by earlier runs.
        num_done: number of units finished by this run.
        num_failed: number of failed attempts with units in the run.
        num_set_aside: number of units in the run that failed all attempts.
        units_per_hour: speed over the second half of the finished units; 0 if unknown.
        seconds_left: remaining time of the current work at this speed, in seconds; None if unknown, or at the end.
        under_way: units in progress.
        stage: kind of the current or last work, such as `indexing`.
        stage_began: start of the current or last work in UTC, by the clock of the run's machine.
        then: kinds of work that follow the current work.
        reason: reason for an early end of the run; empty otherwise.
        unit_name: noun for the units, such as `shards`.
    """

    state: str
    began: str
    written: str
    num_units: int = 0
    num_done_before: int = 0
    num_done: int = 0
    num_failed: int = 0
    num_set_aside: int = 0
    units_per_hour: float = 0.0
    seconds_left: float | None = None
    under_way: tuple[RunningUnit, ...] = ()
    stage: str = ""
    stage_began: str = ""
    then: tuple[str, ...] = ()
    reason: str = ""
    unit_name: str = "shards"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        is_running = self.state == _RUNNING
        if is_running and _seconds_since(self.written) > _SILENT_SECONDS:
            yield (
                f"no update since {self.written}, started at {self.began}: the run was killed, or its machine stopped; "
                "the same command resumes"
            )
        else:
            reason = f": {self.reason}" if self.reason else ""
            yield f"{self.state} at {self.written}, started at {self.began}{reason}"
        then = f", then {' and '.join(self.then)}" if is_running and self.then else ""
        if self.stage and not self.num_units:
            yield f"{self.stage} since {self.stage_began}{then}"
        elif self.stage:
            earlier = f", {self.num_done_before:,} of them by earlier runs" if self.num_done_before else ""
            num_done = self.num_done_before + self.num_done
            yield f"{self.stage}: {num_done:,} of {self.num_units:,} {self.unit_name} done{earlier}{then}"
        if self.num_set_aside or self.num_failed:
            where = f" (see {SET_ASIDE})" if self.num_set_aside else ""
            yield f"set aside: {self.num_set_aside:,}{where}; failed attempts: {self.num_failed:,}"
        if is_running and self.units_per_hour:
            left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left of {self.stage}"
            yield f"{self.units_per_hour:,.1f} {self.unit_name} an hour{left}"
        for one in self.under_way:
            yield f"{one.worker}: {one.unit}, for {duration(one.seconds)}"


def read_status(output: storage.AnyPath) -> Status:
    """Read the status of the last run with an output.

    Args:
        output: folder or URL.

    Raises:
        ValueError: if the status is missing or damaged.
        OSError: if the status cannot be read.
    """
    path, damage = storage.join(output, STATUS), None
    # Reading from a store takes two requests, size and bytes; another process may replace the file in between.
    for _ in range(_LOOKS):
        if (content := storage.read_if_exists(path, limit=_MAX_BYTES)) is None:
            where = storage.printable(output)
            raise ValueError(
                f"{where}/{STATUS} does not exist: nothing has run in {where}; start a run without `--status` first"
            )
        try:
            return from_json(content.decode(), Status)
        except ValueError as error:
            damage = error
    raise ValueError(f"{path} is damaged ({damage}); delete the file if no other run uses this output")


def read_set_aside(output: storage.AnyPath) -> tuple[SetAside, ...]:
    """Read the list of failed units of the last run with an output; empty without a list.

    Args:
        output: folder or URL.

    Raises:
        ValueError: if the list of failed units is damaged.
    """
    path = storage.join(output, SET_ASIDE)
    content = storage.read_if_exists(path, limit=_MAX_LIST_BYTES) or b""
    try:
        return tuple(from_json(line, SetAside) for line in split_lines(content.decode()))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete the file, which only lists failed units") from None


def write_set_aside(output: storage.AnyPath, units: Iterable[SetAside]) -> None:
    """Write the list of failed units to an output, or remove the file if the list is empty.

    Args:
        output: existing folder or URL.
        units: units that failed all attempts, with reasons.

    Raises:
        OSError: if the file cannot be written or removed.
    """
    path = storage.join(output, SET_ASIDE)
    if lines := [to_json(one) + "\n" for one in units]:
        storage.write_text(path, "".join(lines))
    else:
        storage.remove(path)


class Run(Listener[Any, Any]):
    """A run with an output that the run's process has locked; `held` creates and closes a run.

    A run may do several kinds of work in sequence, with one list of failed units. The run receives the results of units
    from the engine, and passes the results to the listener of the work.
    """

    def __init__(self, output: str, engine: Engine, earlier: Iterable[SetAside]) -> None:
        self._output, self._engine = output, engine
        self._earlier = frozenset(one.unit for one in earlier)
        self._status = Status(state=_RUNNING, began=_time_now(), written=_time_now())
        self._num_aside_before = 0
        self._under_way: dict[str, tuple[str, float]] = {}
        self._pace = Pace(time.monotonic())
        self._asides: list[SetAside] = []
        self._lock = threading.RLock()

    @property
    def set_aside(self) -> tuple[SetAside, ...]:
        """Units that have failed all attempts so far."""
        return tuple(self._asides)

    def begin(
        self,
        stage: str,
        *,
        num_units: int = 0,
        num_done_before: int = 0,
        then: Sequence[str] = (),
        unit_name: str = "shards",
    ) -> None:
        """Start a kind of work, and write the status file.

        Args:
            stage: kind of the work, such as `indexing`.
            num_units: number of units; 0 for work without units.
            num_done_before: number of units finished by earlier runs.
            then: kinds of work that follow the current work.
            unit_name: noun for the units, such as `shards`.
        """
        about = {"stage": stage, "stage_began": _time_now(), "then": tuple(then), "unit_name": unit_name}
        with self._lock:
            self._note(num_units=num_units, num_done_before=num_done_before, num_done=0, **about)
            self._pace = Pace(time.monotonic())
            self._num_aside_before = len(self._asides)
        storage.make_directory_of(storage.join(self._output, STATUS))
        self.write(_RUNNING)

    def do(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Process units; units that failed in the last run come last.

        Args:
            work: processing of a unit by a worker.
            units: all or some of the unfinished units of the current work.
            listener: listener that receives the results.

        Raises:
            ValueError: if the run ends early, see `Engine.run`.
        """
        if units:
            self._listener: Listener[Any, Any] = listener
            self._engine.run(work, sorted(units, key=lambda unit: unit.name in self._earlier), self)
        write_set_aside(self._output, self._asides)

    def refuse(self, name: str, reason: str) -> None:
        """Record a unit that fails before any attempt, for example because its input file is missing.

        Args:
            name: name of the unit.
            reason: reason of the failure.
        """
        self._asides.append(SetAside(unit=name, reason=reason, tries=1))

    def end(self, reason: str) -> None:
        """Record the reason for ending the run early; the last status of the run contains the reason.

        Args:
            reason: reason for the early end.
        """
        self._note(reason=reason)

    def begun(self, unit: NamedUnit, worker: str) -> None:
        """Record the start of a unit in a worker."""
        with self._lock:
            self._under_way[unit.name] = (worker, time.monotonic())
        self._listener.begun(unit, worker)

    def advanced(self, count: int) -> None:
        """Forward the number of completed steps to the listener."""
        self._listener.advanced(count)

    def finished(self, unit: NamedUnit, entry: object) -> None:
        """Pass a finished unit to the listener, and then count the unit."""
        self._listener.finished(unit, entry)
        self._give_back(unit, num_done=1)
        self._pace.advance(1, time.monotonic())

    def failed(self, unit: NamedUnit, reason: str, pause_seconds: float) -> None:
        """Count and log a failed attempt at a unit."""
        logger.warning("%s failed; retrying in %.0f s: %s", unit.name, pause_seconds, reason)
        self._give_back(unit, num_failed=1)
        self._listener.failed(unit, reason, pause_seconds)

    def lost(self, unit: NamedUnit, reason: str) -> None:
        """Record that the machine of a unit was lost."""
        self._give_back(unit)
        self._listener.lost(unit, reason)

    def divided(self, unit: NamedUnit, reason: str, parts: Sequence[NamedUnit]) -> None:
        """Count and log a failed unit that was split into smaller units."""
        logger.warning("%s failed again; retrying in %d parts: %s", unit.name, len(parts), reason)
        self._give_back(unit, num_failed=1, num_units=len(parts) - 1)
        self._listener.divided(unit, reason, parts)

    def gave_up(self, unit: NamedUnit, aside: SetAside) -> None:
        """Record and log a unit that failed all attempts."""
        tries = "one try" if aside.tries == 1 else f"{aside.tries} tries"
        logger.warning("%s is set aside after %s: %s", unit.name, tries, aside.reason)
        self._asides.append(aside)
        self._give_back(unit, num_failed=1)
        self._listener.gave_up(unit, aside)

    def write(self, state: str) -> None:
        """Write the status file; log a write error without ending the run."""
        with self._lock:
            now, status, a_unit = time.monotonic(), self._status, self._pace.seconds(1)
            num_over = status.num_done_before + status.num_done + len(self._asides) - self._num_aside_before
            status = attrs.evolve(
                status,
                state=state,
                written=_time_now(),
                num_set_aside=len(self._asides),
                units_per_hour=3600 / a_unit if a_unit else 0.0,
                seconds_left=self._pace.seconds(status.num_units - num_over),
                under_way=tuple(
                    RunningUnit(worker=worker, unit=unit, seconds=now - since)
                    for unit, (worker, since) in sorted(self._under_way.items(), key=lambda item: item[1])
                ),
            )
        path = storage.join(self._output, STATUS)
        try:
            # A run that has not started any work keeps the status of the previous run.
            if status.stage:
                storage.write_text(path, to_json(status, indent=1) + "\n")
        except (OSError, ValueError) as error:
            logger.warning("%s could not be written: %s", path, error)

    def close(self) -> None:
        """Write the final status of the run, `finished` or `ended`."""
        self.write("ended" if self._status.reason else "finished")

    def _give_back(self, unit: NamedUnit, **counts: int) -> None:
        with self._lock:
            self._under_way.pop(unit.name)
            self._note(**{name: getattr(self._status, name) + count for name, count in counts.items()})

    def _note(self, **values: Any) -> None:
        with self._lock:
            self._status = attrs.evolve(self._status, **values)


@contextmanager
def held(
    output: str, engine: Engine | None = None, *, renewal_seconds: float = 15.0, is_held: bool = False
) -> Iterator[Run]:
    """Lock an output, and yield a run with a status file; a second run with the same local output raises an error.

    Args:
        output: folder or URL of the output.
        engine: engine that processes the units; None for the CPU in this process.
        renewal_seconds: interval between status updates, in seconds.
        is_held: whether the caller has already locked the output, see `mobileclip.storage.exclusive`.

    Raises:
        ValueError: if another process has locked the output, or the last run's list of failed units is damaged.
        OSError: if the lock or the list of failed units is not accessible.
    """
    with ExitStack() as stack:
        if not is_held and not storage.is_remote(output):
            stack.enter_context(storage.exclusive(storage.local_path(output)))
        run = Run(output, engine or InlineEngine(device="cpu"), read_set_aside(output))
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(renewal_seconds):
                run.write(_RUNNING)

        thread = threading.Thread(target=renew, name="status", daemon=True)
        thread.start()
        try:
            yield run
        except BaseException as error:
            run.end(f"{type(error).__name__}: {' '.join(storage.without_secrets(error).split())}")
            raise
        finally:
            ended.set()
            thread.join(renewal_seconds)  # do not wait longer for an unreachable store
            run.close()


def _time_now() -> str:
    return f"{datetime.now(timezone.utc):{_TIME}}"


def _seconds_since(text: str) -> float:
    """Return the seconds since a time in UTC, by the clock of this machine; 0 for an invalid time."""
    with suppress(ValueError):
        then = datetime.strptime(text, _TIME).replace(tzinfo=timezone.utc)
        return (datetime.now(timezone.utc) - then).total_seconds()
    return 0.0
