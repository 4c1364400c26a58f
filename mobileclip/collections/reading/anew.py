"""Pictures that an index has, read and encoded once more, where they are as they were."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.store.concepts import Example, Key
from mobileclip.data.images.limits import ImageError
from mobileclip.data.shards.files import read_shard
from mobileclip.data.skips import SkipReport
from mobileclip.inference.encoding import Encoded, Moment, Picture, encode_pictures
from mobileclip.inference.image_text_model import ImageTextModel

Known = Mapping[str, Any]
"""What is known of a picture, by column."""
COLUMNS = ("id", "path", "part", "size", "mtime_ns", "sha256", "time")
"""What must be known of a picture to read it anew."""


@attrs.frozen(kw_only=True, eq=False)
class ReadAnew:
    """A picture that was read anew.

    Args:
        row: what is known of it.
        embedding: `(dim,)`, of unit length; None where there is none.
        problem: why there is none: its file is gone, has changed, or cannot be read.
    """

    row: Known
    embedding: NDArray[np.float32] | None = None
    problem: Literal["gone", "changed", "unreadable"] | None = None


def encode_anew(
    rows: Iterable[Known], clip: ImageTextModel, *, reduced: bool, batch_size: int = 32, num_workers: int = 1
) -> Iterator[ReadAnew]:
    """Yield pictures with the embeddings that another model gives them, or with why there are none.

    Args:
        rows: what is known of them; those of one shard side by side, for which it is read once.
        clip: the model.
        reduced: see `read_tower_image`.
        batch_size: pictures encoded at once.
        num_workers: processes that read and decode beside the model; one reads in this process.

    Raises:
        LostProcessError: if one of the processes ends abruptly.
    """
    aside: list[ReadAnew] = []
    encoded = encode_pictures(
        clip, _pictures(rows, aside), reduced=reduced, batch_size=batch_size, num_workers=num_workers
    )
    for one in encoded:
        yield _compared(one)
        while aside:
            yield aside.pop()
    yield from aside


def encode_examples(
    examples: Iterable[Example], clip: ImageTextModel, *, reduced: bool
) -> dict[Key, NDArray[np.float32]]:
    """Return the embeddings of examples outside an index, of those whose files are where and as they were given.

    Args:
        examples: of concepts; frames of videos are left out.
        clip: see `encode_anew`.
        reduced: see `encode_anew`.
    """
    rows = [dict.fromkeys(COLUMNS) | {"path": one.path, "sha256": one.sha256} for one in examples if one.time is None]
    read = encode_anew(rows, clip, reduced=reduced)
    return {(one.row["sha256"], None): one.embedding for one in read if one.embedding is not None}


def _compared(one: Encoded[Known]) -> ReadAnew:
    """Return a picture with its embedding if it is the one that the index has."""
    row, read = one.picture.key, one.read
    if isinstance(read, ImageError):
        return ReadAnew(row=row, problem="gone" if read.reason == "missing_file" else "unreadable")
    if row["time"] is None and read.sha256 != row["sha256"]:
        return ReadAnew(row=row, problem="changed")
    return ReadAnew(row=row, embedding=one.embedding)


def _pictures(rows: Iterable[Known], aside: list[ReadAnew]) -> Iterator[Picture[Known]]:
    """Yield the pictures that can be read; the others go aside."""
    for shard, some in groupby(rows, lambda row: None if row["part"] is None else row["path"]):
        if shard is not None:
            yield from _parts(shard, {row["part"]: row for row in some}, aside)
            continue
        for row in some:
            path = Path(row["path"])
            if row["time"] is None:
                yield Picture(key=row, name=row["path"], source=path)
            elif (problem := _change(path, row)) is None:
                yield Picture(key=row, name=row["path"], source=Moment(path=path, seconds=row["time"]))
            else:
                aside.append(ReadAnew(row=row, problem=problem))


def _parts(shard: str, wanted: dict[str, Known], aside: list[ReadAnew]) -> Iterator[Picture[Known]]:
    """Yield pictures of a shard."""
    there = Path(shard).is_file()
    for raw in read_shard(shard, SkipReport(log=False).add) if there else ():
        if raw.key in wanted and raw.image is not None and raw.problem is None:
            yield Picture(key=wanted.pop(raw.key), name=f"{shard}/{raw.key}", source=raw.image)
        if not wanted:
            return
    aside += [ReadAnew(row=row, problem="changed" if there else "gone") for row in wanted.values()]


def _change(path: Path, row: Known) -> Literal["gone", "changed"] | None:
    """Return what became of a video, by its size and time: to hash it may take minutes."""
    try:
        now = path.stat()
    except OSError:
        return "gone"
    return None if (now.st_size, storage.modified_ns(now)) == (row["size"], row["mtime_ns"]) else "changed"
