"""From a tower to a float32 file of LiteRT, by Google's converter in an environment of its own."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mobileclip.export.attention import set_attention, written_out_attention
from mobileclip.export.graph import TowerExport
from mobileclip.export.spec import ExportSpec
from mobileclip.storage import printable

INSTALL = "python3 -m venv litert-converter && litert-converter/bin/pip install 'litert-torch>=0.10'"
"""What makes an environment with the converter."""

_SCRIPT = Path(__file__).with_name("converter.py")
# Of the towers that are being exported: one is converted once, however many layers of it are rounded then.
_converted: WeakKeyDictionary[nn.Module, tuple[ExportSpec, bytes]] = WeakKeyDictionary()


def converted(tower: TowerExport) -> bytes:
    """Return a tower in float32 as a `.tflite` file holds it.

    The converter's requirements and this library's exclude each other (release 0.10 wants typing-extensions before
    4.13), so the program goes to another Python as a file.

    Args:
        tower: of a spec that names that Python.

    Raises:
        ValueError: if the spec names none, it has no converter, or the converter fails; the message says what to do.
    """
    spec, known = _converted.get(tower.encoder, (None, b""))
    if spec != tower.spec:
        known = _convert(tower)
        _converted[tower.encoder] = (tower.spec, known)
    return known


def _convert(tower: TowerExport) -> bytes:
    if tower.spec.dynamic_batch:
        raise ValueError(
            "the target 'litert' takes one input at a time: its converter fixes the batch; leave --dynamic-batch out"
        )
    python = tower.spec.converter
    if python is None:
        raise ValueError(
            "the target 'litert' is written by Google's converter, which wants an environment of its own. Make one: "
            f"{INSTALL}; and name it: --converter litert-converter/bin/python"
        )
    with tempfile.TemporaryDirectory() as temporary:
        program, path = Path(temporary) / "tower.pt2", Path(temporary) / "tower.tflite"
        torch.export.save(_program(tower), program)
        _run([str(python), "-I", str(_SCRIPT), str(program), str(path)])
        return path.read_bytes()


def _program(tower: TowerExport) -> torch.export.ExportedProgram:
    """Return a tower as torch.export sees it, its input and outputs by name."""
    graph = tower.graph(torch.float32)
    # The converter has no attention of one operation.
    set_attention(graph, written_out_attention)
    example = torch.zeros(1, *tower.input_shape, dtype=getattr(torch, tower.input_dtype))
    return torch.export.export(_Named(graph, tower.output_names), (), {tower.input_name: example}, strict=False)


class _Named(nn.Module):
    """A graph whose input and outputs have names, which the converter takes over."""

    def __init__(self, tower: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.tower, self.names = tower, names

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        (given,) = inputs.values()
        outputs = self.tower(given)
        return dict(zip(self.names, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))


def _run(command: list[str]) -> None:
    """Run the converter.

    Raises:
        ValueError: if it cannot be run or fails.
    """
    python = command[0]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603
    except OSError as error:
        raise ValueError(
            f"--converter {python} cannot be run ({error.strerror}); it is the Python of an environment with "
            f"litert-torch. Make one: {INSTALL}"
        ) from error
    if done.returncode == 0:
        return
    said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    if "No module named" in said[-1]:
        raise ValueError(f"--converter {python} has no converter ({printable(said[-1])}). Make one: {INSTALL}")
    raise ValueError(
        f"LiteRT's converter failed: {printable(said[-1], limit=300)}; try a newer one, in --converter {python}: pip "
        "install -U litert-torch"
    )
