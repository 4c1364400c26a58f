"""Headers of recipes: what they hold, and that it is so; and what recipes choose, which is what was recorded."""

import json
import re

import attrs
import pytest

from mobileclip.recipes import header_of, read_header, recipe_files
from tests.recipes.choices import CHOICES, FOLDER, OF_OTHER_MODELS, TRAINING, run_of, runs_of
from tests.recipes.step_memory import step_memory

GIB, MOST = 2**30, 72
TEXT = r"""Do one thing
well.

Command:   torchrun recipes/x.py \
               --data a.tar
           python recipes/x.py
Hardware:  a GPU; or
           two

Prose in
two lines.
"""


def test_a_header_is_read_and_described():
    header = read_header(TEXT)
    command = "torchrun recipes/x.py --data a.tar\npython recipes/x.py"
    assert (header.title, header.prose) == ("Do one thing well.", ("Prose in two lines.",))
    assert header.entries == {"Command": command, "Hardware": "a GPU; or two"}
    assert read_header(header.description()) == header
    assert header.description().splitlines()[-1] == "Hardware:  a GPU; or two"
    assert read_header(None).description() == ""


@pytest.mark.parametrize("name", recipe_files())
def test_every_recipe_says_what_it_needs(name):
    header = header_of(recipe_files()[name])
    assert {"Command", "Try it", "Hardware", "Time", "Result", "Source"} == header.entries.keys()
    assert [*header.rows] == [row for one in runs_of(name) if (row := one.partition(" ")[2])]
    assert all(f"recipes/{name}.py" in line for line in header.entries["Command"].splitlines())


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_the_golden_ones(name):
    """`python -m tests.recipes.choices` writes them all."""
    assert json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) == CHOICES[name]()


@pytest.mark.parametrize("name", [*TRAINING, *OF_OTHER_MODELS, "finetune_coca"])
def test_a_run_sees_as_many_samples_as_its_header_states(name):
    said = header_of(recipe_files()[name]).entries["Time"]
    stated, unit = re.search(r"(\d+) (million|billion) (?:samples|images|pairs)", said).groups()
    for run in runs_of(name).values():
        seen = run.data.batch_size * run.training.total_steps
        assert round(seen / {"million": 1e6, "billion": 1e9}[unit]) == int(stated)


def in_header(name):
    """Return what a recipe trains, its processes, and what its header says of pieces and of memory by recomputation."""
    header = header_of(recipe_files()[name])
    num_processes = int(re.search(r"--nproc-per-node (\d+)", header.entries["Command"])[1])
    said = re.match(
        r"(\d+) GPUs, each with (\d+) micro-batches of (\d+) in (\d+) GiB"
        r"(?: with recomputation \(25 % more compute\), (\d+) GiB without\.|; (\d+) GiB with --recompute,)",
        header.entries["Hardware"],
    )
    num_gpus, num_pieces, piece, own, without, with_it = (int(number or 0) for number in said.groups())
    gibibytes = {True: own, False: without} if without else {False: own, True: with_it}
    return run_of(name), num_processes, (num_gpus, num_pieces, piece), gibibytes


@pytest.mark.parametrize("name", TRAINING)
def test_a_header_s_pieces_make_the_batch_and_fit(name):
    """A recipe recomputes where its micro-batches do not fit otherwise."""
    run, num_processes, (num_gpus, num_pieces, piece), gibibytes = in_header(name)
    assert (num_gpus, piece) == (num_processes, run.training.memory.micro_batch)
    assert num_gpus * num_pieces * piece == run.data.batch_size
    assert gibibytes[run.training.memory.recompute] <= MOST, "a GPU of 80 GB has 79 GiB, of which libraries take some"
    assert run.training.memory.recompute == (gibibytes[False] > MOST)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_a_header_says_how_much_memory_is_computed(name):
    run, num_processes, _, gibibytes = in_header(name)
    for recompute, said in gibibytes.items():
        memory = attrs.evolve(run.training.memory, recompute=recompute)
        traced = attrs.evolve(run, training=attrs.evolve(run.training, memory=memory))
        assert step_memory(traced, num_processes=num_processes) / GIB == pytest.approx(said, abs=1)
