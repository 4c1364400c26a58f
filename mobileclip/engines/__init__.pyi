from .local import LocalEngine as LocalEngine
from .pool import (
    Engine as Engine,
    InlineEngine as InlineEngine,
    OrderedResults as OrderedResults,
    default_num_threads as default_num_threads,
)
from .ray import RayEngine as RayEngine
from .run import (
    RUN as RUN,
    SET_ASIDE as SET_ASIDE,
    Run as Run,
    Status as Status,
    held as held,
    read_set_aside as read_set_aside,
    read_status as read_status,
    write_set_aside as write_set_aside,
)
from .units import (
    FatalError as FatalError,
    FunctionWork as FunctionWork,
    Listener as Listener,
    NamedUnit as NamedUnit,
    OnProgress as OnProgress,
    ResultCallback as ResultCallback,
    Retries as Retries,
    SetAside as SetAside,
    Work as Work,
    Worker as Worker,
    WorkerResources as WorkerResources,
    fatal_of as fatal_of,
    reason_of as reason_of,
)
