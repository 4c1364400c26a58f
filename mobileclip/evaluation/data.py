"""Opens and reads evaluation data sets: all kinds that `mobileclip.datasets` reads, and CLIP_benchmark's layout."""

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

# Names of the metadata fields in order, by the key of the data set.
# Source: DataComp (Gadre et al. 2023), which publishes the data in this form; WILDS (Koh et al. 2021) defines the
# fields of the first three data sets.
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
    """Return the names of the metadata numbers of each image, in order; empty for data sets without groups.

    Args:
        name: name of the data set's folder, without `wds_` and `_test`.
    """
    entry = suite_entry(name)
    return () if entry is None else FIELDS.get(entry.key, ())


def needs_metadata(name: str) -> bool:
    """Return whether the main metric of a data set is a worst-group metric, for which every image needs metadata."""
    entry = suite_entry(name)
    return entry is not None and entry.main_metric in OVER_GROUPS


def parse_metadata(stored: bytes | None, fields: tuple[str, ...]) -> tuple[int, ...]:
    """Return the metadata numbers in a NumPy file.

    Truncate fractions to whole numbers, as DataComp's evaluation code does before grouping images.

    Args:
        stored: content of the `.npy` file; None if the sample has no `.npy` file.
        fields: names of the numbers, at least one.

    Raises:
        BadSampleError: with the reason `no_metadata` if the file is missing, or `bad_metadata` if the file does not
            contain exactly one finite non-negative number for each field.
    """
    named = ", ".join(fields)
    if stored is None:
        raise BadSampleError("no_metadata", f"the .npy file with {named} is missing")
    try:
        values = read_npy(stored)
    except ValueError as error:
        raise BadSampleError("bad_metadata", f".npy is not an array of numbers: {error}") from None
    if values.shape != (len(fields),):
        found = f"{values.dtype} of shape {values.shape}"
        raise BadSampleError("bad_metadata", f".npy contains {found}, expected {len(fields)} numbers: {named}")
    if not (np.isfinite(values).all() and (values >= 0).all() and (values < 2**63).all()):
        raise BadSampleError("bad_metadata", f".npy contains {values.tolist()}, expected numbers >= 0 for {named}")
    return tuple(int(value) for value in values)


Kind = LayoutKind

_LEFT = "download the missing data, or pass allow_missing=True to evaluate on the remaining data"


@attrs.frozen(kw_only=True)
class BenchmarkSample:
    """One image to evaluate on.

    Args:
        key: key of the sample in the shard.
        image: the encoded image.
        label: index of the image's class; None for retrieval.
        captions: captions of the image; empty for classification.
        metadata: values of `metadata_fields`, for data sets with groups of images.
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
        name: name of the data set's folder, without `wds_` and `_test`.
        kind: task of the data set, `classification` or `retrieval`.
        class_names: class names in the order of the labels; empty for retrieval.
        templates: prompts with one `{}` for the class name; empty for retrieval.
        shards: paths or URLs of the shards in CLIP_benchmark's layout; empty for any other layout.
        source: source of the samples; None for CLIP_benchmark's layout.
        allow_missing: whether to evaluate on the remaining images if a shard is missing, unreadable or truncated. The
            number of lost images is unknown, so by default the evaluation refuses the data set.
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
        """Paths and URLs of the files that hold the samples."""
        if self.source is None:
            return self.shards
        return tuple(dict.fromkeys(file for unit in self.source.units() for file in unit.files()))

    @property
    def units(self) -> tuple[str, ...]:
        """Fingerprints of the source's units, which complement the hashes of the files; empty without a source."""
        return () if self.source is None else tuple(unit.fingerprint() for unit in self.source.units())

    def num_samples(self) -> int | None:
        """Return the number of samples, including unusable samples; None if counting would require reading the data.

        Raises:
            ValueError: if a shard on disk is missing or truncated.
        """
        if self.source is None:
            is_far = any(storage.is_remote(shard) for shard in self.shards)
            return None if is_far else count_samples(self.shards)
        counts = [unit.count() for unit in self.source.units()]
        return None if None in counts else sum(count for count in counts if count is not None)

    def samples(self, report: SkipReport) -> Iterator[BenchmarkSample]:
        """Yield the samples of all shards, and record unusable samples in `report`.

        Skip a sample if its key occurred earlier in the same shard, or if an earlier shard holds a sample with the same
        key and the same content.

        Args:
            report: report of skipped samples. The reasons are missing_shard, duplicate_key, no_image, no_label,
                several_labels, bad_label, no_caption, the reasons of `read_shard` and, for data sets with groups,
                no_metadata and bad_metadata.

        Raises:
            ValueError: if a shard is missing, unreadable or truncated and `allow_missing` is false; the message names
                the shard.
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
                    detail = f"the key occurred before in {'this' if raw.key in keys else 'an earlier'} shard"
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
        """Return the shards that exist on disk and all remote shards; opening a missing remote shard fails later."""
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
    """Raise an error if two data sets have the same name.

    Args:
        names: names or keys of the data sets.

    Raises:
        ValueError: if a name occurs twice.
    """
    if twice := repeated(names):
        raise ValueError(f"data sets need different names; repeated: {', '.join(twice)}; rename their folders")


def open_benchmark(
    path: str | os.PathLike[str],
    *,
    split: str = SPLIT,
    allow_missing: bool = False,
    rows: RowOptions = RowOptions(),  # noqa: B008  frozen
) -> Benchmark:
    """Open a data set and read its class names and templates; the images are read later.

    Args:
        path: path of a data set: a folder of classes, a folder of captioned images, JSON lines, shards, or a folder in
            CLIP_benchmark's layout (see `open_data_set`); or the URL of a data set in CLIP_benchmark's layout, such as
            the page `https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/tree/main` of the Hugging Face hub.
        split: name of the folder with the shards, in CLIP_benchmark's layout.
        allow_missing: whether to evaluate on the remaining images if a shard is missing; see `Benchmark`.
        rows: options for reading rows of `.jsonl` files and tables.

    Raises:
        ValueError: if the path is not a data set; the message lists the found and the expected files. In
            CLIP_benchmark's layout: if the file of class names or of templates is missing or malformed, or if there are
            more shards than `nshards.txt` states.
        OSError: if a store is unreachable.
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
        raise ValueError(f"{text} has only one class, {opened.class_names[0]!r}; expected at least two")
    return Benchmark(
        name=benchmark_name(text),
        kind="classification" if opened.kind == "classes" else "retrieval",
        class_names=opened.class_names,
        templates=opened.templates,
        source=opened.source,
        allow_missing=allow_missing,
    )


def benchmark_name(path: str) -> str:
    """Return the name of the data set at a path.

    If a suite data set has this name, but the path is not in CLIP_benchmark's layout, the name ends with ` (own)`.

    Args:
        path: path or URL of a data set, as in `open_benchmark`; the function reads no file.
    """
    name = name_of(path)
    return name if _is_layout(path) or suite_entry(name) is None else f"{name} (own)"


def _is_layout(text: str) -> bool:
    """Return whether a path is in CLIP_benchmark's layout; assume so for a URL that names neither shards nor a list."""
    if storage.is_remote(text):
        name = storage.file_name(text.rstrip("/")).lower()
        return not (".tar" in name or name.endswith(LISTS) or "{" in text)
    return is_public_layout(text)


def _converted(sample: ImageTextSample, places: Mapping[str, int]) -> BenchmarkSample | BadSampleError:
    if sample.image is None:
        return BadSampleError("no_image", "the sample has text but no image")
    if not places:
        return BenchmarkSample(key=sample.key, image=sample.image, captions=tuple(sample.captions))
    label = label_of(sample)
    if label is None:
        return BadSampleError("no_label", "the metadata of the sample has no field `label` with a class name")
    if label not in places:
        return BadSampleError("bad_label", f"there is no class {label!r}")
    return BenchmarkSample(key=sample.key, image=sample.image, label=places[label])


def fingerprint(benchmark: Benchmark) -> str:
    """Return a hash of a data set that changes when the content of the files or the set of usable samples changes.

    Raises:
        OSError: if a shard cannot be read, or a store is unreachable.
    """
    content = storage.content_hashes(benchmark.files)
    about = [benchmark.name, benchmark.kind, len(benchmark.class_names), benchmark.allow_missing]
    return hash_of([*about, content, benchmark.units])


def hash_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def folder_content(path: str) -> str | None:
    """Return a hash that changes with the files of a folder; None on a web server, which cannot list the files.

    Hash the content of the files directly in the folder, such as a table of questions. For files in subfolders, which
    may hold a hundred thousand images, hash only names, sizes and modification times.

    Args:
        path: path of the folder, or its URL.

    Raises:
        OSError: if a store is unreachable.
    """
    try:
        found = {name: mark for name, mark in storage.find_files(path).items() if not name.startswith(".")}
    except ValueError:  # a web server lists nothing
        return None
    beside = sorted(name for name in found if "/" not in name)
    hashes = storage.content_hashes(storage.join(path, name) for name in beside)
    return hash_of([sorted(found.items()), hashes])
