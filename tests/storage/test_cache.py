"""Copies of remote files: whole or none, the oldest make room, and never in the way."""

import os
import time
from contextlib import suppress

import pytest

from mobileclip.storage import LOCK, FileCache, exclusive
from tests.build.servers import SERVERS, SHARD, serving
from tests.errors import fails
from tests.storage.processes import child, read_slowly, read_without_end
from tests.stores import web_server
from tests.waiting import wait_for


@pytest.fixture
def web():
    with web_server() as server:
        server.files |= {f"/{name}.bin": name.encode() * 1000 for name in "abc"}
        yield server


@pytest.fixture
def cache(tmp_path):
    return FileCache(path=tmp_path / "cache", max_bytes=2500)


def read(cache, address, size=-1):
    with cache.open_read(address) as stream:
        return stream.read(size)


def files_of(cache):
    """What is in the folder, but for the file of its lock."""
    return sorted(path for path in cache.path.glob("*") if path.name != LOCK)


def copies(cache):
    return sorted(path.stat().st_size for path in files_of(cache))


def test_local_files_are_read_where_they_are(cache, tmp_path):
    (tmp_path / "a").write_bytes(b"here")
    assert read(cache, str(tmp_path / "a")) == b"here"
    assert not cache.path.exists()


def test_one_that_is_read_in_part_is_not_kept_unless_little_is_missing(web, tmp_path):
    cache = FileCache(path=tmp_path / "cache")
    web.files |= {"/large.bin": bytes(2**22), "/padded.bin": bytes(2**18)}
    # Who reads a tar file stops at its end mark.
    for name, size, expected in (("large", 100, []), ("a", 990, [1000]), ("padded", 100, [1000, 2**18])):
        read(cache, f"{web.url}/{name}.bin", size)
        assert copies(cache) == expected


@pytest.mark.parametrize("max_bytes", [2000, 2500])
def test_the_ones_that_were_not_read_for_longest_make_room(web, tmp_path, max_bytes):
    cache = FileCache(path=tmp_path / "cache", max_bytes=max_bytes)
    for name in "ab":
        read(cache, f"{web.url}/{name}.bin")
    for age, path in enumerate(sorted(files_of(cache), key=lambda path: path.read_bytes())):
        os.utime(path, (1000 + age, 1000 + age))
    read(cache, f"{web.url}/a.bin")  # the older one, which is now the newer
    read(cache, f"{web.url}/c.bin")
    assert sorted(path.read_bytes()[:1] for path in files_of(cache)) == [b"a", b"c"]


@pytest.mark.parametrize("is_full", [True, False], ids=["too large", "a folder that cannot be written"])
def test_what_cannot_be_kept_passes_through(web, tmp_path, is_full):
    cache = FileCache(path=tmp_path / "cache", max_bytes=999 if is_full else 2500)
    if not is_full:
        cache.path.write_text("a file")
    assert read(cache, f"{web.url}/a.bin") == b"a" * 1000
    assert copies(cache) == []


def test_what_cannot_be_read_leaves_nothing(web, cache, tmp_path):
    with fails(FileNotFoundError):
        read(cache, f"{web.url}/missing.bin")
    with fails(ZeroDivisionError), cache.open_read(f"{web.url}/a.bin") as stream:
        len(stream.read(10)) // 0
    with serving(SERVERS["honest, without a length"]) as address:
        assert read(cache, address) == SHARD
    assert copies(cache) == []
    with fails(ValueError, "max_bytes"):
        FileCache(path=tmp_path, max_bytes=0)


def test_what_killed_readers_have_left_is_removed_after_a_day(web, cache):
    reader = child(read_without_end, cache, f"{web.url}/a.bin")
    (left,) = wait_for(lambda: [*cache.path.glob("*.part")])
    reader.kill()
    reader.join()
    read(cache, f"{web.url}/b.bin")
    assert sorted(path.suffix for path in files_of(cache)) == [".copy", ".part"]
    os.utime(left, (1000, 1000))
    read(cache, f"{web.url}/c.bin")
    assert copies(cache) == [1000, 1000]


@pytest.mark.parametrize("content", [b"", b"a" * 999, b"a" * 1001])
def test_a_file_is_fetched_once_and_a_copy_of_another_size_anew(web, cache, content):
    """What a crash of the machine, or a person, makes of one."""
    for num_fetched in (1, 2):
        for _ in range(3):
            assert read(cache, f"{web.url}/a.bin") == b"a" * 1000
        assert (web.methods["GET"], copies(cache)) == (num_fetched, [1000])
        files_of(cache)[0].write_bytes(content)


def test_the_budget_of_whole_copies_holds_with_several_processes_and_after_kills(web, cache):
    readers = [child(read_slowly, cache, web.url, names) for names in ("abc", "bca", "cab")]
    most = 0
    try:
        wait_for(lambda: cache.path.exists() and copies(cache))
        until = time.monotonic() + 1.6
        while time.monotonic() < until:
            # Who holds the folder's lock sees one moment of it: or else, what makes room and what gets it, both.
            with exclusive(cache.path, wait_seconds=30), suppress(FileNotFoundError):
                found = [path.stat() for path in cache.path.glob("*.copy")]
                most = max(most, sum({status.st_ino: status.st_size for status in found}.values()))
            if len(readers) == 3 and time.monotonic() > until - 0.8:
                readers[0].kill()
                readers.pop(0).join()
    finally:
        for reader in readers:
            reader.kill()
            reader.join()
    assert 1000 <= most <= 2500
    for name in "abc":
        assert read(cache, f"{web.url}/{name}.bin") == name.encode() * 1000
    assert sum(path.stat().st_size for path in cache.path.glob("*.copy")) <= 2500
