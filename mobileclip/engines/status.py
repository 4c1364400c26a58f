"""The status file of a run in its output, and how it is printed: who runs it, and how far it is."""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.engines.set_aside import SET_ASIDE
from mobileclip.progress import duration
from mobileclip.serialization import from_json
from mobileclip.strict import strict

RUN = "run"
"""Folder of an output with what a run says of itself."""
STATUS = f"{RUN}/status.json"
"""File in an output: what its last run does, or did, and who holds the output by renewing it."""

RUNNING = "running"
"""State of a run that has not ended."""

# The file is written anew four times a minute.
_SILENT_SECONDS = 120.0
_RENEWAL_SECONDS = 15.0
# A file that asks for more would have others wait for ever.
_MOST_RENEWAL_SECONDS = 600.0
MAX_BYTES = 2**26
# After each look at a file that is damaged.
_PAUSES = (0.1, 0.1, 0.0)
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
    """Progress of a run; its text says when a running one has not reported for two minutes.

    Args:
        state: `running`, `finished`, or `ended` before its time.
        began: by the clock of its machine.
        written: when this was written, by the same clock.
        num_units: of the work that is done now, or was done last; 0 where it has none.
        num_done_before: of them, that earlier runs had finished.
        num_done: of them, that this run has finished.
        num_failed: tries that failed, in the whole run.
        num_set_aside: units that were given up, in the whole run.
        units_per_hour: speed of the later half of the units; 0 where it is not known yet.
        seconds_left: until all are done at that speed; None where it is not known, or nothing is left.
        under_way: what the workers have.
        doing: the work that is done now, or was done last, such as `indexing`.
        doing_began: when it began, by the same clock.
        then: the kinds of work that come after it.
        reason: why it ended before its time; empty where it did not.
        called: what the units are called.
        holder: machine and process of the driver, for people.
        identity: drawn for this run alone.
        renewal: how often it was written.
        renewal_seconds: between two renewals; at most ten minutes.
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
    holder: str = ""
    identity: str = ""
    renewal: int = attrs.field(default=0, validator=validators.ge(0))
    renewal_seconds: float = attrs.field(
        default=_RENEWAL_SECONDS, validator=[validators.gt(0), validators.le(_MOST_RENEWAL_SECONDS)]
    )

    @staticmethod
    def new(renewal_seconds: float) -> Status:
        """Return that of a run of this process which begins now."""
        return Status(
            state=RUNNING,
            began=time_now(),
            written=time_now(),
            holder=f"{platform.node()}, process {os.getpid()}",
            identity=secrets.token_hex(8),
            renewal_seconds=renewal_seconds,
        )

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        is_running = self.state == RUNNING
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
        output: folder or URL.

    Raises:
        ValueError: if there was none, or it cannot be read.
    """
    if (found := known_status(output)) is None:
        path = storage.printable(storage.join(output, STATUS))
        raise ValueError(
            f"there is no {path}: nothing has run in {storage.printable(output)}; start it without `--status`"
        )
    return found


def known_status(output: storage.AnyPath) -> Status | None:
    """Return the same, or None where nothing has run.

    Raises:
        ValueError: if it is damaged, at the last look too.
        OSError: if it cannot be read.
    """
    path = storage.join(output, STATUS)
    # A store is asked for the size of a file and then for its bytes, between which it may be written anew.
    for pause in _PAUSES:
        try:
            content = storage.read_if_there(path, limit=MAX_BYTES)
            return None if content is None else from_json(content.decode(), Status)
        except ValueError as error:  # noqa: PERF203 - few looks
            damage = error
            time.sleep(pause)
    raise ValueError(f"{path} is damaged ({damage}); delete it if no other run works there")


def time_now() -> str:
    """Return the time as a status has it."""
    return f"{datetime.now(timezone.utc):{_TIME}}"


def _seconds_since(text: str) -> float:
    """Return how long ago a time was, by the clock of this machine; 0 where it is none."""
    with suppress(ValueError):
        then = datetime.strptime(text, _TIME).replace(tzinfo=timezone.utc)
        return (datetime.now(timezone.utc) - then).total_seconds()
    return 0.0
