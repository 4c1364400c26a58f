"""Ranges of int8 in a file beside the weights: they come back with the model, and none that cannot be computed with."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import mobileclip
from mobileclip.encoders import load_model, save_model
from mobileclip.encoders.checkpoints import read_checkpoint
from mobileclip.reparam import reparameterize
from mobileclip.tensor_files import CheckpointError
from tests.encoders.small import SMALL_VIT
from tests.errors import fails

PREFIX = "mobileclip.ranges."


def ranges_for(layer, weight):
    return {
        f"{layer}.weight": torch.linspace(0.1, 0.2, len(weight)),
        f"{layer}.input": torch.tensor([0.25, 7.0]),
        f"{layer}.output": torch.tensor([0.5, 255.0]),
    }


@pytest.fixture(scope="module")
def model():
    """A folded model whose towers carry ranges of a layer each."""
    model = reparameterize(SMALL_VIT.build().eval())
    for tower in (model.image_encoder, model.text_encoder):
        layer = next(name for name, part in tower.named_modules() if isinstance(part, torch.nn.Linear))
        tower.ranges = ranges_for(layer, tower.get_submodule(layer).weight)
    return model


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("ranges") / "int8.safetensors"
    save_model(model, path)
    return path


def equal(own, other):
    return own.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in own.items())


def test_ranges_come_back_with_the_model_and_with_each_tower(model, file, tmp_path):
    loaded = load_model(file)
    assert equal(loaded.image_encoder.ranges, model.image_encoder.ranges)
    assert equal(loaded.text_encoder.ranges, model.text_encoder.ranges)
    assert equal(mobileclip.load(file).model.text_encoder.ranges, model.text_encoder.ranges)
    for tower in ("image", "text"):
        alone = load_model(file, tower=tower)
        assert equal(alone.ranges, getattr(model, f"{tower}_encoder").ranges)
        save_model(alone, tmp_path / f"{tower}.safetensors")
        assert equal(load_model(tmp_path / f"{tower}.safetensors").ranges, alone.ranges)
    save_model(loaded, tmp_path / "again.safetensors")
    assert equal(load_model(tmp_path / "again.safetensors").image_encoder.ranges, model.image_encoder.ranges)


def test_a_file_without_ranges_is_as_before(tmp_path):
    plain = reparameterize(SMALL_VIT.build().eval())
    save_model(plain, tmp_path / "plain.safetensors")
    loaded = load_model(tmp_path / "plain.safetensors")
    assert not hasattr(loaded.image_encoder, "ranges")
    with safe_open(tmp_path / "plain.safetensors", "pt") as opened:
        assert not [name for name in opened.keys() if name.startswith("mobileclip.")]  # noqa: SIM118  not a mapping


def test_weights_for_other_channels_are_on_no_grid(file):
    assert read_checkpoint(file).ranges
    assert read_checkpoint(file).of_size(context_length=8).ranges
    assert not read_checkpoint(file).of_size(in_channels=1).ranges


@pytest.mark.parametrize(
    "change",
    [
        {"weight": torch.zeros(1)},
        {"weight": None},
        {"input": None},
        {"input": torch.tensor([-0.5, 7.0])},
        {"input": torch.tensor([0.5, 7.5])},
        {"input": torch.tensor([0.5, 256.0])},
        {"input": torch.tensor([0.5, torch.nan])},
        {"input": torch.tensor([torch.inf, 7.0])},
        {"input": torch.tensor([0.5, 7.0], dtype=torch.float64)},
        {"output": torch.tensor(0.5)},
        {"bias": torch.tensor([0.5, 7.0])},
    ],
)
def test_ranges_that_no_runtime_computes_with_are_refused(change, file, tmp_path):
    with safe_open(file, "pt") as opened:
        tensors, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    first = min(name for name in tensors if name.startswith(PREFIX) and name.endswith(".weight"))
    for kind, tensor in change.items():
        name = f"{first.removesuffix('weight')}{kind}"
        tensors.pop(name, None)
        tensors |= {} if tensor is None else {name: tensor}
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path, metadata=metadata)
    with fails(CheckpointError, str(path), "1"):
        load_model(path)


def test_ranges_of_no_layer_are_refused(file, tmp_path):
    with safe_open(file, "pt") as opened:
        tensors, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    tensors |= {f"{PREFIX}{name}": tensor for name, tensor in ranges_for("image_encoder.nowhere", [0.0]).items()}
    save_file(tensors, tmp_path / "more.safetensors", metadata=metadata)
    with fails(CheckpointError, "image_encoder.nowhere", "3"):
        load_model(tmp_path / "more.safetensors")
