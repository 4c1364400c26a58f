"""How long the rest of a suite takes: by images, of those whose number is known."""

from mobileclip.evaluation.pace import Pace
from mobileclip.progress import duration


def test_time_left_goes_with_the_images():
    pace = Pace()
    assert pace.left(["cifar10", "country211"]) == "", "nothing was measured"
    pace.add("vtab/clevr_count_all", 150.0)  # 15,000 images
    assert pace.left(["cifar10"]) == "about 1:40 left"  # 10,000 images
    pace.add("cifar10", 350.0)
    assert pace.left(["cifar10", "country211"]) == "about 10:22 left"  # 31,100 images, 20 ms each
    assert pace.left([]) == ""


def test_what_has_no_known_size_takes_longer():
    pace = Pace()
    pace.add("ours", 1000.0)
    assert pace.left(["cifar10"]) == ""
    pace.add("cifar10", 100.0)
    assert pace.left(["cifar10", "ours"]) == "at least 1:40 left"
    assert pace.left(["ours"]) == ""


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.6, 3600, 86399)] == ["0:00", "1:00", "1:00:00", "23:59:59"]
