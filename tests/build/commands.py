"""The console command, run in this process: its exit status and output."""

import json
import sys

from mobileclip.cli import main

IMAGES = "tests/golden/augment/images"


def run(capsys, *arguments):
    """Return the exit status, standard output and standard error."""
    status = status_of([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def worked(capsys, *arguments):
    """Return what a command that ends well has written to standard output."""
    status, out, err = run(capsys, *arguments)
    assert status == 0, err
    return out


def refused(capsys, message, *arguments):
    """Return the error of a command that is refused, which must name something."""
    status, _, err = run(capsys, *arguments)
    assert (status, err.startswith("mobileclip: "), "Traceback" in err) == (2, True, False), err
    assert message in err
    return err


def statuses(lines):
    """Print the exit status of each command line."""
    sys.stdout.write(f"\n{json.dumps([status_of(line) for line in lines])}\n")


def status_of(line):
    """Return the exit status of a command line."""
    try:
        main(line)
    except SystemExit as stop:
        return stop.code or 0
    return 0
