"""A lock for code that silences the loggers, warnings and output streams of libraries.

Loggers, warning filters and standard streams belong to the whole process. If two threads changed and restored a stream
in overlapping order, the process could stay silent.
"""

from __future__ import annotations

import threading

SILENCING = threading.RLock()
"""The lock to hold while loggers, warning filters or standard streams are temporarily changed."""
