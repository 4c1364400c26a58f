"""What is written beside the training: steps go on, errors come back, and nothing is left half done."""

import signal
import threading
import time

import pytest
import torch

from mobileclip.terminal.interruption import Interrupted
from mobileclip.training.checkpoint import BackgroundWriter, StateFile, digest, mark, read_state
from tests.errors import fails
from tests.training.runs import batch_of, last_checkpoint, trained, training_spec

SECONDS = 20.0


def fail():
    time.sleep(0.05)
    raise OSError("no room")


def test_a_write_does_not_hold_up_and_the_next_one_waits_for_it():
    go_on, done = threading.Event(), []
    with BackgroundWriter() as writer:
        writer.begin(lambda: done.append(go_on.wait(SECONDS)))
        assert not done
        threading.Timer(0.1, go_on.set).start()
        writer.begin(lambda: done.append("second"))
        assert done[0] is True
    assert done == [True, "second"]


def test_errors_come_once_to_whoever_asks_next():
    with BackgroundWriter() as writer:
        assert not writer.has_failed
        for ask in (writer.wait, lambda: writer.begin(fail)):
            writer.begin(fail)
            with fails(OSError, "no room"):
                ask()
            writer.wait()
        assert not writer.has_failed


# What ended the context is what is raised; what could not be written is behind it. A signal is no error: behind it,
# this one would not be told, and the same command be started again.
@pytest.mark.parametrize(
    ("error", "raised"), [(None, OSError), (ValueError("own"), ValueError), (KeyboardInterrupt(), OSError)]
)
def test_leaving_waits_and_says_what_could_not_be_written(error, raised, caplog):
    with fails(raised) as caught, BackgroundWriter() as writer:
        writer.begin(fail)
        if error is not None:
            raise error
    assert "no room" in f"{caught.value} {caplog.text}"


def test_a_state_comes_back_with_its_numbers(tmp_path):
    tensors = {"a": torch.randn(3, 4).bfloat16(), "b": torch.tensor(7), "c": torch.zeros(0, 2)}
    path, other = tmp_path / "new" / "x.safetensors", tmp_path / "other.safetensors"
    StateFile(tensors=tensors, metadata={"step": "3"}).write(path)
    found = read_state(path)
    assert digest(found.tensors) == digest(tensors)
    assert found.metadata["step"] == "3"
    torch.testing.assert_close(found.tensors, tensors, rtol=0, atol=0)
    StateFile(tensors={**tensors, "b": torch.tensor(8)}, metadata={"step": "3"}).write(other)
    assert mark(path) != mark(other)


@pytest.mark.parametrize(
    "changed", [{"a": torch.zeros(4)}, {"a": torch.zeros(2, 2)}, {"a": torch.zeros(4).int()}, {"b": torch.zeros(2, 2)}]
)
def test_the_digest_sees_names_shapes_and_types(changed):
    assert digest(changed) != digest({"a": torch.zeros(1, 4)})


def slowly(monkeypatch, before) -> None:
    """Let `before` be called with the path of every checkpoint that is written."""
    write = StateFile.write

    def slow(state: StateFile, path: str) -> None:
        before(path)
        write(state, path)

    monkeypatch.setattr(StateFile, "write", slow)


def test_steps_go_on_while_a_checkpoint_is_written_which_holds_its_own_step(tmp_path, monkeypatch):
    """The checkpoint after step 3 is written when step 5 has begun, with the weights of step 3."""
    spec, later, started = training_spec(6, keep_checkpoints=9), threading.Event(), time.monotonic()
    trained(tmp_path / "at once", spec)
    slowly(monkeypatch, lambda _: later.wait(SECONDS))

    def make(step):
        if step == 4:
            later.set()
        return batch_of(step)

    trained(tmp_path / "later", spec, make=make)
    assert time.monotonic() - started < SECONDS
    paths = sorted((tmp_path / "later" / "checkpoints").iterdir())
    assert [path.name for path in paths] == ["step-00000003.safetensors", "step-00000006.safetensors"]
    for path in paths:
        expected = read_state(tmp_path / "at once" / "checkpoints" / path.name)
        assert digest(read_state(path).tensors) == digest(expected.tensors)


def test_what_could_not_be_written_ends_the_run_at_one_of_the_next_steps(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(f"checkpoint {path} could not be written")

    slowly(monkeypatch, fail)
    asked = []

    def make(step):
        asked.append(step)
        time.sleep(0.01)
        return batch_of(step)

    with fails(OSError, "step-00000003.safetensors"):
        trained(tmp_path, training_spec(60), make=make)
    assert max(asked) < 6


def test_a_signal_waits_for_the_last_write(tmp_path, monkeypatch):
    slowly(monkeypatch, lambda _: time.sleep(0.3))

    def make(step):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return batch_of(step)

    with pytest.raises(Interrupted):
        trained(tmp_path, make=make)
    assert last_checkpoint(tmp_path).name == "step-00000003.safetensors"
