"""Standard streams that are closed, and readers that go away."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = f"{sys.executable} -m mobileclip.cli"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (f"{COMMAND} recipes ls >&- 2>&- <&-", 0),
        (f"{COMMAND} recipes ls | true", 0),
        (f"{COMMAND} --version | true", 0),
        (f"{COMMAND} recipes cp nothing . 2>&-", 2),
    ],
)
def test_a_stream_that_is_closed_is_no_error_and_an_error_without_one_is_still_a_status(line, status):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shell = ["bash", "-o", "pipefail", "-c", line]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, "")
