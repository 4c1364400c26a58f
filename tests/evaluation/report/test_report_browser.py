"""The page of a report as a real browser shows it."""

import numpy as np
import pytest
from PIL import Image

from tests.browser import CHROMIUM, open_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]


@pytest.mark.parametrize(
    ("width", "dark"),
    [(1280, False), (390, True), (390, False), (320, False)],
)
def test_it_fits_and_is_quiet(report, tmp_path, width, dark):
    path, _ = report
    with open_page(path, width=width, dark=dark) as page:
        page.evaluate("document.querySelectorAll('img').forEach(one => { one.loading = 'eager' })")
        decoded = "Promise.all([...document.images].map(one => one.decode())).then(() => true, () => false)"
        assert page.evaluate(decoded)
        assert page.evaluate("document.querySelector('figure img').clientWidth") > 250
        assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
        # Whatever is wider than the page scrolls in its own box.
        outside = page.evaluate(
            "[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll')"
            " && one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))"
        )
        assert outside == []
        assert (page.requests, page.complaints) == ([], [])
        page.screenshot(tmp_path / "page.png")
    corner = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))[2, 2]
    assert bool(corner.max() < 60) == dark


def test_letters_stand_out_from_the_paper(report):
    """Contrast of at least 4.5 to 1 in both themes, as WCAG 2.2 asks for."""
    for dark in (False, True):
        with open_page(report[0], width=1280, dark=dark) as page:
            style = "getComputedStyle(document.documentElement).getPropertyValue"
            paper = page.evaluate(f"{style}('--paper')")
            for name in ("ink", "faint", "measured", "published"):
                assert contrast(page.evaluate(f"{style}('--{name}')"), paper) >= 4.5, (name, dark)


def luminance(colour):
    """Return the relative luminance of a colour such as `#1b1e23`."""
    channels = [int(colour.strip()[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
