"""Silences libraries: their loggers, warnings and output streams.

These belong to all threads. Two of them that silence and give back in turns would leave the process silent for ever.
"""

from __future__ import annotations

import threading

SILENCING = threading.RLock()
"""Held by whoever changes loggers, filters of warnings or standard streams for a while."""
