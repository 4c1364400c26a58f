"""Small vectors of an index: codes of its embeddings in a file beside them, which SQLite knows the length of.

Of many, another file has the codes once more, in the order of cells. They are nothing but a cache: the embeddings stay,
and whatever has no codes yet is compared by its embedding.
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
from mobileclip.collections.store.lists import Cells, Lists, Members, read_lists, write_lists
from mobileclip.inputs import VectorKind
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import strict
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

_NAME = re.compile(r"(codes|lists)-([0-9]{8})\.(int8|int4|bits)")
_TABLE = """
CREATE TABLE IF NOT EXISTS codes (
    codes TEXT NOT NULL, vectors TEXT NOT NULL, num_codes INTEGER NOT NULL, coder BLOB NOT NULL, recall TEXT,
    lists TEXT, cells BLOB)
"""


@attrs.frozen(kw_only=True, field_transformer=strict)
class Recall:
    """How many of the nearest pictures are found by small vectors.

    Args:
        kind: of the vectors.
        num_bytes: of each, in memory, with what is kept beside the codes.
        recall: share of the ten nearest that are found, from 0 to 1; of fewer pictures, of all but one.
        num_queries: pictures of the collection that were asked for what is like them; codes were not fitted on them.
        num_pictures: of the collection at that time.
        shortlist: pictures of a query that are compared by their stored embeddings.
        share: of the codes that are compared with a query.

    Raises:
        ValueError: if a value is none of these.
    """

    kind: VectorKind
    num_bytes: int = attrs.field(validator=validators.gt(0))
    recall: float = attrs.field(validator=[validators.ge(0), validators.le(1)])
    num_queries: int = attrs.field(validator=validators.ge(0))
    num_pictures: int = attrs.field(validator=validators.ge(0))
    shortlist: int = attrs.field(validator=validators.ge(0))
    share: float = attrs.field(default=1.0, validator=[validators.gt(0), validators.le(1)])

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.kind} vectors, {self.num_bytes:,} bytes a picture in memory: {self.recall:.1%} of the ten nearest "
            f"are found (measured with {self.num_queries:,} of {self.num_pictures:,} pictures)"
        )


@attrs.frozen(kw_only=True, eq=False)
class Small:
    """Codes of the embeddings of a snapshot.

    Shape:
        codes: `(count, coder.num_bytes)`, of the first embeddings in their file, those of removed pictures too;
        places: `(pictures,)`, int64, rising, in that file.

    Args:
        coder: that made them.
        codes: as many as there are by now.
        places: of the pictures of the snapshot.
        lists: of most of the codes; None of few.
    """

    coder: Coder
    codes: Codes
    places: NDArray[np.int64]
    lists: Lists | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of a picture in memory: its code and, of lists, its part of all that is kept beside, rounded up."""
        if self.lists is None:
            return self.coder.num_bytes
        coder, cells = self.coder, self.lists.cells
        beside = (
            coder.mean,
            coder.basis,
            coder.scale,
            cells.directions,
            cells.centres,
            cells.starts,
            self.lists.places,
        )
        return coder.num_bytes + -(-sum(one.nbytes for one in beside) // len(self.places))


@attrs.frozen(kw_only=True, eq=False)
class SmallFile:
    """What SQLite knows of codes.

    Args:
        codes: the name of their file.
        vectors: the name of the file of embeddings, whose first ones they are of.
        count: how many there are.
        coder: that makes them.
        recall: that was measured; None until then.
        lists: the name of the file of lists, and their cells; None where there are none.
    """

    codes: str
    vectors: str
    count: int
    coder: Coder
    recall: Recall | None
    lists: tuple[str, Cells] | None


def small_file(db: sqlite3.Connection, dim: int) -> SmallFile | None:
    """Return what is known of codes; None where there are none, or none that can be read.

    Args:
        db: of an index.
        dim: numbers in an embedding.
    """
    if not has_table(db, "codes") or (found := db.execute("SELECT * FROM codes").fetchone()) is None:
        return None
    codes, vectors, count, coder, recall, lists, cells = found
    if not all(_NAME.fullmatch(str(name)) for name in (codes, lists or codes)):
        logger.warning("small vectors are not used, since the index names them %r", codes)
        return None
    try:
        return SmallFile(
            codes=codes,
            vectors=vectors,
            count=int(count),
            coder=Coder.read(coder, dim),
            recall=None if recall is None else from_json(recall, Recall),
            lists=None if lists is None else (lists, Cells.read(cells, dim)),
        )
    except (TypeError, ValueError) as error:
        logger.warning("small vectors are not used, and made anew by the next mobileclip index: %s", error)
        return None


def read_small(db: sqlite3.Connection, folder: Path, vectors: str, places: NDArray[np.int64], dim: int) -> Small | None:
    """Return the codes of the pictures of a snapshot; None where all embeddings are to be compared.

    Codes are mapped, or copied where another machine has the disk; lists are used where they can be mapped.

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
    try:
        codes = _mapped(folder / known.codes, known.count, known.coder)
        files.check(folder / known.codes, codes, files.sums_in(db, known.codes)[-1:])
        if is_on_network(folder):
            return Small(coder=known.coder, codes=codes.copy(), places=places)
        return Small(coder=known.coder, codes=codes, places=places, lists=_lists(db, folder, known))
    except (OSError, ValueError) as error:
        logger.warning("small vectors are not used, and made anew by the next mobileclip index: %s", error)
        return None


def _lists(db: sqlite3.Connection, folder: Path, known: SmallFile) -> Lists | None:
    if known.lists is None:
        return None
    name, cells = known.lists
    try:
        share = 1.0 if known.recall is None else known.recall.share
        return read_lists(folder / name, cells, known.coder, share, files.sums_in(db, name)[-1:])
    except (OSError, ValueError) as error:
        logger.warning("all codes are compared, until the next mobileclip index: %s", error)
        return None


def begin_small(folder: Path, vectors: str, coder: Coder) -> None:
    """Have an index hold codes of a coder from now on, and none yet; the caller holds the index.

    Raises:
        OSError: if it cannot be written.
    """
    with changing(folder) as db:
        db.execute(_TABLE)
        forget_small(db)
        name = _next_name(folder, "codes", coder)
        db.execute("INSERT INTO codes VALUES (?, ?, 0, ?, NULL, NULL, NULL)", (name, vectors, coder.written()))


def renew_lists(folder: Path, known: SmallFile, cells: Cells, members: Members) -> None:
    """Have the codes of some embeddings in lists; what is found is to be measured anew; the caller holds the index.

    Args:
        folder: of the index.
        known: of its codes.
        cells: that embeddings are in.
        members: of the cells.

    Raises:
        OSError: if it cannot be written.
    """
    name = _next_name(folder, "lists", known.coder)
    codes = _mapped(folder / known.codes, known.count, known.coder)
    kept, sums = write_lists(folder / name, cells, members, codes, known.coder)
    with changing(folder) as db:
        db.execute("DELETE FROM sums WHERE vectors LIKE 'lists-%'")
        db.executemany("INSERT INTO sums VALUES (?, ?, ?, ?)", ((name, *one) for one in sums))
        db.execute("UPDATE codes SET lists = ?, cells = ?, recall = NULL", (name, kept.written()))
        db.execute("UPDATE state SET changes = changes + 1")


def _next_name(folder: Path, what: str, coder: Coder) -> str:
    """Return a name that no file has: those of before may be mapped by others."""
    before = [found for path in folder.iterdir() if (found := _NAME.fullmatch(path.name)) is not None]
    return f"{what}-{max((int(one[2]) + 1 for one in before), default=0):08d}.{coder.kind}"


def append_codes(folder: Path, codes: Codes, known: SmallFile) -> SmallFile:
    """Add codes of the next embeddings, all of them or nothing; the caller holds the index.

    Raises:
        OSError: if they cannot be written.
    """
    with changing(folder) as db:
        sums = files.append(folder / known.codes, [codes], behind=known.count * known.coder.num_bytes)
        db.executemany("INSERT INTO sums VALUES (?, ?, ?, ?)", ((known.codes, *one) for one in sums))
        db.execute("UPDATE codes SET num_codes = ?", (known.count + len(codes),))
        db.execute("UPDATE state SET changes = changes + 1")
    return attrs.evolve(known, count=known.count + len(codes))


def note_recall(folder: Path, recall: Recall) -> None:
    """Remember what was measured; the caller holds the index."""
    with changing(folder) as db:
        db.execute("UPDATE codes SET recall = ?", (to_json(recall),))
        db.execute("UPDATE state SET changes = changes + 1")


def are_whole(db: sqlite3.Connection, folder: Path, known: SmallFile) -> bool:
    """Return whether all codes are what was written, those in lists too."""
    try:
        mapped = _mapped(folder / known.codes, known.count, known.coder)
        files.check(folder / known.codes, mapped, files.sums_in(db, known.codes))
        if known.lists is not None:
            read_lists(folder / known.lists[0], known.lists[1], known.coder, 1, files.sums_in(db, known.lists[0]))
    except (OSError, ValueError) as error:
        logger.warning("small vectors are made anew: %s", error)
        return False
    return True


def forget_small(db: sqlite3.Connection) -> None:
    """Forget all codes; where there are to be some, they are fitted anew when the index is next written to."""
    # The table `small` had codes that knew no lists.
    db.execute("DROP TABLE IF EXISTS small")
    if has_table(db, "codes"):
        db.execute("DELETE FROM sums WHERE vectors LIKE 'codes-%' OR vectors LIKE 'lists-%'")
        db.execute("DELETE FROM codes")
        db.execute("UPDATE state SET changes = changes + 1")


def remove_codes_but(folder: Path, *names: str) -> None:
    """Remove files of codes and of lists that have none of some names; the caller holds the index."""
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name) and path.name not in names:
            with suppress(OSError):
                path.unlink()


def _mapped(path: Path, count: int, coder: Coder) -> Codes:
    if not count:
        return empty_codes(coder, 0)
    if path.stat().st_size < count * coder.num_bytes:
        raise ValueError(f"{path} is damaged: it is shorter than its {count:,} codes")
    return np.asarray(np.memmap(path, empty_codes(coder, 0).dtype, mode="c", shape=(count, coder.num_bytes)))
