"""One file out: a quantised model is saved and loaded as any other, and computes the same in int8, to the bit."""

import pytest
import torch

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.encoders import load_model, save_model
from mobileclip.export import bundled_samples
from mobileclip.inference.quantization import observed_ranges, rounded, with_rounded_weights
from mobileclip.reparam import with_children
from tests.export.models import CONVOLUTIONAL, TOKENS, pixels, seeing


@pytest.mark.usefixtures("one_thread")
def test_a_model_comes_back_with_weights_on_their_grid_and_the_same_embeddings_in_int8(tmp_path):
    model = reparameterize(seeing(CONVOLUTIONAL)).requires_grad_(requires_grad=False)
    inputs = {
        "image_encoder": pixels(CONVOLUTIONAL.image.input),
        "text_encoder": Tokenizer(TOKENS)(bundled_samples().captions),
    }
    towers = {}
    for name, own in inputs.items():
        tower = model.get_submodule(name)
        ranges = observed_ranges(tower, lambda own=own: [own])
        towers[name] = with_rounded_weights(tower, rounded(tower, ranges))
    save_model(with_children(model, towers), tmp_path / "int8.safetensors")
    loaded = load_model(tmp_path / "int8.safetensors")
    for name, own in inputs.items():
        tower, kept = loaded.get_submodule(name), towers[name]
        assert torch.equal(tower(own), kept(own))
        assert torch.equal(rounded(tower, tower.ranges)(own), rounded(kept, kept.ranges)(own))
