"""One heart beats for workers, leases and processes that train together."""

import threading

from mobileclip.engines import Heart
from tests.waiting import wait_for


def test_it_beats_at_once_and_until_it_is_stopped():
    beats = []
    heart = Heart(lambda: beats.append(threading.current_thread()), seconds=0.001)
    assert beats[0] is threading.current_thread()
    wait_for(lambda: len(beats) > 3)
    assert threading.current_thread() not in beats[1:]
    assert heart.stop()


def test_it_stops_where_nobody_listens_and_says_when_a_beat_goes_on():
    beats, release = [], threading.Event()

    def to_nobody():
        beats.append(1)
        if len(beats) > 2:
            raise BrokenPipeError

    gone = Heart(to_nobody, seconds=0.001, gone=(OSError,))
    wait_for(lambda: not gone._thread.is_alive())
    assert len(beats) == 3
    hanging = Heart(lambda: threading.current_thread() is not threading.main_thread() and release.wait(), seconds=0)
    assert not hanging.stop(0.01)
    release.set()
    assert hanging.stop()
