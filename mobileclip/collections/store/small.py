"""Small vectors of an index: codes of its embeddings in a file beside them, which SQLite knows the length of.

They are nothing but a cache: the embeddings stay, and whatever has no codes yet is compared by its embedding.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import suppress
from pathlib import Path

import attrs
import numpy as np
from attrs import validators
from numpy.typing import NDArray

from mobileclip.collections.store import vectors as files
from mobileclip.collections.store.codes import Coder, Codes, empty_codes
from mobileclip.collections.store.database import changing, has_table, is_on_network
from mobileclip.inputs import VectorKind
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

_NAME = re.compile(r"codes-([0-9]{8})\.(int8|int4|bits)")
_TABLE = """
CREATE TABLE IF NOT EXISTS small (
    codes TEXT NOT NULL, vectors TEXT NOT NULL, num_codes INTEGER NOT NULL, coder BLOB NOT NULL, recall TEXT)
"""
# Codes that are copied at once.
_BLOCK = 65_536


@attrs.frozen(kw_only=True, field_transformer=strict)
class Recall:
    """How many of the nearest pictures are found by small vectors.

    Args:
        kind: of the vectors.
        num_bytes: of each, in memory.
        recall: share of the ten nearest that are found, from 0 to 1; of fewer pictures, of all but one.
        num_queries: pictures of the collection that were asked for what is like them; codes were not fitted on them.
        num_pictures: of the collection at that time.
        shortlist: pictures of a query that are compared by their stored embeddings.

    Raises:
        ValueError: if a value is none of these.
    """

    kind: VectorKind
    num_bytes: int = attrs.field(validator=validators.gt(0))
    recall: float = attrs.field(validator=[validators.ge(0), validators.le(1)])
    num_queries: int = attrs.field(validator=validators.ge(0))
    num_pictures: int = attrs.field(validator=validators.ge(0))
    shortlist: int = attrs.field(validator=validators.ge(0))

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.kind} vectors, {self.num_bytes:,} bytes a picture in memory: {self.recall:.1%} of the ten nearest "
            f"are found (measured with {self.num_queries:,} of {self.num_pictures:,} pictures)"
        )


@attrs.frozen(kw_only=True, eq=False)
class Small:
    """Codes of the first pictures of a snapshot.

    Shape:
        codes: `(count, coder.num_bytes)`, of the pictures with the lowest ids.

    Args:
        coder: that made them.
        codes: as many as there are by now.
    """

    coder: Coder
    codes: Codes


@attrs.frozen(kw_only=True, eq=False)
class SmallFile:
    """What SQLite knows of codes.

    Args:
        codes: the name of their file.
        vectors: the name of the file of embeddings, whose first ones they are of.
        count: how many there are.
        coder: that makes them.
        recall: that was measured; None until then.
    """

    codes: str
    vectors: str
    count: int
    coder: Coder
    recall: Recall | None


def small_file(db: sqlite3.Connection, dim: int) -> SmallFile | None:
    """Return what is known of codes; None where there are none, or none that can be read.

    Args:
        db: of an index.
        dim: numbers in an embedding.
    """
    if not has_table(db, "small") or (found := db.execute("SELECT * FROM small").fetchone()) is None:
        return None
    codes, vectors, count, coder, recall = found
    if _NAME.fullmatch(str(codes)) is None:
        logger.warning("small vectors are not used, since the index names them %r", codes)
        return None
    try:
        measured = None if recall is None else from_json(recall, Recall)
        return SmallFile(codes=codes, vectors=vectors, count=int(count), coder=Coder.read(coder, dim), recall=measured)
    except (TypeError, ValueError) as error:
        logger.warning("small vectors are not used, and made anew by the next mobileclip index: %s", error)
        return None


def read_small(db: sqlite3.Connection, folder: Path, vectors: str, places: NDArray[np.int64], dim: int) -> Small | None:
    """Return the codes of the pictures of a snapshot, in the order of these; None where all are to be compared.

    Codes are mapped, or copied where some pictures were removed.

    Args:
        db: of the index, in the transaction in which the places were read.
        folder: of the index.
        vectors: name of the file of embeddings.
        places: of the pictures in it.
        dim: numbers in an embedding.
    """
    known = small_file(db, dim)
    if known is None or known.vectors != vectors or not known.count or np.any(np.diff(places) <= 0):
        return None
    kept, coder = places[: np.searchsorted(places, known.count)], known.coder
    try:
        mapped = _mapped(folder / known.codes, known.count, coder)
        files.check(folder / known.codes, mapped, _sums(db, known.codes)[-1:])
    except (OSError, ValueError) as error:
        logger.warning("small vectors are not used, and made anew by the next mobileclip index: %s", error)
        return None
    if len(kept) == known.count and not is_on_network(folder):
        return Small(coder=coder, codes=mapped)
    codes = empty_codes(coder, len(kept))
    with (folder / known.codes).open("rb") as file:
        for start in range(0, known.count, _BLOCK):
            block = np.frombuffer(file.read(_BLOCK * coder.num_bytes), codes.dtype).reshape(-1, coder.num_bytes)
            first, end = np.searchsorted(kept, (start, start + len(block)))
            codes[first:end] = block[kept[first:end] - start]
    return Small(coder=coder, codes=codes)


def begin_small(folder: Path, vectors: str, coder: Coder) -> None:
    """Have an index hold codes of a coder from now on, and none yet; the caller holds the index.

    Raises:
        OSError: if it cannot be written.
    """
    with changing(folder) as db:
        db.execute(_TABLE)
        before = [_NAME.fullmatch(str(name)) for (name,) in db.execute("SELECT codes FROM small")]
        number = max((int(one[1]) + 1 for one in before if one is not None), default=0)
        name = f"codes-{number:08d}.{coder.kind}"
        forget_small(db)
        db.execute("INSERT INTO small VALUES (?, ?, 0, ?, NULL)", (name, vectors, coder.written()))


def append_codes(folder: Path, codes: Codes, known: SmallFile) -> SmallFile:
    """Add codes of the next embeddings, all of them or nothing; the caller holds the index.

    Raises:
        OSError: if they cannot be written.
    """
    with changing(folder) as db:
        sums = files.append(folder / known.codes, [codes], behind=known.count * known.coder.num_bytes)
        db.executemany("INSERT INTO sums VALUES (?, ?, ?, ?)", ((known.codes, *one) for one in sums))
        db.execute("UPDATE small SET num_codes = ?", (known.count + len(codes),))
        db.execute("UPDATE state SET changes = changes + 1")
    return attrs.evolve(known, count=known.count + len(codes))


def note_recall(folder: Path, recall: Recall) -> None:
    """Remember what was measured; the caller holds the index."""
    with changing(folder) as db:
        db.execute("UPDATE small SET recall = ?", (to_json(recall),))
        db.execute("UPDATE state SET changes = changes + 1")


def are_whole(db: sqlite3.Connection, folder: Path, known: SmallFile) -> bool:
    """Return whether all codes are what was written."""
    try:
        mapped = _mapped(folder / known.codes, known.count, known.coder)
        files.check(folder / known.codes, mapped, _sums(db, known.codes))
    except (OSError, ValueError) as error:
        logger.warning("small vectors are made anew: %s", error)
        return False
    return True


def forget_small(db: sqlite3.Connection) -> None:
    """Forget all codes; where there are to be some, they are fitted anew when the index is next written to."""
    if has_table(db, "small"):
        db.execute("DELETE FROM sums WHERE vectors LIKE 'codes-%'")
        db.execute("DELETE FROM small")
        db.execute("UPDATE state SET changes = changes + 1")


def remove_codes_but(folder: Path, name: str | None) -> None:
    """Remove files of codes that are not the one of a name; the caller holds the index."""
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name) and path.name != name:
            with suppress(OSError):
                path.unlink()


def _mapped(path: Path, count: int, coder: Coder) -> Codes:
    if not count:
        return empty_codes(coder, 0)
    if path.stat().st_size < count * coder.num_bytes:
        raise ValueError(f"{path} is damaged: it is shorter than its {count:,} codes")
    return np.asarray(np.memmap(path, empty_codes(coder, 0).dtype, mode="c", shape=(count, coder.num_bytes)))


def _sums(db: sqlite3.Connection, name: str) -> list[files.Sum]:
    return db.execute("SELECT first, count, crc32 FROM sums WHERE vectors = ? ORDER BY first", (name,)).fetchall()
