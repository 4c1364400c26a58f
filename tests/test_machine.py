"""What the machine lacks is no sample's, file's or unit's fault: real limits, in processes of their own."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mobileclip.machine import ResourceExhaustedError, machine_fault, machine_line, raise_machine_fault
from tests.data.made_samples import encoded
from tests.errors import fails
from tests.preloaded import preloaded
from tests.storage.test_transient import error_of

ROOT = Path(__file__).parents[1]
LACKS_FILES = """
import resource, sys
from mobileclip.machine import ResourceExhaustedError
opened = []
# What is imported late is imported before.
def use_up():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        while True:
            opened.append(open("/dev/null"))
    except OSError:
        pass
"""


@pytest.fixture
def child(tmp_path):
    """A function that returns what a process of its own prints that runs some code, written to the left margin."""

    def run(code: str, *arguments: str) -> str:
        ended = preloaded().call("tests.preloaded:python", "-c", textwrap.dedent(code), *arguments, folder=tmp_path)
        assert ended.status == 0, ended.output
        return ended.output.strip()

    return run


def wrap(error: Exception):
    """Raise what a library makes of an error."""
    raise ValueError("the picture is broken") from error


MACHINES = {
    "disk": [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded")],
    "memory": [
        *(OSError(errno.ENOMEM, "Cannot allocate memory"), MemoryError()),
        RuntimeError("unable to mmap 8 bytes from file </torch_1>: Cannot allocate memory (12)"),
    ],
    "files": [
        *(OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, "Too many open files in system")),
        RuntimeError("unable to open shared memory object </torch_1> in read-write mode: x (24)"),
        RuntimeError("received 0 items of ancdata"),
    ],
    "shared_memory": [
        RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"),
    ],
    "processes": [RuntimeError("can't start new thread")],
}
OTHERS = [
    OSError(errno.EIO, "Input/output error"),  # a bad sector costs the file on it
    OSError(errno.EACCES, "Permission denied"),
    OSError("No space left on device (28)"),  # a library's, of bytes that it cannot read
    ValueError("unable to parse 'unable to write to file: No space left on device (28)'"),
    RuntimeError("the picture says: unable to write to file </torch_1>: No space left on device (28)"),
    KeyError("memory"),
    TimeoutError("timed out"),
]


@pytest.mark.parametrize(("kind", "error"), [(kind, error) for kind in MACHINES for error in MACHINES[kind]], ids=repr)
def test_what_is_the_machines_fault(error, kind):
    assert machine_fault(error).kind == kind
    with fails(ResourceExhaustedError) as raised:
        raise_machine_fault(error_of(lambda: wrap(error)), "reading a.jpg")
    assert re.fullmatch(r".*, reading a\.jpg", str(raised.value)), "it is one line"
    with fails(ResourceExhaustedError, str(machine_fault(error))):
        raise_machine_fault(error)
    assert machine_fault(pickle.loads(pickle.dumps(raised.value))).kind == kind


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_what_is_another_s(error):
    assert machine_fault(error) is None
    assert machine_line(error, "it is kept") is None
    raise_machine_fault(error)


def test_what_torch_says_here_is_the_machines_and_what_a_file_makes_ffmpeg_say_is_the_files():
    assert machine_fault(error_of(lambda: torch.empty(2**47))).kind == "memory"
    from av import error

    assert machine_fault(error.MemoryError(errno.ENOMEM, "Cannot allocate memory")) is None


def test_a_line_says_what_to_do():
    line = machine_line(OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/data/a.jpg"), "do the same")
    assert ("ulimit -n" in line, "do the same" in line) == (True, False), "with other limits, it is another command"
    assert line.endswith("'/data/a.jpg')")
    plain, kept = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/a.bin"), "the same command does the rest"
    raised = error_of(lambda: raise_machine_fault(plain, "joining"))
    own = OSError(errno.ENOSPC, "a.bin cannot be written: No space left on device")
    for error in (plain, raised, own):
        assert re.fullmatch(f".*a\\.bin.*; {kept}", machine_line(error, kept))
    for end in ("make room and run this again", "the same command goes on from step 9"):
        told = OSError(errno.ENOSPC, f"{own.strerror}; {end}")
        assert machine_line(told, kept) == str(told)


def test_a_picture_without_a_file_to_read_it_with_is_not_broken(child, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(8, 6))
    code = """
from mobileclip.data import decode_image
decode_image(sys.argv[1])
use_up()
try:
    decode_image(sys.argv[1])
except ResourceExhaustedError as error:
    print(error)
"""
    assert "too many files are open" in child(LACKS_FILES + code, str(tmp_path / "a.png"))


def test_memory_that_does_not_suffice_for_a_picture(child, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(2600, 2600))
    code = """
import resource, sys
from mobileclip.data.skips import attempt
from mobileclip.data import decode_image
from mobileclip.machine import ResourceExhaustedError
decode_image(sys.argv[1])
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**24
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
skips = []
try:
    attempt(lambda: decode_image(sys.argv[1]), key="a", shard="s.tar", on_skip=skips.append)
except ResourceExhaustedError as error:
    print(error, skips)
"""
    said = child(code, str(tmp_path / "a.png"))
    assert re.fullmatch(r"the memory is full; .*at a of s\.tar \[\]", said)


def test_shards_that_cannot_be_opened_end_a_stream_and_are_not_skipped(child, tmp_path):
    code = """
from pathlib import Path
from tests.training.program import run_spec, write_data
pipeline = run_spec(write_data(Path(sys.argv[1])), num_steps=9, num_workers=0).data.build()
stream = pipeline.stream()
next(stream)
use_up()
try:
    for _ in range(20):
        next(stream)
except ResourceExhaustedError as error:
    print(error, pipeline.report.num_skipped)
"""
    assert re.fullmatch("too many files are open; .* 0", child(LACKS_FILES + code, str(tmp_path)))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_goes_to_a_full_disk_ends_a_command_in_a_line():
    command = [sys.executable, "-u", "-m", "mobileclip.cli", "recipes", "ls"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert re.fullmatch("mobileclip: the disk is full; .*\n", ended.stderr)
