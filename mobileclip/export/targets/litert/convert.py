"""From a tower to a file of LiteRT, in float32 or int8, by Google's converter in an environment of its own."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from mobileclip.export.targets.litert.file import SIGNATURE, signature_of
from mobileclip.export.targets.torch.pt2 import save_pt2
from mobileclip.export.towers.attention import set_attention, written_out_attention
from mobileclip.export.towers.graph import TowerExport
from mobileclip.export.towers.int8 import EVERY_OUTPUT, dequantize_for_each_user, graph_in_int8
from mobileclip.inference.quantization import Int8Form
from mobileclip.storage import printable

CONVERTER = "litert-torch"
"""The converter's distribution."""
INSTALL = f"python3 -m venv litert-converter && litert-converter/bin/pip install '{CONVERTER}>=0.10'"
"""What makes an environment with the converter."""

_VERSION = f"import sys, importlib.metadata; sys.stdout.write(importlib.metadata.version({CONVERTER!r}))"
_SCRIPT = Path(__file__).with_name("litert_converter.py")
_LARGEST_WEIGHT = 127


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
            f"{INSTALL}; and name it: --converter litert-converter/bin/python"
        )
    found = _run([str(python), "-I", "-c", _VERSION])
    if found.returncode:
        raise ValueError(f"--converter {python} has no converter ({_last_words(found)}). Make one: {INSTALL}")
    return found.stdout


def converted(tower: TowerExport) -> bytes:
    """Return a tower as a `.tflite` file holds it, in int8 where that is asked for, in float32 otherwise.

    The converter's requirements and this library's exclude each other (release 0.10 wants typing-extensions before
    4.13), so the program goes to another Python as a file.

    Args:
        tower: of a spec that names that Python.

    Raises:
        ValueError: if the converter fails; the message says what to do.
    """
    python = tower.spec.converter
    assert python is not None, "a spec without a converter is refused"
    with tempfile.TemporaryDirectory() as temporary:
        programs, path = Path(temporary) / "programs", Path(temporary) / "tower.tflite"
        programs.mkdir()
        for name, program in _programs(tower).items():
            save_pt2(program, programs / f"{name}.pt2")
        precision = ["int8"] if tower.spec.precision == "int8" else []
        done = _run([str(python), "-I", str(_SCRIPT), str(programs), str(path), *precision])
        if done.returncode:
            raise ValueError(
                f"LiteRT's converter failed: {_last_words(done)}; try a newer one, in --converter {python}: pip "
                f"install -U {CONVERTER}"
            )
        return path.read_bytes()


def _programs(tower: TowerExport) -> dict[str, torch.export.ExportedProgram]:
    """Return a tower as torch.export sees it, its input and outputs by name: a signature for each length of texts."""
    if tower.spec.precision == "int8":
        graph = graph_in_int8(
            tower,
            Int8Form(signed=True),
            outputs=EVERY_OUTPUT,
            largest_weight=_LARGEST_WEIGHT,
            # The converter looks nothing up in them; `fewer_bits` makes them of its file.
            float16_tables=False,
        )
    else:
        graph = tower.graph(torch.float32)
    # The converter has no attention of one operation.
    set_attention(graph, written_out_attention)
    named = _Named(graph, tower.output_names)
    shapes = {SIGNATURE: tower.input_shape} | {signature_of(length): (length,) for length in tower.lengths[:-1]}
    programs = {}
    for name, shape in shapes.items():
        example = torch.zeros(1, *shape, dtype=getattr(torch, tower.input_dtype))
        programs[name] = torch.export.export(named, (), {tower.input_name: example}, strict=False)
        dequantize_for_each_user(programs[name])
    return programs


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
            f"--converter {command[0]} cannot be run ({error.strerror}); it is the Python of an environment with "
            f"{CONVERTER}. Make one: {INSTALL}"
        ) from error


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    return printable(said[-1], limit=300)
