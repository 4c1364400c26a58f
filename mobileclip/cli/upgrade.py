"""`mobileclip upgrade`: bring an index to another model, by use and at the pace that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from mobileclip.cli.checks import require_at_least
from mobileclip.cli.indexing import opened, source_of
from mobileclip.cli.models import Device, ModelFlags, Workers
from mobileclip.processes import default_workers
from mobileclip.storage import printable
from mobileclip.terminal import say
from mobileclip.terminal.status import conclude

if TYPE_CHECKING:
    from mobileclip.collections import Collection, UpgradeReport

_MOST_NAMED = 10
_LONGEST_NAME = 4096


def upgrade(
    index: Annotated[Positional[Path | None], arg(metavar="[INDEX]")] = None,
    /,
    *,
    to: Annotated[str | None, arg(metavar="NAME|FILE|NAME=FILE")] = None,
    rate: Annotated[float | None, arg(metavar="PICTURES")] = None,
    force: bool = False,
    status: bool = False,
    cancel: bool = False,
    device: Device = "auto",
    trust: bool = False,
    sample: int = 256,
    batch_size: int = 32,
    num_workers: Annotated[int | None, Workers] = None,
) -> None:
    """Bring an index to another model, while it is searched.

    mobileclip upgrade photos.index --to mobileclip_s2

    mobileclip upgrade photos.index --rate 5

    With --to, both models are measured on some pictures, and a worse one is refused. From then on, each search has the
    first pictures that the old model finds encoded anew, keeps them, and ranks by the new one. Without --to, or with a
    --rate, the command encodes the rest; when all is done, the old embeddings go. Pictures that are gone or changed are
    named, and stay as they are until mobileclip index has brought the index up to date. What is finished is kept when
    the command is stopped, and the same command does the rest.

    Args:
        index: the folder of the index; by default the one in the user's cache that was written last.
        to: the new model; see --model of mobileclip index.
        rate: encode the rest, so many pictures per second at most.
        force: take a model that does worse on the captions beside the pictures, or on their folders, too.
        status: print how far the upgrade is, and stop.
        cancel: drop what the new model has encoded, and stay with the old one.
        device: where to compute; see mobileclip index.
        trust: run an export that another machine wrote; see mobileclip classify.
        sample: pictures that both models are measured on.
        batch_size: images encoded at once.
        num_workers: processes that read and decode beside the model, where no --rate is given.
    """
    from mobileclip.collections import IndexOptions
    from mobileclip.collections.store.places import newest_index

    workers = default_workers(num_workers)
    require_at_least(1, batch_size=batch_size, num_workers=workers, sample=sample)
    if (to is not None) + status + cancel > 1:
        raise ValueError("--to, --status and --cancel do different things; give one of them")
    collection = opened(index or newest_index(), device, trust=trust)
    if status:
        say(_state(collection))
    elif cancel:
        collection.cancel_upgrade()
        say(f"the index {collection.path} stays with {collection.store.about.model}")
    else:
        if to is not None:
            measured = collection.upgrade_to(source_of(ModelFlags(model=to)), force=force, sample=sample)
            say("\n".join([*(() if measured is None else (str(measured),)), _state(collection)]))
        if to is None or (rate is not None and collection.upgrade_state is not None):
            options = IndexOptions(batch_size=batch_size, num_workers=workers)
            _tell(collection, collection.upgrade(rate=rate, options=options))


def _state(collection: Collection) -> str:
    state = collection.upgrade_state
    if state is None:
        return f"the index {collection.path} is of {collection.store.about.model}, and is not being upgraded"
    return f"{state}; searches encode what they find, and `mobileclip upgrade {collection.path}` the rest"


def _tell(collection: Collection, report: UpgradeReport) -> None:
    """Say what became of the pictures."""
    say(f"{report.num_encoded:,} pictures were encoded")
    for path, problem in report.named[:_MOST_NAMED]:
        say(f"{problem}, and stays in the old space: {printable(path, limit=_LONGEST_NAME)}", error=True)
    num_left = sum(report.left.values())
    if num_left > _MOST_NAMED:
        say(f"and {num_left - _MOST_NAMED:,} others", error=True)
    if report.is_done:
        say(f"all {len(collection):,} pictures are done: {_state(collection)}")
    else:
        say(f"{_state(collection)}; first bring the index up to date: `mobileclip index --index {collection.path}`")
    conclude(left_out=num_left, done=len(collection))
