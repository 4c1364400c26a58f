"""Packages that some tests need and the core does not: whoever lacks one skips these tests, or is told that they fail.

A test imports what it needs, or is marked `extra("parquet")` where the library does. It is skipped where that is not
installed, unless the environment should have it: `--environment` says which target of the Makefile has made it.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
_NOWHERE = ("docs", "gpu", "npm", "quickstart", "remote", "xformers")
_FULL = ("clip-benchmark", "coreml", "executorch", "heif", "litert", "openvino", "raw", "ray", "tensorboard", "video")
NOT_INSTALLED = {"core": None, "test": (*_NOWHERE, *_FULL), "full": _NOWHERE}
"""Extras and groups that an environment has not, whose packages may be missing; None for any."""

_MODULES = {"open_clip": "open-clip-torch", "open_clip_train": "open-clip-torch", "sklearn": "scikit-learn"}
_BESIDE = tuple(f"{ROOT / folder}{os.sep}" for folder in ("tests", "benchmarks", "examples"))
_PASSING = (str(Path(importlib.__file__).parent), str(ROOT / "tests" / "lazily.py"), "<frozen importlib")


def read_project() -> dict[str, Any]:
    """Return what pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(group: str, project: Mapping[str, Any]) -> Iterator[Requirement]:
    """Return what an extra or a dependency group names, with the groups that it includes."""
    for one in {**project["project"]["optional-dependencies"], **project["dependency-groups"]}[group]:
        if isinstance(one, dict):
            yield from requirements(one["include-group"], project)
        else:
            yield Requirement(one)


def _distribution(name: str) -> str:
    return re.sub(r"[-_.]+", "-", _MODULES.get(name, name)).lower()


class Missing(MetaPathFinder):
    """What Python asks last for a module: skips the test that imports one which may be missing.

    What the library imports is left to it: the core must not need what is not the core's.

    Args:
        environment: see `NOT_INSTALLED`.
    """

    def __init__(self, environment: str) -> None:
        self.project = read_project()
        self.known: dict[str, list[str]] = {}
        promised, lacking = set(), NOT_INSTALLED[environment]
        for group in (*self.project["project"]["optional-dependencies"], *self.project["dependency-groups"]):
            for one in requirements(group, self.project):
                self.known.setdefault(_distribution(one.name), []).append(group)
                if lacking is not None and group not in lacking and _is_for_this_python(one):
                    promised.add(_distribution(one.name))
        self.known = {name: groups for name, groups in self.known.items() if name not in promised}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:  # noqa: ARG002
        """Return nothing."""
        if path is None and _distribution(name) in self.known and _is_asked_by_a_test():
            self.skip(name)

    def skip(self, name: str) -> None:
        """Skip the test, or the file, that needs a package."""
        groups = self.known[_distribution(name)]
        pytest.skip(f"{name} is not installed: {', '.join(groups)}", allow_module_level=True)

    def require(self, extras: Iterable[str]) -> None:
        """Skip a test whose extras are not all installed, or fail it."""
        wanted = [one for extra in extras for one in requirements(extra, self.project) if _is_for_this_python(one)]
        for name in (one.name for one in wanted if not any(metadata.Distribution.discover(name=one.name))):
            if _distribution(name) in self.known:
                self.skip(name)
            pytest.fail(f"{name} is not installed, and this environment should have it")


def _is_for_this_python(wanted: Requirement) -> bool:
    return wanted.marker is None or wanted.marker.evaluate()


def _is_asked_by_a_test() -> bool:
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PASSING):
        frame = frame.f_back
    return frame.f_code.co_filename.startswith(_BESIDE)
