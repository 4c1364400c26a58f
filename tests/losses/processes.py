"""What each spawned process does: losses of its part of a batch, in groups of one, two and four."""

from __future__ import annotations

import copy
import datetime as dt
import tempfile
from pathlib import Path

import attrs
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional as F

from mobileclip.losses import LossSpec, TextDistillationLossSpec, tiled as tiles
from tests.losses.embeddings import SPECS, STUDENT, random_batch
from tests.preloaded import preloaded

LOCAL_BATCH = 3
SCALE = 9.0
SIZES = (1, 2, 4)


def whole_batch(spec: LossSpec, size: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return random_batch(spec, size * LOCAL_BATCH, seed=size, dtype=dtype)


def local_batch(spec: LossSpec, size: int, rank: int, **choices) -> dict[str, Tensor]:
    """Return one process's rows, leaves of their own."""
    rows = slice(rank * LOCAL_BATCH, (rank + 1) * LOCAL_BATCH)
    whole = whole_batch(spec, size, **choices)
    return {name: value.detach()[rows].requires_grad_(value.requires_grad) for name, value in whole.items()}


def value_and_gradients(loss: torch.nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the total and its gradients, by name."""
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True, device=inputs["image"].device)
    total = loss(**inputs, logit_scale=scale).total
    total.backward()
    gradients = {name: value.grad for name, value in inputs.items() if value.requires_grad}
    gradients |= {name: parameter.grad for name, parameter in loss.named_parameters()}
    found = {"total": total.detach(), "logit_scale": scale.grad, **gradients}
    return {name: value.cpu() for name, value in found.items()}


class Student(nn.Module):
    """Towers of one layer, of what the tests call embeddings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.towers = nn.ModuleDict({"image": nn.Linear(5, 6), "text": nn.Linear(5, 6)}).double()
        self.logit_scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        embedded = {
            name: F.normalize(self.towers["image" if name == "image" else "text"](inputs[name]), dim=1)
            for name in STUDENT
        }
        return inputs | embedded | {"logit_scale": self.logit_scale.exp()}


def trained(spec: LossSpec, size: int, rank: int | None = None, group: distributed.ProcessGroup | None = None):
    """Return the student's gradients of one step: of the whole batch, or as DistributedDataParallel averages them."""
    inputs = whole_batch(spec, size) if rank is None else local_batch(spec, size, rank)
    student = Student()
    model = student if group is None else nn.parallel.DistributedDataParallel(student, process_group=group)
    spec.build(process_group=group)(**model(inputs)).total.backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}


def texts(size: int, rank: int | None = None, group: distributed.ProcessGroup | None = None) -> dict[str, Tensor]:
    """Return the distillation of texts and its gradient, of this process's rows or of all."""
    generator = torch.Generator().manual_seed(size)
    student, teacher = torch.randn(2, size * LOCAL_BATCH, 5, generator=generator, dtype=torch.float64)
    rows = slice(None) if rank is None else slice(rank * LOCAL_BATCH, (rank + 1) * LOCAL_BATCH)
    student = student[rows].requires_grad_()
    terms = TextDistillationLossSpec(relation_weight=3.0).build(process_group=group)(student, teacher[rows])
    terms.total.backward()
    named = {f"{name} term": value.detach() for name, value in terms._asdict().items()}
    return named | {"student": student.grad, "total": terms.total.detach()}


def refused(loss: torch.nn.Module, inputs: dict[str, Tensor]) -> str:
    try:
        loss(**inputs, logit_scale=SCALE)
    except ValueError as error:
        return str(error)
    return "accepted"


def mistakes(rank: int, group: distributed.ProcessGroup) -> dict[str, str]:
    """Return what this process says to batches that do not fit together."""
    spec = SPECS["reinforced, both terms"]
    loss = spec.build(process_group=group)
    good = local_batch(spec, 4, rank)
    short = {name: value[: 2 if rank == 3 else 3] for name, value in good.items()}
    plain = {name: value for name, value in good.items() if "syn" not in name or rank != 1}
    broken = good | ({"text": good["text"][:2]} if rank == 2 else {})
    narrow = good | ({name: good[name][:, :4] for name in ("image", "text", "syn_text")} if rank == 0 else {})
    mixed = good | ({"teacher_text": good["teacher_text"].bfloat16()} if rank == 0 else {})
    given = {"short": short, "plain": plain, "broken": broken, "narrow": narrow, "mixed": mixed}
    said = {name: refused(loss, inputs) for name, inputs in given.items()}
    said["good"] = refused(loss, good)
    try:
        attrs.evolve(spec, backend="dense").build(process_group=group)
    except ValueError as error:
        said["dense"] = str(error)
    return said


def same_everywhere(rank: int, group: distributed.ProcessGroup) -> dict[str, Tensor]:
    """Return the gradients where only the last process's embeddings want them, and without any."""
    spec = SPECS["reinforced"]
    loss = spec.build(process_group=group)
    inputs = {name: value.detach() for name, value in local_batch(spec, 4, rank).items()}
    with torch.no_grad():
        plain = loss(**inputs, logit_scale=SCALE).total
    inputs["text"].requires_grad_(rank == 3)
    total = loss(**inputs, logit_scale=SCALE).total
    if rank == 3:
        total.backward()
    return {"plain": plain, "total": total.detach(), "text": inputs["text"].grad if rank == 3 else torch.zeros(())}


def in_groups(rank: int, folder: str) -> None:
    """Save what this process computes in the groups that it belongs to."""
    torch.set_num_threads(1)
    world = {"init_method": f"file://{folder}/rendezvous", "rank": rank, "world_size": 4}
    distributed.init_process_group("gloo", **world, timeout=dt.timedelta(seconds=60))
    tiles.TILE_BYTES = 8 * 4
    results: dict[str, dict] = {}
    for size in SIZES:
        # The group of two holds the last processes: ranks in a group are not those in the world.
        members = list(range(4 - size, 4))
        group = distributed.new_group(members)
        if rank not in members:
            continue
        place = members.index(rank)
        for name, spec in SPECS.items():
            loss = copy.deepcopy(spec.build(process_group=group)).double()  # a copy keeps its group
            results[f"{name} {size}"] = value_and_gradients(loss, local_batch(spec, size, place))
        results[f"texts {size}"] = texts(size, place, group)
        spec = SPECS["reinforced"]
        results[f"trained {size}"] = trained(spec, size, place, group)
        inputs = local_batch(spec, size, place, dtype=torch.bfloat16)
        results[f"bfloat16 {size}"] = value_and_gradients(spec.build(process_group=group), inputs)
        if size == 2:
            loss = torch.compile(spec.build(process_group=group), fullgraph=True, backend="eager")
            results["compiled"] = value_and_gradients(loss, local_batch(spec, size, place))
    results["mistakes"] = mistakes(rank, group)
    results["same"] = same_everywhere(rank, group)
    torch.save(results, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def spawn(target, processes: int) -> list[dict]:
    """Return what each of new processes saved."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(target, args=(folder,), nprocs=processes)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(processes)]


def forked() -> list[dict]:
    """Return what each of four processes saved, forked from one that has imported PyTorch and its compiler."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "folder"
        folder.mkdir()
        ended = preloaded().call(f"{__name__}:fork", str(folder), folder=folder)
        assert ended.status == 0, ended.output
        return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


def fork(folder: str) -> None:
    """Fork the four, as a function to call."""
    multiprocessing.start_processes(in_groups, args=(folder,), nprocs=4, start_method="fork")
