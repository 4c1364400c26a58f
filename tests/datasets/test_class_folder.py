import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from mobileclip.datasets import ClassFolderSource
from tests.datasets.sources.reading import read
from tests.errors import fails

IMAGES = Path(__file__).parents[1] / "golden" / "augment" / "images"
CLASSES = {"great_astronaut": "astronaut", "cat": "chelsea", "cup of coffee": "coffee"}


@pytest.fixture
def folder(tmp_path):
    """Three classes of three pictures each, one of them below a further folder."""
    for name, picture in CLASSES.items():
        (tmp_path / "data" / name / "more").mkdir(parents=True)
        for place in ("1.png", "2.png", "more/3.png"):
            shutil.copyfile(IMAGES / f"{picture}.png", tmp_path / "data" / name / place)
    return tmp_path / "data"


def mark(folder, **choices):
    """Return the fingerprint of the first unit."""
    return ClassFolderSource(path=folder, **choices).units()[0].fingerprint()


def test_folders_are_classes_and_their_names_captions(folder):
    source = ClassFolderSource(path=folder, templates=("a photo of a {}.", "{}"), samples_per_shard=3)
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
    assert mark(folder, templates="{}") != mark(folder, templates="a {}")


@pytest.mark.parametrize(
    ("table", "content"),
    [
        ("classes.json", json.dumps({"cat": "tabby", "cup of coffee": "espresso"})),
        ("classes.txt", "cat\ttabby\n\ncup of coffee\tespresso \n"),
    ],
)
def test_a_table_renames_classes(folder, table, content):
    before = mark(folder)
    (folder / table).write_text(content)
    samples, _ = read(ClassFolderSource(path=folder))
    assert {sample.metadata["label"] for sample in samples} == {"great astronaut", "tabby", "espresso"}
    assert {sample.captions for sample in samples if sample.metadata["class"] == "cat"} == {("a photo of a tabby.",)}
    assert mark(folder) != before


def test_what_is_no_image_of_a_class_is_left_out(folder):
    (folder / ".hidden").mkdir()
    for place in ("loose.png", ".hidden/1.png"):
        shutil.copyfile(IMAGES / "coffee.png", folder / place)
    for place in ("notes.txt", "1.txt", "broken.jpg"):
        (folder / "cat" / place).touch()
    samples, report = read(ClassFolderSource(path=folder))
    assert report.counts == {"no_class": 1, "other_file": 2, "hidden_folder": 1}
    assert all(sample.captions == (f"a photo of a {sample.metadata['label']}.",) for sample in samples)
    assert {sample.key for sample in samples} >= {"cat/1", "cat/2", "cat/more/3"}
    assert not any("hidden" in sample.key for sample in samples)


@pytest.mark.parametrize(
    ("table", "content", "named"),
    [
        ("classes.txt", "cat tabby\n", ("classes.txt",)),
        ("classes.json", '{"cat": "great astronaut"}', ("cat", "great_astronaut", "great astronaut")),
        ("classes.json", '{"dog": "poodle"}', ("dog",)),
        ("classes.json", '{"cat": "tabby", "cat": "lynx"}', ("classes.",)),
        ("classes.json", "[" * 100_000, ("classes.",)),
        ("classes.txt", "cat\ttabby\ncat\tlynx\n", ("classes.",)),
        ("classes.json", '["cat"]', ()),
    ],
)
def test_a_table_that_will_not_do_is_named(folder, table, content, named):
    (folder / table).write_text(content)
    with fails(ValueError, *named):
        mark(folder)


def test_mistakes_are_named(folder, tmp_path):
    for templates, named in ((("a photo",), "a photo"), ((), "templates")):
        with fails(ValueError, named):
            ClassFolderSource(path=folder, templates=templates)
    for path in (tmp_path / "nowhere", folder / "cat" / "more"):
        with fails(ValueError, str(path)):
            mark(path)
