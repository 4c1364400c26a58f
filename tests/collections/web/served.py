"""An index as the page shows it, with names that would be harmful as markup, and the server in a thread."""

import shutil
import threading
from contextlib import contextmanager

import uvicorn

from mobileclip.collections import IndexOptions
from mobileclip.collections.web.application import build_application
from tests.collections.pictures import draw, draw_all, index_of
from tests.waiting import wait_for

HARMFUL = "<script>document.title=1</script> \"'&\x1b[31m\u202e.png"
OPTIONS = IndexOptions(show_progress=False, num_workers=1)


def make_index(folder, checkpoint):
    """Return an index of six pictures in `photos`, a copy of one, and one of a harmful name."""
    photos = draw_all(folder / "photos", range(6))
    draw(photos / HARMFUL.replace("/", "\u2215"), 7)
    shutil.copy(photos / "2.png", photos / "copy of 2.png")
    return index_of(folder / "index", checkpoint, photos)


@contextmanager
def running(collection, uploads=None):
    """Yield the address of the page while it is served."""
    application = build_application(collection, uploads)
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_config=None, ws="none", lifespan="off", http="h11"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        assert thread.is_alive(), "the server has ended"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
