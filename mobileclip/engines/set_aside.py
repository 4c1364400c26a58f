"""The list of failed units that a run has given up, kept in its output."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from attrs import validators

from mobileclip import storage
from mobileclip.serialization import from_json, to_json
from mobileclip.storage import AnyPath
from mobileclip.strict import split_lines, strict

SET_ASIDE = "set_aside.jsonl"
"""File in an output: a line for every unit that was given up."""

_MAX_BYTES = 2**31


@attrs.frozen(kw_only=True, field_transformer=strict)
class SetAside:
    """A unit that was given up; the next run tries it again.

    Args:
        unit: its name.
        reason: of the last failure.
        tries: how often it failed.
    """

    unit: str
    reason: str
    tries: int = attrs.field(validator=validators.gt(0))


def read_set_aside(output: AnyPath) -> tuple[SetAside, ...]:
    """Return what the last run of an output has set aside.

    Args:
        output: folder or URL.

    Raises:
        ValueError: if the list is damaged.
    """
    path = storage.join(output, SET_ASIDE)
    content = storage.read_if_there(path, limit=_MAX_BYTES) or b""
    try:
        return tuple(from_json(line, SetAside) for line in split_lines(content.decode()))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, it is no more than a list") from None


def write_set_aside(output: AnyPath, units: Iterable[SetAside]) -> None:
    """Write the list, or remove it where nothing is set aside.

    Args:
        output: folder or URL, which exists.
        units: what was set aside.

    Raises:
        OSError: if that cannot be done.
    """
    path = storage.join(output, SET_ASIDE)
    lines = [to_json(one) + "\n" for one in units]
    if lines:
        storage.write_text(path, "".join(lines))
    else:
        storage.remove(path)
