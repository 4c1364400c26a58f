"""The memory of a training step: what is computed is what is measured, and what the recipes' headers say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from mobileclip.data import RangeAugmentSpec
from mobileclip.recipes import header_of, recipe_files
from mobileclip.training import Memory
from recipes.train_s0 import RUN as S0
from tests.encoders.small import SMALL
from tests.recipes.choices import TRAINING, run_of
from tests.recipes.measure_step import changed
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
        r"(?: by recomputation, a quarter more work; (\d+) GiB without;|; (\d+) GiB with --recompute,)",
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
        assert step_memory(traced, num_processes=num_processes).total / GIB == pytest.approx(said, abs=1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are reset in Linux")
@pytest.mark.parametrize(
    ("name", "batch_size", "piece", "recompute"),
    [
        ("train_s0", 8, 0, False),
        ("train_s0", 24, 0, False),
        ("train_s0", 24, 4, True),
        ("train_s2", 8, 0, True),
        ("train_s2", 24, 0, True),
        ("train_s2", 24, 4, True),
        ("train_b", 24, 4, True),
        ("train_l14", 12, 4, True),
    ],
)
def test_a_measured_step_takes_what_is_computed(name, batch_size, piece, recompute):
    """To 6 %, on the CPU: pages are given back at once, so that the peak of all is that of the tensors."""
    arguments = [name, str(batch_size), str(piece), str(int(recompute))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.recipes.measure_step", *arguments],
        cwd=ROOT,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    computed = step_memory(changed(name, batch_size, piece, recompute), on_cpu=True).step
    assert computed == pytest.approx(int(done.stdout), rel=0.06)


def small(batch_size, model=SMALL, **changes):
    run = S0
    training = attrs.evolve(run.training, **({"memory": Memory()} | changes))
    data = attrs.evolve(run.data, batch_size=batch_size, image=model.image.input, text=model.text.input)
    return attrs.evolve(run, model=model, data=data, training=training)


@pytest.mark.slow
def test_more_pieces_take_as_much_more_as_one_does():
    """Six pieces are those of two and three, carried on: the trace of all six says the same."""
    run = small(48, memory=Memory(micro_batch=8))
    carried_on, traced = step_memory(run), step_memory(run, num_traced_pieces=6)
    assert carried_on.step == pytest.approx(traced.step, rel=0.02)
    assert carried_on.step > 1.05 * step_memory(small(24, memory=Memory(micro_batch=8))).step


def test_processes_share_the_batch_and_exchange():
    image = attrs.evolve(SMALL.image, stages=SMALL.image.stages[:1])
    model = attrs.evolve(SMALL, image=image, text=attrs.evolve(SMALL.text, depth=1))
    run = small(32, model, range_augment=None, ema_decay=None)
    alone, shared = step_memory(run), step_memory(run, num_processes=4)
    assert shared.step < alone.step
    assert (alone.buckets, alone.gathered, alone.average) == (0, 0, 0)
    assert shared.buckets == alone.optimizer // 2
    assert shared.gathered == 32 * 4 * (2 * SMALL.text.embedding_dim + 1536)
    with pytest.raises(ValueError, match="5 processes"):
        step_memory(run, num_processes=5)


@pytest.mark.slow
@pytest.mark.parametrize("range_augment", [None, RangeAugmentSpec()], ids=["", "augmented"])
def test_pieces_and_recomputing_take_less(range_augment):
    choices = {"range_augment": range_augment}
    whole = step_memory(small(16, **choices, memory=Memory())).step
    recomputed = step_memory(small(16, **choices, memory=Memory(recompute=True))).step
    pieces = step_memory(small(16, **choices, memory=Memory(micro_batch=4, recompute=True))).step
    assert pieces < recomputed < whole


@pytest.mark.slow
def test_range_augment_takes_no_more_for_more_pieces():
    def taken(batch_size, **changes):
        return step_memory(small(batch_size, memory=Memory(micro_batch=8), **changes)).step

    few, many = (taken(size) - taken(size, range_augment=None) for size in (24, 48))
    assert few > 0
    assert many == pytest.approx(few, rel=0.05)
