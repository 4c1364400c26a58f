"""Packages as pip installs them, which add a kind to a registry by entry point."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobileclip.registry import Registry
from mobileclip.serialization import _converter
from tests.plugins import find_installed, install


def install_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry, name: str, source: str) -> None:
    """Install a package whose `Plugin` is registered as `name`, and forget it after the test."""
    package = f"{registry.kind}_{name}_plugin"
    install(folder, package, registry.kind, name, source, attribute="Plugin")
    monkeypatch.syspath_prepend(folder)
    find_installed(registry, monkeypatch)
    _converter.cache_clear()
