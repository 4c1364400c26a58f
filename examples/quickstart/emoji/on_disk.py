"""A data set of drawings on disk: its parts, its card, and whose choices made it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from examples.quickstart.emoji.splits import TRAIN
from mobileclip.data import ImageTextSample, read_samples, write_shards
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import write_text

CARD = "datacard.json"
_SPEC = "spec.json"


@attrs.frozen(kw_only=True)
class DataSplit:
    """One part of a data set.

    Args:
        name: such as `train` or `test_concepts`.
        title: what it is, for a table.
        shards: its files.
        num_samples: number of pictures.
        class_names: what zero-shot classification chooses from: the names of all seen classes, or of all unseen ones.
    """

    name: str
    title: str
    shards: tuple[Path, ...]
    num_samples: int
    class_names: tuple[str, ...]

    def samples(self) -> Iterator[ImageTextSample]:
        """Yield the pictures with their captions, in the order of the shards."""
        yield from read_samples([str(shard) for shard in self.shards])

    def class_indices(self, samples: Iterable[ImageTextSample]) -> list[int]:
        """Return for each sample the index of its class in `class_names`."""
        index = {name: position for position, name in enumerate(self.class_names)}
        return [index[sample.metadata["label"]] for sample in samples]


@attrs.frozen(kw_only=True)
class DrawnDataset:
    """The data set on disk.

    Args:
        root: its directory.
        splits: its parts by name.
    """

    root: Path
    splits: Mapping[str, DataSplit]

    @property
    def train(self) -> DataSplit:
        """The part to train on."""
        return self.splits[TRAIN]

    @property
    def tests(self) -> tuple[DataSplit, ...]:
        """The parts that are held out."""
        return tuple(split for name, split in self.splits.items() if name != TRAIN)

    @property
    def card(self) -> dict[str, Any]:
        """The data card: counts, classes, sources, versions, licences."""
        return dict(json.loads((self.root / CARD).read_text(encoding="utf-8")))

    def summary(self) -> str:
        """Return a line for each part."""
        lines = [
            f"{split.num_samples:7,} pictures  {split.name:14} {split.title}, {len(split.class_names):,} classes"
            for split in self.splits.values()
        ]
        return "\n".join([f"{self.root}:", *lines])


def is_finished(root: Path) -> bool:
    """Return whether a directory holds a finished data set: its card is written last."""
    return (root / CARD).exists()


def load_finished(root: Path, titles: Mapping[str, str]) -> DrawnDataset:
    """Return a finished data set.

    Args:
        root: its directory.
        titles: of its parts, by name.

    Raises:
        ValueError: if it is not finished, or a shard is missing.
    """
    if not is_finished(root):
        raise ValueError(f"{root} holds no finished data set; build it first")
    card = json.loads((root / CARD).read_text(encoding="utf-8"))
    splits = {
        name: DataSplit(
            name=name,
            title=titles[name],
            shards=tuple(root / shard for shard in entry["shards"]),
            num_samples=entry["num_samples"],
            class_names=tuple(entry["class_names"]),
        )
        for name, entry in card["splits"].items()
    }
    missing = [str(shard) for split in splits.values() for shard in split.shards if not shard.exists()]
    if missing:
        raise ValueError(f"{root} misses {', '.join(missing[:3])}; delete {root / CARD} and build it again")
    return DrawnDataset(root=root, splits=splits)


def write_split(
    root: Path, name: str, samples: Sequence[ImageTextSample], *, class_names: Sequence[str], samples_per_shard: int
) -> dict[str, Any]:
    """Write the shards of a part, none for one without samples, and return what the card says of it.

    Args:
        root: directory of the data set.
        name: of the part.
        samples: in the order in which they are read.
        class_names: what classification chooses from.
        samples_per_shard: pictures in a shard.
    """
    paths = write_shards(root / name, samples, samples_per_shard=samples_per_shard) if samples else []
    return {
        "shards": [str(path.relative_to(root)) for path in paths],
        "num_samples": len(samples),
        "class_names": class_names,
    }


def write_card(root: Path, card: Mapping[str, Any]) -> None:
    """Write the card, which says that the data set is finished."""
    write_text(root / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def claim(root: Path, spec: Any) -> None:
    """Mark a directory as made with a spec, or refuse one made with another.

    Args:
        root: the directory; it is made.
        spec: the choices; how many processes rendered, `num_processes`, cannot be seen in a data set.

    Raises:
        ValueError: if it was made with other choices.
    """
    path = root / _SPEC
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        write_text(path, to_json(spec, indent=1) + "\n")
        return
    found = from_json(path.read_text(encoding="utf-8"), type(spec))
    if attrs.evolve(found, num_processes=spec.num_processes) != spec:
        raise ValueError(
            f"{root} holds a data set made with other choices ({found}); choose another directory, or delete it"
        )
