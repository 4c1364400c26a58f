from .report import (
    summary as summary,
    table as table,
    write_report as write_report,
)
from .scoring import (
    evaluate_task as evaluate_task,
)
