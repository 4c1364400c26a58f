"""How much memory a training step takes in each process: a step is traced whose tensors have shapes alone."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobileclip.data import ReinforcedBatch, TextBatch
from mobileclip.encoders import TextEncoderSpec
from mobileclip.encoders.checkpoints.layouts import skeleton
from mobileclip.losses import ReinforcedLossSpec, TextDistillationLossSpec
from mobileclip.training import Objective, World, build_objective
from mobileclip.training.cpu import fuse_for_cpu

if TYPE_CHECKING:
    from mobileclip.training import RunSpec

_FLOAT = 4


@attrs.frozen(kw_only=True)
class StepMemory:
    """The memory of a process at the fullest moment of a step, in bytes.

    Args:
        weights: of the model, its running statistics and the range augmentation.
        optimizer: both of AdamW's averages.
        average: the moving average of the weights, which the first process alone has.
        buckets: what gradients are exchanged in, where there are several processes.
        gathered: embeddings of all processes, while the loss compares with them.
        step: the rest: the batch, what it becomes, gradients.
    """

    weights: int
    optimizer: int
    average: int
    buckets: int
    gathered: int
    step: int

    @property
    def total(self) -> int:
        """Bytes in all; CUDA's libraries and the allocator's reserve come on top, a few gigabytes on a GPU."""
        return sum(attrs.astuple(self))


def step_memory(
    run: RunSpec, *, num_processes: int = 1, on_cpu: bool = False, num_traced_pieces: int = 3
) -> StepMemory:
    """Return the memory of a step in the first of a run's processes.

    The step is traced with a few micro-batches; each further one takes as much as the last of them did. Tensors of the
    trace have no memory, so that any run can be asked about anywhere.

    Args:
        run: an image-text run, or one of a text tower; its batch size is that of all processes. What it compiles is
            taken as it is written.
        num_processes: which share the batch.
        on_cpu: whether it trains on CPUs, which compute norms and convolutions in other forms.
        num_traced_pieces: micro-batches that are traced, at least 3; a trace takes seconds for each.

    Raises:
        ValueError: if the processes cannot share the batch.
    """
    if run.data.batch_size % num_processes:
        raise ValueError(f"a batch of {run.data.batch_size} cannot be divided among {num_processes} processes")
    batch_size, piece = run.data.batch_size // num_processes, run.training.memory.micro_batch
    if piece is None or batch_size <= num_traced_pieces * piece:
        weights, num_learnt, phases = _traced(run, batch_size, on_cpu=on_cpu)
        step = max(phases)
    else:
        weights, num_learnt, phases = _traced(run, (num_traced_pieces - 1) * piece, on_cpu=on_cpu)
        _, _, longer = _traced(run, num_traced_pieces * piece, on_cpu=on_cpu)
        further = batch_size / piece - num_traced_pieces
        step = max(round(last + further * (last - before)) for before, last in zip(phases, longer, strict=True))
    return StepMemory(
        weights=weights,
        optimizer=2 * _FLOAT * num_learnt,
        average=0 if run.training.ema_decay is None else weights,
        buckets=_FLOAT * num_learnt if num_processes > 1 else 0,
        gathered=_gathered(run) if num_processes > 1 else 0,
        step=step,
    )


def _gathered(run: RunSpec) -> int:
    """Return the bytes of all texts of one set of captions: the student's, their gradient, and the teachers'."""
    loss = run.training.loss
    if isinstance(run.model, TextEncoderSpec):
        gathered = isinstance(loss, TextDistillationLossSpec) and loss.relation_weight > 0
        return run.data.batch_size * _FLOAT * 2 * run.model.embedding_dim if gathered else 0
    teachers = sum(loss.teacher_dims) if isinstance(loss, ReinforcedLossSpec) and loss.needs_teachers else 0
    return run.data.batch_size * _FLOAT * (2 * run.model.text.embedding_dim + teachers)


def _traced(run: RunSpec, batch_size: int, *, on_cpu: bool) -> tuple[int, int, tuple[int, int]]:
    """Return the bytes of the weights, how many numbers are learnt, and the most bytes beyond of both passes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = skeleton(run.model, "training")
    training = attrs.evolve(run.training, compile=None)
    objective = build_objective(training.loss, spec=training, model=model, world=World(device="meta"))
    if on_cpu:
        fuse_for_cpu(model)
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


def _batch(run: RunSpec, batch_size: int) -> ReinforcedBatch | TextBatch:
    """Return a batch as the run's data has them."""
    data, loss = run.data, run.training.loss
    if isinstance(run.model, TextEncoderSpec):
        text = torch.zeros(batch_size, data.text.context_length, dtype=torch.int64)
        teacher = torch.empty(batch_size, run.model.embedding_dim)
        return TextBatch(keys=("",) * batch_size, text=text, teacher_text=teacher)
    both = data.captions == "both"

    def ids() -> Tensor:
        return torch.zeros(batch_size, data.text.context_length, dtype=torch.int64)

    def teachers() -> Tensor | None:
        dims = loss.teacher_dims if isinstance(loss, ReinforcedLossSpec) and loss.needs_teachers else ()
        return torch.empty(batch_size, sum(dims)) if dims else None

    return ReinforcedBatch(
        keys=("",) * batch_size,
        image=torch.empty(batch_size, 3, data.image.size, data.image.size, dtype=torch.uint8),
        text=ids(),
        syn_text=ids() if both else None,
        teacher_image=teachers(),
        teacher_text=teachers(),
        teacher_syn_text=teachers() if both else None,
    )


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are alive, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: set[int] = set()
        self._bytes = self._most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
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
        if place in self._alive:
            return
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
