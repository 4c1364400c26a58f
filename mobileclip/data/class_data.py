"""Images of classes to train on, wherever they are: shards with labels, or a folder with a folder for every class."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import attrs

from mobileclip import storage
from mobileclip.data.json_object import parse_object
from mobileclip.data.order import ShardReader, TarReader
from mobileclip.data.sample import check_key
from mobileclip.data.sample_limits import SAMPLE_LIMITS, SampleLimits
from mobileclip.data.shards import RawSample, Shards
from mobileclip.data.skips import BadSampleError, Skip, attempt
from mobileclip.data.sources.class_folder import ClassFolderSource
from mobileclip.data.sources.folder import FolderItem, FolderSource
from mobileclip.data.sources.opening import as_source
from mobileclip.data.sources.public_layout import (
    CLASS_NAMES,
    PublicLayoutSource,
    image_of,
    parse_label,
    read_class_names,
    read_public_layout,
)
from mobileclip.data.sources.records import read_image
from mobileclip.data.sources.shards import ShardSource

EXPECTED = (
    "expected shards whose samples have the number of their class in .cls, or its name as `label` in their .json; or a "
    "folder with a folder of images for every class"
)
_MOST_IN_A_PART = 1000
# Enough for many processes and workers to have some each.
_NUM_PARTS = 256


@attrs.frozen(kw_only=True, eq=False)
class ClassData:
    """Images of classes.

    Args:
        reader: of their samples; those of a folder have the number of their class as `cls`, as shards do.
        class_names: in the order of the numbers; none where nothing says.
    """

    reader: ShardReader
    class_names: tuple[str, ...]


@attrs.frozen(kw_only=True, eq=False)
class LabelledSample:
    """An encoded image and the number of its class.

    Args:
        key: the sample's.
        image: as it is stored.
        label: number of its class.
    """

    key: str
    image: bytes
    label: int


@attrs.frozen(kw_only=True)
class LabelParser:
    """Makes labelled samples of the members of a shard.

    Args:
        num_classes: labels are below it.
        class_names: in the order of the labels, for samples whose `.json` has a name; none refuses these.
        text_bytes: of a `.json`, at most.
    """

    num_classes: int
    class_names: tuple[str, ...]
    text_bytes: int = SAMPLE_LIMITS.text_bytes
    _numbers: Mapping[str, int] = attrs.field(init=False, repr=False, eq=False)

    @_numbers.default
    def _number_names(self) -> Mapping[str, int]:
        return {name: number for number, name in enumerate(self.class_names)}

    def __call__(self, key: str, members: Mapping[str, bytes]) -> LabelledSample:
        """Return the sample that members make.

        Raises:
            BadSampleError: if there is no image, or no class.
        """
        check_key(key)
        return LabelledSample(key=key, image=members[image_of(members)], label=self._label(members))

    def _label(self, members: Mapping[str, bytes]) -> int:
        if "cls" in members or "json" not in members:
            return parse_label(members.get("cls"), self.num_classes)
        name = parse_object(members["json"], "json", limit=self.text_bytes).get("label")
        if name is None:
            raise BadSampleError("no_label", "there is no .cls with its label, and no `label` in its .json")
        if not self._numbers:
            raise BadSampleError("bad_label", "its `label` is a name, and nothing says the names of the classes")
        if not isinstance(name, str) or name not in self._numbers:
            raise BadSampleError("bad_label", f"{str(name)[:80]!r} is none of the {len(self._numbers)} classes")
        return self._numbers[name]


@attrs.frozen(kw_only=True, eq=False)
class FolderReader:
    """Reads a folder of classes in parts, as if they were shards.

    Args:
        path: the folder.
        parts: the images of each part.
        numbers: the number of each class by its folder.
        left_out: what else is in the folder, which the first part reports.
    """

    path: str
    parts: Mapping[str, Sequence[FolderItem]]
    numbers: Mapping[str, int]
    left_out: tuple[Skip, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the parts are called."""
        return tuple(self.parts)

    def read(self, name: str, on_skip: Callable[[Skip], None], limits: SampleLimits) -> Iterator[RawSample]:
        """Yield the images of one part with the numbers of their classes; what cannot be read is reported."""
        if name == next(iter(self.parts)):
            for skip in self.left_out:
                on_skip(skip)
        for item in self.parts[name]:
            raw = attempt(partial(self._raw, item, name, limits), key=item.key, shard=name, on_skip=on_skip)
            if raw is not None:
                yield raw

    def count(self, limits: SampleLimits) -> int:
        """Return the number of images."""
        del limits
        return sum(map(len, self.parts.values()))

    def _raw(self, item: FolderItem, name: str, limits: SampleLimits) -> RawSample:
        image, extension = read_image(storage.join(self.path, item.image))
        raw = RawSample(key=item.key, shard=name)
        raw.enter(item.image, extension, image, limits)
        raw.enter("cls", "cls", str(self.numbers[_folder(item)]).encode(), limits)
        return raw


def open_class_data(data: Shards) -> ClassData:
    """Return the images of classes at a path; no image is read.

    Folders are numbered in the order of their names, as torchvision does, and called as `ClassFolderSource` says. Of
    shards, `classnames.txt` beside them says what the numbers are called, where it is there.

    Args:
        data: shards, as paths, addresses or brace patterns; a folder of them, or one in the public layout; or one
            folder with a folder of images for every class.

    Raises:
        ValueError: if there is no such data.
        OSError: if it cannot be read.
    """
    texts = (os.fspath(data),) if isinstance(data, (str, os.PathLike)) else tuple(os.fspath(each) for each in data)
    if len(texts) != 1 or not storage.is_directory(texts[0]):
        return _shards(TarReader.of(texts))
    source = as_source(texts[0])
    match source:
        case PublicLayoutSource():
            layout = read_public_layout(source.path, split=source.split)
            if layout.kind != "classification":
                raise ValueError(f"{texts[0]} has captions and no classes; {EXPECTED}")
            return ClassData(reader=TarReader(layout.shards), class_names=layout.class_names)
        case ShardSource():
            return _shards(TarReader.of(source.shards))
        case FolderSource() | ClassFolderSource():
            return _class_folder(source.path)
    raise ValueError(f"{texts[0]} has no classes; {EXPECTED}")


def find_class_names(data: Shards) -> tuple[str, ...]:
    """Return what the classes of data to train on are called, in the order of their numbers; none where nothing says.

    Args:
        data: see `open_class_data`.

    Raises:
        ValueError, OSError: see `open_class_data`.
    """
    return open_class_data(data).class_names


def _shards(reader: TarReader) -> ClassData:
    beside = storage.join(reader.names[0].rpartition("/")[0] or os.curdir, CLASS_NAMES)
    is_file = not reader.names[0].startswith("pipe:")
    return ClassData(reader=reader, class_names=read_class_names(beside) if is_file and storage.exists(beside) else ())


def _class_folder(path: str) -> ClassData:
    units = ClassFolderSource(path=path).units()
    items = [item for unit in units for item in unit.items]  # in an order that mixes the classes
    names = {_folder(item): str(json.loads(item.rows[0])["label"]) for item in items}
    folders = sorted(names)
    size = max(1, min(_MOST_IN_A_PART, math.ceil(len(items) / _NUM_PARTS)))
    starts = range(0, len(items), size)
    reader = FolderReader(
        path=path,
        parts={f"part {start // size} of {path}": tuple(items[start : start + size]) for start in starts},
        numbers={folder: number for number, folder in enumerate(folders)},
        left_out=tuple(skip for unit in units for skip in (*unit.stray, *unit.left_out)),
    )
    return ClassData(reader=reader, class_names=tuple(names[folder] for folder in folders))


def _folder(item: FolderItem) -> str:
    return item.image.partition("/")[0]
