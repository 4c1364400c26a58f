"""Whether a processor multiplies numbers of 8 bits faster than others."""

from __future__ import annotations

from pathlib import Path

# As Linux names them: of Intel and AMD, and of Arm.
_ABLE = frozenset(("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"))
_NAMES = ("flags", "Features")


def lacks_int8_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether a processor is known to have no products of int8: neither VNNI nor AMX, nor Arm's.

    Where nobody can tell, as on other systems than Linux, it may have them.

    Args:
        cpuinfo: what Linux says of it.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    told = next((words for name, _, words in (line.partition(":") for line in lines) if name.strip() in _NAMES), "")
    return bool(told) and _ABLE.isdisjoint(told.split())
