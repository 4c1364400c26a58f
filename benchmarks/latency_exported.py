"""The tower of this library and the release's, exported the same way and run by the same runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs
import torch
from torch import Tensor, nn

from benchmarks.rivals import Tower
from mobileclip.export import ExportSpec, targets
from mobileclip.export.describing import tower_file
from mobileclip.export.export import encoder_for
from mobileclip.export.towers.graph import TowerExport
from mobileclip.hardware.precision import Precision

Runtime = Literal["onnxruntime", "openvino", "openvino_bf16"]
_CHOICES: dict[Runtime, tuple[str, Precision]] = {
    "onnxruntime": ("onnx", "float32"),
    "openvino": ("openvino", "float32"),
    "openvino_bf16": ("openvino", "bfloat16"),
}


@attrs.frozen(kw_only=True, eq=False)
class RivalExport(TowerExport):
    """The release's tower, exported as this library's is."""

    rival: nn.Module

    def graph(self, dtype: torch.dtype) -> nn.Module:
        """Return the module to export."""
        return _InItsType(copy.deepcopy(self.rival).to(dtype), dtype).requires_grad_(requires_grad=False)


class _InItsType(nn.Module):
    """A tower that takes and gives pixels and embeddings in float32, and computes in any type."""

    def __init__(self, tower: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.tower = tower
        self.dtype = dtype

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the embeddings."""
        taken = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        embeddings: Tensor = self.tower(taken).float()
        return embeddings


def exported(
    mine: nn.Module, tower: Tower, runtime: Runtime, *, batch_size: int, rival: nn.Module | None, folder: Path
) -> Callable[[Tensor], Tensor]:
    """Return a function that computes embeddings, not normalised, in a runtime of its own.

    Args:
        mine: this library's folded tower.
        tower: which tower it is.
        runtime: which runtime.
        batch_size: images or texts per call; more than one goes into a file that takes batches of any size.
        rival: the release's tower, to export in place of `mine`.
        folder: of the exported file; it is made.
    """
    name, precision = _CHOICES[runtime]
    target = targets.resolve(name)
    target.check()
    spec = ExportSpec(
        out=folder, target=name, tower=tower, precision=precision, dynamic_batch=batch_size > 1, normalize=False
    )
    inputs = torch.empty(0)
    if rival is None:
        export = TowerExport(tower=tower, encoder=encoder_for(target, mine), spec=spec, calibration=inputs)
    else:
        export = RivalExport(tower=tower, encoder=mine, spec=spec, calibration=inputs, rival=rival)
    folder.mkdir(parents=True)
    path = folder / f"{tower}{target.suffix}"
    run = target.open(path, tower_file(export, path.name, target.export(export, path)))
    return lambda batch: run(batch)[0]
