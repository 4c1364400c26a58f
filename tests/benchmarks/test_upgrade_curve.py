"""The page has what the kept lines of the benchmark of upgrades say."""

from pathlib import Path

from benchmarks.upgrade_curve import draw, read, table

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_has_the_table_of_the_kept_lines(tmp_path):
    page = (DOCS / "lab" / "search.md").read_text(encoding="utf-8").splitlines()
    lines = table(read(DOCS / "upgrade.jsonl"))
    assert len(lines) > 10
    assert [line for line in lines if line not in page] == []
    draw(DOCS / "upgrade.jsonl", tmp_path / "upgrade.png")
    assert (tmp_path / "upgrade.png").read_bytes()[:4] == b"\x89PNG"
