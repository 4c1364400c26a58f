"""The groups that images belong to: what is read of a numpy file, and what is said of one that is none."""

import io
import pickle

import attrs
import numpy as np
import pytest
import torch

from mobileclip.data import BadSampleError
from mobileclip.evaluation import open_benchmark, suite_entry
from mobileclip.evaluation.data import metadata_fields, needs_metadata, parse_metadata
from tests.data.made_samples import write_layout
from tests.errors import fails
from tests.evaluation.datasets.test_benchmark import IMAGE
from tests.evaluation.models import session_of

FIELDS = ("region", "country")


def stored(array, *, pickled=False):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=pickled)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.float32, np.float64])
def test_numbers_of_any_kind(dtype):
    assert parse_metadata(stored(np.array([3, 17], dtype)), FIELDS) == (3, 17)


def test_fractions_are_cut_off():
    assert parse_metadata(stored(np.array([2.0, 788.9])), FIELDS) == (2, 788)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["region, country"]),
        (b"groups", []),
        (b"", []),
        (stored(np.array([1, 2]))[:-4], []),
        (stored(np.array([1, 2])).replace(b"(2,)", b"(" + b"9" * 17 + b",)"), []),
        (pickle.dumps([1, 2]), []),
        (stored(np.array([1, None]), pickled=True), []),
        (stored(np.array([1, 2, 3])), ["int64", "(3,)", "2", "region, country"]),
        (stored(np.array([[1, 2]])), ["(1, 2)"]),
        (stored(np.array(["1", "2"])), []),
        (stored(np.array([True, False])), []),
        (stored(np.array([1, -1])), ["[1, -1]"]),
        (stored(np.array([1, np.nan])), []),
        (stored(np.array([1, 1e30])), []),
    ],
)
def test_what_is_no_metadata(content, words):
    with fails(BadSampleError, *words) as caught:
        parse_metadata(content, FIELDS)
    assert caught.value.reason == ("no_metadata" if content is None else "bad_metadata")


def test_several_arrays_are_not_one():
    stream = io.BytesIO()
    np.savez(stream, a=np.array([1, 2]))
    with fails(BadSampleError):
        parse_metadata(stream.getvalue(), FIELDS)


def test_folders_as_they_are_published():
    for folder in ("fairness-dollar_street", "dollar_street"):
        assert suite_entry(folder).key == "fairness/dollar_street"
        assert metadata_fields(folder) == ("income_ds", "income_meta", "region")
        assert needs_metadata(folder)
    assert len(metadata_fields("wilds-iwildcam")) == 9
    assert not needs_metadata("wilds-iwildcam")
    assert metadata_fields("vtab-pets") == metadata_fields("unheard-of") == ()


@pytest.fixture
def members():
    return {f"{number}": {"png": IMAGE, "cls": b"0", "npy": stored(np.array([number, 5]))} for number in range(4)}


def write_benchmark(root, members):
    return open_benchmark(write_layout(root, members, classnames=("red", "blue"), templates=("a {c} thing",)))


def extract(benchmark):
    return session_of(batch_size=3).features(benchmark)


def test_features_hold_the_groups_of_the_images_that_count(tmp_path, members):
    members["1"]["npy"] = stored(np.array([1, 2, 3]))
    del members["2"]["npy"]
    benchmark = write_benchmark(tmp_path / "wds_geode_test", members)
    features, report = extract(benchmark)
    assert features.keys == ("0", "3")
    assert torch.equal(features.metadata, torch.tensor([[0, 5], [3, 5]]))
    assert report.keys("bad_metadata") == ("1",)
    assert report.keys("no_metadata") == ("2",)
    assert report.num_read == 2


def test_groups_that_no_metric_needs_may_be_missing(tmp_path, members):
    whole = {key: {**one, "npy": stored(np.array([1, 2, 0]))} for key, one in members.items()}
    benchmark = write_benchmark(tmp_path / "wds_wilds-camelyon17_test", whole)
    assert extract(benchmark)[0].metadata.tolist() == [[1, 2, 0]] * 4
    del whole["3"]["npy"]
    benchmark = write_benchmark(tmp_path / "wds_wilds-camelyon17_test", whole)
    features, report = extract(benchmark)
    assert features.metadata is None
    assert (len(features.keys), report.num_skipped) == (4, 0)
    assert extract(attrs.evolve(benchmark, name="colours"))[0].metadata is None
