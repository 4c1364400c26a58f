"""How far a run is, as it stands in its output and as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.engines.changing import read_changing
from mobileclip.engines.set_aside import SET_ASIDE
from mobileclip.progress import duration
from mobileclip.strict import strict

RUN = "run"
"""Folder of an output with what a run says of itself."""
STATUS = f"{RUN}/status.json"
"""File in an output: what its last run does, or did."""

# The file is written anew twice a minute or oftener.
_SILENT_SECONDS = 120.0
_MAX_BYTES = 2**26
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
    """How far a run is. Its text says when nothing was heard of a running one for two minutes.

    Args:
        state: `running`, `finished`, or `ended` before its time.
        began: by the clock of its machine.
        written: when this was written, by the same clock.
        num_units: of the work that is done now, or was done last; 0 where it has none.
        num_done_before: of them, that earlier runs had finished.
        num_done: of them, that this run has finished.
        num_failed: tries that failed, in the whole run.
        num_set_aside: units that were given up, in the whole run.
        units_per_hour: speed of the last units; 0 where none is finished.
        seconds_left: until all are done at that speed; None where it is not known.
        under_way: what the workers have.
        doing: the work that is done now, or was done last, such as `indexing`.
        doing_began: when it began, by the same clock.
        then: the kinds of work that come after it.
        reason: why it ended before its time; empty where it did not.
        called: what the units are called.
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
    doing_began: str = ""
    then: tuple[str, ...] = ()
    reason: str = ""
    called: str = "shards"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        is_running = self.state == "running"
        if is_running and _seconds_since(self.written) > _SILENT_SECONDS:
            yield (
                f"not heard of since {self.written}, begun at {self.began}: it was killed, or its machine is stopped; "
                "the same command goes on with it"
            )
        elif is_running:
            yield f"running at {self.written}, begun at {self.began}"
        else:
            reason = f": {self.reason}" if self.reason else ""
            yield f"{self.state} at {self.written}, begun at {self.began}{reason}"
        if self.doing:
            yield self._work(is_running=is_running)
        if self.num_set_aside or self.num_failed:
            where = f" (see {SET_ASIDE})" if self.num_set_aside else ""
            yield f"set aside: {self.num_set_aside:,}{where}; tries that failed: {self.num_failed:,}"
        if is_running and self.units_per_hour:
            left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left of {self.doing}"
            yield f"{self.units_per_hour:,.1f} {self.called} an hour{left}"
        for one in self.under_way:
            yield f"{one.worker}: {one.unit}, for {duration(one.seconds)}"

    def _work(self, *, is_running: bool) -> str:
        then = f", then {' and '.join(self.then)}" if is_running and self.then else ""
        if not self.num_units:
            return f"{self.doing} since {self.doing_began}{then}"
        earlier = f", {self.num_done_before:,} of them by earlier runs" if self.num_done_before else ""
        num_done = self.num_done_before + self.num_done
        return f"{self.doing}: {num_done:,} of {self.num_units:,} {self.called} done{earlier}{then}"


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


def time_text(time: datetime) -> str:
    """Return a time as a status has it."""
    return f"{time.astimezone(timezone.utc):{_TIME}}"


def _seconds_since(text: str) -> float:
    """Return how long ago a time was, by the clock of this machine; 0 where it is none."""
    with suppress(ValueError):
        then = datetime.strptime(text, _TIME).replace(tzinfo=timezone.utc)
        return (datetime.now(timezone.utc) - then).total_seconds()
    return 0.0
