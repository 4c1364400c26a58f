"""Folders of pictures as a source, with captions or by class: whole, damaged and remote."""

import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from mobileclip.data import SkipReport, read_samples, write_shard
from mobileclip.datasets import ClassFolderSource, FolderSource, as_source
from mobileclip.storage import StoreLimits, use_limits
from tests.datasets.sources.reading import JPEG, PNG, WEBP, copy_to_store, found, names, plant, read, write_lines
from tests.errors import fails
from tests.object_store import object_store

STEMS = st.binary(min_size=1, max_size=20).filter(lambda stem: not {*stem} & {*b"/\0"})


def test_captions_beside_the_images(tmp_path):
    files = {"b/one.jpg": JPEG, "b/one.txt": "\ufefffirst\n\n second \nfirst\n", "a.PNG": PNG, "c.webp": WEBP}
    files |= {"a.JSON": {"captions": ["x", "y"], "licence": "CC0"}, "c.txt": "from the text"}
    files |= {"c.json": {"caption": "from JSON", "licence": "CC0"}, "notes.md": "x", ".hidden.jpg": JPEG}
    plant(tmp_path, files | {".thumbnails/t.jpg": JPEG, "__MACOSX/b/one.jpg": b"x"})
    samples, left_out = found(FolderSource(path=tmp_path), "key", "captions", "image", "metadata")
    assert samples == [
        ("a", ("x", "y"), PNG, {"licence": "CC0", "image": "a.PNG"}),
        ("b/one", ("first", "second"), JPEG, {"image": "b/one.jpg"}),
        ("c", ("from the text",), WEBP, {"licence": "CC0", "image": "c.webp"}),
    ]
    hidden = {"hidden_file": [".hidden.jpg"], "hidden_folder": [".thumbnails", "__MACOSX"]}
    assert left_out == hidden | {"other_file": ["notes.md"]}


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_caption_ends_at_a_line_end_alone(tmp_path, odd):
    row = json.dumps({"file_name": "b.jpg", "texts": [f"from{odd}a table"]}, ensure_ascii=False)
    files = {"a.txt": f"one{odd}caption\r\nanother", "captions.jsonl": f"{row}\n"}
    source = FolderSource(path=plant(tmp_path, files | {"a.jpg": JPEG, "b.jpg": JPEG}))
    assert found(source, "captions") == ([(f"one{odd}caption", "another"), (f"from{odd}a table",)], {})


@pytest.mark.parametrize("table", ["metadata.jsonl", "captions.jsonl"])
def test_captions_in_a_table(tmp_path, table):
    rows = [
        {"file_name": "b.jpg", "text": "one", "id": 5},
        {"file_name": "./a.jpg", "caption": "two"},
        {"file_name": "b.jpg", "text": "three", "id": 6},
        {"file_name": "no.jpg", "text": "x"},
        *({"text": "x"}, b"{", b""),
        *({"file_name": name, "text": "x"} for name in ("notes.txt", "/etc/passwd")),
        {"file_name": "c.jpg", "text": ""},
    ]
    plant(tmp_path / "train", {**{f"{name}.jpg": JPEG for name in "abcd"}, "notes.txt": "x"})
    write_lines(tmp_path / "train" / table, rows)
    expected = [("train/a", ("two",), {"image": "train/a.jpg"})]
    expected += [("train/b", ("one", "three"), {"id": 5, "image": "train/b.jpg"})]
    left_out = {
        "missing_image": [f"line {number} of train/{table}" for number in (4, 5, 9)],
        "bad_json": [f"line 6 of train/{table}"],
        "image_not_an_image": [f"line 8 of train/{table}"],
        "no_caption": ["train/c.jpg", "train/d.jpg"],
        "other_file": ["train/notes.txt"],
    }
    source = FolderSource(path=tmp_path, samples_per_shard=1)
    assert found(source, "key", "captions", "metadata") == (expected, left_out)


def test_a_bad_caption_is_named_and_its_neighbours_are_read(tmp_path):
    bad = [({}, "no_caption"), ({"txt": " \n"}, "no_caption"), ({"txt": b"\xff"}, "bad_text")]
    bad += [({"json": content}, "bad_json") for content in (b"{", b"[]", {"caption": 5})]
    bad += [({"json": b'{"caption": "\\udfff"}'}, "bad_text"), ({"json": {"id": 5}}, "no_caption")]
    for number, (files, _) in enumerate(bad):
        plant(tmp_path, {f"{number}.{suffix}": data for suffix, data in {"jpg": JPEG, **files}.items()})
    plant(tmp_path, {"00.jpg": JPEG, "00.txt": "w", "y.jpg": JPEG, "y.txt": "y"})
    expected = {kind: [f"{n}.jpg" for n, (_, reason) in enumerate(bad) if reason == kind] for _, kind in bad}
    assert found(FolderSource(path=tmp_path), "key") == (["00", "y"], expected)


def test_files_that_vanish_or_are_forbidden(tmp_path):
    files = {f"{name}.{kind}": JPEG if kind == "jpg" else "x" for name in "abcd" for kind in ("jpg", "txt")}
    (unit,) = FolderSource(path=plant(tmp_path, files)).units()
    for gone in ("a.jpg", "b.txt", "c.jpg"):
        (tmp_path / gone).unlink()
    (tmp_path / "c.jpg").mkdir()
    report = SkipReport(log=False)
    assert [sample.key for sample in unit.read(report)] == ["d"]
    expected = {"missing_image": ["a.jpg"], "unreadable_caption": ["b.jpg"], "unreadable_image": ["c.jpg"]}
    assert names(report) == expected


def test_keys_are_unique_and_without_dots(tmp_path):
    images = ["v1.2/a.b.jpg", "v1.2/a_b.jpg", "v1.2/a.b.png", "__init__.jpg", "a b.jpg", "ä\n.jpg"]
    files = dict.fromkeys(images, PNG) | {f"{name.rpartition('.')[0]}.txt": "x" for name in images}
    keys, left_out = found(FolderSource(path=plant(tmp_path, files)), "key")
    assert [*keys[:3], *(key.rpartition("-")[0] for key in keys[3:5]), keys[5]] == [
        *("_init__", "a b", "v1_2/a_b", "v1_2/a_b", "v1_2/a_b", "ä_"),
    ]
    assert (len(set(keys)), left_out) == (6, {})


def test_paths_of_any_length_make_samples_that_can_be_stored(tmp_path):
    folders = ["d" * 240, "e" * 240, "\N{CAT FACE}" * 60, "g" * 240, "h" * 200]
    for depth in (1, 2, 3, 5):
        for name in ("x" * 200, "x" * 199 + "y"):
            place = "/".join([*folders[:depth], name])
            plant(tmp_path / "photos", {f"{place}.jpg": JPEG, f"{place}.txt": f"{depth}"})
    samples, report = read(FolderSource(path=tmp_path / "photos"))
    assert (report.num_skipped, len({sample.key for sample in samples})) == (0, 8)
    write_shard(tmp_path / "new.tar", samples)
    stored = read_samples(tmp_path / "new.tar")
    assert [(one.key, one.captions) for one in stored] == [(one.key, one.captions) for one in samples]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example(stems=[b"\xff\xfe", b"a"])
@given(stems=st.lists(STEMS, min_size=1, max_size=6))
def test_any_file_name_makes_a_sample_that_can_be_stored(tmp_path_factory, stems):
    base = tmp_path_factory.mktemp("names")
    for stem in stems:
        for ending, content in ((b".jpg", JPEG), (b".txt", b"x")):
            Path(os.fsdecode(os.fsencode(base) + b"/" + stem + ending)).write_bytes(content)
    visible = {stem for stem in stems if not stem.startswith(b".")}
    if not visible:
        with fails(ValueError):
            FolderSource(path=base).units()
        return
    samples, report = read(FolderSource(path=base))
    assert report.counts.total() == report.counts["hidden_file"] == 2 * len(set(stems) - visible)
    assert len({sample.key for sample in samples}) == len(visible)
    write_shard(base / "new.tar", samples)
    with tarfile.open(base / "new.tar") as tar:
        assert len(tar.getnames()) == 3 * len(visible)
    assert [sample.key for sample in read_samples(base / "new.tar")] == [sample.key for sample in samples]


@pytest.mark.parametrize("name", ["", "no", "a.txt"])
def test_mistakes(tmp_path, name):
    path = plant(tmp_path, {"a.txt": "x"}) / name
    with fails(ValueError, str(path)):
        FolderSource(path=path).units()


def test_s3(s3, tmp_path):
    s3.objects.clear()
    plant(tmp_path, {"a/1.jpg": JPEG, "a/1.txt": "one", "2.jpg": JPEG, "3.jpg": JPEG})
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": "2.jpg", "text": "two"}])
    copy_to_store(tmp_path, "s3://data/photos")
    remote, report = read(as_source("s3://data/photos"))
    local, _ = read(as_source(tmp_path))
    assert [attrs.asdict(sample) for sample in remote] == [attrs.asdict(sample) for sample in local]
    assert [sample.captions for sample in remote] == [("two",), ("one",)]
    assert names(report) == {"no_caption": ["3.jpg"]}


def test_a_store_that_fails_after_the_listing(tmp_path):
    plant(tmp_path, {"a.jpg": JPEG, "a.txt": "one"})
    with object_store() as store:
        copy_to_store(tmp_path, "s3://away/photos")
        (unit,) = as_source("s3://away/photos").units()
        store.stop()
        report = SkipReport(log=False)
        with use_limits(StoreLimits(call_seconds=0.5, retry_delays_seconds=())):
            assert ([*unit.read(report)], names(report)) == ([], {"unreachable_caption": ["a.jpg"]})


IMAGES = Path(__file__).parents[2] / "golden" / "augment" / "images"
CLASSES = {"great_astronaut": "astronaut", "cat": "chelsea", "cup of coffee": "coffee"}


@pytest.fixture
def classes(tmp_path):
    """Three classes of three pictures each, one of them below a further folder."""
    images = {name: (IMAGES / f"{picture}.png").read_bytes() for name, picture in CLASSES.items()}
    places = ("1.png", "2.png", "more/3.png")
    return plant(tmp_path, {f"{name}/{place}": image for name, image in images.items() for place in places})


def mark(path, **choices):
    """Return the fingerprint of the first unit."""
    return ClassFolderSource(path=path, **choices).units()[0].fingerprint()


def test_folders_are_classes_and_their_names_captions(classes):
    source = ClassFolderSource(path=classes, templates=("a photo of a {}.", "{}"), samples_per_shard=3)
    assert [(unit.name, unit.count()) for unit in source.units()] == [(f"{n:08d}.tar", 3) for n in range(3)]
    samples, report = read(source)
    assert (report.num_read, report.counts) == (9, {})
    labels = [sample.metadata["label"] for sample in samples]
    assert labels != sorted(labels), "units mix the classes"
    assert Counter(labels) == {"great astronaut": 3, "cat": 3, "cup of coffee": 3}
    by_key = {sample.key: sample for sample in samples}
    astronaut, cat = by_key["great_astronaut/1"], by_key["cat/more/3"]
    assert astronaut.captions == ("a photo of a great astronaut.", "great astronaut")
    assert (astronaut.metadata["class"], cat.metadata["label"]) == ("great_astronaut", "cat")
    assert (cat.image, cat.image_extension) == ((IMAGES / "chelsea.png").read_bytes(), "png")
    assert mark(classes, templates="{}") != mark(classes, templates="a {}")


TABLES = [
    ("classes.json", json.dumps({"cat": "tabby", "cup of coffee": "espresso"})),
    ("classes.txt", "cat\ttabby\n\ncup of coffee\tespresso \n"),
]


@pytest.mark.parametrize(("table", "content"), TABLES)
def test_a_table_renames_classes(classes, table, content):
    before = mark(classes)
    (classes / table).write_text(content)
    samples, _ = read(ClassFolderSource(path=classes))
    assert {sample.metadata["label"] for sample in samples} == {"great astronaut", "tabby", "espresso"}
    assert {sample.captions for sample in samples if sample.metadata["class"] == "cat"} == {("a photo of a tabby.",)}
    assert mark(classes) != before


def test_what_is_no_image_of_a_class_is_left_out(classes):
    plant(classes, dict.fromkeys(("loose.png", ".hidden/1.png"), PNG))
    plant(classes, dict.fromkeys(("cat/notes.txt", "cat/1.txt", "cat/broken.jpg"), b""))
    samples, report = read(ClassFolderSource(path=classes))
    assert report.counts == {"no_class": 1, "other_file": 2, "hidden_folder": 1}
    assert all(sample.captions == (f"a photo of a {sample.metadata['label']}.",) for sample in samples)
    assert {sample.key for sample in samples} >= {"cat/1", "cat/2", "cat/more/3"}
    assert not any("hidden" in sample.key for sample in samples)


BAD_TABLES = [
    ("classes.txt", "cat tabby\n", ("classes.txt",)),
    ("classes.json", '{"cat": "great astronaut"}', ("cat", "great_astronaut", "great astronaut")),
    ("classes.json", '{"dog": "poodle"}', ("dog",)),
    ("classes.json", '{"cat": "tabby", "cat": "lynx"}', ("classes.",)),
    ("classes.json", "[" * 100_000, ("classes.",)),
    ("classes.txt", "cat\ttabby\ncat\tlynx\n", ("classes.",)),
    ("classes.json", '["cat"]', ()),
]


@pytest.mark.parametrize(("table", "content", "named"), BAD_TABLES)
def test_a_table_that_will_not_do_is_named(classes, table, content, named):
    (classes / table).write_text(content)
    with fails(ValueError, *named):
        mark(classes)


def test_mistakes_of_class_folders_are_named(classes):
    for templates, named in ((("a photo",), "a photo"), ((), "templates")):
        with fails(ValueError, named):
            ClassFolderSource(path=classes, templates=templates)
    for path in (classes / "nowhere", classes / "cat" / "more"):
        with fails(ValueError, str(path)):
            mark(path)
