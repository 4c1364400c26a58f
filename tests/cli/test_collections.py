"""`mobileclip index` and `mobileclip search` as a person types them."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

import mobileclip
from mobileclip.collections import Collection
from mobileclip.encoders import save_model
from tests.build.commands import refused, run, worked
from tests.collections.pictures import draw, telling
from tests.datasets.made_videos import film
from tests.engines.conftest import forked_workers  # noqa: F401  a fixture
from tests.errors import told

TORN = b"\x89PNG\r\n\x1a\n"
ONE = ("--quiet", "-j", 1)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(4):
        draw(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


def test_names_are_printed_whole_and_forge_no_result(capsys, photos, telling_file):
    draw(photos / "a\n 0.999  forged\x1b[2J.png", 7)
    place = photos.joinpath(*(letter * 100 for letter in "abcd"))
    draw(place / "long.png", 9)
    (place / "torn.png").write_bytes(TORN)
    assert str(place / "torn.png") in run(capsys, "index", photos, "-m", telling_file, *ONE)[2]
    out = worked(capsys, "search", "a cat")
    assert len(out.splitlines()) == 6
    assert "a\\n 0.999  forged\\x1b[2J.png" in out
    assert f"{place / 'long.png'}\n" in out


def test_three_commands_find_a_picture(capsys, photos, telling_file):
    told(worked(capsys, "index", photos, "-m", telling_file, *ONE), "the index is ", "index: 4 encoded")
    status, out, err = run(capsys, "index", "-o", "web/made.safetensors", *ONE)
    assert (status, err, out.splitlines()[-1]) == (0, "", "wrote 4 images to web/made.safetensors")
    refused(capsys, "already exists", "index", "-o", "web/made.safetensors")
    first, _ = worked(capsys, "search", "--image", photos / "2.png", "-k", 2).splitlines()
    assert first.endswith("photos/2.png")
    assert float(first.split()[0]) > 0.99
    for flags in (("--not", "people", "--not", "dogs"), ("--where", "width>1"), ("--not", "x")):
        assert len(worked(capsys, "search", *flags, "a cat").splitlines()) == 4
    flags = ("--where", "width>1", "--where", "path~photos/3", "--json")
    (found,) = json.loads(worked(capsys, "search", "a cat", *flags))
    assert (found["path"], found["width"], found["height"]) == (str(photos / "3.png"), 96, 80)
    assert "camera" not in found


def test_an_index_is_brought_up_to_date_without_a_word(capsys, photos, telling_file):
    worked(capsys, "index", "photos", "-m", telling_file, *ONE)
    draw(photos / "new.png", 9)
    (photos / "0.png").unlink()
    (photos / "torn.png").write_bytes(TORN)
    status, out, err = run(capsys, "index", *ONE)
    assert status == 0
    assert "4 images in the index: 1 encoded, 3 as before, 1 removed or moved away, 1 cannot be read" in out
    assert "torn.png" in err
    status, out, err = run(capsys, "index", "photos/", *ONE)
    assert (status, err, "4 as before, 1 cannot be read" in out) == (0, "", True)


def test_every_command_takes_the_index_its_pictures_or_nothing(capsys, photos, telling_file, tmp_path):
    draw(tmp_path / "others" / "0.png", 50)
    worked(capsys, "index", "others", "-m", telling_file, *ONE)
    line, *_ = worked(capsys, "index", "photos", "-m", telling_file, *ONE).splitlines()
    folder = line.removeprefix("the index is ")
    (tmp_path / "words.txt").write_text("a kite\n")
    names = ((), ("--index", "photos"), ("--index", folder))  # the one that was written last, its pictures, itself
    for name in names:
        found = json.loads(worked(capsys, "search", "a cat", "--json", *name))
        assert {Path(one["path"]).parent for one in found} == {photos}
        for command in (
            ("index", *ONE),
            ("dedup", "--quiet", "--overwrite"),
            ("tag", "--vocabulary", "words.txt", "--quiet"),
            ("concept", "add", "mine", "--positive", "photos/0.png"),
            ("concept", "show", "mine"),
            ("concept", "ls"),
            ("concept", "rm", "mine"),
            ("upgrade", "--to", telling_file, "--quiet"),
        ):
            out = worked(capsys, *command, *name)
            assert "4" in out or "mine" in out, (command, name, out)
    for number, name in enumerate(("photos", folder)):
        assert "5 images in" in worked(capsys, "merge", name, "others", "-o", f"both{number}", "--quiet")
    refused(capsys, "nowhere", "search", "a cat", "--index", "nowhere")


def test_a_folder_that_is_gone_ends_nothing_and_is_shown_nowhere(capsys, photos, telling_file, tmp_path):
    for number in range(10, 13):
        draw(tmp_path / "more" / f"{number}.png", number)
    worked(capsys, "index", "photos", "more", "-i", "made", "-m", telling_file, *ONE)
    (tmp_path / "more").rename(tmp_path / "away")
    draw(photos / "new.png", 9)
    status, out, err = run(capsys, "index", "-i", "made", *ONE)
    assert status == 0
    assert "8 images in the index: 1 encoded, 4 as before, 3 kept from missing folders" in out
    assert f"{tmp_path}/more is missing or empty: the index keeps but hides its 3 images" in err
    assert len(worked(capsys, "search", "a cat", "-i", "made", "-k", 3).splitlines()) == 3
    found = json.loads(worked(capsys, "search", "--image", tmp_path / "away/10.png", "-i", "made", "--json"))
    assert [Path(one["path"]).parent for one in found] == [photos] * 5
    worked(capsys, "dedup", "-i", "made", "--threshold", 0.01, "--quiet")
    assert "more" not in Path("duplicates.jsonl").read_text(encoding="utf-8")
    assert "wrote 5 images to made.safetensors" in worked(capsys, "index", "-i", "made", "-o", "made.safetensors", *ONE)
    # The folder comes back.
    (tmp_path / "away").rename(tmp_path / "more")
    _, out, err = run(capsys, "index", "-i", "made", *ONE)
    assert ("8 images in the index: 0 encoded, 8 as before" in out, err) == (True, "")
    shutil.rmtree(tmp_path / "more")
    (tmp_path / "more").mkdir()
    _, out, err = run(capsys, "index", "-i", "made", *ONE)
    assert "the index keeps but hides its 3 images" in err
    for arguments, message in (
        (("--forget", "photos/0.png"), f"photos/0.png is part of the index's input {photos}"),
        (("--forget", "lost"), "the index has no images of "),
        (("photos", "--forget", "more"), "omit all other inputs"),
    ):
        refused(capsys, message, "index", *arguments, "-i", "made")
    forgotten = run(capsys, "index", "--forget", "more", "-i", "made")
    assert forgotten == (0, "removed 3 images of more; the index is made\n", "")
    _, out, err = run(capsys, "index", "-i", "made", *ONE)
    assert ("5 images in the index: 0 encoded, 5 as before\n" in out, err) == (True, "")


@pytest.mark.parametrize("says_the_model", [True, False])
def test_a_moved_folder_is_indexed_again_without_being_encoded(capsys, photos, telling_file, tmp_path, says_the_model):
    (photos / "torn.png").write_bytes(TORN)
    worked(capsys, "index", "photos", "-m", telling_file, *ONE)
    photos.rename(tmp_path / "pictures")
    draw(tmp_path / "pictures" / "new.png", 9)
    model = ("-m", telling_file) if says_the_model else ()
    out = worked(capsys, "index", "pictures", *model, *ONE)
    assert f"in {photos} before; their embeddings in {tmp_path / 'cache'}/mobileclip/indexes/photos-" in out
    assert "5 images in the index: 1 encoded, 4 recognised by their content" in out
    _, out, _ = run(capsys, "search", "a cat", "--json")
    assert {Path(one["path"]).parent.name for one in json.loads(out)} == {"pictures"}
    # From now on it is an index like any other.
    for inputs in (("pictures",), (), ("pictures",)):
        status, out, err = run(capsys, "index", *inputs, *ONE)
        assert (status, err, "5 images in the index: 0 encoded, 5 as before" in out) == (0, "", True)
    # What a killed process was copying is not an index, not even the newest.
    (made,) = (tmp_path / "cache/mobileclip/indexes").glob("pictures-*")
    file = shutil.copytree(made, made.parent / ".mobileclip-killed.tmp") / "index.sqlite"
    os.utime(file, (file.stat().st_atime + 9, file.stat().st_mtime + 9))
    assert f"the index is {made}\n" in run(capsys, "index", *ONE)[1]
    # Where the folder is back, its own index is as it was.
    (tmp_path / "pictures").rename(photos)
    assert "5 images in the index: 1 encoded, 4 as before" in worked(capsys, "index", "photos", *ONE)


def test_no_index_is_taken_along_to_other_pictures(capsys, photos, telling_file, tmp_path):
    def encodes(number, folder, *flags, model=telling_file):
        out = worked(capsys, "index", folder, "-m", model, *flags, *ONE)
        return f"{number} images in the index: {number} encoded" in out

    worked(capsys, "index", "photos", "-m", telling_file, *ONE)
    shutil.copytree(photos, tmp_path / "copies")
    assert encodes(4, "copies"), "the folder is still there"
    photos.rename(tmp_path / "pictures")
    shutil.rmtree(tmp_path / "copies")
    for name, number in (("0.png", 0), ("one.png", 11), ("two.png", 12)):
        draw(tmp_path / "others" / name, number)
    assert encodes(3, "others"), "most are other pictures"
    save_model(telling(seed=17), tmp_path / "other.safetensors")
    assert encodes(4, "pictures", model="other.safetensors"), "another model is asked for"
    assert encodes(4, "pictures", "-i", "named"), "an index is named"


def test_one_picture_that_cannot_be_read_is_counted_and_stops_no_script(capsys, photos, telling_file):
    (photos / "torn.png").write_bytes(TORN)
    given = ("-m", telling_file, *ONE)
    status, out, err = run(capsys, "index", photos, "-i", "made", *given)
    assert (status, "4 encoded, 1 cannot be read" in out, "torn.png" in err) == (0, True, True)
    assert run(capsys, "index", photos, "-i", "other", *given, "--strict")[0] == 1
    assert run(capsys, "dedup", photos, "-i", "third", *given, "--strict", "-o", "a.jsonl")[0] == 1
    worked(capsys, "dedup", photos, "-i", "fourth", *given, "-o", "b.jsonl")
    (photos / "3.png").unlink()
    worked(capsys, "dedup", "-i", "made", "-o", "c.jsonl")
    assert run(capsys, "dedup", "-i", "made", "-o", "d.jsonl", "--strict")[0] == 1
    (photos.parent / "none").mkdir()
    (photos / "torn.png").rename(photos.parent / "none" / "torn.png")
    assert run(capsys, "index", "none", "-i", "fifth", *given)[0] == 1


def test_lines_are_asked_one_by_one(capsys, photos, telling_file, monkeypatch):
    worked(capsys, "index", photos, "-i", "made", "-m", telling_file, *ONE)
    monkeypatch.setattr("sys.stdin", io.StringIO("a cat\n\n  two dogs \n"))
    status, out, err = run(capsys, "search", "-i", "made", "-k", 5)
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 8
    _, out, err = run(capsys, "search", "a cat", "-i", "made", "--where", "width>5000")
    assert (out, err) == ("", "nothing was found\n")


def _pictures(page):
    found = re.findall(r'src="data:image/webp;base64,([^"]*)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in found]


def test_a_page_shows_what_was_found(capsys, photos, telling_file, tmp_path):
    worked(capsys, "index", photos, "-i", "made", "-m", telling_file, *ONE)
    (photos / "3.png").unlink()
    line, explained = ("search", "a cat <b>", "-i", "made", "--not", "dogs", "-o"), tmp_path / "explained.html"
    status, _, err = run(capsys, *line, tmp_path / "found.html")
    assert (status, "wrote" in err) == (0, True)
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert ("a cat &lt;b&gt;" in page, "<b>" in page) == (True, False)
    pictures = _pictures(page)
    assert len(pictures) == 3
    worked(capsys, *line, explained, "--explain")
    page = explained.read_text(encoding="utf-8")
    assert "attribution, not segmentation" in page
    assert page.count("full colour: the location changes the score by 0.") == page.count("<li>") > 0
    for plain, drawn in zip(pictures, _pictures(page), strict=True):
        assert plain.size == drawn.size
        assert len(drawn.getcolors(2**24)) > len(plain.getcolors(2**24))
    refused(capsys, "already exists", "search", "a cat", "-i", "made", "-o", tmp_path / "found.html")


def test_duplicates_are_listed_and_kept(capsys, photos, telling_file):
    shutil.copy(photos / "1.png", photos / "copy.png")
    worked(capsys, "index", photos, "-m", telling_file, *ONE)
    out = worked(capsys, "dedup", "-o", "page.html", "--threshold", "0.999", "--quiet")
    assert "1 near-duplicates among 5 images, in 1 groups: duplicates.jsonl" in out
    (line,) = [json.loads(line) for line in Path("duplicates.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["keep"], line["duplicate"]} == {str(photos / "1.png"), str(photos / "copy.png")}
    assert "best copy" in Path("page.html").read_text(encoding="utf-8")
    assert (photos / "copy.png").exists()
    for name in ("blank.png", "white.png"):
        Image.new("RGB", (96, 80), "white").save(photos / name)
    worked(capsys, "index", photos, *ONE)
    for quiet in ((), ("--quiet",)):
        status, out, err = run(capsys, "dedup", "--threshold", "0.999", "--overwrite", *quiet)
        named = [line.strip() for line in err.splitlines() if ".png" in line]
        assert (status, named) == (0, [str(photos / "blank.png"), str(photos / "white.png")])
        assert len(out.splitlines()) == 1
        assert len(err.splitlines()) == (3 if quiet else 4), "of the search itself, a line"
    refused(capsys, "duplicates.jsonl already exists", "dedup")


def test_duplicates_of_a_folder_need_no_index(capsys, photos, telling_file):
    shutil.copy(photos / "1.png", photos / "copy.png")
    given = ("dedup", photos, "--threshold", "0.999", "-j", 1, "--quiet")
    out = worked(capsys, *given, "-m", telling_file)
    told(out, "5 images in the index: 5 encoded", "1 near-duplicates among 5 images, in 1 groups: duplicates.jsonl")
    (photos / "copy.png").unlink()
    assert "4 as before, 1 removed or moved away" in worked(capsys, *given, "-o", "again.jsonl")
    assert Path("again.jsonl").read_text(encoding="utf-8") == ""
    refused(capsys, "an existing index has its own model", "dedup", "-m", telling_file, "-o", "third.jsonl")


def test_frames_of_videos_are_printed_with_their_times(capsys, photos, telling_file):
    film(photos / "clip.mp4", [21, 22, 23])
    out = worked(capsys, "index", photos, "-m", telling_file, "--video-seconds", 2, *ONE)
    assert "7 images in the index: 7 encoded" in out
    lines = worked(capsys, "search", "a cat", "-k", 9).splitlines()
    assert (len(lines), len([line for line in lines if "clip.mp4 " in line])) == (5, 1)
    lines = worked(capsys, "search", "a cat", "--where", "time>=0", "--all-frames").splitlines()
    assert sorted(line.split("clip.mp4 ")[1] for line in lines) == ["0:00", "0:02", "0:04"]
    (found,) = json.loads(worked(capsys, "search", "a cat", "--where", "time=4", "--json"))
    assert (found["path"], found["time"]) == (str(photos / "clip.mp4"), 4)
    refused(capsys, "--video-seconds is 0.5, expected at least 1", "index", photos, "--video-seconds", 0.5)


def test_an_index_keeps_to_its_model(capsys, photos, telling_file, small_file):
    worked(capsys, "index", photos, "-i", "made", "-m", telling_file, *ONE)
    refused(capsys, "cannot be compared", "index", photos, "-i", "made", "-m", small_file, "--quiet")
    worked(capsys, "index", photos, "-i", "made", "-m", telling_file, "--quiet")
    assert len(Collection.open("made")) == 4
    shutil.move("made", "elsewhere")
    worked(capsys, "search", "a cat", "-i", "elsewhere")


def test_another_model_is_refused_by_name_before_its_weights_are_fetched(capsys, photos, telling_file, monkeypatch):
    worked(capsys, "index", photos, "-i", "made", "-m", telling_file, *ONE)
    for name in ("hf_hub_download", "list_repo_files"):
        monkeypatch.setattr(f"huggingface_hub.{name}", lambda *_, **__: pytest.fail("weights are fetched"))
    for arguments, named in (
        (("-m", "mobileclip_s2"), "mobileclip_s2"),
        (("-m", "hf-hub:apple/MobileCLIP-S1"), "hf-hub:apple/MobileCLIP-S1"),
        (("-m", "mobileclip_b", "--image-size", 256), "mobileclip_b for images of 256 pixels"),
    ):
        err = refused(capsys, named, "index", photos, "-i", "made", *arguments, "--quiet")
        assert f"the index made has the model {telling_file}, not {named}: " in " ".join(err.split())


def test_thumbnails_are_the_pictures_in_colours_and_names_do_nothing(capsys, photos, telling_file, monkeypatch):
    Image.new("RGB", (90, 30), (200, 30, 40)).save(photos / "\x1b[2Jred.png")
    (photos / "3.png").unlink()
    worked(capsys, "index", photos, "-i", "made", "-m", telling_file, *ONE)
    (photos / "2.png").write_bytes(TORN)
    (photos / "1.png").unlink()
    for name, value in (("FORCE_COLOR", "1"), ("COLORTERM", "truecolor"), ("COLUMNS", "300")):
        monkeypatch.setenv(name, value)
    status, out, err = run(capsys, "search", "a cat", "-i", "made", "--thumbnails")
    assert (status, err) == (0, "")
    # 32 x 11 pixels: two of them in every character, but for the last line.
    assert (out.count("38;2;200;30;40"), out.count("48;2;200;30;40")) == (6 * 32, 5 * 32)
    assert ("\x1b[2J" in out, "\\x1b[2Jred.png" in out) == (False, True)
    assert max(line.count("▀") for line in out.splitlines()) == 32
    assert "2.png" in out, "a picture that can no longer be read is named"
    assert "1.png" not in out, "a picture that is gone is no hit"
    refused(capsys, "--output PAGE.html writes a file", "search", "a cat", "-i", "made", "--thumbnails", "--json")


def test_slips_are_told_at_once(capsys, photos, telling_file):
    (photos.parent / "full").mkdir()
    (photos.parent / "full" / "mine.txt").write_text("mine")
    os.mkfifo(photos / "pipe")
    for arguments, message in (
        (("search", "a cat"), "there is no index in"),
        (("index",), "there is no index in"),
        (("search", "a cat", "-i", "photos"), "photos is not an index, and "),
        (("search", "a cat", "--where", "widht>1"), "did you mean 'width'"),
        (("search", "--image", "photos/0.png", "photos/1.png"), "photos/1.png is a file"),
        (("search", "--where", "width>1", "taken>2024"), "taken>2024 is a condition"),
        (("search", "a cat", "-k", "0"), "--k is 0, expected at least 1"),
        (("search", "--image", "lost.png"), "there is no lost.png; expected an image file"),
        (("search", "-o", "a.html"), "--output needs a single query"),
        (("search", "a cat", "--explain"), "add --output PAGE.html"),
        (("search", "a cat", "-o", "a.txt"), "must end with .html"),
        (("search", "a cat", "--thumbnails"), "--thumbnails needs a terminal with colours"),
        (("index", "photos", "-m", "lost.pt"), "no checkpoint at lost.pt"),
        (("index", "lost"), "expected images"),
        (("index", "photos", "-i", "full", "-m", telling_file), "full has files but no index.sqlite"),
        (("index", "photos", "-j", "0"), "--num-workers is 0"),
        (("index", "photos/pipe", "-m", telling_file), "is a pipe or a device"),
        (("index", "photos", "-m", "mobileclip_s9"), "unknown model 'mobileclip_s9'"),
    ):
        refused(capsys, message, *arguments)
    assert not (photos.parent / "cache").exists()
    assert sorted(path.name for path in (photos.parent / "full").iterdir()) == ["mine.txt"]


def test_indexes_are_merged(capsys, photos, telling_file):
    draw(photos.parent / "more" / "9.png", 9)
    for folder in ("photos", "more"):
        run(capsys, "index", folder, "-i", f"{folder}.index", "-m", telling_file, *ONE)
    status, out, err = run(capsys, "merge", "photos.index", "more.index", "-o", "all.index", "--quiet")
    assert (status, err) == (0, "")
    assert out == "5 images in all.index: 5 rows copied\n"
    out = worked(capsys, "index", "--index", "all.index", *ONE)
    assert "5 images in the index: 0 encoded, 5 as before" in out
    for arguments, message in (
        (("photos", "-o", "all.index"), "photos is not an index"),
        (("photos.index", "-o", "photos"), "photos has files but no index.sqlite"),
        (("all.index", "-o", "all.index"), "cannot be merged with itself"),
    ):
        refused(capsys, message, "merge", *arguments)


def test_an_engine_makes_an_index_and_says_how_far_it_is(capsys, photos, telling_file):
    (photos / "torn.png").write_bytes(TORN)
    given = ("index", photos, "-i", "made", "-m", telling_file, "--quiet")
    worked(capsys, "index", photos, "-i", "other", "-m", telling_file, *ONE)
    assert "--status needs --engine" in refused(capsys, "mobileclip: ", "index", "-i", "other", "--status")
    status, out, err = run(capsys, *given, "--engine", "local", "-j", 1, "--strict")
    assert status == 1
    assert "4 images in the index: 4 encoded, 1 cannot be read" in out
    assert "torn.png" in err
    assert "\nindexing: 1 of 1 groups of files done\n" in worked(capsys, "index", "-i", "made", "--status")
    refused(capsys, "--ray-address and --gpus-per-worker require --engine ray", *given, "--ray-address", "auto")


def test_a_page_that_cannot_be_served_is_told(capsys, photos, telling_file):
    assert "is not an index" in run(capsys, "serve", "--index", photos)[2]
    worked(capsys, "index", photos, "-m", telling_file, *ONE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(capsys, f"port {port} is in use by another program", "serve", "--port", port)
    assert "port is 99999, expected 1 to 65535" in run(capsys, "serve", "--port", 99999)[2]


@pytest.mark.slow
def test_a_page_is_served_to_this_machine_until_it_is_stopped(capsys, photos, telling_file):
    worked(capsys, "index", photos, "-m", telling_file, *ONE)
    command = [sys.executable, "-m", "mobileclip.cli", "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(mobileclip.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
            with urllib.request.urlopen(f"{address}api/search?text=a+cat&k=2", timeout=30) as answer:
                assert len(json.load(answer)["matches"]) == 2
        finally:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in out + err
