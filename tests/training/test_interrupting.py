"""Training that is interrupted, by real signals to real processes: saved, said in a line, and finished to the bit."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from pathlib import Path

import attrs
import pytest

from mobileclip.terminal.interruption import Interrupted
from mobileclip.training import read_metrics, train
from mobileclip.training.checkpoint import RunState
from tests.descendants import descendants, kill_all, wait_until_gone
from tests.training.program import SECONDS, STEP_SECONDS, finish, num_logged, start, start_step, wait_for_steps
from tests.training.runs import (
    Batches,
    assert_same_to_the_bit,
    batch_of,
    last_checkpoint,
    new_model,
    training_spec,
    without_times,
)
from tests.waiting import wait_for

NUM_STEPS = 30
LINE = "training: interrupted by {name}; stopped after step {done} of 30, saved in {folder}; the same command"


MEASURED = training_spec(8, evaluate_every_steps=1, checkpoint_every_steps=3)


def scale(model, _done):
    return {"measured": model.logit_scale.item()}


@pytest.fixture(scope="module")
def measured(tmp_path_factory, one_thread):
    """What a run logs that is measured after every step, and that nothing happens to."""
    output = tmp_path_factory.mktemp("measured")
    train(MEASURED, model=new_model(), batches=Batches(), output=output, evaluate=scale)
    return without_times(read_metrics(output / "metrics.jsonl"))


def wait_until_still(output: Path) -> None:
    """Wait until no step ends any more."""
    seen = [-1]

    def is_still() -> bool:
        seen.append(num_logged(output))
        return seen[-1] == seen[-2]

    wait_for(is_still, every=6 * STEP_SECONDS)


def end_by(process, number: signal.Signals, *, of_all: bool = False) -> list[str]:
    """Send a signal to a program alone or, as a terminal does, to all its processes; return what it says.

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


@pytest.mark.parametrize(
    "numbers", [(signal.SIGTERM,), pytest.param((signal.SIGINT, signal.SIGUSR1), marks=pytest.mark.slow)]
)
def test_signals_save_the_step_and_the_run_goes_on_to_the_bit(data, whole, tmp_path, numbers):
    parts = tmp_path / "parts"
    for number in numbers:
        before = num_logged(parts)
        process = start(data, parts, num_steps=NUM_STEPS, num_workers=2)
        wait_for_steps(process, parts, before + 8)
        first, last = end_by(process, number, of_all=True)
        done = num_logged(parts)
        assert done < NUM_STEPS
        assert first.startswith(f"{number.name}: ")
        assert last.startswith(LINE.format(name=number.name, done=done, folder=parts / "checkpoints"))
        assert last_checkpoint(parts).name == f"step-{done:08d}.safetensors"
    finish(data, parts, num_steps=NUM_STEPS, num_workers=2)
    assert_same_to_the_bit(parts, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_ends_the_waiting_for_workers_that_never_deliver(data, whole, tmp_path, number):
    parts = tmp_path / "parts"
    process = start(data, parts, num_steps=NUM_STEPS, num_workers=1)
    wait_for_steps(process, parts, 3)
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGSTOP)
    wait_until_still(parts)
    *_, said = end_by(process, number)
    done = num_logged(parts)
    assert 3 <= done < NUM_STEPS
    assert said.startswith(LINE.format(name=number.name, done=done, folder=parts / "checkpoints"))
    finish(data, parts, num_steps=NUM_STEPS, num_workers=1)
    assert_same_to_the_bit(parts, whole)


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
    done = num_logged(tmp_path)
    assert 8 <= done < NUM_STEPS
    assert LINE.format(name="SIGUSR1", done=done, folder=tmp_path / "checkpoints") in said[0]
    assert last_checkpoint(tmp_path).name == f"step-{done:08d}.safetensors"


def interrupted_in(step: int):
    """Return a model in whose step, from 1, Ctrl-C comes."""
    model, calls = new_model(), itertools.count(1)

    def interrupt(*_):
        if next(calls) == step:
            signal.raise_signal(signal.SIGINT)

    model.text_encoder.norm.register_forward_hook(interrupt)
    return model


def test_ctrl_c_outside_of_a_command_saves_too(tmp_path):
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(
            training_spec(8, reinforced=False, ema_decay=None),
            model=interrupted_in(5),
            batches=Batches(),
            output=tmp_path,
        )
    assert stopped.value.kept.startswith(f"stopped after step 5 of 8, saved in {tmp_path / 'checkpoints'};")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    spec = training_spec(8, reinforced=False, ema_decay=None)
    assert train(spec, model=new_model(), batches=Batches(), output=tmp_path).num_steps == 3


def test_a_signal_while_a_batch_is_waited_for_saves_the_step_before(measured, tmp_path):
    """The wait, which may have no end, is over: its batch is made anew by the run that goes on."""

    def make(number: int):
        if number == 4:
            signal.raise_signal(signal.SIGINT)
        return batch_of(number)

    with pytest.raises(KeyboardInterrupt) as stopped:
        train(training_spec(8), model=new_model(), batches=Batches(make=make), output=tmp_path / "cut")
    assert stopped.value.kept.startswith("stopped after step 4 of 8, ")
    assert train(training_spec(8), model=new_model(), batches=Batches(), output=tmp_path / "cut").num_steps == 4
    cut = without_times(read_metrics(tmp_path / "cut" / "metrics.jsonl"))
    assert cut == [line for line in measured if "loss" in line]


def test_a_signal_at_the_last_step_leaves_nothing_undone(tmp_path):
    spec = training_spec(8, reinforced=False, ema_decay=None)
    with pytest.raises(Interrupted):
        train(spec, model=interrupted_in(8), batches=Batches(), output=tmp_path)
    assert train(spec, model=new_model(), batches=Batches(), output=tmp_path).num_steps == 0


@pytest.mark.parametrize("step", [3, 5, 8])
def test_an_evaluation_is_cut_short_and_done_again(measured, tmp_path, step):
    """After a step with a checkpoint of its own, one without, and the last; the numbers are those of a whole run."""
    asked = []

    def cut(model, done):
        if done == step and not asked.count(step):
            asked.append(done)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the signal comes first")
        asked.append(done)
        return scale(model, done)

    with pytest.raises(Interrupted):
        train(MEASURED, model=new_model(), batches=Batches(), output=tmp_path / "cut", evaluate=cut)
    assert last_checkpoint(tmp_path / "cut").name == f"step-0000000{step}.safetensors"
    train(MEASURED, model=new_model(), batches=Batches(), output=tmp_path / "cut", evaluate=cut)
    assert asked == [*range(1, step + 1), *range(step, 9)]
    assert without_times(read_metrics(tmp_path / "cut" / "metrics.jsonl")) == measured


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
    spec = training_spec(16, checkpoint_every_steps=100)
    assert spec.checkpoint_every_minutes == 10
    spec = attrs.evolve(spec, checkpoint_every_minutes=0.2 / 60)
    train(spec, model=new_model(), batches=Batches(make=batch), output=tmp_path)
    steps, times = zip(*saved, strict=True)
    assert 3 <= len(steps) < 10
    assert steps[-1] == 16
    assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(times[:-1]))
