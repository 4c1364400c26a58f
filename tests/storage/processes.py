"""What other processes do with files and their copies."""

import time
from contextlib import suppress
from pathlib import Path

from mobileclip import storage
from tests.forking import FORKING


def child(function, *arguments):
    """Start a process that calls a function."""
    process = FORKING.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def enter_often(folder):
    """Enter a folder for a second; return how often that was, and how often another process was inside."""
    entered, double, end = 0, 0, time.monotonic() + 1
    while time.monotonic() < end:
        with suppress(ValueError), storage.exclusive(folder):
            entered += 1
            try:
                (folder / "inside").touch(exist_ok=False)
                (folder / "inside").unlink()
            except FileExistsError:
                double += 1
    return entered, double


def hold_lock(folder):
    with storage.exclusive(folder):
        (folder / "held").touch()
        time.sleep(600)


def write_without_end(path):
    with storage.atomic_write(path) as stream:
        stream.write(b"x" * 100)
        time.sleep(600)


def read_without_end(cache, address):
    with cache.open_read(address) as stream:
        stream.read(100)
        time.sleep(600)


def read_slowly(cache, url, names):
    for name in names * 1000:
        with cache.open_read(f"{url}/{name}.bin") as stream:
            while stream.read(100):
                time.sleep(0.001)


def replace_data(parent):
    with storage.atomic_folder(Path(parent) / "data", overwrite=True) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "new").write_text("new")
        (folder / "new").write_text("new")
