"""From a tower to a float32 file of LiteRT, by Google's converter in an environment of its own."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mobileclip.export.spec import ExportSpec
from mobileclip.export.towers.attention import set_attention, written_out_attention
from mobileclip.export.towers.graph import TowerExport
from mobileclip.storage import printable

CONVERTER = "litert-torch"
"""The converter's distribution."""
INSTALL = f"python3 -m venv litert-converter && litert-converter/bin/pip install '{CONVERTER}>=0.10'"
"""What makes an environment with the converter."""

_VERSION = f"import sys, importlib.metadata; sys.stdout.write(importlib.metadata.version({CONVERTER!r}))"
_SCRIPT = Path(__file__).with_name("converter.py")
# Of the towers that are being exported: one is converted once, however many layers of it are rounded then.
_converted: WeakKeyDictionary[nn.Module, tuple[ExportSpec, bytes]] = WeakKeyDictionary()


def converter_version(python: Path | None) -> str:
    """Return the version of the converter of an environment.

    Args:
        python: of that environment.

    Raises:
        ValueError: if there is none, or no converter in it; the message has the commands that make one.
    """
    if python is None:
        raise ValueError(
            "the target 'litert' is written by Google's converter, which wants an environment of its own. Make one: "
            f"{INSTALL}; and name it: --set converter=litert-converter/bin/python"
        )
    found = _run([str(python), "-I", "-c", _VERSION])
    if found.returncode:
        raise ValueError(f"--set converter={python} has no converter ({_last_words(found)}). Make one: {INSTALL}")
    return found.stdout


def converted(tower: TowerExport) -> bytes:
    """Return a tower in float32 as a `.tflite` file holds it.

    The converter's requirements and this library's exclude each other (release 0.10 wants typing-extensions before
    4.13), so the program goes to another Python as a file.

    Args:
        tower: of a spec that names that Python.

    Raises:
        ValueError: if the converter fails; the message says what to do.
    """
    spec, known = _converted.get(tower.encoder, (None, b""))
    if spec != tower.spec:
        known = _convert(tower)
        _converted[tower.encoder] = (tower.spec, known)
    return known


def _convert(tower: TowerExport) -> bytes:
    python = tower.spec.converter
    assert python is not None, "a spec without a converter is refused"
    with tempfile.TemporaryDirectory() as temporary:
        program, path = Path(temporary) / "tower.pt2", Path(temporary) / "tower.tflite"
        torch.export.save(_program(tower), program)
        done = _run([str(python), "-I", str(_SCRIPT), str(program), str(path)])
        if done.returncode:
            raise ValueError(
                f"LiteRT's converter failed: {_last_words(done)}; try a newer one, in --set converter={python}: pip "
                f"install -U {CONVERTER}"
            )
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


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the Python of the converter's environment; how it ended is for the caller.

    Raises:
        ValueError: if it cannot be run.
    """
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603
    except OSError as error:
        raise ValueError(
            f"--set converter={command[0]} cannot be run ({error.strerror}); it is the Python of an environment with "
            f"{CONVERTER}. Make one: {INSTALL}"
        ) from error


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    return printable(said[-1], limit=300)
