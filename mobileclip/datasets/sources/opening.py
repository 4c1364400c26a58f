"""Any data set that a person has, opened in one way: what is at a path, and what its pictures have beside them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import attrs

from mobileclip import storage
from mobileclip.data.images.files import list_folder
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.shards.card import CARD
from mobileclip.data.shards.files import RawSample, expand_shards, read_shard
from mobileclip.data.skips import SkipReport
from mobileclip.datasets.sources.access import RowOptions
from mobileclip.datasets.sources.base import Source, sources
from mobileclip.datasets.sources.class_folder import ClassFolderSource
from mobileclip.datasets.sources.folder import FolderSource
from mobileclip.datasets.sources.jsonl import JsonLinesSource
from mobileclip.datasets.sources.public_layout import (
    CLASS_NAMES,
    LabelledShardUnit,
    PublicLayoutSource,
    files_of_page,
    is_public_layout,
    read_class_names,
    read_public_layout,
)
from mobileclip.datasets.sources.records import RecordUnit
from mobileclip.datasets.sources.shards import ShardSource
from mobileclip.datasets.sources.tables import TABLES, TableSource, is_table
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import strict

DataKind = Literal["classes", "captions"]

LISTS = (".jsonl", ".ndjson", *TABLES)
"""Suffixes of files that name images."""
TEMPLATES = ("a photo of a {}.",)
"""What stands around the name of a class where nothing else is said."""

EXPECTED = (
    "a data set is a folder with a folder of images for each class, a folder of images with captions (NAME.txt beside "
    "NAME.jpg, or captions.jsonl), a .jsonl, .parquet, .csv or .tsv file, tar shards, or a folder in the public layout "
    "(classnames.txt, test/nshards.txt, test/0.tar)"
)
_LINES = (".jsonl", ".ndjson")
_OTHERS = (".json", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".zip")


@attrs.frozen(kw_only=True)
class DataSet:
    """A data set.

    Args:
        name: how results and reports call it.
        source: its samples: captions, and `label` in the metadata where they belong to classes.
        kind: what the pictures have beside them.
        class_names: of a data set of classes, in the order of their labels.
        templates: sentences around the names of classes, with one `{}` each; none for captions.
    """

    name: str
    source: Source
    kind: DataKind
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


@sources.register("labelled_shards")
@attrs.frozen(kw_only=True, field_transformer=strict)
class LabelledShardSource(Source):
    """Tar shards of images with the number of their class in `.cls`.

    Args:
        shards: see `ShardSource`.
        class_names: in the order of the labels.
        templates: captions with one `{}` where the name of the class goes.
    """

    shards: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES

    def units(self) -> tuple[LabelledShardUnit, ...]:
        """Return a unit for every shard, in the order given.

        Raises:
            ValueError: see `ShardSource.units`.
        """
        return tuple(
            LabelledShardUnit(name=unit.name, path=unit.path, class_names=self.class_names, templates=self.templates)
            for unit in ShardSource(shards=self.shards).units()
        )


def as_source(
    data: Source | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    samples_per_shard: int = 1000,
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> Source:
    """Return the source that a path stands for.

    Args:
        data: shards or tables (a path, a brace pattern, several of them), a `.jsonl` file, or a directory: in the
            public layout, with shards, with images and captions, with a directory of images for each class, or with
            tables and no images; a source is returned as it is.
        samples_per_shard: of a source that is not cut into shards yet.
        rows: how rows of `.jsonl` files and of tables are read.

    Raises:
        ValueError: if there is nothing, or the file is of another kind.
    """
    if isinstance(data, Source):
        return data
    if not isinstance(data, (str, os.PathLike)):
        paths = tuple(os.fspath(path) for path in data)
        if paths and all(map(is_table, paths)):
            return TableSource(tables=paths, samples_per_shard=samples_per_shard, options=rows)
        return ShardSource(shards=paths)
    return _of_path(os.fspath(data), samples_per_shard, rows)


def _of_path(text: str, samples_per_shard: int, rows: RowOptions) -> Source:
    name = text.lower()
    if not text:
        raise ValueError(f"no data was given; {EXPECTED}")
    if name.endswith(_OTHERS):
        raise ValueError(f"{text} is neither a tar shard nor a list ({', '.join(LISTS)}); write it as one of these")
    if name.endswith(_LINES):
        return JsonLinesSource(path=text, samples_per_shard=samples_per_shard).allowing(rows)
    if is_table(text):
        return TableSource(tables=text, samples_per_shard=samples_per_shard, options=rows)
    if files_of_page(text) != text.rstrip("/"):
        return PublicLayoutSource(path=text)
    return _of_directory(text, samples_per_shard, rows) if _is_directory(text) else ShardSource(shards=text)


def _of_directory(text: str, samples_per_shard: int, rows: RowOptions) -> Source:
    if not storage.is_remote(text) and is_public_layout(text):
        return PublicLayoutSource(path=text)
    if shards := _shards_in(text):
        return ShardSource(shards=shards)
    if _has_tables_alone(text):
        return TableSource(tables=text, samples_per_shard=samples_per_shard, options=rows)
    folder = FolderSource(path=text, samples_per_shard=samples_per_shard)
    if _has_classes_alone(folder):
        return ClassFolderSource(path=text, samples_per_shard=samples_per_shard)
    return folder


def open_data_set(
    data: str | os.PathLike[str],
    *,
    kind: DataKind | Literal["auto"] = "auto",
    templates: tuple[str, ...] = TEMPLATES,
    samples_per_shard: int = 1000,
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> DataSet:
    """Return the data set at a path, having looked at what its pictures have beside them.

    Classes are the folders of a folder; the `label`, a name, in the metadata of JSON lines or shards; or the number in
    `.cls`, of which `classnames.txt` beside the shards has the names. What has no classes has captions.

    Args:
        data: see `as_source`.
        kind: what is wanted; `auto` for what is there.
        templates: sentences around the names of classes, where the data set has none of its own.
        samples_per_shard: see `as_source`.
        rows: see `as_source`.

    Raises:
        ValueError: if there is no data set of that kind; the message says what is there and what is expected.
        OSError: if it cannot be read.
    """
    text = os.fspath(data)
    source = _required(text, samples_per_shard, rows)
    opened = _opened(source, name_of(text), text, templates, kind)
    if kind == "classes" and opened.kind != kind:
        raise ValueError(
            f"{text} has no classes: expected a folder for every class, or samples whose metadata has the name of the "
            "class as `label`"
        )
    if kind == "captions" and isinstance(source, ClassFolderSource):
        raise ValueError(f"{text} has no captions, but a folder for every class; {EXPECTED}")
    return attrs.evolve(opened, kind=opened.kind if kind == "auto" else kind)


def name_of(text: str) -> str:
    """Return what a data set is called: like its folder, or its file without the suffix."""
    layout = files_of_page(text).partition("/resolve/")[0]
    name = storage.file_name(layout) if storage.is_remote(layout) else storage.local_path(layout).absolute().name
    if name.lower().endswith((*LISTS, ".tar")) and not ("{" in name or name.partition(".")[0].isdigit()):
        return name.rpartition(".")[0]
    if name.lower().endswith(".tar"):
        parent = text.rpartition("/")[0]
        return storage.file_name(parent) if storage.is_remote(text) else Path(text).absolute().parent.name
    return name.removeprefix("wds_").removesuffix("_test")


def is_place(text: str) -> bool:
    """Return whether a person who typed this meant a place where data are, and no name."""
    is_file = text.lower().endswith((*LISTS, ".tar")) or _is_pattern(text)
    return is_file or text.endswith(("/", os.sep)) or storage.is_remote(text) or storage.is_directory(text)


def is_gathered(text: str) -> bool:
    """Return whether images are gathered in files, and not files themselves: lists, shards, the public layout."""
    if text.lower().endswith((*LISTS, ".tar")) or _is_pattern(text) or storage.is_remote(text):
        return True
    return storage.is_directory(text) and (is_public_layout(text) or bool(_shards_in(text)))


def _shards_in(folder: str) -> tuple[str, ...]:
    """Return the shards in a folder; where they were reinforced, those in the folders below as well."""
    shards = storage.list_files(folder, ".tar")
    if shards or not storage.exists(storage.join(folder, CARD)):
        return shards
    # What a reinforcement has under way is in a hidden folder.
    return storage.list_files(folder, ".tar", recursive=True)


def require_data_set(text: str) -> None:
    """Make sure that there is something at a path on this machine, or that an address can be opened; nothing is read.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if it is an address that nothing here can open.
    """
    storage.check_address(text)
    if text and not storage.is_remote(text) and not _is_pattern(text) and not storage.local_path(text).exists():
        raise FileNotFoundError(f"there is no data set {text}; {EXPECTED}")


def _required(text: str, samples_per_shard: int, rows: RowOptions) -> Source:
    require_data_set(text)
    source = as_source(text, samples_per_shard=samples_per_shard, rows=rows)
    if isinstance(source, ShardSource) and not _is_pattern(text) and _is_no_tar(text):
        raise ValueError(f"{text} is no data set; {EXPECTED}")
    return source


def _is_pattern(text: str) -> bool:
    return "{" in text or text.startswith("pipe:")


def _is_no_tar(text: str) -> bool:
    return not storage.is_remote(text) and not storage.is_directory(text) and ".tar" not in storage.file_name(text)


def _opened(
    source: Source, name: str, text: str, templates: tuple[str, ...], kind: DataKind | Literal["auto"]
) -> DataSet:
    match source:
        case PublicLayoutSource():
            layout = read_public_layout(source.path, split=source.split)
            classes = layout.kind == "classification"
            return DataSet(
                name=name,
                source=source,
                kind="classes" if classes else "captions",
                class_names=layout.class_names,
                templates=layout.templates,
            )
        case ClassFolderSource():
            return _class_folder(source, name, templates)
        case FolderSource():
            if kind == "classes":
                folders = ClassFolderSource(path=source.path, samples_per_shard=source.samples_per_shard)
                return _class_folder(folders, name, templates)
            return _captioned_folder(source, name)
        case ShardSource():
            return _shards(source, name, text, templates)
    return _by_label(source, name, text, templates)


def _class_folder(source: ClassFolderSource, name: str, templates: tuple[str, ...]) -> DataSet:
    source = attrs.evolve(source, templates=templates)
    return DataSet(
        name=name, source=source, kind="classes", class_names=source.class_names(), templates=source.templates
    )


def _captioned_folder(source: FolderSource, name: str) -> DataSet:
    try:
        items = [item for unit in source.units() for item in unit.items]
    except ValueError as error:
        raise ValueError(f"{error}; {_holds(source.path)}; {EXPECTED}") from None
    if not any(item.text or item.json or item.rows for item in items):
        raise ValueError(
            f"{source.path} holds {len(items)} images without captions and in no folders of classes; {EXPECTED}"
        )
    return DataSet(name=name, source=source, kind="captions")


def _shards(source: ShardSource, name: str, text: str, templates: tuple[str, ...]) -> DataSet:
    first = next(_raw(source), None)
    if first is None:
        raise ValueError(f"{text} holds no sample; {EXPECTED}")
    if "cls" not in first.members:
        return _by_label(source, name, text, templates)
    shards = expand_shards(source.shards)
    beside = storage.join(shards[0].rpartition("/")[0] or ".", CLASS_NAMES)
    if not storage.exists(beside):
        raise ValueError(
            f"the samples of {text} have the numbers of classes in .cls, but nothing says what they are called; write "
            f"{beside}, a name a line in the order of the numbers"
        )
    names = read_class_names(beside)
    labelled = LabelledShardSource(shards=shards, class_names=names, templates=templates)
    return DataSet(name=name, source=labelled, kind="classes", class_names=names, templates=templates)


def _by_label(source: Source, name: str, text: str, templates: tuple[str, ...]) -> DataSet:
    """Return the data set of samples that may have a name as `label`; all are read where the first one has."""
    report = SkipReport(log=False)
    samples = _samples(source, report)
    first = next(samples, None)
    if first is None:
        details = [skip.detail for skips in report.named.values() for skip in skips[:1]]
        raise ValueError("; ".join([f"not one sample of {text} can be used: {report}", *details, EXPECTED]))
    if label_of(first) is None:
        return DataSet(name=name, source=source, kind="captions")
    labels = {label_of(first), *map(label_of, samples)}
    names = tuple(sorted(label for label in labels if label is not None))
    return DataSet(name=name, source=source, kind="classes", class_names=names, templates=templates)


def label_of(sample: ImageTextSample) -> str | None:
    """Return the name of the class of a sample, where its metadata has one as `label`."""
    label = sample.metadata.get("label")
    return label if isinstance(label, str) and label.strip() else None


def _samples(source: Source, report: SkipReport) -> Iterator[ImageTextSample]:
    for unit in source.units():
        # Images elsewhere are not fetched to find out what they are called.
        yield from unit.described(report) if isinstance(unit, RecordUnit) else unit.read(report)


def _raw(source: ShardSource) -> Iterator[RawSample]:
    for unit in source.units():
        yield from read_shard(unit.path, lambda _: None)


def _has_classes_alone(source: FolderSource) -> bool:
    """Return whether a folder has images in folders of their own, and not one caption."""
    if storage.is_remote(source.path):
        return False
    try:
        items = [item for unit in source.units() for item in unit.items]
    except (ValueError, OSError) as error:
        raise_machine_fault(error)
        # What is wrong is said where the data are used.
        return False
    return any("/" in item.image for item in items) and not any(item.text or item.json or item.rows for item in items)


def _has_tables_alone(folder: str) -> bool:
    """Return whether a folder has tables, itself or below, and no images."""
    try:
        found = list_folder(folder)
    except (ValueError, OSError) as error:
        raise_machine_fault(error)
        # What is wrong is said where the data are used.
        return False
    return not found.images and any(map(is_table, found.files))


def _holds(path: str) -> str:
    """Say what is in a folder that is no data set."""
    try:
        names = storage.find_files(path)
    except OSError as error:
        return f"it cannot be looked through: {error}"
    kinds = Counter(os.path.splitext(name)[1].lower() or "without a suffix" for name in names)  # noqa: PTH122  no paths
    if not kinds:
        return "there are no files in it"
    return "there are " + ", ".join(f"{count:,} {suffix}" for suffix, count in kinds.most_common(5))


def _is_directory(text: str) -> bool:
    if not storage.is_remote(text):
        return storage.is_directory(text)
    # Every question to a store takes time, and the name of a shard answers this one.
    is_pattern = "{" in text or "::" in text or ".tar" in storage.file_name(text)
    return not is_pattern and storage.is_directory(text)
