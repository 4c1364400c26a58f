"""`mobileclip data ...`, run as people run it."""

import json
import os

import pytest

from mobileclip.cli.arguments import Sharing
from mobileclip.data import write_shard
from mobileclip.engines import LocalEngine, RayEngine, Retries, read_set_aside
from tests.build.commands import refused, run, worked
from tests.data.made_samples import encoded, golden, make_sample, write_raw
from tests.datasets.joining.world import left_out
from tests.errors import told
from tests.storage.test_local import nobody


@pytest.fixture
def shards(tmp_path):
    """Reinforced shards without images, image shards, and where the joined ones go."""
    for first in (0, 4):
        write_shard(tmp_path / f"{first:02d}.tar", [make_sample(first + number, image=None) for number in range(4)])
    images = {
        f"{number:02d}x": {"png": encoded(40, 30, seed=number), "json": json.dumps({"uid": f"{number:06d}"}).encode()}
        for number in (7, 3, 1, 2, 5, 0)
    }
    write_raw(tmp_path / "i.tar", images)
    return tmp_path / "{00,04}.tar", tmp_path / "i.tar", "-o", tmp_path / "joined"


def test_join(capsys, shards):
    line = "data", "join", *shards
    status, out, err = run(capsys, *line, "--by", "uid")
    assert status == 0
    told(out, "joined      6 of 8 samples (75.0%)", "2  no image has their key")
    told(err, "indexing: 3/3", "joining: 2/2")
    assert left_out(shards[3]) == [("000004", "04.tar", "no_image"), ("000006", "04.tar", "no_image")]
    assert run(capsys, *line, "--by", "uid") == (0, out, "")
    first, *others = worked(capsys, *line, "--status").splitlines()
    assert first.startswith("finished at 20")
    assert others == ["joining: 2 of 2 shards done, 2 of them by earlier runs"]
    shards[0].with_name("04.tar").write_bytes(b"torn" * 400)
    torn = (*line[:4], "-o", shards[3].with_name("torn"))
    told(worked(capsys, *torn, "--by", "uid", "--quiet"), "joined      4 of 4", "unfinished  1 reinforced shards")
    (aside,) = read_set_aside(torn[-1])
    assert (aside.unit, aside.tries, aside.reason.partition(",")[0]) == ("04.tar", 1, "unreadable_shard")
    assert worked(capsys, *torn, "--status").splitlines()[1:] == [
        "joining: 1 of 2 shards done",
        "set aside: 1 (see set_aside.jsonl); failed attempts: 1",
    ]
    assert run(capsys, *torn, "--by", "uid", "--quiet", "--strict")[0] == 1


def test_an_index_that_cannot_be_written_is_named(capsys, shards):
    other = shards[3].with_name("other")
    index = other / "places"
    flags = ("--by", "uid", "--quiet", "--index", index)
    worked(capsys, "data", "join", *shards, *flags)
    for folder in list(other.parents)[:-2]:
        if folder.stat().st_uid == os.getuid():
            folder.chmod(0o755)
    other.chmod(0o777)
    index.chmod(0o555)
    with nobody():
        message = f"nothing can be written to {index} (Permission denied); choose another folder"
        assert len(refused(capsys, message, "data", "join", *shards[:3], other, *flags).splitlines()) == 1


def test_inspect(capsys, tmp_path):
    sheet = tmp_path / "sample.html"
    out = worked(capsys, "data", "inspect", golden("npz"), "--key", "000100000001", "-o", sheet)
    page = sheet.read_text(encoding="utf-8")
    told(out, "000100000001", "Augmentations")
    told(page, "000100000001")
    assert page.count("data:image/webp") > 1


JOIN = ("join", golden("npz"), golden("npz"), "-o")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", golden("npz"), "--key", "000100000009"), "did you mean '00010000000"),
        (("inspect", "nothing.tar"), "nothing.tar"),
        (("inspect", golden("npz"), "-o", "{folder}/kept.html"), "kept.html already exists"),
        (("inspect", golden("npz"), "-o", "{folder}/kept.png/a.html"), "kept.png is not a folder"),
        (("inspect", golden("npz"), "-o", "{folder}/sheet.what"), "must end with .html"),
        (("inspect", "{folder}"), "is a folder; expected a tar shard"),
        ((*JOIN, "{folder}/kept.png"), "kept.png is not a folder"),
        ((*JOIN, "{folder}/images"), "`mobileclip data join` did not write"),
        (("check", "{folder}/lost"), "lost; expected a folder of reinforced shards"),
        (("check", "{folder}/kept.png"), "is a file; expected a folder"),
        (("check", "{folder}", "--samples", "-1"), "--samples is -1, expected at least 0"),
        (("check", "{folder}", "--num-shards", "0"), "--num-shards is 0, expected at least 1"),
        (("check", "{folder}", "--device", "gpu"), "the device 'gpu' is not available"),
        ((*JOIN, "{folder}/o", "--captions", "{folder}/lost"), "lost; expected"),
        ((*JOIN, "{folder}/out", "--min-share", "2"), "min_share"),
        (("join", golden("npz"), "{folder}/nothing.tar", "-o", "{folder}/out"), "nothing.tar; expected tar files"),
        (("join", golden("npz"), "{folder}/{{0..", "-o", "{folder}/out"), "cannot be expanded"),
        ((*JOIN, "{folder}", "--placeholder-threshold", "1"), "at least 2"),
        ((*JOIN, "{folder}", "--placeholder-threshold", "-1"), "must be >= 0"),
        (("join", "gopher://a/b.tar", golden("npz"), "-o", "{folder}"), "gopher"),
        (("count", golden("npz"), "-j", "0"), "--num-workers is 0, expected at least 1"),
        (("count", golden("npz"), "--tries", "0"), "tries"),
        (("count", "{folder}/nothing.tar"), "nothing.tar; expected a tar shard"),
        (("count",), "no SHARDS given"),
        (("urls", "-o", "{folder}/table.csv"), "no DATA given"),
        (("urls", golden("npz"), "-o", "{folder}/table.txt"), "must end with .parquet or .csv"),
        (("score", "-o", "{folder}/scores"), "no SHARDS given"),
        (("filter", "{folder}/images", "-o", "{folder}/kept.csv", "--share", "0.5"), "must end with .npy or .html"),
        (("dedup", "{folder}/images", "-o", "{folder}/kept.csv"), "ends with .npy"),
        (("dedup", "{folder}/images", "-o", "{folder}/kept.png"), "already exists"),
        (("dedup", "{folder}/lost", "-o", "{folder}/kept.npy"), "lost; expected a folder of scores"),
        (("tune-scale", "{folder}/nothing.tar"), "nothing.tar; expected a reinforced shard"),
    ],
)
def test_mistakes_are_told_without_a_traceback(capsys, tmp_path, arguments, message):
    (tmp_path / "images").mkdir()
    kept = [tmp_path / name for name in ("kept.png", "kept.html", "images/00000.tar")]
    for file in kept:
        file.write_bytes(b"the work of hours")
    line = [
        *(argument.format(folder=tmp_path) for argument in arguments),
        *(["--quiet"] if arguments[0] == "join" else []),
    ]
    assert refused(capsys, message, "data", *line).count("\n") == 1
    assert [file.read_bytes() for file in kept] == [b"the work of hours"] * 3


def test_count(capsys, shards):
    whole, torn = shards[0].with_name("00.tar"), shards[0].with_name("04.tar")
    assert run(capsys, "data", "count", whole, torn, "--quiet") == (0, "8 samples in 2 shards\n", "")
    torn.write_bytes(torn.read_bytes()[:3000])
    flags = ("--overwrite", "--quiet", "--tries", 1)
    status, out, _ = run(capsys, "data", "count", whole, torn, *flags)
    assert (status, out.splitlines()[0]) == (0, "4 samples in 1 shards")
    told(out, "1 shards could not be counted; the first: ", "04.tar")
    assert run(capsys, "data", "count", whole, torn, *flags, "--strict")[0] == 1


def test_work_is_shared_as_the_flags_say():
    local = Sharing(num_workers=3, shard_seconds=5.0, tries=2, pause_seconds=1.0, pause_growth=2.0).build()
    assert isinstance(local, LocalEngine)
    assert (local.num_workers, local.devices, local.progress_seconds) == (3, ("cpu",), 5.0)
    assert local.retries == Retries(tries=2, pause_seconds=1.0, pause_growth=2.0)
    cluster = Sharing(num_workers=3, engine="ray", ray_address="auto", shard_seconds=5.0).build()
    assert isinstance(cluster, RayEngine)
    assert (cluster.address, cluster.max_workers, cluster.progress_seconds) == ("auto", 3, 5.0)
    assert Sharing() == Sharing(num_workers=1, engine="local", tries=3)


def test_a_name_may_have_underscores_in_place_of_dashes(capsys):
    assert run(capsys, "data", "tune_scale", "--help") == run(capsys, "data", "tune-scale", "--help")
