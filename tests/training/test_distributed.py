"""Two processes under torchrun, for real: they train what one trains, resume to the bit, and stop together."""

import json
import platform
import re
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file

from mobileclip.training import CrossEntropySpec, World, process_group, read_metrics, train
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


def test_two_processes_train_what_one_trains(output, tmp_path):
    torch.manual_seed(0)
    train(training_spec(8), model=TRANSFORMERS.build(), batches=Batches(), output=tmp_path)
    alone, together = read_metrics(tmp_path / "metrics.jsonl"), read_metrics(output / "two" / "metrics.jsonl")
    assert len(together) == len(alone) == 8
    for one, two in zip(alone, together, strict=True):
        for name in ("loss", "contrastive", "distillation", "gradient_norm", "logit_scale"):
            assert two[name] == pytest.approx(one[name], rel=2e-4), name
    expected, found = load_file(last_checkpoint(tmp_path)), load_file(last_checkpoint(output / "two"))
    for name in (name for name in expected if name.startswith("objective/")):
        # Adam divides by the root of a square: where a gradient is almost zero, rounding decides its sign.
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1.2e-2)


def test_two_processes_train_the_classifier_that_one_trains(output, tmp_path):
    spec = class_runs.training_spec(6, loss=CrossEntropySpec(label_smoothing=0.1))
    model = class_runs.new_classifier(class_runs.TRANSFORMER)
    train(spec, model=model, batches=Batches(make=class_runs.class_batch), output=tmp_path)
    alone, together = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path, output / "classifier"))
    assert len(together) == len(alone) == 6
    for one, two in zip(alone, together, strict=True):
        for name in ("loss", "gradient_norm"):
            assert two[name] == pytest.approx(one[name], rel=2e-4), name


def test_two_processes_train_with_captions_alone_what_one_trains(output, tmp_path):
    """Weights that only the contrastive term moves stay as they were, decay included."""
    torch.manual_seed(0)
    train(CAPTIONS_ALONE, model=CAPTIONER.build(), batches=Batches(make=caption_batch), output=tmp_path)
    alone, together = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path, output / "captions"))
    assert len(together) == len(alone) == 6
    for one, two in zip(alone, together, strict=True):
        assert "contrastive" not in two
        for name in ("loss", "captions", "gradient_norm", "logit_scale"):
            assert two[name] == pytest.approx(one[name], rel=2e-4), name
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
    host = re.escape(platform.node())
    file = r"step-00000006\.safetensors \([0-9a-f]{12}\)"
    assert re.match(
        rf"the processes of this run find different checkpoints: process 0 on {host}: {file} in "
        rf"\S+disk-0/checkpoints; process 1 on {host}: {file} in "
        r"\S+disk-1/checkpoints\. Give all of them one output, on a disk that they share",
        other_numbers,
    )
    assert f"process 0 on {platform.node()}: no checkpoint in" in none_in_the_first
    assert re.search(
        r"process 0 on .*: step-00000003\.safetensors .*process 1 on .*: step-00000006", fewer_in_the_first
    )


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
    alone, together = read_metrics(parts / "metrics.jsonl"), read_metrics(output / "two" / "metrics.jsonl")
    for one, two in zip(alone, together, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)


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
