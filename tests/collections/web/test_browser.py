"""The page of an index as people use it, in a real browser, and as axe finds it and a keyboard reaches it."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from mobileclip.collections import Collection
from tests import serve_picture
from tests.axe import findings
from tests.browser import CHROMIUM, open_page
from tests.collections.pictures import add, draw, draw_all
from tests.collections.web.served import make_index, running
from tests.datasets.made_videos import film

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]

ROOT = Path(__file__).parents[3]


def at(name):
    """Return what finds an element in JavaScript, by its id."""
    return f"document.getElementById('{name}')"


TILE = "document.querySelector('.tile')"
TILES = "document.querySelectorAll('.tile').length"
ALL_TILES = "[...document.querySelectorAll('.tile')]"
STATUS = f"{at('status')}.textContent"
ACTIVE = f"{ALL_TILES}.indexOf(document.activeElement)"
FOCUS = "document.activeElement.id"
OPEN = f"{at('one')}.open"
SHOWN = f"{OPEN} && {at('one-picture')}.naturalWidth > 0"
WIDTH = "document.documentElement.scrollWidth"
CODES = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "/": 191}


@pytest.fixture(scope="module")
def address(collection):
    with running(collection) as found:
        yield found


@contextmanager
def shown(address, **options):
    """Yield a page of which the browser has nothing to complain in the end."""
    with open_page(address, **{"width": 1280, **options}) as page:
        yield page
        assert page.complaints == []


def click(page, name):
    page.evaluate(f"{at(name)}.click()")


def search(page, text, **fields):
    for name, value in {"text": text, **fields}.items():
        page.evaluate(f"{at(name)}.value = {json.dumps(value)}")
    click(page, "find")


def press(page, *keys):
    for key in keys:
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        page.press(key, code=CODES.get(key) or ord(key.upper()), text=text)


def reload(page):
    page.load(page.evaluate("location.href"), width=1280)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True), (390, False), (1280, True)])
def test_the_page_shows_the_collection_what_is_found_and_why_and_all_of_it_fits(address, width, dark):
    with shown(address, width=width, dark=dark) as page:
        page.wait_for("document.querySelector('.start')?.innerText.includes('8 images')")
        page.wait_for(f"{TILES} > 0 && {TILES} < 7")
        page.evaluate(f"{at('conditions')}.open = true")
        page.wait_for(f"!{at('columns')}.hidden")
        offered = page.evaluate(f"[...{at('column')}.options].map(one => one.value)")
        assert ("width" in offered, "camera" in offered, page.evaluate(WIDTH)) == (True, False, width)
        search(page, "a cat")
        page.wait_for(f"{TILES} === 8")
        page.evaluate("document.querySelectorAll('img').forEach(one => { one.loading = 'eager' })")
        page.wait_for("[...document.querySelectorAll('.tile img')].every(one => one.complete && one.naturalWidth)")
        assert (page.evaluate(WIDTH), page.evaluate("document.title")) == (width, "a cat – My photos")
        assert "\\x1b[31m" in page.evaluate(f"{at('results')}.innerText")
        assert page.evaluate("document.querySelectorAll('script').length") == 1
        assert all(one.startswith(address) for one in page.requests)
        # A map lies over the square that the model sees.
        page.evaluate(f"{TILE}.focus()")
        page.wait_for("document.querySelector('.tile .why') !== null")
        box = "document.querySelector('.tile .why').getBoundingClientRect()"
        # Frames are as wide as 4 to 3, pictures as 6 to 5, so that their heights are the same.
        frame = page.evaluate("document.querySelector('.tile .frame').clientHeight")
        sides = page.evaluate(f"(({{width, height}}) => [width, height])({box})")
        assert sides == pytest.approx([frame, frame], abs=1)
        page.evaluate(f"{TILE}.blur()")
        page.wait_for("!document.querySelector('.why')")
        page.evaluate(f"{TILE}.click()")
        page.wait_for(SHOWN)
        assert page.evaluate(WIDTH) == width
        click(page, "why")
        page.wait_for("document.querySelector('dialog .why') !== null")
        assert page.evaluate(f"{at('one-scale')}.textContent").startswith("Full colour is")
        assert page.evaluate(WIDTH) == width
        click(page, "close")
        page.evaluate(f"{at('column')}.value = 'width'")
        page.evaluate(f"{at('column')}.dispatchEvent(new Event('change'))")
        page.evaluate(f"{at('value')}.value = '5000'")
        click(page, "add")
        page.wait_for(f"{STATUS} === 'Nothing was found.'")
        assert page.evaluate(f"{at('where')}.value") == "width>=5000"


def test_every_search_is_an_address(address):
    query = "location.search"
    with shown(address) as page:
        search(page, "a cat")
        page.wait_for(f"{TILES} === 8 && {query} === '?text=a+cat'")
        search(page, "a cat", where='path~"copy of"')
        page.wait_for(f"{TILES} === 1")
        page.evaluate("history.back()")
        page.wait_for(f"{TILES} === 8 && {at('where')}.value === ''")
        page.evaluate("history.forward()")
        page.wait_for(f"{TILES} === 1")
        reload(page)
        page.wait_for(f"{TILES} === 1 && {at('where')}.value === '\"path~copy of\"'")
        page.evaluate(f"{TILE}.click()")
        click(page, "similar")
        page.wait_for(f"{query}.includes('like=')")
        reload(page)
        page.wait_for(f"{at('like-name')}.textContent.endsWith('copy of 2.png')")
        click(page, "duplicates")
        page.wait_for(f"{query} === '?duplicates=1'")
        assert page.evaluate("document.querySelector('h1 a').href") == address


def test_results_go_on_as_far_as_one_looks(make, tmp_path):
    for number in range(130):
        draw(tmp_path / "many" / f"{number}.png", number, size=(64, 64))
    with running(make("index", tmp_path / "many")) as address, shown(f"{address}?text=a+cat") as page:
        page.wait_for(f"{TILES} === 60")
        for number in (120, 130):
            page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
            page.wait_for(f"{TILES} === {number}")
        page.wait_for(f"{at('more')}.hidden")
        assert page.evaluate(f"new Set({ALL_TILES}.map(one => one.title)).size") == 130
        left = page.evaluate("scrollY")
        search(page, "a dog")
        page.wait_for(f"{TILES} === 60 && scrollY === 0")
        page.evaluate("history.back()")
        page.wait_for(f"{TILES} === 130 && Math.abs(scrollY - {left}) < 2")


def test_what_is_asked_for_is_chips_that_can_be_removed(address):
    chips = "[...document.querySelectorAll('#chips .chip span')].map(one => one.textContent).join('|')"
    with open_page(f"{address}?text=a+cat&not=a+dog&not=a+hill&where=width%3E1&where=path~copy", width=390) as page:
        page.wait_for(f"{TILES} === 1")
        assert page.evaluate(chips) == "a cat|Width (pixels) above 1|Folder contains copy|not a dog|not a hill"
        for number, left in ((3, "a cat|Width (pixels) above 1|Folder contains copy|not a hill"), (0, None)):
            page.evaluate(f"document.querySelectorAll('#chips button')[{number}].click()")
            page.wait_for(f"{chips} === {json.dumps(left)}" if left else f"!{chips}.startsWith('a cat')")
        page.evaluate("[...document.querySelectorAll('#chips button')].at(-1).click()")
        page.wait_for(f"{STATUS} === '1 image, newest first' && {TILES} === 1")
        search(page, "", where="colour=red")
        page.wait_for(f"{at('conditions')}.open && {FOCUS} === 'where'")


def test_polling_leaves_a_question_alone_and_results_stay_without_a_server(address):
    with open_page(f"{address}?text=a+cat", width=1280) as page:
        page.wait_for(f"{TILES} === 8")
        page.evaluate(
            "window.kept = fetch; window.fetch = (address, options) => address.startsWith('/api/search')"
            " ? new Promise(done => { window.answer = () => done(kept(address, options)) }) : kept(address, options)"
        )
        search(page, "a dog")
        page.wait_for("window.answer !== undefined")
        page.evaluate("window.polled = 0; kept('/api/collection').then(() => { window.polled = 1 })")
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for("polled === 1")
        assert page.evaluate(STATUS) == "…"
        page.evaluate("answer()")
        page.wait_for(f"{STATUS}.startsWith('8 images')")
        page.evaluate("window.fetch = () => Promise.reject(new Error('gone'))")
        search(page, "a hill")
        page.wait_for(f"{STATUS}.includes('does not answer')")
        assert page.evaluate(TILES) == 8


def test_large_groups_of_similar_pictures_are_counted_and_the_threshold_changes(make, tmp_path):
    for number in range(40):
        draw(tmp_path / "many" / f"{number}.png", 2)
    with running(make("index", tmp_path / "many")) as address, open_page(f"{address}?duplicates=1", width=390) as page:
        page.wait_for(f"{TILES} === 24")
        assert page.evaluate("document.querySelector('#results h2').textContent").startswith("40 images")
        assert page.evaluate("document.querySelectorAll('.keep').length >= 1")
        tops = f"{ALL_TILES}.slice(0, 2).map(one => one.getBoundingClientRect().top)"
        assert page.evaluate(f"new Set({tops}).size") == 1
        assert "96 × 80" in page.evaluate("document.querySelector('.tile .detail').textContent")
        page.evaluate(f"{at('threshold')}.value = '0.9'")
        page.evaluate(f"{at('threshold')}.form.requestSubmit()")
        page.wait_for(f"location.search === '?duplicates=1&threshold=0.9' && {TILES} === 24")
        assert page.evaluate(WIDTH) == 390


def test_everything_is_done_by_keys(address):
    with open_page(address, width=1280) as page:
        page.wait_for(f"{FOCUS} === 'text'")
        press(page, "c", "a", "t", "Enter")
        page.wait_for(f"{TILES} === 8")
        places = []
        for key in ("ArrowDown", "ArrowRight", "ArrowDown", "ArrowUp"):
            press(page, key)
            places.append(page.evaluate(ACTIVE))
        assert (places[:2], places[2] > 2, places[3]) == ([0, 1], True, 1)
        press(page, "Enter")
        page.wait_for(OPEN)
        first = page.evaluate(f"{at('one-name')}.textContent")
        press(page, "ArrowRight")
        assert page.evaluate(f"{at('one-name')}.textContent") != first
        press(page, "Escape")
        page.wait_for(f"!{OPEN}")
        page.wait_for(f"{ACTIVE} === 2")
        press(page, "/")
        page.wait_for(f"{FOCUS} === 'text'")
        assert page.evaluate(f"{at('text')}.value") == "cat"


@pytest.mark.parametrize("width", [390, 1280])
def test_one_picture_leads_to_the_others_and_to_its_file(make, tmp_path, width):
    index = make("index", draw_all(tmp_path / "photos", range(70)))
    index.tag(["a cat", "a hill"], share=0.9, show_progress=False)
    name, facts = (f"{at(f'one-{one}')}.textContent" for one in ("name", "facts"))
    with running(index) as address, shown(f"{address}?text=a+cat", width=width) as page:
        page.wait_for(f"{TILES} >= 60")
        best, *others = index.search("a cat", k=70)
        page.evaluate(f"{TILE}.click()")
        assert page.evaluate(f"{at('previous')}.disabled")
        assert f"score {best.score:.3f}" in page.evaluate(facts)
        seen = [page.evaluate(facts)]
        for wanted in others:
            click(page, "next")
            page.wait_for(f"{name} === {json.dumps(wanted.name)}")
            seen.append(page.evaluate(facts))
        assert sum("a cat" in one.partition("tags: ")[2] for one in seen) == 63
        assert page.evaluate(f"{at('next')}.disabled")
        last = others[-2].name
        click(page, "previous")
        page.wait_for(f"{name} === {json.dumps(last)}")
        fetched = f"fetch({at('original')}.href).then(one => one.arrayBuffer())"
        assert bytes(page.evaluate(f"{fetched}.then(one => [...new Uint8Array(one)])")) == Path(last).read_bytes()
        page.evaluate("navigator.clipboard.writeText = one => { window.copied = one; return Promise.resolve() }")
        click(page, "copy")
        page.wait_for(f"{at('copy')}.textContent === 'Path copied'")
        assert (page.evaluate("copied"), page.evaluate(WIDTH)) == (last, width)


def test_similar_pictures_and_a_picture_of_ones_own_alone_or_with_a_text(address, collection):
    photos, chip = collection.path.parent / "photos", f"{at('like')}.hidden"
    with shown(address) as page:
        page.choose_files("#picture", photos / "4.png")
        page.wait_for(f"{TILES} === 8 && !{chip}")
        assert page.evaluate("document.querySelector('.tile .path').textContent") == "4.png"
        page.evaluate(f"{ALL_TILES}.find(one => one.title.endsWith('/2.png')).click()")
        click(page, "similar")
        page.wait_for(f"!{OPEN} && {STATUS}.startsWith('8 images')")
        first_two = f"{ALL_TILES}.slice(0, 2).map(one => one.title.split('/').pop())"
        page.wait_for(f"{first_two}.sort().join() === '2.png,copy of 2.png'")
        page.drop_files("main", photos / "5.png")
        page.wait_for("document.querySelector('.tile .path').textContent === '5.png'")
        search(page, "a cat")
        page.wait_for(f"{chip} && {TILES} === 8")
        page.choose_files("#picture", photos / "4.png")
        page.wait_for(f"!{chip} && {at('text')}.value === ''")
        click(page, "both")
        search(page, "a cat")
        page.wait_for(f"!{chip} && {STATUS}.startsWith('8 images') && location.search === '?text=a+cat'")


def test_a_video_is_found_once_or_by_every_frame_and_opens_at_the_time_of_one(make, tmp_path):
    film(tmp_path / "videos/clip.webm", [1, 2, 3], codec="libvpx")
    draw(tmp_path / "videos/0.png", 0)
    index = make("index", tmp_path / "videos", video_seconds=2)
    with running(index) as address, shown(address, width=390) as page:
        search(page, "a cat")
        page.wait_for(f"{TILES} === 2")
        page.evaluate("document.querySelector('details').open = true")
        for count in (4, 2):
            click(page, "frames")
            page.wait_for(f"{TILES} === {count}")
        assert page.evaluate(WIDTH) == 390
        search(page, "a cat", where="time=4")
        page.wait_for(f"{TILES} === 1 && {TILE}.innerText.includes('clip.webm 0:04')")
        page.evaluate(f"{TILE}.click()")
        page.wait_for(f"!{at('one-video')}.hidden && Math.abs({at('one-video')}.currentTime - 4) < 0.3")
        page.wait_for(f"{at('one-picture')}.hidden")
        click(page, "close")
        page.wait_for(f"{at('one-video')}.hidden")


def test_empty_changing_and_broken_indexes_are_told(make, tmp_path, telling_file):
    with running(make("empty")) as address, open_page(address, width=390) as page:
        page.wait_for(f"{STATUS}.startsWith('The index is empty')")
        search(page, "a cat")
        page.wait_for(f"{STATUS}.startsWith('The index is empty')")
    full = make_index(tmp_path, telling_file)
    with running(full) as address, open_page(address, width=390) as page:
        search(page, "a cat")
        page.wait_for(f"{TILES} === 8")
        add(full, draw(tmp_path / "new" / "new.png", 40), num_workers=1)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for(f"{STATUS}.startsWith('The index has changed')")
        (full.path.parent / "photos" / "1.png").unlink()
        search(page, "a cat")
        page.wait_for(f"{TILES} === 8 && document.body.innerText.includes('new.png')")  # what is gone is not found
        (full.path / "index.sqlite").write_bytes(b"no database")
        search(page, "a cat")
        page.wait_for(f"{STATUS}.includes('damaged')")
        assert (page.evaluate(f"{at('status')}.className"), page.evaluate(WIDTH)) == ("problem", 390)


def test_the_picture_of_the_readme_is_of_photographs_the_likest_first(tmp_path, monkeypatch):
    with serve_picture.page_of_photographs() as page:
        names = page.evaluate(f"{ALL_TILES}.map(one => one.innerText.split('\\n').at(-1))")
        assert names[:3] == ["gravel.jpg", "grass.jpg", "brick.jpg"]
        assert page.evaluate(f"{at('like-name')}.textContent") == "like gravel.jpg"
    monkeypatch.setattr(serve_picture, "FILE", tmp_path / "serve.png")
    serve_picture.main()
    with Image.open(tmp_path / "serve.png") as drawn, Image.open(ROOT / "docs" / "serve.png") as kept:
        assert drawn.width == kept.width
        assert abs(drawn.height - kept.height) < 60  # as tall as this machine's letters make it


@pytest.fixture
def taught(tmp_path, telling_file):
    """An index with tags and two concepts."""
    index = make_index(tmp_path, telling_file)
    words = ["a cat", "words that are far too long for one line under a small picture"]
    index.tag(words, share=0.5, show_progress=False)
    index.concepts.add("my bike", text="a bike", positive=[tmp_path / "photos" / "1.png"])
    index.concepts.add("Zoë's Fahrrad 🚲")
    return index


# What each address shows, and what is done there before it is looked at.
STATES = {
    "": f"{TILES} > 0",
    "?text=a+cat": f"{TILES} === 8",
    "?text=%40%22my+bike%22": "document.querySelectorAll('.judge').length === 16",
    "?duplicates=1": f"{TILES} > 1",
    "?text=a+hill": f"({at('conditions')}.open = true) && !{at('columns')}.hidden",
    "?text=a+kite": f"{TILES} === 8 && ({OPEN} || {TILE}.click())",
    "?text=a+cat&where=colour%3Dred": f"{at('status')}.className === 'problem'",
}


def test_axe_finds_nothing_and_all_of_it_fits(taught):
    with running(taught) as address, open_page("about:blank", width=1280) as page:
        for width, dark in ((1280, False), (390, True), (390, False), (1280, True)):
            for query, ready in STATES.items():
                page.load(address + query, width=width, dark=dark)
                page.wait_for(ready)
                assert findings(page) == [], (query, width, dark)
                assert page.evaluate(WIDTH) == width, query


def test_a_concept_is_kept_accepts_and_rejects_by_keys_and_is_found_on_the_start_page(taught):
    def is_pressed(kind, value):
        return f"{at(f'{kind}-{number}')}?.getAttribute('aria-pressed') === '{value}'"

    with running(taught) as address, shown(f"{address}?text=a+cat") as page:
        page.wait_for(f"{TILES} === 8 && {STATUS}.endsWith('first')")
        page.evaluate(f"{at('text')}.focus()")
        press(page, "ArrowDown", "ArrowRight")
        second = page.evaluate(FOCUS)
        assert second.startswith("tile-")
        page.evaluate(f"{at('keep')}.focus()")
        press(page, "Enter")
        page.wait_for(f"{STATUS}.startsWith('0 images show “a cat”')")
        # Tab goes from a picture to what is said of it, and the arrows on from there.
        number = second.removeprefix("tile-")
        page.evaluate(f"{at(second)}.focus()")
        for kind, other in (("yes", "no"), ("no", "yes")):
            press(page, "Tab")
            assert page.evaluate(FOCUS) == f"{kind}-{number}"
            press(page, " ")
            page.wait_for(f"{is_pressed(kind, 'true')} && {is_pressed(other, 'false')}")
            page.wait_for(f"{FOCUS} === '{kind}-{number}'")
        assert [one.is_positive for one in Collection.open(taught.path).concepts["a cat"].examples] == [False]
        press(page, "ArrowRight")
        assert page.evaluate(FOCUS) not in {second, f"no-{number}"}
        page.evaluate("history.back()")
        page.wait_for(f"location.search === '?text=a+cat' && {TILES} === 8 && !document.querySelector('.judge')")
        page.evaluate("history.forward()")
        page.wait_for(is_pressed("no", "true"))
        reload(page)
        page.wait_for(is_pressed("no", "true"))
        assert page.evaluate(f"{at('text')}.value") == '@"a cat"'
        page.evaluate("document.querySelector('.tag').click()")
        page.wait_for(f"{TILES} < 8 && {TILES} > 0")
        assert "tag=" in page.evaluate(f"{at('where')}.value")
        page.load(address, width=390)
        links = "[...document.querySelectorAll('.start a[href*=\"%40\"]')]"
        page.wait_for(f"{links}.some(one => one.textContent === 'a cat')")
