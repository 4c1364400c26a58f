"""Samples whose uids a list has: as the lists are published, on shards, and as a stage."""

import json
import pickle
from itertools import islice

import numpy as np
import pytest

import mobileclip.data.loading.reading
import mobileclip.data.loading.uids
from mobileclip.data import ReinforcedPipelineSpec, UidList
from mobileclip.inputs import ImageInput
from tests.data.made_samples import encoded, write_raw
from tests.errors import fails

UIDS = [f"{7 * number:016x}{number:016x}" for number in range(40)]
OTHERS = [f"{7 * number:016x}{number + 1:016x}" for number in range(40)]  # with the same upper halves


def pairs(uids):
    return np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in uids], dtype="u8,u8")


def members(uid):
    return {"json": json.dumps({"url": "https://example.org", "uid": uid}).encode()}


@pytest.fixture(params=["npy", "txt"])
def listed(request, tmp_path):
    path = tmp_path / f"uids.{request.param}"
    if request.param == "npy":
        np.save(path, pairs(UIDS[::-1]))
    else:
        path.write_text("\n".join(UIDS) + "\n")
    return path


def test_uids_of_the_list(listed):
    keep = pickle.loads(pickle.dumps(UidList(listed)))
    assert len(keep) == 40
    assert all(keep("0", members(uid)) for uid in UIDS)
    assert not any(keep("0", members(uid)) for uid in OTHERS)
    assert keep(UIDS[3], {})  # the key where there is no other uid
    assert not keep("000003", {})
    assert not keep(UIDS[3], members(OTHERS[3]))


def test_equal_upper_halves(tmp_path):
    uids = [f"{5:016x}{number:016x}" for number in (9, 3, 7)]
    np.save(tmp_path / "uids.npy", pairs(uids))
    keep = UidList(tmp_path / "uids.npy")
    assert all(keep(uid, {}) for uid in uids)
    assert not keep(f"{5:016x}{8:016x}", {})


def test_large_lists_stay_on_the_disk_and_must_be_sorted(tmp_path, monkeypatch):
    monkeypatch.setattr(mobileclip.data.loading.uids, "_MOST_SORTED", 10)
    np.save(tmp_path / "sorted.npy", np.sort(pairs(UIDS)))
    assert all(UidList(tmp_path / "sorted.npy")(uid, {}) for uid in UIDS)
    np.save(tmp_path / "mixed.npy", pairs(UIDS[::-1]))
    with fails(ValueError, "mixed.npy", "40"):
        UidList(tmp_path / "mixed.npy")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros(3), ("float64",)),
        (np.array([{}], dtype=object), ("not an array",)),
        (pairs([]), ("no uid",)),
        ("0123\n", ("'0123'", "32")),
    ],
    ids=["floats", "objects", "nothing", "words"],
)
def test_what_is_no_list(tmp_path, content, words):
    path = tmp_path / ("uids.txt" if isinstance(content, str) else "uids.npy")
    with pytest.raises(FileNotFoundError):
        UidList(path)
    if isinstance(content, str):
        path.write_text(content)
    else:
        np.save(path, content)
    with fails(ValueError, *words):
        UidList(path)


class TestPipeline:
    @pytest.fixture(scope="class")
    @staticmethod
    def made(tmp_path_factory):
        """Return what builds a pipeline of four shards with a sample for each uid, of which a list is chosen."""
        folder, image = tmp_path_factory.mktemp("shards"), encoded(8, 6)
        samples = [(f"{n}", {"txt": b"text", "png": image, **members(uid)}) for n, uid in enumerate(UIDS)]
        for place in range(4):
            write_raw(folder / f"{place}.tar", dict(samples[10 * place : 10 * place + 10]))

        def build(uids=None, *, keep=None, **choices):
            if uids is not None:
                (folder / "uids.txt").write_text("\n".join(uids))
                choices["uids"] = folder / "uids.txt"
            fields = {"image": ImageInput(size=8), "reinforced": False, "sampling": "endless", "batch_size": 4}
            return ReinforcedPipelineSpec(shards=str(folder / "{0..3}.tar"), **(fields | choices)).build(keep=keep)

        return build

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_others_are_passed_over(self, made, num_workers):
        pipeline = made(UIDS[::3], num_workers=num_workers)
        batches = list(islice(pipeline.stream(), 7))
        assert {key for batch in batches for key in batch.keys} == {f"{number}" for number in range(0, 40, 3)}
        assert pipeline.report.num_read == 28
        assert pipeline.report.num_unwanted > 40
        assert str(pipeline.report) == f"28 samples read, {pipeline.report.num_unwanted} passed over, nothing skipped"
        resumed = made(UIDS[::3]).stream(pipeline.position(5))
        assert [batch.keys for batch in islice(resumed, 2)] == [batch.keys for batch in batches[5:]]

    def test_a_choice_of_ones_own(self, made):
        pipeline = made(keep=lambda key, members: int(key) % 2 == 0 and "png" in members)
        keys = {key for batch in islice(pipeline.stream(), 10) for key in batch.keys}
        assert keys == {f"{number}" for number in range(0, 40, 2)}
        with fails(ValueError):
            made(sampling="epoch", keep=lambda *_: True)

    def test_a_list_of_other_data(self, made, monkeypatch):
        monkeypatch.setattr(mobileclip.data.loading.reading, "MAX_UNWANTED", 100)
        with fails(ValueError, "100"):
            next(made(OTHERS).stream())
        with fails(ValueError):
            made(OTHERS, sampling="epoch")
