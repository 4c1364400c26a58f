"""One notion of a data set: whatever form the pictures come in, they are found, and what is none is told."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import attrs
import pytest
from PIL import Image

from mobileclip.cli import main
from mobileclip.data import ImageTextSample, SkipReport, write_shard
from mobileclip.datasets import (
    ClassFolderSource,
    FolderSource,
    JsonLinesSource,
    ShardSource,
    Source,
    TableSource,
    as_source,
    open_data_set,
    shards_of,
)
from mobileclip.datasets.sources import (
    EXPECTED,
    LabelledShardSource,
    PublicLayoutSource,
    is_gathered,
    is_place,
    name_of,
    sources,
)
from mobileclip.evaluation import open_benchmark
from tests.data.made_samples import golden, write_layout, write_raw
from tests.datasets.sources.reading import PNG
from tests.errors import fails

COLOURS = ("blue", "green", "red")
TEMPLATES = ("a {} thing",)


def picture(colour, number=0):
    stream = io.BytesIO()
    Image.new("RGB", (8 + number, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def pictures():
    return {f"{colour}{number}": (colour, picture(colour, number)) for colour in COLOURS for number in range(2)}


def class_folder(root):
    for name, (colour, data) in pictures().items():
        (root / "mine" / colour).mkdir(parents=True, exist_ok=True)
        (root / "mine" / colour / f"{name}.png").write_bytes(data)
    return root / "mine"


def caption_folder(root):
    (root / "mine").mkdir(parents=True)
    for name, (colour, data) in pictures().items():
        (root / "mine" / f"{name}.png").write_bytes(data)
        (root / "mine" / f"{name}.txt").write_text(f"a {colour} thing", encoding="utf-8")
    return root / "mine"


def lines(root, *, labels):
    (root / "images").mkdir()
    with (root / "mine.jsonl").open("w", encoding="utf-8") as stream:
        for name, (colour, data) in pictures().items():
            (root / "images" / f"{name}.png").write_bytes(data)
            line = {"image": f"images/{name}.png", "caption": f"a {colour} thing"}
            stream.write(json.dumps({**line, "label": colour} if labels else line) + "\n")
    return root / "mine.jsonl"


def captioned_shard(root):
    samples = {name: {"png": data, "txt": f"a {colour} thing".encode()} for name, (colour, data) in pictures().items()}
    return Path(write_raw(root / "mine.tar", samples))


def labelled(colour, data):
    return {"png": data, "cls": b"%d" % COLOURS.index(colour)}


def labelled_shards(root, *, names=True):
    samples = {name: labelled(*one) for name, one in pictures().items()}
    for shard in range(2):
        write_raw(root / "mine" / f"{shard:05d}.tar", dict(list(samples.items())[shard::2]))
    if names:
        (root / "mine" / "classnames.txt").write_text("\n".join(COLOURS), encoding="utf-8")
    return root / "mine"


def public_layout(root):
    samples = {name: labelled(*one) for name, one in pictures().items()}
    return write_layout(root / "wds_mine_test", samples, classnames=COLOURS, templates=("a {c} thing",))


def public_captions(root):
    samples = {name: {"png": data, "txt": colour.encode()} for name, (colour, data) in pictures().items()}
    return write_layout(root / "wds_mine_test", samples, kind="retrieval")


FORMS = {
    "class folder": (class_folder, ClassFolderSource, "classes"),
    "captions": (caption_folder, FolderSource, "captions"),
    "labelled lines": (lambda root: lines(root, labels=True), JsonLinesSource, "classes"),
    "captioned lines": (lambda root: lines(root, labels=False), JsonLinesSource, "captions"),
    "captioned shard": (captioned_shard, ShardSource, "captions"),
    "labelled shards": (labelled_shards, LabelledShardSource, "classes"),
    "public layout": (public_layout, PublicLayoutSource, "classes"),
    "public captions": (public_captions, PublicLayoutSource, "captions"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_opened_alike(tmp_path, form):
    make, kind_of_source, kind = FORMS[form]
    opened = open_data_set(make(tmp_path), templates=TEMPLATES)
    assert type(opened.source) is kind_of_source
    assert (opened.name, opened.kind) == ("mine", kind)
    assert opened.class_names == (COLOURS if kind == "classes" else ())
    report = SkipReport()
    samples = [sample for unit in opened.source.units() for sample in unit.read(report)]
    assert (report.num_read, report.num_skipped) == (6, 0)
    contents = {data: colour for colour, data in pictures().values()}
    for sample in samples:
        colour = contents[sample.image]
        assert colour in sample.captions[0]
        if kind == "classes":
            assert sample.metadata["label"] == colour
            assert sample.captions == (f"a {colour} thing",)


def test_a_folder_that_may_be_of_two_kinds_is_named(tmp_path):
    folder = class_folder(tmp_path)
    (folder / "stray.png").write_bytes(PNG)
    with fails(ValueError, f"class_folder:{folder}", f"folder:{folder}"):
        as_source(folder)
    opened = open_data_set(f"class_folder:{folder}")
    assert (opened.kind, opened.class_names) == ("classes", COLOURS)
    report = SkipReport(log=False)
    assert sum(1 for unit in opened.source.units() for _ in unit.read(report)) == 6
    assert report.counts == {"no_class": 1}


@pytest.mark.parametrize("form", FORMS)
def test_files_are_those_whose_content_is_read(tmp_path, form):
    path = FORMS[form][0](tmp_path)
    files = [file for unit in open_data_set(path).source.units() for file in unit.files()]
    assert files
    assert len(set(files)) == len(files)
    for file in files:
        assert file.endswith((".png", ".txt", ".tar"))
        with open(file, "rb") as stream:  # noqa: PTH123  a text, as it is given
            assert stream.read(1)


def test_the_kind_is_found_by_the_path(tmp_path):
    assert as_source("a/{0..3}.tar") == ShardSource(shards="a/{0..3}.tar")
    assert as_source(["a.tar", Path("b.tar")]) == ShardSource(shards=("a.tar", "b.tar"))
    assert as_source("pipe:cat a.tar") == ShardSource(shards="pipe:cat a.tar")
    assert as_source("s3://bucket/a.tar") == ShardSource(shards="s3://bucket/a.tar")
    assert as_source("a.JSONL", samples_per_shard=5) == JsonLinesSource(path="a.JSONL", samples_per_shard=5)
    assert as_source("a.CSV", samples_per_shard=5) == TableSource(tables="a.CSV", samples_per_shard=5)
    assert as_source(["a.csv", "b.tsv"]) == TableSource(tables=("a.csv", "b.tsv"))
    assert as_source(tmp_path, samples_per_shard=5) == FolderSource(path=tmp_path, samples_per_shard=5)
    assert as_source(FolderSource(path="x")) == FolderSource(path="x")
    shutil.copy(golden("npz"), tmp_path / "b.tar")
    shutil.copy(golden("npz"), tmp_path / "a.tar")
    assert as_source(tmp_path) == ShardSource(shards=(f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"))
    write_shard("memory://kinds/below/a.tar", [ImageTextSample(key="k", captions=("c",), image=PNG)])
    assert as_source("memory://kinds/below") == ShardSource(shards="memory://kinds/below/a.tar")
    assert as_source("memory://kinds") == FolderSource(path="memory://kinds")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("", (ValueError,)),
        ("a.json", (ValueError, "a.json", ".jsonl, .ndjson, .parquet, .csv, .tsv")),
        ("a.csv.gz", (ValueError,)),
        ("a.jsonl.gz", (ValueError,)),
    ],
)
def test_what_is_no_source(data, error):
    with fails(*error):
        as_source(data)


@pytest.mark.parametrize("cls", [JsonLinesSource, FolderSource])
def test_a_shard_holds_something(cls):
    with pytest.raises(ValueError, match="samples_per_shard"):
        cls(path="a", samples_per_shard=0)


def test_as_source_takes_class_folders_and_the_public_layout(tmp_path):
    assert as_source(class_folder(tmp_path)) == ClassFolderSource(path=tmp_path / "mine")
    assert as_source(public_layout(tmp_path)) == PublicLayoutSource(path=tmp_path / "wds_mine_test")


def test_what_is_asked_for_decides_where_both_are_there(tmp_path):
    folder = class_folder(tmp_path)
    (folder / "red" / "red0.txt").write_text("something red", encoding="utf-8")
    assert open_data_set(folder).kind == "captions"
    assert open_data_set(folder, kind="classes").class_names == COLOURS


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("lost", None, (FileNotFoundError,)),
        ("empty/", {}, (ValueError, "there are no files in it")),
        (
            "notes/",
            {"a.txt": b"x", "b.txt": b"y", "c.doc": b"z"},
            (ValueError, "there are 2 .txt, 1 .doc"),
        ),
        ("flat/", {"a.png": picture("red"), "b.png": picture("blue")}, (ValueError, "2")),
        ("table.csv", b"a,b", (ValueError,)),
        ("table.csv.gz", b"a,b", (ValueError,)),
        ("photo.png", picture("red"), (ValueError,)),
        ("empty.jsonl", b"", (ValueError,)),
        ("bad.jsonl", b"{}\n", (ValueError,)),
        ("torn.tar", b"torn", (ValueError,)),
    ],
)
def test_what_is_no_data_set_is_told_with_what_one_is(tmp_path, name, content, error):
    path = tmp_path / name
    if isinstance(content, dict):
        path.mkdir()
        for file, data in content.items():
            (path / file).write_bytes(data)
    elif content is not None:
        path.write_bytes(content)
    with fails(*error) as refused:
        open_data_set(str(path))
    assert EXPECTED in str(refused.value) or name.endswith((".csv", ".csv.gz", "empty.jsonl"))


def test_numbers_of_classes_need_names(tmp_path):
    with fails(ValueError, "classnames.txt"):
        open_data_set(labelled_shards(tmp_path, names=False))


def test_captions_are_not_made_up(tmp_path):
    with fails(ValueError):
        open_data_set(class_folder(tmp_path), kind="captions")
    with fails(ValueError):
        open_data_set(captioned_shard(tmp_path), kind="classes")


def test_too_many_shards_are_refused_without_naming_them(tmp_path):
    folder = public_layout(tmp_path)
    for said in ("99999999", "9" * 40, "-1", "1e9", "²"):
        (folder / "test" / "nshards.txt").write_text(said, encoding="utf-8")
        with fails(ValueError):
            open_data_set(folder)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/wds_vtab-pets_test/", "vtab-pets"),
        ("a/b.jsonl", "b"),
        ("a/train.tar", "train"),
        ("a/00000.tar", "a"),
        ("a/{0..3}.tar", "a"),
        ("s3://bucket/mine/{0..3}.tar", "mine"),
        ("https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/tree/main", "vtab-pets"),
    ],
)
def test_names(path, name):
    assert name_of(path) == name


def test_places_and_names(tmp_path):
    assert is_place(str(tmp_path))
    assert is_place("lost/")
    assert is_place("lost.jsonl")
    assert is_place("s3://bucket/x")
    assert not is_place("vtab/pets")
    assert not is_place("mobileclip_s2")
    assert not is_place("weights.pt")


@attrs.frozen(kw_only=True)
class Counting(Source):
    """A kind that a package adds, whose argument is no path."""

    number: int
    size: int

    @classmethod
    def of(cls, argument, *, samples_per_shard, rows):
        del rows
        return cls(number=int(argument), size=samples_per_shard)

    def units(self):
        return ()


@pytest.mark.parametrize(
    ("kind", "make", "argument"),
    [
        ("folder", caption_folder, ""),
        ("class_folder", class_folder, ""),
        ("jsonl", lambda root: lines(root, labels=False), ""),
        ("shards", captioned_shard, ""),
        ("shards", lambda root: captioned_shard(root).parent, "min{e..e}.tar"),
        ("labelled_shards", labelled_shards, ""),
        ("public_layout", public_layout, ""),
    ],
)
def test_a_kind_and_its_argument_stand_wherever_a_path_does(tmp_path, kind, make, argument):
    path = os.path.join(make(tmp_path), argument).rstrip("/")  # noqa: PTH118  a pattern, and no path
    plain, named = open_data_set(path), open_data_set(f"{kind}:{path}")
    assert attrs.evolve(named, name=plain.name) == plain
    assert as_source([f"{kind}:{path}"]) == as_source(f"{kind}:{path}")
    assert is_place(f"{kind}:{path}")
    assert is_gathered(f"{kind}:{path}")
    assert open_benchmark(f"{kind}:{path}").class_names == plain.class_names


def test_a_kind_decides_what_a_folder_is(tmp_path):
    assert open_data_set(f"folder:{class_folder(tmp_path)}", kind="classes").class_names == COLOURS
    path = labelled_shards(tmp_path / "b", names=False)
    assert as_source(f"shards:{path}").shards == tuple(str(path / f"0000{number}.tar") for number in range(2))
    with fails(ValueError, "classnames.txt"):
        as_source(f"labelled_shards:{path}")


def test_training_reads_shards_by_whatever_name(tmp_path, capsys):
    """A source in another form is refused, with the command that makes shards of it."""
    path = labelled_shards(tmp_path, names=False)
    named = [str(path), f"shards:{path}", "a/{0..3}.tar", f"shards:{path}/{{00000..00001}}.tar", "s3://bucket/0.tar"]
    own = "::".join(str(path / f"0000{number}.tar") for number in range(2))
    assert shards_of(named) == (own, own, named[2], named[3].removeprefix("shards:"), named[4])
    captions = caption_folder(tmp_path / "b")
    for other in (str(captions), f"folder:{captions}", "pairs.csv", "pairs.jsonl"):
        with fails(ValueError, other):
            shards_of(other)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "s0", "--data", f"folder:{captions}", "--output", str(tmp_path / "run")])
    said = f"{stopped.value}{capsys.readouterr().err}"
    assert f"mobileclip reinforce datacompdr12m --data folder:{captions} --output FOLDER" in said


def test_kinds_of_packages(monkeypatch):
    monkeypatch.setitem(sources._values, "counting", Counting)
    assert as_source("counting:12", samples_per_shard=3) == Counting(number=12, size=3)
    assert name_of("counting:12") == "12"


def test_colons_that_name_no_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("C:\\data", "c:/data", "pipe:cat a.tar", "s3://bucket/a.tar", "run:1/{0..3}.tar", "run:1/a.tar"):
        assert as_source(text) == ShardSource(shards=text)
    caption_folder(tmp_path)
    (tmp_path / "mine").rename(tmp_path / "folder:mine")
    assert as_source("folder:mine") == FolderSource(path="folder:mine")
    with fails(ValueError, "hf:org/name"):
        as_source("hf:org/name")
    with fails(ValueError):
        as_source(["shards:a.tar", "b.tar"])
