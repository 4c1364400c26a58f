"""The indexing of files as work for an engine: groups of files that workers read and encode, each with a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import attrs

from mobileclip.collections.reading.findings import Findings
from mobileclip.collections.reading.options import IndexOptions
from mobileclip.collections.reading.reader import FileReader, FileTask, KnownContent
from mobileclip.collections.reading.scanning import FoundFile
from mobileclip.collections.store.about import ModelSource
from mobileclip.encoders.checkpoints.exports import is_export
from mobileclip.engines import OnProgress, Place, Work, Worker
from mobileclip.inference.identity import ModelIdentity
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inference.quickening import quickened

# Pictures of a group: what takes a worker some seconds, and no more than its share.
_MOST_PICTURES, _LEAST_PICTURES = 256, 16
_GROUPS_A_WORKER = 8


@attrs.frozen(kw_only=True, eq=False)
class IndexUnit:
    """Files that are read by one worker.

    Args:
        name: of the first one, and how many others there are.
        tasks: the files.
        known: what of them need not be encoded.
    """

    name: str
    tasks: tuple[FileTask, ...]
    known: KnownContent


def units_of(
    tasks: Sequence[FileTask],
    known_of: Callable[[FoundFile], KnownContent],
    num_workers: int,
    suspects: Collection[str] = (),
) -> list[IndexUnit]:
    """Return files as groups: some hundred pictures each, and shards and videos one by one.

    Args:
        tasks: the files.
        known_of: says what need not be encoded of a file.
        num_workers: that share them.
        suspects: paths of pictures that were set aside before, which come one by one.
    """
    pictures = [task for task in tasks if task.file.kind == "picture" and task.file.path not in suspects]
    share = -(-len(pictures) // (_GROUPS_A_WORKER * num_workers))
    size = min(max(share, _LEAST_PICTURES), _MOST_PICTURES)
    groups = [tuple(pictures[start : start + size]) for start in range(0, len(pictures), size)]
    groups += [(task,) for task in tasks if task.file.kind != "picture" or task.file.path in suspects]
    return [_unit(group, known_of) for group in groups]


def _unit(group: tuple[FileTask, ...], known_of: Callable[[FoundFile], KnownContent]) -> IndexUnit:
    known = [known_of(task.file) for task in group]
    return IndexUnit(
        name=_name(group),
        tasks=group,
        known=KnownContent(
            pictures={size: hashes for one in known for size, hashes in one.pictures.items()},
            videos=frozenset(sha256 for one in known for sha256 in one.videos),
        ),
    )


def _name(group: Sequence[FileTask]) -> str:
    first, num_others = group[0].file.path, len(group) - 1
    return f"{first} and {num_others:,} other{'s' if num_others > 1 else ''}" if num_others else first


@attrs.frozen(kw_only=True, eq=False)
class IndexWork(Work[IndexUnit, Findings]):
    """What workers do with the files; their paths, and the model's, lead to the same content everywhere.

    Args:
        source: where the model comes from.
        trust: see `update`.
        identity: of the model.
        folder: of the index, for messages.
        options: how.
        num_pictures: about how many a worker gets.
        examples: pictures that forms of the model are tried on.
    """

    source: ModelSource
    trust: bool
    identity: ModelIdentity
    folder: str
    options: IndexOptions
    num_pictures: int
    examples: tuple[FoundFile, ...]

    def open(self, place: Place) -> Worker[IndexUnit, Findings]:
        """Load the model, in its fastest form where that is worth while.

        Raises:
            ValueError, OSError: if it cannot be loaded, or is another one.
        """
        device = "cpu" if is_export(self.source.checkpoint or self.source.model or "") else place.device
        clip, identity = self.source.load(device, trust=self.trust)
        self.identity.require_same(
            identity, here=f"the index {self.folder}", there="what a worker has loaded its model from"
        )
        examples = (Path(file.path) for file in self.examples)
        clip = quickened(clip, examples, self.num_pictures, precision=self.options.precision, show_progress=False)
        return partial(self._read, clip)

    def split(self, unit: IndexUnit) -> list[IndexUnit]:
        """Return the halves of a group of pictures, of which one may be what fails; none of a single file."""
        middle = len(unit.tasks) // 2
        halves = (unit.tasks[:middle], unit.tasks[middle:]) if middle else ()
        return [attrs.evolve(unit, name=_name(half), tasks=half) for half in halves]

    def _read(self, clip: ImageTextModel, unit: IndexUnit, on_progress: OnProgress, /) -> Callable[[], Findings]:
        reader = FileReader(unit.tasks, unit.known, self.options)
        for _ in reader.read(clip, num_workers=1):
            on_progress(1)
        found = reader.take()
        return lambda: found
