"""The groups that images belong to: what is read of a numpy file, and what is said of one that is none."""

import io
import pickle

import attrs
import numpy as np
import pytest

from mobileclip.data import BadSampleError
from mobileclip.evaluation import open_benchmark, suite_entry
from mobileclip.evaluation.data import metadata_fields, needs_metadata, parse_metadata
from tests.data.made_samples import write_layout
from tests.errors import fails
from tests.evaluation.datasets.test_benchmark import IMAGE
from tests.evaluation.models import session_of

FIELDS = ("region", "country")


def stored(values, write=np.save):
    stream = io.BytesIO()
    write(stream, np.array(values))
    return stream.getvalue()


def test_numbers_of_any_kind():
    for dtype in (np.int64, np.int32, np.uint8, np.float32, np.float64):
        assert parse_metadata(stored(np.array([3, 17], dtype)), FIELDS) == (3, 17)
    assert parse_metadata(stored([2.0, 788.9]), FIELDS) == (2, 788)


MALFORMED = [
    (None, ["region, country"]),
    (b"groups", []),
    (b"", []),
    (stored([1, 2])[:-4], []),
    (stored([1, 2]).replace(b"(2,)", b"(" + b"9" * 17 + b",)"), []),
    (pickle.dumps([1, 2]), []),
    (stored([1, None]), []),
    (stored([1, 2, 3]), ["int64", "(3,)", "2", "region, country"]),
    (stored([[1, 2]]), ["(1, 2)"]),
    (stored(["1", "2"]), []),
    (stored([True, False]), []),
    (stored([1, -1]), ["[1, -1]"]),
    (stored([1, np.nan]), []),
    (stored([1, 1e30]), []),
    (stored([1, 2], np.savez), []),
]


@pytest.mark.parametrize(("content", "words"), MALFORMED)
def test_what_is_no_metadata(content, words):
    with fails(BadSampleError, *words) as caught:
        parse_metadata(content, FIELDS)
    assert caught.value.reason == ("no_metadata" if content is None else "bad_metadata")


def test_folders_as_they_are_published():
    for folder in ("fairness-dollar_street", "dollar_street"):
        assert suite_entry(folder).key == "fairness/dollar_street"
        assert metadata_fields(folder) == ("income_ds", "income_meta", "region")
        assert needs_metadata(folder)
    assert (len(metadata_fields("wilds-iwildcam")), needs_metadata("wilds-iwildcam")) == (9, False)
    assert metadata_fields("vtab-pets") == metadata_fields("unheard-of") == ()


def features_of(root, *groups, name=None):
    """Return the features, and the report, of one image for each value of `npy`, of which None is no member."""
    members = {str(number): {"png": IMAGE, "cls": b"0", "npy": one} for number, one in enumerate(groups)}
    members = {key: {end: data for end, data in one.items() if data is not None} for key, one in members.items()}
    benchmark = open_benchmark(write_layout(root, members, classnames=("red", "blue"), templates=("a {c} thing",)))
    return session_of(batch_size=3).features(attrs.evolve(benchmark, name=name or benchmark.name))


def test_features_hold_the_groups_of_the_images_that_count(tmp_path):
    groups = stored([0, 5]), stored([1, 2, 3]), None, stored([3, 5])
    features, report = features_of(tmp_path / "wds_geode_test", *groups)
    assert (features.keys, features.metadata.tolist()) == (("0", "3"), [[0, 5], [3, 5]])
    assert (report.keys("bad_metadata"), report.keys("no_metadata"), report.num_read) == (("1",), ("2",), 2)


def test_groups_that_no_metric_needs_may_be_missing(tmp_path):
    root, three = tmp_path / "wds_wilds-camelyon17_test", [stored([1, 2, 0])] * 3
    assert features_of(root, *three, three[0])[0].metadata.tolist() == [[1, 2, 0]] * 4
    features, report = features_of(root, *three, None)
    assert (features.metadata, len(features.keys), report.num_skipped) == (None, 4, 0)
    assert features_of(root, *three, three[0], name="colours")[0].metadata is None
