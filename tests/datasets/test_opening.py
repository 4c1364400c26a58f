"""One notion of a data set: whatever form the pictures come in, they are found, and what is none is told."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
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
    TableSource,
    as_source,
    open_data_set,
    shards_of,
)
from mobileclip.datasets.sources import (
    LabelledShardSource,
    PublicLayoutSource,
    is_gathered,
    is_place,
    name_of,
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
    (root / "images").mkdir(parents=True)
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
    "labelled lines": (partial(lines, labels=True), JsonLinesSource, "classes"),
    "captioned lines": (partial(lines, labels=False), JsonLinesSource, "captions"),
    "captioned shard": (captioned_shard, ShardSource, "captions"),
    "labelled shards": (labelled_shards, LabelledShardSource, "classes"),
    "public layout": (public_layout, PublicLayoutSource, "classes"),
    "public captions": (public_captions, PublicLayoutSource, "captions"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_opened_alike(tmp_path, form):
    make, kind_of_source, kind = FORMS[form]
    path = make(tmp_path)
    opened = open_data_set(path, templates=TEMPLATES)
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
    files = [file for unit in opened.source.units() for file in unit.files()]
    assert 0 < len(set(files)) == len(files)
    assert all(Path(file).is_file() for file in files)


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


def test_the_kind_is_found_by_the_path(tmp_path):
    assert as_source(["a.tar", Path("b.tar")]) == ShardSource(shards=("a.tar", "b.tar"))
    for text in ("a/{0..3}.tar", "pipe:cat a.tar", "s3://bucket/a.tar", "C:\\data", "c:/data", "run:1/{0..3}.tar"):
        assert as_source(text) == ShardSource(shards=text)
    assert as_source("a.JSONL", samples_per_shard=5) == JsonLinesSource(path="a.JSONL", samples_per_shard=5)
    assert as_source("a.CSV", samples_per_shard=5) == TableSource(tables="a.CSV", samples_per_shard=5)
    assert as_source(["a.csv", "b.tsv"]) == TableSource(tables=("a.csv", "b.tsv"))
    assert as_source(tmp_path, samples_per_shard=5) == FolderSource(path=tmp_path, samples_per_shard=5)
    assert as_source(FolderSource(path="x")) == FolderSource(path="x")
    assert as_source(class_folder(tmp_path / "c")) == ClassFolderSource(path=tmp_path / "c" / "mine")
    assert as_source(public_layout(tmp_path)) == PublicLayoutSource(path=tmp_path / "wds_mine_test")
    for name in "ba":
        shutil.copy(golden("npz"), tmp_path / f"{name}.tar")
    assert as_source(tmp_path) == ShardSource(shards=(f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"))
    write_shard("memory://kinds/below/a.tar", [ImageTextSample(key="k", captions=("c",), image=PNG)])
    assert as_source("memory://kinds/below") == ShardSource(shards="memory://kinds/below/a.tar")
    assert as_source("memory://kinds") == FolderSource(path="memory://kinds")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("lost", None, ()),
        ("lost.json", None, ("lost.json",)),
        ("empty/", {}, ()),
        ("notes/", {"a.txt": b"x", "b.txt": b"y", "c.doc": b"z"}, ("2 .txt", "1 .doc")),
        ("flat/", {"a.png": picture("red"), "b.png": picture("blue")}, ("2",)),
        ("table.csv", b"a,b", ()),
        ("table.csv.gz", b"a,b", ()),
        ("photo.png", picture("red"), ()),
        ("empty.jsonl", b"", ()),
        ("bad.jsonl", b"{}\n", ()),
        ("torn.tar", b"torn", ()),
    ],
)
def test_what_is_no_data_set_is_told(tmp_path, name, content, named):
    path = tmp_path / name
    if isinstance(content, dict):
        path.mkdir()
        for file, data in content.items():
            (path / file).write_bytes(data)
    elif content is not None:
        path.write_bytes(content)
    with fails((FileNotFoundError, ValueError), *named):
        open_data_set(str(path))
    for given in ("", f"{path}.jsonl.gz"):
        with fails(ValueError):
            as_source(given)


def test_what_a_form_does_not_say_is_not_made_up(tmp_path):
    for number, (make, choices) in enumerate(
        (
            (lambda root: labelled_shards(root, names=False), {}),
            (class_folder, {"kind": "captions"}),
            (captioned_shard, {"kind": "classes"}),
        )
    ):
        with fails(ValueError):
            open_data_set(make(tmp_path / f"{number}"), **choices)
    folder = public_layout(tmp_path)
    for said in ("99999999", "9" * 40, "-1", "1e9", "²"):
        (folder / "test" / "nshards.txt").write_text(said, encoding="utf-8")
        with fails(ValueError):
            open_data_set(folder)


def test_places_and_names(tmp_path):
    assert all(map(is_place, (str(tmp_path), "lost/", "lost.jsonl", "s3://bucket/x")))
    assert not any(map(is_place, ("vtab/pets", "mobileclip_s2", "weights.pt")))
    for path, name in (
        ("a/wds_vtab-pets_test/", "vtab-pets"),
        ("a/b.jsonl", "b"),
        ("a/train.tar", "train"),
        ("a/00000.tar", "a"),
        ("s3://bucket/mine/{0..3}.tar", "mine"),
        ("https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/tree/main", "vtab-pets"),
    ):
        assert name_of(path) == name


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        *(("captions", "folder"), ("class folder", "class_folder"), ("captioned lines", "jsonl")),
        *(("captioned shard", "shards"), ("labelled shards", "labelled_shards"), ("public layout", "public_layout")),
    ],
)
def test_a_kind_and_its_argument_stand_wherever_a_path_does(tmp_path, form, kind):
    path = FORMS[form][0](tmp_path)
    plain, named = open_data_set(path), open_data_set(f"{kind}:{path}")
    assert attrs.evolve(named, name=plain.name) == plain
    assert as_source([f"{kind}:{path}"]) == as_source(f"{kind}:{path}")
    assert is_place(f"{kind}:{path}")
    assert is_gathered(f"{kind}:{path}")
    assert open_benchmark(f"{kind}:{path}").class_names == plain.class_names


def test_a_kind_decides_what_a_folder_is(tmp_path):
    folder = class_folder(tmp_path)
    assert open_data_set(f"folder:{folder}", kind="classes").class_names == COLOURS
    (folder / "red" / "red0.txt").write_text("something red", encoding="utf-8")
    assert open_data_set(folder).kind == "captions"
    assert open_data_set(folder, kind="classes").class_names == COLOURS
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
    assert f"mobileclip reinforce datacompdr12m --data folder:{captions}" in f"{stopped.value}{capsys.readouterr().err}"


def test_colons_that_name_no_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caption_folder(tmp_path).rename(tmp_path / "folder:mine")
    assert as_source("folder:mine") == FolderSource(path="folder:mine")
    with fails(ValueError, "hf:org/name"):
        as_source("hf:org/name")
    with fails(ValueError):
        as_source(["shards:a.tar", "b.tar"])
