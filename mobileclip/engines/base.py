"""The interface of an engine, which runs units of work: in this process, in several, or on a cluster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mobileclip.engines.queue import Listener
from mobileclip.engines.work import EntryT, UnitT, Work
from mobileclip.processes import num_cores


class Engine(ABC):
    """Spreads units over workers."""

    @abstractmethod
    def run(self, work: Work[UnitT, EntryT], units: Sequence[UnitT], listener: Listener[UnitT, EntryT]) -> None:
        """Do all units, in any order, and tell what becomes of each; one that fails too often is set aside.

        Args:
            work: what is done with them.
            units: with names that differ.
            listener: who is told.

        Raises:
            ValueError: if a worker cannot load what it needs, or the run cannot go on. What is finished stays.
        """

    @abstractmethod
    def most_workers(self, num_units: int) -> int:
        """Return how many workers would share so many units, at most; at least 1."""

    @contextmanager
    def kept(self) -> Iterator[Engine]:
        """Yield an engine like this one for several kinds of work, one after another; its processes stay meanwhile."""
        yield self


def default_num_threads(device: str, num_workers: int) -> int:
    """Return how many threads a worker gets: its share of the cores, and no more than keep a GPU busy."""
    share = max(1, num_cores() // num_workers)
    return share if device == "cpu" else max(2, min(16, share))
