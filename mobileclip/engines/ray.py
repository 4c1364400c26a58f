"""A Ray cluster: actors, as many as it has room for.

Source: Ray Core's actors and fault tolerance, docs.ray.io.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import attrs
from attrs import validators

from mobileclip.engines.crew import CrewEngine, Member, Transport
from mobileclip.engines.work import Place, Work
from mobileclip.engines.worker import Assignment, Message, serve
from mobileclip.extras import needed
from mobileclip.hardware.devices import AUTO
from mobileclip.storage import StoreLimits, store_limits

# Between two looks at whether an actor is reached again.
_AWAY_SECONDS = 0.2
# So much of a machine's identity is shown.
_ID = 8


@attrs.frozen(kw_only=True)
class RayEngine(CrewEngine):
    """Actors on a Ray cluster, or on this machine where none is joined; source and output must be reachable by all.

    An actor that dies, or that is stopped or stuck, is replaced, and that is a failed try of the units that it had. A
    machine that goes, such as a preempted one, is no failed try: others do the units that it had, also those that were
    done if their entries went with the machine.
    Actors for which the cluster has no room wait for it to grow.

    Args:
        address: of the cluster, such as `auto` or `ray://head:10001`; None for the one this process belongs to, else a
            new one on this machine.
        max_workers: actors, at most.
        cpus_per_worker: cores that an actor takes; so many threads decode and replay in it.
        gpus_per_worker: GPUs that an actor takes; a fraction lets several share one.
        silence_seconds: without a heartbeat, after which an actor that was heard before counts as stopped.
        progress_seconds: without a step of a unit, after which an actor counts as stuck; one at least is ready in this
            time, too.
        retries: how often a unit that fails is tried.
    """

    address: str | None = None
    max_workers: int = attrs.field(default=1, validator=validators.gt(0))
    cpus_per_worker: int = attrs.field(default=1, validator=validators.gt(0))
    gpus_per_worker: float = attrs.field(default=0.0, validator=validators.ge(0))

    def most_workers(self, num_units: int) -> int:
        """Return how many actors there would be; see `Engine`."""
        return min(self.max_workers, max(1, num_units))

    @contextmanager
    def transport(self) -> Iterator[Transport]:
        """Yield calls of actors, with the cluster; see `CrewEngine`."""
        with needed("the engine 'ray'", "ray"):
            import ray
        started_here = not ray.is_initialized()
        if started_here:
            with _own_signals():
                ray.init(address=self.address, log_to_driver=False, include_dashboard=False)
        # A thread each: calls of one group are done in their order.
        remote: Any = ray.remote
        actor = remote(concurrency_groups={"tell": 1, "hear": 1})(_Actor).options(
            num_cpus=self.cpus_per_worker, num_gpus=self.gpus_per_worker or None
        )
        try:
            yield _Calls(ray=ray, start_actor=lambda: actor.remote(self, store_limits()))
        finally:
            if started_here:
                ray.shutdown()

    def assignments(self, work: Work[Any, Any], num_workers: int) -> Iterator[Assignment]:
        """Yield what so many actors are given."""
        place = Place(device=AUTO, num_threads=self.cpus_per_worker)
        for _ in range(num_workers):
            yield Assignment(work=work, place=place, torch_threads=self.cpus_per_worker)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put back who hears SIGTERM, by which a command ends: Ray takes it for itself, and ends the process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


class _Actor:
    """A worker in a process of Ray's."""

    def __init__(self, engine: RayEngine, stores: StoreLimits) -> None:
        import ray

        self._received: SimpleQueue[Any] = SimpleQueue()
        self._said: SimpleQueue[Message] = SimpleQueue()
        where = f"node {ray.get_runtime_context().get_node_id()[:_ID]}"
        told = (self._received.get, self._said.put, where, engine.heartbeat_seconds, stores)
        threading.Thread(target=serve, args=told, daemon=True).start()

    def tell(self, message: Any) -> None:
        self._received.put(message)

    def hear(self) -> list[Message]:
        """Return what was said, as soon as there is something."""
        said = [self._said.get()]
        while not self._said.empty():
            said.append(self._said.get())
        return said


@attrs.frozen(kw_only=True, eq=False)
class _Calls(Transport):
    """Actors, by calls of them; `hearing` has those that return what an actor says next, by its number."""

    ray: Any
    start_actor: Callable[[], Any]
    hearing: dict[int, Any] = attrs.field(factory=dict)
    queues_workers = True

    def start(self) -> Any:
        return self.start_actor()

    def send(self, member: Member, message: Any) -> None:
        member.handle.tell.options(concurrency_group="tell").remote(message)

    def receive(self, members: Sequence[Member], seconds: float) -> Iterator[tuple[Member, Sequence[Message] | str]]:
        for member in members:
            if member.number not in self.hearing:
                self.hearing[member.number] = member.handle.hear.options(concurrency_group="hear").remote()
        by_call = {self.hearing[member.number]: member for member in members}
        self.ray.wait(list(by_call), num_returns=1, timeout=seconds)
        # One that says much would be the first of one each time.
        is_away = False
        for call in self.ray.wait(list(by_call), num_returns=len(by_call), timeout=0)[0]:
            member = by_call[call]
            del self.hearing[member.number]
            try:
                said: list[Message] | str = self.ray.get(call)
            except self.ray.exceptions.ActorUnavailableError:
                # Whether its machine is gone, or is reached again, the cluster finds out within seconds.
                is_away = True
                continue
            except self.ray.exceptions.RayError as error:
                said = f"died ({_first_line(error)})"
            yield member, said
        if is_away:
            time.sleep(min(seconds, _AWAY_SECONDS))

    def has_lost_machine(self, member: Member) -> bool:
        return any(not node["Alive"] and member.where.endswith(node["NodeID"][:_ID]) for node in self.ray.nodes())

    def end(self, members: Iterable[Member]) -> None:
        for member in members:
            with suppress(self.ray.exceptions.RayError):  # the way to it may be broken, or it is dead already
                self.ray.kill(member.handle)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
