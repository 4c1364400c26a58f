"""Silences libraries: their loggers, warnings and output streams.

All threads share these. If two threads silenced and restored them in turns, the process would stay silent for ever.
"""

from __future__ import annotations

import threading

SILENCING = threading.RLock()
"""Held by whoever changes loggers, filters of warnings or standard streams for a while."""
