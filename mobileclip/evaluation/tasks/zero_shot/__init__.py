"""Zero-shot classification and retrieval on a data set, with the published metrics.

What holds for any data set with labels or captions belongs here; a benchmark with rules of its own has
a place beside this package.
"""

from mobileclip.evaluation.tasks.zero_shot.evaluate import (
    ZeroShotTask as ZeroShotTask,
    evaluate_benchmark as evaluate_benchmark,
    open_zero_shot as open_zero_shot,
)
from mobileclip.evaluation.tasks.zero_shot.scoring import require_metric as require_metric, score as score
