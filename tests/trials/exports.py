"""Exports from strangers: folders, ONNX models, and those of runtimes that believe what they read."""

import atexit
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mobileclip.export import ExportSpec, bundled_samples, export_model, targets
from tests.export.hostile import PROGRAMS, make
from tests.export.hostile_folders import FOLDERS, ONNX, sign
from tests.export.models import SHALLOW, seeing
from tests.trials.harness import Case, Outcome, run_command

Change = Callable[[Path], object]


def cases() -> Iterator[Case]:
    """Yield every hostile export, and those that only look so."""
    # What is imported here need not be in each process that is forked.
    targets["onnx"].check()
    top = Path(tempfile.mkdtemp(prefix="trial-exports-"))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    model, samples = seeing(SHALLOW), bundled_samples()
    sound = {
        target: export_model(
            model, ExportSpec(output=top / target, target=target, tower="text"), samples=samples, show_progress=False
        )
        for target in ("torch", "onnx")
    }
    for name in PROGRAMS:
        change = partial(_program, name, sound["torch"])
        yield Case(name=f"a .pt2 with {name}", attempt=partial(_verified, sound["torch"], change))
    for name, change in FOLDERS.items():
        yield Case(name=f"an export with {name}", attempt=partial(_verified, sound["onnx"], change))
    for name, change in ONNX.items():
        yield Case(name=f"an ONNX model with {name}", attempt=partial(_verified, sound["onnx"], change))
    for target, folder in sound.items():
        yield Case(name=f"a sound export for {target}", attempt=partial(_verified, folder, lambda _: None))
    yield Case(
        name="an export for ExecuTorch without trust", attempt=partial(_verified, sound["torch"], _for_executorch)
    )
    again = partial(_verified, sound["torch"], _as_of_another_machine)
    yield Case(name="a sound .pt2 of a stranger", attempt=again)
    yield Case(name="a sound .pt2 of a stranger who is trusted", attempt=partial(again, options=("--trust",)))
    yield Case(name="a folder that is no export", attempt=_finished)


def _program(name: str, sound: Path, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(name, sound / "text.pt2", folder / "text.pt2")
    sign(folder)


def _as_of_another_machine(folder: Path) -> None:
    contract = folder / "mobileclip.json"
    contract.write_text(f"{contract.read_text()}\n")


def _for_executorch(folder: Path) -> None:
    contract = folder / "mobileclip.json"
    contract.write_text(contract.read_text().replace('"target": "torch"', '"target": "executorch"'))


def _verified(sound: Path, change: Change, folder: Path, options: tuple[str, ...] = ()) -> Outcome:
    """Verify a changed copy, as a person would."""
    copied = shutil.copytree(sound, folder / "export")
    change(copied)
    return _finished(copied, options)


def _finished(folder: Path, options: tuple[str, ...] = ()) -> Outcome:
    finished = run_command(["verify", str(folder), *options])
    if finished.status == 0:
        assert "passed: all" in finished.output
        return "accepted"
    # What its runtime runs, and gives other embeddings than the contract's, fails the gates.
    assert finished.status == 2 or (finished.status == 1 and "ranking agreement" in finished.errors), finished.errors
    assert len(finished.errors.strip()) in range(10, 2000), finished.errors
    return "refused"
