"""What a join compares, in the published layouts too, and when too little is joined."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from mobileclip.data import AugmentationParams, hash_image, read_reinforced_samples
from tests.data.made_samples import encoded, write_raw
from tests.data.public_release import Pair, PublicRelease
from tests.datasets.joining.world import SIZE, contents, damage_half, joined, without_image
from tests.errors import fails

FIRST, SECOND = hash_image(encoded(*SIZE, seed=0)), "0" * 63 + "1"
RESIZED = {"width": 40, "height": 30, "original_width": 80, "original_height": 60}


def compared(data, stated, beside, **choices):
    """Join one sample that states something with one image whose JSON does."""
    data.reinforce(without_image(0, metadata={"uid": "u", **stated}))
    members = {} if beside is None else {"json": json.dumps(beside).encode()}
    data.replace("i.tar", {"000000": {"png": encoded(*SIZE, seed=0), **members}})
    return data.join(**choices)


STATED = [
    ({"sha256": FIRST}, None, "equal_stored"),
    ({"sha256": FIRST.upper()}, {"sha256": SECOND}, "equal_stored"),
    ({"sha256": SECOND}, {"sha256": SECOND}, "equal_downloaded"),
    ({"sha256": SECOND}, {"sha256": SECOND, "width": 40, "height": 30}, "equal_downloaded"),
    ({"sha256": SECOND}, {"sha256": SECOND, "width": 41, "height": 30}, "other"),
    ({"sha256": SECOND}, {"sha256": FIRST}, "other"),
    ({"sha256": SECOND}, None, "other"),
    # Made smaller: that the file has another hash says nothing.
    ({"sha256": SECOND}, RESIZED, "unknown"),
    ({"sha256": SECOND, "original_width": 81.0, "original_height": 60.0}, RESIZED, "other"),
    ({"original_width": 80, "original_height": 61}, RESIZED, "other"),
    ({"original_width": 80, "original_height": 60}, RESIZED, "unknown"),
    ({"original_width": True, "original_height": "60"}, RESIZED, "unknown"),
    ({"sha256": "none"}, {"sha256": FIRST}, "unknown"),
    ({}, None, "unknown"),
]


@pytest.mark.parametrize(("stated", "beside", "found"), STATED)
def test_equal_other_and_unknown(empty, stated, beside, found):
    report = compared(empty, stated, beside)
    counts = {name: getattr(report, name) for name in ("equal_stored", "equal_downloaded", "unknown")}
    counts["other"] = report.left_out.get("other_image", 0)
    assert counts == {**dict.fromkeys(counts, 0), found: 1}
    assert empty.named() == ([("000000", "a.tar", "other_image")] if found == "other" else [])
    assert (report.is_good, report.others) == ((True, ()) if found != "other" else (False, ("000000 in a.tar",)))


def test_other_ones_are_kept_and_named(empty):
    report = compared(empty, {"sha256": SECOND}, {"sha256": FIRST}, keep_other=True)
    assert (report.joined, report.kept_other, report.left_out) == (1, 1, {})
    (row,) = pq.read_table(empty.output / "join" / "a.parquet").to_pylist()
    assert (row["key"], row["likeness"], row["reason"]) == ("000000", "other", None)
    with fails(ValueError):
        empty.join()


@pytest.mark.parametrize("scale", [1, 3])
def test_larger_copies_are_suspected(empty, scale):
    # Without the size of the image, which this library states, and the public samples do not.
    views = [AugmentationParams(crop=crop) for crop in ((0, 0, 30, 39), (5, 5, 5, 5))]
    empty.reinforce(without_image(0, augmentations=views, image_emb=np.zeros((2, 6), np.float32)))
    empty.replace("i.tar", {"000000": {"png": encoded(*(scale * side for side in SIZE))}})
    report = empty.join()
    assert (report.joined, report.reach) == (1, pytest.approx(1 / scale))


def join_release(release, **choices):
    fields = {name: getattr(release, name) for name in ("reinforced", "images", "captions")}
    return joined(**{**fields, "output": str(release.folder / "joined"), "by": "uid", **choices})


def test_samples_with_captions_and_pictures(tmp_path):
    report = join_release(PublicRelease(tmp_path, gone={1, 6}, replaced={2}).write())
    assert (report.samples, report.joined, report.equal_downloaded, report.set_captions) == (8, 5, 5, 5)
    assert (report.left_out, report.is_good) == ({"no_image": 2, "other_image": 1}, True)
    samples = list(read_reinforced_samples(f"{tmp_path}/joined/{{00000000..00000001}}.tar"))
    expected = [(pair.uid, (pair.caption,)) for pair in map(Pair, (0, 3, 4, 5, 7))]
    assert [(one.key, one.captions) for one in samples] == expected
    assert all(one.image for one in samples)


def test_pictures_that_were_made_smaller(tmp_path):
    """DataComp's download makes them smaller: only the hash beside them tells, and the crops leave them."""
    report = join_release(PublicRelease(tmp_path, image_size=32).write())
    assert (report.left_out, report.stopped) == ({"wrong_image": 4}, "00000000.tar")


CAPTIONS = [
    ("", {"no_image": 4}),
    ("{00000000..00000001}.tar", {"no_image": 4}),
    (None, {"no_caption": 4}),
    ("of other pictures", {"other_caption": 1}),
]


@pytest.mark.parametrize(("captions", "left_out"), CAPTIONS)
def test_captions_of_a_folder_and_of_a_pattern(tmp_path, captions, left_out):
    by_key = "no_image" in left_out
    release = PublicRelease(tmp_path, with_json=not by_key).write()
    shards = tmp_path / "DataComp-12M"
    if by_key:
        choices = {"captions": str(shards / captions), "by": "key", "min_share": 0.0}  # numbers are not uids
    else:
        choices = {"captions": captions and str(shards)}
        members = contents(shards / "00000000.tar")
        first = next(iter(members.values()))
        first["json"] = first["json"].replace(b'"sha256": "', b'"sha256": "0')
        write_raw(shards / "00000000.tar", members)
    assert join_release(release, **choices).left_out == left_out
    with fails(ValueError, "00000000.tar"):
        join_release(release, captions=str(shards / "00000001.tar"))


def test_a_shard_of_captions_that_comes_later(tmp_path):
    release = PublicRelease(tmp_path).write()
    path = tmp_path / "DataComp-12M" / "00000001.tar"
    content = damage_half(path)
    half = path.read_bytes()
    path.unlink()
    report = join_release(release)
    assert (report.joined, report.is_good) == (4, False)
    path.write_bytes(half)
    report = join_release(release)
    assert (4 <= report.joined < 8, report.is_good) == (True, False)
    path.write_bytes(content)
    assert join_release(release).joined == 8


def test_a_least_share(data):
    (data.images / "00001.tar").unlink()
    assert [data.join(min_share=share).is_good for share in (0.7, 0.71)] == [True, False]
    report = data.join(by="width", min_share=0.0, continue_on_mismatch=True, output=str(data.root / "none"))
    assert (report.joined, report.samples, report.stopped, report.is_good) == (0, 20, None, False)
    (data.reinforced / "00000.tar").unlink()
    pattern = str(data.reinforced / "{00000..00002}.tar")
    assert data.join(reinforced=pattern, output=str(data.root / "some")).stopped is None, "it says nothing"


def test_ends_after_a_first_shard_without_any_match(data):
    for _ in range(2):
        report = data.join(by="width")
        assert (report.stopped, report.samples, report.is_good) == ("00000.tar", 7, False)
        assert report.examples == ("000000", "40")
    assert data.join(by="width", continue_on_mismatch=True).samples == 20
