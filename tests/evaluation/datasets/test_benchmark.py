"""Data sets in the layout that the field shares them in: what is read, and what is said of what cannot be."""

import tarfile
from pathlib import Path

import attrs
import pytest

from mobileclip.data import SkipReport
from mobileclip.evaluation import open_benchmark
from mobileclip.inference import fill_templates
from tests.data.made_samples import write_layout, write_raw
from tests.errors import fails
from tests.stores import web_server

IMAGE = min((Path(__file__).parents[2] / "golden" / "augment" / "images").glob("*.png")).read_bytes()


@pytest.fixture
def pets(tmp_path):
    """Two shards of a data set for classification."""
    root = tmp_path / "wds_vtab-pets_test"
    first = {"png": IMAGE, "cls": b"1\n"}
    second = {"png": IMAGE, "cls": b"0", "npy": b"groups", "json": b"{}"}
    write_layout(root, {"a": first, "b": second}, {"c": {"webp": b"whatever", "cls": b"2"}})
    (root / "test" / "nshards.txt").write_text("2\n")
    (root / "classnames.txt").write_text("cat\ndog\ndog")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na bad photo of a {c}.\n")
    return root


@pytest.fixture
def flickr(tmp_path):
    samples = {"a": {"jpg": IMAGE, "txt": b"one\n\ntwo words\n"}, "b": {"jpg": IMAGE, "txt": b"\n"}}
    return write_layout(tmp_path / "flickr", samples, kind="retrieval\n")


def test_classification(pets):
    benchmark = open_benchmark(pets)
    assert (benchmark.name, benchmark.kind) == ("vtab-pets", "classification")
    # Two classes may have one name, as some have in ImageNet.
    assert benchmark.class_names == ("cat", "dog", "dog")
    assert benchmark.templates == ("a photo of a {}.", "a bad photo of a {}.")
    report = SkipReport()
    samples = list(benchmark.samples(report))
    assert [(sample.key, sample.label, sample.metadata) for sample in samples] == [
        ("a", 1, None),
        ("b", 0, None),  # pets belong to no groups, whatever lies beside them
        ("c", 2, None),
    ]
    assert samples[0].image == IMAGE
    assert (report.num_read, report.num_skipped) == (3, 0)


def test_retrieval(flickr):
    benchmark = open_benchmark(flickr)
    assert (benchmark.name, benchmark.kind, benchmark.class_names) == ("flickr", "retrieval", ())
    report = SkipReport()
    (sample,) = benchmark.samples(report)
    assert (sample.key, sample.captions, sample.label) == ("a", ("one", "two words"), None)
    assert report.keys("no_caption") == ("b",)


def test_from_a_web_address(pets):
    with web_server() as site:
        for path in pets.rglob("*.*"):
            site.files[f"/{path.relative_to(pets.parent)}"] = path.read_bytes()
        benchmark = open_benchmark(f"{site.url}/wds_vtab-pets_test/")
        local = open_benchmark(pets)
        shards = tuple(f"{site.url}/wds_vtab-pets_test/test/{number}.tar" for number in range(2))
        assert benchmark == attrs.evolve(local, shards=shards)
        assert list(benchmark.samples(SkipReport())) == list(local.samples(SkipReport()))


def test_a_page_of_the_hub_stands_for_its_files(monkeypatch):
    asked = []

    def read(path, *, limit):
        asked.append(path)
        return b"1"[:limit]

    monkeypatch.setattr("mobileclip.storage.read_bytes", read)
    monkeypatch.setattr("mobileclip.storage.exists", lambda path: path.endswith("dataset_type.txt"))
    page = "https://huggingface.co/datasets/somebody/wds_mnist_test"
    for address in (page, f"{page}/tree/main"):
        with fails(ValueError, "1"):
            open_benchmark(address)
        assert asked.pop() == f"{page}/resolve/main/dataset_type.txt"


def test_what_cannot_be_used_is_named(pets):
    labels = {"two": "0 1", "lines": "1\n2\n", "commas": "0, 2", "high": "3", "low": "-1", "empty": ""}
    labels |= {"long": "1" * 5000, "word": "²", "good": "2"}
    samples = {key: {"png": IMAGE, "cls": label.encode()} for key, label in labels.items()}
    write_raw(pets / "test" / "0.tar", {"image": {"cls": b"0"}, "label": {"png": IMAGE}, **samples})
    report = SkipReport(log=False)
    assert [sample.key for sample in open_benchmark(pets).samples(report)] == ["good", "c"]
    assert report.keys("no_image") == ("image",)
    assert report.keys("no_label") == ("label",)
    assert report.keys("several_labels") == ("two", "lines", "commas")
    assert report.keys("bad_label") == ("high", "low", "empty", "long", "word")
    assert (report.num_read, report.num_skipped) == (2, 10)


def test_keys_that_come_again(pets):
    one = {"a.png": IMAGE, "a.cls": b"1"}
    # A tar file may hold a name twice; the same key, with another one between, is another sample to a reader.
    write_raw(
        pets / "test" / "0.tar", [*one.items(), ("b.png", IMAGE), ("b.cls", b"0"), ("a.png", IMAGE), ("a.cls", b"2")]
    )
    # Of another shard, the same content is a copy, and other content under a key that each shard counts anew is not.
    write_raw(pets / "test" / "1.tar", (one | {"b.png": IMAGE, "b.cls": b"2"}).items())
    report = SkipReport(log=False)
    samples = list(open_benchmark(pets).samples(report))
    assert [(sample.key, sample.label) for sample in samples] == [("a", 1), ("b", 0), ("b", 2)]
    duplicates = [(skip.key, skip.shard[-5:]) for skip in report.named["duplicate_key"]]
    assert duplicates == [("a", "0.tar"), ("a", "1.tar")]
    assert (report.num_read, report.num_skipped) == (3, 2)
    write_raw(pets / "test" / "1.tar", [("c.png", IMAGE), ("c.png", IMAGE), ("c.cls", b"0")])
    report = SkipReport(log=False)
    assert len(list(open_benchmark(pets).samples(report))) == 2
    assert report.keys("duplicate_member") == ("c",)


class TestLostShards:
    def read(self, root, **options):
        report = SkipReport(log=False)
        return [sample.key for sample in open_benchmark(root, **options).samples(report)], report

    def test_missing(self, pets):
        (pets / "test" / "0.tar").unlink()
        with fails(ValueError, "1", "2", "vtab-pets", "/0.tar"):
            self.read(pets)
        keys, report = self.read(pets, allow_missing=True)
        assert keys == ["c"]
        assert report.counts == {"missing_shard": 1}
        assert report.named["missing_shard"][0].shard.endswith("0.tar")
        (pets / "test" / "nshards.txt").write_text("9")
        with fails(ValueError, "8", "9", "vtab-pets", "/5.tar and 3 more"):
            self.read(pets)

    @pytest.mark.parametrize(("within", "reason"), [("b.png", "truncated_shard"), ("a.png", "unreadable_shard")])
    def test_broken_off(self, pets, within, reason):
        path = pets / "test" / "0.tar"
        with tarfile.open(path) as tar:
            end = tar.getmember(within).offset_data + (50 if within == "b.png" else -1)
        path.write_bytes(path.read_bytes()[:end])
        with fails(ValueError, "vtab-pets", "0.tar", reason, "after"):
            self.read(pets)
        keys, report = self.read(pets, allow_missing=True)
        assert keys == (["a", "c"] if within == "b.png" else ["c"])
        assert report.counts[reason] == 1

    def test_of_a_store(self, pets):
        with web_server() as site:
            for path in pets.rglob("*.*"):
                site.files[f"/{path.relative_to(pets.parent)}"] = path.read_bytes()
            del site.files["/wds_vtab-pets_test/test/1.tar"]
            root = f"{site.url}/wds_vtab-pets_test"
            with fails(ValueError, "vtab-pets", "http", "1.tar", "unreadable_shard"):
                self.read(root)
            keys, report = self.read(root, allow_missing=True)
        assert keys == ["a", "b"]
        assert report.counts == {"unreadable_shard": 1}


def test_a_template_may_be_the_name_alone(pets):
    (pets / "zeroshot_classification_templates.txt").write_text("{c}\n")
    (pets / "classnames.txt").write_text("cat\ndog\n{c} {}\n", encoding="utf-8-sig")
    benchmark = open_benchmark(pets)
    assert benchmark.templates == ("{}",)
    assert fill_templates(benchmark.class_names, benchmark.templates) == ["cat", "dog", "{c} {}"]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("test/nshards.txt", None, ""),
        ("test/nshards.txt", "two", "'two'"),
        ("test/nshards.txt", "0", "'0'"),
        ("test/nshards.txt", "1", "1"),
        ("classnames.txt", None, ""),
        ("classnames.txt", "", ""),
        ("classnames.txt", "cat\n\ndog", "line 2"),
        ("zeroshot_classification_templates.txt", "a {c}\n\n", "line 2"),
        ("zeroshot_classification_templates.txt", "{c} {c}", "'{c} {c}'"),
        ("zeroshot_classification_templates.txt", "{} {c}", "'{} {c}'"),
        ("zeroshot_classification_templates.txt", "", ""),
        ("dataset_type.txt", "detection", "'detection'"),
    ],
)
def test_malformed_descriptions(pets, name, content, word):
    (pets / name).unlink(missing_ok=True)
    if content is not None:
        (pets / name).write_text(content)
    with fails(ValueError, name.rpartition("/")[2], word):
        open_benchmark(pets)
