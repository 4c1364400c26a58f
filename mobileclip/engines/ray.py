"""An engine that runs units in actors on a Ray cluster.

Source: Ray Core's actors and fault tolerance, docs.ray.io.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

import attrs
from attrs import validators

from mobileclip.engines.pool import Assignment, Channel, LostWorkerError, Message, PoolEngine, serve
from mobileclip.engines.units import Work, WorkerResources
from mobileclip.extras import needed
from mobileclip.hardware import AUTO
from mobileclip.storage import StoreLimits, store_limits

# Interval between checks whether an actor is reachable again.
_AWAY_SECONDS = 0.2
# Number of characters of a machine's id to show.
_ID = 8


@attrs.frozen(kw_only=True)
class RayEngine(PoolEngine):
    """An engine with actors on a Ray cluster, by default on a new local cluster.

    All machines need access to source and output. The engine replaces a dead or stuck actor, and counts a failed
    attempt for each unfinished unit of the actor. The loss of a machine, for example by preemption, does not count as a
    failed attempt: other actors get the units of the machine, including finished units if their entries were lost. An
    actor waits until the cluster has enough free cores and GPUs.

    Args:
        address: address of the cluster, such as `auto` or `ray://head:10001`; None for the cluster to which this
            process is connected, or else a new cluster on this machine.
        max_workers: maximum number of actors.
        cpus_per_worker: number of cores, and of CPU threads, per actor.
        gpus_per_worker: number of GPUs per actor; with a fraction, several actors share a GPU.
        progress_seconds: time without progress, in seconds, after which an actor counts as stuck; also the timeout for
            starting the first actor.
        retries: limits for retrying failed units.
    """

    address: str | None = None
    max_workers: int = attrs.field(default=1, validator=validators.gt(0))
    cpus_per_worker: int = attrs.field(default=1, validator=validators.gt(0))
    gpus_per_worker: float = attrs.field(default=0.0, validator=validators.ge(0))

    def most_workers(self, num_units: int) -> int:
        """Return the number of actors for a number of units, at most one per unit; see `Engine`."""
        return min(self.max_workers, max(1, num_units))

    @contextmanager
    def channels(self) -> Iterator[Callable[[], Channel]]:
        """Connect to the cluster, and yield a function that starts an actor."""
        with needed("the engine 'ray'", "ray"):
            import ray
        started_here = not ray.is_initialized()
        if started_here:
            with _own_signals():
                ray.init(address=self.address, log_to_driver=False, include_dashboard=False)
        # One thread per group: Ray runs the calls of a group in order.
        remote: Any = ray.remote
        actor = remote(concurrency_groups={"tell": 1, "hear": 1})(_Actor).options(
            num_cpus=self.cpus_per_worker, num_gpus=self.gpus_per_worker or None
        )
        try:
            yield lambda: _Calls(ray, actor.remote(store_limits()))
        finally:
            if started_here:
                ray.shutdown()

    def assignments(self, work: Work[Any, Any], num_workers: int) -> Iterator[Assignment]:
        """Yield one assignment per actor."""
        resources = WorkerResources(device=AUTO, num_threads=self.cpus_per_worker)
        for _ in range(num_workers):
            yield Assignment(work=work, resources=resources, torch_threads=self.cpus_per_worker)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore this process's SIGTERM handler after `ray.init`, which installs a handler that ends the process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


class _Actor:
    """A Ray actor that runs a worker in a thread."""

    def __init__(self, stores: StoreLimits) -> None:
        import ray

        self._received: SimpleQueue[Any] = SimpleQueue()
        self._said: SimpleQueue[Message] = SimpleQueue()
        where = f"node {ray.get_runtime_context().get_node_id()[:_ID]}"
        told = (self._received.get, self._said.put, where, stores)
        threading.Thread(target=serve, args=told, daemon=True).start()

    def tell(self, message: Any) -> None:
        self._received.put(message)

    def hear(self) -> list[Message]:
        """Wait for a message of the worker, and return all messages that have arrived."""
        said = [self._said.get()]
        while not self._said.empty():
            said.append(self._said.get())
        return said


class _Calls(Channel):
    """A channel to a worker in a Ray actor."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor, self._where = ray, actor, ""
        self._hearing: Any = None
        self._said: deque[Message] = deque()

    def send(self, message: Any) -> None:
        self._actor.tell.options(concurrency_group="tell").remote(message)

    def receive(self, seconds: float) -> Message | None:
        if not self._said:
            self._hear(seconds)
        if not self._said:
            return None
        message = self._said.popleft()
        self._where = message[2] if message[0] == "ready" else self._where
        return message

    def end(self) -> None:
        with suppress(self._ray.exceptions.RayError):  # the actor may be unreachable or already dead
            self._ray.kill(self._actor)

    def _hear(self, seconds: float) -> None:
        errors = self._ray.exceptions
        if self._hearing is None:
            self._hearing = self._actor.hear.options(concurrency_group="hear").remote()
        if not self._ray.wait([self._hearing], timeout=seconds)[0]:
            return
        call, self._hearing = self._hearing, None
        try:
            self._said.extend(self._ray.get(call))
        except errors.ActorUnavailableError:
            # Within seconds, the cluster detects whether the machine is lost or reachable again.
            time.sleep(min(seconds, _AWAY_SECONDS))
        except errors.RayError as error:
            first_line = (str(error).strip().splitlines() or [""])[0]
            machines = [node["NodeID"][:_ID] for node in self._ray.nodes() if not node["Alive"]]
            with_machine = any(map(self._where.endswith, machines))
            raise LostWorkerError(f"died ({type(error).__name__}: {first_line})", with_machine=with_machine) from None
