"""Defaults are promises: runs and saved specs that name nothing else depend on them."""

from __future__ import annotations

import json

import pytest

from tests.defaults import FILE, ROOMS, defaults

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_default_that_was_recorded_is_kept(room):
    """New ones need no record; `python -m tests.defaults` writes them all."""
    recorded = {name: values for name, values in RECORDED.items() if name.startswith(f"{room}.")}
    assert recorded
    found = defaults(room)
    kept = {name: {key: found.get(name, {}).get(key) for key in values} for name, values in recorded.items()}
    assert kept == recorded
