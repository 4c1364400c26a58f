"""The library's command, as someone types it who has just run the quickstart."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

_NAME = "mobileclip"


def command() -> str:
    """Return what starts the command: its name, or the path from here where the shell does not know it by name."""
    return _NAME if shutil.which(_NAME) else os.path.relpath(Path(sys.executable).parent / _NAME)
