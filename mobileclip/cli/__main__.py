"""Runs the console command as `python -m mobileclip.cli`."""

from mobileclip.cli import main

if __name__ == "__main__":
    main()
