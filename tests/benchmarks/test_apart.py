"""What a benchmark measures in a process of its own ends with the benchmark, however that ends."""

import os
import signal
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from benchmarks.apart import in_own_process
from tests.descendants import are_gone
from tests.preloaded import preloaded

ROOT = Path(__file__).parents[2]
POOL = """
from benchmarks.apart import in_own_process
from tests.descendants import hang
def measure(path):
    in_own_process(hang, path)
"""
GROUP = """
from functools import partial
from pathlib import Path
from benchmarks.gpu.running import run_apart
from tests.descendants import hang
def measure(path):
    run_apart(partial(hang, path), limit_seconds=600, log=Path(path).with_suffix(".log"))
"""
MAIN = """
import sys, attrs
from benchmarks.command_line import main
@attrs.frozen(kw_only=True)
class Spec:
    path: str
if __name__ == "__main__":
    main(Spec, lambda spec: measure(spec.path), "It hangs.")
"""


def test_the_result_comes_back_and_a_lost_process_is_told():
    assert in_own_process(divmod, 7, 2) == (3, 1)
    with pytest.raises(BrokenProcessPool):
        in_own_process(os._exit, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("how", [POOL, GROUP], ids=["pool", "group"])
def test_a_benchmark_that_is_ended_leaves_no_process(tmp_path, how, number):
    script, path = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(how + MAIN)
    process = preloaded().start(script, "--path", path, folder=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker, child = map(int, path.read_text().split())
    process.send_signal(number)
    _, said = process.communicate(60)
    try:
        assert are_gone({worker} if how is POOL else {worker, child})
        if number == signal.SIGTERM:
            assert process.returncode == 143
            assert said.startswith("benchmark: interrupted by SIGTERM; ")
    finally:
        if how is POOL:
            os.kill(child, signal.SIGKILL)  # its own, of no group that the benchmark would know
