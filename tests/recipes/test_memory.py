"""The memory of a training step: what is computed is what is measured, and what the recipes' headers say."""

import re
from pathlib import Path

import attrs
import pytest

from mobileclip.recipes import header_of, recipe_files
from tests.recipes.choices import TRAINING, run_of
from tests.recipes.step_memory import step_memory

ROOT = Path(__file__).parents[2]
GIB, MOST = 2**30, 72
RECIPES = TRAINING


def in_header(name):
    """Return what a recipe trains, its processes, and what its header says of pieces and of memory by recomputation."""
    header = header_of(recipe_files()[name])
    num_processes = int(re.search(r"--nproc-per-node (\d+)", header.entries["Command"])[1])
    run = run_of(name)
    said = re.match(
        r"(\d+) GPUs, each with (\d+) micro-batches of (\d+) in (\d+) GiB"
        r"(?: with recomputation, 25 % more compute; (\d+) GiB without;|; (\d+) GiB with --recompute,)",
        header.entries["Hardware"],
    )
    assert said is not None, header.entries["Hardware"]
    num_gpus, num_pieces, piece, own, *others = (number and int(number) for number in said.groups())
    other = next(filter(None, others))
    is_recomputing = others[0] is not None
    return run, num_processes, (num_gpus, num_pieces, piece), {is_recomputing: own, not is_recomputing: other}


@pytest.mark.parametrize("name", RECIPES)
def test_a_header_s_pieces_make_the_batch_and_fit(name):
    """A recipe recomputes where its micro-batches do not fit otherwise."""
    run, num_processes, (num_gpus, num_pieces, piece), gibibytes = in_header(name)
    assert num_gpus == num_processes
    assert piece == run.training.memory.micro_batch
    assert num_gpus * num_pieces * piece == run.data.batch_size
    assert gibibytes[run.training.memory.recompute] <= MOST, "a GPU of 80 GB has 79 GiB, of which libraries take some"
    assert run.training.memory.recompute == (gibibytes[False] > MOST)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_header_says_how_much_memory_is_computed(name):
    run, num_processes, _, gibibytes = in_header(name)
    for recompute, said in gibibytes.items():
        memory = attrs.evolve(run.training.memory, recompute=recompute)
        traced = attrs.evolve(run, training=attrs.evolve(run.training, memory=memory))
        assert step_memory(traced, num_processes=num_processes) / GIB == pytest.approx(said, abs=1)
