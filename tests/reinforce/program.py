"""A reinforcement as a program of its own, for tests that kill it.

Run as `python -m tests.reinforce.program SPEC ENGINE WORKERS`, where ENGINE is inline, local or ray.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from mobileclip.engines import Engine
from mobileclip.reinforce import InlineEngine, LocalEngine, RayEngine, ReinforcementSpec, reinforce
from mobileclip.serialization import from_json, to_json

# Of a lease, so that one that was killed is soon followed by the next.
RENEWAL_SECONDS = 0.5
ROOT = Path(__file__).parents[2]


def engine_of(name: str, num_workers: int) -> Engine:
    """Return an engine of one thread a worker."""
    if name == "inline":
        return InlineEngine(device="cpu", num_threads=1)
    if name == "local":
        return LocalEngine(num_workers=num_workers, num_threads=1)
    return RayEngine(max_workers=num_workers)


def start(spec: ReinforcementSpec, engine: str, num_workers: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start it, in a session of its own, with its errors in a file of the folder."""
    written = folder / "spec.json"
    written.write_text(to_json(spec), encoding="utf-8")
    # Ray's actors find the tests' modules, and a copy of Ray that lies elsewhere, by the path.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (folder / "errors.txt").open("wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(written), engine, str(num_workers)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )


def main(written: str, engine: str, num_workers: str) -> None:
    """Reinforce."""
    torch.set_num_threads(1)
    spec = from_json(Path(written).read_text(encoding="utf-8"), ReinforcementSpec)
    engine_used = engine_of(engine, int(num_workers))
    reinforce(spec, engine=engine_used, show_progress=False, renewal_seconds=RENEWAL_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
