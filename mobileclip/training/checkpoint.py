"""The state of a run in one file: a run that is killed and resumed goes on as if nothing had happened.

A file is safetensors: `objective/NAME` (student, loss, augmentation), `average/NAME`, `optimizer/PARAMETER/NAME` and
`random/DEVICE/RANK`, with the specs, the step and the data position of every process in its metadata. It is written
beside its place and moved there, so that there always is a whole one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from mobileclip import storage
from mobileclip.data import StreamPosition
from mobileclip.encoders.checkpoints.numbers import check_numbers
from mobileclip.serialization import from_json, to_json
from mobileclip.strict import parse_json
from mobileclip.tensor_files import CheckpointError, read_tensors
from mobileclip.tensor_files.errors import shown
from mobileclip.terminal import get_logger
from mobileclip.training.distributed import World
from mobileclip.training.ema import MovingAverage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobileclip.training.objective import Objective
    from mobileclip.training.spec import TrainingSpec

logger = get_logger(__name__)

FORMAT = "mobileclip training state 2"
_DIGITS = re.compile(r"[0-9]{1,12}")
_NAME = re.compile(r"step-(\d{8})\.safetensors")


class _DamagedError(ValueError):
    """A file that was a checkpoint, or was to become one."""


@attrs.frozen
class CheckpointFolder:
    """The checkpoints of a run, the newest of which are kept.

    Args:
        path: the folder; created when the first one is written.
        keep: how many to keep, at least 1.
    """

    path: Path
    keep: int = 1

    def newest(self) -> Path | None:
        """Return the checkpoint with the most steps, if there is any."""
        found = self.all()
        return found[-1] if found else None

    def step(self, num_steps: int) -> Path:
        """Return where the checkpoint after so many steps is, or goes."""
        return self.path / f"step-{num_steps:08d}.safetensors"

    def remove_old(self) -> None:
        """Remove all but the newest."""
        for old in self.all()[: -self.keep]:
            old.unlink(missing_ok=True)

    def all(self) -> list[Path]:
        """Return all checkpoints, the one with the most steps at the end."""
        if not self.path.is_dir():
            return []
        return sorted(path for path in self.path.iterdir() if _NAME.fullmatch(path.name))


@attrs.define(kw_only=True)
class RunState:
    """Everything that changes while a run trains.

    Args:
        objective: the model and the loss, weights and buffers.
        optimizer: of their parameters.
        average: the moving average of the student, where this process keeps one.
        world: the processes of the run; all of them save and restore together, the first one writes.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    world: World

    def save(self, path: Path, *, step: int, position: StreamPosition) -> None:
        """Write the state after `step` steps, atomically.

        Args:
            path: where to; its folder is created.
            step: steps done.
            position: where this process is in its data.

        Raises:
            OSError: if it cannot be written; the earlier checkpoints stay.
        """
        random = self.world.gather(_random_state(self.world.device))
        positions = self.world.gather(to_json(position))
        if self.world.is_first:
            spec, model_spec = self.objective.spec, self.objective.model.spec
            metadata = {
                "format": FORMAT,
                "step": str(step),
                "spec": to_json(spec),
                "model": to_json(model_spec),
                "positions": json.dumps(positions),
            }
            tensors = self._tensors()
            for rank, states in enumerate(random):
                tensors |= {f"random/{device}/{rank}": state for device, state in states.items()}
            _write(path, tensors, metadata)
        self.world.wait()

    def resume(self, checkpoints: CheckpointFolder) -> tuple[int, StreamPosition]:
        """Go on from the newest checkpoint that can be read; return steps done and where this process is in its data.

        One that cannot be read, by any of the processes, is set aside and told of.

        Raises:
            ValueError: if there are checkpoints and none can be read, or the one that can is another run's.
        """
        # The first process names them: a shared disk may show them to the others later.
        names = self.world.gather([path.name for path in checkpoints.all()])[0]
        for name in reversed(names):
            path = checkpoints.path / name
            content, problem = _tried(path)
            problems = [said for said in self.world.gather(problem) if said is not None]
            if content is not None and not problems:
                return self._restore(path, *content)
            if self.world.is_first:
                aside = path.with_suffix(".unreadable")
                path.replace(aside)
                logger.warning("%s; it is now %s, and the run goes on from the checkpoint before", problems[0], aside)
        if names:
            raise ValueError(
                f"none of the {len(names)} checkpoints in {checkpoints.path} can be read; delete the output folder to "
                "start over"
            )
        return 0, StreamPosition()

    def _restore(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[int, StreamPosition]:
        _check_format(path, metadata)
        self._check(path, metadata)
        self._load_modules(tensors, path)
        self._load_optimizer(tensors, path)
        rank = self.world.rank
        step, position = _place(metadata, rank, path)
        try:
            torch.set_rng_state(tensors[f"random/cpu/{rank}"])
            if f"random/cuda/{rank}" in tensors and self.world.device.type == "cuda":
                torch.cuda.set_rng_state(tensors[f"random/cuda/{rank}"], self.world.device)
        except (KeyError, TypeError, RuntimeError) as error:
            raise _damaged(path, f"its state of random numbers is missing or of another kind: {error}") from None
        return step, position

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"objective/{name}": value for name, value in self.objective.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average/{name}": value for name, value in self.average.module.state_dict().items()}
        for name, parameter in self.objective.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
        return tensors

    def _check(self, path: Path, metadata: dict[str, str]) -> None:
        spec: TrainingSpec = self.objective.spec
        missing = [name for name in ("spec", "model", "positions", "step") if name not in metadata]
        if missing:
            raise _damaged(path, f"it lacks {', '.join(missing)}")
        try:
            there = from_json(metadata["spec"], type(spec))
        except ValueError as error:
            raise _damaged(path, str(error)) from error
        if there != spec:
            raise ValueError(
                f"{path} was written by a run with another training spec; choose another output folder, or delete it "
                f"to start over. {_difference(there, spec)}"
            )
        model = to_json(self.objective.model.spec)
        if metadata["model"] != model:
            raise ValueError(
                f"{path} was written by a run with another model; choose another output folder, or delete it to start "
                f"over.\n  there: {metadata['model']}\n  here:  {model}"
            )
        num_processes = len(_positions(metadata, path))
        if num_processes != self.world.size:
            raise ValueError(
                f"{path} was written by {num_processes} processes and this run has {self.world.size}, which would see "
                f"other batches; start {num_processes}, or train from its weights in another output folder"
            )

    def _load_modules(self, tensors: dict[str, Tensor], path: Path) -> None:
        modules: dict[str, nn.Module] = {"objective": self.objective}
        if self.average is not None:
            modules["average"] = self.average.module
        try:
            for prefix, module in modules.items():
                saved = _below(tensors, f"{prefix}/")
                dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
                check_numbers(path, {name: saved[name] for name in saved.keys() & dtypes.keys()}, dtypes)
                module.load_state_dict(saved, strict=True)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit the model: {error}") from None

    def _load_optimizer(self, tensors: dict[str, Tensor], path: Path) -> None:
        for name, parameter in self.objective.named_parameters():
            saved = _below(tensors, f"optimizer/{name}/")
            check_numbers(path, saved, dict.fromkeys(saved, parameter.dtype))
            if any(value.shape not in (parameter.shape, ()) for value in saved.values()):
                raise _damaged(path, f"the optimizer's state of {shown(name)} has another shape than the weight")
            # Moments keep the memory format of their weight, which the file does not know: it decides which kernel
            # runs, and so the last bit.
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


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with storage.atomic_path(path) as temporary:
            save_file({name: value.detach().contiguous() for name, value in tensors.items()}, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"checkpoint {path} could not be written ({error}); make room and start the run again: it goes on from the "
            "checkpoint before"
        ) from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        return read_tensors(path)
    except CheckpointError as error:
        raise _DamagedError(f"{path} is damaged ({error})") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); the run goes on from it when it can be") from None


def _check_format(path: Path, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no training state of this version; expected format {FORMAT!r}")


def _positions(metadata: dict[str, str], path: Path) -> list[str]:
    """Return where every process was in its data, as JSON."""
    try:
        positions = parse_json(metadata["positions"])
    except ValueError as error:
        raise _damaged(path, f"its positions: {error}") from None
    if not isinstance(positions, list) or not all(isinstance(position, str) for position in positions):
        raise _damaged(path, "its positions are no list of texts")
    return positions


def _place(metadata: dict[str, str], rank: int, path: Path) -> tuple[int, StreamPosition]:
    """Return the steps done, and where a process was in its data."""
    if not _DIGITS.fullmatch(metadata["step"]):
        raise _damaged(path, "its number of steps is no number")
    try:
        position = from_json(_positions(metadata, path)[rank], StreamPosition)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    return int(metadata["step"]), position


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({why}); delete it, and the run goes on from the checkpoint before")


def _tried(path: Path) -> tuple[tuple[dict[str, Tensor], dict[str, str]] | None, str | None]:
    """Return what a checkpoint holds, or what is wrong with it."""
    try:
        return _read(path), None
    except _DamagedError as error:
        return None, str(error)


def _difference(there: Any, here: Any) -> str:
    fields = [
        field.name for field in attrs.fields(type(here)) if getattr(there, field.name) != getattr(here, field.name)
    ]
    return "; ".join(f"{name}: there {getattr(there, name)}, here {getattr(here, name)}" for name in fields)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
