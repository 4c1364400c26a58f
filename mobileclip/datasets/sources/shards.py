"""Reads tar shards with captions, with class numbers, or in the layout of CLIP_benchmark.

The layout of CLIP_benchmark has these files:

    wds_vtab-pets_test/
        classnames.txt                          one name per line, in the order of the labels
        zeroshot_classification_templates.txt   one prompt per line, with {c} for the class name
        dataset_type.txt                        "retrieval" if images have captions instead of labels
        test/nshards.txt                        number of shards
        test/0.tar                              KEY.jpg (png, webp); KEY.cls with the label, or KEY.txt with captions;
                                                KEY.npy with the groups of the image, for some metrics

Source: CLIP_benchmark defines the layout, and publishes data sets in this layout.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

import attrs

from mobileclip import storage
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.data.samples.limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.samples.members import parse_sample
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.shards.files import count_samples, expand_shards, parse_each, paths_of, read_shard, runs_program
from mobileclip.data.shards.sidecars import CARD, shard_folder
from mobileclip.data.skips import BadSampleError, Skip, SkipReport
from mobileclip.datasets.sources.base import (
    TEMPLATES as DEFAULT_TEMPLATES,
    Source,
    Unit,
    num_common,
    reading_errors,
    sources,
)
from mobileclip.datasets.sources.rows import RowOptions
from mobileclip.machine import raise_machine_fault
from mobileclip.strict import split_lines, strict

# Output shards are not compressed, because their members already are.
_COMPRESSED = re.compile(r"(\.tar)?\.(gz|bz2|xz)$|\.(tgz|tbz2|txz)$")
_FILE_NAME = re.compile(r"[\w][\w.+=@,~ -]*")
_MAX_NAMED = 3


@attrs.frozen(kw_only=True)
class ShardUnit(Unit):
    """One tar shard.

    Args:
        path: path or URL of the shard, or a `pipe:` command as in webdataset.
        sample_limits: limits for reading a sample.
    """

    path: str
    sample_limits: SampleLimits = SAMPLE_LIMITS

    def fingerprint(self) -> str:
        """Return size and modification time, or the store's version; for a `pipe:` shard, the command."""
        if runs_program(self.path):
            return self.path
        with reading_errors(f"shard {self.path}"):
            return storage.fingerprint(self.path)

    def about(self) -> str:
        """Return the unit name for a local shard, and the fingerprint for any other shard."""
        is_near = not (runs_program(self.path) or storage.is_remote(self.path))
        return self.name if is_near else self.fingerprint()

    def count(self) -> int | None:
        """Return the number of keys in a local uncompressed shard; None for other, truncated or unreadable shards."""
        if runs_program(self.path) or storage.is_remote(self.path) or _COMPRESSED.search(self.path):
            return None
        try:
            return count_samples([self.path], self.sample_limits)
        except (ValueError, OSError) as error:
            raise_machine_fault(error)
            # Reading the shard reports the problem.
            return None

    def size(self) -> int | None:
        """Return the number of bytes of the shard; None if unknown."""
        return None if runs_program(self.path) else storage.size(self.path)

    def files(self) -> tuple[str, ...]:
        """Return the path of the shard."""
        return () if runs_program(self.path) else (self.path,)

    def sample(self, key: str, members: Mapping[str, bytes]) -> ImageTextSample:
        """Return the sample with the given key and members.

        Raises:
            BadSampleError: if the members are not a valid sample.
        """
        return parse_sample(key, members, self.sample_limits)

    def read(self, report: SkipReport) -> Iterator[ImageTextSample]:
        """Yield the samples; for duplicate keys, yield only the first usable sample."""
        keys: set[str] = set()
        for sample in parse_each(read_shard(self.path, report.add, self.sample_limits), self.sample, report.add):
            if sample.key in keys:
                detail = "an earlier sample of the shard has the same key"
                report.add(Skip(reason="duplicate_key", key=sample.key, shard=self.path, detail=detail))
                continue
            keys.add(sample.key)
            report.num_read += 1
            yield sample


@sources.register("shards")
@attrs.frozen(kw_only=True, field_transformer=strict)
class ShardSource(Source):
    """Tar shards of image-text samples.

    Args:
        shards: paths, URLs or brace patterns of shards, which may be compressed; see `expand_shards`. Output shards
            have the names of the input shards, without `.gz`; shards from several folders stay in subfolders.
        sample_limits: limits for reading a sample.
    """

    shards: tuple[str, ...] = attrs.field(converter=paths_of)
    sample_limits: SampleLimits = SAMPLE_LIMITS

    @classmethod
    def of(cls, argument: str, *, samples_per_shard: int, rows: RowOptions) -> ShardSource:
        """Return the source for a path, pattern or folder of shards, see `Source.of`."""
        del samples_per_shard, rows  # the data are already in shards, and shards are not lists
        return cls(shards=(is_folder(argument) and shards_in(argument)) or argument)

    def units(self) -> tuple[ShardUnit, ...]:
        """Return one unit per shard, in the given order.

        Raises:
            ValueError: if there are no shards, a local shard is missing, or two shards would have the same output name.
        """
        paths = expand_shards(self.shards)
        local = [path for path in paths if not runs_program(path) and not storage.is_remote(path)]
        _check_present(local)
        units: dict[str, ShardUnit] = {}
        for path, name in zip(paths, output_names(paths), strict=True):
            if name in units:
                raise ValueError(
                    f"{units[name].path} and {path} would have the same output name {name}; pass each shard once, "
                    "or process the shards as two data sets"
                )
            units[name] = ShardUnit(name=name, path=path, sample_limits=self.sample_limits)
        return tuple(units.values())

    def fingerprints(self, units: Collection[Unit]) -> dict[str, str]:
        """Return the fingerprints of shards from folder listings; omit shards on web servers."""
        paths = {}
        for unit in units:
            assert isinstance(unit, ShardUnit), "this source has only units of shards"
            paths[unit.name] = unit.path
        listed = listed_fingerprints([path for path in paths.values() if not storage.is_web(path)])
        return {name: listed[path] for name, path in paths.items() if path in listed}


def shards_in(folder: str) -> tuple[str, ...]:
    """Return the shards in a folder; if the output of a reinforcement has none, return the shards in its subfolders."""
    shards = storage.list_files(folder, ".tar")
    if shards or not storage.exists(storage.join(folder, CARD)):
        return shards
    # A reinforcement stores unfinished shards in a hidden folder, which is not listed.
    return storage.list_files(folder, ".tar", recursive=True)


def is_folder(text: str) -> bool:
    """Return whether a path is a folder; for the URL of a shard, return False without a request."""
    is_shard = is_pattern(text) or "::" in text or ".tar" in storage.file_name(text)
    return not (is_shard and storage.is_remote(text)) and storage.is_directory(text)


def is_pattern(text: str) -> bool:
    """Return whether a text is a brace pattern, or a `pipe:` command that writes a shard."""
    return "{" in text or runs_program(text)


def listed_fingerprints(paths: Iterable[str]) -> dict[str, str]:
    """Return the fingerprints of existing shards by path, from one listing per folder of a store or disk.

    Args:
        paths: paths or URLs of shards. Web servers cannot list folders, so every web URL takes a request.

    Raises:
        OSError: if a store cannot be reached.
    """
    found = {}
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if runs_program(path):
            found[path] = path
        elif storage.is_web(path):
            with suppress(FileNotFoundError):
                found[path] = storage.fingerprint(path)
        else:
            folders[shard_folder(path)].append(path)
    for folder, own in folders.items():
        listed = storage.find_files(folder, recursive=False)
        names = ((path, storage.file_name(path)) for path in own)
        found |= {path: listed[name] for path, name in names if name in listed}
    return found


def _check_present(paths: list[str]) -> None:
    missing = [path for path in paths if not storage.local_path(path).exists()]
    if missing:
        others = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        raise ValueError(
            f"missing shards: {', '.join(missing[:_MAX_NAMED])}{others}; "
            "patterns need braces, such as 'train/{00000..00127}.tar'"
        )
    for path in paths:
        if storage.is_directory(path):
            raise ValueError(f"{path} is a directory, not a shard; for a directory of images, use FolderSource")


def output_names(paths: Sequence[str]) -> list[str]:
    """Return the names of the output shards: the paths relative to the common folder of all shards."""
    folders = [() if runs_program(path) else _folders(path) for path in paths]
    num_above = num_common(one for path, one in zip(paths, folders, strict=True) if not runs_program(path))
    names = []
    for path, above in zip(paths, folders, strict=True):
        name, below = _COMPRESSED.sub(".tar", storage.file_name(path)), above[num_above:]
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"{path!r} does not end with a valid file name for the output shard")
        if bad := [folder for folder in below if not _FILE_NAME.fullmatch(folder)]:
            raise ValueError(
                f"the shards are in several folders, but the output shard of {path!r} cannot be in a folder named "
                f"{bad[0]!r}; rename the folder, or process each folder as a separate data set"
            )
        names.append("/".join((*below, name)))
    return names


def _folders(path: str) -> tuple[str, ...]:
    """Return the names of the folders above a file, from the root, bucket or host down."""
    if storage.is_web(path):
        address = urllib.parse.urlsplit(path)
        whole = f"{address.netloc}{urllib.parse.unquote(address.path)}"
    else:
        whole = path if storage.is_remote(path) else storage.local_path(path).absolute().as_posix()
    return tuple(part for part in whole.split("/")[:-1] if part not in ("", "."))


LayoutKind = Literal["classification", "retrieval"]

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
KIND = "dataset_type.txt"
SPLIT = "test"

_LABEL = re.compile(r"[0-9]{1,18}")
_SEVERAL_LABELS = re.compile(r"[0-9]+([\s,;]+[0-9]+)+")
_MAX_TEXT_BYTES = 1 << 24
_MAX_SHARDS = 100_000
_HUB = "https://huggingface.co/datasets/"


@attrs.frozen(kw_only=True)
class PublicLayout:
    """The class names, prompt templates, kind and shards of a data set in CLIP_benchmark's layout.

    Args:
        name: name of the folder, without the prefix `wds_` and the suffix `_test`.
        kind: `classification` for images with labels, `retrieval` for images with captions.
        class_names: names of the classes, in the order of the labels; empty for retrieval.
        templates: prompt templates with one `{}` for the class name; empty for retrieval.
        shards: paths or URLs of the shards.
    """

    name: str
    kind: LayoutKind
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    shards: tuple[str, ...]


def is_public_layout(path: str | os.PathLike[str]) -> bool:
    """Return whether a local folder contains a data set in CLIP_benchmark's layout, possibly incomplete."""
    folder = storage.local_path(path)
    return (folder / SPLIT / "nshards.txt").exists() or ((folder / CLASS_NAMES).exists() and (folder / SPLIT).is_dir())


def read_public_layout(path: str | os.PathLike[str], *, split: str = SPLIT) -> PublicLayout:
    """Read the small files of a data set in CLIP_benchmark's layout, without reading shards.

    Args:
        path: path or URL of the data set folder, or a data set page on the Hugging Face hub, such as
            `https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/tree/main`.
        split: name of the folder with the shards.

    Raises:
        ValueError: if a small file is missing or malformed (the message names the line), or the folder has more shards
            than `nshards.txt` states.
        OSError: if a store cannot be reached.
    """
    root = files_of_page(os.fspath(path))
    num_shards = _num_shards(root, split)
    shards = tuple(storage.join(root, f"{split}/{number}.tar") for number in range(num_shards))
    if storage.exists(storage.join(root, f"{split}/{num_shards}.tar")):
        raise ValueError(
            f"{root}/{split}/nshards.txt states {num_shards} shards, but {num_shards}.tar also exists; "
            f"correct the number, or remove the extra shards"
        )
    kind = _kind(root)
    named = kind == "classification"
    return PublicLayout(
        name=storage.file_name(root.partition("/resolve/")[0]).removeprefix("wds_").removesuffix("_test"),
        kind=kind,
        class_names=read_class_names(storage.join(root, CLASS_NAMES)) if named else (),
        templates=_templates(root) if named else (),
        shards=shards,
    )


def files_of_page(path: str) -> str:
    """Return the URL of the files for a data set page on the Hugging Face hub; return other paths without final `/`."""
    if path.startswith(_HUB):
        path = path.replace("/tree/", "/resolve/", 1)
        return path if "/resolve/" in path else f"{path.rstrip('/')}/resolve/main"
    return path.rstrip("/")


def read_class_names(path: str) -> tuple[str, ...]:
    """Return the class names from a file with one name per line, in the order of the labels.

    Raises:
        ValueError: if the file is missing or empty, or a name is blank.
        OSError: if the file cannot be read.
    """
    names = _lines(path, "expected the names of the classes, one per line")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise ValueError(f"{path}, line {number}: class {number - 1} has no name")
    return tuple(names)


def class_names_next_to(shard: str) -> tuple[str, ...]:
    """Return the class names in `classnames.txt` next to a shard; empty if the file is missing.

    Raises:
        ValueError, OSError: see `read_class_names`.
    """
    path = storage.join(shard_folder(shard), CLASS_NAMES)
    return read_class_names(path) if storage.exists(path) else ()


def parse_label(stored: bytes | None, num_classes: int) -> int:
    """Return the class number in a sample's `.cls`.

    Raises:
        BadSampleError: if `.cls` is missing, or is not an integer from 0 to `num_classes - 1`.
    """
    if stored is None:
        raise BadSampleError("no_label", "the sample has no .cls with a class number")
    text = stored[:_MAX_TEXT_BYTES].decode("utf-8", "replace").strip()
    if _SEVERAL_LABELS.fullmatch(text):
        raise BadSampleError("several_labels", f".cls holds {text[:40]!r}, expected the number of one class")
    if not _LABEL.fullmatch(text):
        raise BadSampleError("bad_label", f".cls holds {text[:40]!r}, expected the number of a class")
    label = int(text)
    if label >= num_classes:
        raise BadSampleError("bad_label", f"the label is {label}, but there are {num_classes} classes, numbered from 0")
    return label


def caption_lines(stored: bytes | None) -> tuple[str, ...]:
    """Return the captions in a sample's `.txt`, one per line.

    Raises:
        BadSampleError: if the sample has no caption.
    """
    lines = () if stored is None else split_lines(stored.decode("utf-8", "replace"))
    captions = tuple(line for line in lines if line.strip())
    if not captions:
        raise BadSampleError("no_caption", "the sample has no .txt with a caption")
    return captions


def image_of(members: Mapping[str, bytes]) -> str:
    """Return the extension of a sample's image.

    Raises:
        BadSampleError: if the sample has no image.
    """
    extension = next((one for one in IMAGE_EXTENSIONS if one in members), None)
    if extension is None:
        there = ", ".join(sorted(members))
        raise BadSampleError("no_image", f"the sample has no image ({', '.join(IMAGE_EXTENSIONS)}), only {there}")
    return extension


@attrs.frozen(kw_only=True)
class LabelledShardUnit(ShardUnit):
    """A shard of samples with a class number in `.cls` or, without classes, captions in `.txt`, one per line.

    Args:
        class_names: names of the classes, in the order of the labels; empty for samples with captions.
        templates: prompt templates with one `{}`.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    def sample(self, key: str, members: Mapping[str, bytes]) -> ImageTextSample:
        """Return the sample with captions from the prompt templates or, without class names, from `.txt`."""
        extension, metadata = image_of(members), dict[str, str]()
        if self.class_names:
            metadata["label"] = name = self.class_names[parse_label(members.get("cls"), len(self.class_names))]
            captions = tuple(template.replace("{}", name) for template in self.templates)
        else:
            captions = caption_lines(members.get("txt"))
        return ImageTextSample(
            key=key, captions=captions, image=members[extension], image_extension=extension, metadata=metadata
        )


@sources.register("labelled_shards")
@attrs.frozen(kw_only=True, field_transformer=strict)
class LabelledShardSource(Source):
    """Tar shards of images with class numbers in `.cls`.

    Args:
        shards: see `ShardSource`.
        class_names: names of the classes, in the order of the labels.
        templates: prompt templates with one `{}`.
    """

    shards: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES

    @classmethod
    def of(cls, argument: str, *, samples_per_shard: int, rows: RowOptions) -> LabelledShardSource:
        """Return a source for a path, pattern or folder of shards, with class names from `classnames.txt`."""
        return cls.beside(ShardSource.of(argument, samples_per_shard=samples_per_shard, rows=rows).shards)

    @classmethod
    def beside(cls, shards: Sequence[str]) -> LabelledShardSource:
        """Return a source for shards, with class names from `classnames.txt` next to the shards.

        Raises:
            ValueError: if `classnames.txt` is missing.
        """
        shards = expand_shards(shards)
        names = class_names_next_to(shards[0])
        if not names:
            path = storage.join(shard_folder(shards[0]), CLASS_NAMES)
            raise ValueError(
                f"the samples of {shards[0]} have class numbers in .cls, but no class names; "
                f"write {path}, with one name per line, in the order of the numbers"
            )
        return cls(shards=shards, class_names=names)

    def units(self) -> tuple[LabelledShardUnit, ...]:
        """Return a unit per shard, in the given order.

        Raises:
            ValueError: see `ShardSource.units`.
        """
        units = ShardSource(shards=self.shards).units()
        return _labelled(((unit.name, unit.path) for unit in units), self.class_names, self.templates)


@sources.register("public_layout")
@attrs.frozen(kw_only=True, field_transformer=strict)
class PublicLayoutSource(Source):
    """A data set in CLIP_benchmark's layout; captions for classes are the prompt templates with the class name.

    Args:
        path: path or URL of the data set folder, or a data set page on the Hugging Face hub.
        split: name of the folder with the shards.
    """

    path: str = attrs.field(converter=os.fspath)
    split: str = SPLIT

    def units(self) -> tuple[LabelledShardUnit, ...]:
        """Return a unit per shard.

        Raises:
            ValueError, OSError: see `read_public_layout`.
        """
        layout = read_public_layout(self.path, split=self.split)
        named = ((storage.file_name(path), path) for path in layout.shards)
        return _labelled(named, layout.class_names, layout.templates)


def _labelled(
    shards: Iterable[tuple[str, str]], class_names: tuple[str, ...], templates: tuple[str, ...]
) -> tuple[LabelledShardUnit, ...]:
    make = partial(LabelledShardUnit, class_names=class_names, templates=templates)
    return tuple(make(name=name, path=path) for name, path in shards)


def _num_shards(root: str, split: str) -> int:
    path = storage.join(root, f"{split}/nshards.txt")
    text = " ".join(_lines(path, "expected the number of shards")).strip()
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if number == 0:
        raise ValueError(f"{path} holds {text[:40]!r}, expected a number of shards")
    if number > _MAX_SHARDS:
        raise ValueError(f"{path} states {number:,} shards, expected at most {_MAX_SHARDS:,}")
    return number


def _kind(root: str) -> LayoutKind:
    path = storage.join(root, KIND)
    said = (
        " ".join(_lines(path, "expected classification or retrieval")).strip().lower()
        if storage.exists(path)
        else "classification"
    )
    if said not in ("classification", "retrieval"):
        raise ValueError(f"{path} holds {said[:40]!r}, expected classification or retrieval")
    return "retrieval" if said == "retrieval" else "classification"


def _templates(root: str) -> tuple[str, ...]:
    path = storage.join(root, TEMPLATES)
    lines = _lines(path, "expected one prompt per line, with {c} for the name of a class")
    for number, line in enumerate(lines, 1):
        if line.count("{c}") != 1 or "{}" in line:
            raise ValueError(f"{path}, line {number}: {line[:60]!r} needs one {{c}} for the class name, and no {{}}")
    return tuple(line.replace("{c}", "{}") for line in lines)


def _lines(path: str, what: str) -> list[str]:
    try:
        lines = split_lines(storage.read_bytes(path, limit=_MAX_TEXT_BYTES).decode("utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {what}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    if not lines:
        raise ValueError(f"{path} is empty: {what}")
    return lines
