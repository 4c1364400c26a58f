"""The quickstart's results: how they are told, and when they are kept."""

import attrs
import pytest

from examples.quickstart.__main__ import quickstart
from examples.quickstart.evaluate import Scores
from examples.quickstart.report import COLUMNS, Results, _differences, print_results
from examples.quickstart.run import run
from mobileclip.serialization import from_json, to_json


def results():
    scores = Scores(top1=1.0, top5=2.0, text_to_image=3.0, image_to_text=4.0)
    other = attrs.evolve(scores, top1=3.0)
    return Results(
        scores={
            "plain": [{"test": scores}, {"test": other}],
            "captions": [{"test": scores}, {"test": scores}],
            "reinforced": [{"test": other}, {"test": attrs.evolve(scores, top1=7.0)}],
            "teachers": [{"test": scores}],
        },
        titles={"test": "unseen"},
        num_images={"train": 9, "test": 5},
        num_classes={"test": 3},
        seconds={"data": 1.0},
        seconds_per_step={"plain": 0.1234, "captions": 0.2, "reinforced": 0.3},
    )


def test_repeated_seeds_are_told_with_their_spread(capsys):
    print_results(results())
    printed = " ".join(capsys.readouterr().out.split())
    assert "2.0 ± 1.4" in printed
    assert "0.123" in printed
    assert "Unseen: 5 pictures, 3 concepts" in printed
    assert set(COLUMNS) == {field.name for field in attrs.fields(Scores)}


def test_differences_are_told_seed_by_seed():
    table = {row[0]: row[1] for row in _differences(results(), "test")}
    # 3 - 1 and 7 - 3: the spread of the difference, not of what is compared.
    assert table["reinforced - plain"] == "+3.0 ± 1.4"
    assert table["captions - plain"] == "-1.0 ± 1.4"


def test_a_finished_run_says_so_and_is_not_repeated(tmp_path, capsys):
    spec = attrs.evolve(quickstart(), output=tmp_path)
    (tmp_path / "spec.json").write_text(to_json(spec, indent=1))
    (tmp_path / "results.json").write_text(to_json(results(), indent=1))
    assert run(spec) == results()
    printed = capsys.readouterr().out
    assert "done already" in printed
    assert f"--index {tmp_path / 'held_out.index'}" in printed
    assert from_json((tmp_path / "results.json").read_text(), Results) == results()


def test_a_folder_of_another_run_is_refused(tmp_path):
    (tmp_path / "spec.json").write_text(to_json(attrs.evolve(quickstart(), output=tmp_path, num_epochs=1), indent=1))
    with pytest.raises(ValueError, match="other choices"):
        run(attrs.evolve(quickstart(), output=tmp_path))
