"""The picture of `mobileclip serve` in the README: `python -m tests.serve_picture` draws it anew, in Chromium.

Twelve photographs that come with the package, by their likeness to one of them, by the model that comes with it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

import mobileclip
from mobileclip.collections import Collection, ModelSource
from tests.browser import Page, open_page
from tests.collections.web.served import OPTIONS, running

FILE = Path(__file__).parents[1] / "docs" / "serve.png"
PHOTOGRAPHS = Path(mobileclip.__file__).parent / "inference" / "samples"
ASKED = "gravel"
WIDTH = 1320
_SHOWN = "[...document.querySelectorAll('.tile img')]"
_FOOTER = "document.querySelector('footer').getBoundingClientRect().top"


@contextmanager
def page_of_photographs() -> Iterator[Page]:
    """Yield the page, with all photographs found."""
    with TemporaryDirectory() as folder:
        photographs = Collection.create(Path(folder) / "photographs.index", ModelSource(model="icons"))
        photographs.add(PHOTOGRAPHS, options=OPTIONS)
        (asked,) = photographs.search(image=PHOTOGRAPHS / f"{ASKED}.jpg", k=1)
        with running(photographs) as address, open_page(f"{address}?like={asked.id}", width=WIDTH, height=600) as page:
            page.wait_for(f"{_SHOWN}.length === {len([*PHOTOGRAPHS.glob('*.jpg')])}")
            page.evaluate(f"{_SHOWN}.forEach(one => {{ one.loading = 'eager' }})")
            page.wait_for(f"{_SHOWN}.every(one => one.complete && one.naturalWidth)")
            yield page


def main() -> None:
    """Draw it without the footer, which has the index's place, and in 256 colours: a third of the bytes."""
    with page_of_photographs() as page, TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        page.screenshot(shot)
        image = Image.open(shot).convert("RGB").crop((0, 0, WIDTH, int(page.evaluate(_FOOTER))))
        data = io.BytesIO()
        image.quantize(256).save(data, "PNG", optimize=True)
    FILE.write_bytes(data.getvalue())


if __name__ == "__main__":
    main()
