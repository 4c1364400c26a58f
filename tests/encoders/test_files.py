import torch
from safetensors import safe_open

from mobileclip.encoders.checkpoints import write_tensors


def test_a_safetensors_file_says_that_its_tensors_are_pytorchs(tmp_path):
    """Other libraries refuse a file that does not."""
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"mobileclip.note": "ours"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "mobileclip.note": "ours"}
        assert torch.equal(file.get_tensor("x"), torch.ones(2))
