"""Files of weights as this library writes them, and what is refused of those that others have changed."""

import base64
import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mobileclip.data import read_text_input
from mobileclip.encoders import CheckpointError, TextTransformerSpec, load_model, save_model
from mobileclip.encoders.checkpoints import write_tensors
from mobileclip.inputs import MAX_TOKENIZER_BYTES
from tests.data.tokenizer_files import bert
from tests.encoders.small import randomised


def test_a_safetensors_file_says_that_its_tensors_are_pytorchs(tmp_path):
    """Other libraries refuse a file that does not."""
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"mobileclip.note": "ours"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "mobileclip.note": "ours"}
        assert torch.equal(file.get_tensor("x"), torch.ones(2))


@pytest.fixture
def with_tokenizer(tmp_path):
    """A function from what becomes of the tokenizer in a file's metadata to that file, and the model in it."""
    bert().save(str(tmp_path / "tokenizer.json"))
    contract = read_text_input(tmp_path / "tokenizer.json", context_length=12)
    spec = TextTransformerSpec(width=16, num_heads=2, depth=1, embedding_dim=12, input=contract)
    model, path = randomised(spec), tmp_path / "text.safetensors"
    save_model(model, path)

    def changed(change):
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stored = change(metadata.pop("mobileclip.tokenizer"))
        other = metadata if stored is None else metadata | {"mobileclip.tokenizer": stored}
        save_file(tensors, tmp_path / "other.safetensors", other)
        return tmp_path / "other.safetensors", model

    return changed


def test_a_tokenizer_comes_back_with_its_weights(with_tokenizer):
    path, model = with_tokenizer(lambda stored: stored)
    assert load_model(path).spec == model.spec


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: None, "the file holds none, and its model names one"),
        (lambda stored: f"*{stored}", "it is damaged"),
        (lambda stored: f"{stored[:40]} {stored[40:]}", "it is damaged"),
        (lambda stored: stored[: len(stored) // 8 * 4], ""),
        (lambda _: base64.b64encode(b"text").decode(), "it is damaged"),
        (lambda _: base64.b64encode(zlib.compress(b"\xff")).decode(), "it is damaged"),
        (lambda _: base64.b64encode(zlib.compress(bytes(MAX_TOKENIZER_BYTES + 1))).decode(), "it has more than"),
    ],
)
def test_a_tokenizer_that_is_damaged_is_told(with_tokenizer, change, said):
    path, _ = with_tokenizer(change)
    with pytest.raises(CheckpointError, match=f"the tokenizer in .*other.safetensors cannot be used: {said}"):
        load_model(path)


def test_of_a_contract_that_is_too_large_nothing_is_read(tmp_path):
    """It holds some kilobytes, and a stranger's may be of any size."""
    contract = tmp_path / "mobileclip.json"
    for size, said in (((1 << 24), "is an export for the target 'onnx'"), ((1 << 24) + 1, "is an export, and")):
        contract.write_text('{"target": "onnx"}'.ljust(size), encoding="utf-8")
        with pytest.raises(CheckpointError, match=said):
            load_model(tmp_path)
