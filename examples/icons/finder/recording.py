"""A recording of the finder, for its page of the docs: typed, found, opened and copied in the tests' own browser.

Command:   python -m examples.icons.finder.recording                                    (with Chromium on the path)
           python -m examples.icons.finder.recording build/finder docs/finder.webp      (from where to where)
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from examples.icons.finder.building import REPORT
from mobileclip.storage.atomic import atomic_path

_WIDTH, _HEIGHT = 880, 560
_KEY, _HOLD = 130, 1300  # milliseconds
_TEXTS = ("save", "Fahrrad", "太阳", "ключ")
_WEBP: dict[str, Any] = {"save_all": True, "loop": 0, "quality": 55, "method": 4}
_DRAWN = (
    "document.querySelector('.tile') && "
    "[...document.querySelectorAll('.tile')].every(one => one.querySelector('img')?.naturalWidth)"
)


def record(finder: Path, output: Path) -> None:
    """Write an animated WebP of what `make finder` wrote.

    Raises:
        ValueError: if there is no finder, or no Chromium.
    """
    browser, web = map(import_module, ("tests.browser", "tests.examples.web"))
    if not (finder / REPORT).exists() or browser.CHROMIUM is None:
        raise ValueError(f"{finder} must hold a finder, of `make finder`, and Chromium be on the path")
    with web.served(finder) as address, browser.open_page(address, width=_WIDTH, height=_HEIGHT) as page:
        drawn = [(io.BytesIO(png), duration) for png, duration in _frames(page)]
    pairs = [(Image.open(png, formats=["PNG"]).convert("RGB"), duration) for png, duration in drawn]
    (first, *others), durations = [one for one, _ in pairs], [duration for _, duration in pairs]
    with atomic_path(output) as temporary:
        first.save(temporary, "WEBP", append_images=others, duration=durations, **_WEBP)


def _frames(page: Any) -> Iterator[tuple[bytes, int]]:
    """Yield pictures of what a person sees, each with its milliseconds."""

    def shown() -> bytes:
        return base64.b64decode(page.ask("Page.captureScreenshot", format="png")["data"])

    page.wait_for("document.querySelectorAll('#results button').length > 3")
    yield shown(), _KEY * 4
    for text in _TEXTS:
        for length in range(1, len(text) + 1):
            page.evaluate(f"document.getElementById('text').value = {json.dumps(text[:length])}")
            page.evaluate("document.getElementById('find').click()")
            page.wait_for(_DRAWN)
            yield shown(), _KEY if length < len(text) else _HOLD
    page.ask("Emulation.setFocusEmulationEnabled", enabled=True)
    page.ask("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.evaluate("document.querySelector('.tile').click()")
    page.wait_for("document.getElementById('one-picture').naturalWidth && document.activeElement.id === 'copy'")
    page.wait_for("[...document.querySelectorAll('#variants img')].every(one => one.complete)")
    yield shown(), _HOLD
    page.evaluate("document.getElementById('copy').click()")
    page.wait_for("document.getElementById('said').textContent !== ''")
    yield shown(), _HOLD


if __name__ == "__main__":
    from mobileclip.recipes import reported

    with reported("recording", None):
        record(*map(Path, sys.argv[1:] or ("build/finder", "docs/finder.webp")))
