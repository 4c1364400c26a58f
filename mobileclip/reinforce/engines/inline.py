"""This process, with teachers that are loaded already."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mobileclip.data import Unit
from mobileclip.reinforce.captioners import Captioner
from mobileclip.reinforce.engines.base import Engine, Entries
from mobileclip.reinforce.spec import ReinforcementSpec
from mobileclip.reinforce.teachers import TeacherEnsemble
from mobileclip.reinforce.worker import OnSamples, ShardWorker, default_num_threads
from mobileclip.storage import StoreLimits, use_limits


@attrs.frozen(kw_only=True, eq=False)
class InlineEngine(Engine):
    """Works in this process, with teachers that no spec describes.

    Args:
        teachers: whose embeddings are stored, instead of the spec's; None for captions alone.
        captioner: who writes synthetic captions, instead of the spec's; None for none.
        num_threads: batches in work at once; None for one per core.
        stores: how long stores are waited for.
    """

    teachers: TeacherEnsemble | None = None
    captioner: Captioner | None = None
    num_threads: int | None = None
    stores: StoreLimits = attrs.field(factory=StoreLimits)

    def run(self, spec: ReinforcementSpec, units: Sequence[Unit], on_samples: OnSamples) -> Entries:
        """Make the shards of all units; see `Engine`."""
        worker = ShardWorker(
            spec=spec,
            teachers=self.teachers,
            captioner=self.captioner,
            num_threads=self.num_threads or default_num_threads("cpu", 1),
        )
        return one_after_another(worker, units, on_samples, self.stores)


def one_after_another(
    worker: ShardWorker, units: Sequence[Unit], on_samples: OnSamples, stores: StoreLimits
) -> Entries:
    """Yield the entries of the units, made in this process."""
    for unit in units:
        with use_limits(stores):
            entry = worker(unit, on_samples)
        yield entry
