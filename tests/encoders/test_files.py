"""Files of weights as this library writes them, and what is refused of those that others have changed."""

import torch
from safetensors import safe_open

from mobileclip.data import read_text_input
from mobileclip.encoders import TextTransformerSpec, load_model, save_model
from mobileclip.encoders.checkpoints import write_tensors
from tests.data.tokenizer_files import bert


def test_a_safetensors_file_says_that_its_tensors_are_pytorchs(tmp_path):
    """Other libraries refuse a file that does not."""
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"mobileclip.note": "ours"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "mobileclip.note": "ours"}
        assert torch.equal(file.get_tensor("x"), torch.ones(2))


def test_a_tokenizer_comes_back_with_its_weights(tmp_path):
    bert().save(str(tmp_path / "tokenizer.json"))
    contract = read_text_input(tmp_path / "tokenizer.json", context_length=12)
    model = TextTransformerSpec(width=16, num_heads=2, depth=1, embedding_dim=12, input=contract).build()
    save_model(model, tmp_path / "text.safetensors")
    assert load_model(tmp_path / "text.safetensors").spec == model.spec
