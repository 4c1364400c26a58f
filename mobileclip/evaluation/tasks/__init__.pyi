from .catalogue import (
    SUITES as SUITES,
    find_task as find_task,
    is_data_set as is_data_set,
    suite_tasks as suite_tasks,
)
from .linear_probe import split_folders as split_folders
from .task import (
    Evaluation as Evaluation,
    FoundTask as FoundTask,
    Task as Task,
    TaskEntry as TaskEntry,
    TaskOptions as TaskOptions,
    evaluation_tasks as evaluation_tasks,
)
