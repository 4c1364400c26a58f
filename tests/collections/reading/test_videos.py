"""Videos in an index: their frames, with their times, and a video as one file for all else."""

import io
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mobileclip.collections import Collection, IndexOptions, small_images
from mobileclip.collections.exports import PROBES
from mobileclip.collections.snapshot import format_time
from mobileclip.engines import InlineEngine
from mobileclip.extras import install
from tests.collections.pictures import add, counts, draw, names, rows_of
from tests.datasets.made_videos import film, scene

add = partial(add, video_seconds=2)


def held(index):
    """Return the time and the embedding of every frame, by the video's name."""
    found = {}
    for row, vector in zip(rows_of(index.snapshot), index.snapshot.vectors, strict=True):
        found.setdefault(Path(row["path"]).name, []).append((row["time"], vector))
    return found


def times(index):
    return {name: [time for time, _ in frames] for name, frames in held(index).items()}


def difference(image, scene):
    return np.abs(np.asarray(image).astype(int) - np.asarray(scene)).mean()


def test_frames_are_found_with_their_times(index, tmp_path):
    path = film(tmp_path / "photos/clip.mp4", [1, 2, 3], notes={"creation_time": "2024-05-01T12:30:00Z"})
    picture = draw(tmp_path / "photos/0.png", 0)
    report = add(index, tmp_path / "photos")
    assert (report.num_encoded, report.unreadable) == (4, ())
    assert times(index) == {"0.png": [None], "clip.mp4": [0, 2, 4]}
    scene(2).save(tmp_path / "like.png")
    best = index.search(image=tmp_path / "like.png", where=["time>=0"])[0]
    assert (best.path, best.time, best.name) == (str(path), 2, f"{path} 0:02")
    assert (best.width, best.height, best.size, best.taken) == (96, 64, path.stat().st_size, "2024-05-01T12:30:00")
    assert best.to_dict()["time"] == 2
    assert "time" not in index.search(image=picture)[0].to_dict()
    (small,) = small_images([best], 48)
    assert (small.size, difference(small, scene(2, (48, 32))) < 8) == ((48, 32), True)
    for ending in ("npz", "safetensors"):
        assert index.export(tmp_path / f"all.{ending}") == 4
    with pytest.raises(FileExistsError):
        index.export(tmp_path / "all.safetensors")
    written = load_file(tmp_path / "all.safetensors")
    held_names = json.loads(written["names"].tobytes())
    assert sorted(held_names) == ["0.png", "clip.mp4 0:00", "clip.mp4 0:02", "clip.mp4 0:04"]
    place = held_names.index("clip.mp4 0:02")
    start, end = [0, *written["ends"]][place : place + 2]
    small = Image.open(io.BytesIO(written["thumbnails"][start:end].tobytes()))
    assert (small.size, difference(small, scene(2)) < 12) == ((96, 64), True)
    np.testing.assert_array_equal(written["embedding"], index.snapshot.vectors)
    np.testing.assert_allclose(written["probes"], index.clip.encode_text(list(PROBES)).numpy(), atol=1e-6)


@pytest.mark.slow
def test_frames_are_decoded_by_several_processes(index, tmp_path):
    film(tmp_path / "videos/a.mp4", range(12))
    film(tmp_path / "videos/b.mp4", range(12, 17))
    report = add(index, tmp_path / "videos", num_workers=2, batch_size=3)
    assert (report.num_encoded, report.unreadable) == (17, ())
    assert times(index) == {"a.mp4": list(range(0, 24, 2)), "b.mp4": list(range(0, 10, 2))}


def test_a_video_is_one_file(index, tmp_path):
    folder = tmp_path / "videos"
    for number in range(3):
        film(folder / f"{number}.mp4", [number, number + 10])
    add(index, folder)
    before = held(index)
    (folder / "0.mp4").rename(folder / "moved.mp4")
    (folder / "1.mp4").unlink()
    film(folder / "2.mp4", [7, 8, 9])
    again = Collection.open(index.path)
    assert counts(add(again, folder)) == (3, 2, 0, 4)
    assert times(again) == {"moved.mp4": [0, 2], "2.mp4": [0, 2, 4]}
    for (_, old), (_, new) in zip(before["0.mp4"], held(again)["moved.mp4"], strict=True):
        np.testing.assert_array_equal(old, new)
    assert counts(add(Collection.open(index.path), folder)) == (0, 0, 5, 0)


def test_scenes_are_encoded_once(index, tmp_path):
    film(tmp_path / "videos/clip.webm", [1, 1, 2, 2, 2, 3, 1], codec="libvpx")
    for expected in ((4, 0, 0, 0), (0, 0, 4, 0)):
        assert counts(add(index, tmp_path / "videos", video_frames="scenes")) == expected
    assert times(index) == {"clip.webm": [0, 4, 10, 12]}


@pytest.mark.parametrize(("engine", "done"), [(None, "4/4"), (InlineEngine(device="cpu"), "2/2")])
def test_how_long_it_takes_is_said_though_nobody_knows_how_many_frames_there_are(index, tmp_path, capsys, engine, done):
    film(tmp_path / "photos/clip.mp4", [1, 2, 3])
    draw(tmp_path / "photos/0.png", 0)
    index.add(tmp_path / "photos", options=IndexOptions(video_seconds=2), engine=engine)
    assert f"indexing: {done}, " in capsys.readouterr().err


def test_a_torn_video_keeps_what_could_be_read_and_is_named_once(index, tmp_path):
    path = film(tmp_path / "videos/clip.mp4", range(20), options={"movflags": "faststart"}.items())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    report = add(index, path.parent)
    (problem,) = report.unreadable
    assert problem.startswith(f"video '{path}' has no frame at ")
    assert 5 < report.num_encoded == len(index) < 15
    again = add(index, path.parent)
    assert (again.num_unreadable, again.num_unchanged, again.unreadable) == (1, report.num_encoded, ())
    path.write_bytes(data)
    assert add(index, path.parent).num_encoded == len(index) == 20
    path.write_bytes(data[:100])
    report = add(index, path.parent)
    assert (report.num_encoded, len(report.unreadable), len(index)) == (0, 1, 0)


def test_a_large_file_that_is_no_video_is_not_hashed(index, tmp_path):
    draw(tmp_path / "photos/0.png", 0)
    for start, name in ((b"", "a.mp4"), (b"\0\0\0\x18ftypisom", "b.mp4")):
        (tmp_path / "photos" / name).write_bytes(start)
        os.truncate(tmp_path / "photos" / name, 50 * 2**30)
    before = time.process_time()
    report = add(index, tmp_path / "photos")
    assert (report.num_encoded, len(report.unreadable)) == (1, 2)
    assert time.process_time() - before < 20, "to hash fifty gigabytes takes longer"


def test_videos_wait_for_their_extra(index, tmp_path, monkeypatch):
    film(tmp_path / "photos/clip.mkv", [1])
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "av", None)
        report = add(index, tmp_path / "photos")
        assert report.uninstalled == {f"reading videos needs av: `{install('video')}`": 1}
    assert add(index, tmp_path / "photos").num_encoded == 1


def test_a_job_that_ends_within_a_video_begins_it_again(index, tmp_path, monkeypatch):
    for number in range(2):
        film(tmp_path / f"videos/{number}.mp4", range(10 * number, 10 * number + 6))
    append, calls = type(index.store).append, []

    def stop(store, *given, **also):
        append(store, *given, **also)
        calls.extend(given)
        if len(calls) == 2:
            raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(type(index.store), "append", stop)
        with pytest.raises(OSError, match="the disk is full"):
            add(index, tmp_path / "videos", segment_rows=4, batch_size=1)
    again = Collection.open(index.path)
    assert 6 < len(again) < 12
    assert add(again, tmp_path / "videos").num_encoded == 6
    assert times(Collection.open(index.path)) == {name: [0, 2, 4, 6, 8, 10] for name in ("0.mp4", "1.mp4")}


def test_a_video_is_found_once_by_its_nearest_frame_and_frames_are_no_duplicates(index, tmp_path):
    film(tmp_path / "videos/0.mp4", range(12))
    film(tmp_path / "videos/1.mp4", [20, 20, 20])
    for number in range(2):
        draw(tmp_path / f"videos/{number}.png", 0)
    add(index, tmp_path / "videos")
    frames, best = index.search("a cat", k=99, all_frames=True), {}
    assert len(frames) == 17
    for match in frames:
        best.setdefault(match.path, match)
    for k in (99, 2):
        assert index.search("a cat", k=k) == list(best.values())[:k]
    assert len(index.search("a cat", k=2, all_frames=True)) == 2
    (group,) = index.duplicates(show_progress=False)
    assert set(names([group.best, *group.others])) == {"0.png", "1.png"}


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (42.9, "0:42"), (600, "10:00"), (3661, "1:01:01")])
def test_times_are_shown_as_players_do(seconds, shown):
    assert format_time(seconds) == shown
