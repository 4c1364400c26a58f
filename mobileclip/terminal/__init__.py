"""Output, logging and signals: `printing`, `images`, `help`, `flags`, `interruption` and `silence`.

The subpackage only formats output; the texts are in the calling modules.
"""

import lazy_loader

from mobileclip.terminal.printing import console, get_logger, has_reader, print_table, say, say_json, shown

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

__all__ = ["console", "get_logger", "has_reader", "print_table", "say", "say_json", "shown"]
