"""`mobileclip completion`: a script by which bash and zsh complete commands, flags and names of recipes."""

from __future__ import annotations

from collections.abc import Iterator

from mobileclip.cli.commands import Command, Commands
from mobileclip.cli.flags import COMMON, names_of
from mobileclip.recipes.files import recipe_files
from mobileclip.terminal import say

_SCRIPT = """\
if [ -n "$ZSH_VERSION" ]; then autoload -Uz compinit bashcompinit && compinit && bashcompinit; fi
_mobileclip() {{
  local IFS=$' \\t\\n' words="" word="${{COMP_WORDS[COMP_CWORD]}}"
  case "${{COMP_WORDS[*]:1:$((COMP_CWORD - 1))}} " in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _mobileclip mobileclip"""


def completion() -> None:
    """Print a script by which bash and zsh complete commands, flags and names of recipes; files where none fits.

    source <(mobileclip completion)     # for this shell; as a line of ~/.bashrc or ~/.zshrc for all
    """
    from mobileclip.cli.table import COMMANDS

    say(_SCRIPT.format(cases="\n".join(_cases(COMMANDS))))


def _cases(group: Commands, before: str = "") -> Iterator[str]:
    """Yield what may follow each command, by the words in front of it."""
    for name, one in group.members.items():
        if isinstance(one, Commands):
            yield from _cases(one, f"{before}{name} ")
        elif recipes := [stem for stem in recipe_files() if stem.startswith(f"{name}_")]:
            yield f'    "{name} ") words="{" ".join(stem.removeprefix(f"{name}_") for stem in recipes)}" ;;'
        else:
            yield f'    "{before}{name} "*) [[ $word != -* ]] || words="{" ".join(_flags(one))}" ;;'
    yield f'    "{before or " "}") words="{" ".join(group.members)}" ;;'


def _flags(command: Command) -> Iterator[str]:
    """Yield the flags that a command's help has."""
    yield from names_of(command.load())
    yield from COMMON
