"""Defaults are promises: runs and saved specs that name nothing else depend on them."""

import json
from collections import Counter

from tests.defaults import FILE, ROOMS, defaults


def test_a_default_that_was_recorded_is_kept():
    """New ones need no record; `python -m tests.defaults` writes them all."""
    recorded = json.loads(FILE.read_text(encoding="utf-8"))
    assert all(any(name.startswith(f"mobileclip.{room}") for name in recorded) for room in ROOMS)
    found = defaults()
    lost = {
        f"{place} {name}": (value, found.get(place, {}).get(name))
        for place, values in recorded.items()
        for name, value in values.items()
        if Counter([value] if isinstance(value, str) else value) - Counter(found.get(place, {}).get(name))
    }
    assert lost == {}
