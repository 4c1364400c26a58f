"""Text towers that a command distils: its teachers and texts, its two steps, and what it leaves."""

import sys
from itertools import chain
from pathlib import Path
from unittest.mock import Mock

import attrs
import pytest
import torch
from torch.nn import functional as F

import mobileclip
from mobileclip.data import StoredTexts, train_tokenizer, write_shards
from mobileclip.encoders import MCtSpec, load_model, save_model
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
GIVEN = "-m teacher.safetensors --data de=german.txt pairs.tsv --steps 3 --batch-size 4 --device cpu --quiet"


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("german.txt").write_text("\n".join(LINES), encoding="utf-8")
    Path("pairs.tsv").write_text(PAIRS, encoding="utf-8")
    save_model(randomised(SMALL_MCT), "teacher.safetensors")


def distilled(output, flags="--width 16", given=GIVEN):
    """Run the recipe into a folder, and return its model."""
    run_named("distil_text", *given.split(), "-o", output, *flags.split())
    return load_model(f"{output}/model.safetensors")


def test_the_tiny_run_comes_near_its_teacher():
    run_named("distil_text", "--tiny", "--quiet")
    tiny = Path("outputs/distil_text-tiny")
    texts, student = StoredTexts(tiny / "texts"), load_model(tiny / "model.safetensors")
    assert texts.card.teacher == "icons"
    assert texts.card.space == mobileclip.load("icons", identify=True).identity.to_json()
    clip = mobileclip.load("icons", text_model=tiny / "model.safetensors")
    assert clip.encode_text(["roter Pfeil"]).shape == (1, 256)
    assert (student.spec.pool, student.spec.input.context_length) == ("mean", 24)
    assert texts.at([0])[1].shape == (1, 256)
    lines = read_metrics(tiny / "metrics.jsonl")
    assert lines[-1]["cosine"] < lines[0]["cosine"]


@pytest.mark.slow
def test_the_tiny_run_of_a_published_tower_begins_as_its_teacher():
    run_named("distil_text_s0 tokens_16", "--tiny", "--quiet")
    output = Path("outputs/distil_text_s0-tokens_16-tiny")
    assert load_model(output / "model.safetensors").spec.input.context_length == 16
    assert read_metrics(output / "metrics.jsonl")[0]["cosine"] < 0.4


def test_a_run_that_ended_between_its_steps_goes_on_to_the_same_bytes(monkeypatch, capsys):
    distilled("whole")
    assert "whole/model.safetensors" in capsys.readouterr().out
    with monkeypatch.context() as patched, fails(SystemExit, "stopped"):
        patched.setattr(sys.modules[distil.__module__], "run", Mock(side_effect=OSError("stopped")))
        distilled("ended")
    part = Path("ended/texts/00000.safetensors")
    stored = part.stat().st_mtime_ns
    distilled("ended")
    assert part.stat().st_mtime_ns == stored
    distilled("again", "--texts whole/texts", "whole/distil.json")
    for name in ("ended", "again"):
        (ours, header), (whole, expected) = (read_tensors(Path(one, "model.safetensors")) for one in (name, "whole"))
        torch.testing.assert_close(ours, whole, rtol=0, atol=0)
        assert header == expected
    with fails(SystemExit):
        distilled("whole", "--width 16 --depth 0")


@pytest.mark.slow
def test_two_processes_store_once_and_train_what_one_does(tmp_path):
    given = GIVEN.replace("teacher.s", f"{tmp_path}/teacher.s").replace("german", f"{tmp_path}/german")
    given = given.replace("pairs", f"{tmp_path}/pairs")
    together("mobileclip.cli", "train", "distil_text", *given.split(), "--width", "16", "-o", tmp_path / "two")
    distilled("one")
    one, two = (read_metrics(f"{name}/metrics.jsonl") for name in ("one", "two"))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    assert Path("two/distil.json").exists()
    assert StoredTexts("two/texts").card == StoredTexts("one/texts").card


def test_languages_shares_depths_kinds_and_tokenizers_are_chosen():
    spec = distilled("out", "--width 16 --shares de=2,en=1 --shares fr=0.5 --depth 0 --context-length 8").spec
    assert StoredTexts("out/texts").card.languages == {"de": len(LINES) + 1, "en": 1, "fr": 1}
    assert (spec.depth, spec.input) == (0, attrs.evolve(TEXT_INPUT, context_length=8))
    assert from_json(Path("out/distil.json").read_text(), DistilSpec).language_shares == {"de": 2, "en": 1, "fr": 0.5}
    same = distilled("same", "--training.loss.relation-weight 0 --kind teacher").spec
    assert (same.width, read_metrics("same/metrics.jsonl")[0]["cosine"] < 0.2) == (SMALL_MCT.text.width, True)
    Path("tokenizer.json").write_text(train_tokenizer(LINES * 9, vocab_size=300))
    mct = distilled("mct", "--width 16 --kind mct --tokenizer tokenizer.json").spec
    assert isinstance(mct, MCtSpec)
    assert mct.input.tokenizer.content == Path("tokenizer.json").read_text()


def test_rows_that_cannot_be_used_are_told(capsys):
    Path("some.jsonl").write_text('{"text": "ein Herz"}\n{"text": 3}\n', encoding="utf-8")
    distilled("out", given=GIVEN.replace("de=german.txt pairs.tsv", "some.jsonl"))
    assert "1 rows were left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "--model"),
        ({"model": "icons"}, "--data"),
        ({"model": "icons", "data": ("de=missing.txt",)}, "missing.txt"),
        ({"model": "mobileclip_s5", "data": ("a.txt",)}, "mobileclip_s5"),
        ({"shares": ("de",)}, "de"),
        ({"shares": ("de=0",)}, "de=0"),
        ({"kind": "teacher", "depth": 2}, "--depth"),
    ],
)
def test_what_is_missing_or_wrong_is_named(given, named):
    with fails((FileNotFoundError, ValueError), named):
        distil(DistilSpec(**given))


def test_a_whole_model_and_its_text_tower_are_one_teacher():
    save_model(load_model("teacher.safetensors", tower="text", fold=False), "tower.safetensors")
    whole, alone = open_teacher("teacher.safetensors"), open_teacher("tower.safetensors")
    texts = ["a red heart", "two stars"]
    expected = F.normalize(alone.teacher.encode_texts(texts), dim=1)
    torch.testing.assert_close(whole.teacher.encode_texts(texts), expected)
    assert (alone.text, alone.teacher.dim) == (TEXT_INPUT, SMALL_MCT.text.embedding_dim)


def test_captions_of_shards_are_texts(tmp_path):
    samples = [make_sample(index) for index in range(3)]
    write_shards(tmp_path, samples, samples_per_shard=2)
    found = [pair.text for pair in DistilSpec(data=(f"{tmp_path}/{{00000000..00000001}}.tar",)).pairs()]
    assert found == [text for one in samples for text in (*one.captions, *chain(*one.syn_captions.values()))]


def test_the_page_of_segmenters_runs_as_it_is_written():
    save_model(randomised(attrs.evolve(SMALL_MCT.text, pool="mean")), "short.safetensors")
    names = {}
    for code in blocks(PAGES["docs/text_towers.md"], "python"):
        exec(code.replace("outputs/short/model.safetensors", "short.safetensors"), names)
    tokens, mask = names["program"].module()(names["ids"])
    torch.testing.assert_close((tokens, mask), (names["tokens"], names["mask"]))
    assert names["prompt"].shape == (2, TEXT_INPUT.context_length, SMALL_MCT.text.embedding_dim)
