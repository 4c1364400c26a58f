"""`mobileclip upgrade`: bring an index to another model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from mobileclip.cli.checks import require_at_least
from mobileclip.cli.flags import Key
from mobileclip.cli.indexing import opened, source_of
from mobileclip.cli.models import Device, ModelFlags, Workers
from mobileclip.processes import default_workers
from mobileclip.storage import printable
from mobileclip.terminal import say
from mobileclip.terminal.status import conclude

_MOST_NAMED = 10


def upgrade(
    index: Annotated[Positional[Path | None], arg(metavar="[INDEX]")] = None,
    /,
    *,
    to: Annotated[str, arg(metavar="NAME|FILE|NAME=FILE")],
    device: Device = "auto",
    trust: bool = False,
    batch_size: Annotated[int, Key()] = 32,
    num_workers: Annotated[int | None, Workers] = None,
) -> None:
    """Bring an index to another model; searches go on with the one of before until all is encoded.

    mobileclip upgrade photos.index --to mobileclip_s2

    Args:
        index: the folder of the index; by default the one in the user's cache that was written last.
        to: the new model; see --model of mobileclip index.
        device: where to compute; see mobileclip index.
        trust: run an export that another machine wrote; see mobileclip classify.
        batch_size: images encoded at once.
        num_workers: processes that read and decode beside the model.
    """
    from mobileclip.collections import IndexOptions
    from mobileclip.collections.store.places import newest_index

    workers = default_workers(num_workers)
    require_at_least(1, batch_size=batch_size, num_workers=workers)
    collection = opened(index or newest_index(), device, trust=trust)
    options = IndexOptions(batch_size=batch_size, num_workers=workers)
    problems = collection.upgrade(source_of(ModelFlags(model=to)), options=options)
    for path, problem in list(problems.items())[:_MOST_NAMED]:
        say(f"{problem}: {printable(path, limit=4096)}", error=True)
    if problems:
        say(f"{len(problems):,} pictures keep the old model: first `mobileclip index --index {collection.path}`", error=True)
    else:
        say(f"all {len(collection):,} pictures are of {collection.store.about.model}")
    conclude(left_out=len(problems), done=len(collection))
