"""What becomes of towers before they are converted: attention, layers in float32, and what int8 is found with."""

import copy

import attrs
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.export import Samples, bundled_samples, read_contract, read_report, targets, verify_export
from mobileclip.export.int8 import calibration_inputs, layers_in_float32, round_weight, weighted_layers
from mobileclip.export.towers import keep_in_float32, set_attention, written_out_attention
from mobileclip.inference.forms import fused_attention, with_one_token
from tests.build.image_files import encoded
from tests.errors import fails
from tests.export.models import PIXELS, TOKENS, TRANSFORMERS, exported, one_tower, overflowing, pixels, seeing

CAPTIONS = ["", "a cat", "two dogs on a beach"]


@pytest.fixture(scope="module")
def tokens():
    return Tokenizer(TOKENS)(bundled_samples().captions)


def is_grouped(layer):
    return getattr(layer, "groups", 1) > 1


def least_cosine(found, expected):
    return float(torch.cosine_similarity(found.double(), expected.double()).min())


@pytest.mark.parametrize("attend", [fused_attention, written_out_attention])
@pytest.mark.parametrize("tower", ["image", "text"])
@torch.inference_mode()
def test_attention_as_exports_have_it_gives_the_same_embeddings(transformers, tower, attend):
    """In double precision; the last one is made of layers, and computes one query."""
    inputs = pixels(PIXELS).double() if tower == "image" else Tokenizer(TOKENS)(CAPTIONS)
    encoder = getattr(reparameterize(copy.deepcopy(transformers)).double(), f"{tower}_encoder")
    expected, width, seen = encoder(inputs), encoder.spec.width, {}
    split = with_one_token(copy.deepcopy(encoder))
    set_attention(split, attend)
    attention = split.layers[-1].attention
    for name in ("query", "key_value"):
        layer = getattr(attention, name)
        layer.register_forward_pre_hook(lambda _, taken, name=name: seen.update({name: taken[0][..., 0].numel()}))
    torch.testing.assert_close(split(inputs), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(encoder(inputs), expected, rtol=0, atol=0)
    length = TOKENS.context_length if tower == "text" else 1 + 16
    assert seen == {"query": len(inputs), "key_value": len(inputs) * length}
    shapes = [tuple(part.weight.shape) for part in (attention.query, attention.key_value)]
    assert shapes == [(width, width), (2 * width, width)]
    assert attention.key_value.weight.data_ptr() != attention.query.weight.data_ptr()
    assert with_one_token(split) is split
    assert type(split.layers[0].attention.qkv) is nn.Linear


def test_layers_that_stay_in_float32(convolutional, tokens):
    image_encoder, images = reparameterize(convolutional).image_encoder, pixels(PIXELS)
    text_encoder = reparameterize(seeing(TRANSFORMERS)).text_encoder
    grouped = {name for name, layer in weighted_layers(image_encoder) if is_grouped(layer)}
    assert "stages.0.blocks.0.token_mixer" in grouped
    for precision in ("float32", "float16", "bfloat16", "int8", "int8-weights"):
        kept = grouped if precision.startswith("int8") else frozenset()
        assert layers_in_float32(image_encoder, images, precision) == kept
        assert not layers_in_float32(text_encoder, tokens[:1], precision), "no grouped convolutions"


@torch.no_grad()
def test_float16_keeps_the_layers_that_leave_its_range_or_may_with_other_inputs(tokens):
    encoder = reparameterize(overflowing(TRANSFORMERS)).text_encoder
    wide = layers_in_float32(encoder, tokens, "float16")
    assert wide == {"norm", "project"}
    half = copy.deepcopy(encoder).half()
    assert not bool(half(tokens).isfinite().all())
    keep_in_float32(half, wide)
    assert half.project.weight.dtype == half.norm.weight.dtype == torch.float32
    assert half.layers[0].ffn.fc1.weight.dtype == torch.float16
    assert least_cosine(half(tokens), encoder(tokens)) > 0.9995
    near = reparameterize(seeing(TRANSFORMERS)).text_encoder
    near.norm.weight.mul_(1e4)
    assert bool(copy.deepcopy(near).half()(tokens).isfinite().all())
    assert layers_in_float32(near, tokens, "float16") == wide


@torch.no_grad()
@pytest.mark.parametrize("name", ["query", "key_value"])
def test_one_half_of_an_attention_may_be_kept(name, tokens):
    encoder = with_one_token(reparameterize(seeing(TRANSFORMERS)).text_encoder)
    half = copy.deepcopy(encoder).half()
    keep_in_float32(half, frozenset([f"layers.1.attention.{name}"]))
    assert least_cosine(half(tokens), encoder(tokens)) > 0.9995


def test_every_picture_gives_several_crops_the_same_every_time_as_the_file_takes_them(transformers):
    encoder, samples = transformers.image_encoder, bundled_samples()
    crops = calibration_inputs(encoder, samples, "uint8")
    assert (crops.dtype, tuple(crops.shape)) == (torch.uint8, (96, 3, 64, 64))
    assert len(torch.unique(crops.flatten(1), dim=0)) == 96
    # Crops of one picture are nearer to each other than to those of others, in colour at least.
    colours = crops.float().mean(dim=(2, 3)).reshape(12, 8, 3)
    centres = colours.mean(dim=1)
    own = (colours - centres[:, None]).norm(dim=-1).mean()
    assert own < 0.5 * torch.cdist(centres, centres).sum() / (12 * 11)
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXELS.mean, PIXELS.std))
    assert calibration_inputs(encoder, samples, "uint8").equal(crops)
    assert calibration_inputs(encoder, samples, "float32").equal(crops.float())
    scaled = calibration_inputs(encoder, samples, "host")
    torch.testing.assert_close(scaled, (crops.float() / 255 - mean) / std)


def test_half_of_the_crops_are_mirrored(transformers):
    """A picture that is dark on its left and bright on its right tells."""
    gradient = encoded(Image.linear_gradient("L").rotate(90).convert("RGB"), "PNG")
    samples = Samples(name="gradient", image_names=("a", "b"), images=(gradient,) * 2, captions=("a", "b"))
    crops = calibration_inputs(transformers.image_encoder, samples, "uint8").float()
    assert len(crops) == 96
    to_the_right = (crops[..., -1] > crops[..., 0]).all(dim=(1, 2))
    to_the_left = (crops[..., -1] < crops[..., 0]).all(dim=(1, 2))
    assert bool((to_the_right | to_the_left).all())
    assert 0.3 < float(to_the_right.double().mean()) < 0.7


def test_many_images_give_one_crop_each_and_those_that_cannot_be_read_are_left_out(transformers):
    encoder, good = transformers.image_encoder, bundled_samples()
    many = attrs.evolve(good, image_names=tuple(map(str, range(120))), images=good.images[:2] * 60)
    assert len(calibration_inputs(encoder, many, "uint8")) == 96
    torn = attrs.evolve(good, images=(b"torn", *good.images[1:]))
    assert len(calibration_inputs(encoder, torn, "uint8")) == 11 * 8
    samples = Samples(name="torn", image_names=("a", "b"), images=(b"no", b"no"), captions=("a", "b"))
    with fails(ValueError, "2", "torn"):
        calibration_inputs(encoder, samples, "uint8")


def restored(weight):
    """The weight that steps stand for."""
    return (weight.steps.float() - weight.zero.float()) * weight.scale


def test_eight_bits_are_to_half_a_step_of_each_row():
    rows = torch.randn(5, 48) * torch.logspace(-3, 3, 5)[:, None] + torch.arange(5)[:, None]
    rounded = round_weight(rows)
    assert (rounded.steps.shape, rounded.steps.dtype, rounded.scale.shape) == ((5, 48), torch.uint8, (5, 1))
    step = (rows.amax(1).clamp_min(0) - rows.amin(1).clamp_max(0)) / 255
    assert ((restored(rounded) - rows).abs() <= 1.001 * step[:, None]).all()
    assert restored(round_weight(torch.zeros(2, 3))).equal(torch.zeros(2, 3))


@pytest.mark.parametrize("tower", ["text", pytest.param("image", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_file_gives_what_its_rounded_weights_give(shallow, convolutional, tower, tmp_path):
    """Runtimes compute in float32 with weights that are stored in 8 bits."""
    model = seeing(attrs.evolve(shallow.spec, image=convolutional.spec.image))
    export = one_tower(model, tower, target="onnx", precision="int8-weights", every=24, dynamic_batch=True)
    assert targets["onnx"].export(export, tmp_path / "tower.onnx").compute == "float32"
    graph, rounded = export.graph(torch.float32), 0
    for layer in graph.encoder.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, nn.Embedding)) and not is_grouped(layer):
            rounded += layer.weight.numel()
            layer.weight.copy_(restored(round_weight(layer.weight.flatten(1))).reshape(layer.weight.shape))
    session = onnxruntime.InferenceSession(tmp_path / "tower.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {export.input_name: export.calibration.numpy()})
    np.testing.assert_allclose(given, graph(export.calibration), atol=2e-5)
    stored = onnx.load(tmp_path / "tower.onnx").graph.initializer
    steps = [onnx.numpy_helper.to_array(tensor) for tensor in stored if tensor.name.endswith(".steps")]
    assert {one.dtype for one in steps} == {np.dtype(np.uint8)}
    assert sum(one.nbytes for one in steps) == rounded


def test_an_export_says_that_it_stores_weights_in_8_bits(shallow, tmp_path):
    folder = exported(shallow, tmp_path / "out", precision="int8-weights", tower="text", normalize=False)
    contract = read_contract(folder)
    assert (contract.precision, contract.towers[0].compute) == ("int8-weights", "float32")
    assert verify_export(folder) == read_report(folder)
    assert read_report(folder).passed
