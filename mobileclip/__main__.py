"""The console command as `python -m mobileclip`, in case its script is not on the path."""

from mobileclip.cli import main

if __name__ == "__main__":
    main()
