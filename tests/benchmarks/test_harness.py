"""What all benchmarks share: processes of their own, turns, results that are gone on with, the table, the list."""

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import attrs
import pytest

from benchmarks import __main__ as commands
from benchmarks.__main__ import BENCHMARKS, bench_of
from benchmarks.harness import (
    Bench,
    Case,
    LostProcessError,
    Machine,
    Results,
    Row,
    Value,
    in_own_process,
    in_turn,
    markdown,
    ratio,
    read_results,
    rounds_of,
    run,
    seconds_of,
    spread,
    text,
    write_results,
)
from mobileclip.extras import install_library
from tests.descendants import fail, hang, wait_until_gone
from tests.preloaded import preloaded
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
HANGING = """
if __name__ == "__main__":  # the process that hangs imports nothing of this
    import sys
    from pathlib import Path
    from mobileclip.recipes import reported
    from benchmarks.harness import in_own_process
    from tests.descendants import hang
    with reported("benchmark", None, kept="it is kept"):
        in_own_process(hang, sys.argv[1], log=Path(sys.argv[1]).with_suffix(".log"))
"""
MACHINE = Machine(processor="A processor", threads=2, card="", torch="2.13", python="3.12")


def test_the_result_comes_back_and_a_lost_process_is_told(tmp_path):
    assert in_own_process(divmod, 7, 2) == (3, 1)
    with pytest.raises(LostProcessError, match=r"ended with status 3, .*; see .*lost\.log"):
        in_own_process(os._exit, 3, log=tmp_path / "logs" / "lost.log")
    with pytest.raises(LostProcessError, match=r"^RuntimeError: no room$"):
        in_own_process(fail, log=tmp_path / "failed.log")
    assert (tmp_path / "failed.log").read_text().startswith("said before\n")
    with pytest.raises(LostProcessError, match=r"^took longer than 1 seconds$"):
        in_own_process(time.sleep, 60, limit_seconds=1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_part_that_takes_too_long_is_ended_with_all_it_started(tmp_path):
    path = tmp_path / "pids"
    with pytest.raises(LostProcessError, match=r"took longer than 15 seconds"):
        in_own_process(hang, path, limit_seconds=15)
    wait_until_gone(set(map(int, path.read_text().split())))


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_benchmark_that_is_ended_leaves_no_process(tmp_path, number):
    script, path = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(HANGING)
    process = preloaded().start(script, path, folder=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    wait_for(path.exists, process)
    process.send_signal(number)
    _, said = process.communicate(60)
    wait_until_gone(set(map(int, path.read_text().split())))
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert said.startswith("benchmark: interrupted by SIGTERM; ")


def test_time_of_this_process_and_of_those_that_it_starts_counts():
    busy = "import time\nwhile time.process_time() < 0.2: pass"

    def work():
        start = time.process_time()
        while time.process_time() - start < 0.2:
            pass
        subprocess.run([sys.executable, "-c", busy], check=True)

    seconds = seconds_of(work)
    assert min(seconds.cpu, seconds.wall) >= 0.39
    idle = seconds_of(lambda: time.sleep(0.2))
    assert idle.wall >= 0.2
    assert idle.cpu < seconds.cpu


def test_sides_take_turns_and_ratios_are_of_neighbours():
    called = []
    sides = {name: lambda name=name: called.append(name) or len(called) for name in "ab"}
    found = in_turn(sides, rounds=40)
    assert [set(called[start : start + 2]) for start in range(0, 80, 2)] == [{"a", "b"}] * 40
    assert 10 < called[::2].count("a") < 30  # nobody is always first
    assert found["a"] == [place for place, name in enumerate(called, 1) if name == "a"]
    assert spread([3.0], "ms") == Value(number=3.0, unit="ms")
    low, middle, high = statistics.quantiles([1, 2, 3, 4, 50], n=4)
    assert spread([50, 1, 2, 3, 4]) == Value(number=middle, low=low, high=high)
    assert ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]).number == 3.0


@attrs.frozen(kw_only=True)
class Counting(Bench):
    """Squares of numbers."""

    numbers: tuple[int, ...] = (1, 2)
    unit: str = ""
    folder: Path | None = None

    selects = frozenset(("numbers",))

    def cases(self):
        for number in self.numbers:
            yield Case(labels={"number": str(number)}, measure=partial(squared, self, number), apart=number < 0)


def squared(bench, number):
    assert number != 7, "seven"
    return [Row(case={"of": "it"}, values={"square": Value(number=number**2, unit=bench.unit)})]


def test_what_is_known_is_not_measured_again_and_what_failed_is(tmp_path, capsys, monkeypatch):
    spec = Counting(output=tmp_path / "new" / "squares.json", threads=1)
    first = run(spec, "counting")
    assert [(row.case, row.values["square"].number) for row in first.rows] == [
        ({"number": "1", "of": "it"}, 1),
        ({"number": "2", "of": "it"}, 4),
    ]
    assert all(re.fullmatch(r"[0-9a-f]{7,}\+?|", row.commit) and row.load >= 0 for row in first.rows)
    lost = attrs.evolve(first, rows=(first.rows[0], Row(case={"number": "2"}, failure="it fell over")))
    write_results(spec.output, lost)
    more = run(attrs.evolve(spec, numbers=(1, 2, 3)), "counting")
    assert more.rows[0] == first.rows[0]
    assert [row.values["square"].number for row in more.rows] == [1, 4, 9]
    said = capsys.readouterr()
    assert "has 1 cases from before: 2 are left" in said.err
    assert said.out.splitlines()[-1].split("\t") == ["3", "it", "9"]
    assert spec.output.with_suffix(".md").read_text() == markdown(more.rows)
    with pytest.raises(ValueError, match=r"was measured otherwise: unit was  and is ms; remove the file, or choose"):
        run(attrs.evolve(spec, unit="ms"), "counting")
    with pytest.raises(AssertionError, match="seven"):
        run(attrs.evolve(spec, numbers=(7, 8)), "counting")
    monkeypatch.setattr("benchmarks.harness.runner.in_own_process", lambda function, **_: function())
    assert run(attrs.evolve(spec, output=None, numbers=(-3,)), "counting").rows[0].values["square"].number == 9
    monkeypatch.setattr("benchmarks.harness.runner.in_own_process", partial(lost_process, "no memory"))
    failed = run(attrs.evolve(spec, output=None, numbers=(-1, 5)), "counting")
    assert [row.failure for row in failed.rows] == ["no memory", None]
    assert capsys.readouterr().out.splitlines()[-1] == "-1: no memory"


def lost_process(why, *_, **__):
    raise LostProcessError(why)


@attrs.frozen(kw_only=True)
class Expected(Counting):
    """Squares that say how long they are likely to take: so many hours."""

    def cases(self):
        return [attrs.evolve(case, expected_seconds=3600.0 * int(case.labels["number"])) for case in super().cases()]


def test_a_run_says_how_long_it_takes_and_begins_nothing_that_ends_too_late(tmp_path, capsys):
    spec = Expected(output=tmp_path / "squares.json", numbers=(1, 3, 2), threads=1)
    # What is known takes half of what was expected.
    taken = Row(case={"number": "1", "of": "it"}, values={"square": Value(number=1)}, seconds=1800)
    write_results(spec.output, attrs.evolve(run(attrs.evolve(spec, numbers=(1,)), "expected"), rows=(taken,)))
    assert "1 cases will take roughly 1:00:00" in capsys.readouterr().err
    some = run(attrs.evolve(spec, seconds=4000), "expected")
    assert [row.case["number"] for row in some.rows] == ["1", "2"]
    said = capsys.readouterr().err
    assert "2 cases will take roughly 2:30:00" in said
    assert "1 of 2 cases would end too late for --seconds, and are left" in said
    whole = run(spec, "expected")
    assert [row.case["number"] for row in whole.rows] == ["1", "2", "3"]
    assert "too late" not in capsys.readouterr().err


def test_a_batch_has_a_third_of_the_rounds():
    assert [rounds_of(15, batch_size=1), rounds_of(15, batch_size=32), rounds_of(30, batch_size=2)] == [15, 5, 10]
    assert rounds_of(2, batch_size=32) == 2


def test_results_are_read_again_and_not_mixed(tmp_path):
    path = tmp_path / "gpu.json"
    now = Results(benchmark="gpu", choices={"only": [], "batch": 3}, machine=MACHINE)
    assert read_results(path, now, selects=frozenset()) == now
    results = attrs.evolve(now, rows=(Row(case={"part": "a"}, values={"time": Value(number=1.5, unit="s")}),))
    write_results(path, results)
    assert read_results(path, now, selects=frozenset()) == results
    other = attrs.evolve(now, machine=attrs.evolve(MACHINE, card="Another card"), choices={"only": ["a"], "batch": 3})
    with pytest.raises(ValueError, match=r"machine was A processor, 2 .* and is Another card, .*choose another --ou"):
        read_results(path, other, selects=frozenset(("only",)))
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"not a valid Results: .*remove the file"):
        read_results(path, now, selects=frozenset())


def test_the_table_has_units_intervals_holes_and_failures():
    rows = [
        Row(
            case={"model": "a"},
            values={
                "time": Value(number=1.25, unit="ms", low=1.0, high=1.5),
                "cosine": Value(number=1 - 2e-12, unit="cosine"),
            },
            notes={"form": "folded"},
        ),
        Row(
            case={"model": "b"}, values={"rate": Value(number=12345.6), "cosine": Value(number=0.98765, unit="cosine")}
        ),
        Row(case={"model": "c"}, failure="it fell over"),
    ]
    assert markdown(rows).splitlines() == [
        "| model | time, ms | cosine | rate | form |  |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | 1.25 (1 to 1.5) | 1 - 2e-12 |  | folded |  |",
        "| b |  | 0.98765 | 12,346 |  |  |",
        "| c |  |  |  |  | failed |",
        "",
        "Without a result:",
        "",
        "- c: it fell over",
    ]
    assert [text(0.0), text(100.4), text(0.01234)] == ["0", "100", "0.0123"]


def test_every_benchmark_is_listed_with_an_example_that_is_one(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    commands.main()
    said = capsys.readouterr().out
    for name in BENCHMARKS:
        assert re.search(rf"^{name}: \S.*\n +(python -m benchmarks {name}\b|make {name}\b)", said, re.MULTILINE)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit, match=r"there is no benchmark 'speed'; there are: latency, "):
        commands.main()


def test_quiet_shows_no_progress(monkeypatch, capsys):
    for quiet, shows in (([], True), (["--quiet"], False)):
        monkeypatch.setattr(sys, "argv", ["benchmarks", "quantization", "--tiny", *quiet])
        commands.main()
        said = capsys.readouterr()
        assert "step" in said.out
        assert bool(said.err) == shows


def test_what_pages_and_headers_type_is_a_benchmark():
    """With flags that it has."""
    sources = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.py"),
        ROOT / "Makefile",
    ]
    typed = [
        (path.name, *found.groups())
        for path in sources
        if path.name not in ("CHANGELOG.md", "changes.md")
        for found in re.finditer(r"-m benchmarks(\.?) ?(\w+)([^`\n#(]*)", path.read_text(encoding="utf-8"))
    ]
    assert len(typed) > 12
    for page, dot, name, rest in typed:
        if name in ("NAME", "SHORT"):
            continue
        if dot:
            program = ROOT / "benchmarks" / f"{name}.py"
            assert "__main__" in program.read_text(encoding="utf-8"), f"{page}: {name}"
            continue
        fields = {field.name.replace("_", "-") for field in attrs.fields(bench_of(name))}
        flags = {flag.removeprefix("no-") for flag in re.findall(r"--([a-z-]+)", rest)}
        assert flags <= fields, (page, name)


@pytest.mark.parametrize("name", ["train", "latency", "runtimes", "data"])
def test_a_missing_rival_names_the_command_that_installs_it(name, monkeypatch):
    absent, extras = {"data": ("torchvision", ("test",)), "evaluate": ("clip_benchmark", ("test", "quickstart"))}.get(
        name, ("open_clip", ("test",))
    )
    choices = {"device": "cpu"} if name == "gpu" else {}
    bench = bench_of(name)(**choices)
    monkeypatch.setattr("importlib.util.find_spec", lambda one: None if one == absent else one)
    with pytest.raises(SystemExit, match=rf"{absent} cannot be imported, .*: {re.escape(install_library(*extras))}"):
        list(bench.cases())
