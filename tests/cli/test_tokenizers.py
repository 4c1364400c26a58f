"""`mobileclip tokenizer`: what it writes, and what it refuses."""

import pytest
import torch

from mobileclip.cli import main
from mobileclip.data import Tokenizer, read_text_input
from mobileclip.encoders import load_model, save_model
from mobileclip.inference import space_of
from tests.encoders.small import SMALL_MCT, randomised
from tests.errors import told

TEXTS = ["a red heart", "two blue stars", "ein Baum"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "more.tsv").write_text("name\tlanguage\nun cœur\tfr\n\ten\n", encoding="utf-8")
    return tmp_path


def typed(capsys, line):
    status = 0
    try:
        main(line.split())
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_is_trained_on_lines_and_tables_and_pruned(kind, here, capsys):
    line = f"tokenizer train more.tsv more.tsv -o a/t.json --vocab-size 300 --kind {kind} --text-column name"
    status, said = typed(capsys, f"{line} --strict")
    assert (status, "a tokenizer of 2 texts" in said.out) == (1, True)  # a row of each has no text
    status, said = typed(capsys, f"tokenizer train texts.txt -o a/t.json --vocab-size 300 --kind {kind} --overwrite")
    assert (status, "mobileclip train distil_text --tokenizer a/t.json" in said.out) == (0, True)
    assert typed(capsys, "tokenizer prune a/t.json texts.txt -o small.json")[0] == 0
    whole, small = read_text_input("a/t.json"), read_text_input("small.json")
    assert small.vocab_size <= whole.vocab_size
    assert Tokenizer(small).decode(Tokenizer(small).encode(TEXTS[0])).strip() == TEXTS[0]


@pytest.mark.parametrize("tower", [None, "text"])
def test_a_model_keeps_its_embeddings_its_towers_and_its_precision(tower, here, capsys):
    model = randomised(SMALL_MCT)
    save_model(model.half(), here / "model.safetensors")
    space = space_of("model.safetensors")
    if tower is not None:
        (here / "model.safetensors").rename(here / "whole.safetensors")
        assert typed(capsys, "convert whole.safetensors --tower text --precision float16 -o model.safetensors")[0] == 0
    status, said = typed(capsys, "tokenizer prune model.safetensors texts.txt -o small.safetensors")
    assert (status, "of 600 tokens, for 3 texts" in said.out) == (0, True)
    before, after = (load_model(f"{name}.safetensors", tower="text") for name in ("model", "small"))
    assert after.spec.input.vocab_size < 600
    with torch.inference_mode():
        assert torch.equal(*(one(Tokenizer(one.spec.input)(TEXTS)) for one in (before, after)))
    assert (here / "small.safetensors").stat().st_size < 1.5 * (here / "model.safetensors").stat().st_size
    assert space_of("small.safetensors") == space
    if tower is None:
        assert load_model("small.safetensors").spec.image == SMALL_MCT.image


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("tokenizer train -o t.json", ""),
        ("tokenizer train missing.txt -o t.json", "missing.txt"),
        ("tokenizer prune t.json texts.txt -o t.json --overwrite", "t.json"),
    ],
)
def test_what_cannot_be_done_is_named(line, named, here, capsys):
    (here / "t.json").write_text("{}")
    status, said = typed(capsys, f"{line} {'' if '--overwrite' in line else '--overwrite'}")
    assert status == 2
    told(said.err, named)
