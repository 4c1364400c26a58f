"""A training command in small, for tests that end it from outside: reinforced shards, loader workers, evaluation.

Run as `python -m tests.training.program DATA OUTPUT STEPS WORKERS`, by torchrun too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from mobileclip.data import ReinforcedPipelineSpec, write_shards
from mobileclip.encoders import DualEncoderSpec, MCiSpec, StageSpec, TextTransformerSpec
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.recipes import reported
from mobileclip.training import CosineSchedule, Evaluate, RunSpec, TrainingSpec, read_metrics, run
from tests.data.made_samples import make_sample
from tests.preloaded import Started, preloaded, python
from tests.training.runs import ENVIRONMENT, ROOT, free_port, launch
from tests.waiting import wait_for

# A started run has a step of so many seconds at least: what is sent to it meets it in the midst.
STEP_SECONDS = 0.05
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1")
SECONDS = 120


def write_data(folder: Path) -> Path:
    """Write what is trained on."""
    write_shards(folder, [make_sample(index) for index in range(24)], samples_per_shard=6)
    return folder


def run_spec(data: Path | str, *, num_steps: int, num_workers: int) -> RunSpec:
    image, text = ImageInput(size=32), TextInput(context_length=12)
    return RunSpec(
        model=DualEncoderSpec(
            image=MCiSpec(stages=(StageSpec(dim=16, depth=1),), embedding_dim=24, input=image),
            text=TextTransformerSpec(width=8, num_heads=2, depth=1, embedding_dim=24, input=text),
        ),
        data=ReinforcedPipelineSpec(
            shards=f"{data}/{{00000000..00000003}}.tar",
            batch_size=4,
            image=image,
            text=text,
            num_workers=num_workers,
            num_samples=24,
        ),
        training=TrainingSpec(
            loss=ReinforcedLossSpec(teacher_dims=(4, 2), teacher_logit_scales=(20.0, 30.0)),
            schedule=CosineSchedule(warmup_steps=1, total_steps=num_steps),
            log_every_steps=1,
            checkpoint_every_steps=7,
            evaluate_every_steps=5,
        ),
    )


def start(
    data: Path | str,
    output: str | Path,
    *,
    num_steps: int,
    num_workers: int = 0,
    port: int = 0,
    num_restarts: int = 0,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[str] | Started:
    """Start it, in a group of its own; with a port, as two processes that `torchrun` starts, and again so often."""
    program = ["-m", "tests.training.program", str(data), str(output), str(num_steps), str(num_workers)]
    if not port:
        return preloaded().start(*program, folder=ROOT, environment={**ENVIRONMENT, **variables})
    launcher = (*TORCHRUN, "--master-port", str(port), "--max-restarts", str(num_restarts))
    return launch(*launcher, *program, **variables)


def finish(data: Path | str, output: Path, *, num_steps: int, num_workers: int = 0) -> None:
    """Do in this process what is left to do of it."""
    run(run_spec(data, num_steps=num_steps, num_workers=num_workers), output, evaluate=measuring, device="cpu")


def start_step(data: Path, output: str | Path, *, num_steps: int) -> list[subprocess.Popen[str] | Started]:
    """Start two processes as `srun` does, which tells them of SLURM's step alone."""
    step = {"JOB_ID": str(os.getpid()), "STEP_ID": "0", "NTASKS": "2", "STEP_NODELIST": "localhost"}
    ranks = [step | {"PROCID": f"{rank}", "LOCALID": f"{rank}"} for rank in range(2)]
    variables = [{f"SLURM_{name}": value for name, value in one.items()} for one in ranks]
    return [start(data, output, num_steps=num_steps, variables=one) for one in variables]


def forked_torchrun(port: int, *arguments: str) -> None:
    """Do what Python does with these arguments in two processes of `torchrun`'s, which are forked from this one."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{port}",
        rdzv_configs={"rank": 0},
        start_method="fork",
    )
    elastic_launch(config, python)(*arguments)


def together(module: str, *arguments: str | Path) -> None:
    """Run a module in two processes, as `torchrun` does, and wait for their end."""
    called = ("tests.training.program:forked_torchrun", free_port(), "-m", module, *map(str, arguments))
    ended = preloaded().call(*called, folder=ROOT, seconds=600, environment=ENVIRONMENT)
    assert ended.status == 0, ended.output[-3000:]


def num_logged(output: Path) -> int:
    log = output / "metrics.jsonl"
    return sum("loss" in line for line in read_metrics(log)) if log.exists() else 0


def wait_for_steps(process: subprocess.Popen[str] | Started, output: Path, count: int) -> None:
    """Wait until so many steps are logged; what ends before is an error."""
    wait_for(lambda: num_logged(output) >= count, process, seconds=SECONDS, every=0.02)


def measuring(_model: DualEncoderSpec) -> Evaluate:
    """Return an evaluation that takes a little while."""

    def evaluate(model: torch.nn.Module, done: int) -> dict[str, float]:
        time.sleep(0.02)
        return {"measured": done + sum(float(parameter.sum()) for parameter in model.parameters())}

    return evaluate


def main(data: str, output: str, num_steps: str, num_workers: str) -> None:
    """Train as a command does."""
    torch.set_num_threads(1)
    with reported("training", None, kept="nothing is lost"):
        spec = run_spec(data, num_steps=int(num_steps), num_workers=int(num_workers))
        run(spec, output, evaluate=measuring, device="cpu")


if __name__ == "__main__":
    register_optimizer_step_post_hook(lambda *_: time.sleep(STEP_SECONDS))
    main(*sys.argv[1:])
