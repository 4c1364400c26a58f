"""The folder that command lines are tried in: files as people have them, and some that nobody should have."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from PIL import Image

from mobileclip import reparameterize
from mobileclip.encoders import save_model
from tests.encoders.small import SMALL, randomised
from tests.trials.harness import Finished, run_command

GOLDEN = Path(__file__).parents[1] / "golden"

# What a person is told in one message.
_MAX_LINES = 12
# Of what commands write: of each there is a file to keep, and a link that leads nowhere.
WRITTEN = (".npz", ".safetensors", ".png", ".html", ".jsonl")


@cache
def template() -> Path:
    """Return a folder with everything, made once a process."""
    root = Path(tempfile.mkdtemp(prefix="trial-commands-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    _checkpoints(root)
    _pictures(root)
    _texts(root)
    _outputs(root)
    return root


def enter(folder: Path) -> dict[str, str]:
    """Fill a case's folder, and return what is in it."""
    shutil.copytree(template(), folder, symlinks=True, dirs_exist_ok=True)
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "b.png").read_bytes())
    return contents(folder)


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of every file, where links lead to, and the folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).hex()
        if path.is_symlink():
            found[name] = f"link {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def refused(folder: Path, arguments: list[str], told: str = "", status: int = 2) -> None:
    """Assert that a command line is refused by one message, and that nothing is changed by it.

    Args:
        folder: of the case.
        arguments: what is typed.
        told: what the message must say.
        status: that the command ends with.
    """
    before = enter(folder)
    done = run_command(arguments)
    assert done.status == status, f"status {done.status}: {done.output[-500:]} {done.errors[-500:]}"
    message = done.errors + (done.output if "╭" in done.output else "")
    assert message.strip(), "nothing was said"
    assert len(message) <= 3000, f"{len(message)} characters: {message[:300]}"
    assert "Traceback" not in message
    assert told in " ".join(message.split()), f"{told!r} is not in {message!r}"
    if message.startswith("mobileclip: "):
        assert message.count("\n") <= _MAX_LINES
        assert message.replace("\n", "").isprintable(), repr(message)
    assert contents(folder) == before, "files were changed"


def accepted(folder: Path, arguments: list[str], *, new: str = "", status: int = 0) -> Finished:
    """Run a command line that is right; nothing that was there is changed, and one file comes to it.

    Args:
        folder: of the case.
        arguments: what is typed.
        new: the file that is written; none if empty.
        status: that the command ends with.
    """
    before = enter(folder)
    done = run_command(arguments)
    assert done.status == status, f"status {done.status}: {done.errors[-500:]}"
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before, "files were changed"
    added = [bytes.fromhex(name).decode(errors="replace") for name in after if name not in before]
    assert added == ([new] if new else []), added
    return done


def _checkpoints(root: Path) -> None:
    model = randomised(SMALL)
    save_model(model, root / "small.safetensors")
    save_model(model.image_encoder, root / "tower.safetensors")
    save_model(reparameterize(model), root / "folded.safetensors")
    whole = (root / "small.safetensors").read_bytes()
    (root / "torn.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "small.pt").write_bytes(b"\x80\x04.")
    (root / "empty.pt").touch()
    (root / "text.pt").write_text("no weights", encoding="utf-8")


def _pictures(root: Path) -> None:
    Image.new("RGB", (32, 24), "red").save(root / "a.jpg")
    Image.new("RGB", (32, 24), "blue").save(root / "b.png")
    (root / "torn.png").write_bytes((root / "b.png").read_bytes()[:40])
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("no picture", encoding="utf-8")
    for folder in ("photos", "classes/red", "classes/blue", "one_class/red", "flat"):
        (root / folder).mkdir(parents=True)
        shutil.copy(root / "a.jpg", root / folder / "a.jpg")
        shutil.copy(root / "b.png", root / folder / "b.png")
    shutil.copy(root / "torn.png", root / "photos" / "torn.png")
    for folder in ("empty", "notes"):
        (root / folder).mkdir()
    (root / "notes" / "a.txt").write_text("x", encoding="utf-8")
    shutil.copy(GOLDEN / "shards" / "datacompdr_npz.tar", root / "reinforced.tar")
    (root / "torn.tar").write_bytes((root / "reinforced.tar").read_bytes()[:1000])
    (root / "torn_shards").mkdir()
    (root / "torn_shards" / "0.tar").write_bytes(b"torn")


def _texts(root: Path) -> None:
    (root / "captions.txt").write_text("a cat\na dog\n", encoding="utf-8")
    (root / "latin.txt").write_bytes("Café".encode("latin-1"))
    (root / "blank.txt").write_text("\n \n", encoding="utf-8")
    (root / "long.txt").write_text("x" * 20_000, encoding="utf-8")
    (root / "bad.jsonl").write_text('{"image": 1}\n', encoding="utf-8")
    (root / "table.csv").write_text("a,b\n", encoding="utf-8")
    result = {"key": "vtab/pets", "dataset": "Pets", "metrics": {"main_metric": 0.5}}
    (root / "results.jsonl").write_text(json.dumps(result) + "\n", encoding="utf-8")
    (root / "nan.jsonl").write_text(json.dumps(result).replace("0.5", "NaN") + "\n", encoding="utf-8")
    (root / "keyless.jsonl").write_text('{"metrics": {"main_metric": 1}}\n', encoding="utf-8")
    (root / "list.jsonl").write_text("[1, 2]\n", encoding="utf-8")
    (root / "deep.jsonl").write_text("[" * 100_000 + "\n", encoding="utf-8")


def _outputs(root: Path) -> None:
    for suffix in (*WRITTEN, ".pt"):
        (root / f"kept{suffix}").write_bytes(b"the work of hours")
    (root / "kept_folder").mkdir()
    (root / "kept_folder" / "thesis.txt").write_text("the work of years", encoding="utf-8")
    (root / "kept_export").mkdir()
    (root / "kept_export" / "mobileclip.json").write_text("{}", encoding="utf-8")
    for suffix in (*WRITTEN, ".jpg"):
        (root / f"link{suffix}").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
