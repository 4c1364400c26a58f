"""Pages, help and docstrings use the words of the field: a reader should not have to learn this project's own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What is not the field's word, and what to write. Space on a disk and addresses of the internet have their usual names.
WORDS = {
    r"(?<!public )address(?:es)?(?! of the internet| that is not public|:)": "URL",
    r"(?<!make )(?<!no )(?<!has )(?<!have )(?<!or )(?<!is )rooms?(?! for| left| is left)": "package, module",
    r"whoever": "anyone who; the caller, the author",
    r"soonest": "fastest",
    r"graphics units?": "GPU",
    r"neural units?": "NPU",
    r"fewer bits": "lower precision",
}
# Of pages alone: blocks have gates, and tokenizers pieces of words.
WORDS_OF_PAGES = WORDS | {
    r"gates?": "acceptance check",
    r"pieces": "micro-batches; subwords; parts",
    r"processor time": "CPU time",
    r"computes? activations again|activations are computed again": "recompute; activation checkpointing",
}
OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/README.md"), *map(ROOT.joinpath, OUTSIDE)])
    if "node_modules" not in path.parts
}
# Written by the program.
GENERATED = {"docs/flags.md", "docs/map.md"}
# In words of prose and tables, without code and what the program writes. Details belong to docs/lab.
LONGEST, ALL = 500, 21_500
LONGER = {
    "CONTRIBUTING.md": 600,
    "docs/architecture.md": 550,
    "docs/evaluation.md": 600,
    "docs/export.md": 640,
    "docs/finding.md": 700,
    "docs/formats.md": 700,
    "docs/icons.md": 540,
    "docs/indexes.md": 580,
    "docs/latency.md": 1100,
    "docs/learning_efficiency.md": 900,
    "docs/precision.md": 850,
    "docs/quantize.md": 500,
    "docs/reinforcing.md": 700,
    "docs/roofline.md": 600,
    "docs/search.md": 1200,
    "docs/training.md": 900,
    "docs/troubleshooting.md": 530,
}
# Pages that have such words still.
PENDING = {"docs/latency.md", "docs/measured.md"}


def found(text: str, words: dict[str, str]) -> list[str]:
    """Return the words that a text uses beside its code, with what to write."""
    prose = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", " ` ", text, flags=re.DOTALL)
    return [
        f"{match[0]!r}: write {better}"
        for word, better in words.items()
        for match in re.finditer(rf"\b(?:{word})\b", prose, re.IGNORECASE)
    ]


@pytest.mark.parametrize("page", sorted({*PAGES} - PENDING))
def test_a_page_uses_the_words_of_the_field(page):
    assert found(PAGES[page], WORDS_OF_PAGES) == []


def length(text: str) -> int:
    """Return the words of a page, without code and without what the program writes."""
    blocks = r"<!-- (?:written by|table:|roofline).*?<!-- (?:end|/)[^>]*-->"
    prose = re.sub(rf"^```.*?^```|{blocks}|<!--.*?-->|\]\([^)]*\)", " ", text, flags=re.DOTALL | re.MULTILINE)
    return len(re.findall(r"[^\s|]*\w[^\s|]*", prose))


@pytest.mark.parametrize("page", sorted({*PAGES} - GENERATED))
def test_a_page_keeps_its_length(page):
    assert length(PAGES[page]) <= LONGER.get(page, LONGEST)


def test_all_pages_together_keep_their_length():
    assert {*LONGER} <= {*PAGES}
    assert sum(length(text) for page, text in PAGES.items() if page not in GENERATED) <= ALL
    written = "<!-- written by python -m tests.pages: x -->\n| six | seven |\n<!-- end -->"
    assert length(f"One [two](three.md)\n```\nfour\n```\n| `five` | - |\n{written}") == 3


def test_public_docstrings_use_the_words_of_the_field():
    wrong = []
    for path in sorted((ROOT / "mobileclip").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            name = getattr(node, "name", "")
            if not name.startswith("_"):
                said = found(ast.get_docstring(node) or "", WORDS)
                wrong += [f"{path.relative_to(ROOT)}: {name}: {one}" for one in said]
    assert wrong == []


def test_words_are_found_beside_code_alone():
    assert found("The address of a room. Whoever asks", WORDS) == [
        "'address': write URL",
        "'room': write package, module",
        "'Whoever': write anyone who; the caller, the author",
    ]
    text = "`room` and [x](room.md), no room on the disk, a public address, room for two\n```\nrooms\n```"
    assert found(text, WORDS_OF_PAGES) == []
    assert len(found("It passes its gates. Activations are computed again.", WORDS_OF_PAGES)) == 2
