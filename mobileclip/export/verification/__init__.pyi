from .measured import Measured as Measured, measure_model as measure_model, towers_of as towers_of
from .parity import (
    LEAST_SPREAD as LEAST_SPREAD,
    MOST_LENGTH_ERROR as MOST_LENGTH_ERROR,
    Gate as Gate,
    Ranking as Ranking,
    Report as Report,
    TowerParity as TowerParity,
    compare_rankings as compare_rankings,
    compare_tower as compare_tower,
    gates_of as gates_of,
)
from .verify import (
    check_lengths as check_lengths,
    check_resizing as check_resizing,
    read_report as read_report,
    report_of_none as report_of_none,
    report_on as report_on,
    verify_export as verify_export,
)
