"""Text that came with data can do nothing on a terminal but be read."""

import io
import itertools
import json
import logging
import re
import sys
from types import SimpleNamespace

import pytest
from rich.table import Table

from mobileclip.progress import Progress
from mobileclip.terminal import console, get_logger, print_table, say, say_json, shown

HOSTILE = "x[/nothing] [red]y[/red] :smile: \x1b[2J\rz https://me:secret@host/a?token=secret"
SEEN = "x[/nothing] [red]y[/red] :smile: \\x1b[2J\\rz https://host/a?..."


def test_lines_stay_and_everything_else_is_escaped():
    assert shown(f"one\n{HOSTILE}") == f"one\n{SEEN}"
    assert shown("x" * 10_000) == "x" * 10_000
    assert shown(f"a\n{'x' * 10_001}") == f"a\n{'x' * 10_000}... (10,001 characters)"


def test_what_is_said(capsys):
    say(HOSTILE)
    say(HOSTILE, error=True)
    assert capsys.readouterr() == (f"{SEEN}\n", f"{SEEN}\n")


def test_json_is_whole_for_a_program_and_safe_for_a_terminal(capsys):
    value = {HOSTILE: "\u202e\udcff" + "x" * 20_000}
    say_json(value)
    out = capsys.readouterr().out
    assert out.isascii()
    assert out[:-1].isprintable()
    assert json.loads(out) == value


def test_what_a_stream_cannot_encode_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("text → image")
    stream.flush()
    assert stream.buffer.getvalue() == b"text \\u2192 image\n"
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert sys.stdout.encoding is None
    say("text → image")
    assert sys.stdout.getvalue() == "text → image\n"


@pytest.mark.parametrize("is_terminal", ["0", "1"])
def test_tables_hold_no_markup(capsys, monkeypatch, is_terminal):
    monkeypatch.setenv("TTY_COMPATIBLE", is_terminal)
    monkeypatch.setenv("TERM", "dumb")
    table = Table(HOSTILE, title=HOSTILE, box=None)
    table.add_row(HOSTILE)
    print_table(HOSTILE, table, min_width=200)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [SEEN] * 4


def test_a_table_in_a_pipe_is_whole_and_apart_by_tabs(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("model", "rate", title="Rates", box=None)
    table.add_row("mobileclip_s0 of a\tlong\nname", "2.5e-05")
    headless = Table(show_header=False)
    headless.add_row("key", "000001")
    print_table(table, headless, "said", min_width=10)
    out = capsys.readouterr().out
    assert out == "Rates\nmodel\trate\nmobileclip_s0 of a long name\t2.5e-05\nkey\t000001\nsaid\n"


def test_progress_shows_a_hostile_title_and_detail(capsys):
    with Progress(HOSTILE, total=1, console=console()) as bar:
        bar.advance(detail=HOSTILE)
    seen = capsys.readouterr().err
    assert seen.startswith(f"{SEEN}: 1/1, {SEEN}")
    assert len(seen.splitlines()) == 1


def terminal(monkeypatch, width):
    """Return standard error as a terminal of some width."""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", str(width))):
        monkeypatch.setenv(name, value)
    return console()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_live_bar_takes_no_markup(is_terminal, monkeypatch, capsys):
    screen = terminal(monkeypatch, 250) if is_terminal else console()
    assert screen.is_terminal == is_terminal
    with Progress("x[/nothing]", total=2, console=screen) as bar:
        bar.advance(2, detail="y[/nothing]")
    said = capsys.readouterr().err
    assert all(text in said for text in ("x[/nothing]", "y[/nothing]"))


def test_a_narrow_terminal_shortens_the_bar_and_no_number(capsys, monkeypatch):
    seconds = itertools.count(1000.0)
    monkeypatch.setattr("mobileclip.progress.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    screen = terminal(monkeypatch, 80)
    with Progress("joining neighbours", total=1_000_000, unit="pictures", console=screen) as bar:
        for _ in range(6):
            bar.advance(4_096)
    said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "24576/1000000" in said
    assert re.search(r"pictures/s, [0-9:]+ left", said)


def test_logs_are_one_line_without_secrets(caplog):
    logger = get_logger("mobileclip.test")
    assert get_logger("mobileclip.test") is logger
    with caplog.at_level(logging.WARNING):
        logger.warning("skipped %s, %d of %s", "a\nb", 3, HOSTILE)
    assert caplog.messages == [f"skipped a\\nb, 3 of {SEEN}"]
