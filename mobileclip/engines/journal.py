"""What a run says of itself in its output: what every worker does now, how far it is, and a line for every unit."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Generic

import attrs

from mobileclip import storage
from mobileclip.engines.lease import Hold
from mobileclip.engines.queue import Listener
from mobileclip.engines.set_aside import SetAside
from mobileclip.engines.status import RUN, STATUS, Status, UnderWay, time_text
from mobileclip.engines.work import EntryT, NamedUnit, UnitT
from mobileclip.serialization import to_json
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

# A store takes a request each time.
_SECONDS = 10.0
_SECONDS_IN_A_STORE = 30.0
_LINES_A_FILE = 1000
# Finished units that the speed comes from: the last ones.
_MOST_TIMES = 500


class Journal:
    """Writes status and log of a run, whatever kinds of work it does one after another.

    Args:
        output: folder or address, which exists.
        hold: that the run has of the output; without, nothing is written.
    """

    def __init__(self, output: str, hold: Hold) -> None:
        self._output = output
        self._hold = hold
        now = datetime.now(timezone.utc)
        self._log = f"{RUN}/log-{now:%Y-%m-%d-%H%M%S-%f}"
        self._status = Status(
            state="running",
            began=time_text(now),
            written=time_text(now),
            num_units=0,
            num_done_before=0,
            num_done=0,
            num_failed=0,
            num_set_aside=0,
            units_per_hour=0.0,
            seconds_left=None,
            under_way=(),
        )
        self._under_way: dict[str, tuple[str, float]] = {}
        self._times = deque([time.monotonic()], maxlen=_MOST_TIMES)
        self._num_given_up = 0
        self._lines: list[str] = []
        self._num_files = 0
        self._is_logged = True
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def begin(
        self,
        doing: str,
        *,
        num_units: int = 0,
        num_done_before: int = 0,
        then: Sequence[str] = (),
        called: str = "shards",
    ) -> None:
        """Take note that another kind of work begins; see `Status`."""
        with self._lock:
            self._status = attrs.evolve(
                self._status,
                doing=doing,
                doing_began=_now(),
                num_units=num_units,
                num_done_before=num_done_before,
                num_done=0,
                then=tuple(then),
                called=called,
            )
            self._times = deque([time.monotonic()], maxlen=_MOST_TIMES)
            self._num_given_up = 0
        self._write("running")

    def end(self, reason: str) -> None:
        """Take note that the run ends before its time, though nothing failed."""
        with self._lock:
            self._status = attrs.evolve(self._status, reason=reason)

    def take(self, unit: NamedUnit, worker: str) -> None:
        """Note who has a unit."""
        with self._lock:
            self._under_way[unit.name] = (worker, time.monotonic())

    def divide(self, num_parts: int) -> None:
        """Count the parts that are tried in the place of a unit."""
        with self._lock:
            self._status = attrs.evolve(self._status, num_units=self._status.num_units + num_parts - 1)

    def give_back(self, unit: NamedUnit, what: str, *, num_done: int = 0, num_failed: int = 0) -> None:
        """Note what became of a unit, and log it."""
        with self._lock:
            worker, since = self._under_way.pop(unit.name)
            self._status = attrs.evolve(
                self._status,
                num_done=self._status.num_done + num_done,
                num_failed=self._status.num_failed + num_failed,
            )
            self._times.extend([time.monotonic()] * num_done)
            if len(self._lines) == _LINES_A_FILE:
                self._write_log()
                self._lines, self._num_files = [], self._num_files + 1
            seconds = time.monotonic() - since
            self._lines.append(f"{_now()}  {storage.printable(unit.name)}  {seconds:.1f} s  {worker}  {what}\n")
            self._is_logged = False

    def set_aside(self) -> None:
        """Count a unit that is given up."""
        with self._lock:
            self._num_given_up += 1
            self._status = attrs.evolve(self._status, num_set_aside=self._status.num_set_aside + 1)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write the files now and then until the block ends, and say in them how it ended."""
        storage.make_directory(storage.join(self._output, RUN))
        thread = threading.Thread(target=self._keep, daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            self.end(f"{type(error).__name__}: {' '.join(storage.without_secrets(error).split())}")
            raise
        finally:
            self._ended.set()
            thread.join()
            self._write("ended" if self._status.reason else "finished")

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
        num_left = status.num_units - status.num_done_before - status.num_done - self._num_given_up
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


class Journaling(Listener[UnitT, EntryT], Generic[UnitT, EntryT]):
    """Has a journal note what becomes of units, while another listener does what the run is for.

    Args:
        journal: of the run.
        listener: who is told as well.
        hold: that the run has of the output; without, it ends.
    """

    def __init__(self, journal: Journal, listener: Listener[UnitT, EntryT], hold: Hold) -> None:
        self._journal = journal
        self._listener = listener
        self._hold = hold
        self.set_aside: list[SetAside] = []

    def begun(self, unit: UnitT, worker: str) -> None:
        """Note who has the unit."""
        self._hold.check()
        self._journal.take(unit, worker)
        self._listener.begun(unit, worker)

    def advanced(self, count: int) -> None:
        """Pass it on."""
        self._hold.check()
        self._listener.advanced(count)

    def finished(self, unit: UnitT, entry: EntryT) -> None:
        """Note it, once it is entered."""
        self._hold.check()
        self._listener.finished(unit, entry)
        self._journal.give_back(unit, "finished", num_done=1)

    def failed(self, unit: UnitT, reason: str, pause_seconds: float) -> None:
        """Note and log it."""
        logger.warning("%s failed and is tried again in %.0f s: %s", unit.name, pause_seconds, reason)
        self._journal.give_back(unit, f"failed: {reason}", num_failed=1)
        self._listener.failed(unit, reason, pause_seconds)

    def divided(self, unit: UnitT, reason: str, parts: Sequence[UnitT]) -> None:
        """Note and log it."""
        logger.warning("%s failed again and is tried in %d parts: %s", unit.name, len(parts), reason)
        self._journal.divide(len(parts))
        self._journal.give_back(unit, f"failed, and is tried in {len(parts)} parts: {reason}", num_failed=1)
        self._listener.divided(unit, reason, parts)

    def gave_up(self, unit: UnitT, aside: SetAside) -> None:
        """Note and log it."""
        tries = "one try" if aside.tries == 1 else f"{aside.tries} tries"
        logger.warning("%s is set aside after %s: %s", unit.name, tries, aside.reason)
        self.set_aside.append(aside)
        self._journal.set_aside()
        self._journal.give_back(unit, f"set aside after {tries}: {aside.reason}", num_failed=1)
        self._listener.gave_up(unit, aside)


def _now() -> str:
    return time_text(datetime.now(timezone.utc))
