"""How many slips of one token the tests notice: each is made in a copy of the tree, and its subpackage's tests run.

cosmic-ray says where and how a program can be changed. Its own runs know one command for all files, all changes or
none, and no limit of memory; here each change runs against those of its subpackage's tests that reach it, the likeliest
first, in processes that have PyTorch imported, and a sample is drawn by seed, as many from each subpackage. A test
that fails is run again, with the change and, once, without any: where it fails without or passes with, chance or the
machine may have failed it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest
from multiprocessing.connection import wait
from pathlib import Path

import attrs

from mobileclip.progress import duration
from tests.mutants.ranking import own_tests, places_of
from tests.mutants.reach import Reach, read_reach, record
from tests.mutants.running import Trial, Verdict, confirmed, copied
from tests.mutants.sites import Mutant, Place, places
from tests.mutants.subpackages import files, in_turns, subpackage_of, subpackages

ROOT = Path(__file__).parents[2]
SUBPACKAGES = subpackages(ROOT)
LEVEL = Path(__file__).with_name("level.json")
SAMPLE = 60
"""Mutants of a nightly run."""
FIELDS = ("file", "function", "line", "becomes")
"""What names a mutant in the output."""
UNKNOWN_SECONDS = 30.0
"""What a test file is taken to need until it has run."""


def main() -> int:
    """Run the command; the exit status is 1 where a smaller share was caught than the stored level."""
    choices = chosen(sys.argv[1:])
    if choices.renew_level:
        return renew_level(Counter(outcome for outcome, _ in read(choices.output).values()))
    ends = time.monotonic() + choices.seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or else copies and tests would stay behind
    drawn_now = again(choices.output) if choices.again else drawn(choices)
    kept = read(choices.output) if choices.go_on else {}
    entries = {mutant.key: Entry(mutant, *kept[mutant.key]) for mutant in drawn_now if mutant.key in kept}
    mutants = [mutant for mutant in drawn_now if mutant.key not in entries]
    reach = _reach(choices)
    os.environ["OMP_NUM_THREADS"] = "1"
    _import_what_tests_import()
    started, seconds = time.monotonic(), 0.0
    choices.output.parent.mkdir(parents=True, exist_ok=True)
    with choices.output.open("a" if choices.go_on or choices.again else "w", encoding="utf-8") as lines:
        times = choices.output.with_suffix(".seconds")
        verdicts = tried(mutants, choices.processes, choices.tests, times, reach, ends=ends)
        for done, (mutant, verdict) in enumerate(verdicts, 1):
            entries[mutant.key] = entry = Entry(mutant, verdict.outcome, verdict.failed)
            seconds += verdict.seconds
            seconds_left = seconds / done * (len(mutants) - done) / choices.processes
            print(f"[{done}/{len(mutants)}, {duration(seconds_left)} left] {mutant.file}:{mutant.number} {entry}")
            print(f"    - {mutant.line}\n    + {mutant.becomes}", flush=True)
            lines.write(json.dumps(entry.named | {"outcome": entry.outcome, "failed": entry.failed}) + "\n")
            lines.flush()
    survivors = [entry.named for entry in entries.values() if entry.outcome == "lived"]
    print(json.dumps(survivors, indent=2, ensure_ascii=False))
    print(table(entries.values()))
    num_left = len(drawn_now) - len(entries)
    print(f"seed {choices.seed}, {duration(time.monotonic() - started)}; {num_left} were left when the time was over")
    return status_of(Counter(entry.outcome for entry in entries.values()))


@attrs.frozen
class Entry:
    """A mutant and what became of it.

    Args:
        mutant: that was tried.
        outcome: caught, lived or unconfirmed.
        failed: the test that failed.
    """

    mutant: Mutant
    outcome: str
    failed: str = ""

    @property
    def named(self) -> dict[str, str]:
        """What names the mutant."""
        return dict(zip(FIELDS, self.mutant.key, strict=True))

    def __str__(self) -> str:
        said = {"lived": "LIVED", "caught": f"caught by {self.failed}"}
        return said.get(self.outcome, f"UNCONFIRMED, {self.failed} failed by chance or without the change")


def read(output: Path) -> dict[tuple[str, ...], tuple[str, str]]:
    """Return what became of the mutants of earlier runs, and the tests that failed."""
    lines = output.read_text(encoding="utf-8").splitlines() if output.is_file() else []
    entries = [json.loads(line) for line in lines]
    return {tuple(entry[field] for field in FIELDS): (entry["outcome"], entry["failed"]) for entry in entries}


def share_caught(outcomes: Mapping[str, int]) -> float:
    """Return the share that was caught of those that were decided."""
    return outcomes["caught"] / max(outcomes["caught"] + outcomes["lived"], 1)


def status_of(outcomes: Mapping[str, int]) -> int:
    """Compare the share that was caught with the stored level, and return the exit status: 2 where none was tried."""
    level = json.loads(LEVEL.read_text(encoding="utf-8"))["level"]
    if not outcomes["caught"] + outcomes["lived"]:
        print("No mutant was tried.")
        return 2
    share = share_caught(outcomes)
    print(f"{share:.0%} were caught; the level is {level:.0%} ({LEVEL.relative_to(ROOT)})")
    return int(share < level)


def renew_level(outcomes: Mapping[str, int]) -> int:
    """Store the share that was caught, less two standard errors of its difference from a nightly sample's."""
    share, count = share_caught(outcomes), outcomes["caught"] + outcomes["lived"]
    level = share - 2 * math.sqrt(share * (1 - share) * (1 / SAMPLE + 1 / max(count, 1)))
    known = {"level": math.floor(100 * level) / 100, "caught": outcomes["caught"], "lived": outcomes["lived"]}
    LEVEL.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return status_of(outcomes)


def table(entries: Iterable[Entry]) -> str:
    """Return how many mutants of each subpackage had which outcome, and the share that was caught."""
    counts: dict[str, Counter[str]] = {}
    for entry in entries:
        for name in (subpackage_of(entry.mutant.file), "all"):
            counts.setdefault(name, Counter())[entry.outcome] += 1
    kinds = ("caught", "lived", "unconfirmed")
    rows = ["| subpackage | tried | " + " | ".join(kinds) + " | share caught |", "|---" * 6 + "|"]
    for name, found in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
        cells = (name, str(found.total()), *(str(found[kind]) for kind in kinds), f"{share_caught(found):.0%}")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def chosen(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what a command line asks for."""
    today = int(time.strftime("%Y%m%d", time.gmtime()))
    parser = argparse.ArgumentParser(prog="make mutants ARGS=...", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=today, help="of the sample (default: the day, %(default)s)")
    parser.add_argument("--count", type=int, default=SAMPLE, help="mutants in the sample (default %(default)s)")
    parser.add_argument("--count-per-package", type=int, help="mutants of each subpackage, in place of --count")
    parser.add_argument("--all", action="store_true", help="every mutant of every place: a night or more")
    parser.add_argument("--seconds", type=float, help="after which no other is tried (default 3600; --all: no end)")
    parser.add_argument(
        "--packages", nargs="+", default=SUBPACKAGES, choices=SUBPACKAGES, help="where to change the program"
    )
    parser.add_argument("--only", default="", help="files whose path has this in it")
    parser.add_argument("--tests", nargs="+", default=[], help="test files to run, in place of all of the subpackage")
    parser.add_argument("--again", action="store_true", help="those that the last run did not catch")
    parser.add_argument("--go-on", action="store_true", help="leave out those that the output has already")
    parser.add_argument(
        "--record",
        action="store_true",
        help="anew which tests of --packages reach which line; first of all if not known",
    )
    parser.add_argument("--renew-level", action="store_true", help="store the level that the output's share gives")
    parser.add_argument("--processes", type=int, default=2, help="tests at a time, about 2 GiB each (default 2)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "mutants.jsonl", help="what became of each")
    choices = parser.parse_args(arguments)
    if choices.seconds is None:
        choices.seconds = math.inf if choices.all else 3600.0
    return choices


def _reach(choices: argparse.Namespace) -> Reach | None:
    """Return which tests reach which line, recorded now if that was not done before or is asked for."""
    if choices.tests:
        return None
    of_all = choices.output.with_name("reach.json")
    of_packages = of_all if choices.packages == SUBPACKAGES else of_all.with_stem(f"reach-{'-'.join(choices.packages)}")
    kept = next((path for path in (of_packages, of_all) if path.is_file()), None)
    if choices.record or kept is None:
        said = "All tests" if of_packages is of_all else f"The tests of {', '.join(choices.packages)}"
        print(f"{said} run once, to record which of them reach which line.", flush=True)
        places = (
            ["tests"]
            if of_packages is of_all
            else [place for package in choices.packages for place in places_of(package)]
        )
        record(ROOT, choices.processes, places).save(of_packages)
        kept = of_packages
    return read_reach(kept)


def drawn(choices: argparse.Namespace) -> list[Mutant]:
    """Return the mutants of a run: all, or a sample with as many from each subpackage, where it has them."""
    found = {package: [file for file in files(ROOT, package) if choices.only in file] for package in choices.packages}
    sites = {
        package: [place for file in found[package] for place in places(ROOT, file)] for package in choices.packages
    }
    if choices.all:
        return [mutant for package in choices.packages for place in sites[package] for mutant in place.mutants()]
    samples = [_sample(package, sites[package], choices) for package in choices.packages]
    if choices.count_per_package is not None:
        return [mutant for sample in samples for mutant in islice(sample, choices.count_per_package)]
    by_turns = (mutant for mutants in zip_longest(*samples) for mutant in mutants if mutant is not None)
    return list(islice(by_turns, choices.count))


def _sample(subpackage: str, sites: list[Place], choices: argparse.Namespace) -> Iterator[Mutant]:
    """Yield one mutant of each place of a subpackage in an order that depends on seed and subpackage alone."""
    rng = random.Random(f"{choices.seed} {subpackage}")
    rng.shuffle(sites)
    return (rng.choice(mutants) for place in sites if (mutants := place.mutants()))


def again(output: Path) -> list[Mutant]:
    """Return those that lived in the last run, or whose catch was not confirmed."""
    keys = [key for key, (outcome, _) in read(output).items() if outcome != "caught"]
    found = chain.from_iterable(places(ROOT, file) for file in dict.fromkeys(key[0] for key in keys))
    return [mutant for place in found for mutant in place.mutants() if mutant.key in keys]


@attrs.frozen(kw_only=True)
class Started:
    """A mutant whose tests run.

    Args:
        trial: that runs now.
        later: the tests after these, in their groups.
        seconds: how long the groups before took.
    """

    trial: Trial
    later: list[list[str]]
    seconds: float = 0.0


def tried(
    mutants: list[Mutant], processes: int, only: list[str], times: Path, reach: Reach | None, *, ends: float
) -> Iterator[tuple[Mutant, Verdict]]:
    """Run the tests of each mutant's subpackage, group by group until one fails, and yield what they said, as they end.

    Args:
        mutants: to try.
        processes: how many at a time.
        only: test files, in place of all of the subpackage.
        times: a file that keeps how long test files take.
        reach: which tests reach which line; None if all of the subpackage's are to run.
        ends: when no other is tried, and those that are under way are let go.
    """
    file_seconds: dict[str, float] = json.loads(times.read_text(encoding="utf-8")) if times.is_file() else {}
    sound: dict[str, bool] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [copied(ROOT, Path(folder, str(number))) for number in range(processes)]
        waiting = list(reversed(mutants))
        running: dict[int, Started] = {}

        def start(tree: Path, mutant: Mutant, groups: list[list[str]], seconds: float = 0.0) -> None:
            known = reach.seconds if reach else {}
            needed = sum(known.get(test, file_seconds.get(test, UNKNOWN_SECONDS)) for test in groups[0])
            left_out = [test for test, passes in sound.items() if not passes]
            trial = Trial(tree, groups[0], mutant, 30 + 3 * needed, left_out)
            running[trial.process.sentinel] = Started(trial=trial, later=groups[1:], seconds=seconds)

        try:
            while (waiting or running) and time.monotonic() < ends:
                while waiting and trees:
                    mutant = waiting.pop()
                    tests = only or own_tests(trees[-1], mutant.file, mutant.function, file_seconds)
                    reaching = reach.tests(trees[-1], mutant.file, mutant.number, tests) if reach else []
                    start(trees.pop(), mutant, reaching or in_turns(tests))
                left = [ends - time.monotonic(), *(started.trial.seconds_left for started in running.values())]
                ready = wait(list(running), max(0.0, min(left)))
                late = [sentinel for sentinel, started in running.items() if started.trial.seconds_left == 0]
                for sentinel in {*ready, *late}:
                    started = running.pop(sentinel)
                    trial, verdict = started.trial, started.trial.finish()
                    verdict = attrs.evolve(verdict, seconds=verdict.seconds + started.seconds)
                    if verdict.passed:
                        file_seconds |= verdict.file_seconds
                        times.write_text(json.dumps(file_seconds, indent=1), encoding="utf-8")
                    if verdict.passed and started.later:
                        start(trial.tree, trial.mutant, started.later, verdict.seconds)
                        continue
                    is_known = verdict.failed in sound
                    verdict = confirmed(trial, verdict, sound)
                    if not is_known and not sound.get(verdict.failed, True):  # again, without that test
                        start(trial.tree, trial.mutant, [trial.tests, *started.later], verdict.seconds)
                        continue
                    trees.append(trial.tree)
                    yield trial.mutant, verdict
        finally:
            for started in running.values():
                started.trial.stop()


def _import_what_tests_import() -> None:
    """Import once, for all processes, what takes seconds: none of it may import our package."""
    for name in ("hypothesis", "open_clip", "timm", "torch", "torchvision"):
        importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
