"""An index that is brought to another model: measured, by use, at a pace, killed at any moment, by several at once."""

import json
import shutil
import signal
import time

import attrs
import numpy as np
import pytest
import torch

from mobileclip import storage
from mobileclip.cli import main
from mobileclip.collections import Collection, IndexOptions, ModelSource, UpgradeReport
from mobileclip.collections.indexing import UPGRADE
from mobileclip.collections.store import NewSpace, read_words
from mobileclip.encoders import save_model
from tests.collections.pictures import assert_same_rows, draw, pack, rows_of, telling
from tests.errors import fails
from tests.preloaded import preloaded
from tests.waiting import wait_for

OPTIONS = IndexOptions(show_progress=False, precision="float32", batch_size=4)
SIZES = ((96, 80), (100, 84), (88, 80))
NUMBER = 48
FILL = """
import sys
from mobileclip.collections import Collection, IndexOptions
options = IndexOptions(show_progress=False, precision="float32", batch_size=1)
Collection.open(sys.argv[1]).upgrade(rate=float(sys.argv[2]), options=options)
"""
KILLED = """
import os, signal, sys
from mobileclip.collections import Collection, Concepts, IndexOptions
{{"follow": Concepts, "tag": Collection}}["{at}"].{at} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
Collection.open(sys.argv[1]).upgrade(options=IndexOptions(show_progress=False, precision="float32"))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, telling_file):
    """Pictures, three of a kind in each folder, an index of them, another model, and one that sees nothing."""
    folder = tmp_path_factory.mktemp("upgrading")
    for number in range(NUMBER):
        draw(folder / "photos" / f"{number // 3}" / f"{number:02d}.png", number // 3, SIZES[number % 3])
    save_model(telling(3), folder / "new.safetensors")
    blind = telling(3)
    with torch.no_grad():
        for weight in blind.image_encoder.parameters():
            weight.mul_(weight.ndim == 1)
    save_model(blind, folder / "blind.safetensors")
    index = Collection.create(folder / "index", ModelSource(checkpoint=str(telling_file)))
    index.add(folder / "photos", options=OPTIONS)
    whole = Collection.create(folder / "whole", ModelSource(checkpoint=str(folder / "new.safetensors")))
    whole.add(folder / "photos", options=OPTIONS)
    return folder


@pytest.fixture
def index(world, tmp_path):
    shutil.copytree(world / "index", tmp_path / "index")
    return Collection.open(tmp_path / "index")


def source(world, name="new"):
    return ModelSource(checkpoint=str(world / f"{name}.safetensors"))


def num_done(index):
    return index.upgrade_state.num_done


def scores_of(matches):
    return [match.score for match in matches]


def close(scores):
    """The same pictures in another batch differ in their last digits."""
    return pytest.approx(scores, abs=2e-3)


def test_searches_encode_what_they_find_and_keep_it(world, index):
    whole = Collection.open(world / "whole")
    measured = index.upgrade_to(source(world), sample=30)
    assert measured.by == "pictures in folders"
    assert num_done(index) == measured.num_pictures == 30
    index.upgrade_to(source(world))
    assert num_done(index) == 30, "the same upgrade goes on"
    index.shortlist = 3
    before = num_done(index)
    first = index.search("a red kite", k=3)
    assert num_done(index) == before + 3
    # What the old model proposes is ranked by the new one, among all that the new one has.
    scores = {match.path: match.score for match in whole.search("a red kite", k=NUMBER)}
    done = set(range(NUMBER)) - {index.snapshot.place(one) for one in NewSpace.of(index.store).left()}
    paths = [row["path"] for row in rows_of(index.snapshot)]
    assert scores_of(first) == close(sorted((scores[paths[place]] for place in done), reverse=True)[:3])
    assert scores_of(first) == close([scores[match.path] for match in first])
    # Another process sees it, and all pictures make it the new model's answer.
    index.search("a red kite", k=3, encode=False)
    assert num_done(index) == before + 3
    index.search("a red kite", k=3)
    assert num_done(index) == before + 6, "the shortlist is of pictures that are not encoded yet"
    index.shortlist = NUMBER
    index.search("anything", k=1)
    assert num_done(index) == NUMBER
    other = Collection.open(index.path)
    for query in ({"text": "a red kite"}, {"like": [5]}, {"text": "a hill", "where": ["width<100"]}):
        assert scores_of(other.search(**query, k=9)) == close(scores_of(whole.search(**query, k=9)))


def test_the_old_space_goes_when_all_is_done(world, index, tmp_path):
    old = set(index.path.iterdir())
    index.upgrade_to(source(world), sample=8)
    index.upgrade(options=OPTIONS)
    assert index.upgrade_state is None
    assert_same_rows(index, Collection.open(world / "whole"))
    assert_same_rows(Collection.open(index.path), Collection.open(world / "whole"))
    assert not [path for path in old if path.suffix == ".float16" and path.exists()]
    assert index.upgrade_to(source(world)) is None
    # What comes now is encoded by the new model, also where a process had loaded the one of before.
    draw(tmp_path / "more" / "one.png", 77)
    assert index.add(tmp_path / "more", options=OPTIONS).num_encoded == 1
    fresh = Collection.create(tmp_path / "fresh", source(world))
    fresh.add(tmp_path / "more", options=OPTIONS)
    np.testing.assert_allclose(index.snapshot.vectors[-1], fresh.snapshot.vectors[0], atol=2e-3)


def test_a_copy_goes_on_where_the_index_was(world, index, tmp_path):
    index.upgrade_to(source(world), sample=20)
    copy = Collection.create_copy(tmp_path / "copy", index)
    assert (num_done(copy), copy.upgrade_state.measured) == (20, index.upgrade_state.measured)
    assert copy.upgrade(options=OPTIONS).num_encoded == NUMBER - 20
    assert_same_rows(copy, Collection.open(world / "whole"))


def test_how_pictures_are_read_stays(telling_file, world, tmp_path):
    exact = attrs.evolve(OPTIONS, decode="exact")
    index = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    index.add(world / "photos", options=exact)
    index.use_vectors("int8", show_progress=False)
    index.upgrade_to(source(world), sample=1)
    index.upgrade(options=OPTIONS)
    about = Collection.open(index.path).store.about
    assert (about.decode, about.vectors, about.model) == ("exact", "int8", source(world))


def test_pictures_that_are_gone_moved_or_changed_stay_and_are_named(telling_file, world, tmp_path):
    photos = tmp_path / "photos"
    for number in range(12):
        draw(photos / f"{number:02d}.png", number)
    pack(photos / "shard.tar", 20, 21, 22)
    index = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(telling_file)))
    index.add(photos, options=OPTIONS)
    index.upgrade_to(source(world), sample=1)
    (photos / "03.png").unlink()
    (photos / "04.png").rename(photos / "moved.png")
    draw(photos / "05.png", 55)
    report = index.upgrade(options=OPTIONS)
    assert not report.is_done
    assert report.left == {"gone": 2, "changed": 1}
    assert {(path.rsplit("/", 1)[1], why) for path, why in report.named} == {
        *(("03.png", "gone"), ("04.png", "gone"), ("05.png", "changed"))
    }
    assert num_done(index) == 12
    assert len(index.search("a kite", k=20)) == 13, "a changed picture keeps its place; of files that are gone, none"
    index.add(photos, options=OPTIONS)
    report = index.upgrade(options=OPTIONS)
    assert report.is_done
    assert not report.left
    fresh = Collection.create(tmp_path / "fresh", source(world))
    fresh.add(photos, options=OPTIONS)
    assert_same_rows(index, fresh)


def test_a_worse_model_is_refused_unless_forced(world, index):
    with fails("collections.worse-these-pictures-take", "blind.safetensors"):
        index.upgrade_to(source(world, "blind"))
    assert index.upgrade_state is None
    measured = index.upgrade_to(source(world, "blind"), force=True)
    assert measured.is_worse
    assert measured.new < 0.3
    assert measured.old > 0.4
    with fails("collections.index-being-upgraded-already", "blind.safetensors"):
        index.upgrade_to(source(world))
    index.cancel_upgrade()
    assert index.upgrade_state is None
    assert not index.upgrade_to(source(world), sample=30).is_worse


def test_captions_tell_which_model_is_better(world, index):
    photos = {path.stem: path for path in (world / "photos").rglob("*.png")}
    captions = [path.with_suffix(".txt") for path in photos.values()]
    try:
        for path in captions:
            path.write_text(f"a kite over {path.stem} hills", encoding="utf-8")
        assert index.upgrade_to(source(world), force=True).by == "captions beside the pictures"
    finally:
        for path in captions:
            path.unlink()


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_is_lost_and_no_picture_is_there_twice(world, index, tmp_path, num_kills):
    photos = world / "photos" / "0"
    index.concepts.add("mein Fahrrad", yes=[photos / "00.png", photos / "01.png"], no=[draw(tmp_path / "no.png", 99)])
    tags = index.tag(["a kite", "a hill"], template="a photo of {}", share=0.2, show_progress=False)
    index.upgrade_to(source(world), sample=1)
    space, draw_moment = NewSpace.of(index.store), np.random.default_rng(5)
    for _ in range(num_kills):
        _, before, vectors = space.since(0)
        job = preloaded().start("-c", FILL, index.path, 40, folder=index.path.parent)
        wanted = len(before) + int(draw_moment.integers(0, 3))
        wait_for(lambda wanted=wanted: num_done(index) >= wanted, job, every=0.0)
        time.sleep(float(draw_moment.uniform(0, 0.03)))
        job.kill()
        job.communicate()
        assert job.returncode == -signal.SIGKILL, "it had ended before"
        _, ids, kept = space.since(0)
        assert len(set(ids.tolist())) == len(ids)
        np.testing.assert_array_equal(ids[: len(before)], before)
        np.testing.assert_array_equal(kept[: len(before)], vectors)
        assert len(index.concepts["mein Fahrrad"].examples) == 3
        assert read_words(index.path).words == tags.words
    left = NUMBER - num_done(index)
    assert index.upgrade(options=OPTIONS).num_encoded == left > 0, "nothing is encoded again"
    fresh, whole = Collection.open(index.path), Collection.open(world / "whole")
    assert_same_rows(fresh, whole)
    assert_own_things_are_there(fresh, photos, tags)


def assert_own_things_are_there(index, photos, tags):
    """Check that a concept of three examples and the tags are in the space that an index has."""
    concept, words, places = index.concepts["mein Fahrrad"], index.snapshot.words, index.snapshot.place
    inside = {match.path: match.id for match in index.search("a", where=[f"path~{photos}"], k=9)}
    for one, vector in zip(concept.examples, concept.vectors, strict=True):
        if one.is_yes:
            np.testing.assert_array_equal(vector, index.snapshot.vectors[places(inside[one.path])])
    assert (len(concept.examples), concept.about.identity) == (3, index.store.about.identity)
    assert (words.words, words.template, words.share) == (tags.words, tags.template, tags.share)


@pytest.mark.parametrize("at", ["follow", "tag"])
def test_killed_when_the_old_space_is_gone_concepts_and_tags_follow_when_they_are_asked_for(world, index, tmp_path, at):
    photos = world / "photos" / "0"
    index.concepts.add("mein Fahrrad", yes=[photos / "00.png", photos / "01.png"], no=[draw(tmp_path / "no.png", 99)])
    tags = index.tag(["a kite", "a hill"], template="a photo of {}", share=0.2, show_progress=False)
    index.upgrade_to(source(world), sample=1)
    job = preloaded().start("-c", KILLED.format(at=at), index.path, folder=index.path.parent)
    job.communicate()
    assert job.returncode == -signal.SIGKILL
    fresh = Collection.open(index.path)
    assert fresh.upgrade_state is None
    assert fresh.search('@"mein Fahrrad"', k=3)
    with fails("collections.tags-index-now-write", "telling.safetensors", "new.safetensors"):
        fresh.search("a", where=["tag=a kite"])
    assert fresh.upgrade(options=OPTIONS) == UpgradeReport(num_encoded=0, is_done=True, left={})
    assert_own_things_are_there(fresh, photos, tags)


def test_several_processes_at_once(world, index):
    index.upgrade_to(source(world), sample=1)
    job = preloaded().start("-c", FILL, index.path, 60, folder=index.path.parent)
    wait_for(lambda: num_done(index) >= 3, job, every=0.005)
    with fails("storage.another-job-working-wait", str(index.path / UPGRADE)):
        index.upgrade(options=OPTIONS)
    index.shortlist = 10
    for text in ("a kite", "a hill", "a bicycle"):
        assert len(index.search(text, k=5)) == 5
    output, _ = job.communicate()
    assert job.returncode == 0, output
    assert_same_rows(Collection.open(index.path), Collection.open(world / "whole"))
    # This one still has both spaces, as they were when it was opened.
    assert len(index.search("a kite", k=5)) == 5
    index.refresh()
    whole = Collection.open(world / "whole")
    assert scores_of(index.search("a kite", k=5)) == close(scores_of(whole.search("a kite", k=5)))


def test_a_text_tower_beside_searches_the_old_space_alone(telling_file, world, index, tmp_path):
    index.upgrade_to(source(world), sample=1)
    main(["convert", str(telling_file), "-o", str(tmp_path / "text.safetensors"), "--tower", "text"])
    beside = Collection.open(index.path, text_model=tmp_path / "text.safetensors")
    before = Collection.open(world / "index")
    assert scores_of(beside.search("a kite")) == close(scores_of(before.search("a kite")))
    assert num_done(index) == 1


def test_an_upgrade_whose_model_is_gone_leaves_the_old_one(world, index, tmp_path):
    shutil.copy(world / "new.safetensors", tmp_path / "lost.safetensors")
    index.upgrade_to(ModelSource(checkpoint=str(tmp_path / "lost.safetensors")), sample=1)
    (tmp_path / "lost.safetensors").unlink()
    found, expected = (Collection.open(one).search("a kite") for one in (index.path, world / "index"))
    assert scores_of(found) == scores_of(expected)


def test_the_command_says_what_it_does(world, index, capsys):
    def run(*arguments):
        main(["upgrade", str(index.path), *arguments])
        return capsys.readouterr()

    told = run("--to", str(world / "new.safetensors"), "--sample", "24")
    assert "both models agree on" in told.out
    assert f"24 of {NUMBER} pictures" in told.out
    main(["search", "a kite", "--index", str(index.path), "--json", "-k", "2"])
    told = capsys.readouterr()
    assert len(json.loads(told.out)) == 2
    assert "pictures (" in told.err
    main(["info", str(index.path)])
    assert json.loads(capsys.readouterr().out)["upgrade"]["pictures"] == num_done(index)
    assert "searches encode what they find" in run("--status").out
    assert f"all {NUMBER} pictures are done" in run("--rate", "1000", "--quiet").out
    assert "is not being upgraded" in run("--status").out


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_is_positive(world, index, rate):
    with fails("collections.rate-more-pictures-per", str(rate)):
        index.upgrade(rate=rate)


def test_what_is_held_is_held_by_one(index):
    with storage.exclusive(index.path), fails("storage.another-job-working-wait", str(index.path)):
        index.cancel_upgrade()
