"""Joining shards without images with shards of images: what comes out, what is left out, and what is refused."""

import gzip
import json

import pyarrow.parquet as pq
import pytest

from mobileclip.data import (
    AugmentationParams,
    ReinforcementCard,
    find_card,
    hash_image,
    read_reinforced_samples,
    write_card,
    write_shard,
)
from mobileclip.datasets.joining import JoinSpec, join_images
from mobileclip.engines import LocalEngine
from mobileclip.reinforce import verify
from tests.data.made_samples import encoded, golden, make_sample, write_raw
from tests.datasets.joining.world import SIZE, Data, contents, files_of, without_image
from tests.engines.conftest import forked_workers  # noqa: F401  a fixture
from tests.errors import fails


class TestJoin:
    @pytest.mark.parametrize("layout", ["npz", "pth.gz", "compact", "compact8"])
    def test_gives_the_samples_with_their_images(self, tmp_path, layout):
        data = Data(tmp_path, layout=layout)
        report = data.join()
        assert (report.samples, report.joined, report.left_out) == (20, 20, {})
        assert report.complete
        for path in sorted(data.reinforced.glob("*.tar")):
            before, after = contents(path), contents(data.output / path.name)
            assert list(before) == list(after)
            for key, members in before.items():
                assert after[key] == {**members, "png": encoded(*SIZE, seed=int(key))}
        keys = [sample.key for sample in read_reinforced_samples(data.pattern(data.output))]
        assert keys == [f"{number:06d}" for number in range(20)]

    def test_public_shards_and_captions_from_the_images_side(self, tmp_path):
        """The public data has no images; some copies have no captions either."""
        members = contents(golden("noimage_bf16"))
        without = {key: {**{n: d for n, d in one.items() if n != "txt"}} for key, one in members.items()}
        reinforced = write_raw(tmp_path / "a.tar", without)
        images = {
            f"{number:09d}": {
                "jpg": encoded(2000, 2000, kind="jpeg"),
                "txt": b"ours",
                "json": b'{"uid": "%s"}' % key.encode(),
            }
            for number, key in enumerate(members)
        }
        write_raw(tmp_path / "i.tar", images)
        spec = JoinSpec(reinforced=reinforced, images=str(tmp_path / "i.tar"), output=str(tmp_path / "out"), by="uid")
        report = join_images(spec, show_progress=False)
        assert report.joined == report.captions == len(members)
        for sample in read_reinforced_samples(tmp_path / "out" / "a.tar"):
            assert sample.captions == ("ours",)
            assert sample.image is not None

    def test_by_a_field_that_both_sides_state(self, tmp_path):
        data = Data(tmp_path, count=0)
        samples = [without_image(number, metadata={"uid": f"uid{5 - number}"}) for number in range(2)]
        write_shard(data.reinforced / "a.tar", [*samples, without_image(2)])
        named = {"png": encoded(*SIZE, seed=2), "json": b'{"uid": "000002"}'}
        data.replace("i.tar", {**{f"x{number}": data.image_members(number) for number in (4, 5)}, "y": named})
        report = data.join(by="uid")
        assert report.joined == 3
        assert [one["png"] for one in contents(data.output / "a.tar").values()] == [
            encoded(*SIZE, seed=number) for number in (5, 4, 2)
        ]

    def test_by_url(self, tmp_path):
        data = Data(tmp_path, count=0)
        samples = [without_image(number, url=f"https://x/{number}") for number in range(5)]
        samples.append(without_image(5))
        write_shard(data.reinforced / "a.tar", samples)
        data.replace("i.tar", {f"other{number}": data.image_members(number) for number in (4, 2, 0, 1)})
        report = data.join(by="url")
        assert (report.joined, report.left_out) == (4, {"no_image": 2})
        assert data.named() == [("000003", "a.tar", "no_image"), ("000005", "a.tar", "no_image")]
        rows = pq.read_table(data.output / "join" / "a.parquet").to_pylist()
        assert [(row["key"], row["reason"]) for row in rows] == [
            (f"{number:06d}", "no_image" if number in (3, 5) else None) for number in range(6)
        ]
        joined = [row for row in rows if row["reason"] is None]
        assert {(row["image"], row["likeness"]) for row in joined} == {(str(data.images / "i.tar"), "unknown")}
        assert contents(data.output / "a.tar")["000004"]["png"] == encoded(*SIZE, seed=4)

    def test_samples_without_the_field(self, data):
        data.replace("00000.tar", {"000000": data.image_members(0, json=b'{"uid": null}'), "000001": {"png": b"x"}})
        report = data.join(by="uid", reinforced=str(data.reinforced / "00000.tar"))
        assert report.joined == 0
        assert report.images.without_field == 2
        assert not list(data.output.glob("*.tar"))

    def test_keys_that_are_no_text(self, data):
        for path in [*data.reinforced.glob("*.tar"), *data.images.glob("*.tar")]:
            named = {"\udcff" if key == "000000" else key: members for key, members in contents(path).items()}
            write_raw(path, named)
        report = data.join()
        assert (report.joined, report.left_out) == (20, {})
        assert data.join() == report
        note = pq.read_table(data.output / "join" / "00000.parquet")
        assert [row["key"] for row in note.to_pylist()][:2] == [b"\xff", b"000001"]

    def test_own_images_stay(self, data):
        write_shard(data.reinforced / "a.tar", [make_sample(3), without_image(4)])
        report = data.join(reinforced=str(data.reinforced / "a.tar"))
        assert report.joined == 2
        assert report.images.keys - report.unused_keys == 1

    def test_card_comes_along_and_counts_what_is_there(self, data):
        card = ReinforcementCard(layout="npz", num_augmentations=3, seed=5, num_samples=20, num_shards=3)
        write_card(data.reinforced, card)
        (data.images / "00000.tar").unlink()
        report = data.join()
        joined = find_card(data.output)
        assert joined == card
        assert (joined.num_samples, joined.num_shards) == (report.joined, 3)
        assert joined.num_bytes == sum(path.stat().st_size for path in data.output.glob("*.tar"))
        assert joined.skipped == report.left_out

    def test_verification_finds_nothing_wrong(self, data):
        write_card(data.reinforced, ReinforcementCard(layout="npz", num_augmentations=3))
        (data.images / "00000.tar").unlink()
        report = data.join()
        found = verify(data.output, num_samples=0, show_progress=False)
        assert (found.num_samples, found.num_shards) == (report.joined, 3)
        assert found.counts == {}
        (data.output / "00001.tar").unlink()
        assert "missing_shard" in verify(data.output, num_samples=0, show_progress=False).counts

    def test_cards_that_disagree(self, data):
        other = data.root / "other"
        other.mkdir()
        write_shard(other / "a.tar", [without_image(1)])
        for directory, seed in ((data.reinforced, 1), (other, 2)):
            write_card(directory, ReinforcementCard(layout="npz", seed=seed))
        with fails(ValueError):
            data.join(reinforced=f"{data.pattern(data.reinforced)}::{other / 'a.tar'}")

    def test_several_processes_do_the_same(self, data):
        data.join()
        one = files_of(data.output)
        data.join(output=str(data.root / "second"), engine=LocalEngine(num_workers=2, devices=("cpu",)))
        two = files_of(data.root / "second")
        assert one.keys() == two.keys()
        assert all(one[name] == two[name] for name in one if name != "join.json")
        ours, theirs = (json.loads(some["join.json"]) for some in (one, two))
        assert {**ours, "output": ""} == {**theirs, "output": ""}


class TestLeftOut:
    def test_missing_images_are_counted_and_named(self, data):
        gone = sorted(contents(data.images / "00001.tar"))
        (data.images / "00001.tar").unlink()
        report = data.join()
        assert report.left_out == {"no_image": 6}
        assert data.named() == [(key, f"{int(key) // 7:05d}.tar", "no_image") for key in gone]
        assert "14 of 20 samples (70.0%)" in str(report)
        assert "6  no image under their key" in str(report)

    def test_wrong_images(self, tmp_path):
        data = Data(tmp_path, count=0)
        images = {number: encoded(*SIZE, seed=number) for number in range(5)}
        samples = [without_image(number, image_sha256=hash_image(images[number])) for number in range(2)]
        anywhere = [AugmentationParams(crop=crop) for crop in ((0, 0, 30, 40), (5, 5, 5, 5), (0, 0, 1, 1))]
        samples += [without_image(2), *(without_image(number, augmentations=anywhere) for number in (3, 4))]
        write_shard(data.reinforced / "a.tar", samples)
        copies = {0: images[0], 1: images[0], 2: encoded(41, 30), 3: encoded(39, 30), 4: encoded(80, 60)}
        data.replace("i.tar", {f"{number:06d}": {"png": copy} for number, copy in copies.items()})
        report = data.join()
        # The last one may be another copy, but nothing that is known says so.
        assert data.named() == [(f"{number:06d}", "a.tar", "wrong_image") for number in (1, 2, 3)]
        assert report.left_out == {"wrong_image": 3}

    def test_broken_images(self, tmp_path):
        data = Data(tmp_path, count=0)
        write_shard(data.reinforced / "a.tar", [without_image(number) for number in range(3)])
        whole = encoded(*SIZE, seed=0)
        data.replace("i.tar", {"000000": {"png": whole}, "000001": {"png": whole[:-200]}, "000002": {"png": b"<html>"}})
        report = data.join()
        assert report.joined == 2, "a header alone tells nothing of the end"
        assert len(data.named()) == 1
        assert data.named()[0][2].startswith("image_")
        checked = join_images(data.spec(output=str(tmp_path / "2"), check_images=True), show_progress=False)
        assert checked.joined == 1
        assert set(checked.left_out) == {"image_truncated", data.named()[0][2]}

    def test_no_caption_anywhere(self, tmp_path):
        data = Data(tmp_path, count=0)
        members = contents(golden("noimage_bf16"))
        key = next(iter(members))
        bare = {name: content for name, content in members[key].items() if name != "txt"}
        write_raw(data.reinforced / "a.tar", {key: bare})
        data.replace("i.tar", {key: {"jpg": encoded(2000, 2000, kind="jpeg")}})
        assert data.join().left_out == {"no_caption": 1}

    @pytest.mark.parametrize(
        ("paug", "reason"),
        [
            (b"{", "bad_json"),
            (b"[]", "bad_json"),
            (b'{"param_aug": 3}', "bad_augmentation"),
            (b'{"param_aug": [[[1, 2, 3], []]]}', "bad_augmentation"),
            (b'{"param_aug": [[[1, 2, null, 3], []]]}', "bad_augmentation"),
            (b'{"param_aug": [], "image_size": 4}', "bad_augmentation"),
        ],
    )
    def test_malformed_augmentations(self, tmp_path, paug, reason):
        data = Data(tmp_path, count=0)
        write_raw(data.reinforced / "a.tar", {"a": {"txt": b"x", "paug.json": paug}})
        data.replace("i.tar", {"a": {"png": encoded(*SIZE)}})
        assert data.join().left_out == {reason: 1}

    def test_keys_that_come_twice(self, data):
        members = {f"{number:06d}": data.image_members(number + 100) for number in (0, 1)}
        data.replace("99999.tar", members)
        twice = [
            ("000003.txt", b"a"),
            ("000004.txt", b"b"),
            ("000003.txt", b"c"),
            ("000005.txt", b"a"),
            ("000005.txt", b"b"),
        ]
        write_raw(data.reinforced / "a.tar", twice)
        report = data.join()
        assert report.images.repeated_keys == 2
        assert contents(data.output / "00000.tar")["000000"]["png"] == encoded(*SIZE, seed=0), "the first shard's"
        assert report.left_out == {"duplicate_member": 1, "repeated_key": 1}
        assert report.repeated_samples == 4
        assert report.unused_keys == 0

    def test_names_that_are_not_text(self, tmp_path):
        data = Data(tmp_path, count=0)
        key = b"k\xff\xc3\xa9".decode(errors="surrogateescape")
        for folder, members in ((data.reinforced, {"txt": b"a"}), (data.images, {"png": encoded(*SIZE)})):
            write_raw(folder / "a.tar", {key: members, "ungefähr": members, "other": {"txt": b"a"}})
        report = data.join()
        assert report.joined == 2
        assert set(contents(data.output / "a.tar")) == {key, "ungefähr"}


class TestPlaceholders:
    @pytest.fixture
    def repeating(self, tmp_path):
        data = Data(tmp_path, count=24)
        same = encoded(*SIZE, seed=999)
        for path in sorted(data.images.glob("*.tar"))[:3]:
            members = contents(path)
            for key in list(members)[:4]:
                members[key]["png"] = same
            write_raw(path, members)
        return data, same

    def test_are_named_and_kept(self, repeating):
        data, same = repeating
        report = data.join()
        assert report.joined == 24
        (found,) = report.placeholders
        assert hash_image(same).startswith(found.sha256)
        assert (found.num_keys, found.num_bytes) == (12, len(same))
        assert f"12 keys  sha256 {found.sha256}" in str(report)
        assert "12 in all (--drop-placeholders leaves them out)" in str(report)
        assert json.loads((data.output / "join.json").read_text())["placeholders"][0]["num_keys"] == 12

    def test_are_dropped(self, repeating):
        data, same = repeating
        report = data.join(drop_placeholders=True)
        assert (report.joined, report.left_out) == (12, {"placeholder": 12})
        images = [members["png"] for path in data.output.glob("*.tar") for members in contents(path).values()]
        assert len(images) == 12
        assert same not in images

    def test_below_the_threshold(self, repeating):
        data, _ = repeating
        assert data.join(placeholder_threshold=13, drop_placeholders=True).joined == 24

    def test_one_key_many_times_is_no_placeholder(self, repeating):
        data, _ = repeating
        for number in range(12):
            data.replace(f"9{number}.tar", {"x": {"png": encoded(5, 5)}})
        assert len(data.join().placeholders) == 1

    def test_without_hashes_and_then_with_them(self, repeating):
        data, _ = repeating
        assert data.join(placeholder_threshold=0).placeholders == ()
        assert len(data.join().placeholders) == 1


class TestRefused:
    def test_other_choices(self, data):
        data.join()
        with fails(ValueError):
            data.join(check_images=True)

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"index": "file"}, (OSError,)),
            ({"images": "nothing.tar"}, (ValueError, "1")),
            ({"images": "zipped.tar"}, (ValueError, "compressed")),
            ({"output": "reinforced"}, (ValueError,)),
            ({"reinforced": "pipe:cat reinforced/00000.tar"}, (ValueError,)),
            ({"reinforced": "::".join(["reinforced/00000.tar"] * 2)}, (ValueError,)),
        ],
    )
    def test_places_that_will_not_do(self, data, monkeypatch, changes, error):
        monkeypatch.chdir(data.root)
        (data.root / "file").write_bytes(b"not a folder")
        (data.root / "zipped.tar").write_bytes(gzip.compress(bytes(1000)))
        with fails(*error):
            data.join(**changes)

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"placeholder_threshold": 1}, (ValueError,)),
            ({"placeholder_threshold": 0, "drop_placeholders": True}, (ValueError,)),
            ({"output": "memory://joined"}, (ValueError,)),
        ],
    )
    def test_choices_that_contradict_each_other(self, data, changes, error):
        with fails(*error):
            data.spec(**changes)


def test_remote_on_both_sides(data):
    import fsspec

    store = fsspec.filesystem("memory")
    for folder in (data.reinforced, data.images):
        for path in folder.glob("*.tar"):
            store.pipe(f"/join/{folder.name}/{path.name}", path.read_bytes())
    report = data.join(
        reinforced="memory://join/reinforced/{00000..00002}.tar",
        images="memory://join/images/{00000..00003}.tar",
        output="memory://join/out",
        index=str(data.root / "places"),
    )
    assert report.joined == 20
    data.join()
    for path in data.output.glob("*.tar"):
        assert store.cat(f"/join/out/{path.name}") == path.read_bytes()
    assert json.loads(store.cat("/join/out/join.json"))["joined"] == 20


def test_folders_whose_shards_have_the_same_names(tmp_path):
    """As DataCompDR-1B has 66 of them."""
    data = Data(tmp_path, count=0)
    write_card(data.reinforced, ReinforcementCard(layout="npz", num_augmentations=3))
    for folder in range(2):
        (data.reinforced / f"{folder:02d}").mkdir()
        write_shard(data.reinforced / f"{folder:02d}" / "00000000.tar", [without_image(folder)])
        data.replace(f"{folder}.tar", {f"{folder:06d}": data.image_members(folder)})
    report = data.join(reinforced=str(data.reinforced / "{00..01}" / "00000000.tar"))
    assert report.joined == 2
    for folder in range(2):
        joined = contents(data.output / f"{folder:02d}" / "00000000.tar")
        assert joined[f"{folder:06d}"]["png"] == encoded(*SIZE, seed=folder)
    before = files_of(data.output)
    found = verify(data.output, num_samples=0, show_progress=False)
    assert (found.num_shards, found.num_samples, found.counts) == (2, 2, {})
    assert data.join(reinforced=str(data.reinforced / "{00..01}" / "00000000.tar")) == report
    assert files_of(data.output) == before
    (data.images / "1.tar").unlink()
    data.join(reinforced=str(data.reinforced / "{00..01}" / "00000000.tar"))
    assert data.named() == [("000001", "01/00000000.tar", "no_image")]


def test_compressed_reinforced_shards(data):
    for path in data.reinforced.glob("*.tar"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert data.join().joined == 20
