from .comparison import compare_runs as compare_runs
from .metrics import MetricLog as MetricLog, last_metrics as last_metrics, read_metrics as read_metrics
from .plots import plot_curves as plot_curves
from .skipped import FOLDER as FOLDER, SkippedFolder as SkippedFolder
