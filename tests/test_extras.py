"""The distribution has one name and one version, and one place says what to install for what is missing."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mobileclip
from mobileclip import extras
from mobileclip.cli import main
from mobileclip.extras import DISTRIBUTION, IS_REGISTERED, VERSION, install, install_library, needed
from tests.errors import fails

ROOT = Path(__file__).parents[1]
FOLDERS = ("mobileclip", "recipes", "benchmarks", "examples")
PROGRAMS = [path for subpackage in FOLDERS for path in (ROOT / subpackage).rglob("*.py") if path.name != "extras.py"]
EXTRAS = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra")
not_registered = pytest.mark.skipif(IS_REGISTERED, reason="the distribution is installed by its name")


def read() -> dict[str, str]:
    """Return the texts of all programs and pages, those of the root included."""
    kinds, folders = ("py", "md", "html", "js", "toml", "yml", "json"), (*FOLDERS, "docs", "tests")
    paths = [path for folder in folders for kind in kinds for path in (ROOT / folder).rglob(f"*.{kind}")]
    paths += [*ROOT.glob("*.md"), *(ROOT / name for name in ("pyproject.toml", "Makefile", "mkdocs.yml"))]
    return {str(path): path.read_text(encoding="utf-8") for path in paths if "node_modules" not in path.parts}


def test_what_is_missing_is_named_with_the_command_that_installs_it():
    told = ("a thing", "nothing_like_it", install("onnx", "openvino"))
    with fails(ModuleNotFoundError, *told), needed("a thing", "onnx", "openvino"):
        import nothing_like_it.inside  # noqa: F401


@not_registered
def test_the_command_names_the_packages_of_an_extra_and_survives_a_shell():
    stated = [Requirement(line) for line in metadata.requires(DISTRIBUTION)]
    for extra in EXTRAS:
        command, verb, *named = shlex.split(install(extra))
        assert (command, verb) == ("pip", "install")
        wanted = [one for one in stated if one.marker and one.marker.evaluate({"extra": extra})]
        here = [one for one in map(Requirement, named) if one.marker is None or one.marker.evaluate()]
        assert {(one.name, str(one.specifier)) for one in here} == {(one.name, str(one.specifier)) for one in wanted}
    # Several extras name what they share once.
    named = shlex.split(install("executorch", "coreml", "coreml"))[2:]
    assert sorted(Requirement(one).name for one in named) == ["coremltools", "executorch", "torch", "torchao"]


@not_registered
def test_where_nothing_is_known_of_the_packages_a_clone_is_told():
    assert install("no-such-extra") == install_library("no-such-extra")
    assert install("onnx", "no-such-extra") == install_library("onnx", "no-such-extra")
    code = f"import runpy; print(runpy.run_path({str(ROOT / 'mobileclip' / 'extras.py')!r})['install']('onnx'))"
    alone = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert alone.stdout == "pip install '.[onnx]' in a clone of mobileclip's repository\n"


def test_with_a_registered_distribution_commands_name_it(monkeypatch):
    monkeypatch.setattr(extras, "IS_REGISTERED", True)
    assert install("onnx", "hub") == install_library("onnx", "hub") == f"pip install '{DISTRIBUTION}[onnx,hub]'"
    assert install_library() == f"pip install '{DISTRIBUTION}'"


def test_what_is_there_and_broken_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("from os import no_such_name")
    monkeypatch.syspath_prepend(tmp_path)
    with fails(ImportError, "a thing", "'no_such_name'", "pip install"), needed("a thing", "a"):
        import broken_package  # noqa: F401


def test_every_extra_that_is_asked_for_exists():
    asked = re.compile(r"\b(?:needed\((?:f?\"[^\"]*\"), |install(?:_library)?\()([^)]*)\)")
    text = "\n".join(path.read_text(encoding="utf-8") for path in PROGRAMS)
    named = {name for found in asked.findall(text) for name in re.findall(r"[\"']([a-z0-9-]+)[\"']", found)}
    assert len(named) > 10
    assert named <= set(EXTRAS)


def test_nothing_names_the_distribution_of_somebody_else():
    """`mobileclip` on PyPI is not this package."""
    wrong = re.compile(r"install[^\n]*[ '\"`]mobileclip(\[|['\"`\s]*$)", re.MULTILINE)
    assert [path for path, text in read().items() if wrong.search(text)] == []


def test_there_is_one_version(capsys):
    assert mobileclip.__version__ == VERSION == metadata.version(DISTRIBUTION)
    main(["--version"])
    assert capsys.readouterr().out == f"mobileclip {VERSION}\n"
