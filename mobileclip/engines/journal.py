"""What a run says of itself in its output: what every worker does now, how far it is, and a line for every unit."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.engines.changing import read_changing
from mobileclip.engines.lease import Hold
from mobileclip.engines.queue import Listener
from mobileclip.engines.set_aside import SetAside
from mobileclip.engines.work import EntryT, NamedUnit, UnitT
from mobileclip.progress import duration
from mobileclip.serialization import to_json
from mobileclip.strict import strict
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

RUN = "run"
"""Folder of an output with what a run says of itself."""
STATUS = f"{RUN}/status.json"
"""File in an output: what its last run does, or did."""

# A store takes a request each time.
_SECONDS = 10.0
_SECONDS_IN_A_STORE = 30.0
_LINES_A_FILE = 1000
# Finished units that the speed comes from: the last ones.
_MOST_TIMES = 500
_MAX_BYTES = 2**26


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
    """How far a run is.

    Args:
        state: `running`, `ended`, or why it ended.
        doing: what is done with the units, where a run does several kinds of work, one after another.
        began: by the clock of its machine.
        written: when this was written, by the same clock.
        num_units: of the whole work.
        num_done_before: that earlier runs had finished.
        num_done: that this run has finished.
        num_failed: tries that failed.
        num_set_aside: units that were given up.
        units_per_hour: speed of the last units; 0 where none is finished.
        seconds_left: until all are done at that speed; None where it is not known.
        under_way: what the workers have.
    """

    state: str
    began: str
    written: str
    num_units: int
    num_done_before: int
    num_done: int
    num_failed: int
    num_set_aside: int
    units_per_hour: float
    seconds_left: float | None
    under_way: tuple[UnderWay, ...]
    doing: str = ""

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
        num_done = self.num_done_before + self.num_done
        state = f"{self.state} ({self.doing})" if self.doing else self.state
        lines = [
            f"{state} at {self.written}, begun at {self.began}",
            f"{num_done:,} of {self.num_units:,} done, {self.num_done_before:,} of them by earlier runs",
            f"{self.num_set_aside:,} set aside, {self.num_failed:,} tries failed",
            f"{self.units_per_hour:,.1f} an hour{left}",
        ]
        lines += [f"{one.worker}: {one.unit}, for {duration(one.seconds)}" for one in self.under_way]
        return "\n".join(lines)


def read_status(output: storage.AnyPath) -> Status:
    """Return what the last run of an output does, or did.

    Args:
        output: folder or address.

    Raises:
        ValueError: if there was none, or it cannot be read.
    """
    path = storage.join(output, STATUS)
    try:
        return read_changing(path, Status, limit=_MAX_BYTES)
    except FileNotFoundError:
        raise ValueError(f"there is no {path}: nothing has run in {storage.printable(output)}") from None


class Journal(Listener[UnitT, EntryT]):
    """Writes status and log of a run, while another listener does what the run is for.

    Args:
        listener: who is told as well.
        output: folder or address.
        hold: that the run has of the output; without, it ends.
        num_units: of the whole work.
        num_done_before: that earlier runs had finished.
        doing: what is done with them, see `Status`.
    """

    def __init__(
        self,
        listener: Listener[UnitT, EntryT],
        output: str,
        hold: Hold,
        *,
        num_units: int,
        num_done_before: int,
        doing: str = "",
    ) -> None:
        self._listener = listener
        self._output = output
        self._hold = hold
        now = datetime.now(timezone.utc)
        # A run that does several kinds of work begins several in a second.
        self._log = f"{RUN}/log-{now:%Y-%m-%d-%H%M%S-%f}"
        self._status = Status(
            state="running",
            began=_text(now),
            written=_text(now),
            num_units=num_units,
            num_done_before=num_done_before,
            num_done=0,
            num_failed=0,
            num_set_aside=0,
            units_per_hour=0.0,
            seconds_left=None,
            under_way=(),
            doing=doing,
        )
        self._under_way: dict[str, tuple[str, float]] = {}
        self._times = deque([time.monotonic()], maxlen=_MOST_TIMES)
        self._lines: list[str] = []
        self._num_files = 0
        self._is_logged = True
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.set_aside: list[SetAside] = []

    def begun(self, unit: UnitT, worker: str) -> None:
        """Note who has the unit."""
        self._hold.check()
        with self._lock:
            self._under_way[unit.name] = (worker, time.monotonic())
        self._listener.begun(unit, worker)

    def advanced(self, count: int) -> None:
        """Pass it on."""
        self._hold.check()
        self._listener.advanced(count)

    def finished(self, unit: UnitT, entry: EntryT) -> None:
        """Note it, once it is entered."""
        self._hold.check()
        self._listener.finished(unit, entry)
        self._note(unit, "finished", done=1)
        self._times.append(time.monotonic())

    def failed(self, unit: UnitT, reason: str, pause_seconds: float) -> None:
        """Note and log it."""
        logger.warning("%s failed and is tried again in %.0f s: %s", unit.name, pause_seconds, reason)
        self._note(unit, f"failed: {reason}", failed=1)
        self._listener.failed(unit, reason, pause_seconds)

    def gave_up(self, unit: UnitT, aside: SetAside) -> None:
        """Note and log it."""
        tries = "one try" if aside.tries == 1 else f"{aside.tries} tries"
        logger.warning("%s is set aside after %s: %s", unit.name, tries, aside.reason)
        self.set_aside.append(aside)
        self._note(unit, f"set aside after {tries}: {aside.reason}", failed=1)
        self._listener.gave_up(unit, aside)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the files now and then until the block ends, and say in them how it ended."""
        storage.make_directory(storage.join(self._output, RUN))
        self._write("running")
        thread = threading.Thread(target=self._keep, daemon=True)
        thread.start()
        state = "ended"
        try:
            yield
        except BaseException as error:
            state = f"ended: {type(error).__name__}: {' '.join(storage.without_secrets(error).split())}"
            raise
        finally:
            self._ended.set()
            thread.join()
            self._write(state)

    def _note(self, unit: NamedUnit, what: str, *, done: int = 0, failed: int = 0) -> None:
        with self._lock:
            worker, since = self._under_way.pop(unit.name)
            self._status = attrs.evolve(
                self._status,
                num_done=self._status.num_done + done,
                num_failed=self._status.num_failed + failed,
                num_set_aside=len(self.set_aside),
            )
            if len(self._lines) == _LINES_A_FILE:
                self._write_log()
                self._lines, self._num_files = [], self._num_files + 1
            seconds = time.monotonic() - since
            self._lines.append(f"{_now()}  {storage.printable(unit.name)}  {seconds:.1f} s  {worker}  {what}\n")
            self._is_logged = False

    def _keep(self) -> None:
        seconds = _SECONDS_IN_A_STORE if storage.is_remote(self._output) else _SECONDS
        while not self._ended.wait(seconds):
            self._write("running")

    def _write(self, state: str) -> None:
        """Write what is known; a run does not end because that cannot be written."""
        if not self._hold.is_sure:
            return
        try:
            with self._lock:
                status = self._now(state)
                self._write_log()
            storage.write_text(storage.join(self._output, STATUS), to_json(status, indent=1) + "\n")
        except OSError as error:
            logger.warning("the status of the run could not be written: %s", error)

    def _write_log(self) -> None:
        if not self._is_logged:
            path = storage.join(self._output, f"{self._log}-{self._num_files:04d}.txt")
            storage.write_text(path, "".join(self._lines))
            self._is_logged = True

    def _now(self, state: str) -> Status:
        now, status = time.monotonic(), self._status
        num_timed = len(self._times) - 1
        an_hour = 3600 * num_timed / max(now - self._times[0], 1e-9) if num_timed else 0.0
        num_left = status.num_units - status.num_done_before - status.num_done - status.num_set_aside
        return attrs.evolve(
            status,
            state=state,
            written=_now(),
            units_per_hour=an_hour,
            seconds_left=3600 * num_left / an_hour if an_hour else None,
            under_way=tuple(
                UnderWay(worker=worker, unit=unit, seconds=now - since)
                for unit, (worker, since) in sorted(self._under_way.items(), key=lambda item: item[1])
            ),
        )


def _now() -> str:
    return _text(datetime.now(timezone.utc))


def _text(now: datetime) -> str:
    return f"{now:%Y-%m-%d %H:%M:%S} UTC"
