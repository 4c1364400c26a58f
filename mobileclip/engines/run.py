"""Runs units into an output: locks it, lets an engine work, and keeps the status file there up to date.

One file is the status and, in a store, the lease; one thread writes it, and the log beside it. On this machine a lock
of the system keeps a second driver out. A store has no locks that end with a process. There, the file is renewed again
and again, and an output whose file is not seen to be renewed is taken over: whether its owner is dead is judged by what
is seen of it, on this machine's own clock. In a store that knows no conditional writes, two that begin in the same
moment both go on, until one is seen to have lost at its first renewal.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from mobileclip import storage
from mobileclip.engines.base import Engine
from mobileclip.engines.heartbeat import Heart
from mobileclip.engines.inline import InlineEngine
from mobileclip.engines.queue import Listener
from mobileclip.engines.set_aside import SetAside, read_set_aside, write_set_aside
from mobileclip.engines.status import MAX_BYTES, RUN, RUNNING, STATUS, Status, UnderWay, known_status, time_now
from mobileclip.engines.work import EntryT, FatalError, NamedUnit, UnitT, Work
from mobileclip.progress import Pace
from mobileclip.serialization import to_json
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

# A holder that does not renew its file for so many of its own intervals is dead.
_INTERVALS = 4
_LOOKS_AN_INTERVAL = 5
_LINES_A_FILE = 1000


class Run(Listener[Any, Any]):
    """An output that one driver holds, and what is done there; `held` makes it.

    A run may do several kinds of work, one after another; their list of what was set aside is one. It is told what
    becomes of the units, and tells the listener of the work.
    """

    most_seconds = 3600.0
    """For which a renewal that is late is waited for."""

    def __init__(self, output: str, engine: Engine, *, renewal_seconds: float) -> None:
        self._output, self._engine = output, engine
        self._path, self._is_leased = storage.join(output, STATUS), storage.is_remote(output)
        self._status = Status.new(renewal_seconds)
        self._sure_seconds = (_INTERVALS - 1) * renewal_seconds if self._is_leased else math.inf
        self._log = f"{RUN}/log-{self._status.began[:19].replace(':', '').replace(' ', '-')}-{self._status.identity}"
        self._lines: list[str] = []
        self._num_logged = self._num_files = self._num_aside_before = 0
        self._under_way: dict[str, tuple[str, float]] = {}
        self._pace = Pace(time.monotonic())
        self._earlier: frozenset[str] = frozenset()
        self._asides: list[SetAside] = []
        self._renewed, self._lost = time.monotonic(), ""
        self._changed, self._writing = threading.Condition(), threading.Lock()

    @property
    def set_aside(self) -> tuple[SetAside, ...]:
        """What was set aside so far."""
        return tuple(self._asides)

    @property
    def is_sure(self) -> bool:
        """Whether no other driver can have taken over."""
        return not self._lost and time.monotonic() - self._renewed < self._sure_seconds

    def check(self) -> None:
        """Make sure that the output is this driver's; where that is not known, because its store is away, wait for it.

        Raises:
            FatalError: if it was lost, or is not known for too long; the run ends, so that no two write to one output.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.is_sure or self._lost, self.most_seconds)
            if not self.is_sure:
                why = self._lost or "the lease of the output could not be renewed, and another driver may work there"
                raise FatalError(f"{why}. This run ends; what is finished is kept")

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
            num_units: of it; 0 where it has none.
            num_done_before: of them, that earlier runs have finished.
            then: the kinds of work that come after it.
            called: what the units are called.
        """
        about = {"doing": doing, "doing_began": time_now(), "then": tuple(then), "called": called}
        with self._changed:
            self._note(num_units=num_units, num_done_before=num_done_before, num_done=0, **about)
            self._pace = Pace(time.monotonic())
            self._num_aside_before = len(self._asides)
        self._write(RUNNING)

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
        self.check()
        with self._changed:
            self._under_way[unit.name] = (worker, time.monotonic())
        self._listener.begun(unit, worker)

    def advanced(self, count: int) -> None:
        """Pass it on."""
        self.check()
        self._listener.advanced(count)

    def finished(self, unit: NamedUnit, entry: object) -> None:
        """Note it, once it is entered."""
        self.check()
        self._listener.finished(unit, entry)
        self._give_back(unit, "finished", num_done=1)

    def failed(self, unit: NamedUnit, reason: str, pause_seconds: float) -> None:
        """Note and log it."""
        logger.warning("%s failed and is tried again in %.0f s: %s", unit.name, pause_seconds, reason)
        self._give_back(unit, f"failed: {reason}", num_failed=1)
        self._listener.failed(unit, reason, pause_seconds)

    def lost(self, unit: NamedUnit, reason: str) -> None:
        """Log it."""
        self._give_back(unit, reason)
        self._listener.lost(unit, reason)

    def divided(self, unit: NamedUnit, reason: str, parts: Sequence[NamedUnit]) -> None:
        """Note and log it."""
        logger.warning("%s failed again and is tried in %d parts: %s", unit.name, len(parts), reason)
        what = f"failed, and is tried in {len(parts)} parts: {reason}"
        self._give_back(unit, what, num_failed=1, num_units=len(parts) - 1)
        self._listener.divided(unit, reason, parts)

    def gave_up(self, unit: NamedUnit, aside: SetAside) -> None:
        """Note and log it."""
        tries = "one try" if aside.tries == 1 else f"{aside.tries} tries"
        logger.warning("%s is set aside after %s: %s", unit.name, tries, aside.reason)
        self._asides.append(aside)
        self._give_back(unit, f"set aside after {tries}: {aside.reason}", num_failed=1)
        self._listener.gave_up(unit, aside)

    @contextmanager
    def kept(self, *, is_held: bool) -> Iterator[None]:
        """Hold the output and write the files now and then until the block ends, and say in them how it ended.

        One that an error ends before it has begun anything leaves the status of the run before it.
        """
        with ExitStack() as stack:
            before = storage.read_if_there(self._path, limit=MAX_BYTES)
            if self._is_leased:
                self._acquire()
            elif not is_held:
                try:
                    stack.enter_context(storage.exclusive(Path(self._output)))
                except ValueError as error:
                    raise ValueError(f"{error}: {self._holder()}") from None
            storage.make_directory_of(self._path)
            heart = Heart(self._renew, seconds=self._status.renewal_seconds)
            try:
                self._earlier = frozenset(one.unit for one in read_set_aside(self._output))
                yield
            except BaseException as error:
                self.end(f"{type(error).__name__}: {' '.join(storage.without_secrets(error).split())}")
                raise
            finally:
                # A store that is away is not waited for.
                is_still = heart.stop(self._status.renewal_seconds if self._is_leased else None)
                if self.is_sure and is_still:
                    has_begun = self._status.doing or not self._status.reason
                    self._write("ended" if self._status.reason else "finished", None if has_begun else before)

    def _give_back(self, unit: NamedUnit, what: str, **counts: int) -> None:
        """Log what became of a unit, or of a try of it, and add to the counts of the status."""
        now = time.monotonic()
        with self._changed:
            worker, since = self._under_way.pop(unit.name)
            self._note(**{name: getattr(self._status, name) + count for name, count in counts.items()})
            if num_done := counts.get("num_done"):
                self._pace.advance(num_done, now)
            self._lines.append(f"{time_now()}  {storage.printable(unit.name)}  {now - since:.1f} s  {worker}  {what}\n")

    def _note(self, **values: Any) -> None:
        with self._changed:
            self._status = attrs.evolve(self._status, **values)

    def _renew(self) -> None:
        if not self._lost:
            self._write(RUNNING)

    def _write(self, state: str, instead: bytes | None = None) -> None:
        """Renew the files with all that is known; a run does not end because that cannot be written."""
        try:
            with self._writing:
                self._write_log()
                self._write_status(state, instead)
        except (OSError, ValueError) as error:
            logger.warning("%s could not be renewed: %s", self._path, error)

    def _write_status(self, state: str, instead: bytes | None) -> None:
        version, lost = storage.file_version(self._path) if self._is_leased else None, ""
        if self._is_leased and not self._is_ours():
            lost = f"{self._path} is now of another driver, {self._holder()}"
        with self._changed:
            self._status = self._now(state)
            text = to_json(self._status, indent=1) + "\n" if instead is None else instead.decode()
        if not self._is_leased:
            storage.write_text(self._path, text)
        elif not lost and not storage.write_text_if(self._path, text, version):
            return
        with self._changed:
            self._renewed, self._lost = time.monotonic(), lost
            self._changed.notify_all()

    def _write_log(self) -> None:
        lines = tuple(self._lines)
        if len(lines) == self._num_logged:
            return
        storage.write_text(storage.join(self._output, f"{self._log}-{self._num_files:04d}.txt"), "".join(lines))
        self._num_logged = len(lines)
        if len(lines) >= _LINES_A_FILE:
            del self._lines[: len(lines)]
            self._num_logged, self._num_files = 0, self._num_files + 1

    def _now(self, state: str) -> Status:
        now, status, a_unit = time.monotonic(), self._status, self._pace.seconds(1)
        num_over = status.num_done_before + status.num_done + len(self._asides) - self._num_aside_before
        return attrs.evolve(
            status,
            state=state,
            written=time_now(),
            renewal=status.renewal + 1,
            num_set_aside=len(self._asides),
            units_per_hour=3600 / a_unit if a_unit else 0.0,
            seconds_left=self._pace.seconds(status.num_units - num_over),
            under_way=tuple(
                UnderWay(worker=worker, unit=unit, seconds=now - since)
                for unit, (worker, since) in sorted(self._under_way.items(), key=lambda item: item[1])
            ),
        )

    def _acquire(self) -> None:
        """Take the lease, or take it over from a holder that is not seen to renew it.

        Raises:
            ValueError: if it is renewed, or another driver is faster.
        """
        version, other = storage.file_version(self._path), known_status(self._output)
        if other is not None and other.state == RUNNING:
            seconds = _INTERVALS * other.renewal_seconds
            logger.warning("%s is of %s; waiting %.0f s at most", self._path, self._holder(), seconds)
            end, before = time.monotonic() + seconds, version
            while version == before and time.monotonic() < end:
                time.sleep(other.renewal_seconds / _LOOKS_AN_INTERVAL)
                version = storage.file_version(self._path)
            other = known_status(self._output) if version != before else None
        is_free = other is None or other.state != RUNNING
        if not (is_free and storage.write_text_if(self._path, to_json(self._status), version) and self._is_ours()):
            raise ValueError(
                f"another driver works in {self._output}: {self._holder()}. Wait for it, end it, or choose another "
                "output; one that died is taken over when it has not renewed its lease for a minute"
            )
        self._renewed = time.monotonic()

    def _is_ours(self) -> bool:
        """Return whether what the store holds is this driver's."""
        found = known_status(self._output)
        return found is not None and found.identity == self._status.identity

    def _holder(self) -> str:
        """Return who has the output, as far as it says so."""
        with suppress(ValueError, OSError):
            if (found := known_status(self._output)) is not None:
                return f"{found.holder}, since {found.began}"
        return "one that has just begun"


@contextmanager
def held(
    output: str, engine: Engine | None = None, *, renewal_seconds: float = 15.0, is_held: bool = False
) -> Iterator[Run]:
    """Lock an output for a run, which keeps its status there; a second run is refused.

    Args:
        output: folder or URL.
        engine: who does the work; None for this process.
        renewal_seconds: between two times that the run says so; in a store, another one may take over after four.
        is_held: whether the caller holds the folder already, see `exclusive` of `mobileclip.storage`.

    Raises:
        ValueError: if another driver holds it, or what the last run has left there is damaged.
        OSError: if that cannot be found out.
    """
    run = Run(output, engine or InlineEngine(device="cpu"), renewal_seconds=renewal_seconds)
    with run.kept(is_held=is_held):
        yield run
