"""Commands where things are not as usual: no home, no user, closed streams, one core, long paths, odd names."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from tests.build.commands import refused, worked
from tests.collections.pictures import draw_all
from tests.crash.world import COMMANDS
from tests.errors import fails, told
from tests.preloaded import preloaded

ROOT = Path(__file__).parents[2]
MODEL = "model.safetensors"
ONE = ("--quiet", "-j", "1")
LONG = "/".join(letter * 100 for letter in "abc")


@pytest.fixture
def world(telling_file, tmp_path, monkeypatch):
    """The current folder, with a model, and with pictures in two classes."""
    shutil.copy(telling_file, tmp_path / MODEL)
    for name, seeds in (("a", (0, 2)), ("b", (1, 3))):
        draw_all(tmp_path / "photos" / name, seeds)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def by_shell(folder, script, *command, **options):
    """Run a command as a shell does that prepares it, with this library on its path."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    line = ["sh", "-c", f'{script} "$@"', "sh", *command]
    return subprocess.run(line, cwd=folder, env=environment, check=False, timeout=120, **options)


def key_of_results(world):
    """Return the key of the one line of results."""
    (path,) = (world / "results").rglob("results.jsonl")
    (line,) = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return json.loads(line)["key"]


ONE_AFTER_ANOTHER = """
import json, sys
from mobileclip.cli import main
for line in json.loads(sys.argv[1]):
    main(line)
"""


def test_what_a_library_prints_never_goes_into_a_file_that_is_written(tmp_path):
    code = """
import os, sys
from mobileclip import storage
from mobileclip.terminal import ensure_streams, say
ensure_streams()
assert sys.stdin.read() == ""
with storage.atomic_write("file") as stream:
    os.write(1, b"what a library in C prints")
    os.write(2, b"and its warnings")
    stream.write(b"content")
    say("a line")
    say("a line", error=True)
"""
    assert by_shell(tmp_path, "exec <&- >&- 2>&-; exec", sys.executable, "-c", code).returncode == 0
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.fixture
def nobody():
    """The beginning of a command line that runs as a user without a name and a home, where the system lets it."""
    begin = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    names = [f"--unset={name}" for name in ("HOME", "USER", "LOGNAME", "USERNAME", "XDG_CACHE_HOME")]
    if shutil.which("unshare") is None or subprocess.run([*begin, "true"], check=False, capture_output=True).returncode:
        return []
    return [*begin, "env", *names]


def test_closed_streams_of_a_user_without_a_home_and_a_name(world, nobody):
    """Every command works, in one process; an index needs a place at last, since there is no home for it.

    The shell closes them, and what is handed down is gone before Python begins.
    """
    lines = [
        ("embed", "photos", "-m", MODEL, "-o", "e.npz"),
        ("index", "photos", "-i", "idx", "-m", MODEL, "-j", "1"),
        ("eval", MODEL, "photos", "--output", "results"),
        *([("index", "photos", "-m", MODEL)] if nobody else []),
    ]
    command = [*nobody, sys.executable, "-W", "ignore", "-c", ONE_AFTER_ANOTHER, json.dumps(lines)]
    done = by_shell(world, "exec <&- >&- 2>errors.txt; exec", *command)
    errors = (world / "errors.txt").read_text(encoding="utf-8")
    assert "Traceback" not in errors
    assert done.returncode == (2 if nobody else 0), errors  # not every system lets a process take another user
    if nobody:
        told(errors.splitlines()[-1], "mobileclip: ", "no home folder", "--index FOLDER")
    assert key_of_results(world) == "photos"
    assert all((world / file).stat().st_size > 0 for file in ("e.npz", "idx/index.sqlite"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no folder that is in use")
@pytest.mark.parametrize("line", ["info icons", "train s0 --tiny", "index photos", "runs a", "recipes ls"])
def test_a_deleted_folder_is_told_in_a_line(line, tmp_path):
    """In a process that imports everything itself, as PyTorch ends one that imports it there."""
    command = [sys.executable, "-m", "mobileclip.cli", *line.split()]
    (tmp_path / "gone").mkdir()
    done = by_shell(tmp_path / "gone", 'rmdir "$PWD" && exec', *command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "was deleted" in done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins no processes")
def test_one_core_is_one_core(tmp_path):
    done = preloaded().call("tests.cli.test_surroundings:uses_one_core", folder=tmp_path)
    assert done.status == 0, done.output


def uses_one_core():
    """Look at what is shared out to cores, as `taskset -c 0` leaves one; for a process of its own."""
    from mobileclip.engines import default_num_threads
    from mobileclip.processes import default_workers, num_cores

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    assert num_cores() == default_workers(None) == default_num_threads("cpu", 1) == 1


def test_cores_are_counted_in_one_place():
    files = (ROOT / "mobileclip").rglob("*.py")
    counting = [path for path in files if "cpu_count" in path.read_text(encoding="utf-8")]
    assert counting == [ROOT / "mobileclip" / "processes.py"]


def test_a_packaged_model_wins_over_a_folder_of_its_name(world, capsys, monkeypatch):
    (world / "photos").rename(world / "icons")
    assert json.loads(worked(capsys, "info", "icons"))["card"].endswith("icons.md")
    worked(capsys, "index", "icons", "-i", "idx", "-m", "icons", *ONE)
    worked(capsys, "eval", "icons", "./icons", "--output", "results")
    assert key_of_results(world) == "icons"
    refused(capsys, "holds no checkpoint", "classify", "icons/a/0.png", "x", "y", "-m", "./icons")
    # The index knows its model by its name from anywhere.
    (world / "elsewhere").mkdir()
    monkeypatch.chdir(world / "elsewhere")
    worked(capsys, "search", "a cat", "-i", "../idx")


def test_an_export_in_a_folder_of_that_name_is_opened_by_its_path_alone(tmp_path, monkeypatch):
    from mobileclip.encoders import CheckpointError, load_model
    from mobileclip.encoders.checkpoints import packaged

    (tmp_path / "icons").mkdir()
    (tmp_path / "icons" / "mobileclip.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert load_model("icons").spec.image.embedding_dim
    for place in ("./icons", Path("icons")):
        with fails(CheckpointError, "export"):
            load_model(place)
    assert (packaged("icons") is None, packaged(Path("icons")) is None) == (False, True)
    shutil.rmtree(tmp_path / "icons")
    assert packaged(Path("icons")) == packaged("icons")


def test_paths_longer_than_a_name_can_be(world, capsys):
    (world / LONG).parent.mkdir(parents=True)
    (world / "photos").rename(world / LONG)
    for arguments in (
        ("embed", LONG, "-m", MODEL, "-o", f"{LONG}/out/e.npz"),
        ("index", LONG, "-i", f"{LONG}/out/idx", "-m", MODEL, *ONE),
        ("dedup", "-i", f"{LONG}/out/idx", "-o", f"{LONG}/out/l.jsonl", "-o", f"{LONG}/out/l.html", "--quiet"),
        ("convert", MODEL, "-o", f"{LONG}/out/m.safetensors"),
        ("hub", "save", MODEL, "-o", f"{LONG}/out/saved", "--license", "mit"),
    ):
        worked(capsys, *arguments)


def test_a_shard_whose_folders_are_longer_than_a_name_can_be_is_reinforced(tmp_path):
    from mobileclip.reinforce import ReinforcementSpec
    from mobileclip.serialization import from_json, to_json

    COMMANDS["reinforce"].make(tmp_path)
    shards = ["00000000.tar", f"{LONG}/00000001.tar"]
    (tmp_path / "plain" / LONG).mkdir(parents=True)
    (tmp_path / "plain" / "00000001.tar").rename(tmp_path / "plain" / shards[1])
    spec = from_json((tmp_path / "spec.json").read_text(), ReinforcementSpec)
    spec = attrs.evolve(spec, source=[str(tmp_path / "plain" / name) for name in shards])
    (tmp_path / "spec.json").write_text(to_json(spec))
    done = COMMANDS["reinforce"].run(tmp_path)
    assert done.status == 0, done.output
    assert set((tmp_path / "reinforced").rglob("*.tar")) == {tmp_path / "reinforced" / name for name in shards}


def test_a_folder_whose_name_is_as_long_as_names_can_be_is_exported(tmp_path):
    from mobileclip.encoders import TextTransformerSpec
    from mobileclip.export import ExportSpec, export_model
    from tests.export.models import few_samples

    tower = TextTransformerSpec(width=16, depth=1, num_heads=2, embedding_dim=8).build().eval()
    spec = ExportSpec(output=tmp_path / ("x" * 255), target="torch", tower="text")
    export_model(tower, spec, samples=few_samples(), show_progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x" * 255]


def test_a_separator_of_lines_that_only_unicode_has_is_a_character_of_a_name_and_of_a_text(world, capsys):
    from mobileclip.inference.embedding import read_embeddings

    name = "pho\u2028\u2029\x85\x0b\x0c\x1ctos"
    (world / "photos").rename(world / name)
    for _ in range(2):
        worked(capsys, "eval", MODEL, name, "--output", "results")
    assert key_of_results(world) == name
    (world / "texts.txt").write_text("one\u2028line\r\nthe second\x0cline\n\nthe third", encoding="utf-8", newline="")
    worked(capsys, "embed", "--texts", "texts.txt", "-m", MODEL, "-o", "t.npz")
    assert read_embeddings(world / "t.npz").texts == ("one\u2028line", "the second\x0cline", "the third")
