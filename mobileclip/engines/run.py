"""A run in an output: the lock of its driver, its status file, and the list of failed units.

On this machine a lock of the system keeps a second driver out. A store has no locks: who starts two runs in one output
there has both do the work.
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
"""Folder of an output with what a run says of itself."""
STATUS = f"{RUN}/status.json"
"""File in an output: what its last run does, or did."""
SET_ASIDE = "set_aside.jsonl"
"""File in an output: a line for every unit that was given up."""

_RUNNING = "running"
# The file is written anew four times a minute.
_SILENT_SECONDS = 120.0
_MAX_BYTES, _MAX_LIST_BYTES = 2**26, 2**31
_LOOKS = 4
_TIME = "%Y-%m-%d %H:%M:%S UTC"


@attrs.frozen(kw_only=True, field_transformer=strict)
class UnderWay:
    """A unit that a worker has.

    Args:
        worker: its name.
        unit: the unit's name.
        seconds: for which it has it.
    """

    worker: str
    unit: str
    seconds: float = attrs.field(validator=validators.ge(0))


@attrs.frozen(kw_only=True, field_transformer=strict)
class Status:
    """Progress of a run; its text warns if a running run has not reported for two minutes.

    Args:
        state: `running`, `finished`, or `ended` before its time.
        began: by the clock of its machine.
        written: when this was written, by the same clock.
        num_units: of the work that is done now, or was done last; 0 if it has none.
        num_done_before: of them, that earlier runs had finished.
        num_done: of them, that this run has finished.
        num_failed: tries that failed, in the whole run.
        num_set_aside: units that were given up, in the whole run.
        units_per_hour: speed of the later half of the units; 0 if it is not known yet.
        seconds_left: until all are done at that speed; None if it is not known, or nothing is left.
        under_way: what the workers have.
        doing: the work that is done now, or was done last, such as `indexing`.
        doing_began: when it began, by the same clock.
        then: the kinds of work that come after it.
        reason: why it ended before its time; empty if it did not.
        called: what the units are called.
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
    under_way: tuple[UnderWay, ...] = ()
    doing: str = ""
    doing_began: str = ""
    then: tuple[str, ...] = ()
    reason: str = ""
    called: str = "shards"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        is_running = self.state == _RUNNING
        if is_running and _seconds_since(self.written) > _SILENT_SECONDS:
            yield (
                f"not heard of since {self.written}, begun at {self.began}: it was killed, or its machine is stopped; "
                "the same command goes on with it"
            )
        else:
            reason = f": {self.reason}" if self.reason else ""
            yield f"{self.state} at {self.written}, begun at {self.began}{reason}"
        then = f", then {' and '.join(self.then)}" if is_running and self.then else ""
        if self.doing and not self.num_units:
            yield f"{self.doing} since {self.doing_began}{then}"
        elif self.doing:
            earlier = f", {self.num_done_before:,} of them by earlier runs" if self.num_done_before else ""
            num_done = self.num_done_before + self.num_done
            yield f"{self.doing}: {num_done:,} of {self.num_units:,} {self.called} done{earlier}{then}"
        if self.num_set_aside or self.num_failed:
            where = f" (see {SET_ASIDE})" if self.num_set_aside else ""
            yield f"set aside: {self.num_set_aside:,}{where}; tries that failed: {self.num_failed:,}"
        if is_running and self.units_per_hour:
            left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left of {self.doing}"
            yield f"{self.units_per_hour:,.1f} {self.called} an hour{left}"
        for one in self.under_way:
            yield f"{one.worker}: {one.unit}, for {duration(one.seconds)}"


def read_status(output: storage.AnyPath) -> Status:
    """Return what the last run of an output does, or did.

    Args:
        output: folder or URL.

    Raises:
        ValueError: if there was none, or it is damaged.
        OSError: if it cannot be read.
    """
    path, damage = storage.join(output, STATUS), None
    # A store is asked for the size of a file and then for its bytes, between which it may be written anew.
    for _ in range(_LOOKS):
        if (content := storage.read_if_there(path, limit=_MAX_BYTES)) is None:
            where = storage.printable(output)
            raise ValueError(f"there is no {where}/{STATUS}: nothing has run in {where}; start it without `--status`")
        try:
            return from_json(content.decode(), Status)
        except ValueError as error:
            damage = error
    raise ValueError(f"{path} is damaged ({damage}); delete it if no other run works there")


def read_set_aside(output: storage.AnyPath) -> tuple[SetAside, ...]:
    """Return what the last run of an output has set aside.

    Args:
        output: folder or URL.

    Raises:
        ValueError: if the list is damaged.
    """
    path = storage.join(output, SET_ASIDE)
    content = storage.read_if_there(path, limit=_MAX_LIST_BYTES) or b""
    try:
        return tuple(from_json(line, SetAside) for line in split_lines(content.decode()))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, it is no more than a list") from None


def write_set_aside(output: storage.AnyPath, units: Iterable[SetAside]) -> None:
    """Write the list, or remove it where nothing is set aside.

    Args:
        output: folder or URL, which exists.
        units: what was set aside.

    Raises:
        OSError: if that cannot be done.
    """
    path = storage.join(output, SET_ASIDE)
    if lines := [to_json(one) + "\n" for one in units]:
        storage.write_text(path, "".join(lines))
    else:
        storage.remove(path)


class Run(Listener[Any, Any]):
    """An output locked by one driver, with its run; create it with `held`.

    A run may do several kinds of work, one after another; their list of what was set aside is one. It is told what
    becomes of the units, and tells the listener of the work.
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
        """What was set aside so far."""
        return tuple(self._asides)

    def begin(
        self,
        doing: str,
        *,
        num_units: int = 0,
        num_done_before: int = 0,
        then: Sequence[str] = (),
        called: str = "shards",
    ) -> None:
        """Say in the status what is done now.

        Args:
            doing: the kind of work, such as `indexing`.
            num_units: of it; 0 if it has none.
            num_done_before: of them, that earlier runs have finished.
            then: the kinds of work that come after it.
            called: what the units are called.
        """
        about = {"doing": doing, "doing_began": _time_now(), "then": tuple(then), "called": called}
        with self._lock:
            self._note(num_units=num_units, num_done_before=num_done_before, num_done=0, **about)
            self._pace = Pace(time.monotonic())
            self._num_aside_before = len(self._asides)
        storage.make_directory_of(storage.join(self._output, STATUS))
        self.write(_RUNNING)

    def do(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Have units done, those last that failed the last time.

        Args:
            work: what is done with them.
            units: those that are not finished; they may be all of the work that has begun, or some.
            listener: who is told.

        Raises:
            ValueError: if the run cannot go on.
        """
        if units:
            self._listener: Listener[Any, Any] = listener
            self._engine.run(work, sorted(units, key=lambda unit: unit.name in self._earlier), self)
        write_set_aside(self._output, self._asides)

    def refuse(self, name: str, reason: str) -> None:
        """Set a unit aside of which no try is worth while, such as one that is not there.

        Args:
            name: of the unit.
            reason: why.
        """
        self._asides.append(SetAside(unit=name, reason=reason, tries=1))

    def end(self, reason: str) -> None:
        """Say in the status that the run ends before its time.

        Args:
            reason: why.
        """
        self._note(reason=reason)

    def begun(self, unit: NamedUnit, worker: str) -> None:
        """Note who has a unit."""
        with self._lock:
            self._under_way[unit.name] = (worker, time.monotonic())
        self._listener.begun(unit, worker)

    def advanced(self, count: int) -> None:
        """Pass it on."""
        self._listener.advanced(count)

    def finished(self, unit: NamedUnit, entry: object) -> None:
        """Note it, once it is entered."""
        self._listener.finished(unit, entry)
        self._give_back(unit, num_done=1)
        self._pace.advance(1, time.monotonic())

    def failed(self, unit: NamedUnit, reason: str, pause_seconds: float) -> None:
        """Note and log it."""
        logger.warning("%s failed and is tried again in %.0f s: %s", unit.name, pause_seconds, reason)
        self._give_back(unit, num_failed=1)
        self._listener.failed(unit, reason, pause_seconds)

    def lost(self, unit: NamedUnit, reason: str) -> None:
        """Note it."""
        self._give_back(unit)
        self._listener.lost(unit, reason)

    def divided(self, unit: NamedUnit, reason: str, parts: Sequence[NamedUnit]) -> None:
        """Note and log it."""
        logger.warning("%s failed again and is tried in %d parts: %s", unit.name, len(parts), reason)
        self._give_back(unit, num_failed=1, num_units=len(parts) - 1)
        self._listener.divided(unit, reason, parts)

    def gave_up(self, unit: NamedUnit, aside: SetAside) -> None:
        """Note and log it."""
        tries = "one try" if aside.tries == 1 else f"{aside.tries} tries"
        logger.warning("%s is set aside after %s: %s", unit.name, tries, aside.reason)
        self._asides.append(aside)
        self._give_back(unit, num_failed=1)
        self._listener.gave_up(unit, aside)

    def write(self, state: str) -> None:
        """Write the status with all that is known; a run does not end because that cannot be done."""
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
                    UnderWay(worker=worker, unit=unit, seconds=now - since)
                    for unit, (worker, since) in sorted(self._under_way.items(), key=lambda item: item[1])
                ),
            )
        path = storage.join(self._output, STATUS)
        try:
            # What has begun nothing leaves the status of the run before it.
            if status.doing:
                storage.write_text(path, to_json(status, indent=1) + "\n")
        except (OSError, ValueError) as error:
            logger.warning("%s could not be written: %s", path, error)

    def close(self) -> None:
        """Write how the run has ended."""
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
    """Lock an output for a run, which keeps its status there; on this machine a second run is refused.

    Args:
        output: folder or URL.
        engine: who does the work; None for this process.
        renewal_seconds: between two times that the status is written.
        is_held: whether the caller holds the folder already, see `exclusive` of `mobileclip.storage`.

    Raises:
        ValueError: if another driver holds it, or what the last run has left there is damaged.
        OSError: if that cannot be found out.
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
            thread.join(renewal_seconds)  # a store that is away is not waited for
            run.close()


def _time_now() -> str:
    return f"{datetime.now(timezone.utc):{_TIME}}"


def _seconds_since(text: str) -> float:
    """Return how long ago a time was, by the clock of this machine; 0 if it is none."""
    with suppress(ValueError):
        then = datetime.strptime(text, _TIME).replace(tzinfo=timezone.utc)
        return (datetime.now(timezone.utc) - then).total_seconds()
    return 0.0
