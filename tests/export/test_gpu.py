"""A model that was trained on a GPU becomes the same files."""

import pytest
import torch

from mobileclip.encoders import load_model, save_model
from mobileclip.export import ExportSpec, export_model, verify_export
from tests.export.models import CONVOLUTIONAL, pixels, seeing

pytestmark = pytest.mark.gpu


@pytest.fixture
def trained(gpu):
    """A model after a few steps on the GPU."""
    model = seeing(CONVOLUTIONAL).to(gpu).train()
    images = pixels(CONVOLUTIONAL.image.input)[:4].to(gpu)
    texts = torch.randint(1, 600, (4, 12), generator=torch.Generator().manual_seed(0)).to(gpu)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        similarities = model.encode_image(images) @ model.encode_text(texts).T
        torch.nn.functional.cross_entropy(similarities, torch.arange(4, device=gpu)).backward()
        optimizer.step()
    return model.eval()


def test_its_file_holds_what_it_computes(trained, gpu, tmp_path):
    save_model(trained, tmp_path / "trained.safetensors")
    loaded = load_model(tmp_path / "trained.safetensors")
    images = pixels(CONVOLUTIONAL.image.input)[:4]
    with torch.inference_mode():
        expected = trained.double().encode_image(images.to(gpu).double()).cpu().float()
        torch.testing.assert_close(loaded.encode_image(images), expected, rtol=1e-4, atol=1e-4)


def test_its_export_passes_the_checks_and_leaves_it_where_it_is(trained, gpu, tmp_path):
    folder = export_model(trained, ExportSpec(output=tmp_path / "export", target="torch"))
    assert verify_export(folder).passed
    assert {parameter.device.type for parameter in trained.parameters()} == {gpu.type}
