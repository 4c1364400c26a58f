from .published import (
    TextCost as TextCost,
    student_run as student_run,
    text_cost as text_cost,
    text_run as text_run,
)
from .run import (
    distil as distil,
)
from .spec import (
    DistilSpec as DistilSpec,
    Kind as Kind,
)
from .teacher import (
    OpenedTeacher as OpenedTeacher,
    open_teacher as open_teacher,
)
