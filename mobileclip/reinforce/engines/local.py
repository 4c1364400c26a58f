"""Processes on this machine, one per device: each loads the teachers once and takes unit after unit."""

from __future__ import annotations

import multiprocessing
import os
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
from mobileclip.devices import all_devices, pick_device
from mobileclip.interruption import leave_to_parent
from mobileclip.reinforce.engines.base import Engine, Entries
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.worker import OnSamples, ShardWorker, default_num_threads

MAX_ATTEMPTS = 3


@attrs.frozen(kw_only=True)
class LocalEngine(Engine):
    """Processes on this machine.

    One worker runs in this process, several in processes of their own. A worker that dies, of too little memory for
    instance, is replaced and its unit given to another; a unit that kills three of them stops the run.

    Args:
        num_workers: processes; None for one per CUDA device, or one where there is none.
        devices: what the workers run on, in turn; none for all CUDA devices, or the best one where there is none.
        num_threads: threads of a worker; None for its share of the cores.
    """

    num_workers: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    devices: tuple[str, ...] = ()
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))

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
            return (worker(unit, on_samples) for unit in units)
        return _Crew(spec, placements, on_samples).run(units)


_Placement = tuple[str, int]
"""Device and number of threads."""


@attrs.define(eq=False)
class _Member:
    process: BaseProcess
    connection: Connection
    placement: _Placement
    unit: Unit | None = None


class _Crew:
    """The processes of a run, and who does what."""

    def __init__(self, spec: ReinforcementSpec, placements: Sequence[_Placement], on_samples: OnSamples) -> None:
        self._spec = spec
        self._num_workers = len(placements)
        self._free = deque(placements)
        self._members: list[_Member] = []
        self._attempts: Counter[str] = Counter()
        self._on_samples = on_samples
        # A forked child would inherit torch's threads in an unknown state, and CUDA not at all.
        self._context = multiprocessing.get_context("spawn")

    def run(self, units: Sequence[Unit]) -> Entries:
        waiting = deque(units)
        try:
            while waiting or any(member.unit for member in self._members):
                self._assign(waiting)
                ready = set(wait([member.connection for member in self._members]))
                for member in [one for one in self._members if one.connection in ready]:
                    try:
                        kind, value = member.connection.recv()
                    except (EOFError, OSError):
                        self._bury(member, waiting)
                        continue
                    if kind == "samples":
                        self._on_samples(value)
                    elif kind == "failed":
                        raise ValueError(value)
                    else:
                        member.unit = None
                        yield value
        finally:
            for member in self._members:
                member.connection.close()
                member.process.terminate()
            for member in self._members:
                member.process.join()

    def _assign(self, waiting: deque[Unit]) -> None:
        idle = [member for member in self._members if member.unit is None]
        while self._free and len(idle) < len(waiting):
            member = self._hire(self._free.popleft())
            self._members.append(member)
            idle.append(member)
        for member, unit in zip(idle, tuple(waiting), strict=False):
            member.unit = waiting.popleft()
            with suppress(OSError):  # it died idle; reading from it will tell
                member.connection.send(unit)

    def _hire(self, placement: _Placement) -> _Member:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._spec, *placement, self._num_workers), daemon=True
        )
        process.start()
        # The child's death must be the end of the pipe, so no one else may hold that end.
        theirs.close()
        return _Member(process, ours, placement)

    def _bury(self, member: _Member, waiting: deque[Unit]) -> None:
        """Give the place and the unit of a process that died to others."""
        member.process.join()
        member.connection.close()
        self._members.remove(member)
        self._free.append(member.placement)
        if member.unit is None:
            return
        self._attempts[member.unit.name] += 1
        if self._attempts[member.unit.name] == MAX_ATTEMPTS:
            raise ValueError(
                f"{member.unit.name} ended {MAX_ATTEMPTS} worker processes, the last with exit code "
                f"{member.process.exitcode} (-9: killed, often for too much memory); try a smaller batch_size or "
                "fewer workers. Finished shards are kept"
            )
        waiting.appendleft(member.unit)


def _work(connection: Connection, spec: ReinforcementSpec, device: str, num_threads: int, num_workers: int) -> None:
    """Do unit after unit until the other end of the connection is closed, or its process is gone."""
    leave_to_parent()
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_workers))

    def send(kind: str, value: Any) -> None:
        connection.send((kind, value))

    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            worker = ShardWorker.build(spec, device=device, num_threads=num_threads)
            while True:
                entry = worker(connection.recv(), lambda count: send("samples", count))
                send("done", entry)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except ValueError as error:
            send("failed", str(error))
        except Exception:  # noqa: BLE001 - whatever it was, the run must hear of it
            send("failed", f"a worker failed:\n{traceback.format_exc()}")
