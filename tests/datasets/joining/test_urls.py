"""The table of URLs: the same in every form, from shards and from tables, and what is left out."""

import csv
import sys

import pytest

from mobileclip import storage
from mobileclip.data import hash_image
from mobileclip.datasets import RowOptions
from mobileclip.datasets.joining import COLUMNS, write_urls
from mobileclip.engines import LocalEngine
from tests.build.commands import run
from tests.data.made_samples import encoded, write_raw
from tests.data.public_release import Pair, PublicRelease
from tests.datasets.joining.world import AT_ONCE
from tests.datasets.sources.reading import pictures
from tests.engines.conftest import forked_workers  # noqa: F401  a fixture
from tests.errors import fails


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return PublicRelease(tmp_path_factory.mktemp("release")).write()


EXPECTED = [
    {"url": pair.url, "caption": pair.caption, "uid": pair.uid, "sha256": hash_image(pair.download())}
    for pair in map(Pair, range(8))
]


def read_table(path):
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def write(data, path, **options):
    """Return the report and the rows of the table."""
    report = write_urls(data, path, show_progress=False, **options)
    assert str(path) in str(report)
    return report, read_table(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_every_form_says_the_same_and_can_be_read_again(release, tmp_path, suffix):
    path, again = tmp_path / "deep" / f"urls.{suffix}", tmp_path / "again.csv"
    report, rows = write(release.captions, path)
    assert (rows, list(rows[0])) == (EXPECTED, list(COLUMNS))
    assert (report.num_rows, report.is_good) == (8, True)
    assert write(path, again)[1] == EXPECTED
    assert write(release.reinforced, again)[1] == [{**row, "caption": ""} for row in EXPECTED]


@pytest.mark.slow
def test_several_processes_write_the_same(release, tmp_path):
    engine = LocalEngine(num_workers=2, devices=("cpu",))
    assert write(release.captions, tmp_path / "two.csv", engine=engine)[1] == EXPECTED


@pytest.mark.parametrize("num_broken", [1, 3])
def test_a_shard_whose_store_is_away_is_tried_again_and_then_named(release, tmp_path, monkeypatch, num_broken):
    """Rows stand in the order of the shards all the same."""
    broken = []

    def opened(shard):
        if str(shard).endswith("00000000.tar") and len(broken) < num_broken:
            broken.append(shard)
            raise storage.StorageError("the store is away")
        return open_read(shard)

    open_read = storage.open_read
    monkeypatch.setattr(storage, "open_read", opened)
    report, rows = write(release.captions, tmp_path / "urls.csv", engine=AT_ONCE)
    assert (len(broken), report.is_good) == (num_broken, num_broken == 1)
    assert rows == (EXPECTED if report.is_good else EXPECTED[-report.num_rows :])
    assert report.skips.counts == ({} if report.is_good else {"unreadable_shard": 1})


def test_metadata_with_columns_of_other_names(tmp_path):
    (tmp_path / "a.csv").write_text("uid,image,text,sha256\nu,https://x/1,two\twords,abc\n,https://x/2,x,\nv,,y,\n")
    report, rows = write(tmp_path / "a.csv", tmp_path / "urls.csv", rows=RowOptions(url_column="image"))
    assert rows == [
        {"url": "https://x/1", "caption": "two words", "uid": "u", "sha256": "abc"},
        {"url": "https://x/2", "caption": "x", "uid": "a/000000002", "sha256": ""},
    ]
    assert report.skips.counts == {"missing_image": 1}


def test_what_has_no_url_is_counted(tmp_path):
    samples = {
        "a": {"url.txt": b" https://x/a\n", "json": b'{"caption": "line\\nbreak"}'},
        "b": {"json": b'{"url": "https://x/b", "sha256": 5, "uid": ""}', "txt": 'ü, "'.encode()},
        "c": {"txt": b"no address", "jpg": encoded(4, 4, kind="jpeg")},
        "d": {"url.txt": b"\xff"},
    }
    report, rows = write(write_raw(tmp_path / "a.tar", samples), tmp_path / "urls.csv")
    assert rows == [
        {"url": "https://x/a", "caption": "line break", "uid": "a", "sha256": ""},
        {"url": "https://x/b", "caption": 'ü, "', "uid": "b", "sha256": ""},
    ]
    assert report.skips.counts == {"missing_url": 1, "UnicodeDecodeError": 1}
    assert not report.is_good


def test_the_command(release, tmp_path, capsys):
    output, torn = tmp_path / "urls.csv", tmp_path / "torn.tar"
    status, out, _ = run(capsys, "data", "urls", release.reinforced, release.captions + "/00000000.tar", "-o", output)
    assert (status, len(read_table(output))) == (0, 12)
    torn.write_bytes((release.folder / "DataComp-12M" / "00000000.tar").read_bytes()[:4000])
    assert run(capsys, "data", "urls", torn, "-o", output)[0] == 2
    given = ("data", "urls", torn, "-o", output, "--overwrite", "--quiet")
    status, out, _ = run(capsys, *given)
    assert (status, "truncated_shard" in out) == (0, True)
    assert run(capsys, *given, "--strict")[0] == 1


def test_mistakes(release, tmp_path, monkeypatch):
    pictures(tmp_path / "pictures", 1)
    (tmp_path / "pictures" / "0.txt").write_text("a picture")
    for data, name in ((tmp_path / "pictures", "urls.csv"), (release.captions, "urls.txt")):
        with fails(ValueError):
            write(str(data), tmp_path / name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with fails(ImportError):
        write(release.captions, tmp_path / "urls.parquet")
    assert not list(tmp_path.glob("urls.*"))
