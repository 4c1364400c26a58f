"""The exit status of commands that leave something out, and of those whose streams are closed or lose their readers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mobileclip.terminal import conclude
from tests.errors import fails

ROOT = Path(__file__).parents[2]
LINES = {"recipes ls >&- 2>&- <&-": 0, "recipes ls | true": 0, "--version | true": 0, "recipes cp nothing . 2>&-": 2}


@pytest.mark.parametrize("line", LINES)
def test_a_stream_that_is_closed_is_no_error_and_an_error_without_one_is_still_a_status(line):
    shell = ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m mobileclip.cli {line}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (LINES[line], "")


@pytest.mark.parametrize("torn", [1, ["torn.png"]])
def test_what_is_left_out_fails_where_that_is_asked_for_or_nothing_was_done(torn):
    for left_out, strict, done in ((0, False, 3), (0, True, 3), (torn, False, 3)):
        conclude(left_out=left_out, strict=strict, done=done)
    for left_out, strict, done in ((torn, True, 3), (torn, False, 0), (0, True, [])):
        with fails(SystemExit, "1"):
            conclude(left_out=left_out, strict=strict, done=done)
