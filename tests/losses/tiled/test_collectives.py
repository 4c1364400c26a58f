"""The losses over several processes against one process with the whole batch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import distributed

from mobileclip.losses import dense_loss
from tests.losses.embeddings import SPECS
from tests.losses.processes import (
    SCALE,
    SIZES,
    forked,
    local_batch,
    spawn,
    texts,
    trained,
    value_and_gradients,
    whole_batch,
)


@pytest.fixture(scope="module")
def results():
    return forked()


def assert_mean_is_whole(parts: list[dict], whole: dict, **tolerance):
    """The mean of the values and, as DistributedDataParallel takes it, of the gradients."""
    assert len(whole) > 4
    for name, expected in whole.items():
        shares = [part[name] for part in parts]
        # The rows of one process: the others' gradients by them are zero.
        found = torch.stack(shares).mean(dim=0) if expected.ndim == 0 else torch.cat(shares) / len(shares)
        torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SPECS)
def test_the_mean_is_the_whole_batch(results, name, size):
    spec = SPECS[name]
    parts = [result[f"{name} {size}"] for result in results[4 - size :]]
    whole = value_and_gradients(spec.build().double(), whole_batch(spec, size))
    assert_mean_is_whole(parts, whole, rtol=1e-12, atol=1e-12)
    dense = dense_loss(spec, **whole_batch(spec, size), logit_scale=SCALE, logit_bias=-3.0).total
    torch.testing.assert_close(whole["total"], dense.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_texts_are_distilled_as_one_batch(results, size):
    assert_mean_is_whole([one[f"texts {size}"] for one in results[4 - size :]], texts(size), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_shares_are_not_the_loss_itself(results, size):
    """Each process adds what its own rows say."""
    shares = {result[f"reinforced {size}"]["total"].item() for result in results[4 - size :]}
    assert len(shares) == size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["sigmoid", "reinforced"])
def test_what_all_processes_hold_gets_one_gradient(results, name, size):
    for parameter in ("logit_scale", *dict(SPECS[name].build().named_parameters())):
        gradients = [result[f"{name} {size}"][parameter].item() for result in results[4 - size :]]
        assert len(set(gradients)) == 1


@pytest.mark.parametrize("size", SIZES)
def test_a_model_in_distributed_data_parallel_learns_as_alone(results, size):
    expected = trained(SPECS["reinforced"], size)
    assert len(expected) == 5
    for result in results[4 - size :]:
        for name, gradient in expected.items():
            torch.testing.assert_close(result[f"trained {size}"][name], gradient, rtol=1e-12, atol=1e-12)


def test_compiled(results):
    """One graph, the exchanges between the processes among it."""
    for result in results[2:]:
        for name, expected in result["reinforced 2"].items():
            torch.testing.assert_close(result["compiled"][name], expected)


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16(results, size):
    spec = SPECS["reinforced"]
    parts = [result[f"bfloat16 {size}"] for result in results[4 - size :]]
    assert parts[0]["image"].dtype == torch.bfloat16
    whole = value_and_gradients(spec.build(), whole_batch(spec, size, torch.bfloat16))
    assert_mean_is_whole(parts, whole, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("mistake", "culprit", "own", "others"),
    [
        (
            "short",
            None,
            r"the number of pairs must be equal in all processes, but the values by process are \[3, 3, 3, 2\]",
            None,
        ),
        ("plain", 1, "teacher_syn_text|the number of caption sets", r"the number of caption sets .* \[2, 1, 2, 2\]"),
        ("broken", 2, "image has 3 rows and text has 2", "process 2 of 4 has an invalid batch"),
        (
            "narrow",
            None,
            r"the embeddings' dim must be equal in all processes, but the values by process are \[4, 5, 5, 5\]",
            None,
        ),
        ("mixed", None, "the dtype of the teachers' text embeddings must be equal", None),
    ],
)
def test_batches_that_do_not_fit_are_refused_by_all(results, mistake, culprit, own, others):
    for rank, result in enumerate(results):
        message = result["mistakes"][mistake]
        expected = own if culprit in (None, rank) else others
        assert re.search(expected, message), message


def test_the_group_works_on_after_a_refusal(results):
    assert [result["mistakes"]["good"] for result in results] == ["accepted"] * 4


def test_the_dense_backend_is_of_one_process(results):
    assert all("backend 'dense' needs one process" in result["mistakes"]["dense"] for result in results)


def test_a_process_without_gradients_does_not_keep_the_others_waiting(results):
    spec = SPECS["reinforced"]
    whole = whole_batch(spec, 4)
    spec.build()(**whole, logit_scale=SCALE).total.backward()
    for result in results:
        assert result["same"]["plain"].item() == pytest.approx(result["same"]["total"].item(), rel=1e-14)
    torch.testing.assert_close(results[3]["same"]["text"] / 4, whole["text"].grad[9:], rtol=1e-12, atol=1e-12)


def on_gpus(rank: int, folder: str) -> None:
    """Save what each process computes on its GPU."""
    size = torch.cuda.device_count()
    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    results = {}
    for name, spec in SPECS.items():
        inputs = {
            key: value.detach().cuda().requires_grad_(value.requires_grad)
            for key, value in local_batch(spec, size, rank).items()
        }
        loss = spec.build(process_group=distributed.group.WORLD).double().cuda()
        results[name] = value_and_gradients(loss, inputs)
    torch.save(results, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.gpu
def test_nccl():
    size = torch.cuda.device_count()
    results = spawn(on_gpus, size)
    for name, spec in SPECS.items():
        whole = value_and_gradients(spec.build().double(), whole_batch(spec, size))
        assert_mean_is_whole([result[name] for result in results], whole, rtol=1e-12, atol=1e-12)
