"""`run_recipe`: a recipe's choices as its command line has them, shown as JSON, made small, or run; for every kind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from mobileclip.machine import machine_line
from mobileclip.recipes.files import read_header
from mobileclip.recipes.short import ASKING_ALL, PLAIN, brief_help, program, retyped_command, shorts, wants_short_help
from mobileclip.registry import nearest, nearest_file, with_parts
from mobileclip.storage import exclusive
from mobileclip.terminal import has_reader, say, shown
from mobileclip.terminal.common import split_common_flags, use_common
from mobileclip.terminal.flags import Reading, parse
from mobileclip.terminal.interruption import interruptible
from mobileclip.terminal.streams import ensure_streams, give_up_output

_DRAWING_SECONDS = 600.0
if TYPE_CHECKING:
    from mobileclip.recipes.kinds import Command

GOES_ON = "finished work is kept; the same command resumes"

Spec = TypeVar("Spec")
T = TypeVar("T")


@contextmanager
def reported(name: str, arguments: Sequence[str] | None, *, kept: str = GOES_ON) -> Iterator[None]:
    """Turn errors and signals into a line and an exit status.

    Args:
        name: name of the recipe.
        arguments: the command line; None for `sys.argv`, and then the program exits with its status.
        kept: remaining state after a signal and how to resume, a sentence without a full stop.

    Raises:
        SystemExit: with 1 and the error's message, 0 if nobody reads the output any more, 130 after Ctrl-C, 143 after
            SIGTERM, or 75 after SIGUSR1.
    """
    ensure_streams()
    try:
        with interruptible(name, kept, is_program=arguments is None):
            yield
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not has_reader():
            give_up_output()
            raise SystemExit(0) from None
        line = machine_line(error, kept)
        if line is None and not isinstance(error, (ValueError, FloatingPointError, OSError, ImportError)):
            raise
        raise SystemExit(f"error: {shown(line or error)}") from None


@contextmanager
def started(
    target: Callable[..., T],
    name: str,
    docstring: str | None,
    arguments: Sequence[str] | None = None,
    *,
    kept: str = GOES_ON,
    **choices: Any,
) -> Iterator[T]:
    """Yield a program's parsed command line, apply `--quiet`, and report errors like `reported`.

    Args:
        target: a class or function; its arguments are flags.
        name: name of the program.
        docstring: its header.
        arguments: the command line; None for `sys.argv`.
        kept: see `reported`.
        choices: for `mobileclip.terminal.parse`.
    """
    with reported(name, None, kept=kept):
        told, rest = split_common_flags(["--quiet"], with_parts(sys.argv[1:] if arguments is None else arguments))
        with use_common(told):
            yield parse(target, rest, description=described(docstring), **choices)


def run_recipe(
    choices: Any, arguments: Sequence[str] | None = None, *, name: str = "", **variants: Callable[[Any], Any]
) -> None:
    """Parse the command line and run the recipe; the recipe's file has the header and the name of the run.

    Args:
        choices: the spec of a run (an instance of a class in `LINES`), or several specs by name; the command line
            begins with a name or a file of `--show`, and the header has the titles.
        arguments: the command line; None for `sys.argv`.
        name: of the run and its output; by default the recipe's file name.
        variants: functions of the spec by a further word, such as `released`.

    Raises:
        SystemExit: see `reported`; with 2 where a flag is unknown.
    """
    main = sys.modules["__main__"]
    name, docstring = name or Path(getattr(main, "__file__", None) or "recipe").stem, main.__doc__
    with reported(name, arguments):
        told, typed = split_common_flags(
            ["--quiet", "--strict"], with_parts(sys.argv[1:] if arguments is None else arguments)
        )
        rows = choices if isinstance(choices, Mapping) else {"": choices}
        one = next(iter(rows.values()))
        if wants_short_help(typed):
            header = read_header(docstring, sys.argv[0])
            titles = {row: header.rows.get(row, "") for row in rows if row}
            say(f"{header.brief()}\n\n{brief_help(type(one).__name__, program(), titles, tuple(variants))}")
            return
        if ASKING_ALL in typed:
            say(f"{described(docstring)}\n")
            parsed_as(one, [ASKING_ALL])
        row, spec, rest = _chosen(rows, typed)
        if rest and rest[0] in variants:
            row, spec, rest = "-".join(filter(None, (row, rest[0]))), variants[rest[0]](spec), rest[1:]
        recipe = spec
        if rest and rest[0].endswith(".json"):
            spec, recipe, rest = read_choices(Path(rest[0]), type(spec)), None, rest[1:]
        if PLAIN in rest and (change := _plain_of(spec)):  # before the flags that change the choices
            spec, rest = change(spec), [one for one in rest if one != PLAIN]
            recipe = recipe and spec
        with use_common(told):
            _run(parsed_as(spec, rest), f"{name}-{row}" if row else name, recipe, before=spec)


def _plain_of(spec: Any) -> Callable[[Any], Any] | None:
    """Return the function that removes the teachers from a run of pairs; None for other specs."""
    from mobileclip.encoders import DualEncoderSpec
    from mobileclip.training import plain

    return plain if isinstance(getattr(spec, "model", None), DualEncoderSpec) else None


def _run(command: Command[Any, Any], name: str, recipe: Any, *, before: Any) -> None:
    from mobileclip.recipes.kinds import KINDS
    from mobileclip.recipes.tiny.shrink import FOLDER, shrink

    kind = KINDS[type(command.spec)]
    spec = kind.ready(command.spec, command.options)
    if command.tiny:
        with exclusive(FOLDER, wait_seconds=_DRAWING_SECONDS):  # one of several processes draws
            spec = shrink(spec, getattr(command.options, "rows", None))
        output = getattr(spec, "output", None)
        if output and output == before.output:  # none was typed
            spec = attrs.evolve(spec, output=type(output)(f"{output}-tiny"))
    if command.show:
        _show(spec)
    else:
        kind.start(spec, command, f"{name}-tiny" if command.tiny else name, recipe)


def described(docstring: str | None) -> str:
    """Return the start of the full help: the header with the command for this machine."""
    return read_header(docstring, sys.argv[0]).description()


def parsed_as(spec: Any, arguments: Sequence[str]) -> Command[Any, Any]:
    """Return a command line: each field of a spec, of the specs in it, and of its kind's options is a flag.

    Args:
        spec: the options, changed by flags; fields that depend on other fields follow their flags.
        arguments: the command line.
    """
    from mobileclip.recipes.kinds import KINDS, Command

    kind = KINDS[type(spec)]
    options = kind.options()
    aliases: dict[tuple[type, str], tuple[str, ...]] = {}
    for flag in shorts(type(spec).__name__):
        names = tuple(name for name in flag.names if name != f"--{flag.field.replace('_', '-')}")
        aliases |= {found: names for root in (options, spec) if (found := _field(root, flag.field))}
    target: Any = Command[kind.options, type(spec)]  # type: ignore[name-defined,misc]
    return parse(
        target,
        arguments,
        description="",
        prog=program(),
        default=Command(options=options, spec=spec),
        reading=Reading(aliases=aliases, fixed=kind.fixed, made_by=kind.made_by),
    )


def _field(spec: Any, place: str) -> tuple[type, str] | None:
    """Return a field by its place, such as `training.seed`, as its class and its name; None if there is none."""
    *above, name = place.split(".")
    spec = reduce(lambda one, field: getattr(one, field, None), above, spec)
    return (type(spec), name) if attrs.has(type(spec)) and name in attrs.fields_dict(type(spec)) else None


def _chosen(rows: Mapping[str, Any], arguments: Sequence[str]) -> tuple[str, Any, Sequence[str]]:
    """Return the named run with its spec (or a file's), and the rest of the command line.

    Raises:
        ValueError: if there are several, and the command line names none.
    """
    first = "".join(arguments[:1])
    if first.endswith(".json"):
        return "", next(iter(rows.values())), arguments  # it says itself which of them it is
    if "" in rows:
        return "", rows[""], arguments
    if (row := first.replace("-", "_")) in rows:
        return row, rows[row], arguments[1:]
    if not first or first.startswith("-"):
        raise ValueError(f"which run? its name comes first: {', '.join(rows)}; their titles are in `--help`")
    raise ValueError(f"there is no run {first!r}; {nearest(row, rows)} Their titles are in `--help`")


def read_choices(file: Path, kind: type[Spec]) -> Spec:
    """Return the options in a file that `--show`, or a run, has written.

    Raises:
        ValueError: if it holds something else, or there is none.
        OSError: if it cannot be read.
    """
    from mobileclip.serialization import from_json  # slow, and `--help` does not need it

    try:
        return from_json(file.read_text(encoding="utf-8"), kind)
    except FileNotFoundError:
        raise ValueError(
            f"there is no {file}{nearest_file(file)}; write one: {retyped_command('--show')[:-1]} > {file}`"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no text; expected a file of --show") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _show(choices: Any) -> None:
    """Write a spec to standard output as exact JSON, for reading it again."""
    from mobileclip.serialization import to_json

    sys.stdout.write(f"{to_json(choices, indent=1)}\n")
