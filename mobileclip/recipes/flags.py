"""`run_recipe`: show a recipe's options as JSON, reduce the recipe to a tiny run, or run the recipe."""

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
from mobileclip.terminal.flags import FlagRules, parse
from mobileclip.terminal.interruption import interruptible
from mobileclip.terminal.streams import discard_output, ensure_streams

_DRAWING_SECONDS = 600.0
if TYPE_CHECKING:
    from mobileclip.recipes.kinds import Command

GOES_ON = "finished work is saved; the same command resumes"

Spec = TypeVar("Spec")
T = TypeVar("T")


@contextmanager
def reported(name: str, arguments: Sequence[str] | None, *, kept: str = GOES_ON) -> Iterator[None]:
    """Turn errors and signals into a one-line message and an exit status.

    Args:
        name: name of the recipe.
        arguments: the command line; with None, the line comes from `sys.argv`, and the program exits with the status.
        kept: sentence, without a full stop, about the saved results and the way to resume after a signal.

    Raises:
        SystemExit: with status 1 and the error's message; 0 if the reader of the output has closed the pipe; 130 after
            Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, or 75 after SIGUSR1.
    """
    ensure_streams()
    try:
        with interruptible(name, kept, is_program=arguments is None):
            yield
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not has_reader():
            discard_output()
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
        target: a class or function whose arguments become flags.
        name: name of the program.
        docstring: docstring with the program's header.
        arguments: the command line; None for `sys.argv`.
        kept: sentence about the saved results; see `reported`.
        choices: keyword arguments of `mobileclip.terminal.flags.parse`.
    """
    with reported(name, None, kept=kept):
        told, rest = split_common_flags(["--quiet"], with_parts(sys.argv[1:] if arguments is None else arguments))
        with use_common(told):
            yield parse(target, rest, description=described(docstring), **choices)


def run_recipe(
    choices: Any, arguments: Sequence[str] | None = None, *, name: str = "", **variants: Callable[[Any], Any]
) -> None:
    """Parse the command line and run the recipe; the header and the run's name come from the recipe's file.

    Args:
        choices: the spec of a run (an instance of a class in `LINES`), or several specs by name. With several specs,
            the command line begins with a name or a file written by `--show`, and the header has the titles of the
            specs.
        arguments: the command line; None for `sys.argv`.
        name: name of the run and of its output; the recipe's file name by default.
        variants: functions that change the spec, by the word that selects the function on the command line, such as
            `released`.

    Raises:
        SystemExit: as in `reported`; also with status 2 if a flag is unknown.
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
        if PLAIN in rest and (change := _plain_of(spec)):  # before the flags that change options
            spec, rest = change(spec), [one for one in rest if one != PLAIN]
            recipe = recipe and spec
        with use_common(told):
            _run(parsed_as(spec, rest), f"{name}-{row}" if row else name, recipe, before=spec)


def _plain_of(spec: Any) -> Callable[[Any], Any] | None:
    """Return the function that removes the teachers from a run on image-text pairs; None for other specs."""
    from mobileclip.encoders import DualEncoderSpec
    from mobileclip.training import without_teachers

    return without_teachers if isinstance(getattr(spec, "model", None), DualEncoderSpec) else None


def _run(command: Command[Any, Any], name: str, recipe: Any, *, before: Any) -> None:
    from mobileclip.recipes.kinds import KINDS
    from mobileclip.recipes.tiny.shrink import FOLDER, shrink

    kind = KINDS[type(command.spec)]
    spec = kind.ready(command.spec, command.options)
    if command.tiny:
        with exclusive(FOLDER, wait_seconds=_DRAWING_SECONDS):  # only one of several processes draws
            spec = shrink(spec, getattr(command.options, "rows", None))
        output = getattr(spec, "output", None)
        if output and output == before.output:  # the user gave no output
            spec = attrs.evolve(spec, output=type(output)(f"{output}-tiny"))
    if command.show:
        _show(spec)
    else:
        kind.start(spec, command, f"{name}-tiny" if command.tiny else name, recipe)


def described(docstring: str | None) -> str:
    """Return the start of the full help: the header, with commands in the form that the user types."""
    return read_header(docstring, sys.argv[0]).description()


def parsed_as(spec: Any, arguments: Sequence[str]) -> Command[Any, Any]:
    """Return the parsed command line; fields of the spec, of nested specs and of the kind's options are flags.

    Args:
        spec: the options that flags can change; fields that depend on a changed field follow the change.
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
        rules=FlagRules(aliases=aliases, fixed=kind.fixed, made_by=kind.made_by),
    )


def _field(spec: Any, place: str) -> tuple[type, str] | None:
    """Return the class and the name of a field, given its path such as `training.seed`; None for an unknown field."""
    *above, name = place.split(".")
    spec = reduce(lambda one, field: getattr(one, field, None), above, spec)
    return (type(spec), name) if attrs.has(type(spec)) and name in attrs.fields_dict(type(spec)) else None


def _chosen(rows: Mapping[str, Any], arguments: Sequence[str]) -> tuple[str, Any, Sequence[str]]:
    """Return the run's name, its spec and the remaining command line; for a file, an empty name and the first spec.

    Raises:
        ValueError: if there are several runs, and the command line does not name any of them.
    """
    first = "".join(arguments[:1])
    if first.endswith(".json"):
        return "", next(iter(rows.values())), arguments  # the file names its run
    if "" in rows:
        return "", rows[""], arguments
    if (row := first.replace("-", "_")) in rows:
        return row, rows[row], arguments[1:]
    if not first or first.startswith("-"):
        raise ValueError(
            f"the name of a run is missing; start the command line with one of {', '.join(rows)}; `--help` shows their "
            "titles"
        )
    raise ValueError(f"unknown run {first!r}; {nearest(row, rows)} `--help` shows all titles")


def read_choices(file: Path, kind: type[Spec]) -> Spec:
    """Return the options in a file written by `--show` or by a run.

    Raises:
        ValueError: if the file does not exist, or does not contain a valid spec of this kind.
        OSError: if the file cannot be read.
    """
    from mobileclip.serialization import from_json  # slow, and `--help` does not need it

    try:
        return from_json(file.read_text(encoding="utf-8"), kind)
    except FileNotFoundError:
        raise ValueError(
            f"there is no file {file}{nearest_file(file)}; write one: {retyped_command('--show')[:-1]} > {file}`"
        ) from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not a text file; expected a file written by --show") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _show(choices: Any) -> None:
    """Write a spec to standard output as JSON that can be read back exactly."""
    from mobileclip.serialization import to_json

    sys.stdout.write(f"{to_json(choices, indent=1)}\n")
