"""Reinforcement that is killed again and again, at random moments, and finished: compared with one that nobody touched.

`python -m tests.reinforce.kills --engine local --processes 2 --kills 20` prints what became of it, and fails where a
byte differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import attrs

from benchmarks.object_store import ObjectStore, object_store
from mobileclip.data import AugmentationSpec
from mobileclip.engines import RUN
from mobileclip.inference import processor
from mobileclip.reinforce import ReinforcementSpec
from mobileclip.storage import LOCK
from mobileclip.terminal import say
from tests.descendants import are_gone, descendants
from tests.reinforce.conftest import plain_shards, small_teacher_files
from tests.reinforce.program import start

MANIFEST, TAIL, STAGING = "manifest.jsonl", "manifest.tail.jsonl", ".staging"
ENGINES = ("inline", "local", "ray")
SECONDS_OF_A_START = 4.0
SECONDS_OF_WORK = 300.0


def trial(
    folder: Path,
    *,
    engine: str,
    num_processes: int,
    num_kills: int,
    num_shards: int,
    num_samples: int,
    seed: int,
    store: ObjectStore | None = None,
) -> str:
    """Kill a reinforcement so often, finish it, and return what happened.

    Every other kill takes the first process alone, whose workers must end by themselves; the others take all at once.
    Ray's processes may live on for minutes: they get a moment to write what they can, and are killed too.

    Args:
        folder: where it works.
        engine: one of `ENGINES`.
        num_processes: workers; 1 for `inline`.
        num_kills: runs that are killed: each fifth while it starts, the others after some shards or none.
        num_shards: of the source.
        num_samples: in a shard; one of the source cannot be read, and is left out with its reason.
        seed: of the moments.
        store: where the output is, in place of the folder: a driver that is killed leaves its lease there, as one whose
            machine is gone does, and the next one takes over.

    Raises:
        AssertionError: if a byte of the output differs from that of an undisturbed run, something that was finished is
            lost or done twice, or a process is left behind.
    """
    rng = random.Random(seed)
    (folder / "plain").mkdir()
    spec = ReinforcementSpec(
        source=plain_shards(folder / "plain", num_shards, num_samples, broken=(num_shards // 2, 1)),
        output=_output(folder, "killed", store),
        teachers=small_teacher_files(folder),
        augmentation=AugmentationSpec(size=64, reference_size=64, scale=(0.3, 1.0)),
        num_augmentations=2,
        seed=7,
        layout="npz",
        batch_size=2,
    )
    begin = partial(start, engine=engine, num_workers=num_processes, folder=folder)
    began = time.monotonic()
    num_struck = num_done = 0
    for kill in range(num_kills):
        process = begin(spec)
        most = 0 if kill % 5 == 0 else num_shards // num_kills
        until = min(num_done + rng.randint(0, most), num_shards - 1)
        _wait(process, folder, rng, store, until=until, starting=most == 0)
        assert process.poll() is None, f"it ended before kill {kill}: {_errors(folder)}"
        _kill(process, all_at_once=kill % 2 == 1, ends_by_itself=engine != "ray", seconds=rng.uniform(0, 2))
        num_struck += _is_half_written(folder / "killed")
        now = _num_done(folder / "killed", store)
        assert now >= num_done, "something finished was lost"
        num_done = now
    whole = attrs.evolve(spec, output=_output(folder, "whole", store))
    for one in (spec, whole):
        assert begin(one).wait(timeout=1200) == 0, _errors(folder)
    found, expected = (_contents(folder / name, store, in_order=num_processes == 1) for name in ("killed", "whole"))
    assert found.keys() == expected.keys(), f"files differ: {sorted(found.keys() ^ expected.keys())}"
    differing = sorted(name for name in found if found[name] != expected[name])
    assert not differing, f"{differing} differ"
    place = "" if store is None else " in a store"
    return (
        f"{engine}{place}, {num_processes} worker{'s' * (num_processes > 1)}, {num_shards} shards, seed {seed}: killed "
        f"{num_kills} times, {num_struck} of them over a shard half written, {num_done} shards finished by then, then "
        f"completed; {len(found)} files are those of an undisturbed run to the byte; {time.monotonic() - began:.0f} s "
        f"on {processor()}, {os.cpu_count()} cores"
    )


def _output(folder: Path, name: str, store: ObjectStore | None) -> str:
    return str(folder / name) if store is None else f"s3://{name}/out"


def _wait(
    process: subprocess.Popen[bytes],
    folder: Path,
    rng: random.Random,
    store: ObjectStore | None,
    *,
    until: int,
    starting: bool,
) -> None:
    """Wait for a random moment: of the start, or soon after so many shards are done and work is under way."""
    if starting:
        time.sleep(rng.uniform(0, SECONDS_OF_A_START))
        return
    deadline = time.monotonic() + SECONDS_OF_WORK
    while process.poll() is None:
        if (store is not None or _is_half_written(folder / "killed")) and _num_done(folder / "killed", store) >= until:
            break
        assert time.monotonic() < deadline, f"no {until} shards in {SECONDS_OF_WORK:g} s: {_errors(folder)}"
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))


def _kill(process: subprocess.Popen[bytes], *, all_at_once: bool, ends_by_itself: bool, seconds: float) -> None:
    below = descendants(process.pid)
    _kill_each(process.pid, *(below if all_at_once else ()))
    process.wait()
    if not (all_at_once or ends_by_itself):
        time.sleep(seconds)
        _kill_each(*below)
    assert are_gone(below, 60), f"processes outlived the one that started them: {below}"


def _kill_each(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_half_written(output: Path) -> bool:
    """Return whether a shard is under way; a run that begins removes the folder that it is in."""
    with suppress(FileNotFoundError):
        return any((output / STAGING).glob("*"))
    return False


def _num_done(output: Path, store: ObjectStore | None) -> int:
    """Return how many shards the manifest names, without the line that may just be written."""
    if store is not None:
        files = [store.objects.get(f"{output.name}/out/{name}", b"") for name in (MANIFEST, TAIL)]
        return len({line for file in files for line in file.splitlines()})
    with suppress(FileNotFoundError):
        return (output / MANIFEST).read_bytes().count(b"\n")
    return 0


def _contents(output: Path, store: ObjectStore | None, *, in_order: bool) -> dict[str, bytes]:
    """Return what lies in an output; several workers enter shards in the order in which they finish them.

    The lock's file is left out: it is empty, and whether it stays is the lock's own business. What runs say of
    themselves tells each time something else.
    """
    if store is not None:
        start = f"{output.name}/out/"
        found = {name.removeprefix(start): each for name, each in store.objects.items() if name.startswith(start)}
        found = {name: each for name, each in found.items() if not name.startswith(f"{RUN}/")}
        found[MANIFEST] = b"".join(sorted(found[MANIFEST].splitlines(keepends=True)))
        return found
    found = {
        str(path.relative_to(output)): path.read_bytes() if path.is_file() else b""
        for path in output.rglob("*")
        if path.name != LOCK and RUN not in path.relative_to(output).parts
    }
    if not in_order:
        found[MANIFEST] = b"".join(sorted(found[MANIFEST].splitlines(keepends=True)))
    return found


def _errors(folder: Path) -> str:
    return (folder / "errors.txt").read_text(encoding="utf-8", errors="replace")[-3000:]


def main() -> None:
    """Run the trial of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="local", choices=ENGINES)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shards", type=int, default=300)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, object_store() if chosen.store else nullcontext() as store:
        say(
            trial(
                Path(folder),
                engine=chosen.engine,
                num_processes=chosen.processes,
                num_kills=chosen.kills,
                num_shards=chosen.shards,
                num_samples=chosen.samples,
                seed=chosen.seed,
                store=store,
            )
        )


if __name__ == "__main__":
    sys.exit(main())
