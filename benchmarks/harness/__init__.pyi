from . import memory as memory
from .apart import LostProcessError as LostProcessError, in_own_process as in_own_process
from .clock import (
    Seconds as Seconds,
    clocked as clocked,
    in_turn as in_turn,
    peak as peak,
    ratio as ratio,
    rounds_of as rounds_of,
    seconds_of as seconds_of,
    spread as spread,
    start_peak as start_peak,
)
from .results import (
    Machine as Machine,
    Results as Results,
    Row as Row,
    Value as Value,
    read_results as read_results,
    text as text,
    write_results as write_results,
)
from .runner import Bench as Bench, Case as Case, Measure as Measure, require as require, run as run
from .table import markdown as markdown
