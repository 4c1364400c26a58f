from .published import (
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
