"""Folders, classes, lists, shards and tables keep the contract of sources.

What makes each of them returns a source, what it leaves out, changes of the last unit alone, and changes of others too.
"""

import shutil

import pytest

from mobileclip.datasets import ClassFolderSource, FolderSource, JsonLinesSource, ShardSource, TableSource
from tests.contracts.sources import check_source
from tests.data.made_samples import write_raw
from tests.datasets.sources.reading import JPEG, PNG, pictures, plant, write_lines, write_table
from tests.datasets.sources.test_tables import hub_table


def folder(path):
    pictures(path, 4)
    plant(path, {f"{number}.txt": f"caption {number}" for number in (0, 2, 3)})
    changes = [lambda: (path / "3.txt").write_text("another caption"), lambda: (path / "3.png").write_bytes(JPEG)]
    return FolderSource(path=path, samples_per_shard=2), {"no_caption": 1}, changes, []


def classes(path):
    for name in ("cat", "dog"):
        pictures(path / name, 2)
    renames = [lambda: (path / "classes.txt").write_text("cat\ttiger")]
    return ClassFolderSource(path=path, samples_per_shard=2), {}, [], renames


def listed(kind, write, name):
    def make(path):
        pictures(path / "images", 4)
        rows = [{"image": f"images/{number}.png", "text": f"caption {number}"} for number in range(4)]
        rows[1]["image"] = "images/none.png"
        place = write(path / name, rows)
        changes = [lambda: (path / "images" / "3.png").write_bytes(JPEG)]
        rewrites = [lambda: write(place, [*rows[:3], {**rows[3], "text": "an other 3"}])]
        return kind(place, samples_per_shard=2), {"missing_image": 1}, changes, rewrites

    return make


def hub(path):
    def write(caption):
        held = pictures(path / "images", 4)
        held[1] = b"no image"
        return hub_table(path / "a.parquet", [{"image": {"bytes": one, "path": None}, "text": caption} for one in held])

    source = TableSource(tables=write("a caption"), samples_per_shard=2)
    return source, {"image_not_an_image": 1}, [], [lambda: write("another caption")]


def shards(path):
    def write(number, caption):
        members = [("a.txt", caption.encode()), ("a.png", PNG), ("bare.png", PNG)]
        write_raw(path / f"{number}.tar", [(f"{number}-{name}", data) for name, data in members])

    for number in range(2):
        write(number, "one")
    return ShardSource(shards=f"{path}/{{0..1}}.tar"), {"missing_member": 2}, [lambda: write(1, "other " * 900)], []


MAKERS = {
    "folder": folder,
    "class folder": classes,
    "hub": hub,
    "shards": shards,
    "jsonl": listed(lambda path, **given: JsonLinesSource(path=path, **given), write_lines, "a.jsonl"),
    **{
        suffix: listed(lambda path, **given: TableSource(tables=path, **given), write_table, f"a.{suffix}")
        for suffix in ("parquet", "csv", "tsv")
    },
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_source_keeps_the_contract(kind, tmp_path):
    path = tmp_path / "data"
    source, skipped, changes, rewrites = MAKERS[kind](path)
    check_source(source, skipped=skipped, changes=changes, rewrites=rewrites, remove=lambda: shutil.rmtree(path))
