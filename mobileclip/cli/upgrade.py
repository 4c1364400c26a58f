"""`mobileclip upgrade`: bring an index to another model."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import arg

from mobileclip.cli.checks import require_at_least
from mobileclip.cli.indexing import IndexName, opened, source_of
from mobileclip.cli.models import Device, ModelFlags, Workers
from mobileclip.processes import default_workers
from mobileclip.storage import printable
from mobileclip.terminal import say
from mobileclip.terminal.status import conclude

_MOST_NAMED = 10


def upgrade(
    *,
    to: Annotated[str, arg(metavar="NAME|FILE|NAME=FILE")],
    index_name: IndexName = None,
    device: Device = "auto",
    trust: bool = False,
    batch_size: int = 32,
    num_workers: Annotated[int | None, Workers] = None,
) -> None:
    """Bring an index to another model: searches use the model of before until all pictures are encoded.

    mobileclip upgrade --to mobileclip_s2 --index photos.index

    Args:
        to: the new model; see --model of mobileclip index.
        index_name: see mobileclip search.
        device: where to compute; see mobileclip index.
        trust: run an export that another machine wrote; see mobileclip classify.
        batch_size: images encoded at once.
        num_workers: processes that read and decode beside the model.
    """
    from mobileclip.collections import IndexOptions

    workers = default_workers(num_workers)
    require_at_least(1, batch_size=batch_size, num_workers=workers)
    collection = opened(index_name, device, trust=trust)
    options = IndexOptions(batch_size=batch_size, num_workers=workers)
    problems = collection.upgrade(source_of(ModelFlags(model=to)), options=options)
    for path, problem in list(problems.items())[:_MOST_NAMED]:
        say(f"{problem}: {printable(path, limit=4096)}", error=True)
    if problems:
        say(
            f"{len(problems):,} pictures cannot be read, and the index stays of {collection.store.about.model}: bring "
            f"it up to date by `mobileclip index --index {collection.path}`, and run this again",
            error=True,
        )
    else:
        say(f"all {len(collection):,} pictures are of {collection.store.about.model}")
    conclude(left_out=len(problems), done=not problems)
