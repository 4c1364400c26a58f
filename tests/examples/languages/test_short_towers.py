"""Short text towers: each row is trained once, measured, and a line of the table."""

from examples.languages import short_towers
from examples.languages.short_towers import ShortTowersSpec, make, read
from tests.examples.icons.packages import FEW, write_icon_packages


def test_towers_are_trained_once_and_measured(tmp_path, monkeypatch):
    first, *_, last = short_towers.ROWS
    monkeypatch.setattr(short_towers, "ROWS", {row: short_towers.ROWS[row] for row in (first, last)})
    write_icon_packages(tmp_path / "icons" / "download" / "node_modules", FEW.sets)
    spec = ShortTowersSpec(output=tmp_path, icons=FEW, steps=60, num_seeds=1)
    lines = make(spec).read_text().splitlines()
    teacher, short, whole = read(tmp_path / "results.jsonl")
    assert (teacher.seed, short.row, whole.row) == (None, first, last)
    assert short.parameters < whole.parameters < teacher.parameters
    assert all(0 < one.recall <= 100 for one in (teacher, short, whole))
    assert len(lines) == 5
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/model.safetensors")}
    assert make(spec).read_text().splitlines() == lines
    assert len(before) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
