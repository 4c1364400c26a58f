from .report import (
    Results as Results,
    Scores as Scores,
    summary as summary,
    table as table,
    write_report as write_report,
)
from .scoring import Score as Score, evaluate_task as evaluate_task
from .steps import Steps as Steps
from .tasks import (
    Task as Task,
    TrainingData as TrainingData,
    open_task as open_task,
    read_index as read_index,
    split as split,
    write_training_data as write_training_data,
)
