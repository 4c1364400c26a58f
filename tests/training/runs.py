"""A small run on a real model of this library: coloured patterns and token rows that name them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mobileclip.data import Batch, ReinforcedBatch, Skip, StreamPosition, normalize_pixels
from mobileclip.encoders import DualEncoder, DualEncoderSpec, MCiSpec, StageSpec, TextTransformerSpec
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.losses import ContrastiveLossSpec, ReinforcedLossSpec
from mobileclip.training import AdamWSpec, CosineSchedule, RunSpec, TrainingResult, TrainingSpec, read_metrics, train

TEACHER_DIMS = (6, 5)
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


class KilledError(BaseException):
    """Stands for a kill between two steps."""


MODEL = DualEncoderSpec(
    image=MCiSpec(stages=(StageSpec(dim=16, depth=1),), embedding_dim=24, input=ImageInput(size=16)),
    text=TextTransformerSpec(
        width=32, num_heads=2, depth=1, embedding_dim=24, input=TextInput(context_length=6, vocab_size=40)
    ),
)
LOSS = ReinforcedLossSpec(
    teacher_dims=TEACHER_DIMS, teacher_logit_scales=(20.0, 30.0), contrastive_weight=0.5, distill_weight=0.5
)


def training_spec(total_steps: int = 8, *, reinforced: bool = True, peak: float = 3e-3, **changes) -> TrainingSpec:
    schedule = CosineSchedule(peak=peak, warmup_steps=2, total_steps=total_steps)
    often = {"ema_decay": 0.9, "log_every_steps": 1, "checkpoint_every_steps": 3}
    own = {"loss": LOSS if reinforced else ContrastiveLossSpec(), "schedule": schedule, "optimizer": AdamWSpec()}
    return TrainingSpec(**(own | often | changes))


def new_model() -> DualEncoder:
    torch.manual_seed(0)
    return MODEL.build()


def batch_of(step: int, size: int = 8) -> ReinforcedBatch:
    """Pictures of one of eight fixed patterns plus noise, texts with the pattern's token; every step's own noise."""
    fixed = torch.Generator().manual_seed(1)
    patterns = torch.rand(8, 3, 16, 16, generator=fixed)
    image_codes, text_codes = torch.randn(8, 11, generator=fixed), torch.randn(8, 11, generator=fixed)
    own = torch.Generator().manual_seed(100 + step)
    which = torch.randperm(8, generator=own)[:size]
    text = torch.zeros(size, 6, dtype=torch.long)
    text[:, 0], text[:, 1], text[:, 2] = 38, which + 3, 39
    syn_text = text.clone()
    syn_text[:, 1], syn_text[:, 2], syn_text[:, 3] = 20, which + 3, 39
    return ReinforcedBatch(
        keys=tuple(f"{step}-{index}" for index in range(size)),
        image=noisy(patterns[which], own),
        text=text,
        syn_text=syn_text,
        teacher_image=image_codes[which],
        teacher_text=text_codes[which],
        teacher_syn_text=text_codes[which] + 0.01,
    )


def noisy(patterns: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Patterns of [0, 1] plus noise, as pixels in the order of memory that the pipelines give them."""
    pixels = 255 * (patterns + 0.1 * torch.rand(patterns.shape, generator=generator)) / 1.1
    return pixels.round().to(torch.uint8).contiguous(memory_format=torch.channels_last)


def image_of(batch: Batch) -> torch.Tensor:
    return normalize_pixels(batch.image, MODEL.image.input)


@attrs.frozen
class Batches:
    """Batches by number, without end; fewer where a test needs them to stop, or changed on their way out.

    Args:
        make: from the number of a batch to the batch.
        stop: the number of the first batch that is not there; the run is killed in front of it if `killed`.
        killed: whether reading ends with an error, not with an end.
    """

    make: Callable[[int], ReinforcedBatch] = batch_of
    stop: int | None = None
    killed: bool = False

    def stream(self, position: StreamPosition) -> Iterator[ReinforcedBatch]:
        step = position.first_batch
        while step != self.stop:
            yield self.make(step)
            step += 1
        if self.killed:
            raise KilledError

    def position(self, num_batches: int) -> StreamPosition:
        return StreamPosition(first_batch=num_batches)

    def take_skips(self, num_batches: int) -> list[Skip]:
        del num_batches
        return []


def trained(
    output: Path | str,
    spec: TrainingSpec | None = None,
    *,
    model: nn.Module | None = None,
    make: Callable[[int], Batch] = batch_of,
    stop: int | None = None,
    **choices,
) -> TrainingResult:
    """Train the small model for eight steps, or as a test has it; `stop` is the step that the run is killed in."""
    batches = Batches(make=make, stop=stop, killed=stop is not None)
    return train(spec or training_spec(), model=model or new_model(), batches=batches, output=output, **choices)


def kill(output: Path | str, spec: TrainingSpec | None = None, *, step: int, **choices) -> None:
    """Train until the run is killed in a step."""
    with pytest.raises(KilledError):
        trained(output, spec, stop=step, **choices)


def logged(output: Path | str) -> list[dict[str, float]]:
    """Return what a run has logged, but for times."""
    lines = read_metrics(f"{output}/metrics.jsonl")
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]


def kept_by(call: Callable[[], object]) -> list[torch.Tensor]:
    """Return what a forward pass keeps for the backward pass, a tensor of each storage."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return list(kept.values())


def share_of(rank: int, size: int, make: Callable[[int], Batch] = batch_of) -> Callable[[int], Batch]:
    """Return what makes one process's share of each batch."""

    def share(step: int) -> Batch:
        whole = make(step)
        part = len(whole) // size
        return whole.rows(rank * part, (rank + 1) * part)

    return share


def last_checkpoint(output: Path) -> Path:
    return max((output / "checkpoints").glob("step-*.safetensors"))


def assert_same_to_the_bit(one: Path, other: Path) -> None:
    """Compare the metrics of two runs, and their models or, of runs without, the last checkpoints."""
    assert logged(one) == logged(other)
    models = (output / "model.safetensors" for output in (one, other))
    first, second = (load_file(path if path.exists() else last_checkpoint(path.parent)) for path in models)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def launch(*command: str | Path, **variables: str) -> subprocess.Popen[str]:
    """Start Python with arguments and variables, in a group of its own, whose output and errors can be read."""
    arguments = [sys.executable, *map(str, command)]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=os.environ | ENVIRONMENT | variables, start_new_session=True, **piped
    )


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def start_processes(program: str, *arguments: str) -> list[subprocess.Popen[str]]:
    """Start a program in two processes that meet each other."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [launch("-c", program, *arguments, RANK=rank, LOCAL_RANK=rank, **meeting) for rank in ("0", "1")]


def assert_resumes_to_the_bit(spec: TrainingSpec, folder: Path, build=new_model, make=batch_of) -> None:
    """Assert that a run that is killed at three steps away from its checkpoints ends as one that is not."""
    whole, parts = folder / "whole", folder / "parts"
    reference = trained(whole, spec, model=build(), make=make)
    for step in (2, 5, 7):
        kill(parts, spec, step=step, model=build(), make=make)
    resumed = trained(parts, spec, model=build(), make=make)
    assert resumed.num_steps == 2
    assert_same_to_the_bit(whole, parts)
    torch.testing.assert_close(resumed.model.state_dict(), reference.model.state_dict(), rtol=0, atol=0)


def assert_killed_goes_on(spec: RunSpec, folder: Path) -> None:
    """Assert that a run that is killed at its sixth batch has the losses of one that is not."""

    def losses(output: Path, fails_at: int | None = None) -> list[float]:
        torch.manual_seed(spec.training.seed)
        batches = spec.data.build()

        def stream(position: StreamPosition, whole: Callable[..., Iterator[Batch]] = batches.stream) -> Iterator[Batch]:
            for number, batch in enumerate(whole(position)):
                if number == fails_at:
                    raise KilledError
                yield batch

        batches.stream = stream
        train(spec.training, model=spec.model.build(), batches=batches, output=output)
        return [line["loss"] for line in logged(output)]

    expected = losses(folder / "whole")
    with pytest.raises(KilledError):
        losses(folder / "killed", fails_at=5)
    assert losses(folder / "killed") == expected
