"""A data set to evaluate on, in the layout in which the field shares them: shards, class names and templates.

    wds_vtab-pets_test/
        classnames.txt                           a name a line, in the order of the labels
        zeroshot_classification_templates.txt    a prompt a line, with {c} where the name goes
        dataset_type.txt                         "retrieval" where images have captions instead of labels
        test/nshards.txt                         how many shards there are
        test/0.tar                               KEY.jpg (png, webp), KEY.cls with its label or KEY.txt with captions,
                                                 KEY.npy with the groups that it belongs to, where the metric asks

Source: CLIP_benchmark, which defines it; the 38 data sets are published in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Literal

import attrs

from mobileclip import storage
from mobileclip.data.image_formats import IMAGE_EXTENSIONS
from mobileclip.data.shards import parse, read_shard
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.evaluation.metadata import metadata_fields, needs_metadata, parse_metadata
from mobileclip.repeated import repeated

Kind = Literal["classification", "retrieval"]

_LABEL = re.compile(r"[0-9]{1,18}")
_SEVERAL_LABELS = re.compile(r"[0-9]+([\s,;]+[0-9]+)+")
_MAX_TEXT_BYTES = 1 << 24
_LEFT = "fetch what is missing, or pass allow_missing=True to evaluate on what is left"
_HUB = "https://huggingface.co/datasets/"


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
        name: of its folder, without `wds_` and `_test`.
        kind: what its samples have beside the image.
        class_names: in the order of the labels; empty for retrieval.
        templates: prompts with one `{}` where the name goes; empty for retrieval.
        shards: paths or addresses.
        allow_missing: evaluate on what is left where a shard is missing, cannot be read or breaks off; how many images
            that costs is not known, so that without it nothing is evaluated at all.
    """

    name: str
    kind: Kind
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    shards: tuple[str, ...]
    allow_missing: bool = False

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
        extension = next((one for one in IMAGE_EXTENSIONS if one in members), None)
        if extension is None:
            there = ", ".join(sorted(members))
            raise BadSampleError("no_image", f"there is none of {', '.join(IMAGE_EXTENSIONS)}, only {there}")
        retrieval = self.kind == "retrieval"
        return BenchmarkSample(
            key=key,
            image=members[extension],
            label=None if retrieval else self._label(members.get("cls")),
            captions=_captions(members.get("txt")) if retrieval else (),
            metadata=self._metadata(members.get("npy")),
        )

    def _metadata(self, stored: bytes | None) -> tuple[int, ...] | None:
        fields = metadata_fields(self.name)
        if not fields or (stored is None and not needs_metadata(self.name)):
            return None
        return parse_metadata(stored, fields)

    def _label(self, stored: bytes | None) -> int:
        if stored is None:
            raise BadSampleError("no_label", "there is no .cls with its label")
        text = stored.decode("utf-8", "replace").strip()
        if _SEVERAL_LABELS.fullmatch(text):
            raise BadSampleError("several_labels", f".cls holds {text[:40]!r}, expected the number of one class")
        if not _LABEL.fullmatch(text):
            raise BadSampleError("bad_label", f".cls holds {text[:40]!r}, expected the number of a class")
        label = int(text)
        if label >= len(self.class_names):
            raise BadSampleError("bad_label", f"label {label}, but there are {len(self.class_names)} classes, from 0")
        return label


def require_different_names(names: Iterable[str]) -> None:
    """Refuse data sets whose results could be taken for each other's.

    Args:
        names: of data sets, or their keys.

    Raises:
        ValueError: if one comes twice.
    """
    if twice := repeated(names):
        raise ValueError(f"data sets need different names, repeated: {', '.join(twice)}; rename their folders")


def open_benchmark(path: str | os.PathLike[str], *, split: str = "test", allow_missing: bool = False) -> Benchmark:
    """Return a data set, having read its names and templates; images are read when they are asked for.

    Args:
        path: its folder, an address of one, or its page on the Hugging Face hub, such as
            `https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/tree/main`.
        split: the folder of its shards.
        allow_missing: see `Benchmark`.

    Raises:
        ValueError: if a file of names or templates is missing or malformed; the message says which line. If there are
            more shards than it says.
        OSError: if a store cannot be reached.
    """
    root = files_of_page(os.fspath(path))
    count = _lines(root, f"{split}/nshards.txt", "how many shards there are")
    if len(count) != 1 or not count[0].isdigit() or int(count[0]) == 0:
        raise ValueError(f"{root}/{split}/nshards.txt holds {' '.join(count)[:40]!r}, expected a number of shards")
    shards = tuple(storage.join(root, f"{split}/{number}.tar") for number in range(int(count[0])))
    if storage.exists(storage.join(root, f"{split}/{len(shards)}.tar")):
        raise ValueError(
            f"{root}/{split}/nshards.txt says that there are {len(shards)} shards, but {len(shards)}.tar is there too; "
            f"correct the number, or remove what is too many"
        )
    kind = _kind(root)
    named = kind == "classification"
    return Benchmark(
        name=storage.file_name(root.partition("/resolve/")[0]).removeprefix("wds_").removesuffix("_test"),
        kind=kind,
        class_names=_class_names(root) if named else (),
        templates=_templates(root) if named else (),
        shards=shards,
        allow_missing=allow_missing,
    )


def files_of_page(path: str) -> str:
    """Return where the files of a page of the hub are; other paths are returned as they are."""
    if path.startswith(_HUB):
        path = path.replace("/tree/", "/resolve/", 1)
        return path if "/resolve/" in path else f"{path.rstrip('/')}/resolve/main"
    return path.rstrip("/")


def _kind(root: str) -> Kind:
    path = "dataset_type.txt"
    lines = _lines(root, path, "what it is for") if storage.exists(storage.join(root, path)) else ["classification"]
    match " ".join(lines).strip().lower():
        case "classification":
            return "classification"
        case "retrieval":
            return "retrieval"
        case other:
            raise ValueError(f"{root}/{path} says {other[:40]!r}, expected classification or retrieval")


def _class_names(root: str) -> tuple[str, ...]:
    path = "classnames.txt"
    names = _lines(root, path, "the names of the classes, one a line")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise ValueError(f"{root}/{path}, line {number}: class {number - 1} has no name")
    return tuple(names)


def _templates(root: str) -> tuple[str, ...]:
    path = "zeroshot_classification_templates.txt"
    lines = _lines(root, path, "the prompts, one a line, with {c} where the name of a class goes")
    for number, line in enumerate(lines, 1):
        if line.count("{c}") != 1 or "{}" in line:
            raise ValueError(
                f"{root}/{path}, line {number}: {line[:60]!r} needs one {{c}} where the name goes, no {{}}"
            )
    return tuple(line.replace("{c}", "{}") for line in lines)


def _captions(stored: bytes | None) -> tuple[str, ...]:
    lines = () if stored is None else stored.decode("utf-8", "replace").splitlines()
    captions = tuple(line for line in lines if line.strip())
    if not captions:
        raise BadSampleError("no_caption", "there is no .txt with a caption")
    return captions


def _lines(root: str, name: str, what: str) -> list[str]:
    path = storage.join(root, name)
    try:
        lines = storage.read_bytes(path, limit=_MAX_TEXT_BYTES).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {what}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    if not lines:
        raise ValueError(f"{path} is empty: {what}")
    return lines
