"""`mobileclip tokenizer`: what it writes, and what it refuses."""

import pytest

from mobileclip.data import Tokenizer, read_text_input
from tests.build.commands import refused, run

TEXTS = ["a red heart", "two blue stars", "ein Baum"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "more.tsv").write_text("name\tlanguage\nun cœur\tfr\n\ten\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_is_trained_on_lines_and_tables(kind, here, capsys):
    line = f"tokenizer train more.tsv more.tsv -o a/t.json --vocab-size 300 --kind {kind} --text-column name"
    status, out, _ = run(capsys, *line.split(), "--strict")
    assert (status, "a tokenizer of 2 texts" in out) == (1, True)  # a row of each has no text
    line = f"tokenizer train texts.txt -o a/t.json --vocab-size 300 --kind {kind} --overwrite"
    status, out, _ = run(capsys, *line.split())
    assert (status, "mobileclip train distil_text --tokenizer a/t.json" in out) == (0, True)
    trained = Tokenizer(read_text_input("a/t.json"))
    assert trained.vocab_size <= 300
    assert trained.decode(trained.encode(TEXTS[0])).strip() == TEXTS[0]


@pytest.mark.parametrize("texts", ["", "missing.txt"])
def test_texts_that_are_not_there_are_named(texts, here, capsys):
    (here / "t.json").write_text("{}")
    refused(capsys, texts, "tokenizer", "train", *texts.split(), "-o", "t.json", "--overwrite")
