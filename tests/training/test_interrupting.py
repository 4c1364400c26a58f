"""Training that is interrupted, by real signals to real processes: saved, said in a line, and finished to the bit."""

import itertools
import os
import signal
import socket
import time

import pytest

from mobileclip.terminal.interruption import Interrupted
from mobileclip.training.checkpoint import RunState
from tests.descendants import descendants, kill_all, wait_until_gone
from tests.training import runs
from tests.training.program import SECONDS, STEP_SECONDS, finish, num_logged, start, start_step, wait_for_steps
from tests.training.runs import assert_same_to_the_bit, batch_of, last_checkpoint, logged, trained, training_spec

NUM_STEPS = 30
MEASURED = training_spec(8, evaluate_every_steps=1, checkpoint_every_steps=3)


def scale(model, _done):
    return {"measured": model.logit_scale.item()}


@pytest.fixture(scope="module")
def measured(tmp_path_factory, one_thread):
    """What a run logs that is measured after every step, and that nothing happens to."""
    output = tmp_path_factory.mktemp("measured")
    trained(output, MEASURED, evaluate=scale)
    return logged(output)


def end_by(process, number, *, of_all=False):
    """Send a signal to a program alone or, as a terminal does, to all its processes; return the lines that it says.

    That must not take long: of the 30 seconds that Kubernetes gives, from the signal to the end.
    """
    started = time.monotonic()
    try:
        below = descendants(process.pid)
        os.killpg(process.pid, number) if of_all else process.send_signal(number)
        said, errors = process.communicate(timeout=90)
    finally:
        kill_all(process)
    assert process.returncode == (75 if number == signal.SIGUSR1 else 128 + number), errors
    assert time.monotonic() - started < 25
    assert not said
    assert "Traceback" not in errors
    wait_until_gone(below)
    return errors.strip().splitlines()


def assert_saved(output, name, said):
    """Assert that the last step that is logged is saved and told; return it."""
    done = num_logged(output)
    assert done < NUM_STEPS
    stopped = f"training: interrupted by {name}; stopped after step {done} of 30, saved in {output / 'checkpoints'}; "
    assert f"{stopped}the same command" in said
    assert last_checkpoint(output).name == f"step-{done:08d}.safetensors"
    return done


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM,), pytest.param((signal.SIGINT, signal.SIGUSR1), marks=pytest.mark.slow)]
)
def test_signals_save_the_step_and_the_run_goes_on_to_the_bit(data, whole, tmp_path, numbers):
    for number in numbers:
        before = num_logged(tmp_path)
        process = start(data, tmp_path, num_steps=NUM_STEPS, num_workers=2)
        wait_for_steps(process, tmp_path, before + 8)
        first, last = end_by(process, number, of_all=True)
        assert first.startswith(f"{number.name}: ")
        assert_saved(tmp_path, number.name, last)
    finish(data, tmp_path, num_steps=NUM_STEPS, num_workers=2)
    assert_same_to_the_bit(tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_ends_the_waiting_for_workers_that_never_deliver(data, whole, tmp_path, number):
    process = start(data, tmp_path, num_steps=NUM_STEPS, num_workers=1)
    wait_for_steps(process, tmp_path, 3)
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGSTOP)
    seen = [-1, num_logged(tmp_path)]
    while seen[-1] != seen[-2]:  # until no step ends any more
        time.sleep(6 * STEP_SECONDS)
        seen.append(num_logged(tmp_path))
    *_, said = end_by(process, number)
    assert assert_saved(tmp_path, number.name, said) >= 3
    finish(data, tmp_path, num_steps=NUM_STEPS, num_workers=1)
    assert_same_to_the_bit(tmp_path, whole)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_signal_ends_the_waiting_for_a_store_that_never_answers(tmp_path, num_workers):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(SECONDS)
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = start(place, tmp_path / "run", num_steps=NUM_STEPS, num_workers=num_workers)
        try:
            connection, _ = silent.accept()
        except TimeoutError:
            kill_all(process)
            raise
        with connection:
            time.sleep(0.3)
            *_, said = end_by(process, signal.SIGTERM)
    assert said.startswith("training: interrupted by SIGTERM; ")


def test_a_warning_to_one_process_of_a_step_of_slurm_stops_all_after_the_same_step(data, tmp_path):
    processes = start_step(data, tmp_path, num_steps=NUM_STEPS)
    try:
        wait_for_steps(processes[0], tmp_path, 8)
        processes[1].send_signal(signal.SIGUSR1)
        said = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            kill_all(process)
    assert [process.returncode for process in processes] == [75, 75], said
    assert assert_saved(tmp_path, "SIGUSR1", said[0]) >= 8


@pytest.mark.parametrize("step", [5, 8])
def test_ctrl_c_outside_of_a_command_saves_too(tmp_path, step):
    """In the midst of a run, and in its last step, which leaves nothing undone."""
    model, calls = runs.new_model(), itertools.count(1)
    spec = training_spec(8, reinforced=False, ema_decay=None)

    def interrupt(*_):
        if next(calls) == step:
            signal.raise_signal(signal.SIGINT)

    model.text_encoder.norm.register_forward_hook(interrupt)
    with pytest.raises(Interrupted) as stopped:
        trained(tmp_path, spec, model=model)
    if step < 8:
        assert stopped.value.kept.startswith(f"stopped after step 5 of 8, saved in {tmp_path / 'checkpoints'};")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert trained(tmp_path, spec).num_steps == 8 - step


def test_a_signal_while_a_batch_is_waited_for_saves_the_step_before(measured, tmp_path):
    """The wait, which may have no end, is over: its batch is made anew by the run that goes on."""

    def make(number):
        if number == 4:
            signal.raise_signal(signal.SIGINT)
        return batch_of(number)

    with pytest.raises(KeyboardInterrupt) as stopped:
        trained(tmp_path, make=make)
    assert stopped.value.kept.startswith("stopped after step 4 of 8, ")
    assert trained(tmp_path).num_steps == 4
    assert logged(tmp_path) == [line for line in measured if "loss" in line]


@pytest.mark.parametrize("step", [3, 5, 8])
def test_an_evaluation_is_cut_short_and_done_again(measured, tmp_path, step):
    """After a step with a checkpoint of its own, one without, and the last; the numbers are those of a whole run."""
    asked = []

    def cut(model, done):
        asked.append(done)
        if asked == [*range(1, step + 1)]:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the signal comes first")
        return scale(model, done)

    with pytest.raises(Interrupted):
        trained(tmp_path, MEASURED, evaluate=cut)
    assert last_checkpoint(tmp_path).name == f"step-0000000{step}.safetensors"
    trained(tmp_path, MEASURED, evaluate=cut)
    assert asked == [*range(1, step + 1), *range(step, 9)]
    assert logged(tmp_path) == measured


def test_checkpoints_come_by_time_too(tmp_path, monkeypatch):
    """As if every step took 0.05 s."""
    saved, now = [], [time.monotonic()]

    def batch(step):
        now[0] += 0.05
        return batch_of(step)

    def snapshot(_state, *, step, position):
        assert position.first_batch == step
        saved.append((step, now[0]))

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(RunState, "snapshot", snapshot)
    assert training_spec().checkpoint_every_minutes == 10
    trained(tmp_path, training_spec(16, checkpoint_every_steps=100, checkpoint_every_minutes=0.2 / 60), make=batch)
    steps, times = zip(*saved, strict=True)
    assert 3 <= len(steps) < 10
    assert steps[-1] == 16
    assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(times[:-1]))
