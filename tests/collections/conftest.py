import pytest
import torch

from mobileclip.encoders import save_model
from tests.encoders.small import SMALL, randomised


def telling(seed=0):
    """A small model whose weights are so large that it tells pictures apart."""
    model = randomised(SMALL, seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(10)
    return model


@pytest.fixture(scope="session")
def telling_file(tmp_path_factory):
    """A checkpoint of a small model that tells pictures apart."""
    path = tmp_path_factory.mktemp("telling") / "telling.safetensors"
    save_model(telling(), path)
    return path
