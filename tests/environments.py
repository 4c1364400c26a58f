"""The wheel in clean environments: every Python that is on this machine, and the lowest versions that are allowed.

    python -m tests.environments                                  # the core alone, in all of them
    python -m tests.environments --only 3.12 lowest --subpackages blocks encoders --extras onnx lora
    UV_TORCH_BACKEND=cpu python -m tests.environments             # PyTorch without CUDA, from PyTorch's own index

An environment has the wheel, what it depends on, and what runs tests; with extras, as much of these, and of what their
tests need, as has wheels for it. What has none is named at the end, and tests of it are skipped. The tests run beside
no source tree, so that what they import is the wheel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.extras import read_project, requirements

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
LOWEST = "lowest"
TORCH_LIMITS = ROOT / "requirements" / "torch.txt"
SUBPACKAGES = (
    *("blocks", "reparam", "encoders", "losses", "inference", "interop", "hardware", "storage", "strict"),
    *("tensor_files", "terminal", "cli", "data", "datasets"),
    *(f"test_{name}.py" for name in ("import", "input_sizes", "progress", "registry", "serialization")),
)
"""Whose tests, but for those that are skipped, need nothing that is not in the core."""

_TREE = "tree"
_CHECKERS = {"ruff", "mypy", "import-linter"}


class Uv:
    """The tool that resolves and installs, with settings of no project and no person."""

    def __init__(self) -> None:
        found = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
        if found is None:
            raise SystemExit("uv is needed: pip install uv, or make test-versions")
        self._base = (found, "--no-config", "--quiet", "--no-python-downloads")

    def run(self, *arguments: str | Path) -> str:
        done = subprocess.run([*self._base, *map(str, arguments)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def resolved(
        self, python: str, requirements: Sequence[str], scratch: Path, *options: str | Path
    ) -> list[str] | None:
        """Return `name==version` of all that is needed, if wheels can be had for it."""
        wanted = scratch / "wanted.txt"
        wanted.write_text("\n".join(requirements) + "\n")
        flags = ("--python", python, "--no-build", "--no-header", "--no-annotate")
        try:
            return self.run("pip", "compile", *flags, *options, wanted).split("\n")
        except RuntimeError:
            return None


def interpreter(version: str, uv: Uv) -> str | None:
    """Return a Python of a version that is here: this one, one on the path, one of uv's, or the newest of pyenv's."""
    candidates = [sys.executable, shutil.which(f"python{version}")]
    with suppress(RuntimeError):
        candidates.append(uv.run("python", "find", version).strip())
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates += sorted(map(str, pyenv.glob(f"{version}.*/bin/python")), reverse=True)
    for candidate in filter(None, candidates):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        said = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if said.stdout.strip() == version:
            return candidate
    return None


def copied(tree: Path) -> Path:
    """Copy the files of the working tree that git tracks or does not ignore, and return the copy."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


def unpacked(folder: Path, uv: Uv) -> Path:
    """Return a wheel of what git knows of, and leave a folder with all of that but the package itself."""
    tree = copied(folder / _TREE)
    uv.run("build", "--wheel", "--out-dir", folder / "dist", tree)
    shutil.rmtree(tree / "mobileclip")
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def requirements_of(wheel: Path, extras: Sequence[str]) -> list[list[Requirement]]:
    """Return what a wheel depends on, what runs its tests, and what extras and their tests need."""
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        found = metadata.PathDistribution(zipfile.Path(archive, f"{info}/")).requires or []
    project = read_project()
    core = [one for one in map(Requirement, found) if one.marker is None or one.marker.evaluate({"extra": ""})]
    runners = [one for one in requirements("core-test", project) if one.name not in _CHECKERS]
    others = [one for extra in (*extras, "test") for one in requirements(extra, project)] if extras else []
    return [core, runners, [one for one in others if one.name not in _CHECKERS]]


def chosen(
    wanted: Sequence[Sequence[Requirement]], python: str, scratch: Path, uv: Uv, *, lowest: bool
) -> tuple[list[str], list[str]]:
    """Return the versions to install, and the requirements beyond core and runners that no wheel fits.

    At the lowest versions, those of the core are found first, and what cannot live with them is left out. Otherwise
    PyTorch is held to the versions that the tests were last run with.

    Raises:
        RuntimeError: if the core itself, or what runs tests, cannot be had.
    """
    always, runners, others = ([str(one).partition(";")[0].strip() for one in some] for some in wanted)
    options = ("--resolution", "lowest-direct") if lowest else ("--constraint", TORCH_LIMITS)
    if lowest:
        direct = {canonicalize_name(one.name) for one in wanted[0]}
        found = uv.resolved(python, always, scratch, *options) or []
        always = [line for line in found if canonicalize_name(line.partition("==")[0]) in direct]
    always += runners
    if uv.resolved(python, always, scratch, *options) is None:
        raise RuntimeError("its core, or what runs tests, cannot be had")

    def fitting(kept: list[str], more: list[str]) -> tuple[list[str], list[str]]:
        """Return what is kept with as much of what comes to it as there are wheels for, and the rest."""
        if uv.resolved(python, [*kept, *more], scratch, *options) is not None:
            return [*kept, *more], []
        if len(more) == 1:
            return kept, more
        half = len(more) // 2
        kept, first = fitting(kept, more[:half])
        kept, second = fitting(kept, more[half:])
        return kept, [*first, *second]

    kept, lacking = fitting(always, others)
    return uv.resolved(python, kept, scratch, *options) or [], lacking


def tried(name: str, folder: Path, wheel: Path, uv: Uv, choices: argparse.Namespace) -> tuple[bool, list[str]]:
    """Make an environment, run the tests in it, and remove it; return whether all passed, and what to tell of it."""
    python = interpreter(PYTHONS[0] if name == LOWEST else name, uv)
    if python is None:
        return False, ["there is no such Python here"]
    place = folder / name
    place.mkdir()
    try:
        wanted = requirements_of(wheel, choices.extras)
        versions, lacking = chosen(wanted, python, place, uv, lowest=name == LOWEST)
        uv.run("venv", "--python", python, place / "venv")
        own = place / "venv" / "bin" / "python"
        (place / "versions.txt").write_text("\n".join(versions))
        uv.run("pip", "install", "--python", own, "--no-deps", "-r", place / "versions.txt", wheel)
        command = [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(choices.processes)]
        command += [f"tests/{subpackage}" for subpackage in choices.subpackages]
        command += ["--environment", "core", "--dist", "loadfile", "--no-loadscope-reorder"]
        command += ["--max-worker-restart", "0", *choices.arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["OMP_NUM_THREADS"] = "1"
        log = choices.logs / f"{name}.log"
        with log.open("w") as stream:
            streams = {"stdout": stream, "stderr": subprocess.STDOUT}
            done = subprocess.run(command, cwd=folder / _TREE, env=environment, check=False, **streams)
    except RuntimeError as error:
        return False, [f"not installed: {error}"]
    finally:
        shutil.rmtree(place)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    shown = {"torch", "numpy", "attrs", "rich", "pillow", "pytest"}
    told = [f"{lines[-1] if lines else 'nothing was said'} ({log})"]
    told.append(f"with {', '.join(line for line in versions if line.partition('==')[0] in shown)}")
    return done.returncode == 0, [*told, *([f"without {', '.join(lacking)}"] if lacking else [])]


def main() -> int:
    """Try the environments that are asked for, and print what came of each."""
    parser = argparse.ArgumentParser(prog="python -m tests.environments")
    add = parser.add_argument
    add("--only", nargs="+", choices=(*PYTHONS, LOWEST), default=(*PYTHONS, LOWEST), help="environments")
    add("--extras", nargs="+", default=(), help="extras to be tested too, as far as they can be had")
    add("--subpackages", nargs="+", default=SUBPACKAGES, help="folders and files of tests/")
    add("--processes", type=int, default=2, help="that share out the tests of one environment")
    add("--logs", type=Path, default=ROOT / "build" / "environments", help="where the tests' output goes")
    add("arguments", nargs="*", help="for pytest, behind --")
    choices = parser.parse_args()
    choices.logs.mkdir(parents=True, exist_ok=True)
    uv, outcomes = Uv(), {}
    with tempfile.TemporaryDirectory(prefix="environments-") as scratch:
        wheel = unpacked(Path(scratch), uv)
        for name in choices.only:
            print(f"{name}: installing, then testing", flush=True)
            passed, told = outcomes[name] = tried(name, Path(scratch), wheel, uv, choices)
            print(f"{name}: {told[0]}", flush=True)
    print()
    for name, (passed, told) in outcomes.items():
        print(f"{name:8} {'passed' if passed else 'FAILED':8}", f"\n{'':18} ".join(told))
    return 0 if all(passed for passed, _ in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
