"""`python -m tests.trials`: try everything, and print a table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import attrs

from tests.trials.harness import AREAS, BAD, GOOD, Tried, cases_of, try_all

_TITLES = {
    "checkpoints": "checkpoints",
    "specs": "specs and other JSON",
    "exports": "exports (`.pt2` and others)",
    "images": "images",
    "tars": "tar files",
    "arrays": "stored embeddings (npz, pth.gz, ...)",
    "samples": "captions, keys and JSON in data",
    "tables": "tables of pairs (Parquet, CSV, TSV)",
    "tokenizers": "tokenizers",
    "servers": "servers",
    "commands": "command lines",
}


def main() -> None:
    """Parse the command line and try what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.trials", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"all by default: {', '.join(AREAS)}")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name has this in it")
    parser.add_argument("--part", type=int, default=1, metavar="N", help="one case of N, spread over the area")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each case")
    options = parser.parse_args()
    if unknown := [area for area in options.areas if area not in AREAS]:
        parser.error(f"unknown area {', '.join(unknown)}; known: {', '.join(AREAS)}")
    tried: list[Tried] = []
    for area in options.areas or AREAS:
        if len(options.areas) == 1:
            cases = [case for case in cases_of(area)[:: options.part] if (options.only or "") in case.name]
            for one in try_all(area, cases):
                tried.append(one)
                print(json.dumps(attrs.asdict(one)) if options.json else _line(one), flush=True)
        else:
            tried += in_process_of_its_own(area, options.part)
            print(row(area, tried))
    sys.exit(any(one.outcome in BAD for one in tried))


def in_process_of_its_own(area: str, part: int = 1) -> list[Tried]:
    """Return what became of one case of `part` of an area: processes are forked from one that has imported it alone."""
    command = [sys.executable, "-m", "tests.trials", area, "--json", "--part", str(part)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    if finished.returncode not in (0, 1) or not finished.stdout:
        raise RuntimeError(f"the trials of {area} could not run:\n{finished.stderr[-4000:]}")
    return [Tried(**json.loads(line)) for line in finished.stdout.splitlines()]


def row(area: str, tried: list[Tried]) -> str:
    """Return the row of an area."""
    those = [one for one in tried if area in (one.area, "all")]
    counts = [sum(one.outcome == outcome for one in those) for outcome in (*GOOD, *BAD)]
    seconds = max((one.seconds for one in those), default=0.0)
    cells = [_TITLES.get(area, area), len(those), *counts, f"{seconds:.1f}"]
    return f"| {' | '.join(map(str, cells))} |"


def _line(one: Tried) -> str:
    message = f": {one.message}" if one.message else ""
    return f"{one.outcome:13} {one.seconds:5.1f} s {one.num_bytes / 2**20:6.0f} MiB  {one.name}{message}"


if __name__ == "__main__":
    main()
