"""Which files of a folder are images, and that no other vanishes uncounted."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mobileclip.collections import scan
from mobileclip.data import Skip, SkipReport
from mobileclip.data.images.files import describe_left_out, find_images, list_folder
from mobileclip.data.images.limits import IMAGE_EXTENSIONS, IMAGE_FORMATS, find_format, is_image_name
from mobileclip.datasets import ClassFolderSource, FolderSource
from tests.errors import fails


def filled(base: Path, *names: str) -> Path:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"x")
    return base


def reasons(skips: Iterable[Skip]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for skip in skips:
        found.setdefault(skip.reason, []).append(skip.key)
    return found


def test_every_format_is_known_by_every_one_of_its_names_and_by_its_start(tmp_path):
    names = [f"a/{number}.{extension.upper()}" for number, extension in enumerate(IMAGE_EXTENSIONS)]
    assert sorted(list_folder(filled(tmp_path, *names)).images) == sorted(names)
    assert {"jpg", "jfif", "avif", "heic", "bmp", "tif", "tiff", "gif", "webp"} <= set(IMAGE_EXTENSIONS)
    assert len(set(IMAGE_EXTENSIONS)) == len(IMAGE_EXTENSIONS)
    assert [is_image_name(name) for name in ("a.jpg", "jpg", "a.psd", ".jpg.txt", "a.")] == [True, *[False] * 4]
    starts = [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBPVP8X", b"GIF89a", b"BM", b"MM\0*"]
    starts += [b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"]
    assert [find_format(start) for start in starts] == list(IMAGE_FORMATS)
    others = [b"", b"%!PS-Adobe", b"%PDF-1.7", b"<svg", b"8BPS", b"\0\0\0\x18ftypisom\0\0\0\0mp41", b"P6 1 1 255 "]
    assert not any(map(find_format, others))


def test_everything_that_is_left_out_is_named(tmp_path):
    names = ("a.jpg", "b/c.PSD", "b/.cache/d.jpg", ".DS_Store", "__MACOSX/e.jpg", "notes.txt", "b/f.avif")
    base = filled(tmp_path / "photos", *names)
    os.mkfifo(base / "pipe.jpg")
    for link, target in {"loop": "loop", "gone": "nowhere", "linked": "a"}.items():
        (base / f"{link}.jpg").symlink_to(f"{target}.jpg")
    (base / "again").symlink_to(base, target_is_directory=True)
    found = list_folder(base)
    assert found.images == ("a.jpg", "b/f.avif", "linked.jpg")
    expected = {"linked_folder": ["again"], "broken_link": ["gone.jpg", "loop.jpg"], "special_file": ["pipe.jpg"]}
    expected |= {"hidden_file": [".DS_Store"], "hidden_folder": ["__MACOSX", "b/.cache"]}
    assert reasons(found.left_out()) == expected | {"other_file": ["b/c.PSD", "notes.txt"]}
    assert reasons(found.left_out({"notes.txt"})) == expected | {"other_file": ["b/c.PSD"]}
    lines = describe_left_out(found.left_out())
    assert lines[-1] == "1 pipes, sockets or devices: .jpg (1)"
    assert "2 names without an image extension: .psd (1), .txt (1)" in lines


def test_a_link_to_a_file_outside_the_folder_is_followed_where_the_environment_says_so(tmp_path, monkeypatch):
    filled(tmp_path / "disk", "b.jpg", "secret")
    base = filled(tmp_path / "photos", "a.jpg", "below/d.jpg")
    links = {"b.jpg": "../disk/b.jpg", "b.txt": "../disk/secret", "below/c.jpg": "../../disk/b.jpg"}
    for link, target in (links | {"below/a.jpg": "../a.jpg", "../linked": "photos"}).items():
        (base / link).symlink_to(target)
    for folder in (base, tmp_path / "linked"):
        found = list_folder(folder)
        assert found.images == ("a.jpg", "below/a.jpg", "below/d.jpg")
        assert reasons(found.left_out()) == {"outside_link": [*links]}
    (filled(tmp_path / "none", "notes.psd") / "b.jpg").symlink_to("../disk/b.jpg")
    for look in (find_images, lambda path: FolderSource(path=path).units(), lambda path: scan([str(path)])):
        with fails(ValueError, "MOBILECLIP_FOLLOW_LINKS"):
            look(tmp_path / "none")
    monkeypatch.setenv("MOBILECLIP_FOLLOW_LINKS", "1")
    assert list_folder(base).images == ("a.jpg", "b.jpg", "below/a.jpg", "below/c.jpg", "below/d.jpg")


def test_what_cannot_be_entered_or_looked_at_is_counted_and_the_rest_goes_on():
    """Permissions do not count for root."""
    with TemporaryDirectory() as place:
        base = filled(Path(place), "a.jpg", "lost+found/b.jpg", ".Trash-0/c.jpg", "listed/d.jpg", "e/f.jpg")
        modes = {".": 0o755, "lost+found": 0, "listed": 0o744, ".Trash-0": 0}
        for name, mode in modes.items():
            (base / name).chmod(mode)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65_534)
        try:
            found = list_folder(base)
            images, left_out = find_images(base)
            (unit,) = FolderSource(path=base).units()
            with pytest.raises(PermissionError):
                list_folder(base / "lost+found")
        finally:
            if is_root:
                os.seteuid(0)
            for name in modes:
                (base / name).chmod(0o755)
    assert found.images == tuple(item.image for item in unit.items) == ("a.jpg", "e/f.jpg")
    assert images == [base / "a.jpg", base / "e/f.jpg"]
    expected = {"hidden_folder": [".Trash-0"], "unreadable_folder": ["lost+found"], "unreadable_file": ["listed/d.jpg"]}
    assert reasons(found.left_out()) == reasons(left_out) == reasons(unit.left_out) == expected
    assert "1 folders that cannot be read: lost+found (1)" in describe_left_out(left_out)


def test_what_vanishes_while_a_folder_is_listed_was_never_there(tmp_path, monkeypatch):
    filled(tmp_path, "a.jpg", "b/c.jpg", "d.jpg")
    listed = os.scandir

    def vanish(folder):
        if folder != tmp_path:
            return listed(folder)
        with listed(folder) as found:
            entries = list(found)
        # The folder and the file go after they were listed, and before they are looked at.
        shutil.rmtree(tmp_path / "b")
        (tmp_path / "d.jpg").unlink()
        return nullcontext(entries)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", vanish)
        found = list_folder(tmp_path)
    assert (found.images, found.left_out()) == (("a.jpg",), ())


def test_a_folder_and_the_command_leave_out_the_same(tmp_path):
    filled(tmp_path, "cat/a.jpg", "cat/b.jfif", "cat/c.psd", "cat/.d.jpg", "dog/e.tiff", "dog/f.psd")
    images, left_out = find_images(tmp_path)
    for source in (FolderSource(path=tmp_path), ClassFolderSource(path=tmp_path)):
        (unit,) = source.units()
        assert sorted(tmp_path / item.image for item in unit.items) == images
        assert sorted(skip.key for skip in unit.left_out) == sorted(skip.key for skip in left_out)
        report = SkipReport(log=False)
        list(unit.read(report))
        assert (report.counts["hidden_file"], report.counts["other_file"]) == (1, 2)


def test_a_file_that_is_named_is_taken_whatever_it_is_called(tmp_path):
    path = filled(tmp_path, ".hidden.dat") / ".hidden.dat"
    assert find_images(path) == ([path], ())
    with fails(ValueError, "jpg, jpeg"):
        find_images(tmp_path)


def test_names_that_are_no_text(tmp_path):
    names = [os.fsdecode(name) for name in (b"\xff\xfe.jpg", b"\xff\n.psd")]
    try:
        found = list_folder(filled(tmp_path, *names))
    except OSError:
        pytest.skip("this system's names are text")
    assert found.images == (names[0],)
    (skip,) = found.left_out()
    assert b"\n" not in skip.key.encode()


def test_folders_in_folders_without_end(tmp_path):
    depth, current = 300, os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=current)
        below = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(os.open("a.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=current))
    os.close(current)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        images = list_folder(tmp_path).images
    finally:
        sys.setrecursionlimit(before)
    assert images == ("d/" * depth + "a.jpg",)
