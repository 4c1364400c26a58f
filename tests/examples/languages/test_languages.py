"""The tower of many languages: from packages made here, in the shape of the published ones, to what it finds."""

import json
from pathlib import Path

import attrs
import pytest

import mobileclip
from examples.languages import LanguagesSpec
from examples.languages.report import tables
from examples.languages.run import NAME, RESULTS, make
from examples.languages.scoring import NEVER, OTHER, TAUGHT, WordTable, read_results
from examples.languages.sources import CLDR, OSM, Phrase, aligned_keywords, names_of, plain, read_phrases
from examples.languages.spec import LANGUAGES
from examples.languages.texts import balanced, is_held_out, pairs, shares, usable, without_held_out
from examples.quickstart.emoji.sources import locked
from mobileclip.datasets.sources import read_text_pairs
from mobileclip.encoders.checkpoints import companion
from tests.examples.icons.packages import FEW, LABELS, write_icon_packages

DOCS = Path(__file__).parents[3] / "docs"
KEPT = DOCS / "languages.jsonl"
GERMAN = {"red": "rot", "green": "grün", "blue": "blau", "yellow": "gelb", "circle": "Kreis", "square": "Quadrat"}
SPEC = LanguagesSpec(
    icons=FEW,
    languages=("de", "el"),
    held_out=0.4,
    vocab_size=400,
    texts_per_language=200,
    width=16,
    batch_size=32,
    steps=100,
    learning_rate=0.05,
    num_seeds=1,
)


def german(label):
    return " ".join(GERMAN.get(word, word + "chen") for word in label.split())


def write_packages(modules):
    """Names of the sixteen drawings, as emoji and as things on maps, and keywords that several of them have."""
    annotations = {
        "en": {chr(0x1F600 + at): {"tts": [name], "default": name.split()} for at, name in enumerate(LABELS)},
        "de": {
            chr(0x1F600 + at): {"tts": [german(name)], "default": german(name).split()}
            for at, name in enumerate(LABELS)
        },
        "el": {chr(0x1F600 + at): {"tts": [f"σχήμα {at}"]} for at in range(len(LABELS))},
    }
    for code, found in annotations.items():
        write(
            modules / CLDR.package / "annotations" / code / "annotations.json", {"annotations": {"annotations": found}}
        )
    presets = {
        "en": {
            "presets": {"a/b": {"name": "Red-Circle!"}},
            "fields": {"f": {"label": "Red", "options": {"x": "Blue"}}},
        },
        "de": {
            "presets": {"a/b": {"name": "Kreis in Rot", "aliases": "Roter Ring\n"}},
            "fields": {"f": {"label": "Rot", "options": {"x": {"title": "Blau"}, "y": "Gelb"}}},
        },
    }
    for code, found in presets.items():
        write(modules / OSM.package / "dist" / "translations" / f"{code}.json", {code: {"presets": found}})
    for one in (CLDR, OSM):
        write(modules / one.package / "package.json", {"version": locked()[one.package]["version"]})


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    root = tmp_path_factory.mktemp("languages")
    write_icon_packages(root / "icons" / "download" / "node_modules", FEW.sets)
    found = write_icon_packages(root / "download" / "node_modules", ())
    write_packages(found)
    return found


@pytest.fixture(scope="module")
def made(modules):
    words = modules.parents[1] / "words.jsonl"
    words.write_text("\n".join(json.dumps(["de", name, german(name)[::-1]]) for name in LABELS))
    spec = attrs.evolve(SPEC, output=modules.parents[1], words=words)
    return spec, make(spec)


def test_names_and_words_of_both_packages_are_read(modules):
    found = list(read_phrases(modules, "de"))
    assert names_of(found)["red circle"] == "rot Kreis"
    assert Phrase(text="Roter Ring", english="red circle", is_name=True) in found
    words = {(phrase.text, phrase.english) for phrase in found if not phrase.is_name}
    assert {("Rot", "red"), ("Blau", "blue"), ("Kreis", "circle")} <= words
    assert not [phrase for phrase in found if phrase.text == "Gelb"], "the English has no such option"
    assert not list(read_phrases(modules, "xx"))


def test_keywords_of_the_same_emoji_translate_each_other():
    english = {"1": {"default": ["cat", "pet"]}, "2": {"default": ["cat"]}, "3": {"default": ["pet", "dog"]}}
    own = {"1": {"default": ["Katze"]}, "2": {"default": ["Katze"]}, "3": {"default": ["Hund"]}}
    assert list(aligned_keywords(own, english)) == [("Katze", "cat")], "one emoji says too little of a dog"


def test_texts_whose_english_the_teacher_does_not_know_are_left_out_and_no_pair_is_twice():
    phrases = [
        Phrase(text=text, english=english, is_name=True)
        for text, english in [
            ("Herz", "heart"),
            ("herz", "heart"),
            ("Mut", "heart of a lion"),
            ("Herz", ""),
            ("", "heart"),
        ]
    ]
    assert [phrase.text for phrase in usable(phrases, {"heart"})] == ["Herz"]
    assert plain("Don’t — Stop!") == "dont stop"


def test_held_out_names_are_in_no_text_under_any_english():
    names = {f"thing {number}" for number in range(40)}
    phrases = [Phrase(text=f"Ding {name}", english=name, is_name=True) for name in sorted(names)]
    kept = {name for name in names if is_held_out(name, 0.3)}
    again = [attrs.evolve(phrase, english="another thing", text=phrase.text.upper()) for phrase in phrases]
    left = without_held_out([*phrases, *again], names, 0.3)
    assert 0 < len(kept) < 40
    assert {phrase.text.lower() for phrase in left} == {f"ding {name}" for name in names - kept}


def test_every_language_has_the_same_share_of_samples_and_of_the_tokenizers_texts():
    few = [Phrase(text="ein", english="one", is_name=True), Phrase(text="zwei", english="two", is_name=False)]
    many = [Phrase(text="un", english="one", is_name=True)] * 50
    found = list(pairs({"de": few, "fr": many}))
    assert shares(found, 0.75) == {"de": 0.75, "de-x-words": 0.25, "fr": 0.75}
    texts = list(balanced(found, 0.75, 100))
    assert [texts.count(text) for text in ("ein", "zwei", "un")] == [75, 25, 75]


def test_words_are_translated_by_the_word_that_goes_with_them():
    table = WordTable(Phrase(text=german(name), english=name, is_name=True) for name in LABELS)
    assert table.translate("Rot Kreis Auto") == "red circle auto"
    assert table.knows("blau Kreis")
    assert not table.knows("blau Auto")


def test_a_tower_is_made_measured_and_described(made):
    spec, path = made
    results = read_results(spec.output / RESULTS)
    assert {(one.seed, one.language) for one in results if one.kind == TAUGHT} >= {
        (0, "de"),
        (None, "de"),
        (None, "el"),
    }
    assert {one.seed for one in results if one.kind == NEVER} == {0}, "the tower that ships was taught all names"
    assert {one.language for one in results if one.kind == OTHER} == {"de"}
    assert all(0 <= value <= 100 for one in results for value in (one.student, one.english, one.ceiling))
    table = list(read_text_pairs(spec.output / "seed_0" / "texts.tsv"))
    assert {pair.language for pair in table} == {"de", "de-x-words", "el"}
    assert len(tables(results)) > 8
    card = path.with_suffix(".md").read_text()
    assert "| German |" in card
    assert all(one.package in card for one in (CLDR, OSM))


def test_what_it_learned_is_the_teachers_answer_to_the_english(made):
    _, path = made
    english, german_too = mobileclip.load("icons"), mobileclip.load("icons", text_model=path)
    agreement = german_too.encode_text([german(name) for name in LABELS]) @ english.encode_text(list(LABELS)).T
    others = (agreement.sum() - agreement.trace()) / (agreement.numel() - len(LABELS))
    assert agreement.diagonal().mean() > others + 0.2


def test_what_is_finished_is_not_done_again(made):
    spec, path = made
    before = {file: file.stat().st_mtime_ns for file in spec.output.glob("*/tower.safetensors")}
    assert make(spec) == path
    assert len(before) == 2
    assert {file: file.stat().st_mtime_ns for file in before} == before
    with pytest.raises(ValueError, match="other choices"):
        make(attrs.evolve(spec, width=8))


def test_the_tower_that_ships_is_the_one_of_the_card():
    clip, english = mobileclip.load(NAME), mobileclip.load("icons")
    red = ["red heart", "flèche rouge", "rotes Herz", "赤いハート", "красное сердце"]
    found = clip.encode_text(red)
    assert (found[0] == english.encode_text(red[0])[0]).all(), "English stays with the English tower"
    meant = english.encode_text(["red arrow", "red heart", "red heart", "red heart"])
    assert ((found[1:] * meant).sum(dim=1) > 0.6).all()
    shown = Path(companion(NAME)).with_suffix(".md").read_text(encoding="utf-8")
    shipped = [one for one in read_results(KEPT) if one.seed is None and one.kind == TAUGHT]
    assert all(f"| {LANGUAGES[one.language][0]} | {one.number:,} | {one.student:.1f} |" in shown for one in shipped)
    assert Path(companion(NAME)).stat().st_size < 3_000_000
