"""Pictures of figures hide nothing: axes say what they are, legends cover no line, what is compared has one scale."""

from itertools import pairwise

import pytest
from PIL import Image

from mobileclip.evaluation.report import draw_latency, latency_panels
from mobileclip.evaluation.results import published_model
from mobileclip.recipes.finetuning import write_report
from mobileclip.training import MetricLog, plot_curves
from mobileclip.training.finetuning.run import Results, Score, Scores


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


def report(path):
    (panel,) = latency_panels([published_model(name) for name in ("mobileclip_s0", "mobileclip_s2", "mobileclip2_b")])
    draw_latency(panel, path)


DRAWN = (curves, tradeoff, report)


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
    figure, page = axes[0].figure, axes[0].figure.bbox
    labels = {line.get_label() for one in axes for line in one.lines if not line.get_label().startswith("_")}
    assert len(figure.legends) == (len(labels) > 1), "one legend says which line is which"
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert {text.get_text() for text in legend.get_texts()} == labels
        assert page.x0 <= box.x0 < box.x1 <= page.x1, "it leaves the picture"
        assert page.y0 - 10 <= box.y0, "it leaves the picture"  # letters are measured at another resolution
        for one in axes:
            assert not box.overlaps(one.bbox), "it covers lines"
            assert not box.overlaps(one.xaxis.label.get_window_extent()), "it covers the label"
    for one in axes:
        lines = [line for line in one.lines if line.get_label() in labels]
        drawn_as = {line.get_label(): (line.get_color(), line.get_marker()) for line in lines}
        assert len(set(drawn_as.values())) == len(drawn_as), "two lines look alike"
        assert one.get_title() or len(axes) > 1, "the finding is not told"
    for first, second in pairwise(sorted(axes, key=lambda one: one.get_ylabel())):
        if first.get_ylabel() == second.get_ylabel():
            assert first.get_ylim() == second.get_ylim()
    if draw is tradeoff:
        (intervals,) = axes[0].containers
        assert intervals.has_yerr
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width > 300
