"""Packages as pip installs them, which add to registries by entry point."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from mobileclip.registry import Registry


def install(folder: Path, package: str, kind: str, name: str, source: str, *, attribute: str = "VALUE") -> None:
    """Put a package of one module, which offers one of its attributes as a name of a registry, into a folder.

    Args:
        folder: on the path, or put there afterwards.
        package: name of the package and the module.
        kind: of the registry.
        name: that the registry has it by.
        source: of the module.
        attribute: of the module, the value.
    """
    (folder / f"{package}.py").write_text(textwrap.dedent(source))
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mobileclip.{kind}]\n{name} = {package}:{attribute}\n")


def find_installed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a registry of the library find what was just installed, and forget it after the test.

    Entry points are read once per process.
    """
    monkeypatch.setitem(vars(registry), "_plugins", Registry(registry.kind)._plugins)
    monkeypatch.setattr(registry, "_values", dict(registry._values))
