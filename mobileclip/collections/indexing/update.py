"""Updates an index: encodes new files, recognises moved ones, and drops deleted ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from mobileclip.collections.indexing.encoding import FileEncoder
from mobileclip.collections.indexing.findings_writer import FindingsWriter
from mobileclip.collections.indexing.known import KnownFiles, KnownRow
from mobileclip.collections.indexing.report import IndexReport
from mobileclip.collections.reading.options import IndexOptions
from mobileclip.collections.reading.scanning import FoundFile, Scan
from mobileclip.collections.store.presence import lies_in
from mobileclip.collections.store.store import Store
from mobileclip.data.workers import LostProcessError
from mobileclip.engines import Engine, LocalEngine, Retries, SetAside, read_set_aside, write_set_aside
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.terminal import get_logger

logger = get_logger(__name__)

# Processes with a model each, where one that reads was lost.
_MOST_APART = 4
_AT_ONCE = Retries(tries=2, pause_seconds=0.0)


def update(
    store: Store,
    clip: Callable[[], ImageTextModel],
    found: Scan,
    options: IndexOptions,
    engine: Engine | None = None,
    *,
    trust: bool = False,
) -> IndexReport:
    """Bring an index up to date with the files that were found; the caller holds the index.

    What is finished is written down every few seconds, so that a job that is killed loses no more than these.

    Args:
        store: of the index.
        clip: gives the model that it is of; not called where nothing is to be encoded, nor with an engine, whose
            workers load it.
        found: the files.
        options: how.
        engine: whose workers read and encode; None for this process, with those that decode beside it.
        trust: whether workers may load an export that another machine wrote, see `mobileclip.load`.

    Raises:
        OSError: if the index cannot be written.
        ValueError: if a process that decodes ends abruptly, or no worker can work.
    """
    known = KnownFiles(store)
    writer = FindingsWriter(store, known, options)
    work: list[FoundFile] = []
    kept: list[KnownRow] = []
    for file in found.files.values():
        if known.is_as_before(file):
            kept += known.rows(file.path)
        else:
            work.append(file)
    store.append(inputs=found.inputs)
    set_aside: tuple[SetAside, ...] = ()
    if work:
        store.note_decode(options.decode)
        encoder = FileEncoder(store=store, known=known, writer=writer, options=options, trust=trust)
        set_aside = encoder.share(work, engine) if engine is not None else _encode_apart_if_lost(encoder, work, clip)
    else:
        writer.mark.unlink(missing_ok=True)  # of a job that was killed when all was written down
    gone = known.gone(found, writer.recognised)
    missing, moved = _missing(known, found, gone)
    # What moved away whole leaves nothing but files that could not be read.
    gone += [path for folder in moved for path in known.below(folder) if path not in gone]
    removed = [row.id for path in gone for row in known.rows(path)]
    store.append(removed=removed)
    store.forget(gone, inputs=moved)
    store.compact()
    _forget_set_aside(store, found)
    num_unreadable = sum(row.is_problem for row in kept)
    return IndexReport(
        num_encoded=writer.written.num_encoded,
        num_known=writer.num_known,
        num_unchanged=writer.written.num_unchanged + len(kept) - num_unreadable,
        num_removed=len(removed),
        num_unreadable=num_unreadable,
        unreadable=tuple(dict.fromkeys(writer.written.unreadable)),
        uninstalled=dict(writer.written.uninstalled),
        left_out=found.left_out,
        set_aside=set_aside,
        missing=missing,
    )


def forget(store: Store, folders: Sequence[str]) -> int:
    """Drop folders from an index, and return how many pictures it had of them; the caller holds the index.

    Args:
        store: of the index.
        folders: in full; files and shards do too.

    Raises:
        ValueError: if the index has nothing of one, or would find it again as a part of what it is of.
        OSError: if the index cannot be written.
    """
    known, before = KnownFiles(store), store.inputs
    for folder in folders:
        around = [one for one in before if one != folder and lies_in(folder, one)]
        if around and Path(folder).exists():
            raise ValueError(f"{folder} is a part of {around[0]}, which the index is of, and would be found again")
        if not known.below(folder) and not any(lies_in(one, folder) for one in before):
            raise ValueError(f"the index has nothing of {folder}; it is of {', '.join(before) or 'nothing'}")
    inputs = [one for one in before if any(lies_in(one, folder) for folder in folders)]
    gone = list(dict.fromkeys(path for folder in folders for path in known.below(folder)))
    rows = [row for path in gone for row in known.rows(path)]
    store.append(removed=[row.id for row in rows])
    store.forget(gone, inputs=inputs)
    store.compact()
    return sum(not row.is_problem for row in rows)


def _missing(known: KnownFiles, found: Scan, gone: Collection[str]) -> tuple[dict[str, int], list[str]]:
    """Return how many pictures are kept of each input that is missing, and those that moved away whole."""
    away = set(gone)
    kept = {
        folder: sum(not row.is_problem for path in known.below(folder) if path not in away for row in known.rows(path))
        for folder in found.missing
    }
    moved = [folder for folder, count in kept.items() if not count and not Path(folder).exists()]
    return {folder: count for folder, count in kept.items() if folder not in moved}, moved


def _encode_apart_if_lost(
    encoder: FileEncoder, work: Sequence[FoundFile], clip: Callable[[], ImageTextModel]
) -> tuple[SetAside, ...]:
    """Read and encode in this process, and return what was set aside.

    A file may end the process that reads it. Where one was lost, and where the last job was killed before it had
    written anything down, processes that the job outlives do the rest, and find the file.
    """
    mark, suspects = encoder.writer.mark, encoder.suspects()
    if mark.exists():
        logger.warning("the last run was killed before it wrote anything; files are now read in processes of their own")
        suspects = {file.path for file in work}
    apart = [file for file in work if file.path in suspects]
    here = [file for file in work if file.path not in suspects]
    try:
        mark.touch()
        if here:
            encoder.encode_here(here, clip())
    except LostProcessError as error:
        logger.warning("%s. The remaining files are now read in processes of their own", str(error).partition(":")[0])
        # Some of it was written down.
        encoder.known.look_up()
        apart = [file for file in work if not encoder.known.is_as_before(file)]
    finally:
        mark.unlink(missing_ok=True)
    return encoder.share(apart, _engine_apart(clip(), encoder.options)) if apart else ()


def _engine_apart(clip: ImageTextModel, options: IndexOptions) -> LocalEngine:
    """Return an engine of few processes, since each has a model."""
    device = str(next(clip.model.parameters()).device)
    num_workers = min(options.num_workers, _MOST_APART)
    return LocalEngine(num_workers=num_workers, devices=(device,), apart=True, retries=_AT_ONCE)


def _forget_set_aside(store: Store, found: Scan) -> None:
    """Drop files that are gone from the list of those that were set aside."""
    listed = read_set_aside(store.folder)
    kept = [one for one in listed if one.unit in found.files or not found.covers(one.unit)]
    if kept != list(listed):
        write_set_aside(store.folder, kept)
