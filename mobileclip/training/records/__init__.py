"""What a run leaves for people: metrics, curves, runs side by side, and skipped samples.

What a run needs to go on belongs in `checkpoints`.
"""

from mobileclip.training.records.comparison import compare_runs as compare_runs
from mobileclip.training.records.metrics import (
    MetricLog as MetricLog,
    last_metrics as last_metrics,
    read_metrics as read_metrics,
)
from mobileclip.training.records.plots import plot_curves as plot_curves
from mobileclip.training.records.skipped import FOLDER as FOLDER, SkippedFolder as SkippedFolder
