"""Two processes under torchrun, for real: they train what one trains, resume to the bit, and stop together."""

import json
import platform
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file

from mobileclip.training import CrossEntropySpec, World, process_group, read_metrics, train
from tests.errors import told
from tests.training import class_runs
from tests.training.program import together
from tests.training.runs import Batches, assert_same_to_the_bit, last_checkpoint, start_processes, training_spec
from tests.training.test_captions import CAPTIONER, CAPTIONS_ALONE, caption_batch
from tests.training.test_objective import TRANSFORMERS


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    together("tests.training.two_processes", folder)
    return folder


def same_lines(one, other, *names, rtol=2e-4):
    """Assert that two runs log the same numbers, to rounding; return the lines of the second."""
    alone, together = (read_metrics(folder / "metrics.jsonl") for folder in (one, other))
    expected = [[line[name] for name in names] for line in alone]
    torch.testing.assert_close([[line[name] for name in names] for line in together], expected, rtol=rtol, atol=0)
    return together


def test_two_processes_train_what_one_trains(output, tmp_path):
    torch.manual_seed(0)
    train(training_spec(8), model=TRANSFORMERS.build(), batches=Batches(), output=tmp_path)
    terms = ("loss", "contrastive", "distillation", "gradient_norm", "logit_scale")
    assert len(same_lines(tmp_path, output / "two", *terms)) == 8
    expected, found = load_file(last_checkpoint(tmp_path)), load_file(last_checkpoint(output / "two"))
    for name in (name for name in expected if name.startswith("objective/")):
        # Adam divides by the root of a square: where a gradient is almost zero, rounding decides its sign.
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1.2e-2)


def test_two_processes_train_the_classifier_that_one_trains(output, tmp_path):
    spec = class_runs.training_spec(6, loss=CrossEntropySpec(label_smoothing=0.1))
    model = class_runs.new_classifier(class_runs.TRANSFORMER)
    train(spec, model=model, batches=Batches(make=class_runs.class_batch), output=tmp_path)
    assert len(same_lines(tmp_path, output / "classifier", "loss", "gradient_norm")) == 6


def test_two_processes_train_with_captions_alone_what_one_trains(output, tmp_path):
    """Weights that only the contrastive term moves stay as they were, decay included."""
    torch.manual_seed(0)
    train(CAPTIONS_ALONE, model=CAPTIONER.build(), batches=Batches(make=caption_batch), output=tmp_path)
    lines = same_lines(tmp_path, output / "captions", "loss", "captions", "gradient_norm", "logit_scale")
    assert len(lines) == 6
    assert not any("contrastive" in line for line in lines)
    torch.manual_seed(0)
    before = CAPTIONER.build().state_dict()
    one, two = (load_file(last_checkpoint(folder)) for folder in (tmp_path, output / "captions"))
    still = {name for name, first in before.items() if torch.equal(first, one[f"objective/model.{name}"])}
    assert "logit_scale" in still
    assert still == {name for name, first in before.items() if torch.equal(first, two[f"objective/model.{name}"])}


def test_two_processes_resume_to_the_bit(output):
    assert_same_to_the_bit(output / "whole", output / "parts")
    state = load_file(last_checkpoint(output / "whole"))
    assert {name for name in state if name.startswith("random/")} == {"random/cpu/0", "random/cpu/1"}


def test_all_processes_stop_for_what_one_meets(output):
    messages = [json.loads((output / f"messages-{rank}.json").read_text()) for rank in (0, 1)]
    assert all(each["diverged"].startswith("FloatingPointError: the loss is nan at step 4") for each in messages)
    assert json.loads((output / "diverged" / "diverged.json").read_text())["keys"] == [f"4-{n}" for n in range(8)]
    assert all(each["uneven"].startswith("ValueError: ") for each in messages)


def test_all_processes_leave_out_a_step_that_overflows_in_one(output):
    first, second = ((output / f"narrow-{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    steps = [line["step"] for line in read_metrics(output / "narrow" / "metrics.jsonl")]
    assert 7 in steps
    assert 6 not in steps


def test_what_the_first_process_alone_finds_all_go_on_from(output):
    """A node that was replaced has no checkpoints; its rank has its own random numbers all the same."""
    expected, found = (load_file(last_checkpoint(output / name)) for name in ("whole", "disk-0-before"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_processes_that_find_other_checkpoints_refuse_to_start(output):
    messages, others = (json.loads((output / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert messages == others
    other_numbers, none_in_the_first, fewer_in_the_first = messages
    told(other_numbers, platform.node(), "step-00000006.safetensors", "disk-0/checkpoints", "disk-1/checkpoints")
    told(none_in_the_first, "process 0", "step-00000006.safetensors")
    told(fewer_in_the_first, "step-00000003.safetensors", "step-00000006.safetensors")


def test_what_the_first_process_does_alone_comes_to_all(output):
    said = [json.loads((output / f"said-{rank}.json").read_text()) for rank in (0, 1)]
    assert said == [["made by 0", "process 0 says no", "[0, 1, 2] 0.0"]] * 2


def test_another_number_of_processes_goes_on(output, tmp_path):
    """One goes on from the state of two: the losses are theirs to rounding."""
    parts = tmp_path / "parts"
    shutil.copytree(output / "two", parts)
    last_checkpoint(parts).unlink()
    result = train(training_spec(8), model=TRANSFORMERS.build(), batches=Batches(), output=parts)
    assert 0 < result.num_steps < 8
    same_lines(output / "two", parts, "loss", rtol=1e-5)


def test_alone_nothing_is_shared():
    world = World()
    values = torch.tensor([1.0, 2.0])
    assert world.is_first
    assert world.mean(values) is values
    assert world.gather("own") == ["own"]
    with process_group("cpu") as found:
        assert found == World()


@pytest.mark.slow
def test_two_processes_train_alike_with_a_compiled_step():
    together("tests.training.compiled")


@pytest.mark.slow
def test_a_process_that_stops_is_not_waited_for_without_end():
    """The one that goes on says so, and ends; what started them then ends the other."""
    program = (
        "import os, signal, sys\n"
        "from mobileclip.training import process_group\n"
        "with process_group('cpu', collective_seconds=2.0) as world:\n"
        "    print('ready', flush=True)\n"
        "    world.gather(world.rank)\n"
        "    if world.rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    world.gather(world.rank)\n"
    )
    processes = start_processes(program)
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        _, errors = processes[0].communicate(timeout=60)
        assert time.monotonic() - started < 30
        assert processes[0].returncode == 1
        assert "TimeoutError: process 0 of 2 waited too long for the others (at most 2 s)" in errors
    finally:
        processes[1].kill()
        processes[1].communicate()
