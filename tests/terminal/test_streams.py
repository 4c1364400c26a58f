"""Standard streams that are closed, and readers that go away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = f"{sys.executable} -m mobileclip.cli"


def run(line):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "line",
    [
        f"{COMMAND} recipes ls >&- 2>&- <&-",
        f"{COMMAND} recipes ls | true",
        f"{COMMAND} --version | true",
    ],
)
def test_a_stream_that_is_closed_is_no_error(line):
    done = run(line)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_without_a_stream_is_still_a_status():
    assert run(f"{COMMAND} recipes cp nothing . 2>&-").returncode == 2
