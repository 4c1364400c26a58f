"""Texts that are stored with a teacher's embeddings, and the order in which they come."""

import json
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from mobileclip.data import BadSampleError, StoredTexts, TextPipelineSpec
from mobileclip.datasets.sources import TextColumns, TextPair, read_text_pairs
from mobileclip.inputs import TextInput
from mobileclip.reinforce import reinforce_texts
from mobileclip.reinforce.teachers import NotFiniteError
from mobileclip.tensor_files import CheckpointError
from tests.errors import fails


class Lengths:
    """A teacher whose embedding says how long a text is."""

    name, weights_sha256, dim = "lengths", "0" * 64, 3

    def __init__(self):
        self.seen = []

    def encode_texts(self, texts):
        self.seen += texts
        return torch.tensor([[len(text), 1.0, len(text) % 7] for text in texts])


PAIRS = [
    TextPair(text="ein Herz \N{BLACK HEART SUIT}", teacher_text="a heart", language="de"),
    TextPair(text="a heart", teacher_text="a heart", language="en"),
    TextPair(text="une étoile", teacher_text="a star", language="fr"),
    TextPair(text="a star", teacher_text="a star", language="en"),
    TextPair(text="", teacher_text="an empty text"),
]


@pytest.fixture
def folder(tmp_path):
    reinforce_texts(PAIRS, Lengths(), tmp_path / "texts", texts_per_part=2)
    return tmp_path / "texts"


def test_texts_come_back_with_their_teachers_embeddings(folder):
    stored = StoredTexts(folder)
    assert len(stored) == 5
    texts, embeddings = stored.at([3, 0, 4])
    assert texts == [PAIRS[3].text, PAIRS[0].text, ""]
    expected = F.normalize(Lengths().encode_texts([PAIRS[number].teacher_text for number in (3, 0, 4)]), dim=1)
    torch.testing.assert_close(embeddings, expected, atol=1e-3, rtol=1e-3)
    found = {name: own.tolist() for name, own in stored.by_language.items()}
    assert found == {"de": [0], "en": [1, 3], "fr": [2], "": [4]}


@pytest.mark.parametrize(
    ("sha256", "num_texts", "seen"), [("0" * 64, 5, ["a star"]), ("1" * 64, 2, ["a heart"])], ids=["alike", "another"]
)
def test_what_is_there_is_not_encoded_again_but_for_another_teacher(folder, sha256, num_texts, seen):
    teacher = Lengths()
    teacher.weights_sha256 = sha256
    (folder / "00001.safetensors").unlink()
    (folder / "texts.json").unlink()
    with fails(FileNotFoundError):
        StoredTexts(folder)
    reinforce_texts(PAIRS[:num_texts], teacher, folder, texts_per_part=2)
    assert teacher.seen == seen
    assert len(StoredTexts(folder)) == num_texts


@pytest.mark.parametrize("damage", ["cut", "changed", "swapped"])
def test_a_damaged_part_is_named(folder, damage):
    part, card = folder / "00000.safetensors", folder / "texts.json"
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-8])
    elif damage == "changed":
        card.write_text(json.dumps({**json.loads(card.read_text()), "dim": 4}))
    else:
        part.write_bytes((folder / "00002.safetensors").read_bytes())
    with fails(CheckpointError, part.name):
        StoredTexts(folder)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_an_embedding_that_is_not_finite_is_refused_and_so_are_no_texts(tmp_path, wrong):
    teacher = Lengths()
    teacher.encode_texts = lambda texts: torch.full((len(texts), 3), wrong)
    with fails(NotFiniteError, "lengths"):
        reinforce_texts(PAIRS, teacher, tmp_path / "texts")
    with fails(ValueError, "1"):
        reinforce_texts([BadSampleError("bad_row", "no")], Lengths(), tmp_path / "texts")
    assert not (tmp_path / "texts" / "texts.json").exists()


# Texts of tables, and why their other rows are left out.
TABLES = {
    "rows.jsonl": (
        (
            '{"text": "ein Herz", "teacher_text": "a heart", "language": "de"}\n'
            '{"text": "a star"}\n[1]\n{}\n{"text": "\\ud800"}\n'
        ),
        ["bad_json", "no_text", "bad_text"],
    ),
    "rows.tsv": (
        "text\tteacher_text\tlanguage\nein Herz\ta heart\tde\na star\t\t\n\t\t\na star\t\n",
        ["no_text", "bad_row"],
    ),
    "rows.csv": (
        '"text","language","teacher_text"\n"ein Herz",de,"a heart"\n"a star",,\n,,\n"a star",,,\n',
        ["no_text", "bad_row"],
    ),
    "rows.parquet": (None, ["no_text"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_texts(tmp_path, name):
    path, (content, left_out) = tmp_path / name, TABLES[name]
    if content is None:
        import pyarrow as pa
        from pyarrow import parquet

        columns = {"text": ["ein Herz", "a star", None], "teacher_text": ["a heart", None, None]}
        parquet.write_table(pa.table({**columns, "language": ["de", None, None]}), path)
    else:
        path.write_text(content)
    found = list(read_text_pairs(path, TextColumns(default_language="en")))
    assert [row for row in found if isinstance(row, TextPair)] == [
        TextPair(text="ein Herz", teacher_text="a heart", language="de"),
        TextPair(text="a star", teacher_text="a star", language="en"),
    ]
    assert [row.reason for row in found if isinstance(row, BadSampleError)] == left_out


def test_lines_of_texts_and_a_table_without_them(tmp_path):
    (tmp_path / "lines.txt").write_text("a heart\n\nune étoile\n")
    assert [pair.text for pair in read_text_pairs(tmp_path / "lines.txt")] == ["a heart", "une étoile"]
    (tmp_path / "long.txt").write_text("h" * 10_000 + "\n" + "h" * 10_001)
    assert [getattr(row, "reason", None) for row in read_text_pairs(tmp_path / "long.txt")] == [None, "text_too_long"]
    (tmp_path / "rows.csv").write_text("title\na heart\n")
    with fails(ValueError, "title"):
        list(read_text_pairs(tmp_path / "rows.csv"))
    columns = TextColumns(text="title")
    assert [pair.text for pair in read_text_pairs(tmp_path / "rows.csv", columns)] == ["a heart"]


def pipeline(folder, **changes):
    choices = {"batch_size": 4, "text": TextInput(context_length=8, vocab_size=600), **changes}
    return TextPipelineSpec(texts=folder, **choices).build()


def test_every_language_has_its_share_at_any_moment(tmp_path):
    shares = {"de": 0.61, "en": 0.3, "fr": 0.0899, "ja": 1e-4}
    texts = [TextPair(text=f"{number}", teacher_text="a", language=name) for number, name in enumerate(shares)]
    reinforce_texts(texts, Lengths(), tmp_path / "texts")
    batches, counts = pipeline(tmp_path / "texts", batch_size=1, shares=shares), dict.fromkeys(shares, 0)
    for number in range(1500):
        (key,) = batches.batch(number).keys
        counts[list(shares)[int(key)]] += 1
        for name, share in shares.items():
            assert abs(counts[name] - (number + 1) * share) < 1.01


def test_every_text_comes_once_an_epoch(tmp_path):
    many = [TextPair(text=f"text {number}", teacher_text="a", language="en") for number in range(12)]
    reinforce_texts(many, Lengths(), tmp_path / "texts", texts_per_part=5)
    batches = pipeline(tmp_path / "texts")
    epochs = [[key for step in range(3 * epoch, 3 * epoch + 3) for key in batches.batch(step).keys] for epoch in (0, 1)]
    assert sorted(epochs[0], key=int) == sorted(epochs[1], key=int) == [str(number) for number in range(12)]
    assert epochs[0] != epochs[1]


def test_processes_share_a_batch(folder, monkeypatch):
    alone = pipeline(folder, batch_size=4).batch(7)
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        shares.append(pipeline(folder, batch_size=2).batch(7))
    assert [key for keys in zip(*(one.keys for one in shares), strict=True) for key in keys] == list(alone.keys)


def test_shares_are_kept_and_unknown_languages_refused(folder):
    batches = pipeline(folder, shares={"en": 3, "fr": 1})
    keys = [key for step in range(8) for key in batches.batch(step).keys]
    assert Counter(keys) == {"1": 12, "3": 12, "2": 8}
    for shares, word in (({"it": 1}, "it"), ({"en": 0, "fr": 1}, "en")):
        with fails(ValueError, word):
            pipeline(folder, shares=shares)
