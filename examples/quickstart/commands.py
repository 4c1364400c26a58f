"""The library's command, as someone types it who has just run the quickstart."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

_NAME = "mobileclip"


def command() -> str:
    """Return what starts this environment's command: its name, or its path where the shell finds none or another."""
    own = Path(sys.executable).parent / _NAME
    found = shutil.which(_NAME)
    return _NAME if found is not None and Path(found) == own else os.path.relpath(own)
