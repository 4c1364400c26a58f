"""What a person sees and presses: lines and logs (`printing`), `pictures`, `help`, signals (`interruption`), `silence`.

How something is shown belongs here; what is said is for the rooms above.
"""

from mobileclip.terminal.printing import console, get_logger, has_reader, print_table, say, say_json, shown

__all__ = ["console", "get_logger", "has_reader", "print_table", "say", "say_json", "shown"]
