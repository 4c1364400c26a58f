"""An index that is brought to another model while it is served: a quick answer, and the rest behind it."""

import json
import urllib.parse
import urllib.request

import pytest

from mobileclip.collections import Collection, ModelSource
from mobileclip.encoders import save_model
from tests.browser import CHROMIUM, open_page
from tests.collections.pictures import draw, telling
from tests.collections.web.served import OPTIONS, running
from tests.waiting import wait_for

NUMBER, SHORTLIST, FIRST = 40, 20, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for seed, name in ((16, "old"), (3, "new")):
        save_model(telling(seed), folder / f"{name}.safetensors")
    for number in range(NUMBER):
        draw(folder / "photos" / f"{number:02d}.png", number)
    whole = Collection.create(folder / "whole", ModelSource(checkpoint=str(folder / "new.safetensors")))
    whole.add(folder / "photos", options=OPTIONS)
    return folder


@pytest.fixture
def index(files, tmp_path):
    """An index of which one picture is in the new space, and whose queries have no time to encode more than a few."""
    collection = Collection.create(tmp_path / "index", ModelSource(checkpoint=str(files / "old.safetensors")))
    collection.add(files / "photos", options=OPTIONS)
    collection.upgrade_to(ModelSource(checkpoint=str(files / "new.safetensors")), sample=1, force=True)
    collection.shortlist, collection.seconds = SHORTLIST, 0.0
    return collection


def asked(address, path, **query):
    with urllib.request.urlopen(f"{address}{path}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
        return json.load(answer)


def filled(address):
    """Return what the start page says when nothing waits any more."""

    def told():
        upgrade = asked(address, "api/collection")["upgrade"]
        return None if upgrade["num_waiting"] else upgrade

    return wait_for(told)


def test_a_query_answers_at_once_and_the_rest_is_encoded_behind_it(files, index):
    with running(index) as address:
        start = asked(address, "api/collection")["upgrade"]
        assert (start["num_done"], start["num_waiting"]) == (1, 0)
        assert start["model"].endswith("new.safetensors")
        assert "1 compared" in start["measured"]
        first = asked(address, "api/search", text="a kite", k=8)
        assert first["num_waiting"] == SHORTLIST - FIRST
        assert filled(address)["num_done"] == 1 + SHORTLIST
        again = asked(address, "api/search", text="a kite", k=8, again=1)
        assert again["num_waiting"] == 0
        assert filled(address)["num_done"] == 1 + SHORTLIST, "the same question, looked at again, encodes nothing"
        scores = {one.path: one.score for one in Collection.open(files / "whole").search("a kite", k=NUMBER)}
        assert [one["score"] for one in again["matches"]] == pytest.approx(
            [scores[one["path"]] for one in again["matches"]], abs=2e-3
        )
        assert again["matches"] != first["matches"]
        # Another process ends it, and the page goes on with the new model alone.
        Collection.open(index.path).upgrade(options=OPTIONS)
        told = asked(address, "api/collection")
        assert "upgrade" not in told
        assert told["model"].endswith("new.safetensors")
        found = asked(address, "api/search", text="a kite", k=8)
        assert found["num_waiting"] == 0
        assert {one["path"] for one in found["matches"]} == set(sorted(scores, key=scores.get)[-8:])


def test_where_the_new_model_is_gone_the_old_one_is_served(files, index):
    (files / "new.safetensors").rename(files / "away")
    try:
        with running(Collection.open(index.path)) as address:
            answer = asked(address, "api/search", text="a kite", k=8)
    finally:
        (files / "away").rename(files / "new.safetensors")
    assert (len(answer["matches"]), answer["num_waiting"]) == (8, 0)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_the_page_says_how_far_it_is_and_shows_the_new_order(index):
    order = "[...document.querySelectorAll('.tile')].map(one => one.title).join()"
    with running(index) as address, open_page(address, width=1280) as page:
        page.wait_for("document.querySelector('#upgrade progress')?.value === 1")
        assert f"1 of {NUMBER} pictures are encoded by" in page.evaluate("document.getElementById('upgrade').innerText")
        page.evaluate("document.getElementById('text').value = 'a kite'; document.getElementById('find').click()")
        page.wait_for("document.getElementById('status').textContent.includes('their order will change')")
        first = page.evaluate(order)
        page.wait_for("document.getElementById('status').textContent.endsWith('first')")
        assert page.evaluate(order) != first
        assert f"{1 + SHORTLIST} of {NUMBER} pictures" in page.evaluate("document.getElementById('about').textContent")
        assert page.complaints == []
