"""A run whose output is in a store: the same files as in a folder, whole or absent, and gone on from to the bit."""

import os
import signal

import attrs
import pytest
from safetensors.torch import load

from mobileclip import storage
from mobileclip.encoders import load_model
from mobileclip.training import MetricLog, plot_curves, read_metrics, run
from mobileclip.training.checkpoint import digest
from mobileclip.training.records import compare_runs
from tests.descendants import descendants, environment_of, kill_all
from tests.errors import fails
from tests.object_store import object_store
from tests.training.program import run_spec, start, write_data
from tests.training.runs import kill, logged, trained, training_spec
from tests.waiting import wait_for

OUTPUT = "s3://data/runs/one"


@pytest.fixture(scope="module")
def server():
    with object_store(buckets={"data"}) as started:
        yield started


@pytest.fixture
def s3(server):
    server.objects.clear()
    return server


def names(s3) -> list[str]:
    return sorted(name.removeprefix("data/runs/one/") for name in list(s3.objects))


def assert_same(output, name):
    """Assert that a run in the store has the log, and a file the tensors, of one in a folder."""
    assert logged(OUTPUT) == logged(output)
    found, expected = (storage.read_bytes(f"{place}/{name}", limit=2**30) for place in (OUTPUT, output))
    assert digest(load(found)) == digest(load(expected))


def test_a_killed_run_goes_on_from_the_store_to_the_bit(s3, tmp_path):
    def evaluate(model, done):
        return {"measured": done + model.logit_scale.item()}

    spec = training_spec(8, evaluate_every_steps=3)
    trained(tmp_path, spec, evaluate=evaluate)
    kill(OUTPUT, spec, step=5, evaluate=evaluate)
    assert names(s3) == ["checkpoints/step-00000003.safetensors", "metrics.jsonl"]
    assert trained(OUTPUT, spec, evaluate=evaluate).num_steps == 5
    assert names(s3) == [*(f"checkpoints/step-0000000{step}.safetensors" for step in (6, 8)), "metrics.jsonl"]
    assert_same(tmp_path, "checkpoints/step-00000008.safetensors")
    assert not s3.uploads


def test_a_whole_run_leaves_its_choices_curves_and_model_there(s3, tmp_path):
    spec = run_spec(write_data(tmp_path / "data"), num_steps=2, num_workers=0)
    path = run(spec, OUTPUT, device="cpu")
    assert path == f"{OUTPUT}/model.safetensors"
    plot_curves({"one": f"{OUTPUT}/metrics.jsonl"}, f"{OUTPUT}/curves.png", metrics=["loss"])
    left = ["checkpoints/step-00000002.safetensors", "curves.png", "metrics.jsonl", "model.safetensors", "run.json"]
    assert names(s3) == left
    assert [group.name for group in compare_runs([OUTPUT]).groups] == [OUTPUT]
    with storage.local_copy(path) as local:
        assert load_model(local.rename(tmp_path / "model.safetensors")).spec == spec.model
    assert run(spec, OUTPUT, device="cpu") == path
    with fails(ValueError, "s3://data/runs/one", "training"):
        run(attrs.evolve(spec, training=attrs.evolve(spec.training, seed=1)), OUTPUT, device="cpu")


def test_a_damaged_checkpoint_is_set_aside_there(s3, caplog):
    kill(OUTPUT, step=7)
    with storage.atomic_write(f"{OUTPUT}/checkpoints/step-00000006.safetensors") as stream:
        stream.write(b"half")
    assert trained(OUTPUT).num_steps == 5
    assert "step-00000006.safetensors is damaged" in caplog.text
    assert "checkpoints/step-00000006.unreadable" in names(s3)


def test_a_store_that_is_not_there_is_said_before_the_first_step(s3):
    with fails(OSError, "s3://nowhere/run"):
        trained("s3://nowhere/run", stop=0)
    assert names(s3) == []


def test_a_log_in_a_store_is_written_when_asked_and_not_for_tensorboard(s3):
    log = MetricLog(f"{OUTPUT}/metrics.jsonl")
    log.write(0, {"loss": 3.0})
    write = log.written()
    log.write(1, {"loss": 2.0})
    assert read_metrics(log.path) == []
    write()
    assert [line["loss"] for line in read_metrics(log.path)] == [3.0]
    with fails(ValueError, "s3://data/runs/one/tensorboard"):
        MetricLog(log.path, tensorboard=f"{OUTPUT}/tensorboard")


@pytest.mark.slow
def test_two_processes_killed_and_started_again_by_torchrun_end_in_the_store_as_ones_that_were_not(s3, tmp_path):
    data, port = write_data(tmp_path / "data"), 24500 + os.getpid() % 1000
    for output in (OUTPUT, tmp_path / "whole"):
        process = start(data, output, num_steps=40, port=port, num_restarts=1)
        try:
            if output == OUTPUT:
                wait_for(lambda: "checkpoints/step-00000014.safetensors" in names(s3), process)
                first = next(pid for pid in descendants(process.pid) if b"\0RANK=0\0" in environment_of(pid))
                os.kill(first, signal.SIGKILL)
            _, errors = process.communicate(timeout=180)
        finally:
            kill_all(process)
        assert process.returncode == 0, errors[-3000:]
    assert_same(tmp_path / "whole", "model.safetensors")
