"""Joining shards without images with shards of images: what comes out, what is left out, and what is refused."""

import gzip
import json

import pyarrow.parquet as pq
import pytest

from mobileclip.data import AugmentationParams, hash_image, read_reinforced_samples, write_shard
from mobileclip.data.shards.sidecars import ReinforcementCard, find_card, write_card
from mobileclip.reinforce import verify
from tests.data.made_samples import encoded, golden, make_sample, write_raw
from tests.datasets.joining.world import SIZE, Data, contents, files_of, joined, without_image
from tests.engines.conftest import forked_workers  # noqa: F401  a fixture
from tests.errors import fails


def checked(folder):
    return verify(folder, num_samples=0, show_progress=False)


@pytest.mark.parametrize("layout", ["npz", "pth.gz", "compact", "compact8"])
def test_gives_the_samples_with_their_images(tmp_path, layout):
    data = Data(tmp_path, layout=layout)
    before = {path.name: contents(path) for path in sorted(data.reinforced.glob("*.tar"))}
    if layout == "npz":
        for path in data.reinforced.glob("*.tar"):
            path.write_bytes(gzip.compress(path.read_bytes()))
    report = data.join()
    assert (report.samples, report.joined, report.left_out, report.complete) == (20, 20, {}, True)
    for name, shard in before.items():
        expected = {key: {**members, "png": encoded(*SIZE, seed=int(key))} for key, members in shard.items()}
        assert list(contents(data.output / name).items()) == list(expected.items())
    keys = [sample.key for sample in read_reinforced_samples(data.pattern(data.output))]
    assert keys == [f"{number:06d}" for number in range(20)]


@pytest.mark.parametrize("captions", [{"txt": b"ours"}, {}], ids=["captions", "none"])
def test_public_shards_and_captions_from_the_images_side(tmp_path, captions):
    """The public data has no images; some copies have no captions either."""
    members = contents(golden("noimage_bf16"))
    bare = {key: {name: data for name, data in one.items() if name != "txt"} for key, one in members.items()}
    big = encoded(2000, 2000, kind="jpeg")
    images = {
        f"{place:09d}": {"jpg": big, "json": b'{"uid": "%s"}' % key.encode(), **captions}
        for place, key in enumerate(members)
    }
    report = joined(
        reinforced=write_raw(tmp_path / "a.tar", bare),
        images=write_raw(tmp_path / "i.tar", images),
        output=str(tmp_path / "out"),
        by="uid",
        continue_on_mismatch=True,
    )
    found = len(members) if captions else 0
    assert (report.joined, report.captions) == (found, found)
    assert report.left_out == ({} if captions else {"no_caption": len(members)})
    if captions:
        samples = list(read_reinforced_samples(tmp_path / "out" / "a.tar"))
        assert {(sample.captions, sample.image is None) for sample in samples} == {(("ours",), False)}


def test_by_a_field_that_both_sides_state(empty):
    samples = [without_image(number, metadata={"uid": f"uid{5 - number}"}) for number in range(2)]
    empty.reinforce(*samples, without_image(2), make_sample(3))
    images = {f"x{number}": empty.image_members(number) for number in (4, 5)}
    images |= {"y": {"png": encoded(*SIZE, seed=2), "json": b'{"uid": "000002"}'}, "z": {"png": b"x"}}
    empty.replace("i.tar", images | {"null": empty.image_members(0, json=b'{"uid": null}')})
    report = empty.join(by="uid")
    assert (report.joined, report.images.without_field) == (4, 2)
    found = [one["png"] for one in contents(empty.output / "a.tar").values()]
    assert found[:3] == [encoded(*SIZE, seed=number) for number in (5, 4, 2)]


def test_keys_that_are_no_text(data):
    odd = {"000000": "\udcff", "000001": "ungefähr"}
    for path in [*data.reinforced.glob("*.tar"), *data.images.glob("*.tar")]:
        write_raw(path, {odd.get(key, key): members for key, members in contents(path).items()})
    report = data.join()
    assert (report.joined, report.left_out) == (20, {})
    assert data.join() == report
    note = pq.read_table(data.output / "join" / "00000.parquet")
    assert [row["key"] for row in note.to_pylist()][:2] == [b"\xff", "ungefähr".encode()]


def test_by_url(empty):
    empty.reinforce(*(without_image(number, url=f"https://x/{number}") for number in range(5)), without_image(5))
    image = empty.replace("i.tar", {f"other{number}": empty.image_members(number) for number in (4, 2, 0, 1)})
    report = empty.join(by="url")
    assert (report.joined, report.left_out) == (4, {"no_image": 2})
    rows = pq.read_table(empty.output / "join" / "a.parquet").to_pylist()
    assert [(row["key"], row["reason"]) for row in rows] == [
        (f"{number:06d}", "no_image" if number in (3, 5) else None) for number in range(6)
    ]
    assert {(row["image"], row["likeness"]) for row in rows if row["reason"] is None} == {(image, "unknown")}
    assert contents(empty.output / "a.tar")["000004"]["png"] == encoded(*SIZE, seed=4)


def test_a_card_comes_along_and_verification_finds_nothing_wrong(data):
    card = ReinforcementCard(layout="npz", num_augmentations=3, seed=5, num_samples=20, num_shards=3)
    write_card(data.reinforced, card)
    (data.images / "00000.tar").unlink()
    report = data.join()
    written = find_card(data.output)
    assert written == card
    assert (written.num_samples, written.num_shards, written.skipped) == (report.joined, 3, report.left_out)
    assert written.num_bytes == sum(path.stat().st_size for path in data.output.glob("*.tar"))
    found = checked(data.output)
    assert (found.num_samples, found.num_shards, found.counts) == (report.joined, 3, {})
    (data.output / "00001.tar").unlink()
    assert "missing_shard" in checked(data.output).counts
    other = data.root / "other"
    other.mkdir()
    write_shard(other / "a.tar", [without_image(1)])
    write_card(other, ReinforcementCard(layout="npz", seed=2))
    with fails(ValueError):
        data.join(reinforced=f"{data.pattern(data.reinforced)}::{other}/a.tar", output=str(data.root / "2"))


def test_missing_images_are_counted_and_named(data):
    gone = sorted(contents(data.images / "00001.tar"))
    (data.images / "00001.tar").unlink()
    assert data.join().left_out == {"no_image": 6}
    assert data.named() == [(key, f"{int(key) // 7:05d}.tar", "no_image") for key in gone]


def test_wrong_images(empty):
    images = [encoded(*SIZE, seed=number) for number in range(2)]
    anywhere = [AugmentationParams(crop=crop) for crop in ((0, 0, 30, 40), (5, 5, 5, 5), (0, 0, 1, 1))]
    samples = [without_image(number, image_sha256=hash_image(image)) for number, image in enumerate(images)]
    samples += [without_image(2), *(without_image(number, augmentations=anywhere) for number in (3, 4))]
    empty.reinforce(*samples)
    # The last one may be another copy, but nothing that is known says so.
    copies = [images[0], images[0], *(encoded(*size) for size in ((41, 30), (39, 30), (80, 60)))]
    empty.replace("i.tar", {f"{number:06d}": {"png": copy} for number, copy in enumerate(copies)})
    assert empty.join().left_out == {"wrong_image": 3}
    assert empty.named() == [(f"{number:06d}", "a.tar", "wrong_image") for number in (1, 2, 3)]


def test_broken_images(empty):
    empty.reinforce(*map(without_image, range(3)))
    whole = encoded(*SIZE, seed=0)
    images = (whole, whole[:-200], b"<html>")
    empty.replace("i.tar", {f"{number:06d}": {"png": image} for number, image in enumerate(images)})
    assert empty.join().joined == 2, "a header alone tells nothing of the end"
    ((_, _, reason),) = empty.named()
    assert reason.startswith("image_")
    report = empty.join(output=str(empty.root / "2"), check_images=True)
    assert (report.joined, set(report.left_out)) == (1, {"image_truncated", reason})


MALFORMED = [
    (b"{", "bad_json"),
    (b'{"param_aug": 3}', "bad_augmentation"),
    (b'{"param_aug": [[[1, 2, null, 3], []]]}', "bad_augmentation"),
]


@pytest.mark.parametrize(("paug", "reason"), MALFORMED)
def test_malformed_augmentations(empty, paug, reason):
    write_raw(empty.reinforced / "a.tar", {"a": {"txt": b"x", "paug.json": paug}})
    empty.replace("i.tar", {"a": {"png": encoded(*SIZE)}})
    assert empty.join().left_out == {reason: 1}


def test_keys_that_come_twice(data):
    data.replace("99999.tar", {f"{number:06d}": data.image_members(number + 100) for number in (0, 1)})
    write_raw(data.reinforced / "a.tar", [(f"{number:06d}.txt", b"a") for number in (3, 4, 3, 5, 5)])
    report = data.join()
    assert report.images.repeated_keys == 2
    assert contents(data.output / "00000.tar")["000000"]["png"] == encoded(*SIZE, seed=0), "the first shard's"
    assert report.left_out == {"duplicate_member": 1, "repeated_key": 1}
    assert (report.repeated_samples, report.unused_keys) == (4, 0)


def test_placeholders_are_named_and_kept_or_dropped(tmp_path):
    data, same = Data(tmp_path, count=24), encoded(*SIZE, seed=999)
    for path in sorted(data.images.glob("*.tar"))[:3]:
        members = contents(path)
        for key in list(members)[:4]:
            members[key]["png"] = same
        write_raw(path, members)
    for number in range(12):  # one key many times is none
        data.replace(f"9{number}.tar", {"x": {"png": encoded(5, 5)}})
    report = data.join()
    (found,) = report.placeholders
    assert hash_image(same).startswith(found.sha256)
    assert (report.joined, found.num_keys, found.num_bytes) == (24, 12, len(same))
    assert json.loads((data.output / "join.json").read_text())["placeholders"][0]["num_keys"] == 12
    for number, (changes, left_out) in enumerate((({}, {"placeholder": 12}), ({"placeholder_threshold": 13}, {}))):
        report = data.join(output=str(tmp_path / f"{number}"), drop_placeholders=True, **changes)
        assert (report.joined, report.left_out) == (24 - left_out.get("placeholder", 0), left_out)
    images = [members["png"] for path in (tmp_path / "0").glob("*.tar") for members in contents(path).values()]
    assert (len(images), images.count(same)) == (12, 0)
    assert data.join(output=str(tmp_path / "without"), placeholder_threshold=0).placeholders == ()


REFUSED = [
    {"index": "file"},
    *({"images": name} for name in ("nothing.tar", "zipped.tar")),
    {"output": "reinforced"},
    {"reinforced": "pipe:cat reinforced/00000.tar"},
    {"reinforced": "::".join(["reinforced/00000.tar"] * 2)},
    {"placeholder_threshold": 1},
    {"placeholder_threshold": 0, "drop_placeholders": True},
    {"output": "memory://joined"},
    {"check_images": True},  # others than those of the join that is there
]


@pytest.mark.parametrize("changes", REFUSED)
def test_what_will_not_do_is_refused(data, monkeypatch, changes):
    monkeypatch.chdir(data.root)
    (data.root / "file").write_bytes(b"not a folder")
    (data.root / "zipped.tar").write_bytes(gzip.compress(bytes(1000)))
    if "check_images" in changes:
        data.join()
    with fails((ValueError, OSError)):
        data.join(**changes)


def test_remote_on_both_sides(data):
    import fsspec

    store = fsspec.filesystem("memory")
    for path in data.root.rglob("*.tar"):
        store.pipe(f"/join/{path.relative_to(data.root)}", path.read_bytes())
    patterns = {"reinforced": "reinforced/{00000..00002}.tar", "images": "images/{00000..00003}.tar", "output": "out"}
    remote = {name: f"memory://join/{pattern}" for name, pattern in patterns.items()}
    assert data.join(**remote, index=str(data.root / "places")).joined == 20
    data.join()
    for path in data.output.glob("*.tar"):
        assert store.cat(f"/join/out/{path.name}") == path.read_bytes()
    assert json.loads(store.cat("/join/out/join.json"))["joined"] == 20


def test_folders_whose_shards_have_the_same_names(empty):
    """As DataCompDR-1B has 66 of them."""
    write_card(empty.reinforced, ReinforcementCard(layout="npz", num_augmentations=3))
    for number in range(2):
        (empty.reinforced / f"0{number}").mkdir()
        write_shard(empty.reinforced / f"0{number}" / "00000000.tar", [without_image(number)])
        empty.replace(f"{number}.tar", {f"{number:06d}": empty.image_members(number)})
    pattern = str(empty.reinforced / "{00..01}" / "00000000.tar")
    report = empty.join(reinforced=pattern)
    assert report.joined == 2
    for number in range(2):
        (members,) = contents(empty.output / f"0{number}" / "00000000.tar").values()
        assert members["png"] == encoded(*SIZE, seed=number)
    before, found = files_of(empty.output), checked(empty.output)
    assert (found.num_shards, found.num_samples, found.counts) == (2, 2, {})
    assert empty.join(reinforced=pattern) == report
    assert files_of(empty.output) == before
    (empty.images / "1.tar").unlink()
    empty.join(reinforced=pattern)
    assert empty.named() == [("000001", "01/00000000.tar", "no_image")]
