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
NUMBERS, CLASSES, TEMPLATES = "test/nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt"


@pytest.fixture
def pets(tmp_path):
    """Two shards of a data set for classification."""
    second = {"png": IMAGE, "cls": b"0", "npy": b"groups", "json": b"{}"}
    shards = {"a": {"png": IMAGE, "cls": b"1\n"}, "b": second}, {"c": {"webp": b"whatever", "cls": b"2"}}
    root = write_layout(tmp_path / "wds_vtab-pets_test", *shards, classnames=("cat", "dog", "dog"))
    (root / NUMBERS).write_text("2\n")
    (root / TEMPLATES).write_text("a photo of a {c}.\na bad photo of a {c}.\n")
    return root


def read(root, **options):
    """Return the samples that are read, and the report."""
    report = SkipReport(log=False)
    return list(open_benchmark(root, **options).samples(report)), report


def serve(site, folder):
    """Put a data set on a web server, and return its address there."""
    site.files |= {f"/{path.relative_to(folder.parent)}": path.read_bytes() for path in folder.rglob("*.*")}
    return f"{site.url}/{folder.name}"


def test_classification(pets):
    benchmark = open_benchmark(pets)
    # Two classes may have one name, as some have in ImageNet.
    about = ("vtab-pets", "classification", ("cat", "dog", "dog"))
    assert (benchmark.name, benchmark.kind, benchmark.class_names) == about
    assert benchmark.templates == ("a photo of a {}.", "a bad photo of a {}.")
    samples, report = read(pets)
    # Pets belong to no groups, whatever lies beside them.
    found = [(sample.key, sample.label, sample.metadata) for sample in samples]
    assert found == [("a", 1, None), ("b", 0, None), ("c", 2, None)]
    assert samples[0].image == IMAGE
    assert (report.num_read, report.num_skipped) == (3, 0)


def test_retrieval(tmp_path):
    shown = {"a": {"jpg": IMAGE, "txt": b"one\n\ntwo words\n"}, "b": {"jpg": IMAGE, "txt": b"\n"}}
    flickr = write_layout(tmp_path / "flickr", shown, kind="retrieval\n")
    benchmark = open_benchmark(flickr)
    assert (benchmark.name, benchmark.kind, benchmark.class_names) == ("flickr", "retrieval", ())
    (sample,), report = read(flickr)
    assert (sample.key, sample.captions, sample.label) == ("a", ("one", "two words"), None)
    assert report.keys("no_caption") == ("b",)


def test_from_a_web_address(pets):
    with web_server() as site:
        address = serve(site, pets)
        shards = tuple(f"{address}/test/{number}.tar" for number in range(2))
        assert open_benchmark(f"{address}/") == attrs.evolve(open_benchmark(pets), shards=shards)
        assert read(address)[0] == read(pets)[0]
        del site.files[f"/{pets.name}/test/1.tar"]
        with fails(ValueError, "vtab-pets", "http", "1.tar", "unreadable_shard"):
            read(address)
        samples, report = read(address, allow_missing=True)
    assert [sample.key for sample in samples] == ["a", "b"]
    assert report.counts == {"unreadable_shard": 1}


def test_a_page_of_the_hub_stands_for_its_files(monkeypatch):
    asked = []
    monkeypatch.setattr("mobileclip.storage.read_bytes", lambda path, *, limit: asked.append(path) or b"1"[:limit])
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
    samples, report = read(pets)
    assert [sample.key for sample in samples] == ["good", "c"]
    expected = {"no_image": ("image",), "no_label": ("label",), "several_labels": ("two", "lines", "commas")}
    expected["bad_label"] = ("high", "low", "empty", "long", "word")
    assert {reason: report.keys(reason) for reason in report.counts} == expected
    assert (report.num_read, report.num_skipped) == (2, 10)


def test_keys_that_come_again(pets):
    def write(number, *members):
        write_raw(pets / "test" / f"{number}.tar", members)

    a, b = [("a.png", IMAGE), ("a.cls", b"1")], ("b.png", IMAGE)
    # A tar file may hold a name twice; the same key, with another one between, is another sample to a reader.
    write(0, *a, b, ("b.cls", b"0"), a[0], ("a.cls", b"2"))
    # Of another shard, the same content is a copy, and other content under a key that each shard counts anew is not.
    write(1, *a, b, ("b.cls", b"2"))
    samples, report = read(pets)
    assert [(sample.key, sample.label) for sample in samples] == [("a", 1), ("b", 0), ("b", 2)]
    duplicates = [(skip.key, skip.shard[-5:]) for skip in report.named["duplicate_key"]]
    assert duplicates == [("a", "0.tar"), ("a", "1.tar")]
    assert (report.num_read, report.num_skipped) == (3, 2)
    write(1, ("c.png", IMAGE), ("c.png", IMAGE), ("c.cls", b"0"))
    samples, report = read(pets)
    assert (len(samples), report.keys("duplicate_member")) == (2, ("c",))


def test_missing_shards(pets):
    (pets / "test" / "0.tar").unlink()
    with fails(ValueError, "1", "2", "vtab-pets", "/0.tar"):
        read(pets)
    samples, report = read(pets, allow_missing=True)
    assert [sample.key for sample in samples] == ["c"]
    assert report.counts == {"missing_shard": 1}
    assert report.named["missing_shard"][0].shard.endswith("0.tar")
    (pets / NUMBERS).write_text("9")
    with fails(ValueError, "8", "9", "vtab-pets", "/5.tar and 3 more"):
        read(pets)


CUTS = [("b.png", 50, "truncated_shard", ["a", "c"]), ("a.png", -1, "unreadable_shard", ["c"])]


@pytest.mark.parametrize(("within", "cut", "reason", "left"), CUTS)
def test_shards_that_break_off(pets, within, cut, reason, left):
    path = pets / "test" / "0.tar"
    with tarfile.open(path) as tar:
        end = tar.getmember(within).offset_data + cut
    path.write_bytes(path.read_bytes()[:end])
    with fails(ValueError, "vtab-pets", "0.tar", reason, "after"):
        read(pets)
    samples, report = read(pets, allow_missing=True)
    assert ([sample.key for sample in samples], report.counts[reason]) == (left, 1)


def test_a_template_may_be_the_name_alone(pets):
    (pets / TEMPLATES).write_text("{c}\n")
    (pets / CLASSES).write_text("cat\ndog\n{c} {}\n", encoding="utf-8-sig")
    benchmark = open_benchmark(pets)
    assert benchmark.templates == ("{}",)
    assert fill_templates(benchmark.class_names, benchmark.templates) == ["cat", "dog", "{c} {}"]


MALFORMED = [
    (NUMBERS, None, ""),
    (NUMBERS, "two", "'two'"),
    (NUMBERS, "0", "'0'"),
    (NUMBERS, "1", "1"),
    (CLASSES, None, ""),
    (CLASSES, "", ""),
    (CLASSES, "cat\n\ndog", "line 2"),
    (TEMPLATES, "a {c}\n\n", "line 2"),
    (TEMPLATES, "{c} {c}", "'{c} {c}'"),
    (TEMPLATES, "{} {c}", "'{} {c}'"),
    (TEMPLATES, "", ""),
    ("dataset_type.txt", "detection", "'detection'"),
]


@pytest.mark.parametrize(("name", "content", "word"), MALFORMED)
def test_malformed_descriptions(pets, name, content, word):
    (pets / name).unlink(missing_ok=True)
    if content is not None:
        (pets / name).write_text(content)
    with fails(ValueError, name.rpartition("/")[2], word):
        open_benchmark(pets)
