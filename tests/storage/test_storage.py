"""Storage: the same operations on paths, web servers, memory and S3, each of them the real thing."""

import errno
import hashlib
import os
import random
import resource
import signal
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mobileclip import storage
from mobileclip.extras import install
from mobileclip.storage import StorageError, StoreLimits
from tests.contracts.stores import check_store
from tests.errors import fails
from tests.object_store import object_store
from tests.preloaded import preloaded
from tests.stores import no_pauses  # noqa: F401  a fixture
from tests.waiting import wait_for

DATA = os.urandom(3_000_000)


@pytest.fixture(autouse=True)
def spool(monkeypatch, tmp_path_factory):
    """Where remote files are written before they are uploaded; nothing stays there."""
    path = tmp_path_factory.mktemp("spool")
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def write(path, data=DATA):
    with storage.atomic_write(path) as stream:
        stream.write(data)


def read(path):
    return storage.read_bytes(path, limit=len(DATA))


def said_by(code, folder):
    """What a program prints in a process that has imported nothing of this library, and torch."""
    done = preloaded("torch").call("tests.preloaded:python", "-c", code, folder=folder)
    assert done.status == 0, done.output
    return done.output


NAMES = [
    (Path("a/b.tar"), False, "b.tar"),
    ("file:///a/b%20c.tar", False, "b%20c.tar"),
    ("s3://bucket/a/b.tar", True, "b.tar"),
    ("https://host/a%20b.tar?x=1/2", True, "a b.tar"),
    ("memory://a", True, "a"),
    ("pipe:cat a.tar", False, "pipe:cat a.tar"),
    ("C:/a.tar", False, "a.tar"),
]


@pytest.mark.parametrize(("path", "remote", "name"), NAMES)
def test_kinds(path, remote, name):
    assert (storage.is_remote(path), storage.file_name(path)) == (remote, name)


def test_join(tmp_path):
    assert storage.join("s3://bucket/a/", "b.tar") == "s3://bucket/a/b.tar"
    assert storage.join(tmp_path, "b/c.tar") == str(tmp_path / "b" / "c.tar")
    assert storage.join("file:///x", "b.tar") == "/x/b.tar"
    assert storage.local_path("file:///a/b%20c.tar") == Path("/a/b c.tar")


def test_two_names_of_one_place(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert storage.is_same("s3://bucket/a", "s3://bucket/a")
    assert storage.is_same(tmp_path / "a", str(tmp_path / "link"))
    for one, other in (("s3://bucket/a", "s3://bucket/b"), ("s3://bucket/a", tmp_path / "a"), (tmp_path, "b")):
        assert not storage.is_same(one, other)


def test_unknown_addresses_are_refused():
    for call in (storage.check_address, read, write):
        with fails(ValueError, "nosuch"):
            call("nosuch://x/y")


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path):
    code = """
import sys
sys.modules["gcsfs"] = None  # as if it were not installed
from mobileclip import storage
for call in (storage.check_address, storage.size, storage.fingerprint, storage.list_files):
    try:
        call("gs://bucket/a.tar")
    except ValueError as error:
        print(error)
"""
    lines = said_by(code, tmp_path).splitlines()
    assert len(lines) == 4
    assert all("gs://bucket/a.tar needs" in line and install("remote") in line for line in lines)


def test_importing_brings_no_package_along(tmp_path):
    code = "import sys; before = set(sys.modules); import mobileclip.storage; print(*set(sys.modules) - before)"
    brought = set(said_by(code, tmp_path).split())
    assert {"mobileclip.storage", "fsspec", "s3fs", "aiohttp", "botocore"} & brought == {"mobileclip.storage"}


@pytest.mark.parametrize("kind", ["local", "file", "memory", "s3"])
def test_a_store_keeps_the_contract(kind, request, spool, tmp_path):
    if kind == "s3":
        request.getfixturevalue("s3").objects.clear()
    places = {"local": str(tmp_path), "file": tmp_path.as_uri(), "memory": f"memory://{tmp_path.name}"}
    check_store(places.get(kind, "s3://data/part"))
    assert list(spool.iterdir()) == []


def test_the_disk_is_full(tmp_path):
    """A limit on the size of files fails in the same places as a disk without room."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with fails(OSError, "File too large") as caught:
            write(tmp_path / "a.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (caught.value.errno, list(tmp_path.iterdir())) == (errno.EFBIG, [])


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x")
    for name, target in (("loop", tmp_path), ("y.txt", "x.txt"), ("z.txt", "nothing")):
        (tmp_path / "a" / name).symlink_to(target)
    assert sorted(storage.find_files(tmp_path)) == ["a/x.txt", "a/y.txt"]


@pytest.fixture
def address(site):
    site.files["/a.bin"] = DATA
    return f"{site.url}/a.bin"


def test_reading_needs_one_request(site, address):
    assert read(address) == DATA
    assert site.requests == [("GET", "/a.bin", None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_seeking(site, address, ranges):
    site.ranges = ranges
    with storage.open_read(address) as stream:
        for start in (2_000_000, 5, len(DATA)):
            stream.seek(start)
            assert stream.read(10) == DATA[start : start + 10]


BREAKS = [
    ({}, [1_000_000, 1_500_000, 10]),
    ({"ranges": False}, [1_000_000, 1_500_000, 2_000_000]),
    ({"sized": False}, [1_000_000]),
    ({}, [len(DATA) - 1]),  # before the last byte
]


@pytest.mark.parametrize(("properties", "cut_after"), BREAKS)
def test_a_connection_that_breaks_is_taken_up_where_it_broke(site, address, properties, cut_after):
    for name, value in properties.items():
        setattr(site, name, value)
    site.cut_after = list(cut_after)
    assert read(address) == DATA
    assert site.methods == {"GET": len(cut_after) + 1}


def test_a_connection_that_breaks_again_and_again(site, address):
    site.cut_after = [1_000_000, 0, 0, 0, 0, 0]
    with fails(StorageError):
        read(address)


@pytest.mark.parametrize("head", [True, False])
def test_what_the_server_says(site, address, head):
    site.head = head
    assert storage.size(address) == len(DATA)
    assert storage.exists(address)
    assert not storage.exists(f"{site.url}/b.bin")
    before = storage.fingerprint(address)
    site.files["/a.bin"] = DATA[::-1]
    assert storage.fingerprint(address) != before


STATUSES = [
    *((status, FileNotFoundError, 1) for status in (404, 410)),
    *((403, PermissionError, 1), (418, OSError, 1)),
    *((status, StorageError, 4) for status in (429, 500, 503)),
]


@pytest.mark.parametrize(("status", "error", "num_requests"), STATUSES)
def test_refusals(site, address, status, error, num_requests):
    site.status["/a.bin"] = [status] * 10
    with fails(error, address, str(status)) as caught:
        read(address)
    assert (type(caught.value), len(site.requests)) == (error, num_requests)


@pytest.mark.parametrize("address", ["http://", "http:///x", "http://[", "http://a b/\n", "http://127.0.0.1:x/"])
def test_what_is_no_address(address):
    with fails(OSError, "http"):
        read(address)


def test_addresses_with_spaces_and_letters(site):
    site.files["/a%20%C3%A9.bin"] = b"x"
    assert read(f"{site.url}/a é.bin") == b"x"


def test_nothing_can_be_written_or_listed(site, address):
    with fails(ValueError), storage.atomic_write(address):
        pytest.fail("nothing may be prepared in vain")
    for change in (storage.remove, storage.list_files, lambda one: storage.rename(one, "b.bin")):
        with fails(ValueError):
            change(address)
    assert not storage.is_directory(site.url)


@pytest.mark.usefixtures("s3")
class TestS3:
    def test_what_a_store_says_of_a_content_stands_for_it(self):
        write("s3://data/hashed.bin", b"content")
        etag = hashlib.md5(b"content", usedforsecurity=False).hexdigest()
        assert storage.content_hash("s3://data/hashed.bin") == f"7 {etag}"

    def test_no_bucket(self, spool):
        for call in (storage.size, write):
            with fails(FileNotFoundError, "s3://nobucket/a"):
                call("s3://nobucket/a")
        assert list(spool.iterdir()) == []

    def test_killed_while_uploading(self, s3, spool):
        """Whenever it happens, the object is whole or not there."""
        s3.objects.clear()
        code = """
from mobileclip import storage
for number in range(1000):
    with storage.atomic_write(f"s3://data/{number}.bin") as stream:
        stream.write(b"x" * 30_000_000)
"""
        process = preloaded("torch").start("-c", code, folder=spool.parent, environment={"TMPDIR": str(spool)})
        wait_for(lambda: any(spool.iterdir()))
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert {storage.size(path) for path in storage.list_files("s3://data")} <= {30_000_000}

    def test_an_upload_that_fails_leaves_nothing(self, s3, spool, monkeypatch):
        """In parts, one of which is refused: the parts before it are removed."""
        s3.objects.clear()
        import s3fs

        original = s3fs.S3FileSystem._call_s3

        async def refuse(self, method, *arguments, **options):
            if method == "upload_part" and options["PartNumber"] == 2:
                raise OSError(errno.EIO, "the network is down")
            return await original(self, method, *arguments, **options)

        monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refuse)
        monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *_, **__: 5 * 2**20)
        with fails(StorageError, "the network is down"):
            write("s3://data/a", bytes(11_000_000))
        assert not any((s3.objects, s3.uploads, list(spool.iterdir())))

    def test_many_threads(self):
        def work(number):
            write(f"s3://data/threads/{number}.bin", DATA[: 1000 * number])
            return read(f"s3://data/threads/{number}.bin")

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(8))) == [DATA[: 1000 * number] for number in range(8)]

    def test_a_store_that_never_answers(self, monkeypatch):
        """Whatever the store's own package waits for."""
        import s3fs

        with socket.create_server(("127.0.0.1", 0)) as deaf:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
            s3fs.S3FileSystem.clear_instance_cache()
            started = time.monotonic()
            with storage.use_limits(StoreLimits(call_seconds=0.1, retry_delays_seconds=(0.0,))):
                for call in (storage.size, storage.exists, storage.list_files, storage.remove):
                    with fails(StorageError, "s3://data/a", "0.1"):
                        call("s3://data/a")
            assert time.monotonic() - started < 10
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_is_asked_as_little_as_can_be_and_goes_away(monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with object_store() as store:
        storage.remove("s3://data/nothing")
        assert store.requests == {"DELETE": 1}
        write("s3://data/a.bin")
        store.requests.clear()
        assert storage.read_if_exists("s3://data/a.bin", limit=2**24) == DATA
        assert store.requests == {"HEAD": 1, "GET": 1}
        store.stop()
        with fails(StorageError, "s3://data/a.bin", "Could not connect"):
            storage.size("s3://data/a.bin")


@pytest.mark.parametrize("kind", [TypeError, ValueError, NotImplementedError])
def test_what_a_store_s_package_cannot_do_is_not_tried_again(monkeypatch, kind):
    asked = []

    def refuse(_, path, **__):
        asked.append(path)
        raise kind("no such thing")

    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    with fails(OSError, f"memory://a.bin: {kind.__name__}: no such thing") as caught:
        storage.size("memory://a.bin")
    assert (type(caught.value), len(asked)) == (OSError, 1)
