"""The distribution has one name and one version, and one place says what to install for what is missing."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

import mobileclip
from mobileclip.cli import main
from mobileclip.extras import DISTRIBUTION, VERSION, needed

ROOT = Path(__file__).parents[1]
ROOMS = ("mobileclip", "recipes", "benchmarks", "examples")
PROGRAMS = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.name != "extras.py"]


def test_what_is_missing_is_named_with_the_command_that_installs_it():
    with (
        pytest.raises(
            ModuleNotFoundError, match=r"^a thing needs nothing_like_it: pip install 'open-mobileclip\[a,b\]'$"
        ),
        needed("a thing", "a", "b"),
    ):
        import nothing_like_it.inside  # noqa: F401


def test_what_is_there_and_broken_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("from os import no_such_name")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        pytest.raises(ImportError, match=r"^a thing cannot be used \(cannot import name 'no_such_name'.*: pip install"),
        needed("a thing", "a"),
    ):
        import broken_package  # noqa: F401


def test_every_extra_that_is_asked_for_exists():
    asked = re.compile(r"\b(?:needed\((?:f?\"[^\"]*\"), |install\()([^)]*)\)")
    text = "\n".join(path.read_text(encoding="utf-8") for path in PROGRAMS)
    named = {name for found in asked.findall(text) for name in re.findall(r"[\"']([a-z0-9-]+)[\"']", found)}
    assert len(named) > 10
    assert named <= set(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra"))


def test_no_other_place_writes_an_install_command():
    told = re.compile(r"pip install[^\n]*mobileclip")
    assert [path.name for path in PROGRAMS if told.search(path.read_text(encoding="utf-8"))] == []


def test_nothing_names_the_distribution_of_somebody_else():
    """`mobileclip` on PyPI is not this package."""
    wrong = re.compile(r"install[^\n]*[ '\"`]mobileclip(\[|['\"`\s]*$)", re.MULTILINE)
    inside = [
        path
        for room in (*ROOMS, "docs", "tests")
        for kind in ("py", "md", "html")
        for path in (ROOT / room).rglob(f"*.{kind}")
    ]
    paths = [*inside, *ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    assert len(paths) > 500
    assert [path for path in paths if wrong.search(path.read_text(encoding="utf-8"))] == []


def test_there_is_one_version(capsys):
    assert mobileclip.__version__ == VERSION == metadata.version(DISTRIBUTION)
    main(["--version"])
    assert capsys.readouterr().out == f"mobileclip {VERSION}\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "mobileclip --version" in capsys.readouterr().out
