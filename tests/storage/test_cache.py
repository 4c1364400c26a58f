"""Copies of remote files: whole or none, the oldest make room, and never in the way."""

from __future__ import annotations

import os

import pytest

from mobileclip.storage import FileCache
from tests.stores import web_server


@pytest.fixture
def web():
    with web_server() as server:
        server.files |= {f"/{name}.bin": name.encode() * 1000 for name in "abc"}
        yield server


def read(cache, address, size=-1):
    with cache.open_read(address) as stream:
        return stream.read(size)


def copies(cache):
    return sorted(path.stat().st_size for path in cache.path.iterdir())


def test_a_file_is_fetched_once(web, tmp_path):
    cache = FileCache(path=tmp_path / "cache")
    for _ in range(3):
        assert read(cache, f"{web.url}/a.bin") == b"a" * 1000
    assert web.methods["GET"] == 1
    assert copies(cache) == [1000]


def test_local_files_are_read_where_they_are(tmp_path):
    (tmp_path / "a").write_bytes(b"here")
    cache = FileCache(path=tmp_path / "cache")
    assert read(cache, str(tmp_path / "a")) == b"here"
    assert not cache.path.exists()


def test_one_that_is_read_in_part_is_not_kept_unless_little_is_missing(web, tmp_path):
    cache = FileCache(path=tmp_path / "cache")
    web.files["/large.bin"] = bytes(2**22)
    read(cache, f"{web.url}/large.bin", 100)
    assert copies(cache) == []
    # Who reads a tar file stops at its end mark.
    read(cache, f"{web.url}/a.bin", 990)
    assert copies(cache) == [1000]


def test_the_ones_that_were_not_read_for_longest_make_room(web, tmp_path):
    cache = FileCache(path=tmp_path / "cache", max_bytes=2500)
    for name in "ab":
        read(cache, f"{web.url}/{name}.bin")
    for age, path in enumerate(sorted(cache.path.iterdir(), key=lambda path: path.read_bytes())):
        os.utime(path, (1000 + age, 1000 + age))
    read(cache, f"{web.url}/a.bin")  # the older one, which is now the newer
    read(cache, f"{web.url}/c.bin")
    assert sorted(path.read_bytes()[:1] for path in cache.path.iterdir()) == [b"a", b"c"]


def test_one_that_is_too_large_passes_through(web, tmp_path):
    cache = FileCache(path=tmp_path / "cache", max_bytes=999)
    assert read(cache, f"{web.url}/a.bin") == b"a" * 1000
    assert copies(cache) == []


def test_a_folder_that_cannot_be_written_is_in_nobodys_way(web, tmp_path):
    (tmp_path / "cache").write_text("a file")
    cache = FileCache(path=tmp_path / "cache")
    assert read(cache, f"{web.url}/a.bin") == b"a" * 1000


def test_what_cannot_be_read_leaves_nothing(web, tmp_path):
    cache = FileCache(path=tmp_path / "cache")
    with pytest.raises(FileNotFoundError):
        read(cache, f"{web.url}/missing.bin")
    with pytest.raises(ZeroDivisionError), cache.open_read(f"{web.url}/a.bin") as stream:
        len(stream.read(10)) // 0
    assert not cache.path.exists() or copies(cache) == []
    with pytest.raises(ValueError, match="max_bytes"):
        FileCache(path=tmp_path, max_bytes=0)
