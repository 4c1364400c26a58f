"""One notion of a data set: whatever form the pictures come in, they are found, and what is none is told."""

import io
import shutil
from functools import partial
from pathlib import Path

import attrs
import pytest
from PIL import Image

from mobileclip.data import ImageTextSample, write_shard
from mobileclip.datasets import ClassFolderSource, FolderSource, JsonLinesSource, ShardSource, TableSource
from mobileclip.datasets.sources import LabelledShardSource, PublicLayoutSource, is_data_path, is_packed, name_of
from mobileclip.datasets.sources.opening import as_source, open_data_set, shards_of
from mobileclip.evaluation import open_benchmark
from tests.build.commands import run
from tests.data.made_samples import golden, write_layout, write_raw
from tests.datasets.sources.reading import PNG, plant, read, write_lines
from tests.errors import fails, told

COLOURS = ("blue", "green", "red")
TEMPLATES = ("a {} thing",)


def picture(colour, number=0):
    stream = io.BytesIO()
    Image.new("RGB", (8 + number, 8), colour).save(stream, "PNG")
    return stream.getvalue()


# Colour and content of each picture, by name.
PICTURES = {f"{colour}{number}": (colour, picture(colour, number)) for colour in COLOURS for number in range(2)}
CAPTIONED = {name: {"png": data, "txt": f"a {colour} thing".encode()} for name, (colour, data) in PICTURES.items()}
LABELLED = {name: {"png": data, "cls": b"%d" % COLOURS.index(colour)} for name, (colour, data) in PICTURES.items()}


def class_folder(root):
    return plant(root / "mine", {f"{colour}/{name}.png": data for name, (colour, data) in PICTURES.items()})


def caption_folder(root):
    return plant(root / "mine", {f"{name}.{kind}": one[kind] for name, one in CAPTIONED.items() for kind in one})


def lines(root, *, labels):
    plant(root / "images", {f"{name}.png": data for name, (_, data) in PICTURES.items()})
    rows = [
        {"image": f"images/{name}.png", "caption": f"a {colour} thing"} | ({"label": colour} if labels else {})
        for name, (colour, _) in PICTURES.items()
    ]
    return write_lines(root / "mine.jsonl", rows)


def captioned_shard(root):
    return Path(write_raw(root / "mine.tar", CAPTIONED))


def labelled_shards(root, *, names=True):
    for shard in range(2):
        write_raw(root / "mine" / f"{shard:05d}.tar", dict(list(LABELLED.items())[shard::2]))
    return plant(root / "mine", {"classnames.txt": "\n".join(COLOURS)} if names else {})


def public_layout(root):
    return write_layout(root / "wds_mine_test", LABELLED, classnames=COLOURS, templates=("a {c} thing",))


def public_captions(root):
    return write_layout(root / "wds_mine_test", CAPTIONED, kind="retrieval")


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
    opened = open_data_set(make(tmp_path), templates=TEMPLATES)
    assert (type(opened.source), opened.name, opened.kind) == (kind_of_source, "mine", kind)
    assert opened.class_names == (COLOURS if kind == "classes" else ())
    samples, report = read(opened.source)
    assert (len(samples), report.counts) == (6, {})
    colours = {data: colour for colour, data in PICTURES.values()}
    for sample in samples:
        assert sample.captions == (f"a {colours[sample.image]} thing",)
        assert kind == "captions" or sample.metadata["label"] == colours[sample.image]
    files = [file for unit in opened.source.units() for file in unit.files()]
    assert 0 < len(set(files)) == len(files)
    assert all(Path(file).is_file() for file in files)


def test_a_folder_that_may_be_of_two_kinds_is_named(tmp_path):
    folder = plant(class_folder(tmp_path), {"stray.png": PNG})
    with fails(ValueError, f"class_folder:{folder}", f"folder:{folder}"):
        as_source(folder)
    opened = open_data_set(f"class_folder:{folder}")
    assert (opened.kind, opened.class_names) == ("classes", COLOURS)
    samples, report = read(opened.source)
    assert (len(samples), report.counts) == (6, {"no_class": 1})


def test_the_kind_is_found_by_the_path(tmp_path):
    for text in ("a/{0..3}.tar", "pipe:cat a.tar", "s3://bucket/a.tar", "C:\\data", "c:/data", "run:1/{0..3}.tar"):
        assert as_source(text) == ShardSource(shards=text)
    for path, kind, field in (
        ("a.JSONL", JsonLinesSource, "path"),
        ("a.CSV", TableSource, "tables"),
        (tmp_path, FolderSource, "path"),
    ):
        assert as_source(path, samples_per_shard=5) == kind(**{field: path}, samples_per_shard=5)
    assert as_source(["a.tar", Path("b.tar")]) == ShardSource(shards=("a.tar", "b.tar"))
    assert as_source(["a.csv", "b.tsv"]) == TableSource(tables=("a.csv", "b.tsv"))
    assert as_source(FolderSource(path="x")) == FolderSource(path="x")
    assert as_source(class_folder(tmp_path / "c")) == ClassFolderSource(path=tmp_path / "c" / "mine")
    assert as_source(public_layout(tmp_path)) == PublicLayoutSource(path=tmp_path / "wds_mine_test")
    for name in "ba":
        shutil.copy(golden("npz"), tmp_path / f"{name}.tar")
    assert as_source(tmp_path) == ShardSource(shards=(f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"))
    write_shard("memory://kinds/below/a.tar", [ImageTextSample(key="k", captions=("c",), image=PNG)])
    assert as_source("memory://kinds/below") == ShardSource(shards="memory://kinds/below/a.tar")
    assert as_source("memory://kinds") == FolderSource(path="memory://kinds")


NO_DATA_SETS = [
    ("lost", {}, ()),
    ("lost.json", {}, ("lost.json",)),
    ("empty", {}, ()),
    ("notes", {"notes/a.txt": b"x", "notes/b.txt": b"y", "notes/c.doc": b"z"}, ("2 .txt", "1 .doc")),
    ("flat", {"flat/a.png": picture("red"), "flat/b.png": picture("blue")}, ("2",)),
    ("photo.png", {"photo.png": picture("red")}, ()),
    *((name, {name: b"{}\n"}, ()) for name in ("table.csv", "table.csv.gz", "bad.jsonl", "torn.tar")),
]


@pytest.mark.parametrize(("name", "files", "named"), NO_DATA_SETS)
def test_what_is_no_data_set_is_told(tmp_path, name, files, named):
    (tmp_path / "empty").mkdir()
    path = plant(tmp_path, files) / name
    with fails((FileNotFoundError, ValueError), *named):
        open_data_set(str(path))
    for given in ("", f"{path}.jsonl.gz"):
        with fails(ValueError):
            as_source(given)


UNSAID = [
    (partial(labelled_shards, names=False), {}),
    (class_folder, {"kind": "captions"}),
    (captioned_shard, {"kind": "classes"}),
]


@pytest.mark.parametrize(("make", "choices"), UNSAID)
def test_what_a_form_does_not_say_is_not_made_up(tmp_path, make, choices):
    with fails(ValueError):
        open_data_set(make(tmp_path), **choices)


@pytest.mark.parametrize("said", ["99999999", "9" * 40, "-1", "1e9", "²"])
def test_a_public_layout_has_a_number_of_shards(tmp_path, said):
    folder = plant(public_layout(tmp_path), {"test/nshards.txt": said})
    with fails(ValueError):
        open_data_set(folder)


def test_places_and_names(tmp_path):
    assert all(map(is_data_path, (str(tmp_path), "lost/", "lost.jsonl", "s3://bucket/x")))
    assert not any(map(is_data_path, ("vtab/pets", "mobileclip_s2", "weights.pt")))
    for path, name in (
        ("a/wds_vtab-pets_test/", "vtab-pets"),
        ("a/b.jsonl", "b"),
        ("a/train.tar", "train"),
        ("a/00000.tar", "a"),
        ("s3://bucket/mine/{0..3}.tar", "mine"),
        ("https://huggingface.co/datasets/djghosh/wds_vtab-pets_test/tree/main", "vtab-pets"),
    ):
        assert name_of(path) == name


KINDS = [
    *(("captions", "folder"), ("class folder", "class_folder"), ("captioned lines", "jsonl")),
    *(("captioned shard", "shards"), ("labelled shards", "labelled_shards"), ("public layout", "public_layout")),
]


@pytest.mark.parametrize(("form", "kind"), KINDS)
def test_a_kind_and_its_argument_stand_wherever_a_path_does(tmp_path, form, kind):
    path = FORMS[form][0](tmp_path)
    plain, named = open_data_set(path), open_data_set(f"{kind}:{path}")
    assert attrs.evolve(named, name=plain.name) == plain
    assert as_source([f"{kind}:{path}"]) == as_source(f"{kind}:{path}")
    assert is_data_path(f"{kind}:{path}")
    assert is_packed(f"{kind}:{path}")
    assert open_benchmark(f"{kind}:{path}").class_names == plain.class_names


def test_a_kind_decides_what_a_folder_is(tmp_path):
    folder = class_folder(tmp_path)
    assert open_data_set(f"folder:{folder}", kind="classes").class_names == COLOURS
    plant(folder, {"red/red0.txt": b"something red"})
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
    status, _, err = run(capsys, "train", "s0", "--data", f"folder:{captions}", "--output", tmp_path / "run")
    told(f"{status}{err}", f"mobileclip reinforce datacompdr12m --data folder:{captions}")


def test_colons_that_name_no_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caption_folder(tmp_path).rename(tmp_path / "folder:mine")
    assert as_source("folder:mine") == FolderSource(path="folder:mine")
    with fails(ValueError, "hf:org/name"):
        as_source("hf:org/name")
    with fails(ValueError):
        as_source(["shards:a.tar", "b.tar"])
