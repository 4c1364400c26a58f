"""Joining shards without images with shards of images: what comes out, what is left out, and after every kill."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobileclip.data import AugmentationParams, hash_image, read_reinforced_samples, write_shard
from mobileclip.data.joining import image_scan
from mobileclip.data.joining.join import join_images
from mobileclip.data.joining.spec import JoinSpec
from mobileclip.data.shards.card import ReinforcementCard, find_card, write_card
from mobileclip.data.shards.files import read_shard
from mobileclip.reinforce.verify import verify
from tests.data.made_samples import encoded, golden, make_sample, write_raw
from tests.data.public_release import Pair, PublicRelease

SIZE = (40, 30)
FIRST, SECOND = hash_image(encoded(*SIZE, seed=0)), "0" * 63 + "1"
RESIZED = {"width": 40, "height": 30, "original_width": 80, "original_height": 60}


def contents(path):
    skips = []
    found = {raw.key: raw.members for raw in read_shard(str(path), skips.append)}
    assert not skips
    return found


def without_image(number, **changes):
    return make_sample(number, image=None, **changes)


class Data:
    """Reinforced shards without images, and image shards in another order and number."""

    def __init__(self, root, *, count=20, per_reinforced=7, per_images=6, shuffled=True, layout="npz"):
        self.root = root
        self.reinforced, self.images, self.output = root / "reinforced", root / "images", root / "joined"
        self.reinforced.mkdir()
        self.images.mkdir()
        numbers = list(range(count))
        for first in range(0, count, per_reinforced):
            samples = [without_image(number) for number in numbers[first : first + per_reinforced]]
            write_shard(self.reinforced / f"{first // per_reinforced:05d}.tar", samples, layout=layout)
        if shuffled:
            random.Random(0).shuffle(numbers)
        for first in range(0, count, per_images):
            members = {f"{number:06d}": self.image_members(number) for number in numbers[first : first + per_images]}
            write_raw(self.images / f"{first // per_images:05d}.tar", members)

    @staticmethod
    def image_members(number, **changes):
        metadata = {"uid": f"uid{number}", "url": f"https://x/{number}", "width": 40}
        members = {"png": encoded(*SIZE, seed=number), "txt": b"theirs", "json": json.dumps(metadata).encode()}
        return {name: data for name, data in (members | changes).items() if data is not None}

    def replace(self, shard, samples):
        return write_raw(self.images / shard, samples)

    def pattern(self, folder):
        return "::".join(str(path) for path in sorted(folder.glob("*.tar")))

    def spec(self, **changes):
        return JoinSpec(
            **{
                "reinforced": self.pattern(self.reinforced),
                "images": self.pattern(self.images),
                "output": str(self.output),
                **changes,
            }
        )

    def join(self, **changes):
        return join_images(self.spec(**changes), show_progress=False)

    def named(self):
        """What missing.txt names: key, shard, reason."""
        return [tuple(line.split("\t")) for line in (self.output / "missing.txt").read_text().splitlines()]


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def files_of(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(Path(directory).rglob("*"))
        if path.is_file() and "index" not in path.parts and not path.name.endswith(".tmp")
    }


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
        assert contents(data.output / "a.tar")["000004"]["png"] == encoded(*SIZE, seed=4)

    def test_samples_without_the_field(self, data):
        data.replace("00000.tar", {"000000": data.image_members(0, json=b'{"uid": null}'), "000001": {"png": b"x"}})
        report = data.join(by="uid", reinforced=str(data.reinforced / "00000.tar"))
        assert report.joined == 0
        assert report.images.without_field == 2
        assert not list(data.output.glob("*.tar"))

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
        with pytest.raises(ValueError, match="reinforced differently"):
            data.join(reinforced=f"{data.pattern(data.reinforced)}::{other / 'a.tar'}")

    def test_several_processes_do_the_same(self, data):
        data.join()
        one = files_of(data.output)
        data.join(output=str(data.root / "second"), num_workers=2)
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


class TestCompared:
    """What a sample states of the picture that was downloaded, as the public samples do."""

    @staticmethod
    def joined(tmp_path, stated, beside, image=None, **choices):
        """Join one sample that states something with one image whose JSON does."""
        data = Data(tmp_path, count=0)
        image = encoded(*SIZE, seed=0) if image is None else image
        write_shard(data.reinforced / "a.tar", [without_image(0, metadata={"uid": "u", **stated})])
        beside = None if beside is None else json.dumps(beside).encode()
        data.replace("i.tar", {"000000": {"png": image} | ({} if beside is None else {"json": beside})})
        return data, data.join(**choices)

    @pytest.mark.parametrize(
        ("stated", "beside", "found"),
        [
            ({"sha256": FIRST}, None, "equal_stored"),
            ({"sha256": FIRST.upper()}, {"sha256": SECOND}, "equal_stored"),
            ({"sha256": SECOND}, {"sha256": SECOND}, "equal_downloaded"),
            ({"sha256": SECOND}, {"sha256": SECOND, "width": 40, "height": 30}, "equal_downloaded"),
            ({"sha256": SECOND}, {"sha256": SECOND, "width": 41, "height": 30}, "other"),
            ({"sha256": SECOND}, {"sha256": FIRST}, "other"),
            ({"sha256": SECOND}, {}, "other"),
            ({"sha256": SECOND}, None, "other"),
            ({"sha256": SECOND}, {"sha256": 5, "width": 40, "height": 30}, "other"),
            # Made smaller: that the file has another hash says nothing.
            ({"sha256": SECOND}, RESIZED, "unknown"),
            ({"sha256": SECOND, "original_width": 80, "original_height": 60}, RESIZED, "unknown"),
            ({"sha256": SECOND, "original_width": 81.0, "original_height": 60.0}, RESIZED, "other"),
            ({"original_width": 80, "original_height": 61}, RESIZED, "other"),
            ({"original_width": 80, "original_height": 60}, RESIZED, "unknown"),
            ({"original_width": True, "original_height": "60"}, RESIZED, "unknown"),
            ({"sha256": "none"}, {"sha256": FIRST}, "unknown"),
            ({}, None, "unknown"),
        ],
    )
    def test_equal_other_and_unknown(self, tmp_path, stated, beside, found):
        data, report = self.joined(tmp_path, stated, beside)
        counts = {name: getattr(report, name) for name in ("equal_stored", "equal_downloaded", "unknown")}
        counts["other"] = report.left_out.get("other_image", 0)
        assert counts == {**dict.fromkeys(counts, 0), found: 1}
        assert data.named() == ([("000000", "a.tar", "other_image")] if found == "other" else [])
        assert report.is_good == (found != "other")

    def test_two_gradients_in_place_of_two_pictures_are_not_joined(self, tmp_path):
        """The public layout, and images that nobody ever downloaded."""
        members = contents(golden("noimage_bf16"))
        for number, (key, one) in enumerate(members.items()):
            stated = {"uid": key, "sha256": hash_image(encoded(*SIZE, seed=number))}
            one["json"] = json.dumps(stated).encode()
        reinforced = write_raw(tmp_path / "a.tar", members)
        gradient = io.BytesIO()
        Image.linear_gradient("L").resize((2000, 2000)).save(gradient, "png")
        images = write_raw(tmp_path / "i.tar", {key: {"png": gradient.getvalue()} for key in members})
        spec = JoinSpec(reinforced=reinforced, images=images, output=str(tmp_path / "out"))
        report = join_images(spec, show_progress=False)
        assert (report.joined, report.left_out) == (0, {"other_image": len(members)})
        assert report.others == tuple(f"{key} in a.tar" for key in members)
        assert not report.is_good
        assert f"compared    0 equal (0 as stored, 0 by the hash of their download), {len(members)} other" in str(
            report
        )

    def test_other_ones_are_kept_and_named(self, tmp_path):
        data, report = self.joined(tmp_path, {"sha256": SECOND}, {"sha256": FIRST}, keep_other=True)
        assert (report.joined, report.kept_other, report.left_out) == (1, 1, {})
        assert (data.output / "other.txt").read_text() == "000000\ta.tar\n"
        assert "1 other ones were kept, named in other.txt" in str(report)
        assert "other: 000000 in a.tar" in str(report)
        with pytest.raises(ValueError, match="joined with other choices"):
            data.join()

    @pytest.mark.parametrize("scale", [1, 3])
    def test_larger_copies_are_suspected(self, tmp_path, scale):
        data = Data(tmp_path, count=0)
        # Without the size of the image, which this library states, and the public samples do not.
        views = [AugmentationParams(crop=crop) for crop in ((0, 0, 30, 39), (5, 5, 5, 5))]
        write_shard(
            data.reinforced / "a.tar", [without_image(0, augmentations=views, image_emb=np.zeros((2, 6), np.float32))]
        )
        data.replace("i.tar", {"000000": {"png": encoded(*(scale * side for side in SIZE))}})
        report = data.join()
        assert report.joined == 1
        assert report.reach == pytest.approx(1 / scale)
        assert ("these may be larger copies" in str(report)) == (scale > 1)


class TestPublished:
    """DataCompDR-12M, DataComp-12M and the pictures behind their URLs, in the published layouts."""

    @staticmethod
    def join(release, **choices):
        choices = {"captions": release.captions, "by": "uid", **choices}
        spec = JoinSpec(
            reinforced=release.reinforced, images=release.images, output=str(release.folder / "joined"), **choices
        )
        return join_images(spec, show_progress=False)

    def test_samples_with_captions_and_pictures(self, tmp_path):
        release = PublicRelease(tmp_path, gone={1, 6}, replaced={2}).write()
        report = self.join(release)
        assert (report.samples, report.joined, report.equal_downloaded, report.set_captions) == (8, 5, 5, 5)
        assert report.left_out == {"no_image": 2, "other_image": 1}
        assert report.is_good
        samples = [
            one for name in ("0", "1") for one in read_reinforced_samples(tmp_path / f"joined/0000000{name}.tar")
        ]
        assert [one.captions for one in samples] == [(Pair(number).caption,) for number in (0, 3, 4, 5, 7)]
        assert [one.key for one in samples] == [Pair(number).uid for number in (0, 3, 4, 5, 7)]
        assert all(one.image for one in samples)
        assert "5 had no caption of their own; theirs came from the data set of captions" in str(report)

    def test_pictures_that_were_made_smaller(self, tmp_path):
        """DataComp's download makes them smaller: only the hash beside them tells, and the crops leave them."""
        report = self.join(PublicRelease(tmp_path, image_size=32).write())
        assert report.left_out == {"wrong_image": 4}
        assert report.stopped == "00000000.tar"

    @pytest.mark.parametrize("pattern", [False, True])
    def test_captions_of_a_folder_and_of_a_pattern(self, tmp_path, pattern):
        release = PublicRelease(tmp_path, with_json=False).write()
        shards = tmp_path / "DataComp-12M" / "{00000000..00000001}.tar"
        report = self.join(release, captions=str(shards if pattern else shards.parent), by="key", min_share=0.0)
        assert report.left_out == {"no_image": 4}, "numbers are not uids"

    def test_without_captions_nothing_is_joined(self, tmp_path):
        report = self.join(PublicRelease(tmp_path).write(), captions=None)
        assert report.left_out == {"no_caption": 4}
        assert "--captions takes some from a data set of their own" in str(report)

    def test_captions_of_other_pictures(self, tmp_path):
        release = PublicRelease(tmp_path).write()
        path = tmp_path / "DataComp-12M" / "00000000.tar"
        members = contents(path)
        first = next(iter(members))
        members[first]["json"] = members[first]["json"].replace(b'"sha256": "', b'"sha256": "0')
        write_raw(path, members)
        assert self.join(release).left_out == {"other_caption": 1}

    def test_a_shard_of_captions_that_comes_later(self, tmp_path):
        release = PublicRelease(tmp_path).write()
        path = tmp_path / "DataComp-12M" / "00000001.tar"
        content = path.read_bytes()
        path.unlink()
        report = self.join(release)
        assert (report.joined, report.is_good) == (4, False)
        assert f"there is no {path} with its captions" in str(report)
        path.write_bytes(content[: len(content) // 2])
        report = self.join(release)
        assert 4 <= report.joined < 8
        assert not report.is_good
        path.write_bytes(content)
        assert self.join(release).joined == 8

    def test_a_pattern_without_the_name(self, tmp_path):
        release = PublicRelease(tmp_path).write()
        with pytest.raises(ValueError, match=r"0 of the shards .* are called 00000000.tar, expected one"):
            self.join(release, captions=str(tmp_path / "DataComp-12M" / "00000001.tar"))


class TestEnough:
    """How many samples must be joined for the status 0, and when a join ends early."""

    def test_a_least_share(self, data):
        (data.images / "00001.tar").unlink()
        assert data.join(min_share=0.7).is_good
        report = data.join(min_share=0.71)
        assert not report.is_good
        assert "too few     70.0% of the samples were joined, expected 71.0%" in str(report)

    def test_nothing_is_never_enough(self, data):
        report = data.join(by="width", min_share=0.0, go_on=True)
        assert (report.joined, report.samples, report.stopped) == (0, 20, None)
        assert not report.is_good
        assert "too few     nothing was joined" in str(report)

    @pytest.mark.parametrize("again", [False, True])
    def test_ends_after_a_first_shard_without_any_match(self, data, again):
        for _ in range(1 + again):
            report = data.join(by="width")
        assert (report.stopped, report.samples, report.is_good) == ("00000.tar", 7, False)
        assert report.examples == ("000000", "40")
        assert "stopped     after 00000.tar, of which no sample was joined" in str(report)
        assert "a sample has the key 000000, an image 40: --by says what must be equal" in str(report)
        assert data.join(by="width", go_on=True).samples == 20

    def test_a_first_shard_that_is_not_there_says_nothing(self, data):
        (data.reinforced / "00000.tar").unlink()
        report = data.join(reinforced=str(data.reinforced / "{00000..00002}.tar"))
        assert (report.stopped, report.joined) == (None, 13)


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


class TestAgain:
    def test_a_second_run_writes_nothing(self, data):
        first = data.join()
        before = {path: path.stat().st_mtime_ns for path in data.output.rglob("*.tar")}
        assert data.join() == first
        assert {path: path.stat().st_mtime_ns for path in data.output.rglob("*.tar")} == before

    def test_the_index_is_made_once(self, data, monkeypatch):
        index = data.root / "places"
        first = data.join(index=str(index))
        opened = []
        for scan in ("ImageScan", "NameScan"):
            monkeypatch.setattr(f"mobileclip.data.joining.image_index.{scan}.__call__", lambda *_: opened.append(1))
        second = data.join(index=str(index), output=str(data.root / "second"))
        assert not opened
        assert second.joined == first.joined == 20
        assert not list(index.glob(".scratch-*"))

    def test_what_is_damaged_in_the_index_is_read_again(self, data):
        data.join()
        expected = files_of(data.output)
        (data.output / "00001.tar").unlink()
        for path in sorted((data.output / "index").rglob("*.*"))[::2]:
            path.write_bytes(path.read_bytes()[:-1])
        data.join()
        assert files_of(data.output) == expected
        (data.output / "00001.tar").unlink()
        (damaged,) = [path for path in (data.output / "index").rglob("*.places") if b"00002.tar" in path.read_bytes()]
        content = damaged.read_bytes()
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=r"is gone or damaged; run this again, and its shard is read anew"):
            data.join()
        data.join()
        assert files_of(data.output) == expected

    def test_an_index_is_shared_by_joins_of_different_keys_and_hashes(self, data):
        index = str(data.root / "shared")
        for number, by in enumerate(("key", "uid", "key")):
            output = str(data.root / f"out{number}")
            report = data.join(index=index, by=by, output=output, go_on=True, placeholder_threshold=10 * (number > 0))
            assert report.joined == (0 if by == "uid" else 20)

    def test_what_was_lost_is_written_again(self, data):
        data.join()
        expected = files_of(data.output)
        (data.output / "00001.tar").unlink()
        (data.output / "00002.tar").write_bytes(b"cut")
        (data.output / "join" / "00000.json").write_text("{")
        data.join()
        assert files_of(data.output) == expected

    def test_images_that_came_later(self, data):
        late = data.images / "00001.tar"
        content = late.read_bytes()
        late.unlink()
        pattern = str(data.images / "{00000..00003}.tar")
        report = data.join(images=pattern)
        assert report.joined == 14
        assert not report.complete
        assert list(report.images.unreadable) == [str(late)]
        assert "1 image shards" in str(report)
        late.write_bytes(content)
        report = data.join(images=pattern)
        assert (report.joined, report.complete, report.unused_keys) == (20, True, 0)

    def test_shards_whose_images_are_the_same_are_left_as_they_are(self, tmp_path):
        data = Data(tmp_path, count=24, per_reinforced=6, per_images=6, shuffled=False)
        late, pattern = data.images / "00000.tar", str(data.images / "{00000..00003}.tar")
        content = late.read_bytes()
        late.unlink()
        assert data.join(images=pattern, go_on=True).joined == 18
        before = {path.name: path.stat().st_mtime_ns for path in data.output.glob("*.tar")}
        late.write_bytes(content)
        changed = data.images / "00002.tar"
        members = contents(changed)
        next(iter(members.values()))["png"] = encoded(*SIZE, seed=77)
        write_raw(changed, members)
        report = data.join(images=pattern)
        assert (report.joined, report.is_good) == (24, True)
        after = {path.name: path.stat().st_mtime_ns for path in data.output.glob("*.tar")}
        assert {name for name in after if after[name] != before.get(name)} == {"00000.tar", "00002.tar"}
        data.join(images=pattern, output=str(tmp_path / "anew"))
        assert {name: one for name, one in files_of(data.output).items() if name != "join.json"} == {
            name: one for name, one in files_of(tmp_path / "anew").items() if name != "join.json"
        }

    def test_images_that_changed(self, data):
        data.join()
        members = contents(data.images / "00000.tar")
        key = next(iter(members))
        members[key]["png"] = encoded(*SIZE, seed=77)
        write_raw(data.images / "00000.tar", members)
        data.join()
        assert contents(data.output / f"{int(key) // 7:05d}.tar")[key]["png"] == encoded(*SIZE, seed=77)

    def test_a_reinforced_shard_that_broke_off(self, data):
        path = data.reinforced / "00001.tar"
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        report = data.join()
        assert not report.complete
        assert 14 <= report.joined < 20
        assert "truncated_shard" in report.unfinished[str(path)]
        path.write_bytes(content)
        assert data.join().joined == 20

    def test_names_that_could_not_be_read_to_the_end(self, data, monkeypatch):
        """What is not named seems to have no image; the next run reads it again."""
        real = image_scan.tar_members

        def broken(stream):
            for number, member in enumerate(real(stream)):
                if number == 9:
                    raise OSError("away for a moment")
                yield member

        def scan(self, task):
            with monkeypatch.context() as context:
                if task.shard.endswith("00001.tar"):
                    context.setattr(image_scan, "tar_members", broken)
                return original(self, task)

        original = image_scan.NameScan.__call__
        with monkeypatch.context() as context:
            context.setattr(image_scan.NameScan, "__call__", scan)
            report = data.join()
        assert 13 < report.joined < 20
        assert "away for a moment" in report.unfinished[str(data.reinforced / "00001.tar")]
        assert not report.is_good
        report = data.join()
        assert (report.joined, report.unused_keys, report.is_good) == (20, 0, True)
        assert data.join() == report

    def test_a_reinforced_shard_that_is_not_there(self, data):
        report = data.join(reinforced=str(data.reinforced / "{00000..00003}.tar"))
        assert report.joined == 20
        assert list(report.unfinished) == [str(data.reinforced / "00003.tar")]

    def test_shards_that_are_not_there_count_for_no_speed(self, data, capsys):
        join_images(data.spec(reinforced=str(data.reinforced / "{00008..00009}.tar")))
        assert "joining: 2/2, 0.0 samples/s, 0:00 left" in capsys.readouterr().err

    def test_an_image_shard_that_broke_off(self, data):
        path = data.images / "00002.tar"
        keys = list(contents(path))
        content = path.read_bytes()
        path.write_bytes(content[: content.rindex(f"{keys[3]}.png".encode()) + 700])
        report = data.join()
        assert sorted(key for key, *_ in data.named()) == sorted(keys[3:])
        assert "without its end mark" in report.images.unreadable[str(path)] or "ends within" in str(report)


class TestRefused:
    def test_other_choices(self, data):
        data.join()
        with pytest.raises(ValueError, match="joined with other choices"):
            data.join(check_images=True)

    def test_no_index_at_all(self, data):
        (data.root / "i").write_bytes(b"not a folder")
        with pytest.raises(OSError, match="cannot be written to"):
            data.join(index=str(data.root / "i"))

    def test_no_images(self, data):
        with pytest.raises(ValueError, match="there is no image in the 1 shards"):
            data.join(images=str(data.root / "nothing.tar"))

    def test_compressed_images(self, data):
        (data.images / "z.tar").write_bytes(b"\x1f\x8b" + bytes(1000))
        with pytest.raises(ValueError, match="compressed"):
            data.join(images=str(data.images / "z.tar"))

    def test_the_output_would_replace_the_input(self, data):
        with pytest.raises(ValueError, match="would replace"):
            data.join(output=str(data.reinforced))

    def test_what_a_program_writes(self, data):
        with pytest.raises(ValueError, match="a join reads shards twice: give files or addresses"):
            data.join(reinforced=f"pipe:cat {data.reinforced / '00000.tar'}")

    def test_two_shards_of_one_name(self, data):
        path = data.reinforced / "00000.tar"
        with pytest.raises(ValueError, match="same name"):
            data.join(reinforced=f"{path}::{path}")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"placeholder_threshold": 1}, "at least 2"),
            ({"placeholder_threshold": 0, "drop_placeholders": True}, "needs a placeholder_threshold"),
            ({"output": "memory://joined"}, "the index is a local folder"),
        ],
    )
    def test_choices_that_contradict_each_other(self, data, changes, message):
        with pytest.raises(ValueError, match=message):
            data.spec(**changes)


def test_remote_on_both_sides(data):
    fsspec = pytest.importorskip("fsspec")
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
    assert data.join(reinforced=str(data.reinforced / "{00..01}" / "00000000.tar")) == report
    assert files_of(data.output) == before
    (data.images / "1.tar").unlink()
    data.join(reinforced=str(data.reinforced / "{00..01}" / "00000000.tar"))
    assert data.named() == [("000001", "01/00000000.tar", "no_image")]


def test_compressed_reinforced_shards(data):
    for path in data.reinforced.glob("*.tar"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert data.join().joined == 20


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_run_again(tmp_path, num_workers):
    """A real process, SIGKILL at moments all over its run, then once more in peace: the same files."""
    data = Data(tmp_path, count=120, per_reinforced=6, per_images=5)
    write_card(data.reinforced, ReinforcementCard(layout="npz", num_augmentations=3))
    (data.images / "00004.tar").unlink()
    data.join(output=str(tmp_path / "undisturbed"))
    command = [sys.executable, "-m", "mobileclip.cli", "data", "join", "--quiet", "-j", str(num_workers)]
    command += [data.pattern(data.reinforced), data.pattern(data.images), str(data.output)]
    mark = f"MARK={tmp_path}"
    # Most of the time goes into importing: wait for signs of work, which come sooner in every run.
    moments = [
        ("index", 0.0),
        ("index", 0.02),
        ("join/00002.json", 0.003),
        ("join/00007.json", 0.011),
        ("join/00015.json", 0.0),
    ]
    moments = moments if num_workers > 1 else moments[::2]
    killed = 0
    for sign, delay in moments:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "MARK": str(tmp_path)})
        while not (data.output / sign).exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        wait_until_gone(mark)
    assert killed > len(moments) / 2
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "115 of 120" in done.stdout
    result, expected = files_of(data.output), files_of(tmp_path / "undisturbed")
    result["join.json"] = result["join.json"].replace(b"/joined", b"/undisturbed")
    assert result.keys() == expected.keys()
    assert result == expected
    assert not list((data.output / "index").glob(".scratch-*"))


def wait_until_gone(mark):
    """Wait until no process has `mark` in its environment: those of a killed job must not outlive it."""
    until = time.monotonic() + 60
    while any(mark.encode() in environment(entry) for entry in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < until, "processes that outlive their parent"
        time.sleep(0.05)


def environment(entry):
    try:
        return (entry / "environ").read_bytes()
    except OSError:
        return b""
