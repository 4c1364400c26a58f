"""Every command that writes, killed at every moment: `python -m tests.crash [COMMAND ...]` prints a table.

`--every 5` tries every fifth moment, and the last one.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from mobileclip.terminal import say
from tests.crash.world import COMMANDS
from tests.survives import Survival


def main() -> int:
    """Try the commands that were named, or all; the exit status says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", default=list(COMMANDS))
    parser.add_argument("--every", type=int, default=1)
    chosen = parser.parse_args()
    num_bad = 0
    for name in chosen.commands:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="crash-") as folder:
            survival = Survival.of(COMMANDS[name], Path(folder) / "trial")
            points = sorted({*survival.points[:: chosen.every], survival.points[-1]})
            bad = [found for point in points if (found := survival.problems(survival.at(point)))]
        for problem in (one for found in bad for one in found):
            say(f"  {problem}")
        seconds = time.monotonic() - started
        say(f"{name}: {len(points)} of {len(survival.points)} points, {len(bad)} bad, {seconds:.0f} s")
        num_bad += len(bad)
    return int(num_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
