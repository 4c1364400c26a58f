"""Flags with which commands share their work among processes or machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import attrs

from mobileclip.cli.checks import require_at_least
from mobileclip.cli.models import Workers

if TYPE_CHECKING:
    from mobileclip.engines import Engine


@attrs.frozen(kw_only=True)
class Sharing:
    """Flags that divide a command's work among processes or the machines of a cluster.

    Args:
        num_workers: processes, or with Ray the actors that there may be; the result does not depend on it.
        engine: local for processes on this machine, ray for a cluster, whose machines need the same paths.
        ray_address: Ray only: the cluster to join, such as auto; by default one is started on this machine.
        shard_seconds: time limit for one shard; a process that takes longer is replaced, where there are several.
        tries: attempts at a shard whose store, disk or process fails; others are done meanwhile.
        pause_seconds: pause before the second try.
        pause_growth: factor by which each further pause is longer.
    """

    num_workers: Annotated[int, Workers] = 1
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    shard_seconds: float = 3600.0
    tries: int = 3
    pause_seconds: float = 10.0
    pause_growth: float = 4.0

    def build(self) -> Engine:
        """Return the engine.

        Raises:
            ValueError: if a number is out of its range.
        """
        from mobileclip.engines import LocalEngine, RayEngine, Retries

        require_at_least(1, num_workers=self.num_workers)
        retries = Retries(tries=self.tries, pause_seconds=self.pause_seconds, pause_growth=self.pause_growth)
        if self.engine == "ray":
            return RayEngine(
                address=self.ray_address,
                max_workers=self.num_workers,
                progress_seconds=self.shard_seconds,
                retries=retries,
            )
        return LocalEngine(
            num_workers=self.num_workers, devices=("cpu",), progress_seconds=self.shard_seconds, retries=retries
        )
