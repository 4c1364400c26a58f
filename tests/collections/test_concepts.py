"""Names and words of a person's own in an index: taught by examples, searched for, moved, upgraded, killed."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mobileclip.cli import main
from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.data import ImageError
from mobileclip.encoders import save_model
from mobileclip.recipes.tiny.shapes import OUTLINES
from tests.collections.pictures import add, draw, draw_all, names, pack, telling
from tests.errors import fails

OPTIONS = IndexOptions(show_progress=False, precision="float32", num_workers=1)
BIKE = "mein Fahrrad 🚲 für Zoë"
AT_BIKE = f'@"{BIKE}"'
COLOURS = ("black", "crimson", "royalblue", "seagreen", "darkorange", "purple")


def outline(path, name, colour, turn=0):
    """Draw a shape as icons do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (96, 96), "white")
    points = [((1 + 0.7 * x) * 48, (1 + 0.7 * y) * 48) for x, y in OUTLINES[name]]
    ImageDraw.Draw(image).polygon(points, fill=colour)
    image.rotate(turn, fillcolor="white").save(path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Drawn shapes in six colours, and an index of them by the packaged model of icons."""
    folder = tmp_path_factory.mktemp("concepts")
    for name in OUTLINES:
        for number, colour in enumerate(COLOURS):
            outline(folder / "photos" / name / f"{colour}.png", name, colour, turn=5 * number)
    Collection.create(folder / "index", ModelSource(model="icons")).add(folder / "photos", options=OPTIONS)
    return folder


@pytest.fixture
def index(world, tmp_path):
    return Collection.open(shutil.copytree(world / "index", tmp_path / "index"))


def pictures(world, name):
    return sorted((world / "photos" / name).iterdir())


def kinds(matches):
    return [match.path.split("/")[-2] for match in matches]


def test_a_concept_without_examples_is_its_text(index):
    concept = index.concepts.add(BIKE, text="a heart")
    assert (concept.uses_examples, concept.examples, list(index.concepts)) == (False, (), [BIKE])
    assert index.search(AT_BIKE, k=9) == index.search("a heart", k=9)
    assert index.search(AT_BIKE, without="a star", k=9) == index.search("a heart", without="a star", k=9)
    assert index.search(f"@\u201c{BIKE}\u201d a star", k=9) == index.search(["a star", "a heart"], k=9)


def test_examples_find_what_the_text_does_not(world, index):
    kind = next(iter(OUTLINES))
    yes = pictures(world, kind)[:3]
    before = kinds(index.search("Zoë's thing", k=6))
    assert index.concepts.add(BIKE, positive=yes, text="Zoë's thing").uses_examples
    assert kinds(index.search(AT_BIKE, k=6)).count(kind) > before.count(kind)
    # The score is the formula's, with the embeddings that the index has.
    text, snapshot = index.clip.encode_text(["Zoë's thing"]).numpy()[0], index.snapshot
    paths = [row["path"] for row in snapshot.rows(range(len(snapshot)))]
    own = dict(zip(paths, snapshot.vectors.astype(np.float32), strict=True))
    for match in index.search(AT_BIKE, k=40):
        x = own[match.path]
        added = sum(np.exp(-5.5 * (1 - x @ own[str(one)])) for one in yes)
        assert match.score == pytest.approx(x @ text + added, abs=1e-3)
    assert set(kinds(index.search(f"{AT_BIKE} a star", where=["path~star"], k=40))) == {"star"}
    # What does not show it is pushed away, and is no example any more when that is said.
    worst = index.search(AT_BIKE, k=40)[5]
    index.concepts.add(BIKE, negative=[worst.id])
    pushed = {match.id: match.score for match in index.search(AT_BIKE, k=60)}
    assert pushed[worst.id] < worst.score - 0.5
    examples = index.concepts.add(BIKE, unlabel=[worst.path]).examples
    assert {one.path for one in examples} == set(map(str, yes))
    # One example is used where the text does not find it.
    first, *_, last = index.search("a heart", k=60)
    assert not index.concepts.add("easy", text="a heart", positive=[first.id]).uses_examples
    assert index.concepts.add("hard", text="a heart", positive=[last.id]).uses_examples
    assert not index.concepts.add("never", text="a heart", negative=[last.id]).uses_examples


def test_examples_of_the_index_are_not_encoded_again_and_others_once(world, index, tmp_path, monkeypatch):
    own, more, *_ = pictures(world, "star")
    other = outline(tmp_path / "other.png", "star", "teal")
    index.concepts.add("star", positive=[own, other])
    other.unlink()
    monkeypatch.setattr(type(index.clip), "encode_pixels", lambda *_, **__: pytest.fail("a picture was encoded"))
    concept = index.concepts.add("star", positive=[more])
    place = index.snapshot.index_of(index.search("a", where=[f"path={own}"])[0].id)
    np.testing.assert_array_equal(concept.vectors[0], index.snapshot.vectors[place])
    assert [one.is_positive for one in concept.examples] == [True] * 3
    with fails(ImageError, str(other)):
        index.concepts.add("star", positive=[other])
    assert index.concepts["star"].examples == concept.examples


def test_names_that_are_none_and_concepts_that_are_not_there(index):
    for name in (" ", 'a "bike"', "a\nb\x07", "x" * 201):
        with fails(ValueError, "200"):
            index.concepts.add(name)
    index.concepts.add("my bike")
    with fails(ValueError, "my bicycle", "my bike"):
        index.search('@"my bicycle"')
    index.concepts.remove("my  bike")
    assert not list(index.concepts)
    assert index.search("@home", k=1), "without quotation marks it is a text"


def test_another_process_sees_it_at_once(world, index, capsys):
    def concept(*words):
        main(["concept", *words, "--index", str(index.path)])
        return capsys.readouterr().out

    other, star = Collection.open(index.path), str(pictures(world, "star")[0])
    other.load()
    concept("add", BIKE, "--text", "a heart", "--positive", star)
    assert kinds(other.search(AT_BIKE, k=3))[0] == "star"
    (told,) = json.loads(concept("ls", "--json"))
    assert (told["name"], told["text"], told["yes"], told["no"]) == (BIKE, "a heart", [star], [])
    concept("rm", BIKE)
    assert not other.concepts


@pytest.fixture
def small(make, tmp_path):
    """An index of pictures that any model tells apart, and the file of another model."""
    pack(draw_all(tmp_path / "photos", range(12)) / "shard.tar", 50, 51)
    save_model(telling(3), tmp_path / "new.safetensors")
    return make("small", tmp_path / "photos", precision="float32")


def upgraded(index, tmp_path):
    """Bring an index to the other model, and return it as another process opens it."""
    assert index.upgrade(ModelSource(checkpoint=str(tmp_path / "new.safetensors")), options=OPTIONS) == {}
    return Collection.open(index.path)


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_they_follow_an_index_to_another_model_and_what_has_vanished_by_its_small_copy(small, tmp_path, change):
    photos, outside = tmp_path / "photos", draw(tmp_path / "outside.png", 99)
    in_shard = small.search("a", where=["part~0050"])[0]
    small.concepts.add("own", positive=[photos / "7.png", in_shard.id, outside], negative=[photos / "9.png"])
    words = small.tag(["a kite", "a hill"], template="a photo of {}", share=0.2, show_progress=False)
    clip, _ = ModelSource(checkpoint=str(tmp_path / "new.safetensors")).load("cpu")
    expected = clip.encode_image([outside]).numpy()[0]
    outside.unlink() if change == "gone" else outside.write_bytes(b"another file")
    fresh = upgraded(small, tmp_path)
    concept = fresh.concepts["own"]
    vectors = {one.path: vector for one, vector in zip(concept.examples, concept.vectors, strict=True)}
    assert [one.is_positive for one in concept.examples].count(True) == len(vectors) - 1 == 3
    assert float(vectors[str(outside)].astype(np.float32) @ expected) > 0.99
    for one in (fresh.search("a", where=[f"path={photos / '7.png'}"])[0], in_shard):
        np.testing.assert_array_equal(vectors[one.path], fresh.snapshot.vectors[fresh.snapshot.index_of(one.id)])
    assert fresh.search('@"own"', k=3)
    again = fresh.snapshot.words
    assert (again.words, again.template, again.share) == (words.words, words.template, words.share)
    assert not np.array_equal(again.vectors, words.vectors)


def test_a_concept_works_without_an_example_of_which_nothing_is_left(small, tmp_path, caplog):
    """Its small copy could not be made, since the file was gone when the picture of the index was chosen."""
    photos = tmp_path / "photos"
    away = draw(photos / "away.png", 98)
    add(small, photos, precision="float32")
    chosen = small.search("a", where=["path~away"])[0]
    away.unlink()
    small.concepts.add("own", positive=[chosen.id, photos / "7.png"])
    add(small, photos, precision="float32")
    fresh = upgraded(small, tmp_path)
    assert names(fresh.concepts["own"].examples) == ["7.png"]
    assert "away.png is no longer an example of the concept 'own'" in caplog.text
    assert fresh.search('@"own"', k=3)


def test_single_examples_are_lost_on_request_whether_or_not_they_are_there(small, tmp_path):
    one, two, three = (draw(tmp_path / f"{number}.png", 90 + number) for number in range(3))
    small.concepts.add("own", positive=[one, two], negative=[three])
    two.unlink()
    small.concepts.add("own", unlabel=[two])
    assert names(small.concepts["own"].examples) == ["2.png", "0.png"]
    with fails(ValueError, "'own'"):
        small.concepts.add("own", unlabel=[two])


def test_tags_are_columns_calibrated_on_the_collection(index):
    with fails(ValueError, str(index.path)):
        index.search("a", where=["tag=star"])
    words = [f"a {name}" for name in OUTLINES]
    index.tag(["", *words, "A  STAR"], show_progress=False)
    assert index.snapshot.words.words == tuple(words)
    found = Collection.open(index.path)
    num, snapshot = len(found.snapshot), found.snapshot
    cosines = snapshot.vectors.astype(np.float32) @ found.clip.encode_text(["a star"]).numpy()[0]
    below = np.array([(cosines < one).sum() / (num - 1) for one in cosines])
    np.testing.assert_allclose(snapshot.column("tag:a star"), below, atol=0.02)
    best = found.search("a star", where=["tag=A star"], k=num)
    assert len(best) == pytest.approx(0.05 * num, abs=1.5)
    assert best == found.search("a star", k=len(best))
    assert len(found.search("a", where=["tag!=a star"], k=num)) == num - len(best)
    assert len(found.search("a", where=["tag:a star >= 0.5", "path~png"], k=num)) == pytest.approx(num / 2, abs=1)
    assert "a star" in snapshot.tags([snapshot.index_of(best[0].id)])[0]
    with fails(ValueError, "a stat", "a star"):
        found.search("a", where=["tag=a stat"])


def test_words_that_are_none(index, tmp_path, capsys):
    for word, what in ((" ", ""), ("a<b", "a<b"), ("x" * 201, "200")):
        with fails(ValueError, what):
            index.tag([word])
    file, command = tmp_path / "words.txt", ["tag", "--index", str(index.path), "--vocabulary"]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SystemExit):
        main([*command, str(file)])
    assert "UTF-8" in capsys.readouterr().err
    file.write_text("\ufeffein Stern\nfuß\n", encoding="utf-8")
    main([*command, str(file), "--share", "0.1", "--quiet"])
    assert Collection.open(index.path).snapshot.words.words == ("ein Stern", "fuß")
