from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mobileclip import reparameterize
from mobileclip.encoders import load_model, save_model
from mobileclip.reparam import is_folded
from mobileclip.training.finetuning import (
    FrozenBatchNorm2d,
    freeze_batch_norm,
    ordinary_batch_norm,
    synchronise_batch_norm,
)
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT, embeddings, inputs
from tests.errors import fails
from tests.training.finetuning.models import fresh
from tests.training.runs import start_processes

SPECS = {"mci": SMALL, "mct": SMALL_MCT, "vit": SMALL_VIT}


def loss_of(model):
    images, tokens = inputs(model.spec, batch=3)
    return model.encode_image(images).square().mean() + model.encode_text(tokens).square().mean()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_frozen_norms_keep_everything_while_the_rest_trains(spec):
    model = freeze_batch_norm(fresh(spec))
    held = {
        name: value.clone()
        for prefix, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name, value in module.state_dict(prefix=f"{prefix}.").items()
    }
    assert len(held) >= 5
    model.train()
    assert model.image_encoder.training
    optimizer = torch.optim.SGD((one for one in model.parameters() if one.requires_grad), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in held.items())
    original = fresh(spec).state_dict()
    moved = {name for name in after if not torch.equal(after[name], original[name])}
    assert moved.isdisjoint(held)
    assert any(name.startswith("image_encoder.") and name.endswith(".weight") for name in moved)


def test_frozen_norms_compute_as_in_evaluation_and_pass_gradients():
    model = freeze_batch_norm(fresh(SMALL)).train()
    images, _ = inputs(SMALL)
    expected = fresh(SMALL).encode_image(images)
    # In training, layer scales go into the weights, which rounds otherwise.
    torch.testing.assert_close(model.encode_image(images), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(fresh(SMALL).train().encode_image(images), expected, atol=1e-2)
    loss_of(model).backward()
    assert model.image_encoder.stem[0].branches[0].conv.weight.grad.abs().sum() > 0


def test_frozen_models_keep_their_names_fold_and_save(tmp_path):
    model = freeze_batch_norm(fresh(SMALL_MCT))
    assert model.state_dict().keys() == SMALL_MCT.build().state_dict().keys()
    expected = embeddings(fresh(SMALL_MCT))
    folded = reparameterize(model.eval())
    assert is_folded(folded)
    torch.testing.assert_close(embeddings(folded), expected, rtol=1e-4, atol=1e-5)
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors", fold=False)
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in loaded.modules())
    saved, kept = loaded.state_dict(), model.state_dict()
    assert saved.keys() == kept.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in kept.items())
    # Weights that lie elsewhere in memory are multiplied by other instructions on some processors.
    torch.testing.assert_close(embeddings(loaded), expected, rtol=1e-5, atol=1e-6)


def test_what_was_frozen_is_ordinary_again_with_the_same_tensors():
    model = fresh(SMALL)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    ordinary_batch_norm(freeze_batch_norm(model))
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    now = dict(model.named_parameters()) | dict(model.named_buffers())
    assert now.keys() == tensors.keys()
    assert all(now[name] is tensors[name] for name in tensors)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train()
    before = model.image_encoder.stem[0].branches[0].norm.running_mean.clone()
    model.encode_image(inputs(SMALL)[0])
    assert not torch.equal(model.image_encoder.stem[0].branches[0].norm.running_mean, before)


def test_a_norm_alone_and_one_in_two_places():
    norm = freeze_batch_norm(nn.BatchNorm2d(3))
    assert isinstance(norm, FrozenBatchNorm2d)
    assert not norm.train().training
    shared = nn.BatchNorm2d(3)
    twice = freeze_batch_norm(nn.ModuleDict({"one": nn.Sequential(shared), "other": nn.Sequential(shared)}))
    assert twice["one"][0] is twice["other"][0]
    assert isinstance(twice["one"][0], FrozenBatchNorm2d)


@pytest.fixture
def two_processes(monkeypatch):
    """As in one of two processes, for what exchanges nothing."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)


@pytest.mark.parametrize("processes", ["alone", "without GPUs"])
def test_synchronising_alone_or_without_gpus_is_refused(processes, request, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if processes == "without GPUs":
        request.getfixturevalue("two_processes")
    with fails(ValueError):
        synchronise_batch_norm(fresh(SMALL))


@pytest.mark.usefixtures("two_processes")
def test_synchronised_norms_keep_names_tensors_and_evaluation(monkeypatch):
    """What the exchange itself does; that statistics are shared is held by the test that needs GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = fresh(SMALL)
    freeze_batch_norm(model.image_encoder.stem)
    synchronise_batch_norm(model)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm, FrozenBatchNorm2d}
    assert model.state_dict().keys() == SMALL.build().state_dict().keys()
    torch.testing.assert_close(embeddings(model.eval()), embeddings(fresh(SMALL)), rtol=0, atol=0)
    ordinary_batch_norm(model)
    assert is_folded(reparameterize(model))


@pytest.mark.gpu
def test_synchronised_norms_take_the_statistics_of_all_processes():
    """Two processes with half of a batch each give the statistics and outputs of one with the whole batch."""
    program = """
import os
import torch, torch.distributed as dist
from mobileclip.training.finetuning import synchronise_batch_norm
from tests.encoders.small import SMALL, inputs
from tests.training.finetuning.models import fresh
device = torch.device("cuda", int(os.environ["RANK"]) % torch.cuda.device_count())
torch.cuda.set_device(device)
dist.init_process_group("gloo")  # NCCL takes no two processes on one GPU
images = inputs(SMALL, batch=8)[0].to(device)
alone = fresh(SMALL).to(device).train()
expected = alone.encode_image(images)
shared = synchronise_batch_norm(fresh(SMALL)).to(device).train()
rank = dist.get_rank()
found = shared.encode_image(images[4 * rank : 4 * rank + 4])
torch.testing.assert_close(found, expected[4 * rank : 4 * rank + 4], rtol=1e-3, atol=1e-4)
for name, value in alone.state_dict().items():
    torch.testing.assert_close(shared.state_dict()[name], value, rtol=1e-3, atol=1e-4)
print("equal")
dist.destroy_process_group()
"""
    processes = start_processes(program)
    said = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert said == ["equal", "equal"]
