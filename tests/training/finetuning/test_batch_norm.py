import pytest
import torch
import torch.distributed as dist
from torch import nn

from mobileclip import reparameterize
from mobileclip.encoders import load_model, save_model
from mobileclip.reparam import is_folded
from mobileclip.training import finetuning
from mobileclip.training.finetuning import FrozenBatchNorm2d, freeze_batch_norm, ordinary_batch_norm
from tests.encoders.small import SMALL, SMALL_MCT, embeddings, inputs
from tests.errors import fails
from tests.training.finetuning.models import SPECS, fresh, moved, stepped
from tests.training.runs import start_processes

STEM = "image_encoder.stem.0.branches.0"


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_frozen_norms_keep_everything_while_the_rest_trains(spec):
    model = freeze_batch_norm(fresh(spec))
    norms = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    names = moved(stepped(model.train()), fresh(spec))
    assert not any(name.startswith(tuple(norms)) for name in names)
    assert any(name.startswith("image_encoder.") and name.endswith(".weight") for name in names)


def test_frozen_norms_compute_as_in_evaluation_and_pass_gradients():
    model, (images, _) = freeze_batch_norm(fresh()).train(), inputs(SMALL)
    assert model.image_encoder.training
    y, expected = model.encode_image(images), fresh().encode_image(images)
    # In training, layer scales go into the weights, which rounds otherwise.
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(fresh().train().encode_image(images), expected, atol=1e-2)
    y.square().mean().backward()
    assert model.get_parameter(f"{STEM}.conv.weight").grad.abs().sum() > 0


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
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert not moved(loaded, model)
    # Weights that lie elsewhere in memory are multiplied by other instructions on some processors.
    torch.testing.assert_close(embeddings(loaded), expected, rtol=1e-5, atol=1e-6)


def test_what_was_frozen_is_ordinary_again_with_the_same_tensors():
    def tensors():
        return {name: id(one) for name, one in (*model.named_parameters(), *model.named_buffers())}

    model = fresh()
    before = tensors()
    ordinary_batch_norm(freeze_batch_norm(model))
    assert tensors() == before
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.train().encode_image(inputs(SMALL)[0])
    assert f"{STEM}.norm.running_mean" in moved(model, fresh())


def test_a_norm_alone_and_one_in_two_places():
    norm = freeze_batch_norm(nn.BatchNorm2d(3))
    assert isinstance(norm, FrozenBatchNorm2d)
    assert not norm.train().training
    shared = nn.BatchNorm2d(3)
    twice = freeze_batch_norm(nn.ModuleDict({"one": nn.Sequential(shared), "other": nn.Sequential(shared)}))
    assert twice["one"][0] is twice["other"][0]
    assert isinstance(twice["one"][0], FrozenBatchNorm2d)


def test_synchronised_norms_keep_names_tensors_and_evaluation(monkeypatch):
    """Alone or without GPUs they are refused. As in one of two processes, for what exchanges nothing.

    That statistics are shared is held by the test that needs GPUs.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with fails(ValueError):
        finetuning.synchronise_batch_norm(fresh())
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with fails(ValueError):
        finetuning.synchronise_batch_norm(fresh())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = fresh()
    freeze_batch_norm(model.image_encoder.stem)
    finetuning.synchronise_batch_norm(model)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm, FrozenBatchNorm2d}
    assert model.state_dict().keys() == SMALL.build().state_dict().keys()
    torch.testing.assert_close(embeddings(model.eval()), embeddings(fresh()), rtol=0, atol=0)
    ordinary_batch_norm(model)
    assert is_folded(reparameterize(model))


SYNCHRONISED = """
import os
import torch, torch.distributed as dist
from mobileclip.training.finetuning import synchronise_batch_norm
from tests.encoders.small import SMALL, inputs
from tests.training.finetuning.models import fresh
device = torch.device("cuda", int(os.environ["RANK"]) % torch.cuda.device_count())
torch.cuda.set_device(device)
dist.init_process_group("gloo")  # NCCL takes no two processes on one GPU
images = inputs(SMALL, batch=8)[0].to(device)
alone, part = fresh().to(device).train(), slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
expected = alone.encode_image(images)
shared = synchronise_batch_norm(fresh()).to(device).train()
torch.testing.assert_close(shared.encode_image(images[part]), expected[part], rtol=1e-3, atol=1e-4)
torch.testing.assert_close(shared.state_dict(), alone.state_dict(), rtol=1e-3, atol=1e-4)
print("equal")
dist.destroy_process_group()
"""


@pytest.mark.gpu
def test_synchronised_norms_take_the_statistics_of_all_processes():
    """Two processes with half of a batch each give the statistics and outputs of one with the whole batch."""
    said = [process.communicate(timeout=120)[0].strip() for process in start_processes(SYNCHRONISED)]
    assert said == ["equal", "equal"]
