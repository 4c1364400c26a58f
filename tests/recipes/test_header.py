"""Headers of recipes: title, prose and entries."""

import pytest

from mobileclip.recipes import header_of, read_header, recipe_files
from tests.recipes.choices import runs_of

TEXT = r"""Do one thing
well.

Command:   torchrun --nproc-per-node 8 recipes/x.py \
               --data a.tar
           python recipes/x.py --data b.tar
Hardware:  a GPU; or
           two

Prose in
two lines.

More.
"""


def test_a_header_is_read_and_described():
    header = read_header(TEXT)
    assert header.title == "Do one thing well."
    assert header.prose == ("Prose in two lines.", "More.")
    assert header.entries == {
        "Command": "torchrun --nproc-per-node 8 recipes/x.py --data a.tar\npython recipes/x.py --data b.tar",
        "Hardware": "a GPU; or two",
    }
    title, prose, more, entries = header.description().split("\n\n")
    assert (title, prose, more) == ("Do one thing well.", "Prose in two lines.", "More.")
    assert entries.splitlines() == [
        "Command:   torchrun --nproc-per-node 8 recipes/x.py --data a.tar",
        "           python recipes/x.py --data b.tar",
        "Hardware:  a GPU; or two",
    ]


def test_no_header_is_an_empty_one():
    assert read_header(None).description() == ""


@pytest.mark.parametrize("name", recipe_files())
def test_every_recipe_says_what_it_needs(name):
    header = header_of(recipe_files()[name])
    assert {"Command", "Try it", "Hardware", "Time", "Result", "Source"} == header.entries.keys()
    assert [*header.rows] == [row for one in runs_of(name) if (row := one.partition(" ")[2])]
    assert all(f"recipes/{name}.py" in line for line in header.entries["Command"].splitlines())
