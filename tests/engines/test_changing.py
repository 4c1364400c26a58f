"""What another process writes anew is read whole, or refused when it stays damaged."""

from __future__ import annotations

import threading

import pytest

from mobileclip.engines import RUN, Status, read_status
from mobileclip.serialization import to_json
from tests.errors import fails

WRITTEN = Status(
    state="finished",
    began="2026-01-02 03:04:05 UTC",
    written="2026-01-02 03:04:05 UTC",
    num_units=3,
    num_done_before=0,
    num_done=3,
    num_failed=0,
    num_set_aside=0,
    units_per_hour=1.0,
    seconds_left=None,
    under_way=(),
)


@pytest.fixture
def path(tmp_path):
    (tmp_path / RUN).mkdir()
    return tmp_path / RUN / "status.json"


def test_a_file_that_is_whole_a_moment_later_is_read(path, tmp_path):
    text = to_json(WRITTEN)
    path.write_text(text[: len(text) // 2])
    later = threading.Timer(0.05, path.write_text, [text])
    later.start()
    assert read_status(tmp_path) == WRITTEN
    later.join()


def test_a_file_that_stays_damaged_or_away_is_refused(path, tmp_path):
    path.write_text("{")
    with fails("serialization.json-holds"):
        read_status(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"there is no .*status\.json"):
        read_status(tmp_path)
