"""What another process writes anew is read whole, or refused when it stays damaged."""

from __future__ import annotations

import threading

import attrs
import pytest

from mobileclip.engines.changing import read_changing
from tests.errors import fails


@attrs.frozen
class Note:
    text: str


def test_a_file_that_is_whole_a_moment_later_is_read(tmp_path):
    path = tmp_path / "note.json"
    path.write_text('{"text": "wri')
    later = threading.Timer(0.05, path.write_text, ['{"text": "written"}'])
    later.start()
    assert read_changing(path, Note, limit=100) == Note("written")
    later.join()


def test_a_file_that_stays_damaged_or_away_is_refused(tmp_path):
    (tmp_path / "damaged.json").write_text("{")
    with fails("serialization.json-holds"):
        read_changing(tmp_path / "damaged.json", Note, limit=100)
    with pytest.raises(FileNotFoundError):
        read_changing(tmp_path / "none.json", Note, limit=100)
