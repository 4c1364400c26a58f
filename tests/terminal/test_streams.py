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
    assert run(f"{COMMAND} info nothing.pt 2>&-").returncode == 2


def test_a_file_does_not_get_what_is_printed(tmp_path):
    """The number of a closed stream is the first that a file gets."""
    code = (
        "import sys\n"
        "from mobileclip.terminal import ensure_streams, say\n"
        "ensure_streams()\n"
        f"with open({str(tmp_path / 'a.txt')!r}, 'w') as file:\n"
        "    say('printed')\n"
        "    import os; os.write(1, b'written by a library')\n"
        "    file.write('kept')\n"
        "say(sys.stdin.read() == '', error=True)\n"
    )
    done = run(f'{sys.executable} -c "{code}" <&- >&-')
    assert (done.returncode, done.stderr) == (0, "True\n")
    assert (tmp_path / "a.txt").read_text() == "kept"
