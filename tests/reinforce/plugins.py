"""Packages as pip installs them, which add a kind to a registry by entry point."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from mobileclip.registry import Registry
from mobileclip.serialization import _converter


def install_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry, name: str, source: str) -> None:
    """Install a package whose `Plugin` is registered as `name`, and forget it after the test."""
    package = f"{registry.kind}_{name}_plugin"
    (folder / f"{package}.py").write_text(textwrap.dedent(source))
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mobileclip.{registry.kind}]\n{name} = {package}:Plugin\n")
    monkeypatch.syspath_prepend(folder)
    # Entry points are read once per process; this one was installed later.
    monkeypatch.setitem(vars(registry), "_plugins", Registry(registry.kind)._plugins)
    monkeypatch.setattr(registry, "_values", dict(registry._values))
    _converter.cache_clear()
