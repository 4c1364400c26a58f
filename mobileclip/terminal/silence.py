"""Silences libraries: their loggers, warnings and output streams.

All threads share these. If two threads silenced and restored them in overlapping order, the process could stay silent.
"""

from __future__ import annotations

import threading

SILENCING = threading.RLock()
"""Lock to hold during temporary changes of loggers, warning filters or standard streams."""
