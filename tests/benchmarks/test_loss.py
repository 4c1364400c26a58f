"""The comparison of the losses' time and memory, on a batch that is small but has matrices larger than a tile."""

import math

import pytest
import torch

from benchmarks.loss import LossBenchSpec, Measurement, embeddings, forward, measurements, plan, run

SMALL = LossBenchSpec(batch=64, large_batch=None, dim=8, teacher_dims=(4, 6), contrastive_weight=0.25)


def test_sides_alternate():
    assert plan(LossBenchSpec(batch=8, large_batch=9)) == [
        ("dense", 8),
        ("tiled", 8),
        ("tiled", 8),
        ("dense", 8),
        ("dense", 8),
        ("tiled", 8),
        ("tiled", 9),
    ]


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


def test_losses_that_differ_are_not_compared(monkeypatch):
    results = (Measurement(seconds=1.0, cpu_seconds=1.0, bytes=1, value=value) for value in (2.0, 2.1))
    monkeypatch.setattr("benchmarks.loss.in_own_process", lambda *_: next(results))
    with pytest.raises(ValueError, match=r"tiled gives 2\.1 where 2\.0 was given before"):
        list(measurements(SMALL))


@pytest.mark.slow
def test_memory_in_processes_of_their_own():
    spec = LossBenchSpec(
        batch=2304, large_batch=4608, dim=8, teacher_dims=(4,), syn_captions=False, repeats=1, threads=1
    )
    (_, _, dense), (_, _, tiled), (_, batch, large) = measurements(spec)
    assert dense.bytes > 6 * 4 * 2304**2
    assert 0 < tiled.bytes < dense.bytes / 3
    assert batch == 4608
    assert large.bytes < dense.bytes / 3
    assert math.isfinite(large.value)
    assert min(dense.seconds, tiled.seconds, large.cpu_seconds) > 0


def test_the_table(capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.loss.in_own_process", lambda function, *arguments: function(*arguments))
    run(LossBenchSpec(batch=32, large_batch=64, dim=4, teacher_dims=(3,), repeats=1))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[-3:]] == [["dense", "32"], ["tiled", "32"], ["tiled", "64"]]


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU is available"):
        run(LossBenchSpec(device="cuda"))
