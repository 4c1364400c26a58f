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


class Data:
    """Reinforced shards without images, and image shards in another order and number."""

    def __init__(self, root, *, count=20, per_reinforced=7, per_images=6, shuffled=True, layout="npz"):
        self.root = root
        self.reinforced, self.images, self.output = root / "reinforced", root / "images", root / "joined"
        self.reinforced.mkdir()
        self.images.mkdir()
        numbers = list(range(count))
        for first in range(0, count, per_reinforced):
            samples = [without_image(number) for number in numbers[first : first + per_reinforced]]
            write_shard(self.reinforced / f"{first // per_reinforced:05d}.tar", samples, layout=layout)
        if shuffled:
            random.Random(0).shuffle(numbers)
        for first in range(0, count, per_images):
            members = {f"{number:06d}": self.image_members(number) for number in numbers[first : first + per_images]}
            write_raw(self.images / f"{first // per_images:05d}.tar", members)

    @staticmethod
    def image_members(number, **changes):
        metadata = {"uid": f"uid{number}", "url": f"https://x/{number}", "width": 40}
        members = {"png": encoded(*SIZE, seed=number), "txt": b"theirs", "json": json.dumps(metadata).encode()}
        return {name: data for name, data in (members | changes).items() if data is not None}

    def replace(self, shard, samples):
        return write_raw(self.images / shard, samples)

    def pattern(self, folder):
        return "::".join(str(path) for path in sorted(folder.glob("*.tar")))

    def spec(self, **changes):
        return JoinSpec(
            **{
                "reinforced": self.pattern(self.reinforced),
                "images": self.pattern(self.images),
                "output": str(self.output),
                **changes,
            }
        )

    def join(self, *, engine=AT_ONCE, **changes):
        report = join_images(self.spec(**changes), engine=engine, show_progress=False)
        assert str(report)
        return report

    def named(self):
        """What the report's table has left out: key, shard, reason."""
        return left_out(self.output)


def left_out(output):
    tables = {path: pq.read_table(path).to_pylist() for path in sorted((Path(output) / "join").rglob("*.parquet"))}
    return [
        (row["key"], f"{path.relative_to(Path(output) / 'join').with_suffix('.tar')}", row["reason"])
        for path, rows in tables.items()
        for row in rows
        if row["reason"] is not None
    ]


def files_of(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(Path(directory).rglob("*"))
        if path.is_file() and not {"index", "run", ".lock"} & set(path.parts) and not path.name.endswith(".tmp")
    }
