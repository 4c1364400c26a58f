"""Two processes under torchrun, for real: they train what one trains, resume to the bit, and stop together."""

import json
import platform
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mobileclip.training import World, process_group
from tests.errors import told
from tests.training.program import together
from tests.training.runs import assert_same_to_the_bit, last_checkpoint, logged
from tests.training.test_captions import CAPTIONER
from tests.training.two_processes import RUNS, train_one


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    together("tests.training.two_processes", folder)
    return folder


def said(output, name):
    """What each of both processes has written down."""
    return [json.loads((output / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


def same_lines(one, other, rel=2e-4):
    """Assert that two runs log the same numbers, to rounding."""
    assert logged(other) == [pytest.approx(line, rel=rel) for line in logged(one)]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_what_one_trains(name, output, tmp_path):
    """Weights that only the contrastive term moves stay with captions alone, decay included, as they were."""
    train_one(name, tmp_path)
    same_lines(tmp_path / name, output / name)
    expected, found = (load_file(last_checkpoint(folder / name)) for folder in (tmp_path, output))
    for key in (key for key in expected if key.startswith("objective/")):
        # Adam divides by the root of a square: where a gradient is almost zero, rounding decides its sign.
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1.2e-2)
    if name == "captions":
        torch.manual_seed(0)
        before = {f"objective/model.{key}": value for key, value in CAPTIONER.build().state_dict().items()}
        one, two = ({key for key in before if torch.equal(before[key], state[key])} for state in (expected, found))
        assert "objective/model.logit_scale" in one
        assert one == two


def test_two_processes_resume_to_the_bit(output):
    assert_same_to_the_bit(output / "whole", output / "parts")
    state = load_file(last_checkpoint(output / "whole"))
    assert {name for name in state if name.startswith("random/")} == {"random/cpu/0", "random/cpu/1"}


def test_all_processes_stop_for_what_one_meets(output):
    for each in said(output, "messages"):
        assert each["diverged"].startswith("FloatingPointError: the loss is nan at step 4")
        assert each["uneven"].startswith("ValueError: ")
    assert json.loads((output / "diverged" / "diverged.json").read_text())["keys"] == [f"4-{n}" for n in range(8)]


def test_all_processes_leave_out_a_step_that_overflows_in_one(output):
    first, second = said(output, "narrow")
    assert first == second
    steps = [line["step"] for line in logged(output / "narrow")]
    assert (7 in steps, 6 in steps) == (True, False)


def test_what_the_first_process_alone_finds_all_go_on_from(output):
    """A node that was replaced has no checkpoints; its rank has its own random numbers all the same."""
    expected, found = (load_file(last_checkpoint(output / name)) for name in ("whole", "disk-0-before"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_processes_that_find_other_checkpoints_refuse_to_start(output):
    messages, others = said(output, "found")
    assert messages == others
    other_numbers, none_in_the_first, fewer_in_the_first = messages
    told(other_numbers, platform.node(), "step-00000006.safetensors", "disk-0/checkpoints", "disk-1/checkpoints")
    told(none_in_the_first, "process 0", "step-00000006.safetensors")
    told(fewer_in_the_first, "step-00000003.safetensors", "step-00000006.safetensors")


def test_what_the_first_process_does_alone_comes_to_all(output):
    assert said(output, "said") == [["made by 0", "process 0 says no", "[0, 1, 2] 0.0"]] * 2


def test_another_number_of_processes_goes_on(output, tmp_path):
    """One goes on from the state of two: the losses are theirs to rounding."""
    shutil.copytree(output / "pairs", tmp_path / "pairs")
    last_checkpoint(tmp_path / "pairs").unlink()
    assert 0 < train_one("pairs", tmp_path) < 8
    same_lines(output / "pairs", tmp_path / "pairs", rel=1e-5)


def test_alone_nothing_is_shared():
    world, values = World(), torch.tensor([1.0, 2.0])
    assert world.is_first
    assert world.mean(values) is values
    assert world.gather("own") == ["own"]
    with process_group("cpu") as found:
        assert found == world


@pytest.mark.slow
def test_two_processes_train_alike_with_a_compiled_step():
    together("tests.training.compiled")
