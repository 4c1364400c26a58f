"""Everything printed or logged: lines (`printing`), `pictures`, `help`, signals (`interruption`), `silence`.

How something is shown belongs here; what is said is for the packages above.
"""

import lazy_loader

from mobileclip.terminal.printing import console, get_logger, has_reader, print_table, say, say_json, shown

__getattr__, __dir__, _ = lazy_loader.attach_stub(__name__, __file__)

__all__ = ["console", "get_logger", "has_reader", "print_table", "say", "say_json", "shown"]
