import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from mobileclip.data import SkipReport
from mobileclip.datasets import ClassFolderSource, as_source
from tests.errors import fails

IMAGES = Path(__file__).parents[1] / "golden" / "augment" / "images"


@pytest.fixture
def folder(tmp_path):
    """Three classes of three pictures each, one of them below a further folder."""
    for name in ("great_astronaut", "cat", "cup of coffee"):
        picture = {"great_astronaut": "astronaut", "cat": "chelsea"}.get(name, "coffee")
        for place in ("1.png", "2.png", "more/3.png"):
            target = tmp_path / "data" / name / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(IMAGES / f"{picture}.png", target)
    return tmp_path / "data"


def read(source):
    report = SkipReport(log=False)
    return [sample for unit in source.units() for sample in unit.read(report)], report


def test_folders_are_classes_and_their_names_captions(folder):
    source = ClassFolderSource(path=folder, templates=("a photo of a {}.", "{}"))
    samples, report = read(source)
    assert report.num_read == 9
    assert not report.counts
    by_key = {sample.key: sample for sample in samples}
    assert by_key["great_astronaut/1"].captions == ("a photo of a great astronaut.", "great astronaut")
    assert by_key["great_astronaut/1"].metadata["label"] == "great astronaut"
    assert by_key["great_astronaut/1"].metadata["class"] == "great_astronaut"
    assert by_key["cat/more/3"].metadata["label"] == "cat"
    assert by_key["cat/1"].image == (IMAGES / "chelsea.png").read_bytes()
    assert by_key["cat/1"].image_extension == "png"


def test_units_mix_the_classes_and_hold_every_image_once(folder):
    source = ClassFolderSource(path=folder, samples_per_shard=3)
    units = source.units()
    assert [unit.name for unit in units] == ["00000000.tar", "00000001.tar", "00000002.tar"]
    assert [unit.count() for unit in units] == [3, 3, 3]
    samples, _ = read(source)
    labels = [sample.metadata["label"] for sample in samples]
    assert labels != sorted(labels)
    assert Counter(labels) == {"great astronaut": 3, "cat": 3, "cup of coffee": 3}
    assert [sample.key for sample in samples] == [sample.key for sample in read(source)[0]]


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("classes.json", json.dumps({"cat": "tabby", "cup of coffee": "espresso"})),
        ("classes.txt", "cat\ttabby\n\ncup of coffee\tespresso \n"),
    ],
)
def test_a_table_renames_classes(folder, table, content):
    before = ClassFolderSource(path=folder).units()[0].fingerprint()
    (folder / table).write_text(content)
    samples, _ = read(ClassFolderSource(path=folder))
    assert {sample.metadata["label"] for sample in samples} == {"great astronaut", "tabby", "espresso"}
    assert {sample.captions for sample in samples if sample.metadata["class"] == "cat"} == {("a photo of a tabby.",)}
    assert ClassFolderSource(path=folder).units()[0].fingerprint() != before


def test_fingerprints_know_images_and_templates(folder):
    def mark(**choices):
        return ClassFolderSource(path=folder, **choices).units()[0].fingerprint()

    before = mark()
    assert mark() == before
    assert mark(templates=("{}",)) != before
    shutil.copyfile(IMAGES / "coffee.png", folder / "cat" / "4.png")
    assert mark() != before


def test_what_is_no_image_of_a_class_is_left_out(folder):
    shutil.copyfile(IMAGES / "coffee.png", folder / "loose.png")
    (folder / "cat" / "notes.txt").write_text("not a caption")
    (folder / "cat" / "1.txt").write_text("nor is this")
    (folder / "cat" / "broken.jpg").write_bytes(b"")
    (folder / ".hidden").mkdir()
    shutil.copyfile(IMAGES / "coffee.png", folder / ".hidden" / "1.png")
    samples, report = read(ClassFolderSource(path=folder))
    assert report.counts == {"no_class": 1, "other_file": 2, "hidden_folder": 1}
    assert all(sample.captions == (f"a photo of a {sample.metadata['label']}.",) for sample in samples)
    assert {sample.key for sample in samples} >= {"cat/1", "cat/2", "cat/more/3"}
    assert not any("hidden" in sample.key for sample in samples)


def test_it_is_a_source_by_name(folder):
    source = ClassFolderSource(path=folder, templates="a {}")
    assert source.templates == ("a {}",)
    assert as_source(source) is source


def test_mistakes_are_named(folder, tmp_path):
    with fails(ValueError, "a photo"):
        ClassFolderSource(path=folder, templates=("a photo",))
    with fails(ValueError, "templates"):
        ClassFolderSource(path=folder, templates=())
    with fails(ValueError, "nowhere", "is no folder"):
        ClassFolderSource(path=tmp_path / "nowhere").units()
    with fails(ValueError):
        ClassFolderSource(path=folder / "cat" / "more").units()
    (folder / "classes.txt").write_text("cat tabby\n")
    with fails(ValueError, "classes.txt"):
        ClassFolderSource(path=folder).units()
    (folder / "classes.json").write_text('{"cat": "great astronaut"}')
    with fails(ValueError, "cat", "great_astronaut", "great astronaut"):
        ClassFolderSource(path=folder).units()
    (folder / "classes.json").write_text('{"dog": "poodle"}')
    with fails(ValueError, "dog"):
        ClassFolderSource(path=folder).units()
    for table, content in (
        ("classes.json", '{"cat": "tabby", "cat": "lynx"}'),
        ("classes.json", "[" * 100_000),
        ("classes.txt", "cat\ttabby\ncat\tlynx\n"),
    ):
        (folder / "classes.json").unlink(missing_ok=True)
        (folder / table).write_text(content)
        with fails(ValueError, "classes."):
            ClassFolderSource(path=folder).units()
    (folder / "classes.json").write_text('["cat"]')
    with fails(ValueError):
        ClassFolderSource(path=folder).units()
