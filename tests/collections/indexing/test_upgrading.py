"""An index that is brought to another model: in chunks, killed at any moment, swapped in one step."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from mobileclip.cli import main
from mobileclip.collections import Collection, IndexOptions, ModelSource
from mobileclip.collections.store import read_transaction
from mobileclip.encoders import save_model
from tests.collections.pictures import add, assert_same_rows, draw, draw_all, index_of, pack, rows_of, telling
from tests.errors import fails
from tests.preloaded import preloaded
from tests.waiting import wait_for

NUMBER = 120
UPGRADE = """
import os, signal, sys
from mobileclip.collections import Collection, Concepts, IndexOptions, ModelSource
for kind in (Concepts, Collection):
    if hasattr(kind, sys.argv[3]):
        setattr(kind, sys.argv[3], lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
few = {} if sys.argv[3] else {"batch_size": 1, "segment_rows": 2}
options = IndexOptions(show_progress=False, precision="float32", **few)
Collection.open(sys.argv[1]).upgrade(ModelSource(checkpoint=sys.argv[2]), options=options)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, telling_file):
    """Pictures, an index of them, another model, and an index of that one."""
    folder = tmp_path_factory.mktemp("upgrading")
    draw_all(folder / "photos", range(NUMBER))
    save_model(telling(3), folder / "new.safetensors")
    for name, checkpoint in (("index", telling_file), ("whole", folder / "new.safetensors")):
        index_of(folder / name, checkpoint, folder / "photos", precision="float32", batch_size=4)
    return folder


@pytest.fixture
def index(world, tmp_path):
    return Collection.open(shutil.copytree(world / "index", tmp_path / "index"))


@pytest.fixture
def tags(world, index):
    """A concept of two examples, and tags, which are returned."""
    index.concepts.add("mein Fahrrad", positive=[world / "photos" / f"{number}.png" for number in range(2)])
    return index.tag(["a kite", "a hill"], template="a photo of {}", share=0.2, show_progress=False)


def source(world):
    return ModelSource(checkpoint=str(world / "new.safetensors"))


def upgrade(index, world):
    options = IndexOptions(show_progress=False, precision="float32", batch_size=4, segment_rows=50)
    return index.upgrade(source(world), options=options)


def start_upgrade(index, world, killed_at=""):
    given = (index.path, world / "new.safetensors", killed_at)
    return preloaded().start("-c", UPGRADE, *given, folder=index.path.parent)


def upgraded(folder):
    """Return the ids of the pictures that the other model has encoded, with their embeddings."""
    with read_transaction(folder) as db:
        return dict(db.execute("SELECT id, embedding FROM upgraded ORDER BY id").fetchall())


def test_an_upgraded_index_is_as_one_of_the_other_model(world, index, tmp_path):
    reader, whole = Collection.open(index.path), Collection.open(world / "whole")
    before = reader.search("a kite", k=5)
    assert upgrade(index, world) == {}
    for one in (index, Collection.open(index.path)):
        assert_same_rows(one, whole)
    assert (upgraded(index.path), upgrade(index, world)) == ({}, {}), "it is of that model"
    # Who has read it before goes on with the model of before.
    assert reader.search("a kite", k=5) == before
    reader.refresh()
    found, expected = reader.search("a kite", k=5), whole.search("a kite", k=5)
    assert [one.path for one in found] == [one.path for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=2e-3)
    # What comes now is encoded by the new model, also where a process had loaded the one of before.
    draw(tmp_path / "more" / "one.png", 777)
    assert add(index, tmp_path / "more", precision="float32").num_encoded == 1
    fresh = index_of(tmp_path / "fresh", world / "new.safetensors", tmp_path / "more", precision="float32")
    np.testing.assert_allclose(index.snapshot.vectors[-1], fresh.snapshot.vectors[0], atol=2e-3)


def test_with_pictures_that_cannot_be_read_the_index_stays_and_they_are_named(make, world, tmp_path, telling_file):
    photos = draw_all(tmp_path / "photos", range(12))
    pack(photos / "shard.tar", 20, 21, 22)
    index = make("old", photos)
    (photos / "3.png").unlink()
    (photos / "4.png").rename(photos / "moved.png")
    draw(photos / "5.png", 55)
    problems = {path.rsplit("/", 1)[1]: why for path, why in upgrade(index, world).items()}
    assert problems == {"3.png": "gone", "4.png": "gone", "5.png": "changed"}
    assert Collection.open(index.path).store.about.model == ModelSource(checkpoint=str(telling_file))
    assert len(index.search("a kite", k=20)) == 13, "a changed picture keeps its place; of files that are gone, none"
    assert len(upgraded(index.path)) == 12
    add(index, photos, precision="float32")
    assert upgrade(index, world) == {}
    assert_same_rows(index, index_of(tmp_path / "fresh", world / "new.safetensors", photos, precision="float32"))


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_is_lost_and_searches_use_the_old_model(world, index, tags, num_kills):
    answer, draw_moment = index.search("a kite", k=5), np.random.default_rng(5)
    for _ in range(num_kills):
        before = upgraded(index.path)
        job = start_upgrade(index, world)
        wanted = len(before) + int(draw_moment.integers(1, 3))
        wait_for(lambda wanted=wanted: len(upgraded(index.path)) >= wanted, job, every=0.0)
        time.sleep(float(draw_moment.uniform(0, 0.01)))
        job.kill()
        job.communicate()
        assert job.returncode == -signal.SIGKILL, "it had ended before"
        after = upgraded(index.path)
        assert before.items() <= after.items()
        assert len(after) >= wanted
        assert Collection.open(index.path).search("a kite", k=5) == answer
    assert upgrade(index, world) == {}
    fresh = Collection.open(index.path)
    assert_same_rows(fresh, Collection.open(world / "whole"))
    assert_own_things_are_there(fresh, tags)


def assert_own_things_are_there(index, tags):
    """Check that a concept of two examples and the tags are in the space that an index has."""
    concept, words = index.concepts["mein Fahrrad"], index.snapshot.words
    own = {row["path"]: vector for row, vector in zip(rows_of(index.snapshot), index.snapshot.vectors, strict=True)}
    np.testing.assert_array_equal(concept.vectors, [own[one.path] for one in concept.examples])
    assert (len(concept.examples), concept.about.identity) == (2, index.store.about.identity)
    assert (words.words, words.template, words.share) == (tags.words, tags.template, tags.share)


@pytest.mark.parametrize("at", ["migrate", "tag"])
def test_killed_when_the_index_is_of_the_new_model_concepts_and_tags_follow_later(world, index, tags, at):
    job = start_upgrade(index, world, at)
    job.communicate()
    assert job.returncode == -signal.SIGKILL
    fresh = Collection.open(index.path)
    assert fresh.store.about.model == source(world)
    assert fresh.search('@"mein Fahrrad"', k=3)
    with fails(ValueError, "telling.safetensors", "new.safetensors"):
        fresh.search("a", where=["tag=a kite"])
    assert upgrade(fresh, world) == {}
    assert_own_things_are_there(fresh, tags)


def test_the_command_upgrades_or_names_what_it_cannot_read(make, world, index, capsys, tmp_path):
    main(["upgrade", "--index", str(index.path), "--to", str(world / "new.safetensors"), "-j", "1", "--quiet"])
    capsys.readouterr()
    main(["info", str(index.path)])
    told = json.loads(capsys.readouterr().out)
    assert (told["images"], "new.safetensors" in told["model"]) == (NUMBER, True)
    lost = make("lost", draw(tmp_path / "gone.png", 5), decode="exact")
    assert upgrade(lost, world) == {}
    about = Collection.open(lost.path).store.about
    assert (about.decode, about.model) == ("exact", source(world)), "how pictures are read stays"
    (tmp_path / "gone.png").unlink()
    with pytest.raises(SystemExit):
        main(["upgrade", "--index", str(lost.path), "--to", "icons", "--quiet"])
    assert "gone.png" in capsys.readouterr().err
