"""Text towers that a command distils: its teachers and texts, its two steps, and what it leaves."""

import os
import sys
from itertools import chain
from pathlib import Path

import attrs
import pytest
import torch
from torch.nn import functional as F

import mobileclip
from mobileclip.data import StoredTexts, Tokenizer, train_tokenizer, write_shards
from mobileclip.encoders import load_model, save_model
from mobileclip.recipes.distilling import DistilSpec, distil, open_teacher
from mobileclip.serialization import from_json
from mobileclip.tensor_files import read_tensors
from mobileclip.training import read_metrics
from tests.data.made_samples import make_sample
from tests.encoders.small import SMALL_MCT, TEXT_INPUT, randomised
from tests.errors import fails
from tests.recipes.running import run_named
from tests.test_pages import PAGES, blocks
from tests.training.program import together

LINES = ("ein rotes Herz", "ein blauer Stern", "drei kleine Häuser", "ein Baum", "zwei Pfeile")
PAIRS = "text\tteacher_text\tlanguage\nein Herz\ta heart\tde\na star\t\ten\nune étoile\ta star\tfr\n"
STEPS = ("--steps", "3", "--batch-size", "4", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilling")
    (folder / "german.txt").write_text("\n".join(LINES), encoding="utf-8")
    (folder / "pairs.tsv").write_text(PAIRS, encoding="utf-8")
    save_model(randomised(SMALL_MCT), folder / "teacher.safetensors")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    before, folder = Path.cwd(), tmp_path_factory.mktemp("tiny")
    os.chdir(folder)
    try:
        run_named("distil_text", "--tiny", "--quiet")
    finally:
        os.chdir(before)
    return folder / "outputs" / "distil_text-tiny"


def test_the_tiny_run_comes_near_its_teacher(tiny):
    texts = StoredTexts(tiny / "texts")
    assert texts.card.teacher == "icons"
    assert texts.card.space == mobileclip.load("icons", identify=True).identity.to_json()
    clip = mobileclip.load("icons", text_model=tiny / "model.safetensors")
    assert clip.encode_text(["roter Pfeil"]).shape == (1, 256)
    student = load_model(tiny / "model.safetensors")
    assert (student.spec.pool, student.spec.input.context_length) == ("mean", 24)
    told_texts, teacher = texts.at(range(len(texts)))
    with torch.inference_mode():
        ours = student(Tokenizer(student.spec.input)(told_texts))
    assert ours.shape == teacher.shape
    lines = read_metrics(tiny / "metrics.jsonl")
    assert lines[-1]["cosine"] < lines[0]["cosine"]


@pytest.mark.slow
def test_the_tiny_run_of_a_published_tower_begins_as_its_teacher(here):
    run_named("distil_text_s0 tokens_16", "--tiny", "--quiet")
    output = here / "outputs" / "distil_text_s0-tokens_16-tiny"
    assert load_model(output / "model.safetensors").spec.input.context_length == 16
    assert read_metrics(output / "metrics.jsonl")[0]["cosine"] < 0.4


def arguments(files, *others):
    data = (f"de={files / 'german.txt'}", files / "pairs.tsv")
    narrow = () if "teacher" in others else ("--width", "16")
    return ("-m", files / "teacher.safetensors", "--data", *data, *STEPS, *narrow, *others)


def bytes_of(output):
    tensors, header = read_tensors(output / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, header


def test_a_run_that_ended_between_its_steps_goes_on_to_the_same_bytes(files, here, monkeypatch, capsys):
    run_named("distil_text", *arguments(files, "-o", "whole"))
    assert "whole/model.safetensors" in capsys.readouterr().out

    def stopped(*_, **__):
        raise OSError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[distil.__module__], "run", stopped)
        with pytest.raises(SystemExit, match="stopped"):
            run_named("distil_text", *arguments(files, "-o", "ended"))
    part = here / "ended" / "texts" / "00000.safetensors"
    stored = part.stat().st_mtime_ns
    run_named("distil_text", *arguments(files, "-o", "ended"))
    assert part.stat().st_mtime_ns == stored
    assert bytes_of(here / "ended") == bytes_of(here / "whole")
    run_named("distil_text", "whole/distil.json", "-o", "again", "--texts", "whole/texts")
    assert bytes_of(here / "again") == bytes_of(here / "whole")
    with fails(SystemExit):
        run_named("distil_text", *arguments(files, "-o", "whole", "--depth", "0"))


@pytest.mark.slow
def test_two_processes_store_once_and_train_what_one_does(files, here):
    together("mobileclip.cli", "train", "distil_text", *arguments(files, "-o", here / "two"))
    run_named("distil_text", *arguments(files, "-o", "one"))
    one, two = (read_metrics(f"{name}/metrics.jsonl") for name in ("one", "two"))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    assert Path("two/distil.json").exists()
    assert StoredTexts("two/texts").card == StoredTexts("one/texts").card


def test_languages_and_shares(files, here):
    shares = ("--shares", "de=2,en=1", "--shares", "fr=0.5")
    run_named("distil_text", *arguments(files, "-o", "out", *shares, "--depth", "0", "--context-length", "8"))
    texts = StoredTexts("out/texts")
    assert texts.card.languages == {"de": len(LINES) + 1, "en": 1, "fr": 1}
    model = load_model("out/model.safetensors")
    assert (model.spec.depth, model.spec.input) == (0, attrs.evolve(TEXT_INPUT, context_length=8))
    assert from_json(Path("out/distil.json").read_text(), DistilSpec).language_shares == {"de": 2, "en": 1, "fr": 0.5}


def test_a_student_may_begin_as_its_teacher(files, here):
    others = ("--training.loss.relation-weight", "0", "--kind", "teacher")
    run_named("distil_text", *arguments(files, "-o", "out", *others))
    first = read_metrics("out/metrics.jsonl")[0]
    assert first["cosine"] < 0.2
    assert load_model("out/model.safetensors").spec.width == SMALL_MCT.text.width


def test_a_tokenizer_of_its_own_and_mct(files, here):
    Path("tokenizer.json").write_text(train_tokenizer(LINES * 9, vocab_size=300))
    run_named("distil_text", *arguments(files, "-o", "out", "--kind", "mct", "--tokenizer", "tokenizer.json"))
    spec = load_model("out/model.safetensors").spec
    assert type(spec).__name__ == "MCtSpec"
    assert spec.input.tokenizer.content == Path("tokenizer.json").read_text()


def test_rows_that_cannot_be_used_are_told(files, here, capsys):
    Path("some.jsonl").write_text('{"text": "ein Herz"}\n{"text": 3}\n', encoding="utf-8")
    run_named("distil_text", "-m", files / "teacher.safetensors", "--data", "some.jsonl", *STEPS, "-o", "out")
    assert "1 rows were left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "code", "named"),
    [
        ({}, ValueError, "--model"),
        ({"model": "icons"}, ValueError, "--data"),
        ({"model": "icons", "data": ("de=missing.txt",)}, FileNotFoundError, "missing.txt"),
        ({"model": "mobileclip_s5", "data": ("a.txt",)}, ValueError, "mobileclip_s5"),
        ({"shares": ("de",)}, ValueError, "de"),
        ({"shares": ("de=0",)}, ValueError, "de=0"),
        ({"kind": "teacher", "depth": 2}, ValueError, "--depth"),
    ],
)
def test_what_is_missing_or_wrong_is_named(given, code, named, here):
    with fails(code, named):
        distil(DistilSpec(**given))


def test_a_whole_model_and_its_text_tower_are_one_teacher(files, here):
    tower = load_model(files / "teacher.safetensors", tower="text", fold=False)
    save_model(tower, "tower.safetensors")
    whole, alone = open_teacher(str(files / "teacher.safetensors")), open_teacher("tower.safetensors")
    texts = ["a red heart", "two stars"]
    expected = F.normalize(alone.teacher.encode_texts(texts), dim=1)
    torch.testing.assert_close(whole.teacher.encode_texts(texts), expected)
    assert (alone.text, alone.teacher.dim) == (TEXT_INPUT, SMALL_MCT.text.embedding_dim)


def test_captions_of_shards_are_texts(tmp_path):
    samples = [make_sample(index) for index in range(3)]
    write_shards(tmp_path, samples, samples_per_shard=2)
    found = [pair.text for pair in DistilSpec(data=(f"{tmp_path}/{{00000000..00000001}}.tar",)).pairs()]
    assert found == [text for one in samples for text in (*one.captions, *chain(*one.syn_captions.values()))]


def test_the_page_of_segmenters_runs_as_it_is_written(here):
    save_model(randomised(attrs.evolve(SMALL_MCT.text, pool="mean")), here / "short.safetensors")
    names = {}
    for code in blocks(PAGES["docs/text_towers.md"], "python"):
        exec(code.replace("outputs/short/model.safetensors", "short.safetensors"), names)
    tokens, mask = names["program"].module()(names["ids"])
    torch.testing.assert_close((tokens, mask), (names["tokens"], names["mask"]))
    assert names["prompt"].shape == (2, TEXT_INPUT.context_length, SMALL_MCT.text.embedding_dim)
