"""Processes on this machine, one per device: each loads the teachers once and takes unit after unit."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import attrs
import torch
from attrs import validators

from mobileclip.data import Unit
from mobileclip.hardware.devices import all_devices, pick_device
from mobileclip.reinforce.engines.base import Engine, Entries
from mobileclip.reinforce.engines.inline import one_after_another
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.worker import OnSamples, ShardWorker, default_num_threads
from mobileclip.storage import StoreLimits, printable, use_limits
from mobileclip.terminal.interruption import leave_to_parent

# Signs of life in the time after which their absence counts.
_BEATS = 10
_END_SECONDS = 5.0


@attrs.frozen(kw_only=True)
class LocalEngine(Engine):
    """Processes on this machine.

    One worker runs in this process, several in processes of their own. A worker that dies, of too little memory for
    instance, or that is stopped or stuck, is replaced and its unit given to another; a unit that does this to
    `max_attempts` of them stops the run.

    Args:
        num_workers: processes; None for one per CUDA device, or one where there is none.
        devices: what the workers run on, in turn; none for all CUDA devices, or the best one where there is none.
        num_threads: threads of a worker; None for its share of the cores.
        silence_seconds: without a sign of life, after which a worker that has begun counts as stopped.
        progress_seconds: without a finished sample, after which a worker counts as stuck; it loads its models in this
            time, too.
        max_attempts: workers that a unit is given to.
        stores: how long stores are waited for.
    """

    num_workers: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    devices: tuple[str, ...] = ()
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    silence_seconds: float = attrs.field(default=120.0, validator=validators.gt(0))
    progress_seconds: float = attrs.field(default=3600.0, validator=validators.gt(0))
    max_attempts: int = attrs.field(default=3, validator=validators.gt(0))
    stores: StoreLimits = attrs.field(factory=StoreLimits)

    def run(self, spec: ReinforcementSpec, units: Sequence[Unit], on_samples: OnSamples) -> Entries:
        """Make the shards of all units; see `Engine`."""
        devices = tuple(str(pick_device(name)) for name in self.devices) or all_devices()
        num_workers = min(self.num_workers or len(devices), len(units))
        placements = [
            (device, self.num_threads or default_num_threads(device, num_workers))
            for device in (devices[index % len(devices)] for index in range(num_workers))
        ]
        if num_workers == 1:
            ((device, num_threads),) = placements
            worker = ShardWorker.build(spec, device=device, num_threads=num_threads)
            return one_after_another(worker, units, on_samples, self.stores)
        return _Crew(self, spec, placements, on_samples).run(units)


_Placement = tuple[str, int]
"""Device and number of threads."""


@attrs.define(eq=False)
class _Member:
    """A worker's process; the times are those of its last sign of life, once it has begun, and of its last sample."""

    process: BaseProcess
    connection: Connection
    placement: _Placement
    progressed: float
    heard: float | None = None
    unit: Unit | None = None


class _Crew:
    """The processes of a run, and who does what."""

    def __init__(
        self, engine: LocalEngine, spec: ReinforcementSpec, placements: Sequence[_Placement], on_samples: OnSamples
    ) -> None:
        self._engine = engine
        self._spec = spec
        self._num_workers = len(placements)
        self._free = deque(placements)
        self._members: list[_Member] = []
        self._attempts: Counter[str] = Counter()
        self._on_samples = on_samples
        self._beat_seconds = min(engine.silence_seconds, engine.progress_seconds) / _BEATS
        self._looked = time.monotonic()
        # A forked child would inherit torch's threads in an unknown state, and CUDA not at all.
        self._context = multiprocessing.get_context("spawn")

    def run(self, units: Sequence[Unit]) -> Entries:
        waiting = deque(units)
        try:
            while waiting or any(member.unit for member in self._members):
                self._assign(waiting)
                ready = set(wait([member.connection for member in self._members], self._beat_seconds))
                for member in [one for one in self._members if one.connection in ready]:
                    try:
                        kind, value = member.connection.recv()
                    except (EOFError, OSError):
                        member.process.join()
                        self._bury(
                            member,
                            waiting,
                            f"ended with exit code {member.process.exitcode} (-9: killed, often for too much memory)",
                        )
                        continue
                    member.heard = time.monotonic()
                    if kind != "alive":
                        member.progressed = member.heard
                    if kind == "samples":
                        self._on_samples(value)
                    elif kind == "failed":
                        raise ValueError(value)
                    elif kind == "done":
                        member.unit = None
                        yield value
                self._look_again()
                self._end_hung(waiting)
        finally:
            for member in self._members:
                member.connection.close()
                member.process.terminate()
            for member in self._members:
                _end(member.process)

    def _assign(self, waiting: deque[Unit]) -> None:
        idle = [member for member in self._members if member.unit is None]
        while self._free and len(idle) < len(waiting):
            member = self._hire(self._free.popleft())
            self._members.append(member)
            idle.append(member)
        for member, unit in zip(idle, tuple(waiting), strict=False):
            member.unit = waiting.popleft()
            member.progressed = time.monotonic()
            with suppress(OSError):  # it died idle; reading from it will tell
                member.connection.send(unit)

    def _hire(self, placement: _Placement) -> _Member:
        own_end, other_end = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(other_end, self._spec, *placement),
            kwargs={
                "num_workers": self._num_workers,
                "beat_seconds": self._beat_seconds,
                "stores": self._engine.stores,
            },
            daemon=True,
        )
        process.start()
        # The child's death must be the end of the pipe, so no one else may hold that end.
        other_end.close()
        return _Member(process, own_end, placement, progressed=time.monotonic())

    def _look_again(self) -> None:
        """Forgive the time in which this process was stopped itself, or its caller had it wait: nobody looked then."""
        now = time.monotonic()
        away = now - self._looked - 2 * self._beat_seconds
        self._looked = now
        for member in self._members if away > 0 else ():
            member.progressed += away
            member.heard = None if member.heard is None else member.heard + away

    def _end_hung(self, waiting: deque[Unit]) -> None:
        """End and replace workers that are stopped or stuck."""
        now = time.monotonic()
        for member in tuple(self._members):
            if member.heard is not None and now - member.heard > self._engine.silence_seconds:
                how = f"gave no sign of life for {self._engine.silence_seconds:g} s (it may have been stopped)"
            elif member.unit is not None and now - member.progressed > self._engine.progress_seconds:
                how = f"finished no sample for {self._engine.progress_seconds:g} s"
            else:
                continue
            member.process.kill()
            self._bury(member, waiting, how)

    def _bury(self, member: _Member, waiting: deque[Unit], how: str) -> None:
        """Give the place and the unit of a process that is gone to others."""
        member.process.join()
        member.connection.close()
        self._members.remove(member)
        self._free.append(member.placement)
        if member.unit is None:
            return
        self._attempts[member.unit.name] += 1
        if self._attempts[member.unit.name] == self._engine.max_attempts:
            raise ValueError(
                f"{printable(member.unit.name)} was too much for {self._engine.max_attempts} worker processes, the "
                f"last {how}; try a smaller batch_size or fewer workers. Finished shards are kept"
            )
        waiting.appendleft(member.unit)


def _end(process: BaseProcess) -> None:
    """Wait for a process that was asked to end; one that is stopped does not hear it."""
    process.join(_END_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()


def _work(
    connection: Connection,
    spec: ReinforcementSpec,
    device: str,
    num_threads: int,
    *,
    num_workers: int,
    beat_seconds: float,
    stores: StoreLimits,
) -> None:
    """Do unit after unit until the other end of the connection is closed, or its process is gone."""
    leave_to_parent()
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_workers))
    sending = threading.Lock()

    def send(kind: str, value: Any = None) -> None:
        with sending:
            connection.send((kind, value))

    def beat() -> None:
        with suppress(OSError):
            while True:
                send("alive")
                time.sleep(beat_seconds)

    threading.Thread(target=beat, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError), use_limits(stores):
        try:
            worker = ShardWorker.build(spec, device=device, num_threads=num_threads)
            send("ready")
            while True:
                entry = worker(connection.recv(), lambda count: send("samples", count))
                send("done", entry)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except ValueError as error:
            send("failed", str(error))
        except Exception:  # noqa: BLE001 - whatever it was, the run must hear of it
            send("failed", f"a worker failed:\n{traceback.format_exc()}")
