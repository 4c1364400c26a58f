"""The page of an index as people use it, in a real browser."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests import serve_picture
from tests.browser import CHROMIUM, open_page
from tests.collections.pictures import draw, index_of
from tests.collections.web.served import OPTIONS, make_index, running
from tests.datasets.made_videos import film

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]

ROOT = Path(__file__).parents[3]
TILES = "document.querySelectorAll('.tile').length"
STATUS = "document.getElementById('status').textContent"
ACTIVE = "[...document.querySelectorAll('.tile')].indexOf(document.activeElement)"
OPEN = "document.getElementById('one').open"
DRAWN = "[...document.querySelectorAll('.tile img')].every(one => one.complete && one.naturalWidth)"
TEXT_FIELD = "document.activeElement.id === 'text'"


@pytest.fixture(scope="module")
def collection(tmp_path_factory, telling_file):
    return make_index(tmp_path_factory.mktemp("served"), telling_file)


@pytest.fixture(scope="module")
def address(collection):
    with running(collection) as found:
        yield found


def search(page, text, **fields):
    for name, value in {"text": text, **fields}.items():
        page.evaluate(f"document.getElementById({json.dumps(name)}).value = {json.dumps(value)}")
    page.evaluate("document.getElementById('find').click()")


def key(page, name, code, text=""):
    page.press(name, code=code, text=text)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True), (390, False), (1280, True)])
def test_a_search_shows_pictures_that_fit(address, width, dark):
    with open_page(address, width=width, dark=dark) as page:
        search(page, "a cat")
        page.wait_for(f"{TILES} === 8")
        page.evaluate("document.querySelectorAll('img').forEach(one => { one.loading = 'eager' })")
        page.wait_for(DRAWN)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("document.title") == "a cat – My photos"
        assert "\\x1b[31m" in page.evaluate("document.getElementById('results').innerText")
        assert page.evaluate("document.querySelectorAll('script').length") == 1
        assert page.complaints == []
        assert all(one.startswith(address) for one in page.requests)
        page.evaluate("document.querySelector('.tile').click()")
        page.wait_for(f"{OPEN} && document.getElementById('one-picture').naturalWidth > 0")
        assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_starts_with_the_collection_and_offers_its_columns(address, width, dark):
    with open_page(address, width=width, dark=dark) as page:
        page.wait_for("document.querySelector('.start')?.innerText.includes('8 pictures')")
        page.wait_for(f"{TILES} > 0 && {TILES} < 7")
        page.evaluate("document.getElementById('conditions').open = true")
        page.wait_for("!document.getElementById('columns').hidden")
        offered = page.evaluate("[...document.getElementById('column').options].map(one => one.value)")
        assert "width" in offered
        assert "camera" not in offered
        assert page.evaluate("document.documentElement.scrollWidth") == width
        search(page, "a cat")
        page.wait_for(f"{TILES} === 8")
        page.evaluate("document.getElementById('column').value = 'width'")
        page.evaluate("document.getElementById('column').dispatchEvent(new Event('change'))")
        page.evaluate("document.getElementById('value').value = '5000'")
        page.evaluate("document.getElementById('add').click()")
        page.wait_for(f"{STATUS} === 'Nothing was found.'")
        assert page.evaluate("document.getElementById('where').value") == "width>=5000"
        assert page.complaints == []


def test_every_search_is_an_address(address):
    query = "location.search"
    with open_page(address, width=1280) as page:
        search(page, "a cat")
        page.wait_for(f"{TILES} === 8 && {query} === '?text=a+cat'")
        search(page, "a cat", where='path~"copy of"')
        page.wait_for(f"{TILES} === 1")
        page.evaluate("history.back()")
        page.wait_for(f"{TILES} === 8 && document.getElementById('where').value === ''")
        page.evaluate("history.forward()")
        page.wait_for(f"{TILES} === 1")
        page.load(page.evaluate("location.href"), width=1280)
        page.wait_for(f"{TILES} === 1 && document.getElementById('where').value === '\"path~copy of\"'")
        page.evaluate("document.querySelector('.tile').click()")
        page.evaluate("document.getElementById('similar').click()")
        page.wait_for(f"{query}.includes('like=')")
        page.load(page.evaluate("location.href"), width=1280)
        page.wait_for("document.getElementById('like-name').textContent.endsWith('copy of 2.png')")
        page.evaluate("document.getElementById('duplicates').click()")
        page.wait_for(f"{query} === '?duplicates=1'")
        assert page.evaluate("document.querySelector('h1 a').href") == address
        assert page.complaints == []


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (390, False)])
def test_a_map_lies_over_the_square_that_the_model_sees(address, width, dark):
    with open_page(address, width=width, dark=dark) as page:
        search(page, "a cat")
        page.wait_for(f"{TILES} === 8 && document.querySelector('.tile img').naturalWidth")
        page.evaluate("document.querySelector('.tile').focus()")
        page.wait_for("document.querySelector('.tile .why') !== null")
        box = "(({width, height}) => [width, height])(document.querySelector('{}').getBoundingClientRect())"
        wide, high = page.evaluate(box.replace("{}", ".tile .why"))
        # Frames are as wide as 4 to 3, pictures as 6 to 5, so that their heights are the same.
        frame = page.evaluate("document.querySelector('.tile .frame').clientHeight")
        assert [wide, high] == pytest.approx([frame, frame], abs=1)
        page.evaluate("document.querySelector('.tile').blur()")
        page.wait_for("!document.querySelector('.why')")
        page.evaluate("document.querySelector('.tile').click()")
        page.wait_for(f"{OPEN} && document.getElementById('one-picture').naturalWidth > 0")
        page.evaluate("document.getElementById('why').click()")
        page.wait_for("document.querySelector('dialog .why') !== null")
        assert page.evaluate("document.getElementById('one-scale').textContent").startswith("Full colour is")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.complaints == []


def test_results_go_on_as_far_as_one_looks(tmp_path, telling_file):
    for number in range(130):
        draw(tmp_path / "many" / f"{number}.png", number, size=(64, 64))
    index = index_of(tmp_path / "index", telling_file, tmp_path / "many")
    with running(index) as address, open_page(f"{address}?text=a+cat", width=1280) as page:
        page.wait_for(f"{TILES} === 60")
        for number in (120, 130):
            page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
            page.wait_for(f"{TILES} === {number}")
        page.wait_for("document.getElementById('more').hidden")
        assert page.evaluate("new Set([...document.querySelectorAll('.tile')].map(one => one.title)).size") == 130
        left = page.evaluate("scrollY")
        search(page, "a dog")
        page.wait_for(f"{TILES} === 60 && scrollY === 0")
        page.evaluate("history.back()")
        page.wait_for(f"{TILES} === 130 && Math.abs(scrollY - {left}) < 2")
        assert page.complaints == []


def test_what_is_asked_for_is_chips_that_can_be_removed(address):
    chips = "[...document.querySelectorAll('#chips .chip span')].map(one => one.textContent).join('|')"
    with open_page(f"{address}?text=a+cat&not=a+dog&not=a+hill&where=width%3E1&where=path~copy", width=390) as page:
        page.wait_for(f"{TILES} === 1")
        assert page.evaluate(chips) == "a cat|Width (pixels) above 1|Folder contains copy|not a dog|not a hill"
        for number, left in ((3, "a cat|Width (pixels) above 1|Folder contains copy|not a hill"), (0, None)):
            page.evaluate(f"document.querySelectorAll('#chips button')[{number}].click()")
            page.wait_for(f"{chips} === {json.dumps(left)}" if left else f"!{chips}.startsWith('a cat')")
        page.evaluate("[...document.querySelectorAll('#chips button')].at(-1).click()")
        page.wait_for(f"{STATUS} === '1 picture, the newest first' && {TILES} === 1")
        search(page, "", where="colour=red")
        page.wait_for("document.getElementById('conditions').open && document.activeElement.id === 'where'")


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
        page.wait_for(f"{STATUS}.startsWith('8 pictures')")
        page.evaluate("window.fetch = () => Promise.reject(new Error('gone'))")
        search(page, "a hill")
        page.wait_for(f"{STATUS}.includes('does not answer')")
        assert page.evaluate(TILES) == 8


def test_large_groups_of_similar_pictures_are_counted_and_the_threshold_changes(tmp_path, telling_file):
    first = draw(tmp_path / "many" / "0.png", 2)
    for number in range(1, 40):
        (tmp_path / "many" / f"{number}.png").write_bytes(first.read_bytes())
    index = index_of(tmp_path / "index", telling_file, tmp_path / "many")
    with running(index) as address, open_page(f"{address}?duplicates=1", width=390) as page:
        page.wait_for(f"{TILES} === 24")
        assert page.evaluate("document.querySelector('#results h2').textContent").startswith("40 pictures")
        assert page.evaluate("document.querySelectorAll('.keep').length >= 1")
        first = "[...document.querySelectorAll('.tile')].slice(0, 2)"
        assert page.evaluate(f"new Set({first}.map(one => one.getBoundingClientRect().top)).size") == 1
        assert "96 × 80" in page.evaluate("document.querySelector('.tile .detail').textContent")
        page.evaluate("document.getElementById('threshold').value = '0.9'")
        page.evaluate("document.getElementById('threshold').form.requestSubmit()")
        page.wait_for(f"location.search === '?duplicates=1&threshold=0.9' && {TILES} === 24")
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_everything_is_done_by_keys(address):
    with open_page(address, width=1280) as page:
        page.wait_for(TEXT_FIELD)
        for letter in "cat":
            key(page, letter, ord(letter.upper()), letter)
        key(page, "Enter", 13, "\r")
        page.wait_for(f"{TILES} === 8")
        key(page, "ArrowDown", 40)
        assert page.evaluate(ACTIVE) == 0
        key(page, "ArrowRight", 39)
        assert page.evaluate(ACTIVE) == 1
        key(page, "ArrowDown", 40)
        below = page.evaluate(ACTIVE)
        assert below > 2
        key(page, "ArrowUp", 38)
        assert page.evaluate(ACTIVE) == 1
        key(page, "Enter", 13, "\r")
        page.wait_for(OPEN)
        first = page.evaluate("document.getElementById('one-name').textContent")
        key(page, "ArrowRight", 39)
        assert page.evaluate("document.getElementById('one-name').textContent") != first
        key(page, "Escape", 27)
        page.wait_for(f"!{OPEN}")
        page.wait_for(f"{ACTIVE} === 2")
        key(page, "/", 191, "/")
        page.wait_for(TEXT_FIELD)
        assert page.evaluate("document.getElementById('text').value") == "cat"


@pytest.mark.parametrize("width", [390, 1280])
def test_one_picture_leads_to_the_others_and_to_its_file(tmp_path, telling_file, width):
    for number in range(70):
        draw(tmp_path / "photos" / f"{number}.png", number)
    index = index_of(tmp_path / "index", telling_file, tmp_path / "photos")
    index.tag(["a cat", "a hill"], share=0.9, show_progress=False)
    name, facts = (f"document.getElementById('one-{one}').textContent" for one in ("name", "facts"))
    press = "document.getElementById('{}').click()"
    with running(index) as address, open_page(f"{address}?text=a+cat", width=width) as page:
        page.wait_for(f"{TILES} >= 60")
        order = [one.name for one in index.search("a cat", k=70)]
        page.evaluate("document.querySelector('.tile').click()")
        assert page.evaluate("document.getElementById('previous').disabled")
        best = index.search("a cat", k=1)[0]
        assert f"score {best.score:.3f}" in page.evaluate(facts)
        seen = [page.evaluate(facts)]
        for wanted in order[1:]:
            page.evaluate(press.format("next"))
            page.wait_for(f"{name} === {json.dumps(wanted)}")
            seen.append(page.evaluate(facts))
        assert sum("a cat" in one.partition("tags: ")[2] for one in seen) == 63
        assert page.evaluate("document.getElementById('next').disabled")
        page.evaluate(press.format("previous"))
        page.wait_for(f"{name} === {json.dumps(order[-2])}")
        sent = page.evaluate(
            "fetch(document.getElementById('original').href).then(one => one.arrayBuffer())"
            ".then(one => [...new Uint8Array(one)])"
        )
        assert bytes(sent) == Path(order[-2]).read_bytes()
        page.evaluate("navigator.clipboard.writeText = one => { window.copied = one; return Promise.resolve() }")
        page.evaluate(press.format("copy"))
        page.wait_for("document.getElementById('copy').textContent === 'Path copied'")
        assert page.evaluate("copied") == order[-2]
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.complaints == []


def test_similar_pictures_and_a_picture_of_ones_own_alone_or_with_a_text(address, collection):
    photos, chip = collection.path.parent / "photos", "document.getElementById('like').hidden"
    with open_page(address, width=1280) as page:
        page.choose_files("#picture", photos / "4.png")
        page.wait_for(f"{TILES} === 8 && !{chip}")
        assert page.evaluate("document.querySelector('.tile .path').textContent") == "4.png"
        page.evaluate("[...document.querySelectorAll('.tile')].find(one => one.title.endsWith('/2.png')).click()")
        page.evaluate("document.getElementById('similar').click()")
        page.wait_for(f"!{OPEN} && {STATUS}.startsWith('8 pictures')")
        shown = "[...document.querySelectorAll('.tile')].slice(0, 2).map(one => one.title.split('/').pop())"
        page.wait_for(f"{shown}.sort().join() === '2.png,copy of 2.png'")
        page.drop_files("main", photos / "5.png")
        page.wait_for("document.querySelector('.tile .path').textContent === '5.png'")
        search(page, "a cat")
        page.wait_for(f"{chip} && {TILES} === 8")
        page.choose_files("#picture", photos / "4.png")
        page.wait_for(f"!{chip} && document.getElementById('text').value === ''")
        page.evaluate("document.getElementById('both').click()")
        search(page, "a cat")
        page.wait_for(f"!{chip} && {STATUS}.startsWith('8 pictures') && location.search === '?text=a+cat'")
        assert page.complaints == []


def test_a_video_is_found_once_or_by_every_frame_and_opens_at_the_time_of_one(tmp_path, telling_file):
    film(tmp_path / "videos/clip.webm", [1, 2, 3], codec="libvpx")
    draw(tmp_path / "videos/0.png", 0)
    index = index_of(tmp_path / "index", telling_file, tmp_path / "videos", video_seconds=2)
    with running(index) as address, open_page(address, width=390) as page:
        search(page, "a cat")
        page.wait_for(f"{TILES} === 2")
        page.evaluate("document.querySelector('details').open = true")
        for count in (4, 2):
            page.evaluate("document.getElementById('frames').click()")
            page.wait_for(f"{TILES} === {count}")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        search(page, "a cat", where="time=4")
        page.wait_for(f"{TILES} === 1")
        page.wait_for("document.querySelector('.tile').innerText.includes('clip.webm 0:04')")
        page.evaluate("document.querySelector('.tile').click()")
        page.wait_for("!document.getElementById('one-video').hidden")
        page.wait_for("Math.abs(document.getElementById('one-video').currentTime - 4) < 0.3")
        page.wait_for("document.getElementById('one-picture').hidden")
        page.evaluate("document.getElementById('close').click()")
        page.wait_for("document.getElementById('one-video').hidden")
        assert page.complaints == []


def test_empty_changing_and_broken_indexes_are_told(tmp_path, telling_file):
    empty = index_of(tmp_path / "empty", telling_file)
    with running(empty) as address, open_page(address, width=390) as page:
        page.wait_for(f"{STATUS}.startsWith('The index is empty')")
        search(page, "a cat")
        page.wait_for(f"{STATUS}.startsWith('The index is empty')")
    full = make_index(tmp_path, telling_file)
    with running(full) as address, open_page(address, width=390) as page:
        search(page, "a cat")
        page.wait_for(f"{TILES} === 8")
        new = draw(tmp_path / "new" / "new.png", 40)
        full.add(new, options=OPTIONS)
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for(f"{STATUS}.startsWith('The index has changed')")
        (full.path.parent / "photos" / "1.png").unlink()
        search(page, "a cat")
        page.wait_for(f"{TILES} === 8 && document.body.innerText.includes('new.png')")  # what is gone is not found
        (full.path / "index.sqlite").write_bytes(b"no database")
        search(page, "a cat")
        page.wait_for(f"{STATUS}.includes('damaged')")
        assert page.evaluate("document.getElementById('status').className") == "problem"
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_picture_of_the_readme_is_of_photographs_the_likest_first(tmp_path, monkeypatch):
    shown = "[...document.querySelectorAll('.tile')].map(one => one.innerText.split('\\n').at(-1))"
    with serve_picture.page_of_photographs() as page:
        assert page.evaluate(shown)[:3] == ["gravel.jpg", "grass.jpg", "brick.jpg"]
        assert page.evaluate("document.getElementById('like-name').textContent") == "like gravel.jpg"
    monkeypatch.setattr(serve_picture, "FILE", tmp_path / "serve.png")
    serve_picture.main()
    with Image.open(tmp_path / "serve.png") as drawn, Image.open(ROOT / "docs" / "serve.png") as kept:
        assert drawn.width == kept.width
        assert abs(drawn.height - kept.height) < 60  # as tall as this machine's letters make it


def test_a_concept_is_kept_and_found_on_the_start_page(tmp_path, telling_file):
    index = make_index(tmp_path, telling_file)
    index.tag(["a cat", "a hill"], share=0.3, show_progress=False)
    with running(index) as address, open_page(address, width=390) as page:
        search(page, "a cat")
        page.wait_for(f"{TILES} === 8 && !document.getElementById('keep').hidden")
        page.evaluate("document.getElementById('keep').click()")
        page.wait_for(f"{TILES} === 8 && {STATUS}.startsWith('0 pictures show “a cat”')")
        assert page.evaluate("document.getElementById('text').value") == '@"a cat"'
        page.evaluate("document.querySelector('.tag').click()")
        page.wait_for(f"{TILES} < 8 && {TILES} > 0")
        assert "tag=a " in page.evaluate("document.getElementById('where').value")
        page.load(address, width=390)
        page.wait_for("document.querySelector('.start a[href*=\"%40\"]')?.textContent === 'a cat'")
        assert page.complaints == []
