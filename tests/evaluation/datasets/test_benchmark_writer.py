"""Data sets written in the public layout: read again as they were, equal in every byte, or refused."""

import io
import tarfile

import attrs
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from mobileclip.data import SkipReport
from mobileclip.evaluation import BenchmarkSample, open_benchmark, write_benchmark
from tests.data.made_samples import write_raw
from tests.errors import fails

NAMES = {"class_names": ("cat", "dog"), "templates": ("a photo of a {}.", "{}")}


def picture(kind="PNG", shade=0):
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (shade, 10, 20)).save(stream, kind)
    return stream.getvalue()


PICTURES = {kind: picture(kind) for kind in ("PNG", "JPEG", "WEBP")}


def labelled(count):
    kinds = list(PICTURES)
    return [
        BenchmarkSample(key=f"pet-{number}", image=PICTURES[kinds[number % 3]], label=number % 2)
        for number in range(count)
    ]


def read(benchmark):
    report = SkipReport()
    samples = list(benchmark.samples(report))
    assert (report.num_read, report.num_skipped) == (len(samples), 0)
    return samples


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_classes_are_read_again_as_they_were(tmp_path):
    folder = tmp_path / "wds_pets_test"
    written = write_benchmark(folder, labelled(7), **NAMES, samples_per_shard=3)
    assert written == open_benchmark(folder)
    assert (written.name, written.kind) == ("pets", "classification")
    assert {"class_names": written.class_names, "templates": written.templates} == NAMES
    assert read(written) == labelled(7)
    assert sorted(content(folder)) == [
        "classnames.txt",
        "dataset_type.txt",
        "test/0.tar",
        "test/1.tar",
        "test/2.tar",
        "test/nshards.txt",
        "zeroshot_classification_templates.txt",
    ]
    assert (folder / "zeroshot_classification_templates.txt").read_text() == "a photo of a {c}.\n{c}\n"
    with tarfile.open(folder / "test" / "0.tar") as tar:
        assert tar.getnames() == ["pet-0.cls", "pet-0.png", "pet-1.cls", "pet-1.jpg", "pet-2.cls", "pet-2.webp"]


def test_captions_are_read_again_as_they_were(tmp_path):
    samples = [
        BenchmarkSample(key="a", image=PICTURES["PNG"], captions=("one", "two words")),
        BenchmarkSample(key="b", image=PICTURES["JPEG"], captions=("ein Käfer 🐞",)),
    ]
    written = write_benchmark(tmp_path / "beetles", samples, split="validation")
    assert (written.kind, written.class_names, written.templates) == ("retrieval", (), ())
    assert read(open_benchmark(tmp_path / "beetles", split="validation")) == samples


def test_groups_are_read_again_as_they_were(tmp_path):
    samples = [attrs.evolve(one, metadata=(3, number)) for number, one in enumerate(labelled(3))]
    written = write_benchmark(tmp_path / "wds_fairness-geode_test", samples, **NAMES)
    assert read(written) == samples
    with tarfile.open(written.shards[0]) as tar:
        array = np.load(io.BytesIO(tar.extractfile("pet-1.npy").read()), allow_pickle=False)
    assert (array.dtype, array.tolist()) == (np.int64, [3, 1])


def test_equal_arguments_give_equal_bytes(tmp_path):
    for name in ("one", "other"):
        write_benchmark(tmp_path / name, iter(labelled(20)), **NAMES, samples_per_shard=6)
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_what_is_written_again_is_replaced(tmp_path):
    write_benchmark(tmp_path, labelled(9), **NAMES, samples_per_shard=2)
    assert read(write_benchmark(tmp_path, labelled(3), **NAMES)) == labelled(3)


def test_a_data_set_that_is_not_whole_is_none(tmp_path):
    write_benchmark(tmp_path, labelled(4), **NAMES)

    def breaking_off():
        yield from labelled(3)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_benchmark(tmp_path, breaking_off(), **NAMES, samples_per_shard=2)
    with fails(ValueError, "nshards.txt"):
        open_benchmark(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.text(max_size=8), min_size=1, max_size=3),
    template=st.text(max_size=5),
    captions=st.lists(st.text(max_size=8), min_size=1, max_size=3),
    key=st.text(max_size=6),
)
def test_anything_is_read_again_as_it_was_or_refused(tmp_path_factory, names, template, captions, key):
    folder = tmp_path_factory.mktemp("any")
    sample = BenchmarkSample(key=key, image=PICTURES["PNG"], label=0)
    try:
        written = write_benchmark(folder / "classes", [sample], class_names=names, templates=[f"{template}{{}}"])
    except ValueError:
        pass
    else:
        assert (written.class_names, written.templates) == (tuple(names), (f"{template}{{}}",))
        assert read(written) == [sample]
    sample = BenchmarkSample(key="key", image=PICTURES["PNG"], captions=tuple(captions))
    try:
        written = write_benchmark(folder / "captions", [sample])
    except ValueError:
        pass
    else:
        assert read(written) == [sample]


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], NAMES, "there are no samples to write"),
        (labelled(1), NAMES | {"samples_per_shard": 0}, "samples_per_shard must be at least 1, not 0"),
        (labelled(1), {"class_names": ("cat",)}, "needs class names and templates, got 1 and 0"),
        (labelled(1), NAMES | {"class_names": ("cat", " dog")}, "class 1 is ' dog', expected one line of text"),
        (labelled(1), NAMES | {"class_names": ("", "dog")}, "class 0 is '', expected one line of text"),
        (labelled(1), NAMES | {"templates": ("a photo",)}, "'a photo' needs one {} where the class name goes"),
        (labelled(1), NAMES | {"templates": ("{} {name}",)}, "'{} {name}' needs one {}"),
        (labelled(3), NAMES | {"class_names": ("cat",)}, "'pet-1': expected a label from 0 to 0 and no captions"),
        (labelled(1) * 2, NAMES, "key 'pet-0' comes twice"),
        (labelled(1), {}, "'pet-0': expected captions and no label"),
        ([BenchmarkSample(key="a", image=b"GIF89a..", label=0)], NAMES, r"starts with b'GIF89a..', expected a PNG"),
        ([BenchmarkSample(key="a.b", image=PICTURES["PNG"], label=0)], NAMES, "'a.b': this cannot be a key"),
        ([BenchmarkSample(key="\0", image=PICTURES["PNG"], label=0)], NAMES, "names end at a zero byte there"),
        (
            [BenchmarkSample(key="a", image=PICTURES["PNG"], captions=("one\ntwo",))],
            {},
            r"'one\ntwo', expected one line",
        ),
    ],
)
def test_what_could_not_be_read_again_is_refused(tmp_path, samples, options, message):
    with fails(ValueError) as caught:
        write_benchmark(tmp_path / "set", samples, **options)
    assert message in str(caught.value)
    assert not (tmp_path / "set" / "test" / "nshards.txt").exists()


def test_tars_that_others_write_are_no_different(tmp_path):
    """Python's own tarfile, in place of our writer."""
    written = write_benchmark(tmp_path / "ours", labelled(4), **NAMES)
    members = {}
    for sample in labelled(4):
        extension = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}[Image.open(io.BytesIO(sample.image)).format]
        members[sample.key] = {extension: sample.image, "cls": b"%d" % sample.label}
    write_raw(tmp_path / "ours" / "test" / "0.tar", members)
    assert read(written) == labelled(4)
