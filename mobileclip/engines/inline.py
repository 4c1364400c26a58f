"""An engine that runs one unit after another in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence

import attrs
from attrs import validators

from mobileclip.engines.base import Engine, default_num_threads
from mobileclip.engines.overlap import Overlap
from mobileclip.engines.queue import Listener, Retries, UnitQueue
from mobileclip.engines.work import EntryT, Place, UnitT, Work, failure_of
from mobileclip.hardware.devices import AUTO, pick_device


@attrs.frozen(kw_only=True)
class InlineEngine(Engine):
    """Works in this process.

    Args:
        device: such as `cpu` or `cuda:1`; `auto` for the best one there is.
        num_threads: of the worker; None for all cores, or as many as keep a GPU busy.
        retries: how often a unit that fails is tried.
    """

    device: str = AUTO
    num_threads: int | None = attrs.field(default=None, validator=validators.optional(validators.gt(0)))
    retries: Retries = attrs.field(factory=Retries)

    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Do all units; see `Engine`."""
        device = str(pick_device(self.device))
        queue: UnitQueue[UnitT, EntryT] = UnitQueue(units, self.retries, listener, work.split)
        worker = work.open(Place(device=device, num_threads=self.num_threads or default_num_threads(device, 1)))

        def failed(unit: UnitT, error: Exception) -> None:
            queue.fail(unit, failure_of(unit, error))

        with Overlap(worker, queue.finish, failed) as overlap:
            while not queue.is_over:
                unit = queue.take(device)
                if unit is not None:
                    overlap.make(unit, queue.advance)
                    continue
                overlap.wait()
                time.sleep(queue.seconds_to_next())
            overlap.wait()

    def most_workers(self, num_units: int) -> int:  # noqa: ARG002 - as `Engine` does
        """Return one; see `Engine`."""
        return 1
