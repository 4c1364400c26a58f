"""Runs the console command as `python -m mobileclip`, in case the `mobileclip` script is not on PATH."""

from mobileclip.cli import main

if __name__ == "__main__":
    main()
