"""Opens data sets, and detects the kind of source at a path and whether the images have captions or classes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs

from mobileclip import storage
from mobileclip.data.images.files import list_folder
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.shards.files import Shards, paths_of, read_shard, runs_program
from mobileclip.data.skips import SkipReport
from mobileclip.datasets.sources.base import TEMPLATES, Source, sources
from mobileclip.datasets.sources.folder import ClassFolderSource, FolderItem, FolderSource
from mobileclip.datasets.sources.lists import TableSource, is_table
from mobileclip.datasets.sources.rows import RowOptions
from mobileclip.datasets.sources.shards import (
    LabelledShardSource,
    PublicLayoutSource,
    ShardSource,
    files_of_page,
    is_folder,
    is_pattern,
    is_public_layout,
    read_public_layout,
    shards_in,
)
from mobileclip.datasets.sources.tables import LINES, TABLES
from mobileclip.machine import raise_machine_fault

DataKind = Literal["classes", "captions"]

LISTS = (*LINES, *TABLES)
"""Suffixes of lists: files with one image path or URL per row."""

EXPECTED = (
    "a data set is a folder with a folder of images for each class, a folder of images with captions (NAME.txt next to "
    "NAME.jpg, or captions.jsonl), a .jsonl, .parquet, .csv or .tsv file, tar shards, or a folder in the public layout "
    "(classnames.txt, test/nshards.txt, test/0.tar)"
)
_NAMED = re.compile(r"(?P<kind>[A-Za-z][\w-]+):(?!//|:)(?P<argument>.+)", re.DOTALL)
_OTHERS = (".json", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".zip")


@attrs.frozen(kw_only=True)
class DataSet:
    """An opened data set, with class names and prompt templates if the images have classes.

    Args:
        name: name of the data set in results and reports.
        source: source of samples with captions; for classes, the sample metadata have the class name as `label`.
        kind: whether images have captions or classes.
        class_names: names of the classes, in the order of the labels; empty for captions.
        templates: prompt templates with one `{}` for the name of a class; empty for captions.
    """

    name: str
    source: Source
    kind: DataKind
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


def as_source(
    data: Source | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    samples_per_shard: int = 1000,
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> Source:
    """Return the source for a path, a pattern or `KIND:ARGUMENT`.

    Args:
        data: one or several paths or brace patterns of shards or tables; a `.jsonl` file; a directory in the public
            layout, with shards, with images and captions, with one directory of images per class, or with tables and no
            images; or `KIND:ARGUMENT` with the name of a kind in `sources`, such as `folder:photos`. The function
            returns a `Source` unchanged.
        samples_per_shard: number of samples per unit, for a source without shards.
        rows: options for the rows of `.jsonl` files and tables.

    Raises:
        ValueError: if there is no data, the file type is unsupported, or the kind of source is unknown.
    """
    if isinstance(data, Source):
        return data
    given = (data,) if isinstance(data, (str, os.PathLike)) else data
    paths = tuple(os.fspath(path) for path in given)
    if len(paths) == 1:
        kind, argument = split_kind(paths[0]) or (_kind_of(paths[0]), paths[0])
        return sources[kind].of(argument, samples_per_shard=samples_per_shard, rows=rows)
    if any(map(split_kind, paths)):
        raise ValueError(f"{' '.join(paths)} are several data sets; expected one")
    if paths and all(map(is_table, paths)):
        return TableSource(tables=paths, samples_per_shard=samples_per_shard, options=rows)
    return ShardSource(shards=paths)


def shards_of(data: Shards) -> tuple[str, ...]:
    """Return the shards for training: paths and patterns unchanged, and a folder as a list of shards joined by `::`.

    Args:
        data: shards, folders of shards, or `shards:` followed by a shard or folder.

    Raises:
        ValueError: if the data are not shards; the message explains how to convert the data to shards.
    """
    found = []
    for text in paths_of(data):
        if split_kind(text) is None and not text.lower().endswith(LISTS) and not is_folder(text):
            found.append(text)
            continue
        source = as_source(text)
        if not isinstance(source, ShardSource):
            raise ValueError(
                f"{text} is not a set of tar shards, which training needs; `mobileclip reinforce datacompdr12m --data "
                f"{text} --output FOLDER` converts the data to shards with teacher embeddings"
            )
        found.append("::".join(source.shards))
    return tuple(found)


def split_kind(text: str) -> tuple[str, str] | None:
    """Split a text such as `shards:train/{000..127}.tar` into the kind and the argument of a source.

    Return None for an existing path, a drive, a URL, and the `pipe:` commands of webdataset.

    Raises:
        ValueError: if the kind is unknown, and the text is not an existing path.
    """
    found = _NAMED.fullmatch(text)
    if found is None or runs_program(text) or os.path.exists(text):  # noqa: PTH110 - any length
        return None
    if found["kind"] in sources:
        return found["kind"], found["argument"]
    if is_pattern(text) or ".tar" in text:
        return None
    raise ValueError(f"{text} does not exist, and the prefix is not a kind of source: {sources.unknown(found['kind'])}")


def _kind_of(text: str) -> str:
    """Return the kind of source at a path.

    Raises:
        ValueError: if the path is not a data set.
    """
    if not text:
        raise ValueError(f"no data was given; {EXPECTED}")
    if text.lower().endswith(_OTHERS):
        raise ValueError(
            f"{text} is not a tar shard or a list ({', '.join(LISTS)}); convert the file to one of these formats"
        )
    if text.lower().endswith(LINES):
        return "jsonl"
    if is_table(text):
        return "tables"
    if files_of_page(text) != text.rstrip("/"):
        return "public_layout"
    is_near = not storage.is_remote(text)
    if is_folder(text):
        if is_near and is_public_layout(text):
            return "public_layout"
        return "shards" if shards_in(text) else _kind_of_folder(text)
    if is_near and not is_pattern(text) and ".tar" not in storage.file_name(text) and os.path.isfile(text):  # noqa: PTH113
        raise ValueError(f"{text} is not a data set; {EXPECTED}")
    return "shards"


def open_data_set(
    data: str | os.PathLike[str],
    *,
    kind: DataKind | Literal["auto"] = "auto",
    templates: tuple[str, ...] = TEMPLATES,
    samples_per_shard: int = 1000,
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> DataSet:
    """Open the data set at a path, and detect whether the images have captions or classes.

    Classes come from the subfolders of a folder; from a class name as `label` in the metadata of JSON Lines or shards;
    or from the class number in `.cls`, with names in `classnames.txt`. All other data sets have captions.

    Args:
        data: see `as_source`.
        kind: expected kind; `auto` to detect the kind.
        templates: prompt templates with one `{}`; data sets in the public layout have their own templates.
        samples_per_shard: see `as_source`.
        rows: see `as_source`.

    Raises:
        ValueError: if the path is not a data set, or the data set does not have the expected kind.
        OSError: if the data set cannot be read.
    """
    text = os.fspath(data)
    require_data_set(text)
    source = as_source(text, samples_per_shard=samples_per_shard, rows=rows)
    source, names, own = _named(source, text, templates, kind)
    found: DataKind = "classes" if names else "captions"
    if kind == "classes" and found != kind:
        raise ValueError(
            f"{text} has no classes; expected one folder per class, or samples with the class name as `label` in the "
            "metadata"
        )
    if kind == "captions" and isinstance(source, ClassFolderSource):
        raise ValueError(f"{text} has no captions, but one folder per class; {EXPECTED}")
    is_kind = found if kind == "auto" else kind
    return DataSet(name=name_of(text), source=source, kind=is_kind, class_names=names, templates=own)


def name_of(text: str) -> str:
    """Return the name of a data set: the folder name, or the file name without suffix."""
    text = (split_kind(text) or ("", text))[1]
    layout = files_of_page(text).partition("/resolve/")[0]
    name = storage.file_name(layout) if storage.is_remote(layout) else storage.local_path(layout).absolute().name
    if name.lower().endswith((*LISTS, ".tar")) and not ("{" in name or name.partition(".")[0].isdigit()):
        return name.rpartition(".")[0]
    if name.lower().endswith(".tar"):
        parent = text.rpartition("/")[0]
        return storage.file_name(parent) if storage.is_remote(text) else Path(text).absolute().parent.name
    return name.removeprefix("wds_").removesuffix("_test")


def is_data_path(text: str) -> bool:
    """Return whether an argument is the path or URL of data, not a name."""
    found = _NAMED.fullmatch(text)
    is_named = found is not None and found["kind"] in sources
    return is_named or _is_file(text) or text.endswith(("/", os.sep)) or storage.is_directory(text)


def is_packed(text: str) -> bool:
    """Return whether a path is a list, shards or the public layout, not a folder of image files."""
    if split_kind(text) is not None or _is_file(text):
        return True
    return storage.is_directory(text) and (is_public_layout(text) or bool(shards_in(text)))


def _is_file(text: str) -> bool:
    """Return whether a text is a URL, a list, a shard or a pattern of shards."""
    return text.lower().endswith((*LISTS, ".tar")) or is_pattern(text) or storage.is_remote(text)


def require_data_set(text: str) -> None:
    """Check that a local path exists, or that the scheme of a URL is supported; read no data.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if the URL has an unsupported scheme, or the kind of source is unknown.
    """
    named = split_kind(text)
    if named is not None:
        storage.check_address(named[1])
        return
    storage.check_address(text)
    if text and not storage.is_remote(text) and not is_pattern(text) and not storage.local_path(text).exists():
        raise FileNotFoundError(f"the data set {text} does not exist; {EXPECTED}")


def _named(
    source: Source, text: str, templates: tuple[str, ...], kind: DataKind | Literal["auto"]
) -> tuple[Source, tuple[str, ...], tuple[str, ...]]:
    """Return a source, class names and prompt templates; names and templates are empty for captions."""
    if isinstance(source, FolderSource) and kind == "classes":
        source = ClassFolderSource(path=source.path, samples_per_shard=source.samples_per_shard)
    if isinstance(source, ShardSource) and _has_numbers(source, text):
        source = LabelledShardSource.beside(source.shards)
    match source:
        case PublicLayoutSource():
            layout = read_public_layout(source.path, split=source.split)
            return source, layout.class_names, layout.templates
        case ClassFolderSource():
            source = attrs.evolve(source, templates=templates)
            return source, source.class_names(), source.templates
        case LabelledShardSource():
            return attrs.evolve(source, templates=templates), source.class_names, templates
        case FolderSource():
            _check_captions(source)
            return source, (), ()
    names = _labels(source, text)
    return source, names, templates if names else ()


def _check_captions(source: FolderSource) -> None:
    try:
        items = [item for unit in source.units() for item in unit.items]
    except ValueError as error:
        suffixes = (os.path.splitext(name)[1].lower() for name in storage.find_files(source.path))  # noqa: PTH122 no paths
        kinds = Counter(suffix or "without a suffix" for suffix in suffixes)
        held = ", ".join(f"{count:,} {suffix}" for suffix, count in kinds.most_common(5)) or "no files"
        raise ValueError(f"{error}; the folder contains {held}; {EXPECTED}") from None
    if not any(map(_is_captioned, items)):
        raise ValueError(f"{source.path} holds {len(items)} images without captions or class folders; {EXPECTED}")


def _is_captioned(item: FolderItem) -> bool:
    return bool(item.text or item.json or item.rows)


def _has_numbers(source: ShardSource, text: str) -> bool:
    """Return whether the first sample of the shards has a class number."""
    first = next((raw for unit in source.units() for raw in read_shard(unit.path, lambda _: None)), None)
    if first is None:
        raise ValueError(f"{text} holds no sample; {EXPECTED}")
    return "cls" in first.members


def _labels(source: Source, text: str) -> tuple[str, ...]:
    """Return the sorted class names from `label`; if the first sample has no `label`, return no names."""
    report = SkipReport(log=False)
    labels = (label_of(sample) for unit in source.units() for sample in unit.described(report))
    try:
        first = next(labels)
    except StopIteration:
        details = [skip.detail for skips in report.named.values() for skip in skips[:1]]
        raise ValueError("; ".join([f"no sample of {text} can be used: {report}", *details, EXPECTED])) from None
    return () if first is None else tuple(sorted({first, *filter(None, labels)}))


def label_of(sample: ImageTextSample) -> str | None:
    """Return the class name of a sample from `label` in the metadata; None without a class name."""
    label = sample.metadata.get("label")
    return label if isinstance(label, str) and label.strip() else None


def _kind_of_folder(folder: str) -> str:
    """Return the kind of source for a folder without shards: `tables`, `class_folder` or `folder`.

    Raises:
        ValueError: if images without captions are both in the folder and in subfolders.
    """
    try:
        found = list_folder(folder)
        if not found.images and any(map(is_table, found.files)):
            return "tables"
        units = () if storage.is_remote(folder) else FolderSource(path=folder).units()
    except (ValueError, OSError) as error:
        raise_machine_fault(error)
        # Later code reports the problem when it uses the data.
        return "folder"
    items = [item for unit in units for item in unit.items]
    num_apart = sum("/" in item.image for item in items)
    if not num_apart or any(map(_is_captioned, items)):
        return "folder"
    if num_apart < len(items):
        raise ValueError(
            f"{folder} has {num_apart:,} images in subfolders and {len(items) - num_apart:,} outside subfolders, all "
            f"without captions; state the kind: class_folder:{folder} or folder:{folder}"
        )
    return "class_folder"
