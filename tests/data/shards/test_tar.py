"""Tar files: walked as tarfile walks them, and written so that it can read them."""

import bz2
import gzip
import io
import lzma
import tarfile
from functools import partial
from tarfile import ReadError

import pytest
from hypothesis import given, settings, strategies as st
from webdataset.tariterators import base_plus_ext

from mobileclip.data.shards.tar import ForwardReader, read_members, split_name, tar_members, write_end, write_member
from tests.errors import fails

NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=180).filter(
    lambda name: not name.endswith("/") and "\0" not in name
)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def archive(files, form=tarfile.PAX_FORMAT, **header):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in header.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def walk(data):
    stream = io.BytesIO(data)
    return [(one.name, data[one.offset : one.offset + one.size]) for one in tar_members(stream)]


@pytest.mark.parametrize("form", FORMATS[1:])
@settings(max_examples=60, deadline=None)
@given(files=st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=5))
def test_walks_what_tarfile_wrote(form, files):
    assert walk(archive(files, form)) == files


def test_times_that_are_no_whole_seconds_and_long_names():
    """Extended headers, as webdataset writes them, and prefixes of names."""
    long = "/".join(["folder" * 5] * 4) + "/" + "n" * 60 + ".jpg"
    files = [("a.jpg", b"1" * 700), ("a.txt", b""), ("b.jpg", b"2"), (long, b"x")]
    assert walk(archive(files, mtime=1700000000.25)) == files
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT):
        assert walk(archive(files, form)) == files


def test_folders_and_links_are_passed_over():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("other")
            info.type, info.linkname = kind, "l" * 150
            tar.addfile(info)
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert walk(stream.getvalue()) == [("a.jpg", b"abc")]


@settings(max_examples=100, deadline=None)
@given(files=st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=5))
def test_tarfile_reads_what_is_written(files):
    stream = io.BytesIO()
    for name, content in files:
        write_member(stream, name, content)
    write_end(stream)
    assert walk(stream.getvalue()) == files
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        assert [(one.name, tar.extractfile(one).read()) for one in tar] == files


def test_every_damaged_header_byte_is_noticed():
    data = archive([("a.jpg", b"x" * 600), ("b.jpg", b"y")], tarfile.USTAR_FORMAT)
    for place in range(148):
        damaged = bytearray(data)
        damaged[place] ^= 0x01
        with pytest.raises(tarfile.ReadError):
            walk(bytes(damaged))


def test_compressed_and_sparse_and_forged():
    forged = bytearray(archive([("a" * 200, b"x")], tarfile.PAX_FORMAT))
    forged[512:515] = b"999"
    sparse = archive([("a.jpg", b"x")], pax_headers={"GNU.sparse.major": "1"})
    for data in (b"\x1f\x8b\x08" + bytes(509), sparse, bytes(forged)):
        with fails(ReadError):
            walk(data)


@settings(max_examples=300)
@given(name=st.text(st.sampled_from("a.B/_ \n"), max_size=12))
def test_names_are_split_as_webdataset_does(name):
    key, extension = base_plus_ext(name)
    if "\n" in name or name.startswith("./") or (key or "").startswith("__"):
        return
    assert split_name(name) == (None if key is None else (key, extension.lower()))


class Forward(io.RawIOBase):
    """A stream that can only be read on, a few bytes at a time, as a program's output."""

    def __init__(self, data):
        self.rest = data

    def readable(self):
        return True

    def readinto(self, buffer):
        part, self.rest = self.rest[: min(len(buffer), 700)], self.rest[min(len(buffer), 700) :]
        buffer[: len(part)] = part
        return len(part)


@settings(max_examples=60, deadline=None)
@given(files=st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=5), form=st.sampled_from(FORMATS[1:]))
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, partial(lzma.compress, preset=0)])
def test_read_in_one_go(compress, files, form):
    stream = io.BufferedReader(Forward(compress(archive(files, form))))
    assert list(read_members(stream)) == files


@pytest.mark.parametrize("cut", [1, 400, 512, 900, 1024, 1300, 1800, 2460, 2560])
def test_every_cut_is_noticed(cut):
    data = archive([("a.jpg", b"1" * 600), ("b.jpg", b"2" * 100)])[: 512 + 1024 + 512 + 512][:-cut]
    for read in (walk, lambda one: list(read_members(io.BytesIO(one)))):
        with fails(ReadError):
            read(data)


def test_reading_on_from_what_was_read_before():
    stream = ForwardReader(io.BytesIO(b"defgh"), b"abc")
    assert stream.read(2) == b"ab"
    assert stream.read(2) == b"cd"
    assert stream.seek(5) == 5
    assert stream.read(9) == b"fgh"
    assert stream.seek(20) == 8
