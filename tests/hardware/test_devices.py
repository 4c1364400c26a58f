"""One choice of a device for every command, and no float64 on those that have none."""

from __future__ import annotations

import pytest
import torch

from mobileclip import reparameterize
from mobileclip.evaluation.metrics import hit_probability
from mobileclip.hardware import all_devices, has_float64, in_float64, pick_device
from mobileclip.inference.comparison import largest_error, smallest_cosine
from mobileclip.losses import distillation_target_kl
from mobileclip.training import process_group, train
from tests.errors import fails
from tests.no_float64 import no_float64
from tests.training.runs import MODEL, Batches, new_model, training_spec


@pytest.fixture
def machine(monkeypatch):
    """Say what devices there are."""

    def has(*, num_gpus: int = 0, mps: bool = False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return has


def test_auto_is_the_best_there_is(machine):
    machine()
    assert (pick_device(), all_devices()) == (torch.device("cpu"), ("cpu",))
    machine(mps=True)
    assert (pick_device("auto"), all_devices()) == (torch.device("mps"), ("mps",))
    machine(num_gpus=2, mps=True)
    assert (pick_device(), all_devices()) == (torch.device("cuda:0"), ("cuda:0", "cuda:1"))
    assert pick_device(local_rank=1) == torch.device("cuda:1")
    with fails(ValueError, "2"):
        pick_device(local_rank=2)


@pytest.mark.parametrize("name", ["mps", "cuda:77", "cudo", "gpu", ""])
def test_a_device_that_is_not_there_is_refused_by_name(name):
    with fails(ValueError, f"'{name}'", "cpu"):
        pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")


def test_several_processes_do_not_meet_on_an_apple_gpu(machine, monkeypatch):
    machine(mps=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))  # as if it had computed there
    with fails(ValueError), process_group("mps"):
        pass


def test_what_would_be_refused_there_is_refused_here():
    with no_float64():
        assert in_float64(torch.ones(2)).sum().dtype == torch.float64  # on the CPU
        with pytest.raises(TypeError, match="no float64"):
            torch.ones(2).double()
        with pytest.raises(TypeError, match="no float64"):
            torch.zeros(2, dtype=torch.float64)
    assert in_float64(torch.ones(2)).dtype == torch.float64


def test_apple_gpus_have_none():
    assert not has_float64(torch.device("mps"))
    assert has_float64(torch.device("cpu"))


def test_training_needs_no_float64(tmp_path):
    with no_float64():
        there = train(training_spec(3), model=new_model(), batches=Batches(), output=tmp_path / "there").model
    here = train(training_spec(3), model=new_model(), batches=Batches(), output=tmp_path / "here").model
    assert all(torch.equal(value, here.state_dict()[name]) for name, value in there.state_dict().items())


def test_folding_needs_no_float64():
    model, image = MODEL.build().eval(), torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        expected = model.encode_image(image)
        with no_float64():
            folded = reparameterize(model)
        torch.testing.assert_close(folded.encode_image(image), expected, atol=1e-4, rtol=1e-4)


def test_ranking_and_measuring_need_no_float64_of_the_device():
    torch.manual_seed(0)
    scores, relevant = torch.randn(6, 8), torch.rand(6, 8) < 0.3
    relevant[:, 0] = True
    image, text = torch.randn(8, 12), torch.randn(8, 12)
    stored = image.bfloat16().float()

    def measured():
        return (
            hit_probability(scores, relevant, 2).tolist(),
            smallest_cosine(image, text),
            largest_error(image, text),
            distillation_target_kl(
                stored, text, exact_image=image, exact_text=text, teacher_dims=(5, 7), teacher_logit_scales=(9.0, 9.0)
            ),
        )

    expected = measured()
    with no_float64():
        assert measured() == expected
