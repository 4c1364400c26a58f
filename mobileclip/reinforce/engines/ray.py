"""A Ray cluster: Ray Data hands the units to a pool of actors that grows and shrinks with the work.

Source: Ray Data's actor pools, docs.ray.io.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
from attrs import validators

from mobileclip.data import Unit
from mobileclip.extras import needed
from mobileclip.hardware.devices import pick_device
from mobileclip.reinforce.engines.base import Engine, Entries
from mobileclip.reinforce.manifest import ShardEntry
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.worker import OnSamples, ShardWorker, unheard
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import StoreLimits, use_limits


@attrs.frozen(kw_only=True)
class RayEngine(Engine):
    """Actors on a Ray cluster, or on this machine where none is joined; source and output must be reachable by all.

    An actor that dies is restarted and its unit done again.

    Args:
        address: of the cluster, such as `auto` or `ray://head:10001`; None for the one this process belongs to, else a
            new one on this machine.
        min_workers: actors that are always there.
        max_workers: actors that the pool grows to.
        cpus_per_worker: cores that an actor takes; so many threads decode and replay in it.
        gpus_per_worker: GPUs that an actor takes; a fraction lets several share one.
        shard_seconds: without a finished shard of any actor, after which the run ends: one may be stopped or stuck.
        stores: how long stores are waited for.
    """

    address: str | None = None
    min_workers: int = attrs.field(default=1, validator=validators.gt(0))
    max_workers: int = attrs.field(default=1, validator=validators.gt(0))
    cpus_per_worker: int = attrs.field(default=1, validator=validators.gt(0))
    gpus_per_worker: float = attrs.field(default=0.0, validator=validators.ge(0))
    shard_seconds: float = attrs.field(default=24 * 3600.0, validator=validators.gt(0))
    stores: StoreLimits = attrs.field(factory=StoreLimits)

    def __attrs_post_init__(self) -> None:
        if self.max_workers < self.min_workers:
            raise ValueError(f"max_workers ({self.max_workers}) must be at least min_workers ({self.min_workers})")

    def run(self, spec: ReinforcementSpec, units: Sequence[Unit], on_samples: OnSamples) -> Entries:
        """Make the shards of all units; see `Engine`. Samples are reported shard by shard."""
        ray = _ray()
        started_here = not ray.is_initialized()
        if started_here:
            ray.init(address=self.address, log_to_driver=False, include_dashboard=False)
        try:
            rows = [{"index": index} for index in range(len(units))]
            done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                fn_constructor_kwargs={
                    "spec": spec,
                    "units": tuple(units),
                    "num_threads": self.cpus_per_worker,
                    "stores": self.stores,
                },
                batch_size=1,
                concurrency=(self.min_workers, self.max_workers),
                num_cpus=self.cpus_per_worker,
                num_gpus=self.gpus_per_worker or None,
            )
            for row in _in_time(done.iter_rows(), self.shard_seconds):
                entry = from_json(row["entry"], ShardEntry)
                on_samples(entry.num_samples)
                yield entry
        finally:
            if started_here:
                ray.shutdown()


def _in_time(rows: Iterable[Any], seconds: float) -> Iterator[Any]:
    """Yield the rows, each within so many seconds: Ray itself waits for a stopped actor without end."""
    arrived: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()

    def take() -> None:
        try:
            for row in rows:
                arrived.put(partial(_given, row))
            arrived.put(partial(_given, None))
        except BaseException as error:  # noqa: BLE001 - it is raised where the rows are taken
            arrived.put(partial(_raised, error))

    threading.Thread(target=take, daemon=True).start()
    while True:
        try:
            row = arrived.get(timeout=seconds)()
        except queue.Empty:
            raise ValueError(
                f"no shard was finished for {seconds:g} s; an actor may be stopped or stuck. Finished shards are kept: "
                "end what hangs, or give larger shards more shard_seconds, and run this again"
            ) from None
        if row is None:
            return
        yield row


def _given(row: Any) -> Any:
    return row


def _raised(error: BaseException) -> Any:
    raise error


class _Actor:
    """A worker in a process of Ray's, that loads the teachers once."""

    def __init__(
        self, *, spec: ReinforcementSpec, units: tuple[Unit, ...], num_threads: int, stores: StoreLimits
    ) -> None:
        import torch

        device = str(pick_device())
        if device == "cpu":
            torch.set_num_threads(num_threads)
        self._units = units
        self._stores = stores
        self._worker = ShardWorker.build(spec, device=device, num_threads=num_threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        with use_limits(self._stores):
            entries = [self._worker(self._units[index], unheard) for index in batch["index"]]
        return {"entry": [to_json(entry) for entry in entries]}


def _ray() -> Any:
    with needed("the engine 'ray'", "ray"):
        import ray
        import ray.data
    return ray
