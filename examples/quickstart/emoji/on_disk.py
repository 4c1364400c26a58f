"""A data set of drawings on disk: its parts, its card, and its settings."""

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
        name: name of the part, such as `train` or `test_concepts`.
        title: description of the part, for a table.
        shards: files of the part.
        num_samples: number of images.
        class_names: classes for zero-shot classification: the names of all seen classes, or of all unseen classes.
    """

    name: str
    title: str
    shards: tuple[Path, ...]
    num_samples: int
    class_names: tuple[str, ...]

    def samples(self) -> Iterator[ImageTextSample]:
        """Yield the images with their captions, in the order of the shards."""
        yield from read_samples([str(shard) for shard in self.shards])

    def class_indices(self, samples: Iterable[ImageTextSample]) -> list[int]:
        """Return the index of each sample's class in `class_names`."""
        index = {name: position for position, name in enumerate(self.class_names)}
        return [index[sample.metadata["label"]] for sample in samples]


@attrs.frozen(kw_only=True)
class DrawnDataset:
    """The data set on disk.

    Args:
        root: directory of the data set.
        splits: parts of the data set by name.
    """

    root: Path
    splits: Mapping[str, DataSplit]

    @property
    def train(self) -> DataSplit:
        """The training part."""
        return self.splits[TRAIN]

    @property
    def tests(self) -> tuple[DataSplit, ...]:
        """The held-out parts."""
        return tuple(split for name, split in self.splits.items() if name != TRAIN)

    @property
    def card(self) -> dict[str, Any]:
        """The data card: counts, classes, sources, versions, licences."""
        return dict(json.loads((self.root / CARD).read_text(encoding="utf-8")))

    def summary(self) -> str:
        """Return a table with a line for each part."""
        lines = [
            f"{split.num_samples:7,} pictures  {split.name:14} {split.title}, {len(split.class_names):,} classes"
            for split in self.splits.values()
        ]
        return "\n".join([f"{self.root}:", *lines])


def is_finished(root: Path) -> bool:
    """Return whether a directory holds a finished data set, with a card, which is written last."""
    return (root / CARD).exists()


def load_finished(root: Path, titles: Mapping[str, str]) -> DrawnDataset:
    """Return a finished data set.

    Args:
        root: directory of the data set.
        titles: titles of the parts, by name.

    Raises:
        ValueError: if the data set is not finished, or a shard is missing.
    """
    if not is_finished(root):
        raise ValueError(f"{root} has no finished data set; build the data set first")
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
        raise ValueError(f"{root} lacks {', '.join(missing[:3])}; delete {root / CARD} and build the data set again")
    return DrawnDataset(root=root, splits=splits)


def write_split(
    root: Path, name: str, samples: Sequence[ImageTextSample], *, class_names: Sequence[str], samples_per_shard: int
) -> dict[str, Any]:
    """Write the shards of a part, without shards if there are no samples, and return the part's entry in the card.

    Args:
        root: directory of the data set.
        name: name of the part.
        samples: samples in the order of reading.
        class_names: classes for zero-shot classification.
        samples_per_shard: number of images per shard.
    """
    paths = write_shards(root / name, samples, samples_per_shard=samples_per_shard) if samples else []
    return {
        "shards": [str(path.relative_to(root)) for path in paths],
        "num_samples": len(samples),
        "class_names": class_names,
    }


def write_card(root: Path, card: Mapping[str, Any]) -> None:
    """Write the card, which marks the data set as finished."""
    write_text(root / CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def claim(root: Path, spec: Any) -> None:
    """Mark a directory as made with a spec, or raise if it was made with another spec.

    Args:
        root: the directory, which the function creates if needed.
        spec: settings of the data set, without `num_processes`, which does not affect the data set.

    Raises:
        ValueError: if the directory was made with other settings.
    """
    path = root / _SPEC
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        write_text(path, to_json(spec, indent=1) + "\n")
        return
    found = from_json(path.read_text(encoding="utf-8"), type(spec))
    if attrs.evolve(found, num_processes=spec.num_processes) != spec:
        raise ValueError(
            f"{root} holds a data set with other settings ({found}); choose another directory, or delete this directory"
        )
