"""The evaluation recipe: what it is told, and the whole path in small."""

import pytest

from mobileclip.evaluation import read_results
from tests.errors import fails
from tests.recipes.running import run_named


def test_errors_are_for_people(tmp_path):
    with fails(SystemExit, "vtab/dtd", "wds_vtab-dtd_test"):
        run_named("evaluate", "mobileclip_s0", "--data", tmp_path, "--datasets", "vtab/dtd")


@pytest.mark.slow
def test_tiny(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_named("evaluate", "--tiny", "--report", "--compare-published", "mobileclip_s1")
    (path,) = (tmp_path / "outputs" / "evaluate-tiny").glob("icons-*/results.jsonl")
    results = read_results(path)
    assert set(results) == {"scenes"}
    printed = capsys.readouterr().out
    for result in results.values():
        assert result.num_images == 48
        assert f"{100 * result.main_metric:.1f}" in printed
    assert (tmp_path / "outputs" / "evaluate-tiny" / "report.html").stat().st_size > 50_000
    before = path.read_bytes()
    run_named("evaluate", "--tiny")
    assert path.read_bytes() == before
