"""Checkpoint files with the full state of a run, so that a resumed run equals an uninterrupted run."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs
import torch

from mobileclip import storage
from mobileclip.data import StreamPosition, joined_positions
from mobileclip.data.randomness import derived_seed
from mobileclip.encoders.checkpoints.saving import NO_PROVENANCE, SPACE, model_json, read_back_as
from mobileclip.encoders.checkpoints.tensors import check_numbers
from mobileclip.serialization import from_json, to_json
from mobileclip.tensor_files import CheckpointError, read_tensors
from mobileclip.tensor_files.errors import shown
from mobileclip.tensor_files.weights import weights_sha256
from mobileclip.terminal import get_logger
from mobileclip.training.distributed import World
from mobileclip.training.ema import MovingAverage

if TYPE_CHECKING:
    from torch import Tensor, nn
    from typing_extensions import Self

    from mobileclip.training.objectives import Objective
    from mobileclip.training.spec import TrainingSpec


logger = get_logger(__name__)

_DIGITS = re.compile(r"[0-9]{1,12}")
_NAME = re.compile(r"step-(\d{8})\.safetensors")
_MOST_NAMED = 4


@attrs.frozen
class CheckpointFolder:
    """A folder that keeps the newest checkpoints of a run.

    Args:
        path: a URL or a folder; the first checkpoint creates the folder.
        keep: number of checkpoints to keep, at least 1.
    """

    path: storage.AnyPath
    keep: int = 1

    def newest(self) -> str | None:
        """Return the path of the checkpoint with the most steps; None without checkpoints."""
        found = self.all()
        return found[-1] if found else None

    def step(self, num_steps: int) -> str:
        """Return the path of the checkpoint after a number of steps."""
        return storage.join(self.path, f"step-{num_steps:08d}.safetensors")

    def remove_old(self) -> None:
        """Remove all but the newest `keep` checkpoints."""
        for old in self.all()[: -self.keep]:
            storage.remove(old)

    def all(self) -> list[str]:
        """Return the paths of all checkpoints, in order of their steps."""
        return [path for path in storage.list_files(self.path) if _NAME.fullmatch(storage.file_name(path))]


@attrs.define(kw_only=True)
class RunState:
    """The mutable state of a run: weights, optimiser moments and moving average.

    Args:
        objective: the model and the loss, with their weights and buffers.
        optimizer: optimiser of the objective's parameters.
        average: moving average of the student; None if this process keeps no average.
        world: the processes of the run. All processes save and restore together; only rank 0 writes and
            reads files.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    world: World
    _copies: dict[str, Tensor] = attrs.field(factory=dict, init=False)

    @property
    def kept(self) -> nn.Module:
        """The run's result: the moving average, or the student if the run keeps no average."""
        model: nn.Module = self.objective.model if self.average is None else self.average.module
        return model

    def snapshot(self, *, step: int, position: StreamPosition) -> StateFile | None:
        """Return the state after `step` steps; None in all processes but the first.

        The snapshot is a copy in CPU memory. The next snapshot reuses this memory, so write a snapshot before you take
        another one.

        Args:
            step: number of completed steps.
            position: position of this process in its data stream.
        """
        random = self.world.gather(_random_state(self.world.device))
        positions = self.world.gather(position)
        if not self.world.is_first:
            return None
        tensors = self._tensors()
        for rank, states in enumerate(random):
            tensors |= {f"random/{device}/{rank}": state for device, state in states.items()}
        metadata = {
            "step": str(step),
            "spec": to_json(self.objective.spec),
            "model": model_json(self.objective.model.spec),
            "position": to_json(joined_positions(positions)),
        }
        if space := getattr(self.objective.model, "provenance", NO_PROVENANCE).space:
            metadata[SPACE] = space
        return StateFile(tensors=self._copied(tensors), metadata=metadata)

    def resume(self, checkpoints: CheckpointFolder) -> tuple[int, StreamPosition]:
        """Resume from the newest readable checkpoint; return the completed steps and the position in the data.

        Rank 0 reads the checkpoints, renames damaged checkpoints, and logs a warning for each.

        Raises:
            ValueError: if there are checkpoints but none can be read; if the newest readable checkpoint is from a run
                with different options; or if processes find different checkpoints.
        """
        names = self.world.from_first(lambda: [storage.file_name(path) for path in checkpoints.all()])
        self._compare_found(checkpoints, names[-1] if names else None)
        for name in reversed(names):
            path = storage.join(checkpoints.path, name)
            content = self._read(path)
            if content is not None:
                return self._restore(path, dict(content.tensors), dict(content.metadata))
        if names:
            raise ValueError(
                f"none of the {len(names)} checkpoints in {checkpoints.path} can be read; delete the output folder to "
                "start over"
            )
        return 0, StreamPosition()

    def require_same(self, step: int) -> None:
        """Check that all processes are at the same step, with the same weights and optimiser moments.

        Args:
            step: number of completed steps.

        Raises:
            ValueError: if a process differs from rank 0; the message names the process.
        """
        if self.world.size == 1:
            return
        own = {name: value for name, value in self._tensors().items() if not name.startswith("average/")}
        found = self.world.gather(f"{platform.node()}: step {step}, SHA-256 {digest(own)[:12]}")
        _require_equal(found, [said.partition(": ")[2] for said in found], "are not in the same state", "start again")

    def _compare_found(self, checkpoints: CheckpointFolder, newest: str | None) -> None:
        """Raise an error if a process finds a checkpoint other than rank 0's; finding none is fine."""
        if self.world.size == 1:
            return
        # Looked up by name, because a shared file system may list a new file late, but can already open the file.
        path = None if newest is None else storage.join(checkpoints.path, newest)
        if path is not None and storage.exists(path):
            own: str | None = f"{newest} ({mark(path) or 'damaged'})"
        else:
            last = checkpoints.newest()
            own = None if last is None else storage.file_name(last)
        found = self.world.gather((own, f"{platform.node()}: {own or 'no checkpoint'} in {checkpoints.path}"))
        first = found[0][0]
        _require_equal(
            [said for _, said in found],
            [first if here is None else here for here, _ in found],
            "find different checkpoints",
            "use one output for all processes, on a shared disk or at a URL such as s3://, or delete the "
            "checkpoints of other runs",
        )

    def _read(self, path: str) -> StateFile | None:
        """Return rank 0's checkpoint to all processes; rename a damaged checkpoint and return None."""
        tensors: dict[str, Tensor] = {}

        def read() -> dict[str, str] | None:
            try:
                content = read_state(path)
            except DamagedError as error:
                aside = storage.rename(path, storage.file_name(path).replace(".safetensors", ".unreadable"))
                logger.warning("%s; renamed to %s; the run resumes from the previous checkpoint", error, aside)
                return None
            tensors.update(content.tensors)
            return dict(content.metadata)

        metadata = self.world.from_first(read)
        if metadata is None:
            return None
        # Only rank 0 keeps an average.
        average = {name: tensors.pop(name) for name in list(tensors) if name.startswith("average/")}
        return StateFile(tensors=average | self.world.broadcast(tensors), metadata=metadata)

    def _copied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return CPU copies of tensors, in memory that the next call reuses."""
        is_cuda = self.world.device.type == "cuda"
        self._copies = {name: self._copies[name] for name in self._copies.keys() & tensors.keys()}
        for name, value in tensors.items():
            if name not in self._copies:
                self._copies[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=is_cuda)
            self._copies[name].copy_(value.detach(), non_blocking=is_cuda)
        if is_cuda:
            torch.cuda.synchronize(self.world.device)
        return self._copies

    def _restore(self, path: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[int, StreamPosition]:
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not a training state of this version; expected format {FORMAT!r}")
        self._check(path, metadata)
        self._load_modules(tensors, path)
        self._load_optimizer(tensors, path)
        rank = self.world.rank
        step, position = _place(metadata, path)
        if f"random/cpu/{rank}" not in tensors:
            # Fewer processes wrote the file. As at the start of a run, each new process gets its own random seed.
            torch.manual_seed(derived_seed(self.objective.spec.seed, "process", rank, step))
            return step, position
        try:
            torch.set_rng_state(tensors[f"random/cpu/{rank}"])
            if f"random/cuda/{rank}" in tensors and self.world.device.type == "cuda":
                torch.cuda.set_rng_state(tensors[f"random/cuda/{rank}"], self.world.device)
        except (TypeError, RuntimeError) as error:
            raise _damaged(path, f"the stored state of the random number generator is not valid: {error}") from None
        return step, position

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"objective/{name}": value for name, value in self.objective.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average/{name}": value for name, value in self.average.module.state_dict().items()}
        for name, parameter in self.objective.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
        return tensors

    def _check(self, path: str, metadata: dict[str, str]) -> None:
        spec: TrainingSpec = self.objective.spec
        model = self.objective.model.spec
        missing = [name for name in ("spec", "model", "position", "step", DIGEST) if name not in metadata]
        if missing:
            raise _damaged(path, f"its metadata lacks {', '.join(missing)}")
        try:
            there = from_json(metadata["spec"], type(spec))
            model_there = from_json(metadata["model"], read_back_as(model))
        except ValueError as error:
            raise _damaged(path, str(error)) from error
        if there != spec:
            pairs = {one.name: (getattr(there, one.name), getattr(spec, one.name)) for one in attrs.fields(type(spec))}
            different = (
                f"{name}: {one} in the checkpoint, {own} here" for name, (one, own) in pairs.items() if one != own
            )
            raise ValueError(
                f"{path} was written by a run with a different training spec; choose a different output folder, or "
                f"delete this folder to start over. {'; '.join(different)}"
            )
        if metadata["model"] != model_json(model) and model_there != model:  # equality ignores the maximum logit scale
            raise ValueError(
                f"{path} was written by a run with a different model; choose a different output folder, or delete this "
                f"folder to start over.\n  checkpoint: {metadata['model']}\n  this run:   {model_json(model)}"
            )

    def _load_modules(self, tensors: dict[str, Tensor], path: str) -> None:
        average = {} if self.average is None else {"average": self.average.module}
        try:
            for prefix, module in {"objective": self.objective, **average}.items():
                saved = _below(tensors, f"{prefix}/")
                dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
                check_numbers(path, {name: saved[name] for name in saved.keys() & dtypes.keys()}, dtypes)
                module.load_state_dict(saved, strict=True)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit the model: {error}") from None

    def _load_optimizer(self, tensors: dict[str, Tensor], path: str) -> None:
        for name, parameter in self.objective.named_parameters():
            saved = _below(tensors, f"optimizer/{name}/")
            check_numbers(path, saved, dict.fromkeys(saved, parameter.dtype))
            if any(value.shape not in (parameter.shape, ()) for value in saved.values()):
                raise _damaged(path, f"the optimizer's state of {shown(name)} does not have the shape of the weight")
            # Moments get the memory format of their weight, since the file does not store formats. The format selects
            # the kernel, and therefore determines the last bit.
            if saved:
                self.optimizer.state[parameter] = {
                    key: torch.empty_like(parameter).copy_(value)
                    if value.shape == parameter.shape
                    else value.to(parameter.device)
                    for key, value in saved.items()
                }


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _require_equal(said: list[str], values: list[Any], what: str, advice: str) -> None:
    """Raise an error if the value of a process differs from rank 0's value.

    Args:
        said: one message per process; each message starts with the name of the process's machine.
        values: values that must be equal, one per process.
        what: predicate of the error message, such as `find different checkpoints`.
        advice: remedy, for the last sentence of the error message.
    """
    others = [rank for rank, value in enumerate(values) if value != values[0]]
    if others:
        shown_ranks = [0, *others[:_MOST_NAMED]]
        named = "; ".join(f"process {rank} on {said[rank]}" for rank in shown_ranks)
        more = f"; and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        raise ValueError(f"the processes of this run {what}: {named}{more}. {advice[0].upper()}{advice[1:]}")


def _place(metadata: dict[str, str], path: str) -> tuple[int, StreamPosition]:
    """Return the number of completed steps and the position in the data."""
    if not _DIGITS.fullmatch(metadata["step"]):
        raise _damaged(path, "the number of steps is not an integer")
    try:
        position = from_json(metadata["position"], StreamPosition)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    return int(metadata["step"]), position


def _damaged(path: str, why: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({why}); delete this file to resume from the previous checkpoint")


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


FORMAT = "mobileclip training state 4"
DIGEST = "sha256"

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 24


class DamagedError(ValueError):
    """Raised if a training checkpoint is damaged."""


@attrs.frozen(kw_only=True)
class StateFile:
    """The content of a training checkpoint: named tensors and metadata.

    Args:
        tensors: CPU tensors by name.
        metadata: strings by name, for the file header.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def write(self, path: storage.AnyPath) -> None:
        """Write the tensors, the metadata and a digest of the tensors to a file, atomically.

        Args:
            path: a path or URL; `write` creates missing local folders.

        Raises:
            OSError: if the file cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        try:
            storage.make_directory_of(path)
            with storage.atomic_file(path) as temporary:
                metadata = {**self.metadata, "format": FORMAT, DIGEST: digest(self.tensors)}
                save_file(dict(self.tensors), temporary, metadata)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"checkpoint {path} could not be written ({error}); make room and start the run again to resume from "
                "the last checkpoint"
            ) from error


def read_state(path: storage.AnyPath) -> StateFile:
    """Return the content of a checkpoint file.

    Raises:
        DamagedError: if the file is damaged or a checksum does not match.
        ValueError: if the file cannot be read, for example because a store is unreachable.
    """
    try:
        with storage.local_copy(path) as local:
            tensors, metadata = read_tensors(local)
    except CheckpointError as error:
        raise DamagedError(f"{path} is damaged ({error})") from None
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error}); make the file readable, then start the run again to resume"
        ) from None
    if DIGEST in metadata and metadata[DIGEST] != digest(tensors):
        raise DamagedError(f"{path} is damaged (the checksum of its tensors does not match)")
    return StateFile(tensors=tensors, metadata=metadata)


def mark(path: storage.AnyPath) -> str | None:
    """Return a short identifier of a training state from the file header; None for any other file."""
    with storage.open_read(path) as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if 0 < length <= _MAX_HEADER_BYTES:
            # The header has the digest of all tensors.
            return hashlib.sha256(stream.read(length)).hexdigest()[:12]
    return None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 digest of the names, dtypes, shapes and values of tensors."""
    return weights_sha256(tensors, head="{} {} {}\n")


class BackgroundWriter:
    """Context manager that writes files in a background thread, and waits for the last write on exit.

    Raises:
        Exception: the error of the last write; if the context ends with another error, the writer only logs the error
            of the last write.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failed:
            if error is None or isinstance(error, KeyboardInterrupt):
                raise
            logger.warning("%s", failed)
        finally:
            self._pool.shutdown()

    @property
    def has_failed(self) -> bool:
        """Whether the last write failed with an error that neither `begin` nor `wait` has raised."""
        return self._last is not None and self._last.done() and self._last.exception() is not None

    def begin(self, write: Callable[[], None]) -> None:
        """Wait for the previous write, then start `write` in the background thread.

        Args:
            write: function that writes a file; the data to write must not change until the function returns.

        Raises:
            Exception: the error of the previous write; in this case, `write` does not start.
        """
        self.wait()
        self._last = self._pool.submit(write)

    def wait(self) -> None:
        """Wait for the last write to end.

        Raises:
            Exception: the error of the last write; later calls do not raise the error again.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()
