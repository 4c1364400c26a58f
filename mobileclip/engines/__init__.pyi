from .base import Engine as Engine, default_num_threads as default_num_threads
from .heartbeat import Heart as Heart
from .in_order import InOrder as InOrder
from .inline import InlineEngine as InlineEngine
from .local import LocalEngine as LocalEngine
from .queue import Listener as Listener, Retries as Retries
from .ray import RayEngine as RayEngine
from .run import Run as Run, held as held
from .set_aside import (
    SET_ASIDE as SET_ASIDE,
    SetAside as SetAside,
    read_set_aside as read_set_aside,
    write_set_aside as write_set_aside,
)
from .status import RUN as RUN, Status as Status, read_status as read_status
from .work import (
    FatalError as FatalError,
    FunctionWork as FunctionWork,
    NamedUnit as NamedUnit,
    OnProgress as OnProgress,
    Place as Place,
    Work as Work,
    Worker as Worker,
    fatal_of as fatal_of,
    reason_of as reason_of,
)
