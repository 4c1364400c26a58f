"""Text that came with data can do nothing on a terminal but be read; pictures are shown in half blocks.

The upper pixel of a half block is the letter's colour, the lower one that of the paper.
"""

import io
import itertools
import json
import logging
import re
import sys
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.table import Table

from mobileclip.progress import Progress
from mobileclip.terminal import can_show_images, console, get_logger, print_table, say, say_json, show_images, shown
from tests.errors import told

CELL = re.compile(r"\x1b\[38;2;(\d+;\d+;\d+)(?:;48;2;(\d+;\d+;\d+))?m▀")
RED, GREEN, BLUE, GREY = "255;0;0", "0;128;0", "0;0;255", "128;128;128"
HOSTILE = "x[/nothing] [red]y[/red] :smile: \x1b[2J\rz https://me:secret@host/a?token=secret"
SEEN = "x[/nothing] [red]y[/red] :smile: \\x1b[2J\\rz https://host/a?..."


def test_lines_stay_and_everything_else_is_escaped():
    assert shown(f"one\n{HOSTILE}") == f"one\n{SEEN}"
    assert shown("x" * 10_000) == "x" * 10_000
    assert shown(f"a\n{'x' * 10_001}") == f"a\n{'x' * 10_000}... (10,001 characters)"


def test_what_is_said_shown_by_a_bar_or_logged_is_escaped(capsys, caplog):
    say(HOSTILE)
    say(HOSTILE, error=True)
    with Progress(HOSTILE, total=1, console=console()) as bar:
        bar.advance(detail=HOSTILE)
    out, err = capsys.readouterr()
    said, shown_by_bar = err.splitlines()
    assert (out, said) == (f"{SEEN}\n", SEEN)
    assert shown_by_bar.startswith(f"{SEEN}: 1/1, {SEEN}")
    with caplog.at_level(logging.WARNING):
        get_logger("mobileclip.test").warning("skipped %s, %d of %s", "a\nb", 3, HOSTILE)
    assert caplog.messages == [f"skipped a\\nb, 3 of {SEEN}"]


def test_json_is_whole_for_a_program_and_safe_for_a_terminal(capsys):
    value = {HOSTILE: "\u202e\udcff" + "x" * 20_000}
    say_json(value)
    out = capsys.readouterr().out
    assert (out.isascii(), out[:-1].isprintable(), json.loads(out)) == (True, True, value)


def test_what_a_stream_cannot_encode_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("text → image")
    stream.flush()
    assert stream.buffer.getvalue() == b"text \\u2192 image\n"
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # has no encoding
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


@pytest.fixture
def screen(monkeypatch):
    """Return standard error as a terminal of 80 columns with colours; standard output is one too."""
    terminal = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color", "COLUMNS": "80"}
    for name, value in terminal.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return console()


def test_a_live_bar_takes_no_markup(screen, capsys):
    with Progress("x[/nothing]", total=2, console=screen) as bar:
        bar.advance(2, detail="y[/nothing]")
    told(capsys.readouterr().err, "x[/nothing]", "y[/nothing]")


def test_a_narrow_terminal_shortens_the_bar_and_no_number(screen, capsys, monkeypatch):
    monkeypatch.setattr("mobileclip.progress.time", SimpleNamespace(monotonic=itertools.count(1000.0).__next__))
    with Progress("joining neighbours", total=1_000_000, unit="pictures", console=screen) as bar:
        for _ in range(6):
            bar.advance(4_096)
    said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "24576/1000000" in said
    assert re.search(r"pictures/s, [0-9:]+ left", said)


def picture(*rows):
    image = Image.new("RGB", (len(rows[0]), len(rows)))
    image.putdata([tuple(map(int, colour.split(";"))) for row in rows for colour in row])
    return image


def test_a_cell_shows_two_pixels_and_the_last_row_of_an_odd_height_one(screen, capsys):
    show_images([(picture([RED, GREEN], [BLUE, GREY], [GREY, RED]), "a drawing"), (picture([RED], [BLUE]), "even")])
    lines = capsys.readouterr().out.split("\n")
    cells = [[(RED, BLUE), (GREEN, GREY)], [(GREY, ""), (RED, "")], [], [(RED, BLUE)]]
    assert [CELL.findall(line) for line in lines][:4] == cells
    assert lines[0].rstrip().endswith("a drawing")
    assert re.sub(r"\x1b\[[\d;]*m", "", lines[1]).strip() == "▀▀"


def test_a_picture_that_is_not_there_leaves_its_text_and_a_long_text_goes_on_in_the_next_line(capsys, monkeypatch):
    show_images([(None, "gone"), (picture([RED]), "here")])
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["gone", "", "▀  here"]
    monkeypatch.setenv("COLUMNS", "40")
    show_images([(picture([RED]), "x" * 60)])
    lines = [line.strip("▀ ") for line in capsys.readouterr().out.splitlines()]
    assert ("".join(lines), len(lines[0]) > 30) == ("x" * 60, True)


def test_pictures_need_a_terminal_with_colours_and_half_blocks(screen, monkeypatch):
    assert can_show_images()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert not can_show_images()
    monkeypatch.undo()
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert not can_show_images()
