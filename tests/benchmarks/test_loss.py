"""The comparison of the losses' time and memory, on a batch that is small but has matrices larger than a tile."""

import attrs
import pytest
import torch

from benchmarks.harness import LostProcessError, Seconds, run
from benchmarks.loss import LossBenchSpec, Measurement, compare, embeddings, forward

SMALL = LossBenchSpec(batch=64, large_batch=None, dim=8, teacher_dims=(4, 6), contrastive_weight=0.25)


def test_both_sides_take_the_batch_and_one_the_large_one():
    cases = list(LossBenchSpec(batch=8, large_batch=9).cases())
    assert [case.labels["batch"] for case in cases] == ["8", "9"]
    assert [case.measure.args[-1] for case in cases] == [("dense", "tiled"), ("tiled",)]


def test_embeddings_are_unit_length_and_the_same_for_both_sides():
    inputs = embeddings(SMALL, 300)
    assert [tuple(inputs[name].shape) for name in ("syn_text", "teacher_syn_text")] == [(300, 8), (300, 10)]
    torch.testing.assert_close(inputs["image"].norm(dim=1), torch.ones(300))
    for part in inputs["teacher_text"].split((4, 6), dim=1):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(300))
    assert torch.equal(inputs["text"], embeddings(SMALL, 300)["text"])


def test_both_sides_compute_the_same_loss():
    inputs = embeddings(SMALL, 64)
    scale = torch.tensor(100.0)
    tiled, dense = (forward(side, SMALL, inputs, scale) for side in ("tiled", "dense"))
    for term in ("contrastive", "distillation"):
        assert getattr(tiled, term).item() == pytest.approx(getattr(dense, term).item(), rel=1e-5)


def measured(value, *, num_bytes=2**30):
    return Measurement(seconds=Seconds(wall=value, cpu=1.0), bytes=num_bytes, value=2.0)


def test_losses_that_differ_are_not_compared(monkeypatch):
    results = (attrs.evolve(measured(1.0), value=value) for value in (2.0, 2.1))
    monkeypatch.setattr("benchmarks.loss.in_own_process", lambda *_: next(results))
    with pytest.raises(ValueError, match=r"(dense|tiled) gives 2\.[01] where (dense|tiled) gave 2\.[01]"):
        compare(attrs.evolve(SMALL, repeats=1), 64, ("dense", "tiled"))


def test_ratios_are_of_neighbours_and_a_side_without_memory_is_noted(monkeypatch):
    seconds = {"dense": iter((4.0, 8.0, 6.0)), "tiled": iter((2.0, 2.0, 6.0))}
    monkeypatch.setattr("benchmarks.loss.in_own_process", lambda _, __, ___, side: measured(next(seconds[side])))
    (row,) = compare(attrs.evolve(SMALL, repeats=3), 2**14, ("dense", "tiled"))
    assert [row.values[name].number for name in ("dense", "tiled", "tiled / dense")] == [6.0, 2.0, 0.5]
    assert [row.values[f"tiled {name}"].number for name in ("memory", "batch x batch matrices")] == [1.0, 1.0]

    def lacking(function, spec, batch, side):
        if side == "dense":
            raise LostProcessError("OutOfMemoryError: CUDA out of memory. Tried to allocate 64 GiB.")
        return measured(2.0)

    monkeypatch.setattr("benchmarks.loss.in_own_process", lacking)
    (row,) = compare(SMALL, 64, ("dense", "tiled"))
    assert row.notes == {"dense": "OutOfMemoryError: CUDA out of memory"}
    assert "tiled" in row.values
    assert row.failure is None
    (row,) = compare(SMALL, 64, ("dense",))
    assert row.failure == "OutOfMemoryError: CUDA out of memory"


@pytest.mark.slow
def test_memory_in_processes_of_their_own():
    spec = LossBenchSpec(
        batch=2304, large_batch=4608, dim=8, teacher_dims=(4,), syn_captions=False, repeats=1, threads=1
    )
    both, large = (row.values for row in run(spec, "loss").rows)
    dense, tiled = both["dense memory"].number * 2**30, both["tiled memory"].number * 2**30
    assert dense > 6 * 4 * 2304**2
    assert 0 < tiled < dense / 3
    assert large["tiled memory"].number * 2**30 < dense / 3
    assert min(both["dense"].number, both["tiled"].number, large["tiled CPU"].number) > 0


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU is available"):
        list(LossBenchSpec(device="cuda").cases())
