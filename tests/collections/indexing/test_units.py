"""An index made by an engine: the same rows as in one process, whatever fails meanwhile."""

import os
import shutil
import signal
from functools import partial

import attrs
import pytest

from mobileclip.collections import Collection, scan
from mobileclip.collections.index import FindingsWriter, units_of
from mobileclip.collections.read import FileReader, FileTask, KnownContent
from mobileclip.engines import SET_ASIDE, InlineEngine, LocalEngine, Retries, read_status
from tests.collections.pictures import add, assert_same_rows, counts, draw, draw_all, pack
from tests.datasets.made_videos import film
from tests.engines.conftest import forked_workers  # noqa: F401  a fixture
from tests.engines.works import workers_of_this_process

AT_ONCE = Retries(pause_seconds=0.0)
INLINE = {"engine": InlineEngine(device="cpu", retries=AT_ONCE)}
add = partial(add, precision="float32", video_seconds=2)


@pytest.fixture
def photos(tmp_path):
    folder = draw_all(tmp_path / "photos", range(40), digits=2)
    shutil.copy(folder / "03.png", folder / "copy.png")
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    pack(folder / "00.tar", 50, 51, 52)
    film(folder / "clip.mp4", [60, 61])
    return folder


def test_an_engine_makes_the_rows_that_one_process_makes(make, photos):
    alone, shared = make("alone"), make("shared")
    report = add(shared, photos, **INLINE)
    assert (report.num_encoded, report.set_aside) == (46, ())
    assert report == add(alone, photos)
    assert_same_rows(shared, alone)
    # Everything that may change does.
    draw(photos / "01.png", 100)
    (photos / "02.png").unlink()
    (photos / "04.png").rename(photos / "moved.png")
    os.utime(photos / "05.png", ns=(5, 5))
    (photos / "00.tar").rename(photos / "moved.tar")
    pack(photos / "01.tar", 50, 70)
    os.utime(photos / "clip.mp4", ns=(5, 5))
    report = add(shared, photos, **INLINE)
    assert (report.num_encoded, report.num_known, report.num_removed) == (2, 8, 5)
    assert report == add(alone, photos)
    assert_same_rows(shared, alone)
    assert add(shared, photos, **INLINE).num_unchanged == len(shared)


def test_of_a_group_that_fails_the_picture_is_set_aside_and_the_next_run_does_it(make, photos, monkeypatch):
    def failing(self, *given, **choices):
        for _ in read(self, *given, **choices):
            if any(row.path.endswith("07.png") for row in self.findings.rows):
                raise RuntimeError("out of memory")
            yield

    index, read = make("index"), FileReader.read
    with monkeypatch.context() as patch:
        patch.setattr(FileReader, "read", failing)
        report = add(index, photos, **INLINE)
    (aside,) = report.set_aside
    assert (aside.unit, aside.tries, aside.reason) == (f"{photos}/07.png", 3, "RuntimeError: out of memory")
    assert report.num_encoded == 46 - 1
    assert (index.path / SET_ASIDE).is_file()
    gone = make("gone")
    shutil.copy(index.path / SET_ASIDE, gone.path)
    (photos / "07.png").rename(photos / "other.png")
    assert add(gone, photos).set_aside == ()
    assert not (gone.path / SET_ASIDE).exists()
    (photos / "other.png").rename(photos / "07.png")
    shutil.copy(photos / "05.png", photos / "later.png")
    assert counts(add(index, photos, **INLINE)) == (1, 1, 45, 0)
    # What was set aside was by itself.
    assert read_status(index.path).num_units == 2
    assert not (index.path / SET_ASIDE).exists()


def test_what_is_interrupted_is_kept(make, photos, monkeypatch):
    index, entered = make("index"), FindingsWriter.add

    def enter(self, found):
        entered(self, found)
        if self.pending.num_rows > 16:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FindingsWriter, "add", enter)
        with pytest.raises(KeyboardInterrupt):
            add(index, photos, **INLINE)
    kept = len(Collection.open(index.path))
    assert 16 < kept < 47
    assert add(index, photos, **INLINE).num_unchanged == kept


@pytest.mark.parametrize(("num_workers", "num_groups"), [(1, 8), (4, 32), (1000, 63)])
def test_groups_are_small_enough_for_every_worker(tmp_path, num_workers, num_groups):
    draw(tmp_path / "photos" / "0.png", 0)
    (file,) = scan([str(tmp_path / "photos")]).files.values()
    tasks = [FileTask(file=attrs.evolve(file, path=f"/p/{number}.png")) for number in range(1000)]
    groups = units_of(tasks, lambda _: KnownContent(), num_workers)
    assert len(groups) == num_groups
    assert [task for group in groups for task in group.tasks] == tasks
    assert len({group.name for group in groups}) == num_groups


@pytest.mark.slow
def test_processes_make_the_same_rows_and_one_that_is_killed_costs_nothing(make, photos, monkeypatch):
    draw_all(photos, range(100, 160))
    alone, shared, killed = make("alone"), make("shared"), []
    expected = add(alone, photos)

    def kill_once(self, found):
        if not killed:
            killed.extend(workers_of_this_process()[:1])
            os.kill(killed[0], signal.SIGKILL)
        entered(self, found)

    entered = FindingsWriter.add
    monkeypatch.setattr(FindingsWriter, "add", kill_once)
    report = add(shared, photos, engine=LocalEngine(num_workers=2, devices=("cpu",), retries=AT_ONCE))
    assert (len(killed), report) == (1, expected)
    assert_same_rows(shared, alone)
