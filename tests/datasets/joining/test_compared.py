"""What a join compares, in the published layouts too, and when too little is joined."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mobileclip.data import AugmentationParams, hash_image, read_reinforced_samples, write_shard
from mobileclip.datasets.joining import JoinSpec, join_images
from tests.data.made_samples import encoded, golden, write_raw
from tests.data.public_release import Pair, PublicRelease
from tests.datasets.joining.world import SIZE, Data, contents, without_image
from tests.errors import fails

FIRST, SECOND = hash_image(encoded(*SIZE, seed=0)), "0" * 63 + "1"
RESIZED = {"width": 40, "height": 30, "original_width": 80, "original_height": 60}


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
            ({"sha256": SECOND}, None, "other"),
            # Made smaller: that the file has another hash says nothing.
            ({"sha256": SECOND}, RESIZED, "unknown"),
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
            one["json"] = json.dumps({"uid": key, "sha256": hash_image(encoded(*SIZE, seed=number))}).encode()
        reinforced = write_raw(tmp_path / "a.tar", members)
        gradient = io.BytesIO()
        Image.linear_gradient("L").resize((2000, 2000)).save(gradient, "png")
        images = write_raw(tmp_path / "i.tar", {key: {"png": gradient.getvalue()} for key in members})
        spec = JoinSpec(reinforced=reinforced, images=images, output=str(tmp_path / "out"))
        report = join_images(spec, show_progress=False)
        assert (report.joined, report.left_out) == (0, {"other_image": len(members)})
        assert report.others == tuple(f"{key} in a.tar" for key in members)
        assert not report.is_good

    def test_other_ones_are_kept_and_named(self, tmp_path):
        data, report = self.joined(tmp_path, {"sha256": SECOND}, {"sha256": FIRST}, keep_other=True)
        assert (report.joined, report.kept_other, report.left_out) == (1, 1, {})
        (row,) = pq.read_table(data.output / "join" / "a.parquet").to_pylist()
        assert (row["key"], row["likeness"], row["reason"]) == ("000000", "other", None)
        with fails(ValueError):
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


class TestPublished:
    """DataCompDR-12M, DataComp-12M and the pictures behind their URLs, in the published layouts."""

    @staticmethod
    def join(release, **choices):
        choices = {"captions": release.captions, "by": "uid", **choices}
        spec = JoinSpec(
            reinforced=release.reinforced, images=release.images, output=str(release.folder / "joined"), **choices
        )
        report = join_images(spec, show_progress=False)
        assert str(report)
        return report

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

    def test_pictures_that_were_made_smaller(self, tmp_path):
        """DataComp's download makes them smaller: only the hash beside them tells, and the crops leave them."""
        report = self.join(PublicRelease(tmp_path, image_size=32).write())
        assert report.left_out == {"wrong_image": 4}
        assert report.stopped == "00000000.tar"

    @pytest.mark.parametrize("captions", ["folder", "pattern", "none", "of other pictures"])
    def test_captions_of_a_folder_and_of_a_pattern(self, tmp_path, captions):
        release = PublicRelease(tmp_path, with_json=captions in {"none", "of other pictures"}).write()
        shards = tmp_path / "DataComp-12M" / "{00000000..00000001}.tar"
        choices = {"captions": str(shards if captions == "pattern" else shards.parent)}
        if captions in {"folder", "pattern"}:
            choices |= {"by": "key", "min_share": 0.0}  # numbers are not uids
            expected = {"no_image": 4}
        elif captions == "none":
            choices["captions"], expected = None, {"no_caption": 4}
        else:
            members = contents(shards.with_name("00000000.tar"))
            first = next(iter(members))
            members[first]["json"] = members[first]["json"].replace(b'"sha256": "', b'"sha256": "0')
            write_raw(shards.with_name("00000000.tar"), members)
            expected = {"other_caption": 1}
        assert self.join(release, **choices).left_out == expected
        with fails(ValueError, "00000000.tar"):
            self.join(release, captions=str(shards.with_name("00000001.tar")))

    def test_a_shard_of_captions_that_comes_later(self, tmp_path):
        release = PublicRelease(tmp_path).write()
        path = tmp_path / "DataComp-12M" / "00000001.tar"
        content = path.read_bytes()
        path.unlink()
        report = self.join(release)
        assert (report.joined, report.is_good) == (4, False)
        path.write_bytes(content[: len(content) // 2])
        report = self.join(release)
        assert 4 <= report.joined < 8
        assert not report.is_good
        path.write_bytes(content)
        assert self.join(release).joined == 8


class TestEnough:
    """How many samples must be joined for the status 0, and when a join ends early."""

    def test_a_least_share(self, data):
        (data.images / "00001.tar").unlink()
        assert data.join(min_share=0.7).is_good
        assert not data.join(min_share=0.71).is_good
        report = data.join(by="width", min_share=0.0, go_on=True, output=str(data.root / "none"))
        assert (report.joined, report.samples, report.stopped, report.is_good) == (0, 20, None, False)
        (data.reinforced / "00000.tar").unlink()
        pattern = str(data.reinforced / "{00000..00002}.tar")
        assert data.join(reinforced=pattern, output=str(data.root / "some")).stopped is None, "it says nothing"

    @pytest.mark.parametrize("again", [False, True])
    def test_ends_after_a_first_shard_without_any_match(self, data, again):
        for _ in range(1 + again):
            report = data.join(by="width")
        assert (report.stopped, report.samples, report.is_good) == ("00000.tar", 7, False)
        assert report.examples == ("000000", "40")
        assert data.join(by="width", go_on=True).samples == 20
