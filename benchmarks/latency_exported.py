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
from mobileclip.export.export import tower_export
from mobileclip.export.towers import TowerExport, cut_to_length, input_of
from mobileclip.hardware.precision import Precision
from mobileclip.inputs import TextInput

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
        rival: the release's tower, to export in place of `mine`, which takes texts of the whole context alone.
        folder: of the exported file; it is made.
    """
    name, precision = _CHOICES[runtime]
    target = targets.resolve(name)
    target.check()
    spec = ExportSpec(
        output=folder, target=name, tower=tower, precision=precision, dynamic_batch=batch_size > 1, normalize=False
    )
    export = tower_export(tower, mine, spec, target, calibration=None)
    if rival is not None:
        no_inputs = torch.empty(0)
        export = RivalExport(tower=tower, encoder=mine, spec=spec, calibration=no_inputs, rival=rival)
    folder.mkdir(parents=True)
    path = folder / f"{tower}{target.suffix}"
    file = tower_file(export, path.name, target.export(export, path))
    run, contract = target.open(path, file), input_of(mine)
    if isinstance(contract, TextInput) and file.lengths:
        return lambda batch: run(cut_to_length(batch, file.lengths, contract))[0]
    return lambda batch: run(batch)[0]
