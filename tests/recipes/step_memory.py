"""How much memory a training step takes in each process: a step is traced whose tensors have shapes alone."""

from __future__ import annotations

import weakref

import attrs
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobileclip.data import ReinforcedBatch
from mobileclip.encoders.checkpoints.layouts import skeleton
from mobileclip.losses import ReinforcedLossSpec
from mobileclip.training import Objective, RunSpec, World, build_objective

_FLOAT = 4


NUM_TRACED_PIECES = 3


def step_memory(run: RunSpec, *, num_processes: int = 1) -> int:
    """Return the bytes of a step in the first of a run's processes, at its fullest moment.

    They are those of the weights, of AdamW's averages, of the moving average, of what processes exchange and gather,
    and of the rest: the batch, what it becomes, gradients. CUDA's libraries and the allocator's reserve come on top, a
    few gigabytes on a GPU. The step is traced with a few micro-batches; each further one takes as much as the last of
    them did. Tensors of the trace have no memory, so that any run can be asked about anywhere.

    Args:
        run: an image-text run, whose batch size is that of all processes. What it compiles is taken as it is written.
        num_processes: which share the batch.
    """
    batch_size, piece = run.data.batch_size // num_processes, run.training.memory.micro_batch
    if piece is None or batch_size <= NUM_TRACED_PIECES * piece:
        weights, num_learnt, phases = _traced(run, batch_size)
        step = max(phases)
    else:
        weights, num_learnt, phases = _traced(run, (NUM_TRACED_PIECES - 1) * piece)
        _, _, longer = _traced(run, NUM_TRACED_PIECES * piece)
        further = batch_size / piece - NUM_TRACED_PIECES
        step = max(round(last + further * (last - before)) for before, last in zip(phases, longer, strict=True))
    average = 0 if run.training.ema_decay is None else weights
    # All texts of one set of captions: the student's, their gradient, and the teachers'.
    gathered = run.data.batch_size * (2 * run.model.text.embedding_dim + _teachers_dim(run))
    exchanged = _FLOAT * (num_learnt + gathered) if num_processes > 1 else 0
    return weights + 2 * _FLOAT * num_learnt + average + exchanged + step


def _teachers_dim(run: RunSpec) -> int:
    loss = run.training.loss
    return sum(loss.teacher_dims) if isinstance(loss, ReinforcedLossSpec) and loss.needs_teachers else 0


def _traced(run: RunSpec, batch_size: int) -> tuple[int, int, tuple[int, int]]:
    """Return the bytes of the weights, how many numbers are learnt, and the most bytes beyond of both passes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = skeleton(run.model, "training")
    training = attrs.evolve(run.training, compile=None)
    objective = build_objective(training.loss, spec=training, model=model, world=World(device="meta"))
    with FakeTensorMode(), _LiveBytes() as live:
        _place(objective)
        for tensor in (*objective.parameters(), *objective.buffers()):
            live.see(tensor)
        weights = live.take_most()
        batch = _batch(run, batch_size)
        terms = objective(batch, 0.0)
        forward = live.take_most() - weights
        terms[-1].backward()
        backward = live.take_most() - weights
    return weights, sum(parameter.numel() for parameter in objective.parameters()), (forward, backward)


def _place(objective: Objective) -> None:
    """Give a model without memory tensors that a CPU's operations take, without memory still."""
    for module in objective.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape), requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _batch(run: RunSpec, batch_size: int) -> ReinforcedBatch:
    """Return a batch as the run's data has them."""
    data, dim = run.data, _teachers_dim(run)
    names = ["", "syn_"] if data.captions == "both" else [""]
    texts = {f"{name}text": torch.zeros(batch_size, data.text.context_length, dtype=torch.int64) for name in names}
    taught = [f"teacher_{name}" for name in ("image", *texts)] if dim else []
    none = dict.fromkeys(("syn_text", "teacher_image", "teacher_text", "teacher_syn_text"))
    teachers = {name: torch.empty(batch_size, dim) for name in taught}
    image = torch.empty(batch_size, 3, data.image.size, data.image.size, dtype=torch.uint8)
    return ReinforcedBatch(keys=("",) * batch_size, image=image, **(none | texts | teachers))


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: set[int] = set()
        self._bytes = self._most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() == "aten::_local_scalar_dense":
            # A number is read, of the order of RangeAugment's operations or of its noise: any takes as much.
            return args[0].storage_offset()
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.see(tensor)
        return made

    def see(self, tensor: Tensor) -> None:
        """Count a tensor's memory until it goes; views share theirs."""
        storage = tensor.untyped_storage()
        place, size = id(storage), storage.nbytes()
        if place not in self._alive:
            self._alive.add(place)
            self._bytes += size
            self._most = max(self._most, self._bytes)
            weakref.finalize(storage, self._gone, place, size)

    def take_most(self) -> int:
        """Return the most bytes since the last time, and begin anew."""
        most, self._most = self._most, self._bytes
        return most

    def _gone(self, place: int, size: int) -> None:
        self._alive.discard(place)
        self._bytes -= size
