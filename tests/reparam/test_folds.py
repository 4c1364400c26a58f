"""Models of other libraries fold by their own means, or are said to stay as they are."""

import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.blocks import RepMixer
from mobileclip.reparam import folds
from tests.blocks.filling import filled, noise
from tests.lazily import lazily

timm = lazily("timm")


@pytest.mark.parametrize("name", ["fastvit_t8", "mobileone_s0", "repvgg_a0", "repvit_m0_9"])
def test_models_of_timm_fold(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.running_mean, -0.1, 0.1)
    x = noise(1, 3, 64, 64)
    both = nn.Sequential(nn.Identity(), model).eval()
    folded = reparameterize(both, check=x)
    norms = [[module for module in each.modules() if isinstance(module, nn.BatchNorm2d)] for each in (both, folded)]
    assert len(norms[1]) < len(norms[0]) / 2
    torch.testing.assert_close(folded(x), both(x), rtol=1e-3, atol=1e-4)


def test_a_part_of_a_timm_model_folds():
    stage = timm.create_model("mobileone_s0", num_classes=3).eval().stages[0]
    folded = reparameterize(stage[0])
    assert isinstance(folded.reparam_conv, nn.Conv2d)
    assert stage[0].reparam_conv is None


class Deployable(nn.Module):
    def forward(self, x):
        return x

    def switch_to_deploy(self):
        raise NotImplementedError


def test_what_nobody_has_registered_is_said_to_stay():
    model = nn.Sequential(RepMixer(4), Deployable()).eval()
    with pytest.warns(UserWarning, match="a Deployable stays unfolded, though it has a method 'switch_to_deploy'"):
        folded = reparameterize(model)
    assert type(folded[0]) is nn.Conv2d
    assert type(folded[1]) is Deployable


def test_a_library_can_register_its_fold(monkeypatch):
    monkeypatch.setattr(Deployable, "__module__", "somebodys.blocks")
    folds.add("somebodys", lambda _: nn.Identity())
    model, x = nn.Sequential(filled(RepMixer(4)), Deployable()).eval(), noise(1, 4, 5, 5)
    folded = reparameterize(model, check=x)
    assert type(folded[1]) is nn.Identity
