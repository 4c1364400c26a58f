"""Folders, classes, lists, shards and tables keep the contract of sources."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobileclip.datasets import ClassFolderSource, FolderSource, JsonLinesSource, ShardSource, TableSource
from tests.contracts.sources import check_source
from tests.data.made_samples import encoded, write_raw
from tests.datasets.sources.reading import PNG, write_lines, write_table
from tests.datasets.sources.test_tables import hub_table

Changes = list[Callable[[], object]]
Made = tuple[Any, dict[str, int], Changes, Changes]


def image(number: int) -> bytes:
    return encoded(8, 6, seed=number)


def pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(image(number))


def folder(path: Path) -> Made:
    pictures(path, 4)
    for number in (0, 2, 3):
        (path / f"{number}.txt").write_text(f"caption {number}")
    changes = [
        lambda: (path / "3.txt").write_text("another caption"),
        lambda: (path / "3.png").write_bytes(image(30) + b"more"),
    ]
    return FolderSource(path=path, samples_per_shard=2), {"no_caption": 1}, changes, []


def classes(path: Path) -> Made:
    for name in ("cat", "dog"):
        pictures(path / name, 2)
    names = path / "classes.txt"
    return ClassFolderSource(path=path, samples_per_shard=2), {}, [], [lambda: names.write_text("cat\ttiger")]


def listed(
    path: Path, write: Callable[[list[dict[str, str]]], object]
) -> tuple[dict[str, int], list[Callable[[], object]]]:
    pictures(path / "images", 4)
    rows = [{"image": f"images/{number}.png", "text": f"caption {number}"} for number in range(4)]
    rows[1]["image"] = "images/none.png"
    write(rows)
    changed = [*rows[:3], {**rows[3], "text": "an other 3"}]
    changes = [lambda: (path / "images" / "3.png").write_bytes(image(30) + b"more")]
    return {"missing_image": 1}, changes, [lambda: write(changed)]


def lines(path: Path) -> Made:
    place = path / "a.jsonl"
    return JsonLinesSource(path=place, samples_per_shard=2), *listed(path, lambda rows: write_lines(place, rows))


def table(suffix: str) -> Callable[[Path], Made]:
    def make(path: Path) -> Made:
        place = path / f"a.{suffix}"
        return TableSource(tables=place, samples_per_shard=2), *listed(path, lambda rows: write_table(place, rows))

    return make


def hub(path: Path) -> Made:
    place = path / "a.parquet"

    def write(caption: str) -> None:
        held = [{"bytes": b"no image" if number == 1 else image(number), "path": None} for number in range(4)]
        hub_table(place, [{"image": one, "text": caption} for one in held])

    write("a caption")
    return (
        TableSource(tables=place, samples_per_shard=2),
        {"image_not_an_image": 1},
        [],
        [lambda: write("another caption")],
    )


def shards(path: Path) -> Made:
    def write(number: int, caption: str) -> None:
        members = [("a.txt", caption.encode()), ("a.png", PNG), ("bare.png", PNG)]
        write_raw(path / f"{number}.tar", [(f"{number}-{name}", data) for name, data in members])

    path.mkdir()
    write(0, "one")
    write(1, "two")
    return ShardSource(shards=f"{path}/{{0..1}}.tar"), {"missing_member": 2}, [lambda: write(1, "other " * 900)], []


MAKERS = {
    "folder": folder,
    "class folder": classes,
    "hub": hub,
    "jsonl": lines,
    "shards": shards,
    **{suffix: table(suffix) for suffix in ("parquet", "csv", "tsv")},
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_source_keeps_the_contract(kind, tmp_path):
    source, skipped, changes, rewrites = MAKERS[kind](tmp_path / "data")
    gone = tmp_path / "data"
    check_source(source, skipped=skipped, changes=changes, rewrites=rewrites, remove=lambda: shutil.rmtree(gone))
