"""Training that is ended at random and goes on with another number of processes and workers each time.

The samples of every step, with their augmentations and captions, are compared to those of a run that nobody touched.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import torch

from mobileclip.data import ReinforcedBatch, ReinforcedPipeline, StreamPosition
from mobileclip.data.shards.sidecars import write_sizes
from mobileclip.processes import this_process
from mobileclip.terminal.interruption import interruptible
from mobileclip.training import run
from tests.descendants import descendants, kill_all
from tests.preloaded import Started, preloaded
from tests.stores import Web, web_server
from tests.training.program import ROOT, num_logged, run_spec, write_data
from tests.waiting import wait_for

WORLD_SIZES, NUM_WORKERS = (1, 2, 4), (0, 1, 2, 3)
ENDS = ("all are killed", "one is killed", "SIGTERM", "connections are cut", "the disk is full")
NUM_SAMPLES, BATCH_SIZE, LIMIT_BYTES = 24, 4, 50_000


def trial(folder: Path, *, num_kills: int, num_steps: int, seed: int, sampling: str) -> None:
    """End a training so often, and finish it.

    Args:
        folder: where it works.
        num_kills: runs that are ended.
        num_steps: of the training.
        seed: of the moments, the ends and the sizes.
        sampling: of its data.

    Raises:
        AssertionError: if a step had other samples than in an undisturbed run, an epoch of these had one not once, or
            the run does not end well.
    """
    rng = random.Random(seed)
    data = write_data(folder / "data")
    write_sizes(data, {path.name: 6 for path in data.glob("*.tar")})
    ports = itertools.count(26_000 + os.getpid() % 1_000)
    with web_server() as web:
        web.files |= {f"/{path.name}": path.read_bytes() for path in data.iterdir()}
        attempts = itertools.count()

        def begin(output: Path, world_size: int, num_workers: int, *, limit: int = 0) -> list[Started]:
            notes = output / "notes" / f"{next(attempts)}"
            notes.mkdir(parents=True)
            told = (web.url, output / "run", notes, num_steps, num_workers, sampling, limit)
            return _started([str(one) for one in told], world_size, next(ports))

        whole, killed = folder / "whole", folder / "killed"
        _finish(begin(whole, 1, 0))
        for _ in range(num_kills):
            size, end = (rng.choice(WORLD_SIZES), rng.choice(NUM_WORKERS)), rng.choice(ENDS)
            processes = begin(killed, *size, limit=LIMIT_BYTES if end == "the disk is full" else 0)
            _end(processes, killed / "run", end, web, rng, most_steps=num_steps - 1)
        _finish(begin(killed, rng.choice(WORLD_SIZES), rng.choice(NUM_WORKERS)))
    expected = {step: made for step, (made,) in _steps(whole, num_steps).items()}
    found = _steps(killed, num_steps)
    different = [step for step in expected if any(made != expected[step] for made in found[step])]
    assert not different, f"steps {different} have other samples"
    per_epoch = NUM_SAMPLES // BATCH_SIZE
    if sampling == "epoch":
        for first in range(0, num_steps - per_epoch + 1, per_epoch):
            keys = Counter(key for step in range(first, first + per_epoch) for key, _ in expected[step])
            assert set(keys.values()) == {1}
            assert len(keys) == NUM_SAMPLES


def _started(arguments: list[str], world_size: int, port: int) -> list[Started]:
    """Start a training as `srun` does, a process for each rank, from one that has imported everything."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "WORLD_SIZE": f"{world_size}"}
    return [
        preloaded("tests.training.elastic", "torch._dynamo").start(
            *("-m", "tests.training.elastic", *arguments),
            folder=ROOT,
            environment={"GLOO_SOCKET_IFNAME": "lo"} | meeting | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"},
        )
        for rank in range(world_size)
    ]


def _finish(processes: list[Started]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors[-3000:]


def _wait_for_step(processes: list[Started], output: Path, target: int, rng: random.Random, web: Web | None) -> None:
    """Wait until so many steps are logged or a process has ended; connections of a web are cut meanwhile."""

    def is_there() -> bool:
        if web is not None:
            web.cut_after.append(rng.randrange(100, 20_000))
        return any(process.poll() is not None for process in processes) or num_logged(output) >= target

    wait_for(is_there, seconds=300, every=0.05)


def _end(processes: list[Started], output: Path, end: str, web: Web, rng: random.Random, *, most_steps: int) -> None:
    """End a run in one of the ways, or let it finish where it does before."""
    before = num_logged(output)
    target = min(before + rng.randrange(0, 8), most_steps)
    _wait_for_step(processes, output, target, rng, web if end == "connections are cut" else None)
    web.cut_after.clear()
    if end == "the disk is full":
        errors = [process.communicate(timeout=300)[1] for process in processes]
        assert any(process.returncode for process in processes), errors
        return
    if any(process.poll() is not None for process in processes):
        _finish(processes)
        return
    if end == "SIGTERM":
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.communicate(timeout=300)
        return
    if end == "one is killed":
        running = [pid for process in processes for pid in (process.pid, *descendants(process.pid))]
        os.kill(rng.choice(sorted(running)), signal.SIGKILL)
        time.sleep(rng.uniform(0, 3))
    for process in processes:
        kill_all(process)


def _steps(output: Path, num_steps: int) -> dict[int, list[Counter[tuple[str, str]]]]:
    """Return what each run took for every step, where all its processes came to it."""
    found: dict[int, list[Counter[tuple[str, str]]]] = {step: [] for step in range(num_steps)}
    for notes in (output / "notes").iterdir():
        steps: dict[int, Counter[tuple[str, str]]] = {}
        for path in notes.iterdir():
            for line in path.read_text().splitlines():
                try:
                    step, samples = json.loads(line)
                except json.JSONDecodeError:
                    continue  # a process was killed while it wrote
                steps.setdefault(step, Counter()).update(map(tuple, samples))
        for step, samples in steps.items():
            if samples.total() == BATCH_SIZE:
                found[step].append(samples)
    assert all(found.values()), "a step was made by none"
    return found


def train(url: str, output: str, notes: str, *rest: str) -> None:
    """Train as a command does, and note what every step is made of."""
    num_steps, num_workers, sampling, limit = rest
    torch.set_num_threads(1)
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    taken = ReinforcedPipeline.stream

    def noting(self: ReinforcedPipeline, position: StreamPosition | None = None) -> Iterator[ReinforcedBatch]:
        first = 0 if position is None else position.first_batch
        for step, batch in enumerate(taken(self, position), start=first):
            with (Path(notes) / f"{this_process().rank}.jsonl").open("a") as file:
                file.write(json.dumps([step, _samples(batch)]) + "\n")
            yield batch

    ReinforcedPipeline.stream = noting  # type: ignore[method-assign]
    base = run_spec(Path(), num_steps=int(num_steps), num_workers=int(num_workers))
    data = attrs.evolve(base.data, shards=f"{url}/{{00000000..00000003}}.tar", sampling=sampling, teacher_dim=6)
    training = attrs.evolve(base.training, evaluate_every_steps=None, checkpoint_every_steps=3)
    with interruptible("training", "nothing is lost"):
        run(attrs.evolve(base, data=data, training=training), output, device="cpu")


def _samples(batch: ReinforcedBatch) -> list[tuple[str, str]]:
    digests = []
    for row, key in enumerate(batch.keys):
        one = batch.rows(row, row + 1).as_dict()
        content = b"".join(value.numpy().tobytes() for value in one.values() if isinstance(value, torch.Tensor))
        digests.append((key, hashlib.sha256(content).hexdigest()[:16]))
    return digests


if __name__ == "__main__":
    train(*sys.argv[1:])
