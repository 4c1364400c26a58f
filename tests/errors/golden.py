"""The golden file: by room and code, the class and the wording of every error.

A code is made of the first wording, and stays. It goes with its wording to wherever a function is moved; a wording that
takes the place of another in a room takes over the code of the one that it is most like. Somebody who does not like a
code, or finds it taken over by the wrong one, changes it in the file: it is kept from then on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import attrs

from tests.errors.scan import Found, Scan
from tests.errors.source import Package
from tests.errors.template import Template

FILE = Path(__file__).parents[1] / "golden" / "errors.json"
_ALIKE = 0.5  # from here on, a wording is taken for another's successor
_MOST_WORDS = 4  # in a code
_SAYS_LITTLE = frozenset(
    "a an the this that it its is are was be been has have had of in on to for from by with and or as at than then so"
    " one given here there which what who expected got not no cannot can must may up if but".split()
)


@attrs.frozen
class Known:
    """An error of the golden file."""

    code: str
    room: str
    kind: str
    message: str

    @property
    def template(self) -> Template:
        return _parsed(self.message)

    @property
    def kinds(self) -> list[str]:
        return self.kind.split(" | ")


@cache
def _parsed(message: str) -> Template:
    return Template.parsed(message)


def read(path: Path = FILE) -> dict[str, Known]:
    """Return what the golden file holds, by code."""
    rooms = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {
        code: Known(code, room, entry["class"], entry["message"])
        for room, entries in rooms.items()
        for code, entry in entries.items()
    }


def text_of(errors: Iterable[Known]) -> str:
    """Return the golden file's text: an error a line, so that a change of wording is the change of a line."""
    rooms: dict[str, list[str]] = {}
    for one in sorted(errors, key=lambda one: (one.room, one.code)):
        entry = json.dumps({"class": one.kind, "message": one.message}, ensure_ascii=False)
        rooms.setdefault(one.room, []).append(f"  {json.dumps(one.code)}: {entry}")
    return (
        "{\n" + ",\n".join(f' "{room}": {{\n' + ",\n".join(lines) + "\n }" for room, lines in rooms.items()) + "\n}\n"
    )


def renewed(before: Mapping[str, Known], found: Iterable[Found] | None = None) -> dict[str, Known]:
    """Return the errors that the package has now, each with the code that it had, or a new one.

    Args:
        before: by code.
        found: those of the package if not given.
    """
    wordings: dict[tuple[str, str], Found] = {}
    for one in sorted(Scan(Package()).errors() if found is None else found):
        wordings.setdefault((one.kind, _parsed(one.message).skeleton), one)
    codes = {_identity(one): code for code, one in before.items()}
    kept = {codes[identity]: one for identity, one in wordings.items() if identity in codes}
    vanished = {code: one for code, one in before.items() if code not in kept}
    new = [one for identity, one in wordings.items() if identity not in codes]
    kept |= _successors(vanished, new)
    for one in new:
        if one not in kept.values():
            kept[_code(one, kept.keys() | vanished.keys())] = one
    return {code: Known(code, one.room, one.kind, one.message) for code, one in sorted(kept.items())}


def _identity(one: Known) -> tuple[str, str]:
    return one.kind, one.template.skeleton


def _successors(vanished: Mapping[str, Known], new: Iterable[Found]) -> dict[str, Found]:
    """Return, by its code, what has taken the place of what is gone: the most alike of a room first, each once."""
    pairs = sorted(
        (
            (
                SequenceMatcher(None, old.template.skeleton, _parsed(one.message).skeleton, autojunk=False).ratio(),
                code,
                one,
            )
            for code, old in vanished.items()
            for one in new
            if old.room == one.room
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    taken: dict[str, Found] = {}
    for ratio, code, one in pairs:
        if ratio >= _ALIKE and code not in taken and one not in taken.values():
            taken[code] = one
    return taken


def _code(one: Found, taken: Iterable[str]) -> str:
    """Return a new code: the room and a few telling words; more of them, then a number, where it is taken."""
    words = re.findall(r"[a-z0-9]+", " ".join(_parsed(one.message).literals).lower())
    telling = [word for word in words if word not in _SAYS_LITTLE and len(word) > 1] or words
    for count in range(min(_MOST_WORDS, len(telling)), len(telling) + 1):
        if (code := f"{one.room}.{'-'.join(telling[:count])}") not in taken:
            return code
    stem = f"{one.room}.{'-'.join(telling[:_MOST_WORDS])}"
    return next(code for number in range(2, 1000) if (code := f"{stem}-{number}") not in taken)
