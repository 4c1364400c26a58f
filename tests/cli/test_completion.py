"""The tabulator key in bash: commands, those of a group, and the flags of a command."""

import shutil
import subprocess
from contextlib import redirect_stdout
from io import StringIO

import pytest

from mobileclip.cli import main

ASK = """
COMP_WORDS=({words}); COMP_CWORD=$(({count} - 1)); {function}; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script():
    with redirect_stdout(StringIO()) as said:
        main(["completion"])
    return said.getvalue()


def completed(script, *words):
    quoted = " ".join(f"'{word}'" for word in ("mobileclip", *words))
    ask = ASK.format(words=quoted, count=len(words) + 1, function="_tyro_mobileclip")
    done = subprocess.run([shutil.which("bash"), "-c", script + ask], capture_output=True, text=True, check=False)
    return [line.split()[0] for line in done.stdout.splitlines() if line.split()]


def test_the_key_completes_commands_and_their_flags(script):
    assert {"classify", "search", "data", "eval"} <= {*completed(script, "")}
    assert completed(script, "cl") == ["classify"]
    assert completed(script, "data", "fi") == ["filter"]
    assert completed(script, "search", "a cat", "--wh")[0] == "--where"
    assert {"--device", "--help"} <= {*completed(script, "index", "--")}
