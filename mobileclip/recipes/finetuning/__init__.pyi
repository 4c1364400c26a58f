from .command import (
    Command as Command,
    finetune_and_report as finetune_and_report,
    run_recipe as run_recipe,
)
from .report import (
    summary as summary,
    table as table,
    write_report as write_report,
)
from .scoring import (
    evaluate_task as evaluate_task,
)
from .tiny import (
    TEMPLATE as TEMPLATE,
    World as World,
    shrink as shrink,
    tiny_model as tiny_model,
    write_model as write_model,
    write_new_shapes as write_new_shapes,
    write_old_tasks as write_old_tasks,
    write_shapes as write_shapes,
)
