"""`mobileclip index | merge | upgrade`: build, join and upgrade search indexes of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import attrs
from tyro.conf import Positional, arg

from mobileclip.cli.arguments import (
    DEFAULT_MODEL,
    Device,
    ModelFlags,
    Workers,
    report_left_out,
    report_skipped,
    require_at_least,
    require_checkpoint,
    say_first,
)
from mobileclip.hardware import FastPrecision
from mobileclip.inputs import Decode
from mobileclip.processes import default_workers
from mobileclip.storage import printable, require_output, require_output_folder
from mobileclip.terminal import say
from mobileclip.terminal.common import Rare
from mobileclip.terminal.status import conclude

if TYPE_CHECKING:
    from mobileclip.collections import Collection, IndexOptions, IndexReport, ModelSource
    from mobileclip.collections.scan import Scan
    from mobileclip.engines import Engine

_MOST_NAMED = 10
_LONGEST_NAME = 4096
IndexName = Annotated[Path | None, arg(name="index", metavar="INDEX|IMAGES")]


def index(
    inputs: Annotated[Positional[tuple[str, ...]], arg(metavar="[IMAGE|FOLDER|SHARDS...]")] = (),
    /,
    *,
    index_name: IndexName = None,
    model: ModelFlags = ModelFlags(),  # noqa: B008  frozen
    batch_size: Rare[int] = 32,
    num_workers: Annotated[int | None, Workers] = None,
    engine: Rare[Literal["inline", "local", "ray"]] = "inline",
    ray_address: Rare[str | None] = None,
    gpus_per_worker: Rare[float] = 0.0,
    status: bool = False,
    forget: Annotated[tuple[str, ...], arg(metavar="FOLDER")] = (),
    decode: Rare[Decode] = "fast",
    video_frames: Rare[Literal["seconds", "scenes"]] = "seconds",
    video_seconds: Rare[float] = 10.0,
    precision: Rare[FastPrecision] = "bfloat16",
    output: Annotated[Path | None, arg(metavar="IMAGES.safetensors")] = None,
    overwrite: bool = False,
) -> None:
    """Create or update a search index of images; the command encodes only new and changed images.

    mobileclip index photos/ -m mobileclip_s2.pt

    mobileclip index photos/ more/cat.jpg 'shards/{000..127}.tar' --index photos.index

    The index is a folder with an SQLite file. A stopped command keeps its progress and resumes. The command detects
    new, changed and removed files by size and time, and moved files by content. The command names and counts
    unreadable images, and retries them after their files change.

    Args:
        inputs: image and video files, tar shards, and folders of these files; by default the inputs of the index. The
            command skips and counts hidden files, links to folders, links to files outside the folder, and other file
            types.
        index_name: an index folder, or an image folder with an index in the user's cache; by default the cached index
            of these inputs, or, without inputs, the newest cached index. For image folders that have moved, a new
            cached index reuses the embeddings of the earlier index.
        model: the model and its device.
        batch_size: number of images per batch.
        num_workers: number of processes that decode images; by default one per core, at most sixteen. With --engine
            local or ray, number of processes or actors, each with its own model.
        engine: inline runs one model in this process; local runs one model per process (on the GPUs in turn); ray runs
            one model per actor of a cluster, whose machines all need the same paths.
        ray_address: address of the Ray cluster to join, such as auto; by default, Ray starts a cluster on this machine.
        gpus_per_worker: number of GPUs per Ray actor; with a fraction, several actors share a GPU.
        status: print the state and progress of the engine that writes to the index, and exit.
        forget: remove this folder from the index, and exit; the files stay on disk. Without this flag, the index keeps
            but hides the images of a missing or empty folder, since the disk may be unmounted.
        decode: fast decodes a JPEG at reduced size (cosine of 0.9999 with the exact embedding); exact decodes at full
            size.
        video_frames: seconds encodes a frame every --video-seconds; scenes samples one frame per second, and encodes
            only frames whose colours differ from the last encoded frame. Indexed videos keep their frames.
        video_seconds: seconds between encoded frames, with --video-frames seconds.
        precision: lowest precision of the image tower on a CPU. For hundreds of new images (thousands for int8, which
            needs OpenVINO), the command tests whether a lower precision is faster and accurate enough. For int8, the
            command calibrates on some images; other images must have the same neighbours as in float32.
        output: a file with small copies and embeddings of all images, for the page of examples/web.
        overwrite: replace an existing output file.
    """
    from mobileclip.collections import Collection, IndexOptions
    from mobileclip.engines import read_status

    workers = default_workers(num_workers)
    require_at_least(1, batch_size=batch_size, num_workers=workers, video_seconds=video_seconds)
    folder = index_path(index_name, inputs)
    if status:
        try:
            say(read_status(str(folder)))
        except ValueError as error:
            raise ValueError(f"{error}; --status needs --engine local or ray") from None
        return
    if forget:
        if inputs:
            raise ValueError("--forget only removes folders from an index; omit all other inputs")
        count = Collection.open(folder).forget(*forget)
        say(f"removed {count:,} images of {', '.join(forget)}; the index is {folder}")
        return
    options = IndexOptions(
        batch_size=batch_size,
        num_workers=workers,
        decode=decode,
        video_frames=video_frames,
        video_seconds=video_seconds,
        precision=precision,
    )
    if output is not None:
        require_output(output, overwrite=overwrite, suffixes=(".safetensors",))
    shared = _engine(engine, workers, model.device, ray_address, gpus_per_worker)
    collection, report = update_index(inputs, index_name, model, options, engine=shared)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        written = collection.export(output, overwrite=overwrite)
        say(f"wrote {written:,} images to {output}")
    conclude(left_out=report.num_left_out, done=len(collection))


def merge(
    others: Annotated[Positional[tuple[Path, ...]], arg(metavar="INDEX...")],
    /,
    *,
    output: Annotated[Path, arg(metavar="INDEX")],
) -> None:
    """Merge indexes with the same model, for example from several machines, into one index.

    mobileclip merge monday.index tuesday.index -o week.index
    mobileclip merge photos.index -o photos.parquet

    The command compares images by the digest of their content. If two different images have the same path, the merged
    index keeps both images until mobileclip index updates the path. The command merges concepts with equal name and
    text, and tags with equal settings; if texts or settings differ, the command copies nothing. The merged indexes stay
    unchanged. The merge is one transaction; after an interruption, run the same command again.

    Args:
        others: indexes to merge, all with the same model; see --index of mobileclip search.
        output: a new or existing index; or, for a single input index, a *.parquet table for other programs and for
            mobileclip merge.
    """
    from mobileclip.collections import Collection, is_index

    if not others:
        raise ValueError("there is nothing to merge; give at least one index")
    collections = [Collection.open(other) for other in others]
    if output.suffix == ".parquet":
        if len(collections) > 1:
            raise ValueError("a Parquet file holds a single index; merge the indexes first")
        say(f"wrote {collections[0].export(output):,} rows to {output}")
        return
    if is_index(output):
        target = Collection.open(output)
        report = target.merge(*collections)
    else:
        _require_index_or_room(output)
        target, report = Collection.create_merged(output, *collections)
    say(f"{len(target):,} images in {output}: {report}")


def _engine(
    name: Literal["inline", "local", "ray"], num_workers: int, device: str, ray_address: str | None, gpus: float
) -> Engine | None:
    """Return the engine that the flags choose; None for this process."""
    from mobileclip.engines import LocalEngine, RayEngine
    from mobileclip.hardware import AUTO

    if name == "ray":
        return RayEngine(address=ray_address, max_workers=num_workers, gpus_per_worker=gpus)
    if ray_address is not None or gpus:
        raise ValueError("--ray-address and --gpus-per-worker require --engine ray")
    if name == "local":
        return LocalEngine(num_workers=num_workers, devices=() if device == AUTO else (device,), apart=True)
    return None


def update_index(
    inputs: Sequence[str],
    index_name: Path | None,
    model: ModelFlags,
    options: IndexOptions,
    *,
    engine: Engine | None = None,
) -> tuple[Collection, IndexReport]:
    """Update an index, and print the numbers of images.

    Args:
        inputs: command-line inputs; empty for the inputs of the index.
        index_name: name of a new or existing index; see `index_path`.
        model: flags of the model.
        options: indexing options.
        engine: engine that runs the workers; None for this process.

    Raises:
        ValueError, OSError: see `Collection.add`.
    """
    from mobileclip.collections import Store, is_index, scan
    from mobileclip.engines import SET_ASIDE

    folder = index_path(index_name, inputs)
    found = scan(inputs or Store.open(folder).inputs, may_be_missing=not inputs)
    if index_name is None and not is_index(folder):
        _take_along(folder, found, model_source(model))
    collection = open_or_create_index(folder, model)
    say(f"the index is {folder}")
    report = collection.add_found(found, options, engine)
    report_left_out(report.left_out)
    for path, count in report.missing.items():
        name = printable(path, limit=_LONGEST_NAME)
        say(
            f"{name} is missing or empty: the index keeps but hides its {count:,} images. If the folder has moved: "
            f"mobileclip index NEW_PLACE --index {folder}; to drop the images: mobileclip index --forget {name} "
            f"--index {folder}",
            error=True,
        )
    num_new = report.num_encoded + report.num_known + len(report.unreadable)
    report_skipped(report.unreadable, num_new, called="new images and videos")
    for what, number in report.uninstalled.items():
        say(f"left out {number:,} files: {what}", error=True)
    if report.set_aside:
        say(f"set aside until the next run, listed in {folder / SET_ASIDE}:", error=True)
        say_first([f"{printable(one.unit, limit=_LONGEST_NAME)}: {one.reason}" for one in report.set_aside])
    say(f"{len(collection):,} images in the index: {report}")
    return collection, report


def model_source(model: ModelFlags) -> ModelSource:
    """Return the source of the model that the flags choose; fields of missing flags are None."""
    from mobileclip.collections import ModelSource

    name, file = model.named()
    return ModelSource(model=name, checkpoint=file, image_size=model.image_size, context_length=model.context_length)


def index_path(name: Path | None, inputs: Sequence[str]) -> Path:
    """Return the path of an existing or new index.

    Args:
        name: value of `--index`, see `find_index`, or the folder of a new index.
        inputs: command-line inputs.

    Raises:
        FileNotFoundError: if there are no inputs, and the index does not exist.
    """
    from mobileclip.collections import default_index, find_index

    if inputs and name is None:
        return default_index(inputs)
    try:
        return find_index(name)
    except FileNotFoundError:
        if name is None or not inputs:
            raise
        return name


def _take_along(folder: Path, found: Scan, source: ModelSource) -> None:
    """Copy embeddings of a moved folder's index into a new index."""
    from mobileclip.collections import Collection, ModelSource, moved_index

    files = ((file.path, file.size) for file in found.files.values())
    before = moved_index(files, None if source == ModelSource() else source.in_full())
    if before is not None:
        _require_index_or_room(folder)
        Collection.create_merged(folder, Collection(before), show_progress=False)
        gone = ", ".join(printable(one, limit=_LONGEST_NAME) for one in before.inputs[:_MOST_NAMED])
        say(f"the images were in {gone} before; the new index reuses the embeddings in {before.folder}")


def _require_index_or_room(folder: Path) -> None:
    """Raise if a folder holds something other than an index, or is not writable."""
    from mobileclip.collections import INDEX

    require_output_folder(folder, overwrite=True, marker=INDEX)


def open_index(name: Path | None, device: str, *, trust: bool, text_model: str | None = None) -> Collection:
    """Open an index for reading, and choose the device of its model.

    Args:
        name: folder of an index, or image folder; see `find_index`.
        device: value of `--device`.
        trust: whether to open an exported model from another machine, see `Collection`.
        text_model: local path or hub address of a text tower, see `Collection`; None for the model's text tower.
    """
    from mobileclip.collections import Collection
    from mobileclip.inference.loading import device_for

    if text_model is not None:
        require_checkpoint(text_model)
    collection = Collection.open(name, trust=trust, text_model=text_model)
    kept = collection.store.about.model
    collection.device = device_for(kept.model, kept.checkpoint, device)
    return collection


def open_or_create_index(folder: Path, asked: ModelFlags) -> Collection:
    """Open the index in a folder, or create one; raise if an existing index and the flags have different models."""
    from mobileclip.collections import Collection, ModelSource, Store, is_index
    from mobileclip.inference.loading import device_for, require_model

    source, device, trust = model_source(asked), asked.device, asked.trust
    if is_index(folder) and source == ModelSource():
        return open_index(folder, device, trust=trust)
    _require_index_or_room(folder)
    model = source.model or (None if source.checkpoint else DEFAULT_MODEL)
    place = device_for(model, source.checkpoint, device)
    require_model(model, source.checkpoint)
    wanted = attrs.evolve(source, model=model)
    if not is_index(folder):
        return Collection.create(folder, wanted, device=place, trust=trust)
    store = Store.open(folder)
    Collection(store).require_source(wanted)
    clip, identity = wanted.load(place, trust=trust)
    collection = Collection(store, clip=clip, device=place, trust=trust)
    collection.require(identity, "the given model")
    return collection


def upgrade(
    *,
    to: Annotated[str, arg(metavar="NAME|FILE|NAME=FILE")],
    index_name: IndexName = None,
    device: Device = "auto",
    trust: Rare[bool] = False,
    batch_size: Rare[int] = 32,
    num_workers: Annotated[int | None, Workers] = None,
) -> None:
    """Encode the images of an index with another model; searches use the old model until all images are encoded.

    mobileclip upgrade --to mobileclip_s2 --index photos.index

    Args:
        to: the new model; see --model of mobileclip index.
        index_name: an index folder; see mobileclip search.
        device: cuda, cuda:1, mps or cpu; auto takes the first available device.
        trust: open an export from another machine; see mobileclip classify.
        batch_size: number of images per batch.
        num_workers: number of processes that decode images; by default one per core, at most sixteen.
    """
    from mobileclip.collections import IndexOptions

    workers = default_workers(num_workers)
    require_at_least(1, batch_size=batch_size, num_workers=workers)
    collection = open_index(index_name, device, trust=trust)
    options = IndexOptions(batch_size=batch_size, num_workers=workers)
    problems = collection.upgrade(model_source(ModelFlags(model=to)), options=options)
    for path, problem in list(problems.items())[:_MOST_NAMED]:
        say(f"{problem}: {printable(path, limit=4096)}", error=True)
    if problems:
        say(
            f"{len(problems):,} images cannot be read, so the index keeps the model {collection.store.about.model}: "
            f"update the index with `mobileclip index --index {collection.path}`, then run this command again",
            error=True,
        )
    else:
        say(f"all {len(collection):,} images now have embeddings of {collection.store.about.model}")
    conclude(left_out=len(problems), done=not problems)
