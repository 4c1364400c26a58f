import sqlite3
from contextlib import suppress

import pytest

from tests.collections.pictures import index_of


@pytest.fixture
def make(tmp_path, telling_file):
    """What makes an index in a folder of a name, of inputs, by a model that tells pictures apart."""
    return lambda name, *inputs, **choices: index_of(tmp_path / name, telling_file, *inputs, **choices)


@pytest.fixture
def index(make):
    """An empty index."""
    return make("index")


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk_of_an_index():
    """What SQLite writes need not be on the disk either, see `no_waiting_for_the_disk`."""
    connect = sqlite3.connect

    def connected(*given, **options):
        db = connect(*given, **options)
        with suppress(sqlite3.Error):  # whoever asks for something is told what is wrong
            db.execute("PRAGMA synchronous = OFF")
        return db

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connected)
        yield
