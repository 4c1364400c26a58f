"""What the processes of a run leave where they meet: heartbeats, and the signal that one of them has heard.

Who has stopped, ended or fallen behind is known by name, and none waits in vain for one that was asked to stop.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs

from mobileclip.engines import Heart
from mobileclip.terminal import say
from mobileclip.terminal.interruption import hear_from_others, overheard

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

_MOST_SECONDS_BETWEEN = 2.0
# What a process is silent for before it counts as stopped: a busy machine skips one or two.
_MISSED = 4
_MOST_NAMED = 4
_MOST_POLL_SECONDS = 0.25
_SIGNAL = "signal"


@attrs.frozen(kw_only=True)
class Heartbeat:
    """The last message of a process.

    Args:
        host: its machine.
        at: when it said so, in seconds since 1970.
        activity: what it does, such as `after step 41`.
        step: how far it is; a larger number is further.
        since: when it began that, in seconds since 1970.
        ended: why it has ended; empty for a process that waited in vain, None while it runs.
    """

    host: str
    at: float
    activity: str
    step: float
    since: float
    ended: str | None = None


class Pulse:
    """Sends the heartbeats of this process and reads those of the others.

    A process that comes no further within a step, for longer than `seconds`, is ended: nothing else would end one whose
    main thread, or GPU, hangs.

    Args:
        store: where the processes meet.
        rank: number of this one.
        size: number of processes.
        seconds: for which the others are waited for.
    """

    def __init__(self, store: Store, *, rank: int, size: int, seconds: float) -> None:
        # A connection of its own: a call that waits keeps the other one.
        self._sending, self._store = store.clone(), store  # type: ignore[attr-defined]
        self.rank, self.size, self.seconds = rank, size, seconds
        self.interval = min(_MOST_SECONDS_BETWEEN, seconds / 10)
        self._activity, self._step, self._since = "before the first step", -1.0, time.time()
        self._is_bounded = False
        self._num_barriers = 0
        self._has_store = True

    def tell(self, activity: str, step: float, *, bounded: bool = True) -> None:
        """Report what this process does from now on.

        Args:
            activity: such as `after step 41`.
            step: how far it is.
            bounded: whether it must take less than `seconds`, as a part of a step does.
        """
        self._activity, self._step, self._since, self._is_bounded = activity, step, time.time(), bounded

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Give heartbeats while the block runs, and say at last why it ended."""
        ended = ""
        with overheard() as signals:
            self._heart = Heart(partial(self._give, signals), seconds=self.interval)
            try:
                yield
            except TimeoutError:
                raise
            except BaseException as error:
                ended = f"{type(error).__name__}: {error}"
                raise
            else:
                self._activity = "at its end"
            finally:
                self._heart.stop(self.interval)
                with suppress(RuntimeError):  # the store may have gone with the one who kept it
                    self._send(self._store, ended)
        if self.rank == 0:
            self._await_ends()

    @contextmanager
    def unbounded(self) -> Iterator[None]:
        """Suspend the time limit of this process in the block."""
        before, self._is_bounded = self._is_bounded, False
        try:
            yield
        finally:
            self._is_bounded, self._since = before, time.time()

    def open_barrier(self) -> None:
        """In the first process: say that what the others wait for is done."""
        self._store.set(f"barrier/{self._num_barriers}", "done")
        self._num_barriers += 1

    def await_barrier(self) -> None:
        """In the others: wait until the first one says so, for as long as it gives heartbeats.

        Raises:
            RuntimeError: if it gave none for `seconds`, or the store is gone.
        """
        heard, heard_at, pause = None, time.monotonic(), 0.005
        while not self._store.check([f"barrier/{self._num_barriers}"]):
            said = self._said(0)
            if said != heard:
                heard, heard_at = said, time.monotonic()
            if said is not None and said.ended is not None:
                raise RuntimeError("timed out: the first process has ended")
            if time.monotonic() - heard_at > self.seconds:
                raise RuntimeError(f"timed out: the first process gave no heartbeat for {self.seconds:g} s")
            time.sleep(pause)
            pause = min(2 * pause, _MOST_POLL_SECONDS)
        self._num_barriers += 1

    def missing(self) -> str:
        """Return which processes hold the others up, in sentences that begin with a small letter."""
        try:
            before = [self._said(rank) for rank in range(self.size)]
            time.sleep(_MISSED * self.interval)
            now = [self._said(rank) for rank in range(self.size)]
        except RuntimeError:
            return f"process 0 of {self.size}, which the others meet at, does not answer any more"
        others = [rank for rank in range(self.size) if rank != self.rank]
        ended = [rank for rank in others if (said := now[rank]) is not None and said.ended]
        silent = [rank for rank in others if now[rank] == before[rank] and not _has_ended(now[rank])]
        named = [f"{self._name(rank, now[rank])} {_fate(now[rank])}" for rank in (ended or silent)]
        if not named:
            alive = [(rank, said) for rank in others if (said := now[rank]) is not None and said.ended is None]
            least = min((said.step for _, said in alive), default=0.0)
            named = [
                f"{self._name(rank, said)} lives and has been {said.activity} for {time.time() - said.since:.0f} s"
                for rank, said in alive
                if said.step == least
            ]
        more = f"; and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        return "; ".join(named[:_MOST_NAMED]) + more if named else "all others wait too, or have ended"

    def _await_ends(self) -> None:
        """Wait a little for the others: the store goes with the first process, and they would complain of that."""
        deadline = time.monotonic() + _MISSED * self.interval
        while time.monotonic() < deadline and not all(_has_ended(self._said(rank)) for rank in range(self.size)):
            time.sleep(self.interval / 20)

    def _name(self, rank: int, said: Heartbeat | None) -> str:
        return f"process {rank} of {self.size}" + (f" ({said.host})" if said is not None else "")

    def _said(self, rank: int) -> Heartbeat | None:
        key = f"heartbeat/{rank}"
        return Heartbeat(**json.loads(self._sending.get(key))) if self._sending.check([key]) else None

    def _send(self, store: Store, ended: str | None = None) -> None:
        heartbeat = Heartbeat(
            host=platform.node(),
            at=time.time(),
            activity=self._activity,
            step=self._step,
            since=self._since,
            ended=ended,
        )
        store.set(f"heartbeat/{self.rank}", json.dumps(attrs.asdict(heartbeat)))

    def _give(self, signals: Callable[[], list[int]]) -> None:
        try:
            if self._has_store:
                self._send(self._sending)
                self._pass_on(signals())
        except RuntimeError:
            self._has_store = False  # gone with the one who kept it, which the main thread finds out, unless it hangs
        # Later than the group's own patience, whose error says more.
        if self._is_bounded and time.time() - self._since > self.seconds + 2 * _MISSED * self.interval:
            self._end()

    def _pass_on(self, numbers: list[int]) -> None:
        """Tell the others of a signal, and hear of theirs: one that waits for its data holds up those that heard it."""
        if numbers:
            self._sending.set(_SIGNAL, str(numbers[0]))
        elif self._sending.check([_SIGNAL]):
            hear_from_others(int(self._sending.get(_SIGNAL)))

    def _end(self) -> None:
        """End this process, whose main thread cannot be reached."""
        seconds = time.time() - self._since
        what = f"{self._activity}: nothing came for {seconds:.0f} s"
        say(
            f"process {self.rank} of {self.size} ({platform.node()}) ends, {what}. Of the others, {self.missing()}. "
            "Start all of them again: the run goes on from its last checkpoint",
            error=True,
        )
        with suppress(RuntimeError):
            self._send(self._sending, what)
        os._exit(1)


def _has_ended(said: Heartbeat | None) -> bool:
    return said is not None and said.ended is not None


def _fate(said: Heartbeat | None) -> str:
    if said is None:
        return "was not heard at all"
    if said.ended:
        return f"ended {said.activity}: {said.ended}"
    return f"was last heard {time.time() - said.at:.0f} s ago, {said.activity}"
