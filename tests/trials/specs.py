"""JSON of every spec, every field wrong in turn: refused with a message that names it, or read back equal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from mobileclip.serialization import from_json, to_json
from tests.every_spec import made, spec_classes
from tests.trials.harness import Case, Outcome

WRONG: dict[Any, tuple[str, ...]] = {
    int: ('"2"', "1.5", "true", "[1]", "{}", "NaN", "1e3", "9" * 400, str(2**70), '"\\u0000"'),
    float: ('"0.5"', "true", "NaN", "Infinity", "-Infinity", "1e999", "[0.5]", "9" * 400, '"nan"', "{}"),
    str: ("1", "true", "[]", "{}", "1.5", '["a"]'),
    bool: ('"true"', "1", "0", "[]", "null", "0.0"),
    Path: ("1", "[]", "{}", "true"),
}
"""JSON that is none of these; some of each are tried in turn."""
EITHER: dict[Any, tuple[str, ...]] = {
    int: ("0", "-1", "1", str(2**40), str(2**63)),
    float: ("0", "-1.0", "1e-300", "1e300", "1", "-0.0"),
    str: ('""', '"\\u001b[31m\\n\\t"', '"\\ud800"', f'"{"x" * 100_000}"'),
}
"""JSON that may be refused or not."""


def with_raw(value: Any, path: tuple[str, ...], raw: str) -> str:
    """Return JSON with a text in the place of a field, whatever it is."""
    marker = "@here@"
    changed = json.loads(to_json(value))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = marker
    return json.dumps(changed).replace(f'"{marker}"', raw)


def must_refuse(text: str, cls: type, name: str) -> Outcome:
    """Read JSON that is wrong: the message names what is."""
    try:
        value = from_json(text, cls)
    except ValueError as error:
        message = str(error)
        assert name in message or "not JSON" in message, message
        assert len(message) <= 2000, len(message)
        return "refused"
    raise AssertionError(f"it was read as {value!r:.300}")


def may_refuse(text: str, cls: type, name: str) -> Outcome:
    """Read JSON that may be wrong: it is refused, or comes back as it is."""
    try:
        value = from_json(text, cls)
    except ValueError as error:
        message = str(error)
        assert 0 < len(message) <= 2000, name
        return "refused"
    assert from_json(to_json(value), cls) == value
    return "accepted"


def scalar(annotation: Any) -> tuple[Any, bool]:
    """Return the scalar type that an annotation is of, if any, and whether it may be null."""
    if get_origin(annotation) in (Union, UnionType):
        rest = [each for each in get_args(annotation) if each is not NoneType]
        return (scalar(rest[0])[0] if len(rest) == 1 else None), True
    return (Literal if get_origin(annotation) is Literal else annotation), False


def of_field(annotation: Any, turn: Iterator[int]) -> Iterator[tuple[str, Callable[..., Outcome]]]:
    """Yield JSON for a field of such an annotation, and what has to become of it."""
    kind, optional = scalar(annotation)
    if kind is Literal:
        inner = annotation if get_origin(annotation) is Literal else get_args(annotation)[0]
        right = {json.dumps(value) for value in get_args(inner)}
        wrong: tuple[str, ...] = tuple(raw for raw in ('"nonsense"', "1", "true", "[]", '""') if raw not in right)
    elif kind in WRONG:
        wrong = tuple(raw for raw in WRONG[kind] if raw != "null" or not optional)
    elif get_origin(kind) is tuple:
        wrong = ('"ab"', "{}", "3", '[[[[["deep"]]]]]', "[{}]", "[null, null, null, null, null]", "true")
    elif get_origin(kind) is Mapping:
        wrong = ("3", "[]", '"a"', "true", "[[1, 2]]")
    else:
        wrong = ("3", "[]", '"a"', "true", '{"unknown": 1}', "[[]]")
    number = next(turn)
    yield wrong[number % len(wrong)], must_refuse
    if not optional and kind is not bool and number % 6 == 0:
        yield "null", must_refuse
    if kind in EITHER and number % 4 == 1:
        yield EITHER[kind][number % len(EITHER[kind])], may_refuse


def of_spec(value: Any, turn: Iterator[int]) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """Yield what is tried on a class of specs as a whole."""
    cls = type(value)
    text = to_json(value)
    yield "as it is", partial(may_refuse, text, cls, "")
    more = text[:-1] + (", " if text != "{}" else "") + '"nonsense": 1}'
    yield "unknown key", partial(must_refuse, more, cls, "nonsense")
    wholes = ("[]", "3", '"text"', "null", "true", f"[{text}]", text[:-1], text + "x", "[" * 100_000, '{"a":' * 50_000)
    yield "another value", partial(must_refuse, wholes[next(turn) % len(wholes)], cls, cls.__name__)
    for key, first in [*json.loads(text).items()][:1]:
        yield "key twice", partial(must_refuse, f'{text[:-1]}, "{key}": {json.dumps(first)}}}', cls, key)
    for field in attrs.fields(cls):
        if field.default is attrs.NOTHING and next(turn) % 2:
            less = {key: item for key, item in json.loads(text).items() if key != field.name}
            yield f"{field.name} is missing", partial(must_refuse, json.dumps(less), cls, field.name)


def cases() -> Iterator[Case]:
    """Yield every class and field with something wrong in it."""
    turn = count()
    for place, value in enumerate(made(cls)[0] for cls in spec_classes()):
        cls = type(value)
        label = f"{place} {cls.__name__}"
        for name, attempt in of_spec(value, turn):
            yield _case(f"{label}: {name}", attempt)
        hints = get_type_hints(cls)
        for field in attrs.fields(cls):
            for raw, then in of_field(hints[field.name], turn):
                text = with_raw(value, (field.name,), raw)
                shown = raw if len(raw) < 40 else f"{raw[:20]}... of {len(raw)}"
                yield _case(f"{label}: {field.name} = {shown}", partial(then, text, cls, field.name))


def _case(name: str, attempt: Callable[[], Outcome]) -> Case:
    return Case(name=name, attempt=lambda _: attempt())
