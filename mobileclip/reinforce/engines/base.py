"""What an engine is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence

from mobileclip.data import Unit
from mobileclip.reinforce.manifest import ShardEntry
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.worker import OnSamples

Entries = Generator[ShardEntry, None, None]
"""What an engine has finished, one after another; closing it ends the work."""


class Engine(ABC):
    """Spreads the units of a reinforcement over workers."""

    @abstractmethod
    def run(self, spec: ReinforcementSpec, units: Sequence[Unit], on_samples: OnSamples) -> Entries:
        """Make the shards of all units and yield their entries as they are finished, in any order.

        Args:
            spec: the choices.
            units: what is to be done.
            on_samples: called with the number of samples that were finished since the last call.

        Raises:
            ValueError: if a unit cannot be done; the others may or may not be.
        """
