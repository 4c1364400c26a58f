"""Which process of a run this is, alone or one of those that `torchrun` or SLURM's `srun` has started; and its cores.

Whatever asks for a rank or for the number of cores asks here, so that data, training and what is printed agree.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections.abc import Mapping

import attrs

# One node or range of nodes of a list: commas in brackets belong to it.
_FIRST_OF_LIST = re.compile(r"(?:[^,\[\]]|\[[^\[\]]+\])+")
_BRACKETS = re.compile(r"\[([^\[\]]+)\]")
# Below what systems hand out by themselves, above what services listen to.
_FIRST_PORT, _NUM_PORTS = 10_000, 20_000
_MOST_WORKERS = 16


@attrs.frozen(kw_only=True)
class ProcessPlace:
    """The place of a process among those of its run.

    Args:
        rank: its number in the run, from 0.
        size: number of processes of the run.
        local_rank: its number on its machine, from 0.
        meeting: URL where the processes meet, such as `tcp://node003:12345`; None where the launcher's own
            variables say it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    meeting: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all of them."""
        return self.rank == 0


def portable_error(error: Exception) -> Exception:
    """Return an error as another process can read it: one that is made of other arguments than it keeps, as a text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what was written here
    except Exception:  # noqa: BLE001 - of an error's own class
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def this_process() -> ProcessPlace:
    """Return the place of this process: torchrun's variables come first, then a group that it has joined, then SLURM's.

    SLURM's count within a step alone, as `srun` starts one: a batch script itself is one process.

    Raises:
        ValueError: if a variable of the launcher says something else than a number, or SLURM's list of nodes is none.

    Examples:
        >>> this_process().size
        1
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return ProcessPlace(
            rank=_number(os.environ, "RANK", "0"),
            size=_number(os.environ, "WORLD_SIZE", "1"),
            local_rank=_number(os.environ, "LOCAL_RANK", "0"),
        )
    # Whoever has joined a group has imported it; importing it here would cost every command a second.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return ProcessPlace(rank=distributed.get_rank(), size=distributed.get_world_size())
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        return _of_slurm(os.environ)
    return ProcessPlace()


def num_cores() -> int:
    """Return how many cores this process may use: `taskset`, SLURM and containers with pinned cores give a part of all.

    Examples:
        >>> 1 <= num_cores() <= os.cpu_count()
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers(given: int | None) -> int:
    """Return the number of worker processes: the one given, or by default one per core, at most sixteen."""
    return min(_MOST_WORKERS, num_cores()) if given is None else given


def first_host(nodes: str) -> str:
    """Return the first host of SLURM's list of nodes.

    Args:
        nodes: such as `node[003-007,009],other12`.

    Raises:
        ValueError: if it is no such list.

    Examples:
        >>> first_host("node[003-007,009],other12")
        'node003'
    """
    found = _FIRST_OF_LIST.match(nodes)
    host = "" if found is None else _BRACKETS.sub(lambda ranges: re.split("[-,]", ranges[1])[0], found[0])
    if not host or (found is not None and nodes[found.end() :][:1] not in ("", ",")):
        raise ValueError(f"SLURM_STEP_NODELIST is {nodes!r}; expected a list of nodes such as node[003-007,009]")
    return host


def _of_slurm(variables: Mapping[str, str]) -> ProcessPlace:
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in variables else "SLURM_NTASKS"
    host = variables.get("MASTER_ADDR") or first_host(variables["SLURM_STEP_NODELIST"])
    # Every process finds the same port by itself, and two steps of one job find two.
    derived = _number(variables, "SLURM_JOB_ID", "0") + 7919 * _number(variables, "SLURM_STEP_ID", "0")
    port = _number(variables, "MASTER_PORT", f"{_FIRST_PORT + derived % _NUM_PORTS}")
    return ProcessPlace(
        rank=_number(variables, "SLURM_PROCID", "0"),
        size=_number(variables, count, "1"),
        local_rank=_number(variables, "SLURM_LOCALID", "0"),
        meeting=f"tcp://{host}:{port}",
    )


def _number(variables: Mapping[str, str], name: str, missing: str) -> int:
    text = variables.get(name, missing)
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise ValueError(f"{name} is {text!r}; expected a whole number, as torchrun or srun sets it")
    return int(text)
