"""`python -m mobileclip.cli`, the console command without its script."""

from mobileclip.cli import main

if __name__ == "__main__":
    main()
