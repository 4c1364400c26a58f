"""Pictures of figures hide nothing: axes say what they are, legends cover no line, what is compared has one scale."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.latency_plot import accuracies, draw_accuracy, kept as kept_latencies
from studies.learning_efficiency.page import DOCS, kept
from studies.learning_efficiency.picture import panels
from studies.learning_efficiency.spec import EfficiencySpec
from mobileclip.charts import write_chart
from mobileclip.evaluation.report import LIGHT, draw_latency, latency_panels, published_model, to_png
from mobileclip.recipes.finetuning import write_report
from mobileclip.training import MetricLog, plot_curves
from mobileclip.training.finetuning import Results, Score, Scores
from tests.kept_results import latency_table

ROOT = Path(__file__).parents[1]
# Every file that draws with matplotlib, and what of it is drawn here; a sheet of pictures has no axes.
DRAWING = {
    "benchmarks/latency_plot.py": "latency",
    "examples/quickstart/sheet.py": "",
    "mobileclip/charts.py": "efficiency curves tradeoff",
    "mobileclip/evaluation/report/figures.py": "",
    "mobileclip/evaluation/report/labels.py": "",
    "mobileclip/evaluation/report/plots.py": "report",
    "mobileclip/evaluation/report/write.py": "",
}


def efficiency(path):
    spec = EfficiencySpec()
    write_chart(panels(spec, kept(DOCS, spec)[0]), path)


def curves(path):
    log = MetricLog(path.with_suffix(".jsonl"))
    for step in range(1, 4):
        log.write(step, {"loss": 1.0, "contrastive": 5 / step, "logit_scale": 14.0, "learning_rate": 1e-3})
    plot_curves({"one": log.path, "two": log.path}, path)


def tradeoff(path):
    def scores(alpha, right):
        hits = (True,) * right + (False,) * (20 - right)
        new, old = (Score(task=task, metric="top-1", value=5.0 * right, num_images=20, hits=hits) for task in "no")
        return Scores(alpha=alpha, new=new, old=(old,))

    rows = tuple(scores(alpha, right) for alpha, right in ((0.0, 3), (0.5, 9), (1.0, 15)))
    write_report(path.parent, Results(rows=rows, seconds=1.0))
    (path.parent / "tradeoff.png").rename(path)


def latency(path):
    path.write_bytes(to_png(draw_accuracy(kept_latencies().rows, title="", theme=LIGHT)))


def report(path):
    (panel,) = latency_panels([published_model(name) for name in ("mobileclip_s0", "mobileclip_s2", "mobileclip2_b")])
    path.write_bytes(to_png(draw_latency(panel, LIGHT)))


DRAWN = (efficiency, curves, tradeoff, latency, report)


def drawn(draw, path, monkeypatch):
    """Return the axes of what is drawn, after it was laid out."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda one, *args, **more: (figures.append(one), save(one, *args, **more)))
    draw(path)
    (figure,) = figures
    figure.canvas.draw()
    return [axes for axes in figure.axes if axes.axison]


@pytest.mark.parametrize("draw", DRAWN, ids=lambda one: one.__name__)
def test_axes_are_named_legends_lie_outside_and_what_is_compared_has_one_scale(draw, tmp_path, monkeypatch):
    axes = drawn(draw, tmp_path / "figure.png", monkeypatch)
    assert axes
    assert all(one.get_xlabel() and one.get_ylabel() for one in axes)
    for one in axes:
        if (legend := one.get_legend()) is not None:
            box, page = legend.get_window_extent(), one.figure.bbox
            assert not box.overlaps(one.bbox), "it covers lines"
            assert not box.overlaps(one.xaxis.label.get_window_extent()), "it covers the label"
            inside = (
                page.x0 <= box.x0,
                box.x1 <= page.x1,
                page.y0 - 10 <= box.y0,
            )  # letters are measured at another resolution than the file's
            assert all(inside), "it leaves the picture"
        elif len({line.get_label() for line in one.lines if not line.get_label().startswith("_")}) > 1:
            assert any(other.get_legend() for other in axes), "nobody says which line is which"
    for first, second in pairwise(sorted(axes, key=lambda one: one.get_ylabel())):
        if first.get_ylabel() == second.get_ylabel():
            assert first.get_ylim() == second.get_ylim()
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width > 300


def test_every_program_that_draws_is_known():
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("mobileclip", "benchmarks", "examples", "docs")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"from matplotlib|import matplotlib|new_figure\(", path.read_text(encoding="utf-8"))
    }
    assert found == {*DRAWING}
    assert {name for names in DRAWING.values() for name in names.split()} == {one.__name__ for one in DRAWN}


def test_the_picture_of_latency_has_the_release_in_each_runtime_and_the_figures_of_its_page():
    found = accuracies(kept_latencies().rows)
    assert {f"release_{way}" for way in ("openvino", "openvino_bf16")} | {"release"} <= {*found}
    titles, rows = latency_table()
    cells = {label: dict(zip(titles[1:], map(float, figures), strict=True)) for label, *figures in rows}
    for name, time, _, (low, high) in found["release"]:
        assert low <= time <= high
        both = [cells[f"{name}, {inputs}"] for inputs in ("image", "text")]
        assert sum(one["the release, ms"] for one in both) == pytest.approx(time, rel=0.01)
        for title, way in (("OpenVINO", "openvino"), ("OpenVINO bfloat16", "openvino_bf16")):
            ours, release = ({model: ms for model, ms, *_ in found[one]}[name] for one in (way, f"release_{way}"))
            own = [one["the release, ms"] * one[title] for one in both]
            paired = [ms / one[f"same runtime: {title}"] for ms, one in zip(own, both, strict=True)]
            # Medians of ratios are not the ratios of medians.
            assert sum(own) == pytest.approx(ours, rel=0.04)
            assert sum(paired) == pytest.approx(release, rel=0.04)


def test_a_tradeoff_has_its_intervals(tmp_path, monkeypatch):
    (axes,) = drawn(tradeoff, tmp_path / "figure.png", monkeypatch)
    assert len(axes.containers) == 1
    assert axes.containers[0].has_yerr
