"""Pictures in half blocks: the upper pixel is the letter's colour, the lower one that of the paper."""

import io
import re
import sys

import pytest
from PIL import Image

from mobileclip.terminal import can_show_images, show_images

CELL = re.compile(r"\x1b\[38;2;(\d+;\d+;\d+)(?:;48;2;(\d+;\d+;\d+))?m▀")
RED, GREEN, BLUE, GREY = "255;0;0", "0;128;0", "0;0;255", "128;128;128"


@pytest.fixture
def colours(monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("COLORTERM", "truecolor"), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)


def picture(*rows):
    image = Image.new("RGB", (len(rows[0]), len(rows)))
    image.putdata([tuple(map(int, colour.split(";"))) for row in rows for colour in row])
    return image


@pytest.mark.parametrize(
    ("rows", "cells"),
    [
        ([[RED, GREEN], [BLUE, GREY], [GREY, RED]], [[(RED, BLUE), (GREEN, GREY)], [(GREY, ""), (RED, "")]]),
        ([[RED], [BLUE], [GREY], [GREEN]], [[(RED, BLUE)], [(GREY, GREEN)]]),
    ],
)
def test_a_cell_shows_two_pixels_and_the_last_row_of_an_odd_height_one(colours, capsys, rows, cells):
    show_images([(picture(*rows), "a drawing")])
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert [CELL.findall(line) for line in lines] == cells
    assert lines[0].endswith("a drawing")
    assert re.sub(r"\x1b\[[\d;]*m", "", lines[1]).strip() == "▀" * len(rows[0])


def test_a_picture_that_is_not_there_leaves_its_text_and_a_long_text_goes_on_in_the_next_line(capsys, monkeypatch):
    show_images([(None, "gone"), (picture([RED]), "here")])
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["gone", "", "▀  here"]
    monkeypatch.setenv("COLUMNS", "40")
    show_images([(picture([RED]), "x" * 60)])
    lines = [line.strip("▀ ") for line in capsys.readouterr().out.splitlines()]
    assert ("".join(lines), len(lines[0]) > 30) == ("x" * 60, True)


def test_pictures_need_a_terminal_with_colours_and_half_blocks(colours, monkeypatch):
    assert can_show_images()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert not can_show_images()
    monkeypatch.undo()
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert not can_show_images()
