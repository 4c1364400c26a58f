"""Two processes under torchrun, for real: they train what one trains, resume to the bit, and stop together."""

import json
import platform
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mobileclip.training import World, process_group, read_metrics
from tests.errors import told
from tests.training.program import together
from tests.training.runs import assert_same_to_the_bit, last_checkpoint, without_times
from tests.training.test_captions import CAPTIONER
from tests.training.two_processes import RUNS, train_one


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    together("tests.training.two_processes", folder)
    return folder


def same_lines(one, other, rel=2e-4):
    """Assert that two runs log the same numbers, to rounding."""
    alone, together = (without_times(read_metrics(folder / "metrics.jsonl")) for folder in (one, other))
    assert together == [pytest.approx(line, rel=rel) for line in alone]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_what_one_trains(name, output, tmp_path):
    train_one(name, tmp_path)
    same_lines(tmp_path / name, output / name)
    expected, found = (load_file(last_checkpoint(folder / name)) for folder in (tmp_path, output))
    for key in (key for key in expected if key.startswith("objective/")):
        # Adam divides by the root of a square: where a gradient is almost zero, rounding decides its sign.
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1.2e-2)


def test_weights_that_only_the_contrastive_term_moves_stay_with_captions_alone(output, tmp_path):
    """As they were, decay included, and whether one process trains or two."""
    train_one("captions", tmp_path)
    torch.manual_seed(0)
    before = CAPTIONER.build().state_dict()
    one, two = (load_file(last_checkpoint(folder / "captions")) for folder in (tmp_path, output))
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
    shutil.copytree(output / "pairs", tmp_path / "pairs")
    last_checkpoint(tmp_path / "pairs").unlink()
    assert 0 < train_one("pairs", tmp_path) < 8
    same_lines(output / "pairs", tmp_path / "pairs", rel=1e-5)


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
