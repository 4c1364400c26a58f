"""What README and page tell of the quickstart follows from the page's table."""

import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOP5 = 3


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table(page):
    """Pictures of each part, and top-5 by part and row."""
    pictures, scores, part = {}, {}, ""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 6 or not re.match(r"[\d.]+", cells[TOP5]):
            continue
        if cells[0]:
            part, number = re.fullmatch(r"(\w+): (\d+) pictures, .*", cells[0]).groups()
            pictures[part] = int(number)
        scores[part, cells[1]] = float(cells[TOP5].partition(" ")[0])
    return pictures, scores


def binomial(number, *shares):
    return 100 * math.sqrt(sum(share / 100 * (1 - share / 100) for share in shares) / number)


def test_sums_and_errors_follow_from_the_table(page, table):
    pictures, scores = table
    assert len(pictures) == 3
    captions, teachers = (
        sum(scores[part, row] * number for part, number in pictures.items()) / sum(pictures.values())
        for row in ("+ synthetic captions", "+ teachers: reinforced")
    )
    text = " ".join(page.split())
    assert f"top-5 is {captions:.1f} % with captions and {teachers:.1f} % with teachers" in text
    # No more than those that are in two parts are counted twice.
    twice = sum(
        map(int, re.search(r"(\d+) of the drawings, (\d+) of the style and (\d+) of the concepts", text).groups())
    )
    error = binomial(sum(pictures.values()) - twice, captions, teachers)
    assert f": {teachers - captions:+.1f} points, with an error of up to {error:.1f}." in text
    assert teachers - captions < 1.96 * error
    drawings = [scores["drawings", row] for row in ("+ synthetic captions", "+ teachers: reinforced")]
    assert f"pictures make an error of up to {binomial(pictures['drawings'], *drawings):.1f} points" in text


def test_the_readme_tells_what_the_table_says(table):
    pictures, scores = table
    plain, captions, reinforced = (
        f"{scores['drawings', row]:.0f}" for row in ("plain CLIP", "+ synthetic captions", "+ teachers: reinforced")
    )
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"**Reinforced top-5 of {reinforced} %**, {pictures['drawings']} unseen drawings" in text
    assert f"{captions} % with synthetic captions, {plain} % plain | what its teachers add is [not significant]" in text
