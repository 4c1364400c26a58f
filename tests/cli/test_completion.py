"""The tabulator key, in the shells that are here: commands, flags of a command, recipes, and files where none fits."""

import shutil
import subprocess
from contextlib import redirect_stdout
from io import StringIO

import pytest

from mobileclip.cli import COMMANDS, main

ASK = """
COMP_WORDS=({words}); COMP_CWORD=$(({count} - 1)); _mobileclip; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script():
    with redirect_stdout(StringIO()) as said:
        main(["completion"])
    return said.getvalue()


def completed(script, *words):
    quoted = " ".join(f"'{word}'" for word in ("mobileclip", *words))
    done = subprocess.run(
        [shutil.which("bash"), "-uec", script + ASK.format(words=quoted, count=len(words) + 1)],
        env={"ZSH_VERSION": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.stdout.split()


def test_the_key_completes_commands_and_their_flags(script):
    assert completed(script, "") == [*COMMANDS.members]
    assert completed(script, "cl") == ["classify"]
    assert completed(script, "data", "f") == ["filter"]
    assert completed(script, "search", "a cat", "--wh") == ["--where"]
    assert {"--set", "--engine", "--device", "--quiet", "--help"} <= {*completed(script, "index", "--")}
    assert "s2" in completed(script, "train", "")
    assert completed(script, "classify", "pho") == completed(script, "nothing", "x") == []
