"""The page of an index, as axe finds it and as a keyboard reaches it, with concepts, tags and an upgrade under way."""

import pytest

from mobileclip.collections import Collection
from tests.axe import findings
from tests.browser import CHROMIUM, open_page
from tests.collections.web.served import make_index, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]

TILES = "document.querySelectorAll('.tile').length"
STATUS = "document.getElementById('status').textContent"
FOCUS = "document.activeElement.id"
PRESSED = "document.getElementById('{}-{}')?.getAttribute('aria-pressed') === '{}'"
CONDITIONS = "(document.getElementById('conditions').open = true) && !document.getElementById('columns').hidden"
ONE = "document.getElementById('one').open || document.querySelector('.tile').click()"
# What each address shows, and what is done there before it is looked at.
STATES = {
    "": f"{TILES} > 0",
    "?text=a+cat": f"{TILES} === 8",
    "?text=%40%22my+bike%22": "document.querySelectorAll('.judge').length === 16",
    "?duplicates=1": f"{TILES} > 1",
    "?text=a+hill": CONDITIONS,
    "?text=a+kite": f"{TILES} === 8 && ({ONE})",
    "?text=a+cat&where=colour%3Dred": "document.getElementById('status').className === 'problem'",
}


@pytest.fixture
def index(tmp_path, telling_file):
    """An index with tags and two concepts."""
    found = make_index(tmp_path, telling_file)
    words = ["a cat", "words that are far too long for one line under a small picture"]
    found.tag(words, share=0.5, show_progress=False)
    found.concepts.add("my bike", text="a bike", positive=[tmp_path / "photos" / "1.png"])
    found.concepts.add("Zoë's Fahrrad 🚲")
    return found


def test_axe_finds_nothing_and_all_of_it_fits(index):
    with running(index) as address, open_page("about:blank", width=1280) as page:
        for width, dark in ((1280, False), (390, True), (390, False), (1280, True)):
            for query, ready in STATES.items():
                page.load(address + query, width=width, dark=dark)
                page.wait_for(ready)
                assert findings(page) == [], (query, width, dark)
                assert page.evaluate("document.documentElement.scrollWidth") == width, query


def test_accept_and_reject_by_keys_back_and_reload(index):
    def press(name, code, text=""):
        page.press(name, code=code, text=text)

    with running(index) as address, open_page(f"{address}?text=a+cat", width=1280) as page:
        page.wait_for(f"{TILES} === 8 && {STATUS}.endsWith('first')")
        page.evaluate("document.getElementById('text').focus()")
        press("ArrowDown", 40)
        press("ArrowRight", 39)
        second = page.evaluate(FOCUS)
        assert second.startswith("tile-")
        page.evaluate("document.getElementById('keep').focus()")
        press("Enter", 13, "\r")
        page.wait_for(f"{STATUS}.startsWith('0 pictures show “a cat”')")
        # Tab goes from a picture to what is said of it, and the arrows on from there.
        number = second.removeprefix("tile-")
        page.evaluate(f"document.getElementById('{second}').focus()")
        for kind, others in (("yes", "no"), ("no", "yes")):
            press("Tab", 9)
            assert page.evaluate(FOCUS) == f"{kind}-{number}"
            press(" ", 32, " ")
            page.wait_for(f"{PRESSED.format(kind, number, 'true')} && {PRESSED.format(others, number, 'false')}")
            page.wait_for(f"{FOCUS} === '{kind}-{number}'")
        assert [one.is_positive for one in Collection.open(index.path).concepts["a cat"].examples] == [False]
        press("ArrowRight", 39)
        assert page.evaluate(FOCUS) not in {second, f"no-{number}"}
        page.evaluate("history.back()")
        page.wait_for(f"location.search === '?text=a+cat' && {TILES} === 8 && !document.querySelector('.judge')")
        page.evaluate("history.forward()")
        page.wait_for(PRESSED.format("no", number, "true"))
        page.load(page.evaluate("location.href"), width=1280)
        page.wait_for(PRESSED.format("no", number, "true"))
        assert page.complaints == []
