"""Names and words of a person's own in an index: taught by examples, searched for, moved, upgraded, killed."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mobileclip.cli import main
from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.data import ImageError
from mobileclip.encoders import save_model
from mobileclip.recipes.tiny.shapes import OUTLINES
from tests.collections.pictures import draw, index_of, pack, telling
from tests.errors import fails

OPTIONS = IndexOptions(show_progress=False, precision="float32", num_workers=1)
BIKE = "mein Fahrrad 🚲 für Zoë"
COLOURS = ("black", "crimson", "royalblue", "seagreen", "darkorange", "purple")


def outline(path, name, colour, side=96, turn=0):
    """Draw a shape as icons do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (side, side), "white")
    points = [((1 + 0.7 * x) * side / 2, (1 + 0.7 * y) * side / 2) for x, y in OUTLINES[name]]
    ImageDraw.Draw(image).polygon(points, fill=colour)
    image.rotate(turn, fillcolor="white").save(path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Drawn shapes in six colours, twice, and an index of them by the packaged model of icons."""
    folder = tmp_path_factory.mktemp("concepts")
    for name in OUTLINES:
        for number, colour in enumerate(COLOURS):
            outline(folder / "photos" / name / f"{colour}.png", name, colour, turn=5 * number)
    Collection.create(folder / "index", ModelSource(model="icons")).add(folder / "photos", options=OPTIONS)
    return folder


@pytest.fixture
def index(world, tmp_path):
    shutil.copytree(world / "index", tmp_path / "index")
    return Collection.open(tmp_path / "index")


def pictures(world, name):
    return sorted((world / "photos" / name).iterdir())


def kinds(matches):
    return [match.path.split("/")[-2] for match in matches]


def test_a_concept_without_examples_is_its_text(world, index):
    concept = index.concepts.add(BIKE, text="a heart")
    assert (concept.uses_examples, concept.examples, list(index.concepts)) == (False, (), [BIKE])
    plain = index.search("a heart", k=9)
    assert index.search(f'@"{BIKE}"', k=9) == plain
    assert index.search(f'@"{BIKE}"', without="a star", k=9) == index.search("a heart", without="a star", k=9)
    assert index.search(f"@\u201c{BIKE}\u201d a star", k=9) == index.search(["a star", "a heart"], k=9)


def test_examples_find_what_the_text_does_not(world, index):
    kind = next(iter(OUTLINES))
    yes, rest = pictures(world, kind)[:3], pictures(world, kind)[3:]
    before = kinds(index.search("Zoë's thing", k=6))
    concept = index.concepts.add(BIKE, positive=yes, text="Zoë's thing")
    assert concept.uses_examples
    assert kinds(index.search(f'@"{BIKE}"', k=6)).count(kind) > before.count(kind)
    # The score is the formula's, with the embeddings that the index has.
    clip, snapshot = index.clip, index.snapshot
    text = clip.encode_text(["Zoë's thing"]).numpy()[0]
    vectors = snapshot.vectors.astype(np.float32)
    own = {row["path"]: vectors[place] for place, row in enumerate(snapshot.rows(range(len(snapshot))))}
    for match in index.search(f'@"{BIKE}"', k=40):
        x = own[match.path]
        added = sum(np.exp(-5.5 * (1 - x @ own[str(one)])) for one in yes)
        assert match.score == pytest.approx(x @ text + added, abs=1e-3)
    mixed = index.search(f'@"{BIKE}" a star', where=["path~star"], k=40)
    assert set(kinds(mixed)) == {"star"}
    # What does not show it is pushed away, and is no example any more when that is said.
    worst = index.search(f'@"{BIKE}"', k=40)[5]
    index.concepts.add(BIKE, negative=[worst.id])
    pushed = {match.id: match.score for match in index.search(f'@"{BIKE}"', k=60)}
    assert pushed[worst.id] < worst.score - 0.5
    assert len(index.concepts.add(BIKE, unlabel=[worst.path]).examples) == 3
    assert str(rest[0]) not in {one.path for one in index.concepts[BIKE].examples}


def test_one_example_is_used_where_the_text_does_not_find_it(world, index):
    first, *_, last = index.search("a heart", k=60)
    assert not index.concepts.add("easy", text="a heart", positive=[first.id]).uses_examples
    assert index.concepts.add("hard", text="a heart", positive=[last.id]).uses_examples
    assert not index.concepts.add("never", text="a heart", negative=[last.id]).uses_examples


def test_examples_of_the_index_are_not_encoded_again_and_others_once(world, index, tmp_path, monkeypatch):
    own, other = pictures(world, "star")[0], outline(tmp_path / "other.png", "star", "teal")
    index.concepts.add("star", positive=[own, other])
    other.unlink()
    monkeypatch.setattr(type(index.clip), "encode_pixels", lambda *_, **__: pytest.fail("a picture was encoded"))
    concept = index.concepts.add("star", positive=[pictures(world, "star")[1]])
    place = index.snapshot.place(index.search("a", where=[f"path={own}"])[0].id)
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
    other = Collection.open(index.path)
    other.load()
    star = str(pictures(world, "star")[0])
    main(["concept", "add", BIKE, "--index", str(index.path), "--text", "a heart", "--positive", star])
    assert kinds(other.search(f'@"{BIKE}"', k=3))[0] == "star"
    capsys.readouterr()
    main(["concept", "ls", "--index", str(index.path), "--json"])
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["name"], told["text"], told["yes"], told["no"]) == (BIKE, "a heart", [star], [])
    main(["concept", "rm", BIKE, "--index", str(index.path)])
    assert not other.concepts


def test_a_moved_folder_keeps_them(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def indexed(folder):
        main(["index", str(folder), "-m", "icons", "-j", "1", "--quiet"])
        (place,) = re.findall(r"^the index is (.+)$", capsys.readouterr().out, re.MULTILINE)
        return Collection.open(place)

    shutil.copytree(world / "photos" / "star", tmp_path / "stars")
    index = indexed(tmp_path / "stars")
    index.concepts.add(BIKE, positive=[tmp_path / "stars" / "black.png"])
    index.tag(["a star"], show_progress=False)
    (tmp_path / "stars").rename(tmp_path / "moved")
    moved = indexed(tmp_path / "moved")
    assert moved.path != index.path
    assert list(moved.concepts) == [BIKE]
    assert moved.snapshot.words.words == ("a star",)


@pytest.fixture
def small(tmp_path, telling_file):
    """An index of pictures that any model tells apart, and the file of another model."""
    for number in range(12):
        draw(tmp_path / "photos" / f"{number:02d}.png", number)
    pack(tmp_path / "photos" / "shard.tar", 50, 51)
    save_model(telling(3), tmp_path / "new.safetensors")
    return index_of(tmp_path / "small", telling_file, tmp_path / "photos", precision="float32")


def upgraded(index, tmp_path):
    """Bring an index to the other model, and return it as another process opens it."""
    assert index.upgrade(ModelSource(checkpoint=str(tmp_path / "new.safetensors")), options=OPTIONS) == {}
    return Collection.open(index.path)


def test_they_follow_an_index_to_another_model(small, tmp_path):
    inside = tmp_path / "photos" / "07.png"
    in_shard = small.search("a", where=["part~0050"])[0]
    small.concepts.add("inside", positive=[inside, in_shard.id])
    words = small.tag(["a kite", "a hill"], template="a photo of {}", share=0.2, show_progress=False)
    fresh = upgraded(small, tmp_path)
    places = [fresh.snapshot.place(one.id) for one in (fresh.search("a", where=[f"path={inside}"])[0], in_shard)]
    np.testing.assert_array_equal(fresh.concepts["inside"].vectors, fresh.snapshot.vectors[places])
    assert fresh.search('@"inside"', k=3)
    again = fresh.snapshot.words
    assert (again.words, again.template, again.share) == (words.words, words.template, words.share)
    assert not np.array_equal(again.vectors, words.vectors)


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_an_example_that_has_vanished_follows_by_its_small_copy(small, tmp_path, change):
    inside, outside = tmp_path / "photos" / "07.png", draw(tmp_path / "outside.png", 99)
    small.concepts.add("own", positive=[inside, outside], negative=[tmp_path / "photos" / "09.png"])
    clip, _ = ModelSource(checkpoint=str(tmp_path / "new.safetensors")).load("cpu")
    expected = clip.encode_image([outside]).numpy()[0]
    outside.unlink() if change == "gone" else outside.write_bytes(b"another file")
    fresh = upgraded(small, tmp_path)
    concept = fresh.concepts["own"]
    assert [one.path for one in concept.examples if one.is_positive] == [str(inside), str(outside)]
    place = [one.path for one in concept.examples].index(str(outside))
    assert float(concept.vectors[place].astype(np.float32) @ expected) > 0.99
    assert fresh.search('@"own"', k=3)


def test_a_concept_works_without_an_example_of_which_nothing_is_left(small, tmp_path, caplog):
    """Its small copy could not be made, since the file was gone when the picture of the index was chosen."""
    away = draw(tmp_path / "photos" / "away.png", 98)
    small.add(tmp_path / "photos", options=OPTIONS)
    chosen = small.search("a", where=["path~away"])[0]
    away.unlink()
    small.concepts.add("own", positive=[chosen.id, tmp_path / "photos" / "07.png"])
    small.add(tmp_path / "photos", options=OPTIONS)
    fresh = upgraded(small, tmp_path)
    assert [one.path for one in fresh.concepts["own"].examples] == [str(tmp_path / "photos" / "07.png")]
    assert "away.png is no longer an example of the concept 'own'" in caplog.text
    assert fresh.search('@"own"', k=3)


def test_single_examples_are_lost_on_request_whether_or_not_they_are_there(small, tmp_path):
    one, two, three = (draw(tmp_path / f"{number}.png", 90 + number) for number in range(3))
    small.concepts.add("own", positive=[one, two], negative=[three])
    two.unlink()
    small.concepts.add("own", unlabel=[two])
    assert [example.path for example in small.concepts["own"].examples] == [str(three), str(one)]
    with fails(ValueError, "'own'"):
        small.concepts.add("own", unlabel=[two])


def test_tags_are_columns_calibrated_on_the_collection(world, index):
    with fails(ValueError, str(index.path)):
        index.search("a", where=["tag=star"])
    names = [f"a {name}" for name in OUTLINES]
    index.tag(["", *names, "A  STAR"], show_progress=False)
    assert index.snapshot.words.words == tuple(names)
    found = Collection.open(index.path)
    num = len(found.snapshot)
    scores = found.snapshot.column("tag:a star")
    clip = found.clip
    cosines = found.snapshot.vectors.astype(np.float32) @ clip.encode_text(["a star"]).numpy()[0]
    below = np.array([(cosines < one).sum() / (num - 1) for one in cosines])
    np.testing.assert_allclose(scores, below, atol=0.02)
    best = found.search("a star", where=["tag=A star"], k=num)
    assert len(best) == pytest.approx(0.05 * num, abs=1.5)
    assert best == found.search("a star", k=len(best))
    assert len(found.search("a", where=["tag!=a star"], k=num)) == num - len(best)
    assert len(found.search("a", where=["tag:a star >= 0.5", "path~png"], k=num)) == pytest.approx(num / 2, abs=1)
    place = found.snapshot.place(best[0].id)
    assert "a star" in found.snapshot.tags([place])[0]
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
