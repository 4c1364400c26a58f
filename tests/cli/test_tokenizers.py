"""`mobileclip tokenizer`: what it writes, and what it refuses."""

import pytest

from mobileclip.cli import main
from mobileclip.data import Tokenizer, read_text_input
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
def test_a_tokenizer_is_trained_on_lines_and_tables(kind, here, capsys):
    line = f"tokenizer train more.tsv more.tsv -o a/t.json --vocab-size 300 --kind {kind} --text-column name"
    status, said = typed(capsys, f"{line} --strict")
    assert (status, "a tokenizer of 2 texts" in said.out) == (1, True)  # a row of each has no text
    status, said = typed(capsys, f"tokenizer train texts.txt -o a/t.json --vocab-size 300 --kind {kind} --overwrite")
    assert (status, "mobileclip train distil_text --tokenizer a/t.json" in said.out) == (0, True)
    trained = Tokenizer(read_text_input("a/t.json"))
    assert trained.vocab_size <= 300
    assert trained.decode(trained.encode(TEXTS[0])).strip() == TEXTS[0]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("tokenizer train -o t.json", ""),
        ("tokenizer train missing.txt -o t.json", "missing.txt"),
    ],
)
def test_what_cannot_be_done_is_named(line, named, here, capsys):
    (here / "t.json").write_text("{}")
    status, said = typed(capsys, f"{line} --overwrite")
    assert status == 2
    told(said.err, named)
