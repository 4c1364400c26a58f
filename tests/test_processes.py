"""Every launcher's variables give one place, and everybody who asks gets the same."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from mobileclip.data import ReinforcedPipelineSpec, write_shards
from mobileclip.inputs import ImageInput
from mobileclip.processes import DistributedInfo, first_host, this_process
from tests.data.made_samples import make_sample
from tests.errors import fails

STEP = {"SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
STEP |= {"SLURM_STEP_NODELIST": "node[003-007,009],other12"}


@pytest.fixture
def variables(monkeypatch):
    """Set a launcher's variables, those of no other."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS", *STEP):
        monkeypatch.delenv(name, raising=False)

    def are(values: dict[str, str]) -> DistributedInfo:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return this_process()

    return are


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({}, DistributedInfo()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, DistributedInfo(rank=3, size=4, local_rank=1)),
        (STEP | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, DistributedInfo(rank=1, size=2)),
        ({name: "0" if name == "SLURM_PROCID" else STEP[name] for name in [*STEP][:-1]}, DistributedInfo()),
    ],
    ids=["alone", "torchrun", "torchrun in a step comes first", "a batch script itself is one process"],
)
def test_a_process_knows_its_place(variables, values, place):
    assert variables(values) == place
    assert this_process().is_first == (place.rank == 0)


def test_srun(variables):
    place = variables(STEP)
    assert (place.rank, place.size, place.local_rank) == (5, 8, 1)
    assert place.init_method == f"tcp://node003:{10_000 + 1234567 % 20_000}"
    other_rank = variables({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"})
    assert (other_rank.init_method, other_rank.is_first) == (place.init_method, True)
    for other in ({"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "1234568", "SLURM_STEP_ID": "0"}):
        assert variables(other).init_method != place.init_method
    # What a step counts and what a person says come first.
    place = variables({"SLURM_STEP_NUM_TASKS": "6", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"})
    assert (place.size, place.init_method) == (6, "tcp://10.0.0.7:29500")
    with fails(ValueError, "SLURM_PROCID", "x"):
        variables({"SLURM_PROCID": "x"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node003", "node003"),
        ("node003,node009", "node003"),
        ("node[003-007,009]", "node003"),
        ("node[12]", "node12"),
        ("node[9,3-4]-ib,login1", "node9-ib"),
        ("rack[1-2]node[01-04]", "rack1node01"),
        ("gpu-a.cluster.example,gpu-b.cluster.example", "gpu-a.cluster.example"),
        *((nodes, None) for nodes in ("", ",a", "node[003", "node]3", "[]")),
    ],
)
def test_the_first_host_of_a_list(nodes, host):
    with fails(ValueError) if host is None else nullcontext():
        assert first_host(nodes) == host


def test_the_data_asks_here_too(variables, tmp_path):
    write_shards(tmp_path, [make_sample(index) for index in range(8)], samples_per_shard=1)
    shards, taken = str(tmp_path / "{00000000..00000007}.tar"), set()
    spec = ReinforcedPipelineSpec(shards=shards, batch_size=2, image=ImageInput(size=32), num_samples=8)
    for rank in "10":
        variables(STEP | {"SLURM_NTASKS": "2", "SLURM_PROCID": rank})
        taken.update(next(iter(spec.build().stream())).keys)
    assert len(taken) == 4
