"""Old names of commands and flags: they still work, are not in any help, and go after 0.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mobileclip.cli.flags import KEYED, Flag
from mobileclip.terminal.common import with_names

OLD_COMMANDS: Mapping[str, str] = {
    "data verify": "data check",
    "data dedup": "data distinct",
}
"""New names of commands by their old ones."""

OLD_FLAGS: Mapping[str, Mapping[str, str]] = {
    "check-weights": {"--pictures": "--image"},
    "convert": {"--dtype": "--precision"},
    "data count": {"--again": "--overwrite", "--no-again": "--no-overwrite"},
    "data distinct": {"--pairs": "--output"},
    "data filter": {"--sheet": "--output"},
    "data join": {"--index": "--places"},
    "data score": {"--vectors": "--keep-vectors", "--no-vectors": "--no-keep-vectors"},
    "dedup": {"--page": "--output"},
    "eval run": {"--num-threads": "--num-workers"},
    "export": {"--out": "--output"},
    "index": {"--web": "--output"},
    "merge": {"--index": "--output", "-i": "--output"},
    "search": {"--sheet": "--output"},
    "hub push": {"--licence": "--license"},
    "hub save": {"--licence": "--license"},
    "verify": {"--checkpoint": "--model", "-c": "--model"},
}
"""New names of flags by their old ones, by the new name of the command."""

OLD_PLACES: Mapping[str, int] = {"convert": 1, "data join": 2, "hub save": 1, "recipes cp": 1}
"""Commands that took what they write without a flag, behind so many other arguments."""


def with_new_names(command: str, arguments: Sequence[str], flags: Sequence[Flag]) -> list[str]:
    """Return a command line with the new names of its flags, each in full.

    Args:
        command: its new name, such as `data check`.
        arguments: the command line behind it.
        flags: those of the command.
    """
    names = {letter: flag.name for flag in flags for letter in flag.names[1:]} | dict(OLD_FLAGS.get(command, {}))
    found = with_names(arguments, names)
    if command in OLD_PLACES:
        plain = _plain(found, flags)
        if len(plain) > OLD_PLACES[command]:
            found[plain[-1] : plain[-1] + 1] = ["--output", found[plain[-1]]]
    return found


def _plain(arguments: Sequence[str], flags: Sequence[Flag]) -> list[int]:
    """Return the places of what is neither a flag nor its value."""
    with_value = {name for flag in flags if not flag.is_switch and not flag.is_positional for name in flag.names}
    with_value |= KEYED.keys()
    places, is_value = [], False
    for place, token in enumerate(arguments):
        if not is_value and not (token.startswith("-") and len(token) > 1):
            places.append(place)
        is_value = not is_value and token in with_value
    return places
