"""A data set to evaluate on, of any kind that `mobileclip.datasets` reads, or in the public layout."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import attrs
import numpy as np

from mobileclip import storage
from mobileclip.data import ImageTextSample
from mobileclip.data.samples.readers import read_npy
from mobileclip.data.shards.files import count_samples, parse, read_shard
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.datasets.sources import RowOptions, Source, label_of, open_data_set
from mobileclip.datasets.sources.opening import LISTS, name_of
from mobileclip.datasets.sources.shards import (
    SPLIT,
    LayoutKind,
    caption_lines,
    image_of,
    is_public_layout,
    parse_label,
    read_public_layout,
)
from mobileclip.evaluation.suite import suite_entry
from mobileclip.strict import repeated

# By the key of the data set: the order of the numbers.
# Source: DataComp (Gadre et al. 2023), which publishes the data in this form; the fields of the first three are those
# of WILDS (Koh et al. 2021).
FIELDS = {
    "wilds/iwildcam": ("location", "sequence", "year", "month", "day", "hour", "minute", "second", "y"),
    "wilds/camelyon17": ("hospital", "slide", "y"),
    "wilds/fmow": ("region", "year", "y"),
    "fairness/dollar_street": ("income_ds", "income_meta", "region"),
    "fairness/geode": ("region", "country"),
}

# Metrics of the worst group.
OVER_GROUPS = ("acc_worst_region", "acc_top5_wg", "acc_wg")


def metadata_fields(name: str) -> tuple[str, ...]:
    """Return what the numbers beside an image of a data set say, in order; none for data sets that have no groups.

    Args:
        name: name of its folder, without `wds_` and `_test`.
    """
    entry = suite_entry(name)
    return () if entry is None else FIELDS.get(entry.key, ())


def needs_metadata(name: str) -> bool:
    """Return whether the metric that counts on a data set is one over groups, so that an image without them is none."""
    entry = suite_entry(name)
    return entry is not None and entry.main_metric in OVER_GROUPS


def parse_metadata(stored: bytes | None, fields: tuple[str, ...]) -> tuple[int, ...]:
    """Return the numbers in a numpy file.

    Fractions are cut off, as the public evaluation cuts them off before it forms groups.

    Args:
        stored: the file; None where there is none.
        fields: what the numbers say, at least one.

    Raises:
        BadSampleError: with the reason `no_metadata`, if there is no file, or `bad_metadata`, if it is something else
            than one finite number from 0 for each field.
    """
    named = ", ".join(fields)
    if stored is None:
        raise BadSampleError("no_metadata", f"there is no .npy with its {named}")
    try:
        values = read_npy(stored)
    except ValueError as error:
        raise BadSampleError("bad_metadata", f".npy is no array of numbers: {error}") from None
    if values.shape != (len(fields),):
        found = f"{values.dtype} of shape {values.shape}"
        raise BadSampleError("bad_metadata", f".npy holds {found}, expected {len(fields)} numbers: {named}")
    if not (np.isfinite(values).all() and (values >= 0).all() and (values < 2**63).all()):
        raise BadSampleError("bad_metadata", f".npy holds {values.tolist()}, expected numbers from 0 for {named}")
    return tuple(int(value) for value in values)


Kind = LayoutKind

_LEFT = "fetch what is missing, or pass allow_missing=True to evaluate on what is left"


@attrs.frozen(kw_only=True)
class BenchmarkSample:
    """One image to evaluate on.

    Args:
        key: its name in the shard.
        image: the encoded image.
        label: index of its class; None for retrieval.
        captions: its captions; empty for classification.
        metadata: what `metadata_fields` names, for the data sets whose images belong to groups.
    """

    key: str
    image: bytes = attrs.field(repr=lambda data: f"{len(data)} bytes")
    label: int | None = None
    captions: tuple[str, ...] = ()
    metadata: tuple[int, ...] | None = None


@attrs.frozen(kw_only=True)
class Benchmark:
    """A data set to evaluate on.

    Args:
        name: name of its folder, without `wds_` and `_test`.
        kind: what its samples have beside the image.
        class_names: in the order of the labels; empty for retrieval.
        templates: prompts with one `{}` where the name goes; empty for retrieval.
        shards: paths or URLs, in the public layout.
        source: where the samples are otherwise; None in the public layout.
        allow_missing: evaluate on what is left where a shard is missing, cannot be read or breaks off; how many images
            that costs is not known, so that without it nothing is evaluated at all.
    """

    name: str
    kind: Kind
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    shards: tuple[str, ...] = ()
    source: Source | None = None
    allow_missing: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Paths and URLs of the files that its samples come from."""
        if self.source is None:
            return self.shards
        return tuple(dict.fromkeys(file for unit in self.source.units() for file in unit.files()))

    @property
    def units(self) -> tuple[str, ...]:
        """Fingerprints of the parts of a source, beside the content of its files."""
        return () if self.source is None else tuple(unit.fingerprint() for unit in self.source.units())

    def num_samples(self) -> int | None:
        """Return how many samples there are, those that cannot be used included; None where only reading would tell.

        Raises:
            ValueError: if a shard on disk is missing, or breaks off.
        """
        if self.source is None:
            is_far = any(storage.is_remote(shard) for shard in self.shards)
            return None if is_far else count_samples(self.shards)
        counts = [unit.count() for unit in self.source.units()]
        return None if None in counts else sum(count for count in counts if count is not None)

    def samples(self, report: SkipReport) -> Iterator[BenchmarkSample]:
        """Yield the samples of all shards; what cannot be used is counted and named in `report`.

        A key that comes again in a shard is skipped, and so is one with the very same content in another shard: that is
        a copy.

        Args:
            report: the reasons are those of `read_shard`, missing_shard, duplicate_key, no_image, no_label,
                several_labels, bad_label and no_caption; for data sets of groups no_metadata and bad_metadata.

        Raises:
            ValueError: if a shard is missing, cannot be read or breaks off, and `allow_missing` is false; the message
                names it.
        """
        if self.source is not None:
            yield from self._of_source(self.source, report)
            return
        contents: set[int] = set()
        on_skip = report.add if self.allow_missing else partial(self._add_or_refuse, report)
        for shard in self._shards_there(report):
            keys: set[str] = set()
            for raw in read_shard(shard, on_skip):
                content = hash((raw.key, frozenset(raw.members.items())))
                if raw.key in keys or content in contents:
                    detail = f"the key came before {'here' if raw.key in keys else 'in another shard'}"
                    report.add(Skip(reason="duplicate_key", key=raw.key, shard=shard, detail=detail))
                    continue
                keys.add(raw.key)
                contents.add(content)
                sample = parse(raw, self._sample, report.add)
                if sample is not None:
                    report.num_read += 1
                    yield sample

    def _of_source(self, source: Source, report: SkipReport) -> Iterator[BenchmarkSample]:
        places = {name: index for index, name in enumerate(self.class_names)}
        for unit in source.units():
            for sample in unit.read(report):
                converted = _converted(sample, places)
                if isinstance(converted, BadSampleError):
                    report.num_read -= 1
                    report.add(converted.skip(key=sample.key, shard=self.name))
                else:
                    yield converted

    def _shards_there(self, report: SkipReport) -> tuple[str, ...]:
        """Return the shards without those that are missing on disk; others show when they are opened."""
        missing = [shard for shard in self.shards if not (storage.is_remote(shard) or storage.exists(shard))]
        if missing and not self.allow_missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ValueError(
                f"{len(missing)} of the {len(self.shards)} shards of {self.name} are missing: {', '.join(missing[:5])}"
                f"{more}; {_LEFT}"
            )
        report.extend(Skip(reason="missing_shard", key="", shard=shard, detail="no such file") for shard in missing)
        return tuple(shard for shard in self.shards if shard not in missing)

    def _add_or_refuse(self, report: SkipReport, skip: Skip) -> None:
        report.add(skip)
        if not skip.key:
            raise ValueError(
                f"images of {self.name} are missing: {skip.shard}: {skip.reason} {skip.detail}; {_LEFT}"
            ) from None

    def _sample(self, key: str, members: Mapping[str, bytes]) -> BenchmarkSample:
        extension = image_of(members)
        retrieval = self.kind == "retrieval"
        return BenchmarkSample(
            key=key,
            image=members[extension],
            label=None if retrieval else parse_label(members.get("cls"), len(self.class_names)),
            captions=caption_lines(members.get("txt")) if retrieval else (),
            metadata=self._metadata(members.get("npy")),
        )

    def _metadata(self, stored: bytes | None) -> tuple[int, ...] | None:
        fields = metadata_fields(self.name)
        if not fields or (stored is None and not needs_metadata(self.name)):
            return None
        return parse_metadata(stored, fields)


def require_different_names(names: Iterable[str]) -> None:
    """Refuse data sets whose results could be taken for each other's.

    Args:
        names: of data sets, or their keys.

    Raises:
        ValueError: if one comes twice.
    """
    if twice := repeated(names):
        raise ValueError(f"data sets need different names, repeated: {', '.join(twice)}; rename their folders")


def open_benchmark(
    path: str | os.PathLike[str],
    *,
    split: str = SPLIT,
    allow_missing: bool = False,
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> Benchmark:
    """Return a data set, having read its names and templates; images are read when they are asked for.

    Args:
        path: any data set, see `open_data_set`: a folder of classes, one of captions, JSON lines, shards, or a folder
            in the public layout; a URL of one in the public layout, or its page on the Hugging Face hub, such as
            `https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/tree/main`.
        split: the folder of the shards in the public layout.
        allow_missing: see `Benchmark`.
        rows: how rows of `.jsonl` files and of tables are read.

    Raises:
        ValueError: if there is no data set; the message says what is there and what is expected. In the public layout,
            if a file of names or templates is missing or malformed, or there are more shards than it says.
        OSError: if a store cannot be reached.
    """
    text = os.fspath(path)
    if split != SPLIT or _is_layout(text):
        layout = read_public_layout(text, split=split)
        return Benchmark(
            name=layout.name,
            kind=layout.kind,
            class_names=layout.class_names,
            templates=layout.templates,
            shards=layout.shards,
            allow_missing=allow_missing,
        )
    opened = open_data_set(text, rows=rows)
    if opened.kind == "classes" and len(opened.class_names) < 2:
        raise ValueError(f"{text} has one class alone, {opened.class_names[0]!r}; expected several to choose from")
    return Benchmark(
        name=benchmark_name(text),
        kind="classification" if opened.kind == "classes" else "retrieval",
        class_names=opened.class_names,
        templates=opened.templates,
        source=opened.source,
        allow_missing=allow_missing,
    )


def benchmark_name(path: str) -> str:
    """Return what the data set at a path is called; a person's own is not taken for one of the suite.

    Args:
        path: see `open_benchmark`; nothing is read.
    """
    name = name_of(path)
    return name if _is_layout(path) or suite_entry(name) is None else f"{name} (own)"


def _is_layout(text: str) -> bool:
    """Return whether a path is of the public layout; a URL that names no file is taken for one."""
    if storage.is_remote(text):
        name = storage.file_name(text.rstrip("/")).lower()
        return not (".tar" in name or name.endswith(LISTS) or "{" in text)
    return is_public_layout(text)


def _converted(sample: ImageTextSample, places: Mapping[str, int]) -> BenchmarkSample | BadSampleError:
    if sample.image is None:
        return BadSampleError("no_image", "there is a text alone")
    if not places:
        return BenchmarkSample(key=sample.key, image=sample.image, captions=tuple(sample.captions))
    label = label_of(sample)
    if label is None:
        return BadSampleError("no_label", "its metadata has no name of a class as `label`")
    if label not in places:
        return BadSampleError("bad_label", f"there is no class {label!r}")
    return BenchmarkSample(key=sample.key, image=sample.image, label=places[label])


def fingerprint(benchmark: Benchmark) -> str:
    """Return a hash that changes when the content of a data set's shards does, or which of their samples can be used.

    Raises:
        OSError: if a shard cannot be read, or a store cannot be reached.
    """
    content = storage.content_hashes(benchmark.files)
    about = [benchmark.name, benchmark.kind, len(benchmark.class_names), benchmark.allow_missing]
    return hash_of([*about, content, benchmark.units])


def hash_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def folder_content(path: str) -> str | None:
    """Return a hash that changes with the files of a folder; None for a web server, which lists nothing.

    What lies directly in it, such as a table of questions, is told by its content too; folders of pictures below, of
    which there may be a hundred thousand, by names, sizes and times.

    Args:
        path: path of the folder, or its URL.

    Raises:
        OSError: if a store cannot be reached.
    """
    try:
        found = {name: mark for name, mark in storage.find_files(path).items() if not name.startswith(".")}
    except ValueError:  # a web server lists nothing
        return None
    beside = sorted(name for name in found if "/" not in name)
    hashes = storage.content_hashes(storage.join(path, name) for name in beside)
    return hash_of([sorted(found.items()), hashes])
