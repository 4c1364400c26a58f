"""What strangers and slips bring to the library, tried: see `harness.py`, and `python -m tests.trials --help`."""
