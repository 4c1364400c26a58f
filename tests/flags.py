"""The flags of all commands, from the parser: `python -m tests.flags` writes `docs/flags.md` anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mobileclip.cli import COMMANDS, Command, Commands
from mobileclip.cli.flags import COMMON, KEYED, Flag, flags_of, keys_of
from mobileclip.cli.renamed import OLD_COMMANDS, OLD_FLAGS, OLD_PLACES

PAGE = Path(__file__).parents[1] / "docs" / "flags.md"
_HEAD = """# Flags

One vocabulary: a flag means the same in every command that has it. What is seldom set is a key of `--set`, of `--rows`
or of `--engine`, given several times for several: `mobileclip index photos/ --set decode=exact --set video-seconds=2`.
`mobileclip COMMAND --help` has a command's own flags, `--help-all` its keys, too. Recipes have flags of their own:
`mobileclip train s2 --help`.

This page is written by the parser: `python -m tests.flags` renews it.
"""
_OLD = """
## Old names

They work through 0.1, and no help has them. So does each key as a flag of its own: `--image-size 384` is
`--set image-size=384`. `-c FILE` and `--checkpoint FILE` are `-m FILE`, and `-m NAME -c FILE` is `-m NAME=FILE`.
"""


def commands(group: Commands = COMMANDS, *before: str) -> Iterator[tuple[str, Command]]:
    """Yield every command with its name."""
    for name, one in group.members.items():
        if isinstance(one, Commands):
            yield from commands(one, *before, name)
        else:
            yield " ".join((*before, name)), one


def shown(flags: tuple[Flag, ...]) -> list[str]:
    """Return the names of the flags that a command's help has, without `--help`."""
    own = [flag.name for flag in flags if flag.keyed is None and not flag.is_positional]
    return [*own, *(name for name in KEYED if keys_of(flags, name) and name not in own)]


def page() -> str:
    """Return the page."""
    told: dict[str, dict[str, list[str]]] = {}
    keys: dict[str, dict[str, list[str]]] = {}
    for command, one in commands():
        flags = flags_of(one.load())
        for flag in flags:
            if flag.is_positional or flag.keyed == "":
                continue
            names = ", ".join(f"`{name}`" for name in reversed(flag.names))
            table, name = (told, names) if flag.keyed is None else (keys, f"`{flag.keyed} {flag.key}=`")
            table.setdefault(name, {}).setdefault(_first(flag.about), []).append(command)
        for name in KEYED:
            if name in shown(flags) and not any(flag.name == name for flag in flags):
                told.setdefault(f"`{name}`", {}).setdefault(f"{KEYED[name]}; see [keys](#keys)", []).append(command)
    for name, about in COMMON.items():
        told[f"`{name}`"] = {about: ["every command"]}
    old = [
        *((f"`{before}`", f"`{after}`", "") for before, after in OLD_COMMANDS.items()),
        *((f"`{before}`", f"`{now}`", one) for one, all_of in OLD_FLAGS.items() for before, now in all_of.items()),
        *(("what is written, without a flag", "`--output`", one) for one in OLD_PLACES),
    ]
    lines = [
        _HEAD,
        *_table("flag", "commands", "meaning", rows=_rows(told)),
        "\n## Keys\n",
        *_table("key", "commands", "meaning", rows=_rows(keys)),
        _OLD,
        *_table("old", "new", "command", rows=old),
    ]
    return "\n".join(lines) + "\n"


def _rows(told: dict[str, dict[str, list[str]]]) -> Iterator[tuple[str, str, str]]:
    for name, meanings in sorted(told.items(), key=lambda one: one[0].rpartition("`--")[2]):
        for about, having in meanings.items():
            yield name, ", ".join(having), about


def _table(*titles: str, rows: object) -> list[str]:
    return [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in (titles, ["---"] * len(titles), *rows)]


def _first(about: str) -> str:
    """Return a text up to the end of its first sentence, as a cell of a table."""
    return about.partition(". ")[0].rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
