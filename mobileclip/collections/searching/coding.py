"""Codes of an index are brought up to date with its embeddings: fitted, made, put into lists, and measured."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mobileclip.collections.searching.scan import SHORTLIST, SmallScan
from mobileclip.collections.store.codes import Coder, fit
from mobileclip.collections.store.database import INDEX, changing, opened
from mobileclip.collections.store.lists import cells_of
from mobileclip.collections.store.small import (
    Recall,
    SmallFile,
    append_codes,
    are_whole,
    begin_small,
    forget_small,
    note_recall,
    remove_codes_but,
    renew_lists,
    small_file,
)
from mobileclip.collections.store.snapshot import Snapshot, take_snapshot
from mobileclip.collections.store.store import Store
from mobileclip.collections.store.vectors import Vectors
from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger

logger = get_logger(__name__)

# Embeddings that are coded, or multiplied, at once.
_BLOCK = 8192
# Codes are fitted on so many embeddings, and anew when there are so many times as many as then.
_FITTED, _GROWN = 16_384, 2
_QUERIES, _NEAREST = 200, 10
# By which sums of the same products may differ.
_SLACK = 1e-5
# From so many pictures on, codes are in lists, and anew when so large a part of them is not, or is of removed ones.
_LISTED, _STALE = 65_536, 0.1
# Bytes of a picture that lists have beside its code, cells and coder included.
_BESIDE = 6
# Cells are fitted on so many embeddings each.
_FOR_A_CELL = 64
# Of the nearest pictures, so many are to be found where all codes find as many, or else nearly what these find.
_WANTED, _OF_ALL = {"int8": 0.99, "int4": 0.985, "bits": 0.93}, 0.99
_SHARES = (0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22, 0.25, 0.28, 0.32, 0.4, 0.5, 0.7)


def recall_of(store: Store) -> Recall | None:
    """Return how many of the nearest pictures are found by the small vectors of an index, as it was measured."""
    if store.about.vectors == "float16" or not (store.folder / INDEX).is_file():
        return None
    known = _known(store)
    return None if known is None else known.recall


def renew_codes(store: Store, *, show_progress: bool = True) -> None:
    """Bring the codes of an index up to date with its embeddings; the caller holds the index.

    What is coded is kept, whatever ends this. They are fitted when there are none of the kind that is asked for, and
    anew when there are twice as many pictures as then.

    Args:
        store: of the index.
        show_progress: whether to show how far it is.

    Raises:
        OSError: if they cannot be written.
    """
    kind, known = store.about.vectors, _known(store)
    if kind == "float16":
        if known is not None:
            with changing(store.folder) as db:
                forget_small(db)
        remove_codes_but(store.folder)
        return
    name, vectors = store.vectors()
    snapshot = take_snapshot(store)
    if known is not None and known.coder.kind == kind and len(snapshot) < _GROWN * known.coder.num_fitted:
        with opened(store.folder / INDEX) as db:
            is_kept = known.vectors == name and known.count <= len(vectors) and are_whole(db, store.folder, known)
        if not is_kept:
            begin_small(store.folder, name, known.coder)
    else:
        if known is not None and known.coder.kind == kind:
            logger.warning(
                "small vectors are fitted anew: there are %s pictures, and were %s",
                f"{len(snapshot):,}",
                f"{known.coder.num_fitted:,}",
            )
        begin_small(store.folder, name, _fitted(store, snapshot))
    known = _require(store)
    remove_codes_but(store.folder, known.codes, *(known.lists or ())[:1])
    shown = console(shown=show_progress and len(vectors) > known.count)
    with Progress("coding", total=len(vectors) - known.count, unit="pictures", console=shown) as bar:
        while known.count < len(vectors):
            blocks = vectors[known.count : known.count + 8 * _BLOCK]
            coded = [known.coder.encode(blocks[start : start + _BLOCK]) for start in range(0, len(blocks), _BLOCK)]
            known = append_codes(store.folder, np.concatenate(coded), known)
            bar.advance(len(blocks))
    known = _listed(store, known, vectors, show_progress=show_progress)
    if known.recall is None and len(snapshot) > 1:
        note_recall(store.folder, measured_recall(take_snapshot(store), show_progress=show_progress))


def _listed(store: Store, known: SmallFile, vectors: NDArray[np.float16], *, show_progress: bool) -> SmallFile:
    """Put codes into lists, if there are enough, and many are in none yet; return what is known then."""
    places = store.places()
    if len(places) < _LISTED:
        return known
    if known.lists is not None:
        cells = known.lists[1]
        num_kept = int(np.searchsorted(places, cells.end))
        if max(len(places) - num_kept, len(cells) - num_kept) <= _STALE * len(places):
            return known
    count = 2 ** round(np.log2(len(places)) / 2)
    chosen = np.setdiff1d(places, places[held_out(len(places))])
    sample = vectors[chosen[:: 1 + len(chosen) // (_FOR_A_CELL * count)]]
    cells, cell = cells_of(sample, count), []
    with Progress("sorting", total=len(places), unit="pictures", console=console(shown=show_progress)) as bar:
        for start in range(0, len(places), _BLOCK):
            cell.append(cells.assigned(vectors[places[start : start + _BLOCK]]))
            bar.advance(len(cell[-1]))
    renew_lists(store.folder, known, cells, (places, np.concatenate(cell)))
    known = _require(store)
    remove_codes_but(store.folder, known.codes, *(known.lists or ())[:1])
    return known


def measured_recall(snapshot: Snapshot, *, show_progress: bool = False) -> Recall:
    """Return how many of the nearest pictures of some, on which codes were not fitted, are found by small vectors.

    Of codes in lists, the least share is found that is enough. Of pictures that are equally near, each counts.

    Args:
        snapshot: with small vectors, of two pictures or more.
        show_progress: whether to show how far it is.
    """
    held = held_out(len(snapshot))
    queries, k = snapshot.vectors[held].astype(np.float32), min(_NEAREST, len(snapshot) - 1)
    least = least_scores(snapshot.vectors, queries, k + 1, show_progress=show_progress)
    small = snapshot.small
    assert small is not None, "it has small vectors"

    def recall(share: float) -> float:
        scan = SmallScan(snapshot, share)
        found = scan.nearest_to_each(queries, k + 1, num_candidates=scan.shortlist)
        # The picture itself is among them, and counts in neither.
        hits = [np.count_nonzero(scores >= bound - _SLACK) - 1 for (_, scores), bound in zip(found, least, strict=True)]
        return float(np.clip(np.mean(hits) / k, 0, 1))

    share, reached = 1.0, recall(1)
    if small.lists is not None:
        wanted = min(_WANTED[small.coder.kind], _OF_ALL * reached)
        measured = ((share, recall(share)) for share in _SHARES)
        share, reached = next((one for one in measured if one[1] >= wanted), (share, reached))
    return Recall(
        kind=small.coder.kind,
        num_bytes=small.num_bytes,
        recall=reached,
        num_queries=len(held),
        num_pictures=len(snapshot),
        shortlist=SHORTLIST[small.coder.kind],
        share=share,
    )


def held_out(count: int) -> NDArray[np.int64]:
    """Return the places of the pictures that codes are measured with, from all over a collection."""
    return np.unique(np.linspace(0, count - 1, min(_QUERIES, max(1, count // 10))).astype(np.int64))


def least_scores(vectors: Vectors, queries: NDArray[np.float32], k: int, *, show_progress: bool) -> NDArray[np.float32]:
    """Return for each query the similarity of the embedding that is the k-th nearest, all of which are compared."""
    wanted, best = torch.from_numpy(queries), torch.full((len(queries), k), -torch.inf)
    shown = console(shown=show_progress and len(vectors) > _LISTED)
    with Progress("measuring", total=len(vectors), unit="pictures", console=shown) as bar:
        for start in range(0, len(vectors), _BLOCK):
            block = torch.from_numpy(vectors[start : start + _BLOCK].astype(np.float32))
            best = torch.cat([best, wanted @ block.T], 1).topk(k, 1).values
            bar.advance(len(block))
    return best[:, -1].numpy()


def _fitted(store: Store, snapshot: Snapshot) -> Coder:
    places = np.setdiff1d(np.arange(len(snapshot)), held_out(len(snapshot)) if len(snapshot) > _NEAREST else [])
    chosen = places[np.unique(np.linspace(0, len(places) - 1, min(_FITTED, len(places))).astype(np.int64))]
    spare = _BESIDE if len(snapshot) >= _LISTED else 0
    return fit(store.about.vectors, snapshot.vectors[chosen], len(snapshot), spare=spare)


def _require(store: Store) -> SmallFile:
    known = _known(store)
    assert known is not None, "it was just written"
    return known


def _known(store: Store) -> SmallFile | None:
    with opened(store.folder / INDEX) as db:
        return small_file(db, store.about.dim)
