from .evaluate import (
    ZeroShotTask as ZeroShotTask,
    evaluate_benchmark as evaluate_benchmark,
    open_zero_shot as open_zero_shot,
)
from .scoring import (
    require_metric as require_metric,
    score as score,
)
