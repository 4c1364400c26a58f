"""Every long command is ended by real signals to all its processes, says so in a line, and leaves no halves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch

from mobileclip.data import ReinforcementCard, write_card, write_shard
from mobileclip.encoders import save_model
from mobileclip.reinforce import Manifest, ShardEntry
from tests.data.made_samples import encoded, make_sample, write_raw
from tests.descendants import descendants, kill_all, wait_until_gone
from tests.encoders.small import SMALL
from tests.examples.quickstart.drawings import write_packages
from tests.preloaded import preloaded
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
CLI = ["-m", "mobileclip.cli"]


def nothing(_folder: Path) -> None:
    """Prepare nothing."""


def pictures(folder: Path) -> None:
    model(folder)
    (folder / "pictures").mkdir()
    picture = (ROOT / "tests/golden/augment/images/chelsea.png").read_bytes()
    for index in range(3000):
        (folder / "pictures" / f"{index}.jpg").write_bytes(picture)


def model(folder: Path) -> None:
    torch.manual_seed(0)
    save_model(SMALL.build(), folder / "small.safetensors")


def reinforced(folder: Path) -> None:
    (folder / "data").mkdir()
    write_card(folder / "data", ReinforcementCard(layout="npz", num_augmentations=3))
    first = write_shard(folder / "data" / "000.tar", [make_sample(number) for number in range(40)])
    manifest = Manifest(folder / "data")
    for number in range(100):
        shard = f"{number:03d}.tar"
        if number:
            shutil.copy(first, folder / "data" / shard)
        manifest.add(ShardEntry(shard=shard, fingerprint="", num_samples=40, num_bytes=first.stat().st_size))


def without_images(folder: Path) -> None:
    for number in range(60):
        samples = [attrs.evolve(make_sample(10 * number + one), image=None) for one in range(10)]
        write_shard(folder / f"r{number:02d}.tar", samples)
    write_raw(folder / "images.tar", {f"{number:06d}": {"png": encoded(40, 30)} for number in range(600)})


def drawings(folder: Path) -> None:
    write_packages(folder / "outputs/quickstart/data/download/node_modules")


@attrs.frozen
class Command:
    """A command line, what lies there before, and what shows that it is at work.

    Args:
        arguments: of Python.
        sign: a pattern of files, or of those that the process has open.
        prepare: makes what the command reads, in a folder.
        seconds: from the sign to the signal.
        untouched: whether it writes nothing where it is interrupted.
    """

    arguments: list[str | Path]
    sign: str
    prepare: Callable[[Path], None] = nothing
    seconds: float = 0.5
    untouched: bool = False


COMMANDS = {
    "reinforce": Command(
        [RECIPES / "reinforce_dfndr2b.py", "--tiny", "--num-workers", "2"], "outputs/DFNDR-2B-tiny/.mobileclip-*"
    ),
    "finetune": Command([RECIPES / "finetune.py", "--tiny"], "outputs/tiny/finetuning/pretraining/metrics.jsonl"),
    "evaluate": Command(
        [RECIPES / "evaluate.py", "--tiny"], "outputs/evaluate-tiny/made/wds_scenes_test/test/nshards.txt"
    ),
    "train": Command([RECIPES / "train_vit_b16_12m.py", "plain", "--tiny"], "outputs/tiny/reinforced/*"),
    "embed": Command(
        [*CLI, "embed", "pictures", "-m", "small.safetensors", "-o", "all.npz"],
        "open:pictures/*.jpg",
        pictures,
        seconds=0.0,
        untouched=True,
    ),
    "export": Command(
        [*CLI, "export", "small.safetensors", "--target", "torch", "-o", "out"],
        ".mobileclip-*.tmp",
        model,
        untouched=True,
    ),
    "data join": Command(
        [*CLI, "data", "join", "r{00..59}.tar", "images.tar", "-o", "joined"],
        "joined/join/r02.parquet",
        without_images,
        seconds=0.0,
    ),
    "data verify": Command(
        [*CLI, "data", "check", "data", "--samples", "0"], "open:data/*.tar", reinforced, seconds=0.0, untouched=True
    ),
    "quickstart": Command(
        ["-m", "examples.quickstart", "--concept-share", "1.0"],
        "outputs/quickstart/data/renderings/*.tar",
        drawings,
        seconds=0.0,
    ),
}
# Each command by one signal in every run of the tests, where that takes seconds.
QUICK = {
    ("export", signal.SIGINT),
    ("data join", signal.SIGTERM),
    ("data verify", signal.SIGINT),
    ("quickstart", signal.SIGTERM),
}


def shows(sign: str, folder: Path, pid: int) -> bool:
    """Return whether there is such a file, or whether the process has one open."""
    opened = sign.partition("open:")[2]
    if not opened:
        return any(folder.glob(sign))
    files = {str(path) for path in folder.glob(opened)}
    try:
        return any(str(handle.readlink()) in files for handle in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_whole(folder: Path) -> None:
    """Shards and JSON can be read to their ends, and nothing is there that was to become something."""
    for path in folder.rglob("*"):
        assert path.suffix not in (".tmp", ".partial", ".exporting"), path
        assert not path.name.endswith("-journal"), path
        if path.suffix == ".tar":
            with tarfile.open(path) as archive:
                assert all(len(archive.extractfile(member).read()) == member.size for member in archive)
            assert path.read_bytes().endswith(bytes(1024)), path
        elif path.suffix == ".json":
            json.loads(path.read_bytes())


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param(name, number, marks=() if (name, number) in QUICK else pytest.mark.slow)
        for name in COMMANDS
        for number in (signal.SIGINT, signal.SIGTERM)
    ],
)
def test_a_signal_ends_a_command_and_all_its_processes(name, number, tmp_path):
    command = COMMANDS[name]
    command.prepare(tmp_path)
    before = contents(tmp_path) if command.untouched else {}
    process = preloaded().start(*command.arguments, folder=tmp_path, environment={"PYTHONPATH": f"{ROOT}"})
    try:
        wait_for(lambda: shows(command.sign, tmp_path, process.pid), process, every=0.005)
        time.sleep(command.seconds)
        assert process.poll() is None, process.communicate()[1][-2000:]
        below = descendants(process.pid)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    finally:
        kill_all(process)
    assert process.returncode == 128 + number, errors[-2000:]
    assert "Traceback" not in errors, errors[-2000:]
    last = errors.strip().splitlines()[-1]
    assert f"interrupted by {number.name}; " in last
    wait_until_gone(below)
    assert_whole(tmp_path)
    if command.untouched:
        assert contents(tmp_path) == before
