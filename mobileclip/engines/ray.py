"""A Ray cluster: actors that load what the work needs once, as many as it has room for.

Source: Ray Core's actors and fault tolerance, docs.ray.io.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from typing import Any, Generic

import attrs
import torch
from attrs import validators

from mobileclip.engines.base import Engine
from mobileclip.engines.queue import Listener, Retries, UnitQueue
from mobileclip.engines.work import EntryT, FatalError, Place, UnitT, Work, failure_of, fatal_of
from mobileclip.extras import needed
from mobileclip.hardware.devices import pick_device
from mobileclip.storage import StoreLimits, use_limits

# How often this process looks whether something is finished.
_LOOK_SECONDS = 1.0
# One that is made, and one that is finished beside it.
_UNITS_AT_ONCE = 2


@attrs.frozen(kw_only=True)
class RayEngine(Engine):
    """Actors on a Ray cluster, or on this machine where none is joined; source and output must be reachable by all.

    An actor that dies, with its machine for instance, is replaced, and that is a failed try of the units that it had,
    also of those that it had done if their entries went with the machine.
    Actors for which the cluster has no room wait for it to grow.

    Args:
        address: of the cluster, such as `auto` or `ray://head:10001`; None for the one this process belongs to, else a
            new one on this machine.
        max_workers: actors, at most.
        cpus_per_worker: cores that an actor takes; so many threads decode and replay in it.
        gpus_per_worker: GPUs that an actor takes; a fraction lets several share one.
        unit_seconds: with one unit, after which an actor counts as stuck; it loads what it needs in this time, too.
        retries: how often a unit that fails is tried.
        stores: how long stores are waited for.
    """

    address: str | None = None
    max_workers: int = attrs.field(default=1, validator=validators.gt(0))
    cpus_per_worker: int = attrs.field(default=1, validator=validators.gt(0))
    gpus_per_worker: float = attrs.field(default=0.0, validator=validators.ge(0))
    unit_seconds: float = attrs.field(default=24 * 3600.0, validator=validators.gt(0))
    retries: Retries = attrs.field(factory=Retries)
    stores: StoreLimits = attrs.field(factory=StoreLimits)

    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Do all units; see `Engine`. Steps are told of unit by unit."""
        with self.kept() as engine:
            engine.run(work, units, listener)

    def most_workers(self, num_units: int) -> int:
        """Return how many actors there would be; see `Engine`."""
        return min(self.max_workers, max(1, num_units))

    @contextmanager
    def kept(self) -> Iterator[Engine]:
        """Yield an engine whose actors stay from one work to the next; see `Engine`."""
        ray = _ray()
        started_here = not ray.is_initialized()
        if started_here:
            ray.init(address=self.address, log_to_driver=False, include_dashboard=False)
        kept = _KeptEngine(engine=self, ray=ray)
        try:
            yield kept
        finally:
            _dismiss(ray, kept.idle)
            if started_here:
                ray.shutdown()


@attrs.define(eq=False)
class _Member(Generic[UnitT]):
    """An actor.

    Args:
        actor: Ray's handle of it.
        name: how it is called.
        opening: what tells that it has loaded what it needs.
        node: of the cluster, once it is known.
        is_ready: whether it has loaded that.
        calls: the units that it has, and since when, by what tells that they are done.
    """

    actor: Any
    name: str
    opening: Any = None
    node: str = ""
    is_ready: bool = False
    calls: dict[Any, tuple[UnitT, float]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True, eq=False)
class _KeptEngine(Engine):
    """A Ray engine on its cluster, and its actors that have nothing to do between two works.

    Args:
        engine: whose choices count.
        ray: the package.
        idle: the actors.
        numbers: of the next ones.
    """

    engine: RayEngine
    ray: Any
    idle: list[_Member[Any]] = attrs.field(factory=list)
    numbers: Iterator[int] = attrs.field(factory=count)

    def most_workers(self, num_units: int) -> int:
        """Return how many actors there would be; see `Engine`."""
        return self.engine.most_workers(num_units)

    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Do all units; see `Engine`."""
        queue: UnitQueue[UnitT, EntryT] = UnitQueue(units, self.engine.retries, listener, work.split)
        _Pool(self, work, self.most_workers(len(units)), queue).run()


class _Pool(Generic[UnitT, EntryT]):
    """The actors of a run, and who does what.

    Args:
        kept: the engine, with the actors that are there already; those of this run stay with it.
        work: what is done.
        num_workers: actors, at most.
        queue: the units.
    """

    def __init__(
        self, kept: _KeptEngine, work: Work[UnitT, EntryT], num_workers: int, queue: UnitQueue[UnitT, EntryT]
    ) -> None:
        self._kept = kept
        self._engine = kept.engine
        self._ray = ray = kept.ray
        self._work = ray.put(work)
        self._num_workers = num_workers
        self._queue = queue
        self._members: list[_Member[UnitT]] = []
        self._moved = time.monotonic()

    def run(self) -> None:
        try:
            while not self._queue.is_over:
                self._assign()
                self._hear()
                self._end_stuck()
        except BaseException:
            _dismiss(self._ray, self._members)
            raise
        # One that still loads would do so beside the next work's loading, and do the next with what it ends with.
        _dismiss(self._ray, [member for member in self._members if not member.is_ready])
        self._kept.idle.extend(member for member in self._members if member.is_ready)

    def _assign(self) -> None:
        """Ask for as many actors as there is work for, and give those that are ready units."""
        num_idle = sum(not member.calls for member in self._members)
        wanted = min(self._num_workers - len(self._members), self._queue.num_ready - num_idle)
        self._members += [self._hire() for _ in range(wanted)]
        for num_calls in range(_UNITS_AT_ONCE):
            for member in self._members:
                if not member.is_ready or len(member.calls) > num_calls or self._has_suspect(member):
                    continue
                unit = self._queue.take(member.name, is_idle=not member.calls)
                if unit is None:
                    return
                member.calls[member.actor.do.remote(unit)] = (unit, time.monotonic())

    def _has_suspect(self, member: _Member[UnitT]) -> bool:
        return any(self._queue.is_suspect(unit) for unit, _ in member.calls.values())

    def _hire(self) -> _Member[UnitT]:
        """Return an actor with the work of this run, one that has nothing to do or a new one."""
        member = self._kept.idle.pop() if self._kept.idle else self._start()
        member.is_ready, member.opening = False, member.actor.open.remote(self._work)
        return member

    def _start(self) -> _Member[UnitT]:
        actor = (
            self._ray.remote(_Actor)
            .options(
                num_cpus=self._engine.cpus_per_worker,
                num_gpus=self._engine.gpus_per_worker or None,
                max_concurrency=_UNITS_AT_ONCE,
            )
            .remote(self._engine.cpus_per_worker, self._engine.stores)
        )
        return _Member(actor, f"actor {next(self._kept.numbers)}")

    def _hear(self) -> None:
        """Wait for what is done, no longer than until something else is due."""
        pending = {call: member for member in self._members for call in member.calls}
        pending |= {member.opening: member for member in self._members if not member.is_ready}
        seconds = min(self._queue.seconds_to_next() or _LOOK_SECONDS, _LOOK_SECONDS)
        if not pending:
            time.sleep(seconds)
            return
        done, _ = self._ray.wait(list(pending), num_returns=1, timeout=seconds)
        for call in done:
            member = pending[call]
            self._moved = time.monotonic()
            try:
                kind, value = self._ray.get(call)
            except self._ray.exceptions.ObjectLostError:
                # Large ones stay where they are made until they are fetched, and no task of an actor is run again.
                self._bury(member, "lost its machine, and with it a result that was not fetched yet")
                continue
            except self._ray.exceptions.RayError as error:
                self._bury(member, f"died ({_first_line(error)})")
                continue
            if kind == "fatal":
                raise FatalError(value)
            if kind == "open":
                member.is_ready = True
                if not member.node:
                    member.node, member.name = value, f"{member.name} ({value})"
                continue
            unit, _ = member.calls.pop(call)
            if kind == "failed":
                self._queue.fail(unit, value)
            else:
                entry, num_steps = value
                self._queue.advance(num_steps)
                self._queue.finish(unit, entry)

    def _end_stuck(self) -> None:
        """End and replace actors that are stopped or stuck: Ray itself waits for them without end."""
        now, limit = time.monotonic(), self._engine.unit_seconds
        for member in tuple(self._members):
            if any(now - began > limit for _, began in member.calls.values()):
                self._bury(member, f"had a unit for {limit:g} s (it may be stopped or stuck)")
        if not any(member.calls for member in self._members) and self._queue.num_ready and now - self._moved > limit:
            raise ValueError(
                f"no actor was ready within {limit:g} s: the cluster has no room for {self._engine.cpus_per_worker} "
                f"cores and {self._engine.gpus_per_worker:g} GPUs, or loading takes longer (unit_seconds)"
            )

    def _bury(self, member: _Member[UnitT], how: str) -> None:
        if member not in self._members:
            return
        self._members.remove(member)
        _dismiss(self._ray, [member])
        self._queue.lose([unit for unit, _ in member.calls.values()], member.name, how)


class _Actor:
    """A worker in a process of Ray's; two threads call it, so that a unit is finished beside the next one's making."""

    def __init__(self, num_threads: int, stores: StoreLimits) -> None:
        self._num_threads = num_threads
        self._limits = ExitStack()
        self._limits.enter_context(use_limits(stores))
        self._making = threading.Lock()
        self._finishing = threading.Lock()

    def open(self, work: Work[Any, Any]) -> tuple[str, str]:
        device = str(pick_device())
        if device == "cpu":
            torch.set_num_threads(self._num_threads)
        try:
            self._worker = work.open(Place(device=device, num_threads=self._num_threads))
        except Exception as error:  # noqa: BLE001 - whatever it was, the run must hear of it
            return "fatal", fatal_of(error)
        import ray

        return "open", f"{device}, node {ray.get_runtime_context().get_node_id()[:8]}"

    def do(self, unit: Any) -> tuple[str, Any]:
        num_steps = 0

        def advance(steps: int) -> None:
            nonlocal num_steps
            num_steps += steps

        try:
            with self._making:
                finish: Callable[[], Any] = self._worker(unit, advance)
            with self._finishing:
                return "finished", (finish(), num_steps)
        except Exception as error:  # noqa: BLE001 - whatever a unit makes its work raise, the others go on
            try:
                return "failed", failure_of(unit, error)
            except FatalError as fatal:
                return "fatal", str(fatal)


def _dismiss(ray: Any, members: list[_Member[Any]]) -> None:
    """End actors; one may live on where only the way to it is broken, and be dead already."""
    for member in members:
        with suppress(ray.exceptions.RayError):
            ray.kill(member.actor)
    members.clear()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _ray() -> Any:
    with needed("the engine 'ray'", "ray"):
        import ray
    return ray
