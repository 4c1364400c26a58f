"""The rank of this process in a run started by `torchrun` or SLURM's `srun`, and the number of available cores.

All code gets ranks and the number of cores from this module, so that data, training and messages agree.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections.abc import Mapping

import attrs

# One node or range of nodes in a list, including commas in brackets.
_FIRST_OF_LIST = re.compile(r"(?:[^,\[\]]|\[[^\[\]]+\])+")
_BRACKETS = re.compile(r"\[([^\[\]]+)\]")
# Below the ports that systems assign automatically, above the ports of services.
_FIRST_PORT, _NUM_PORTS = 10_000, 20_000
_MOST_WORKERS = 16


@attrs.frozen(kw_only=True)
class DistributedInfo:
    """The position of a process among the processes of its run.

    Args:
        rank: rank of the process in the run, from 0.
        size: number of processes in the run.
        local_rank: rank of the process on its machine, from 0.
        init_method: rendezvous URL of the processes, such as `tcp://node003:12345`; None if the launcher's environment
            variables define it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    init_method: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints for all processes."""
        return self.rank == 0


def portable_error(error: Exception) -> Exception:
    """Return an error that can be pickled: the error itself, or a `RuntimeError` with its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - bytes of this process
    except Exception:  # noqa: BLE001 - an error's own class may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def this_process() -> DistributedInfo:
    """Return the position of this process, from torchrun's variables, a joined process group, or SLURM's variables.

    torchrun's variables take precedence over a process group, and a process group over SLURM's variables. SLURM's
    variables count only in a step of `srun`, since a batch script itself is one process.

    Raises:
        ValueError: if a variable of the launcher is not a number, or SLURM's list of nodes is invalid.

    Examples:
        >>> this_process().size
        1
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return DistributedInfo(
            rank=_number(os.environ, "RANK", "0"),
            size=_number(os.environ, "WORLD_SIZE", "1"),
            local_rank=_number(os.environ, "LOCAL_RANK", "0"),
        )
    # Code that joined a group has imported torch.distributed; an import here would cost every command a second.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return DistributedInfo(rank=distributed.get_rank(), size=distributed.get_world_size())
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        return _of_slurm(os.environ)
    return DistributedInfo()


def num_cores() -> int:
    """Return the number of cores that this process may use; `taskset`, SLURM and containers can limit it.

    Examples:
        >>> 1 <= num_cores() <= os.cpu_count()
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers(given: int | None) -> int:
    """Return the number of worker processes: `given`, or by default one per core, at most sixteen."""
    return min(_MOST_WORKERS, num_cores()) if given is None else given


def first_host(nodes: str) -> str:
    """Return the first host in SLURM's list of nodes.

    Args:
        nodes: list of nodes, such as `node[003-007,009],other12`.

    Raises:
        ValueError: if `nodes` is not a list in SLURM's notation.

    Examples:
        >>> first_host("node[003-007,009],other12")
        'node003'
    """
    found = _FIRST_OF_LIST.match(nodes)
    host = "" if found is None else _BRACKETS.sub(lambda ranges: re.split("[-,]", ranges[1])[0], found[0])
    if not host or (found is not None and nodes[found.end() :][:1] not in ("", ",")):
        raise ValueError(f"SLURM_STEP_NODELIST is {nodes!r}; expected a list of nodes such as node[003-007,009]")
    return host


def _of_slurm(variables: Mapping[str, str]) -> DistributedInfo:
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in variables else "SLURM_NTASKS"
    host = variables.get("MASTER_ADDR") or first_host(variables["SLURM_STEP_NODELIST"])
    # All processes of a step derive the same port, and two steps of a job derive different ports.
    derived = _number(variables, "SLURM_JOB_ID", "0") + 7919 * _number(variables, "SLURM_STEP_ID", "0")
    port = _number(variables, "MASTER_PORT", f"{_FIRST_PORT + derived % _NUM_PORTS}")
    return DistributedInfo(
        rank=_number(variables, "SLURM_PROCID", "0"),
        size=_number(variables, count, "1"),
        local_rank=_number(variables, "SLURM_LOCALID", "0"),
        init_method=f"tcp://{host}:{port}",
    )


def _number(variables: Mapping[str, str], name: str, missing: str) -> int:
    text = variables.get(name, missing)
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise ValueError(f"{name} is {text!r}; expected an integer, as set by torchrun or srun")
    return int(text)
