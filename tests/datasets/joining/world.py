"""Reinforced shards without images, and shards of their images, for the tests of this folder."""

import json
import random
from pathlib import Path

import pyarrow.parquet as pq

from mobileclip.data import write_shard
from mobileclip.data.shards.files import read_shard
from mobileclip.datasets.joining import JoinSpec, join_images
from mobileclip.engines import InlineEngine, Retries
from tests.data.made_samples import encoded, make_sample, write_raw

SIZE = (40, 30)
# What fails is tried again without a pause.
AT_ONCE = InlineEngine(device="cpu", retries=Retries(pause_seconds=0.0))


def contents(path):
    skips = []
    found = {raw.key: raw.members for raw in read_shard(str(path), skips.append)}
    assert not skips
    return found


def without_image(number, **changes):
    return make_sample(number, image=None, **changes)


def joined(*, engine=AT_ONCE, **fields):
    """Join, and return the report."""
    report = join_images(JoinSpec(**fields), engine=engine, show_progress=False)
    assert str(report)
    return report


class Data:
    """Reinforced shards without images, and image shards in another order and number."""

    def __init__(self, root, *, count=20, per_reinforced=7, per_images=6, shuffled=True, layout="npz"):
        self.root = root
        self.reinforced, self.images, self.output = root / "reinforced", root / "images", root / "joined"
        self.reinforced.mkdir()
        self.images.mkdir()
        numbers = list(range(count))
        for shard, first in enumerate(range(0, count, per_reinforced)):
            samples = map(without_image, numbers[first : first + per_reinforced])
            write_shard(self.reinforced / f"{shard:05d}.tar", samples, layout=layout)
        if shuffled:
            random.Random(0).shuffle(numbers)
        for shard, first in enumerate(range(0, count, per_images)):
            members = {f"{number:06d}": self.image_members(number) for number in numbers[first : first + per_images]}
            write_raw(self.images / f"{shard:05d}.tar", members)

    @staticmethod
    def image_members(number, **changes):
        metadata = {"uid": f"uid{number}", "url": f"https://x/{number}", "width": 40}
        members = {"png": encoded(*SIZE, seed=number), "txt": b"theirs", "json": json.dumps(metadata).encode()}
        return {name: data for name, data in (members | changes).items() if data is not None}

    def replace(self, shard, samples):
        return write_raw(self.images / shard, samples)

    def reinforce(self, *samples):
        return write_shard(self.reinforced / "a.tar", samples)

    def pattern(self, folder):
        return "::".join(str(path) for path in sorted(folder.glob("*.tar")))

    def join(self, **changes):
        patterns = {name: self.pattern(getattr(self, name)) for name in ("reinforced", "images")}
        return joined(**{**patterns, "output": str(self.output), **changes})

    def named(self):
        """What the report's table has left out: key, shard, reason."""
        return left_out(self.output)


def left_out(output):
    notes = Path(output) / "join"
    return [
        (row["key"], f"{path.relative_to(notes).with_suffix('.tar')}", row["reason"])
        for path in sorted(notes.rglob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
        if row["reason"] is not None
    ]


def files_of(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(Path(directory).rglob("*"))
        if path.is_file() and not {"index", "run", ".lock"} & set(path.parts) and not path.name.endswith(".tmp")
    }


def times_of(directory):
    """Return when each shard was written, by name."""
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("*.tar")}


def damage_half(path):
    """Leave the first half of a file, and return the whole content."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return content
