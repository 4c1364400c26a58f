import pytest
from tyro.conf import Positional

from mobileclip.cli import COMMANDS, Commands
from mobileclip.terminal import PROGRAMS, format_help, paragraphs, parse

WIDTH = 72


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def named(commands, *before):
    for name, one in commands.members.items():
        yield from named(one, *before, name) if isinstance(one, Commands) else [(*before, name)]


@pytest.mark.parametrize("arguments", [*named(COMMANDS)], ids=" ".join)
def test_a_description_fits_the_terminal(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        COMMANDS.run("mobileclip", [*arguments, "--help"])
    assert not stopped.value.code
    description = capsys.readouterr().out.partition("usage: ")[0]
    too_wide = [line for line in description.splitlines() if len(line) > WIDTH]
    assert all(line.strip().startswith(PROGRAMS) for line in too_wide)


def test_an_argument_is_told_in_whole_lines(capsys):
    def greet(*, name: str = "you", often: int | None = None):
        """Greet.

        Args:
            name: of the person, which is said
                aloud.
            often: how many times.
        """

    with pytest.raises(SystemExit):
        parse(greet, ["--help"], description="Greet.")
    out = capsys.readouterr().out
    assert "of the person, which is said aloud. (default: you)" in out
    assert "how many times.  " in out
    assert "None)" not in out


def test_a_readable_command_is_called_with_what_was_typed():
    def add(first: Positional[int], /, *, others: tuple[int, ...] = (), by: int = 1):
        """Add."""
        return first + sum(others) + by

    assert parse(add, ["1", "--others", "2", "3", "--by", "4"], description="") == 10


def test_commands_stay_lines_and_prose_is_filled():
    text = "Some\nprose.\n\npython a.py --data b\n  --more c\ntorchrun d.py"
    assert paragraphs(text) == "Some prose.\n\n  python a.py --data b --more c\n  torchrun d.py"


def test_further_lines_stand_below_the_text_and_are_short_on_a_wide_terminal(monkeypatch):
    told = format_help("word " * 30, heading="Time:  ")
    first, *rest = told.splitlines()
    assert first.startswith("Time:  word")
    assert rest
    assert all(line.startswith("       word") and len(line) <= WIDTH for line in rest)
    monkeypatch.setenv("COLUMNS", "300")
    assert max(map(len, format_help("word " * 200).splitlines())) <= 120
