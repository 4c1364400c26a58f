"""The layout in which the field shares data sets to evaluate on: shards with class names and templates beside them.

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
from collections.abc import Mapping, Sequence
from typing import Literal

import attrs

from mobileclip import storage
from mobileclip.data.images.limits import IMAGE_EXTENSIONS
from mobileclip.data.samples.sample import ImageTextSample
from mobileclip.data.shards.counts import shard_folder
from mobileclip.data.shards.files import expand_shards
from mobileclip.data.skips import BadSampleError
from mobileclip.datasets.sources.access import RowOptions
from mobileclip.datasets.sources.base import TEMPLATES as DEFAULT_TEMPLATES, Source, sources
from mobileclip.datasets.sources.shards import ShardSource, ShardUnit
from mobileclip.strict import split_lines, strict

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
    """A data set in CLIP_benchmark's layout: its class names, prompts, kind and shards.

    Args:
        name: of its folder, without `wds_` and `_test`.
        kind: what its samples have beside the image.
        class_names: in the order of the labels; empty for retrieval.
        templates: prompts with one `{}` where the name goes; empty for retrieval.
        shards: paths or URLs.
    """

    name: str
    kind: LayoutKind
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    shards: tuple[str, ...]


def is_public_layout(path: str | os.PathLike[str]) -> bool:
    """Return whether a folder on this machine holds a data set in this layout, or what is left of one."""
    folder = storage.local_path(path)
    return (folder / SPLIT / "nshards.txt").exists() or ((folder / CLASS_NAMES).exists() and (folder / SPLIT).is_dir())


def read_public_layout(path: str | os.PathLike[str], *, split: str = SPLIT) -> PublicLayout:
    """Read the small files of a data set in CLIP_benchmark's layout; no shard is read.

    Args:
        path: its folder, a URL of one, or its page on the Hugging Face hub, such as
            `https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/tree/main`.
        split: the folder of its shards.

    Raises:
        ValueError: if a file of names or templates is missing or malformed; the message says which line. If there are
            more shards than it says.
        OSError: if a store cannot be reached.
    """
    root = files_of_page(os.fspath(path))
    num_shards = _num_shards(root, split)
    shards = tuple(storage.join(root, f"{split}/{number}.tar") for number in range(num_shards))
    if storage.exists(storage.join(root, f"{split}/{num_shards}.tar")):
        raise ValueError(
            f"{root}/{split}/nshards.txt says that there are {num_shards} shards, but {num_shards}.tar is there too; "
            f"correct the number, or remove what is too many"
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
    """Return where the files of a page of the hub are; other paths are returned as they are."""
    if path.startswith(_HUB):
        path = path.replace("/tree/", "/resolve/", 1)
        return path if "/resolve/" in path else f"{path.rstrip('/')}/resolve/main"
    return path.rstrip("/")


def read_class_names(path: str) -> tuple[str, ...]:
    """Return the names in a file, one a line, in the order of the labels.

    Raises:
        ValueError: if it is missing or empty, or a name is blank.
        OSError: if it cannot be read.
    """
    names = _lines(path, "the names of the classes, one a line")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise ValueError(f"{path}, line {number}: class {number - 1} has no name")
    return tuple(names)


def class_names_beside(shard: str) -> tuple[str, ...]:
    """Return the names in `classnames.txt` beside a shard; none where there is none.

    Raises:
        ValueError, OSError: see `read_class_names`.
    """
    path = storage.join(shard_folder(shard), CLASS_NAMES)
    return read_class_names(path) if storage.exists(path) else ()


def parse_label(stored: bytes | None, num_classes: int) -> int:
    """Return the number of a class that a sample's `.cls` holds.

    Raises:
        BadSampleError: if there is none, or it is none of the classes.
    """
    if stored is None:
        raise BadSampleError("no_label", "there is no .cls with its label")
    text = stored[:_MAX_TEXT_BYTES].decode("utf-8", "replace").strip()
    if _SEVERAL_LABELS.fullmatch(text):
        raise BadSampleError("several_labels", f".cls holds {text[:40]!r}, expected the number of one class")
    if not _LABEL.fullmatch(text):
        raise BadSampleError("bad_label", f".cls holds {text[:40]!r}, expected the number of a class")
    label = int(text)
    if label >= num_classes:
        raise BadSampleError("bad_label", f"label {label}, but there are {num_classes} classes, from 0")
    return label


def caption_lines(stored: bytes | None) -> tuple[str, ...]:
    """Return the captions that a sample's `.txt` holds, one a line.

    Raises:
        BadSampleError: if there is none.
    """
    lines = () if stored is None else split_lines(stored.decode("utf-8", "replace"))
    captions = tuple(line for line in lines if line.strip())
    if not captions:
        raise BadSampleError("no_caption", "there is no .txt with a caption")
    return captions


def image_of(members: Mapping[str, bytes]) -> str:
    """Return the extension of the image among the members of a sample.

    Raises:
        BadSampleError: if there is none.
    """
    extension = next((one for one in IMAGE_EXTENSIONS if one in members), None)
    if extension is None:
        there = ", ".join(sorted(members))
        raise BadSampleError("no_image", f"there is none of {', '.join(IMAGE_EXTENSIONS)}, only {there}")
    return extension


@attrs.frozen(kw_only=True)
class LabelledShardUnit(ShardUnit):
    """A shard whose samples have a label in `.cls`, or captions in `.txt`, one a line, where there are no classes.

    Args:
        class_names: in the order of the labels; none where samples have captions.
        templates: captions with one `{}` where the name of the class goes.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    def sample(self, key: str, members: Mapping[str, bytes]) -> ImageTextSample:
        """Return the sample with its class's captions, or its own."""
        extension = image_of(members)
        if not self.class_names:
            captions, metadata = caption_lines(members.get("txt")), {}
        else:
            name = self.class_names[parse_label(members.get("cls"), len(self.class_names))]
            captions = tuple(template.replace("{}", name) for template in self.templates)
            metadata = {"label": name}
        return ImageTextSample(
            key=key, captions=captions, image=members[extension], image_extension=extension, metadata=metadata
        )


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
    templates: tuple[str, ...] = DEFAULT_TEMPLATES

    @classmethod
    def of(cls, argument: str, *, samples_per_shard: int, rows: RowOptions) -> LabelledShardSource:
        """Return the shards of a path, a pattern or a folder, with the names in `classnames.txt` beside them."""
        return cls.beside(ShardSource.of(argument, samples_per_shard=samples_per_shard, rows=rows).shards)

    @classmethod
    def beside(cls, shards: Sequence[str]) -> LabelledShardSource:
        """Return shards with the names in `classnames.txt` beside them.

        Raises:
            ValueError: if there is no such file.
        """
        shards = expand_shards(shards)
        names = class_names_beside(shards[0])
        if not names:
            path = storage.join(shard_folder(shards[0]), CLASS_NAMES)
            raise ValueError(
                f"the samples of {shards[0]} have the numbers of classes in .cls, but nothing says what they are "
                f"called; write {path}, a name a line in the order of the numbers"
            )
        return cls(shards=shards, class_names=names)

    def units(self) -> tuple[LabelledShardUnit, ...]:
        """Return a unit for every shard, in the order given.

        Raises:
            ValueError: see `ShardSource.units`.
        """
        return tuple(
            LabelledShardUnit(name=unit.name, path=unit.path, class_names=self.class_names, templates=self.templates)
            for unit in ShardSource(shards=self.shards).units()
        )


@sources.register("public_layout")
@attrs.frozen(kw_only=True, field_transformer=strict)
class PublicLayoutSource(Source):
    """A data set in this layout; a class's captions are its templates with its name.

    Args:
        path: its folder or URL.
        split: the folder of its shards.
    """

    path: str = attrs.field(converter=os.fspath)
    split: str = SPLIT

    def units(self) -> tuple[LabelledShardUnit, ...]:
        """Return a unit for every shard.

        Raises:
            ValueError, OSError: see `read_public_layout`.
        """
        layout = read_public_layout(self.path, split=self.split)
        return tuple(
            LabelledShardUnit(
                name=storage.file_name(shard), path=shard, class_names=layout.class_names, templates=layout.templates
            )
            for shard in layout.shards
        )


def _num_shards(root: str, split: str) -> int:
    path = storage.join(root, f"{split}/nshards.txt")
    lines = _lines(path, "how many shards there are")
    if len(lines) != 1 or not re.fullmatch(r"[0-9]{1,9}", lines[0].strip()) or int(lines[0]) == 0:
        raise ValueError(f"{path} holds {' '.join(lines)[:40]!r}, expected a number of shards")
    if int(lines[0]) > _MAX_SHARDS:
        raise ValueError(f"{path} says that there are {int(lines[0]):,} shards, expected at most {_MAX_SHARDS:,}")
    return int(lines[0])


def _kind(root: str) -> LayoutKind:
    path = storage.join(root, KIND)
    lines = _lines(path, "what it is for") if storage.exists(path) else ["classification"]
    match " ".join(lines).strip().lower():
        case "classification":
            return "classification"
        case "retrieval":
            return "retrieval"
        case other:
            raise ValueError(f"{path} says {other[:40]!r}, expected classification or retrieval")


def _templates(root: str) -> tuple[str, ...]:
    path = storage.join(root, TEMPLATES)
    lines = _lines(path, "the prompts, one a line, with {c} where the name of a class goes")
    for number, line in enumerate(lines, 1):
        if line.count("{c}") != 1 or "{}" in line:
            raise ValueError(f"{path}, line {number}: {line[:60]!r} needs one {{c}} where the name goes, no {{}}")
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
