"""Every command line in README, docs and headers of recipes is read by the command or the recipe that it names."""

import functools
import importlib
import re
import shlex

import pytest

from mobileclip.cli import COMMANDS, Commands
from mobileclip.cli.commands import COMMON, FLAG_RULES
from mobileclip.recipes import find_recipe, parsed_as, recipe_files
from mobileclip.recipes.files import KINDS
from mobileclip.recipes.short import kind_of
from mobileclip.terminal import parse
from mobileclip.terminal.common import split_common_flags
from tests.test_pages import PAGES, blocks

TEXTS = {page: "\n".join(blocks(text, "")) for page, text in PAGES.items()}
TEXTS |= {
    f"recipes/{name}.py": file.read_text(encoding="utf-8").split('"""')[1] for name, file in recipe_files().items()
}


def typed(text):
    """Return the commands of a text, as words, without what launches them."""
    for whole in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"^(\$ |[A-Z][a-z ]+: +| +)", "", whole)
        if not re.match(r"([A-Z_]+=\S* )*(torchrun|python|mobileclip)\b", line):
            continue
        words = shlex.split(line, comments=True)
        ends = [index for index, word in enumerate(words) if word in {"&&", "|", ">", "&", ";"}]
        for start, end in zip([0, *(index + 1 for index in ends)], [*ends, len(words)], strict=True):
            command = [word for word in words[start:end] if not re.fullmatch(r"[A-Z_]+=\S*", word)]
            if "--import" in command:  # of every command, and read ahead of it
                at = command.index("--import")
                del command[at : at + 2]
            if command[:1] == ["mobileclip"]:
                yield command[1:]
            elif "mobileclip.cli" in command:
                yield command[command.index("mobileclip.cli") + 1 :]
            elif recipe := next((word for word in command if re.fullmatch(r"recipes/\w+\.py", word)), None):
                yield ["recipe", recipe[len("recipes/") : -len(".py")], *command[command.index(recipe) + 1 :]]


def named(words, group=COMMANDS):
    """Return a command and the words behind it."""
    one = group.members[words[0].replace("_", "-")]
    if not isinstance(one, Commands):
        return one, words[1:]
    if group is COMMANDS and words[0] == "eval" and (len(words) == 1 or words[1] not in one.members):
        return one.members["run"], words[1:]
    return named(words[1:], one)


def read(words):
    """Return what a command would be called with, or a recipe's choices."""
    if words[0] == "recipe" or words[0] == "finetune" or words[0] in KINDS:
        name, *rest = words[1:] if words[0] != "finetune" else words
        return read_recipe(find_recipe(name, "" if words[0] in ("recipe", "finetune") else words[0]).stem, rest)
    command, rest = named(words)
    function = command.load()

    @functools.wraps(function)
    def recorded(*positional, **chosen):
        return positional, chosen

    return parse(recorded, split_common_flags(COMMON, rest)[1], description="", rules=FLAG_RULES, prog="mobileclip")


def read_recipe(name, words):
    module = importlib.import_module(f"recipes.{name}")
    rows = getattr(module, "ROWS", None)
    if rows is None:
        spec = module.RUN
    else:
        spec = next(iter(rows.values())) if words[0].endswith(".json") else rows[words.pop(0)]
    if words and words[0] in kind_of(recipe_files()[name])[1]:
        words = words[1:]
    if words and words[0].endswith(".json"):
        words = words[1:]
    return parsed_as(spec, split_common_flags(["--quiet", "--strict"], words)[1])


def is_whole(words):
    """Return whether a command is one that can be typed: neither help nor shortened, with the name of a recipe."""
    if not words or words[-1] in {"--help", "--help-all", "--version"} or "..." in " ".join(words):
        return False
    return not (words[0] in KINDS and words[1].endswith(".py")) and words[0] != "COMMAND"


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if any(map(is_whole, typed(text)))])
def test_command_lines_of_a_page_can_be_typed(page):
    wrong = []
    for words in filter(is_whole, typed(TEXTS[page])):
        try:
            assert read(list(words)) is not None
        except (KeyError, SystemExit, ValueError) as error:  # noqa: PERF203
            wrong.append(f"{shlex.join(words)}: {error}")
    assert wrong == []


def test_command_lines_are_found():
    lines = "A=1 mobileclip index a/ && mobileclip serve  # x\nmobileclip list \\\n    --json\n"
    found = [" ".join(words) for words in typed(f"{lines}torchrun --nproc-per-node 8 recipes/train_s0.py --tiny")]
    assert found == ["index a/", "serve", "list --json", "recipe train_s0 --tiny"]
    assert sum(1 for text in TEXTS.values() for _ in typed(text)) > 90
