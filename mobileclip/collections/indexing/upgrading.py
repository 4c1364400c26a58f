"""Brings an index to another model: measures both, begins a second space, fills it, and adopts it in the end."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from mobileclip import storage
from mobileclip.collections.reading.anew import COLUMNS, Known, ReadAnew, encode_anew
from mobileclip.collections.reading.options import IndexOptions
from mobileclip.collections.searching.neighbours import remove_graphs
from mobileclip.collections.store.about import About
from mobileclip.collections.store.snapshot import Snapshot
from mobileclip.collections.store.store import Store
from mobileclip.collections.store.upgrading import Measured, NewSpace
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.inference.quickening import quickened
from mobileclip.progress import Progress
from mobileclip.terminal import console

SAMPLE = 256
"""Pictures that both models are measured on."""

# Of fewer captions, or pictures in folders, nothing is concluded.
_FEWEST = 20
_LONGEST_CAPTION = 4096
_NEAREST, _FIRST = 10, 5
# Rows that are looked up at once, and the most seconds between two times that embeddings are written down.
_BLOCK, _SECONDS = 256, 1.0
_MOST_NAMED = 1000
UPGRADE = "upgrade"
"""The folder in an index that is held by whoever fills the new space."""

Matrix = NDArray[np.float32]
Kept = tuple[int, str, "float | None", NDArray[np.float32]]


@attrs.frozen(kw_only=True)
class UpgradeReport:
    """What became of the pictures.

    Args:
        num_encoded: by this run.
        is_done: whether all are in the new space, which is the only one now.
        left: pictures that are in the old space alone, by why: gone, changed or unreadable.
        named: some of them, with why.
    """

    num_encoded: int
    is_done: bool
    left: dict[str, int]
    named: tuple[tuple[str, str], ...] = ()


def begin(
    store: Store,
    snapshot: Snapshot,
    about: About,
    clips: Sequence[Callable[[], ImageTextModel]],
    *,
    force: bool,
    sample: int,
) -> Measured:
    """Measure both models on the collection, and give the index a second space; the caller holds the index.

    Of an upgrade that is under way, what was measured is returned.

    Args:
        store: of the index.
        snapshot: of it.
        about: what the new space is to be of.
        clips: give the model of before, which is asked for where there are captions, and the new one.
        force: whether a worse model is taken too.
        sample: pictures that are compared.

    Raises:
        ValueError: if the new model is the worse one, or an upgrade to another one is under way.
        OSError: if the index cannot be written.
    """
    if (under_way := NewSpace.of(store)) is not None and under_way.about == about:
        return under_way.measured()
    NewSpace.require_none(store)
    places = np.unique(np.linspace(0, max(0, len(snapshot) - 1), min(sample, len(snapshot))).astype(np.int64))
    rows = {row["id"]: row for row in snapshot.rows(places, COLUMNS) if row is not None}
    read = list(encode_anew(rows.values(), clips[1](), reduced=store.about.decode == "fast"))
    kept = kept_of(read)
    measured = _measured(snapshot, [rows[number] for number, *_ in kept], kept, clips)
    if measured.is_worse and not force:
        raise ValueError(f"{about.model} is worse on these pictures: {measured}; to take it all the same, add --force")
    NewSpace.begin(store, about, measured).keep(kept)
    return measured


def kept_of(read: Sequence[ReadAnew]) -> list[Kept]:
    """Return what is kept of pictures that were read anew."""
    return [
        (one.row["id"], one.row["sha256"], one.row["time"], one.embedding) for one in read if one.embedding is not None
    ]


def _measured(
    snapshot: Snapshot, rows: Sequence[Known], kept: Sequence[Kept], clips: Sequence[Callable[[], ImageTextModel]]
) -> Measured:
    """Return how both models do on pictures."""
    if len(rows) <= 1:
        return Measured(num_pictures=len(rows), agreement=1.0)
    old = snapshot.vectors[[snapshot.place(row["id"]) for row in rows]].astype(np.float32)
    new = np.stack([vector for *_, vector in kept])
    # Of few pictures, most would be among the ten nearest of each.
    k = max(1, min(_NEAREST, len(rows) // _NEAREST))
    nearest = [_others(images @ images.T, k) for images in (old, new)]
    shared = [len(np.intersect1d(*both)) for both in zip(*nearest, strict=True)]
    about: dict[str, Any] = {"num_pictures": len(rows), "agreement": float(np.mean(shared)) / k}
    captions = {place: text for place, row in enumerate(rows) if (text := _caption(row))}
    if len(captions) >= _FEWEST:
        texts, place = list(captions.values()), np.array(list(captions))
        scores = [clip().encode_text(texts).numpy() @ images.T for clip, images in zip(clips, (old, new), strict=True)]
        hits = [(_ranks(one, place) < _FIRST).astype(float) for one in scores]
        return Measured(**about, **_compared("captions beside the pictures", *hits))
    # Frames of a video are like each other, whatever the model.
    folders = [str(Path(row["path"]).parent) if _is_file(row) else f"{row['id']}" for row in rows]
    sizes = Counter(folders)
    asked = [place for place, folder in enumerate(folders) if sizes[folder] > 1]
    if len(asked) >= _FEWEST and len({folders[place] for place in asked}) > 1:
        hits = [np.array([folders[one[place][0]] == folders[place] for place in asked], float) for one in nearest]
        return Measured(**about, **_compared("pictures in folders", *hits))
    return Measured(**about)


def _compared(by: str, old: NDArray[np.float64], new: NDArray[np.float64]) -> dict[str, Any]:
    error = float(np.std(new - old, ddof=1)) / math.sqrt(len(old))
    return {"by": by, "num_queries": len(old), "old": float(old.mean()), "new": float(new.mean()), "error": error}


def _others(scores: Matrix, k: int) -> NDArray[np.int64]:
    """Return the k nearest of each picture but itself."""
    scores = scores.copy()
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _ranks(scores: Matrix, own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many pictures are nearer to each text than its own."""
    ranks: NDArray[np.int64] = (scores > scores[np.arange(len(own)), own][:, None]).sum(axis=1)
    return ranks


def _is_file(row: Known) -> bool:
    return row["part"] is None and row["time"] is None


def _caption(row: Known) -> str:
    """Return what the text file beside a picture says; nothing where there is none."""
    if not _is_file(row):
        return ""
    try:
        with Path(row["path"]).with_suffix(".txt").open("rb") as file:
            return file.read(_LONGEST_CAPTION).decode(errors="replace").strip()
    except OSError:
        return ""


def fill(
    store: Store, space: NewSpace, clip: ImageTextModel, options: IndexOptions, *, rate: float | None = None
) -> UpgradeReport:
    """Encode the pictures that are in the old space alone; when all are done, the new space takes its place.

    What is finished is written down once a second, and the index is held at the very end alone: meanwhile, others may
    search it, and bring it up to date.

    Args:
        store: of the index.
        space: that is filled.
        clip: the new model.
        options: how.
        rate: pictures per second, at most; None for as many as there can be.

    Raises:
        ValueError: if another process fills it, or holds the index at the end.
        OSError: if the index cannot be written.
    """
    with storage.exclusive(store.folder / UPGRADE):
        space.recognise()
        left = _spread(store, space.left())
        if rate is None and left:
            paths = (Path(row["path"]) for row in _rows(store, left) if _is_file(row))
            clip = quickened(clip, paths, len(left), precision=options.precision, show_progress=options.show_progress)
        batch_size = options.batch_size if rate is None else max(1, min(options.batch_size, round(rate)))
        is_short = rate is not None or len(left) <= 2 * batch_size
        read = encode_anew(
            _rows(store, left, space),
            clip,
            reduced=store.about.decode == "fast",
            batch_size=batch_size,
            num_workers=1 if is_short else options.num_workers,
        )
        with Progress(
            "upgrading", total=len(left), unit="pictures", console=console(shown=options.show_progress and bool(left))
        ) as bar:
            report = _kept(space, _in_groups(read, batch_size), bar, rate)
        if space.left():
            return report
        with store.writing():
            # Graphs are a cache, and know nothing of spaces.
            if not space.left():
                remove_graphs(store.folder)
            return attrs.evolve(report, is_done=space.adopt())


def _kept(space: NewSpace, read: Iterator[list[ReadAnew]], bar: Progress, rate: float | None) -> UpgradeReport:
    """Keep what is read, at the rate that is asked for, and return what became of it."""
    counts: Counter[str] = Counter()
    named: list[tuple[str, str]] = []
    num_encoded, start = 0, time.monotonic()
    for some in read:
        kept = kept_of(some)
        space.keep(kept)
        num_encoded += len(kept)
        bar.advance(len(some))
        problems = [(one.row["path"], one.problem) for one in some if one.problem is not None]
        counts.update(problem for _, problem in problems)
        named += problems[: _MOST_NAMED - len(named)]
        if rate is not None:
            time.sleep(max(0.0, start + num_encoded / rate - time.monotonic()))
    return UpgradeReport(num_encoded=num_encoded, is_done=False, left=dict(counts), named=tuple(named))


def _in_groups(read: Iterator[ReadAnew], size: int) -> Iterator[list[ReadAnew]]:
    """Yield what was read in groups, of which none takes long."""
    some: list[ReadAnew] = []
    start = time.monotonic()
    for one in read:
        some.append(one)
        if len(some) >= size or time.monotonic() - start > _SECONDS:
            yield some
            some, start = [], time.monotonic()
    if some:
        yield some


def _spread(store: Store, ids: Sequence[int]) -> list[int]:
    """Return rows by chance, those of one file side by side: in their order, whole folders would come last."""
    files: dict[str, list[int]] = {}
    for number, path in store.values("id", "path", ids=ids):
        files.setdefault(path, []).append(number)
    several = list(files.values())
    return [number for place in np.random.default_rng(0).permutation(len(several)) for number in several[place]]


def _rows(store: Store, ids: Sequence[int], space: NewSpace | None = None) -> Iterator[Known]:
    """Yield what is known of pictures, but of those that are in the new space by then."""
    remaining = iter(ids)
    while block := list(islice(remaining, _BLOCK)):
        left = block if space is None else space.left_of(block)
        rows = {values[0]: dict(zip(COLUMNS, values, strict=True)) for values in store.values(*COLUMNS, ids=left)}
        yield from (rows[number] for number in block if number in rows)
