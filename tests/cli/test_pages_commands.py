"""Commands that pages tell people to type are read by the commands themselves, which are then not called."""

import re
import shlex

import pytest

from tests.cli.test_flags import EVERY, read
from tests.test_pages import PAGES, blocks

# Recipes have flags of their own, which their own tests read.
RECIPES = ("train", "reinforce", "finetune")


def typed(text):
    """Return the commands of a page, as words."""
    lines = "\n".join(blocks(text, "")).replace("\\\n", " ").splitlines()
    for line in lines:
        words = shlex.split(line, comments=True)
        ends = [index for index, word in enumerate(words) if word in {"&&", "|", ">"}]
        for start, end in zip([0, *(index + 1 for index in ends)], [*ends, len(words)], strict=True):
            command = [word for word in words[start:end] if not re.fullmatch(r"[A-Z_]+=\S*", word)]
            if "--import" in command:  # of every command, and read ahead of it
                at = command.index("--import")
                del command[at : at + 2]
            if command[:1] == ["mobileclip"]:
                yield command[1:]


def named(words):
    """Return a command and what is given to it; None for a group's or a recipe's."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in EVERY:
            return name, words[length:]
    return None


@pytest.mark.parametrize("page", [page for page in PAGES if any(typed(PAGES[page]))])
def test_commands_of_a_page_can_be_typed(page):
    for words in typed(PAGES[page]):
        if words[0] in RECIPES or words[-1] in {"--help", "--help-all", "--version"} or "..." in " ".join(words):
            continue
        found = named(["eval", "run", *words[1:]] if words[0] == "eval" and named(words[:2]) is None else words)
        assert found, f"{page}: there is no command {' '.join(words)}"
        assert read(*found) is not None


def test_commands_are_found():
    assert [*typed("```\nA=1 mobileclip index a/ && mobileclip serve  # x\nmobileclip list \\\n    --json\n```")] == [
        ["index", "a/"],
        ["serve"],
        ["list", "--json"],
    ]
    assert sum(1 for text in PAGES.values() for _ in typed(text)) > 90
    assert named(["hub", "save", "x"]) == ("hub save", ["x"])
