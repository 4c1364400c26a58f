"""The state of a run in one file: a run that is killed and resumed goes on as if nothing had happened.

The file is safetensors: `model/NAME`, `average/NAME`, `optimizer/PARAMETER/NAME` and `random/DEVICE`, with the spec,
the model's spec and the step in its metadata. It is written beside its place and moved there, so that there always is
a whole one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import nn

from mobileclip.serialization import to_json
from mobileclip.training.ema import MovingAverage

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mobileclip.training.spec import TrainingSpec

FORMAT = "mobileclip training state 1"


@attrs.define(kw_only=True)
class RunState:
    """Everything that changes while a run trains.

    Args:
        model: the student, weights and buffers.
        optimizer: of the model's parameters.
        average: the moving average of the model, where the run keeps one.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None

    def save(self, path: Path, *, spec: TrainingSpec, model_spec: Any, step: int) -> None:
        """Write the state after `step` steps, atomically."""
        from safetensors.torch import save_file

        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average/{name}": value for name, value in self.average.module.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
        tensors["random/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        metadata = {"format": FORMAT, "step": str(step), "spec": to_json(spec), "model": to_json(model_spec)}
        partial = path.with_suffix(".partial")
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, partial, metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)

    def restore(self, path: Path, *, spec: TrainingSpec, model_spec: Any) -> int:
        """Read what `save` wrote into model, optimiser and average; return the number of steps done.

        Raises:
            ValueError: if the file is another run's: another spec, another model, or keys that don't match.
        """
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is no training state of this library; expected format {FORMAT!r}")
        for what, saved, wanted in (
            ("training spec", metadata["spec"], to_json(spec)),
            ("model", metadata["model"], to_json(model_spec)),
        ):
            if saved != wanted:
                raise ValueError(
                    f"{path} was written by a run with another {what}; choose another output folder, or delete it "
                    f"to start over.\n  there: {saved}\n  here:  {wanted}"
                )
        self._load_model(tensors, path)
        self._load_optimizer(tensors)
        torch.set_rng_state(tensors["random/cpu"])
        if torch.cuda.is_available() and "random/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random/cuda"])
        return int(metadata["step"])

    def _load_model(self, tensors: dict[str, Tensor], path: Path) -> None:
        modules = {"model": self.model} | ({"average": self.average.module} if self.average is not None else {})
        try:
            for prefix, module in modules.items():
                module.load_state_dict(_below(tensors, f"{prefix}/"), strict=True)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit the model: {error}") from None

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            saved = _below(tensors, f"optimizer/{name}/")
            # Moments keep the memory format of their weight, which the file does not know: it decides which kernel
            # runs, and so the last bit.
            self.optimizer.state[parameter] = {
                key: torch.empty_like(parameter).copy_(value)
                if value.shape == parameter.shape
                else value.to(parameter.device)
                for key, value in saved.items()
            }


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
