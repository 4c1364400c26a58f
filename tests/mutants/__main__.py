"""How many slips of one token the tests notice: each is made in a copy of the tree, and its room's tests run.

cosmic-ray says where and how a program can be changed. Its own runs know one command for all files, all changes or
none, and no limit of memory; here each change runs against its room's tests, the likeliest first, in a process that
has imported PyTorch before, and a sample is drawn by seed, the same number from each room. A test that fails is run
again, with the change and without: where it fails without or passes with, chance or the machine may have failed it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from multiprocessing.connection import wait
from pathlib import Path

from mobileclip.progress import duration
from tests.mutants.equal import FIELDS, equal_programs
from tests.mutants.running import Trial, Verdict, confirmed, copied, files_with_tests
from tests.mutants.sites import Mutant, places

ROOT = Path(__file__).parents[2]
ROOMS = ("losses", "reparam", "blocks", "encoders", "inference", "storage", "data", "evaluation", "training")


def main() -> int:
    """Run the command; the exit status says whether any lived."""
    choices = _choices()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or else copies and tests would stay behind
    equal = equal_programs()
    mutants = again(choices.output) if choices.again else drawn(choices)
    known = [mutant for mutant in mutants if mutant.key in equal]
    mutants = [mutant for mutant in mutants if mutant.key not in equal]
    outcomes: Counter[str] = Counter(equal=len(known))
    survivors = []
    started, seconds = time.monotonic(), 0.0
    choices.output.parent.mkdir(parents=True, exist_ok=True)
    with choices.output.open("w", encoding="utf-8") as lines:
        for mutant, verdict in tried(mutants, choices.processes, choices.tests):
            outcomes[verdict.outcome] += 1
            done = outcomes.total() - outcomes["equal"]
            seconds += verdict.seconds
            seconds_left = seconds / done * (len(mutants) - done) / choices.processes
            said = {"lived": "LIVED", "caught": f"caught by {verdict.failed}"}
            what = said.get(verdict.outcome, f"UNCONFIRMED, {verdict.failed} failed by chance or without the change")
            print(f"[{done}/{len(mutants)}, {duration(seconds_left)} left] {mutant.file}:{mutant.number} {what}")
            print(f"    - {mutant.line}\n    + {mutant.becomes}", flush=True)
            named = dict(zip(FIELDS, mutant.key, strict=True))
            entry = named | {"outcome": verdict.outcome, "failed": verdict.failed}
            lines.write(json.dumps(entry, ensure_ascii=False) + "\n")
            lines.flush()
            if verdict.outcome == "lived":
                survivors.append(named | {"reason": ""})
    print(json.dumps(survivors, indent=2, ensure_ascii=False))
    different = outcomes["caught"] + outcomes["lived"]
    print(
        f"{outcomes.total()} mutants (seed {choices.seed}): {outcomes['caught']} caught, "
        f"{outcomes['lived']} lived, {outcomes['equal']} equal programs, {outcomes['unconfirmed']} unconfirmed; "
        f"{outcomes['caught'] / max(different, 1):.1%} of those that differ are caught; "
        f"{duration(time.monotonic() - started)}"
    )
    return min(outcomes["lived"], 1)


def _choices() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants ARGS=...", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--count", type=int, default=60, help="mutants in the sample (default 60)")
    parser.add_argument("--all", action="store_true", help="every mutant of every place: a night or more")
    parser.add_argument("--rooms", nargs="+", default=ROOMS, choices=ROOMS, help="where to change the program")
    parser.add_argument("--only", default="", help="files whose path has this in it")
    parser.add_argument("--tests", nargs="+", default=[], help="test files to run, in place of all of the room")
    parser.add_argument("--again", action="store_true", help="those that the last run did not catch")
    parser.add_argument("--processes", type=int, default=2, help="tests at a time, about 2 GiB each (default 2)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "mutants.jsonl", help="what became of each")
    return parser.parse_args()


def drawn(choices: argparse.Namespace) -> list[Mutant]:
    """Return the mutants of a run: all, or a sample with the same number from each room, as far as it has so many."""
    rooms = [
        list(chain.from_iterable(places(ROOT, file) for file in _files(room, choices.only))) for room in choices.rooms
    ]
    if choices.all:
        return [mutant for room in rooms for place in room for mutant in place.mutants()]
    rng = random.Random(choices.seed)
    samples = []
    for room in rooms:
        rng.shuffle(room)
        samples.append(rng.choice(mutants) for place in room if (mutants := place.mutants()))
    in_turns = (mutant for mutants in zip_longest(*samples) for mutant in mutants if mutant is not None)
    return list(islice(in_turns, choices.count))


def _files(room: str, only: str) -> list[str]:
    files = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "mobileclip" / room).rglob("*.py"))]
    return [file for file in files if only in file]


def again(output: Path) -> list[Mutant]:
    """Return those that lived in the last run, or whose catch was not confirmed."""
    entries = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    keys = [tuple(entry[field] for field in FIELDS) for entry in entries if entry["outcome"] != "caught"]
    found = chain.from_iterable(places(ROOT, file) for file in dict.fromkeys(key[0] for key in keys))
    return [mutant for place in found for mutant in place.mutants() if mutant.key in keys]


def tried(mutants: list[Mutant], processes: int, only: list[str]) -> Iterator[tuple[Mutant, Verdict]]:
    """Run the tests of each mutant's room and yield what they said, as they end.

    Raises:
        SystemExit: if the tests of a room fail without any change.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    _import_what_tests_import()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [copied(ROOT, Path(folder, str(number))) for number in range(processes)]
        waiting = list(reversed(mutants))
        usual: dict[str, Verdict] = {}
        running: dict[int, Trial] = {}
        try:
            while waiting or running:
                while waiting and trees:
                    mutant = waiting.pop()
                    room = Path(mutant.file).parts[1]
                    if room not in usual:
                        usual[room] = _unchanged(trees[-1], room, only)
                    tests = only or files_with_tests(trees[-1], room, mutant.file, usual[room].file_seconds)
                    trial = Trial(trees.pop(), tests, mutant, 30 + 5 * usual[room].seconds)
                    running[trial.process.sentinel] = trial
                ready = wait(list(running), min(trial.seconds_left for trial in running.values()))
                late = [sentinel for sentinel, trial in running.items() if trial.seconds_left == 0]
                for sentinel in {*ready, *late}:
                    trial = running.pop(sentinel)
                    verdict = confirmed(trial, trial.finish())
                    trees.append(trial.tree)
                    yield trial.mutant, verdict
        finally:
            for trial in running.values():
                trial.stop()


def _unchanged(tree: Path, room: str, only: list[str]) -> Verdict:
    trial = Trial(tree, only or files_with_tests(tree, room), None, 3600)
    verdict = trial.finish()
    if not verdict.passed:
        print((tree / ".log").read_text(errors="replace")[-4000:])
        raise SystemExit(f"the tests of {room} fail without any change: {verdict.failed}")
    print(f"{room}: the tests of the unchanged program take {duration(verdict.seconds)}", flush=True)
    return verdict


def _import_what_tests_import() -> None:
    """Import once, for all processes, what takes seconds: none of it may import our package."""
    for name in ("hypothesis", "open_clip", "timm", "torch", "torchvision"):
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
