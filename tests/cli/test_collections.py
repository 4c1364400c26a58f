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
from mobileclip.encoders import save_model
from tests.build.commands import refused, run, worked
from tests.collections.pictures import draw, draw_all, telling
from tests.datasets.made_videos import film
from tests.engines.conftest import forked_workers  # noqa: F401  a fixture
from tests.errors import told

TORN = b"\x89PNG\r\n\x1a\n"
ONE = ("--quiet", "-j", 1)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return draw_all(tmp_path / "photos", range(4))


@pytest.fixture
def index(capsys, photos, telling_file):
    """What indexes pictures in one process, by the telling model, and returns what is printed."""
    return lambda *arguments: worked(capsys, "index", *arguments, "-m", telling_file, *ONE)


def as_json(capsys, *arguments):
    return json.loads(worked(capsys, *arguments, "--json"))


def test_names_are_printed_whole_and_forge_no_result(capsys, photos, telling_file):
    draw(photos / "a\n 0.999  forged\x1b[2J.png", 7)
    place = photos.joinpath(*(letter * 100 for letter in "abcd"))
    draw(place / "long.png", 9)
    (place / "torn.png").write_bytes(TORN)
    assert str(place / "torn.png") in run(capsys, "index", photos, "-m", telling_file, *ONE)[2]
    out = worked(capsys, "search", "a cat")
    assert len(out.splitlines()) == 6
    told(out, "a\\n 0.999  forged\\x1b[2J.png", f"{place / 'long.png'}\n")


def test_an_index_is_made_brought_up_to_date_written_and_searched(capsys, photos, index, monkeypatch):
    film(photos / "clip.mp4", [21, 22, 23])
    told(index("photos", "--video-seconds", 2), "the index is ", "7 images in the index: 7 encoded")
    first, _ = worked(capsys, "search", "--image", photos / "2.png", "-k", 2).splitlines()
    assert (first.endswith("photos/2.png"), float(first.split()[0]) > 0.99) == (True, True)
    for flags in (("--not", "people", "--not", "dogs"), ("--where", "width>1"), ("--not", "x"), ("-k", 9)):
        lines = worked(capsys, "search", *flags, "a cat").splitlines()
        assert (len(lines), len([line for line in lines if "clip.mp4 " in line])) == (5, 1)
    (found,) = as_json(capsys, "search", "a cat", "--where", "width>1", "--where", "path~photos/3")
    assert (found["path"], found["width"], found["height"]) == (str(photos / "3.png"), 96, 80)
    assert "camera" not in found
    lines = worked(capsys, "search", "a cat", "--where", "time>=0", "--all-frames").splitlines()
    assert sorted(line.split("clip.mp4 ")[1] for line in lines) == ["0:00", "0:02", "0:04"]
    (found,) = as_json(capsys, "search", "a cat", "--where", "time=4")
    assert (found["path"], found["time"]) == (str(photos / "clip.mp4"), 4)
    monkeypatch.setattr("sys.stdin", io.StringIO("a cat\n\n  two dogs \n"))
    status, out, err = run(capsys, "search", "-k", 6)
    assert (status, err, len(out.splitlines())) == (0, "", 10)
    assert run(capsys, "search", "a cat", "--where", "width>5000")[1:] == ("", "nothing was found\n")
    draw(photos / "new.png", 9)
    for name in ("0.png", "clip.mp4"):
        (photos / name).unlink()
    (photos / "torn.png").write_bytes(TORN)
    status, out, err = run(capsys, "index", "-o", "web/made.safetensors", *ONE)
    assert (status, "torn.png" in err, out.splitlines()[-1]) == (0, True, "wrote 4 images to web/made.safetensors")
    told(out, "4 images in the index: 1 encoded, 3 unchanged, 4 removed or moved away, 1 cannot be read")
    status, out, err = run(capsys, "index", "photos/", *ONE)
    assert (status, err, "4 unchanged, 1 cannot be read" in out) == (0, "", True)


def test_every_command_takes_the_index_its_pictures_or_nothing(capsys, photos, telling_file, index, tmp_path):
    draw_all(tmp_path / "others", [50])
    index("others")
    folder = index("photos").splitlines()[0].removeprefix("the index is ")
    (tmp_path / "words.txt").write_text("a kite\n")
    for name in ((), ("--index", "photos"), ("--index", folder)):  # the one that was written last, its pictures, itself
        assert {Path(one["path"]).parent for one in as_json(capsys, "search", "a cat", *name)} == {photos}
        for command in (
            ("index", *ONE),
            ("dedup", "--quiet", "--overwrite"),
            ("tag", "--vocabulary", "words.txt", "--quiet"),
            ("concept", "add", "mine", "--positive", "photos/0.png"),
            *(("concept", *words) for words in (("show", "mine"), ("ls",), ("rm", "mine"))),
            ("upgrade", "--to", telling_file, "--quiet"),
        ):
            out = worked(capsys, *command, *name)
            assert "4" in out or "mine" in out, (command, name, out)
    for number, name in enumerate(("photos", folder)):
        told(worked(capsys, "merge", name, "others", "-o", f"both{number}", "--quiet"), "5 images in both", "5 rows")
    assert "5 images in the index: 0 encoded, 5 unchanged" in worked(capsys, "index", "--index", "both0", *ONE)


def test_a_folder_that_is_gone_ends_nothing_until_it_is_forgotten(capsys, photos, index, tmp_path):
    index("photos", draw_all(tmp_path / "more", range(10, 13)), "-i", "made")
    shutil.rmtree(tmp_path / "more")
    draw(photos / "new.png", 9)
    status, out, err = run(capsys, "index", "-i", "made", *ONE)
    assert (status, "8 images in the index: 1 encoded, 4 unchanged, 3 kept from missing folders" in out) == (0, True)
    assert f"{tmp_path}/more is missing or empty: the index keeps but hides its 3 images" in err
    worked(capsys, "dedup", "-i", "made", "--threshold", 0.01, "--quiet")
    assert "more" not in Path("duplicates.jsonl").read_text(encoding="utf-8")
    for arguments, message in (
        (("--forget", "photos/0.png"), f"photos/0.png is part of the index's input {photos}"),
        (("--forget", "lost"), "the index has no images of "),
        (("photos", "--forget", "more"), "omit all other inputs"),
    ):
        refused(capsys, message, "index", *arguments, "-i", "made")
    forgotten = run(capsys, "index", "--forget", "more", "-i", "made")
    assert forgotten == (0, "removed 3 images of more; the index is made\n", "")
    _, out, err = run(capsys, "index", "-i", "made", *ONE)
    assert ("5 images in the index: 0 encoded, 5 unchanged\n" in out, err) == (True, "")


@pytest.mark.parametrize("says_the_model", [True, False])
def test_a_moved_folder_is_indexed_again_without_being_encoded(capsys, photos, index, telling_file, says_the_model):
    indexes = photos.parent / "cache/mobileclip/indexes"
    (photos / "torn.png").write_bytes(TORN)
    index("photos")
    Path("words.txt").write_text("a kite\n")
    worked(capsys, "concept", "add", "mine", "--positive", "photos/0.png")
    worked(capsys, "tag", "--vocabulary", "words.txt", "--share", 0.5, "--quiet")
    draw(photos.rename("pictures") / "new.png", 9)
    out = worked(capsys, "index", "pictures", *(("-m", telling_file) if says_the_model else ()), *ONE)
    told(
        out,
        f"in {photos} before; the new index reuses the embeddings in {indexes}/photos-",
        "5 images in the index: 1 encoded, 4 recognised by content",
    )
    for flags in ((), ("--where", "tag=a kite")):
        found = as_json(capsys, "search", '@"mine"', *flags)
        assert {Path(one["path"]).parent.name for one in found} == {"pictures"}
    # From now on it is an index like any other.
    for inputs in (("pictures",), (), ("pictures",)):
        status, out, err = run(capsys, "index", *inputs, *ONE)
        assert (status, err, "5 images in the index: 0 encoded, 5 unchanged" in out) == (0, "", True)
    # What a killed process was copying is not an index, not even the newest.
    (made,) = indexes.glob("pictures-*")
    file = shutil.copytree(made, made.parent / ".mobileclip-killed.tmp") / "index.sqlite"
    os.utime(file, (file.stat().st_atime + 9, file.stat().st_mtime + 9))
    assert f"the index is {made}\n" in run(capsys, "index", *ONE)[1]
    # Where the folder is back, its own index is as it was.
    Path("pictures").rename(photos)
    assert "5 images in the index: 1 encoded, 4 unchanged" in worked(capsys, "index", "photos", *ONE)


def test_no_index_is_taken_along_to_other_pictures(capsys, photos, index, tmp_path):
    index("photos")
    shutil.copytree(photos, tmp_path / "copies")
    assert "4 images in the index: 4 encoded" in index("copies"), "the folder is still there"
    photos.rename(tmp_path / "pictures")
    shutil.rmtree(tmp_path / "copies")
    draw_all(tmp_path / "others", (0, 11, 12))
    assert "3 images in the index: 3 encoded" in index("others"), "most are other pictures"
    save_model(telling(seed=17), tmp_path / "other.safetensors")
    out = worked(capsys, "index", "pictures", "-m", "other.safetensors", *ONE)
    assert "4 images in the index: 4 encoded" in out, "another model is asked for"
    assert "4 images in the index: 4 encoded" in index("pictures", "-i", "named"), "an index is named"


def test_one_picture_that_cannot_be_read_is_counted_and_stops_no_script(capsys, photos, telling_file):
    (photos / "torn.png").write_bytes(TORN)
    given = ("-m", telling_file, *ONE)
    status, out, err = run(capsys, "index", photos, "-i", "made", *given)
    assert (status, "4 encoded, 1 cannot be read" in out, "torn.png" in err) == (0, True, True)
    assert run(capsys, "index", photos, "-i", "other", *given, "--strict")[0] == 1
    assert run(capsys, "dedup", photos, "-i", "third", *given, "--strict", "-o", "a.jsonl")[0] == 1
    worked(capsys, "dedup", photos, "-i", "third", *given, "-o", "b.jsonl")
    (photos / "3.png").unlink()
    worked(capsys, "dedup", "-i", "made", "-o", "c.jsonl")
    assert run(capsys, "dedup", "-i", "made", "-o", "d.jsonl", "--strict")[0] == 1
    Path("none").mkdir()
    (photos / "torn.png").rename("none/torn.png")
    assert run(capsys, "index", "none", "-i", "fifth", *given)[0] == 1


def pictures_of(page):
    found = re.findall(r'src="data:image/webp;base64,([^"]*)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in found]


def test_a_page_shows_what_was_found(capsys, photos, index):
    index("photos", "-i", "made")
    (photos / "3.png").unlink()
    line = ("search", "a cat <b>", "-i", "made", "--not", "dogs", "-o")
    assert "wrote" in run(capsys, *line, "found.html")[2]
    worked(capsys, *line, "explained.html", "--explain")
    found, explained = (Path(f"{name}.html").read_text(encoding="utf-8") for name in ("found", "explained"))
    assert ("a cat &lt;b&gt;" in found, "<b>" in found, len(pictures_of(found))) == (True, False, 3)
    told(explained, "attribution, not segmentation")
    assert explained.count("full colour: the location changes the score by 0.") == explained.count("<li>") > 0
    for plain, drawn in zip(pictures_of(found), pictures_of(explained), strict=True):
        assert plain.size == drawn.size
        assert len(drawn.getcolors(2**24)) > len(plain.getcolors(2**24))
    refused(capsys, "already exists", *line, "found.html")


def test_duplicates_are_listed_and_kept_with_or_without_an_index(capsys, photos, telling_file, index):
    shutil.copy(photos / "1.png", photos / "copy.png")
    given = ("dedup", photos, "--threshold", "0.999", *ONE)
    out = worked(capsys, *given, "-o", "page.html", "-m", telling_file)
    told(out, "5 images in the index: 5 encoded", "1 near-duplicates among 5 images, in 1 groups: duplicates.jsonl")
    line = json.loads(Path("duplicates.jsonl").read_text(encoding="utf-8"))
    assert {line["keep"], line["duplicate"]} == {str(photos / "1.png"), str(photos / "copy.png")}
    assert "best copy" in Path("page.html").read_text(encoding="utf-8")
    refused(capsys, "duplicates.jsonl already exists", "dedup")
    (photos / "copy.png").unlink()
    assert "4 unchanged, 1 removed or moved away" in worked(capsys, *given, "-o", "again.jsonl")
    assert Path("again.jsonl").read_text(encoding="utf-8") == ""
    refused(capsys, "an existing index has its own model", "dedup", "-m", telling_file, "-o", "third.jsonl")
    for name in ("blank.png", "white.png"):
        Image.new("RGB", (96, 80), "white").save(photos / name)
    index("photos")
    for quiet, num_lines in (((), 4), (("--quiet",), 3)):  # of the search itself, a line
        status, out, err = run(capsys, "dedup", "--threshold", "0.999", "--overwrite", *quiet)
        named = [line.strip() for line in err.splitlines() if ".png" in line]
        assert (status, named) == (0, [str(photos / "blank.png"), str(photos / "white.png")])
        assert (out.count("\n"), err.count("\n")) == (1, num_lines)


def test_an_index_keeps_to_its_model_and_refuses_another_before_its_weights_are_fetched(
    capsys, index, telling_file, small_file, monkeypatch
):
    index("photos", "-i", "made")
    for name in ("hf_hub_download", "list_repo_files"):
        monkeypatch.setattr(f"huggingface_hub.{name}", lambda *_, **__: pytest.fail("weights are fetched"))
    for arguments, named in (
        ((small_file,), "cannot be compared"),
        (("mobileclip_s2",), f"the index made has the model {telling_file}, not mobileclip_s2: "),
        (("hf-hub:apple/MobileCLIP-S1",), "not hf-hub:apple/MobileCLIP-S1: "),
        (("mobileclip_b", "--image-size", 256), "not mobileclip_b for images of 256 pixels: "),
    ):
        told(refused(capsys, "", "index", "photos", "-i", "made", "--quiet", "-m", *arguments), named)
    assert "4 unchanged" in index("photos", "-i", "made")
    shutil.move("made", "elsewhere")
    worked(capsys, "search", "a cat", "-i", "elsewhere")


def test_thumbnails_are_the_pictures_in_colours_and_names_do_nothing(capsys, photos, index, monkeypatch):
    Image.new("RGB", (90, 30), (200, 30, 40)).save(photos / "\x1b[2Jred.png")
    index("photos")
    (photos / "2.png").write_bytes(TORN)
    for name in ("1.png", "3.png"):
        (photos / name).unlink()
    for name, value in (("FORCE_COLOR", "1"), ("COLORTERM", "truecolor"), ("COLUMNS", "300")):
        monkeypatch.setenv(name, value)
    status, out, err = run(capsys, "search", "a cat", "--thumbnails")
    assert (status, err) == (0, "")
    # 32 x 11 pixels: two of them in every character, but for the last line.
    assert (out.count("38;2;200;30;40"), out.count("48;2;200;30;40")) == (6 * 32, 5 * 32)
    assert ("\x1b[2J" in out, "\\x1b[2Jred.png" in out) == (False, True)
    assert max(line.count("▀") for line in out.splitlines()) == 32
    assert ("2.png" in out, "1.png" in out) == (True, False), "one cannot be read any more, and one is gone"
    refused(capsys, "--output PAGE.html writes a file", "search", "a cat", "--thumbnails", "--json")


def test_slips_are_told_at_once(capsys, photos, telling_file):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    Path("kept.safetensors").write_text("mine")
    os.mkfifo(photos / "pipe")
    for arguments, message in (
        (("search", "a cat"), "there is no index in"),
        (("index",), "there is no index in"),
        (("search", "a cat", "-i", "photos"), "photos is not an index, and "),
        (("search", "a cat", "-i", "nowhere"), "nowhere"),
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
        (("index", "photos", "-o", "kept.safetensors"), "already exists"),
        (("index", "photos", "--video-seconds", 0.5), "--video-seconds is 0.5, expected at least 1"),
        (("index", "photos/pipe", "-m", telling_file), "is a pipe or a device"),
        (("index", "photos", "-m", "mobileclip_s9"), "unknown model 'mobileclip_s9'"),
        (("merge", "photos", "-o", "new"), "photos is not an index"),
        (("serve", "--index", "photos"), "is not an index"),
    ):
        refused(capsys, message, *arguments)
    assert not Path("cache").exists()
    assert [path.name for path in Path("full").iterdir()] == ["mine.txt"]


def test_slips_with_an_index_are_told(capsys, index):
    index("photos", "-i", "made")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in (
            (("merge", "made", "-o", "photos"), "photos has files but no index.sqlite"),
            (("merge", "made", "-o", "made"), "cannot be merged with itself"),
            (("index", "-i", "made", "--status"), "--status needs --engine"),
            (("index", "-i", "made", "--engine", "local", "--ray-address", "auto"), "require --engine ray"),
            (("serve", "--index", "made", "--port", port), f"port {port} is in use by another program"),
            (("serve", "--index", "made", "--port", 99999), "port is 99999, expected 1 to 65535"),
        ):
            refused(capsys, message, *arguments)


def test_an_engine_makes_an_index_and_says_how_far_it_is(capsys, photos, telling_file):
    (photos / "torn.png").write_bytes(TORN)
    given = ("index", photos, "-i", "made", "-m", telling_file, "--quiet", "--engine", "local", "-j", 1, "--strict")
    status, out, err = run(capsys, *given)
    assert (status, "torn.png" in err) == (1, True)
    told(out, "4 images in the index: 4 encoded, 1 cannot be read")
    assert "\nindexing: 1 of 1 groups of files done\n" in worked(capsys, "index", "-i", "made", "--status")


@pytest.mark.slow
def test_a_page_is_served_to_this_machine_until_it_is_stopped(index):
    index("photos")
    command = [sys.executable, "-m", "mobileclip.cli", "serve", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(mobileclip.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
            with urllib.request.urlopen(f"{address}api/search?text=a+cat&k=2", timeout=30) as answer:
                assert len(json.load(answer)["matches"]) == 2
        finally:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in out + err
