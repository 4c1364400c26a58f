"""Measure the memory of one training step on the CPU: `python -m tests.recipes.measure_step RECIPE BATCH PIECE 0|1`.

The last argument says whether activations are computed again. Prints the peak in bytes, beyond what was there before.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from mobileclip.data import ReinforcedBatch
from mobileclip.training import Memory, Objective, RunSpec, World, build_objective

DIMS = 1536


def changed(name: str, batch_size: int, piece: int, recompute: bool) -> RunSpec:
    """Return a recipe's run with a small batch, in pieces or, with 0, whole."""
    run: RunSpec = importlib.import_module(f"recipes.{name}").RUN
    training = attrs.evolve(
        run.training, precision="float32", memory=Memory(micro_batch=piece or None, recompute=recompute)
    )
    return attrs.evolve(run, data=attrs.evolve(run.data, batch_size=batch_size), training=training)


def step(objective: Objective, run: RunSpec, batch_size: int) -> None:
    """Make the gradient of one batch."""
    side, length = run.data.image.size, run.data.text.context_length

    def ids() -> Tensor:
        return torch.randint(1, 49_000, (batch_size, length))

    def teachers() -> Tensor:
        return nn.functional.normalize(torch.randn(batch_size, DIMS), dim=1)

    batch = ReinforcedBatch(
        keys=("",) * batch_size,
        image=torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8),
        text=ids(),
        syn_text=ids(),
        teacher_image=teachers(),
        teacher_text=teachers(),
        teacher_syn_text=teachers(),
    )
    objective(batch, 0.0)[-1].backward()


def status(name: str) -> int:
    """Return a number of this process's state, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main(name: str, batch_size: str, piece: str, recompute: str) -> None:
    """Measure, and print it."""
    run = changed(name, int(batch_size), int(piece), recompute == "1")
    objective = build_objective(run.training.loss, spec=run.training, model=run.model.build(), world=World())
    # What is made once and kept, such as threads and kernels, is no part of a step.
    step(objective, run, 2)
    objective.zero_grad(set_to_none=True)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step(objective, run, run.data.batch_size)
    print(status("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
