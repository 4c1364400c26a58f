"""The towers: their sizes, their names, what they refuse, and that small ones of one's own train, fold and export."""

import math

import pytest
import torch
from torch import nn

from mobileclip import build_model, reparameterize, specs
from mobileclip.blocks import image_encoders, models, text_encoders
from mobileclip.encoders import DualEncoderSpec
from mobileclip.reparam import is_folded
from tests.blocks.filling import filled, noise
from tests.encoders.towers import SMALL, inputs, texts
from tests.errors import fails

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=SMALL.values(), ids=SMALL.keys())
def spec(request):
    return request.param


def millions(model):
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "image", "text"), [("s0", 11.4, 42.4), ("s1", 21.5, 63.4), ("s2", 35.7, 63.4), ("b", 86.3, 63.4)]
)
def test_parameters_are_as_many_as_the_paper_states(name, image, text):
    """The paper's table has 35.7M for S2, whose layers add up to 35.81M; the others agree to the digit."""
    with torch.device("meta"):
        spec = getattr(specs, f"mobileclip_{name}")()
        assert millions(build_model(spec.image)) == pytest.approx(image, abs=0.12 if name == "s2" else 0.051)
        assert millions(build_model(spec.text)) == pytest.approx(text, abs=0.051)


def test_all_published_names_are_registered():
    fastvits = {f"fastvit_{size}" for size in ("t8", "t12", "s12", "sa12", "sa24", "sa36", "ma36")}
    assert set(image_encoders) == fastvits | {"mci0", "mci1", "mci2", "mci3", "mci4", "vit_b16", "vit_l14"}
    assert set(text_encoders) == {"text_base", "text_base_768", "text_mct", "text_mct_768"}
    first = {f"mobileclip_{size}" for size in ("s0", "s1", "s2", "b", "blt", "s3", "s4", "l14")}
    assert set(models) == first | {f"mobileclip2_{size}" for size in ("s0", "s2", "b", "s3", "s4", "l14")}
    causal = {name for name in models if models[name].text.causal}
    assert causal == {"mobileclip_b", "mobileclip_blt", "mobileclip2_b"}
    for name, *named in (("mobileclip_s9", "'mobileclip_s4'"), ("mci7", "'mci4'"), ("resnet50", "mobileclip list")):
        with fails(ValueError, name, *named):
            build_model(name)


@pytest.mark.parametrize("name", [*models, *image_encoders, *text_encoders])
def test_build_model_knows_every_name(name):
    registry = next(registry for registry in (models, image_encoders, text_encoders) if name in registry)
    assert registry[name] == getattr(specs, name)()
    if registry is not models or name == "mobileclip_s0":  # the others' tensors are compared with the public code's
        with torch.device("meta"):
            model = build_model(name)
        assert model.spec == registry[name]
        assert model.training


@pytest.mark.parametrize(("image", "text"), [("mci", "text"), ("vit", "text_causal"), ("vit_patch", "mct")])
def test_inputs_of_another_shape_or_kind_are_refused(image, text):
    model = DualEncoderSpec(image=SMALL[image], text=SMALL[text]).build()
    for shape in ((1, 3, 96, 96), (1, 3, 64, 32), (1, 1, 64, 64), (3, 64, 64)):
        with fails(ValueError, "(batch, 3, 64, 64)"):
            model.encode_image(torch.zeros(shape))
    for tokens in (torch.zeros(1, 77).long(), torch.zeros(1, 12), torch.zeros(12).long()):
        with fails(ValueError, "(batch, 12)"):
            model.encode_text(tokens)


@pytest.mark.parametrize(("name", "matters"), [("text", True), ("mct", True), ("text_causal", False)])
@torch.inference_mode()
def test_padding_matters_unless_the_tower_is_causal(name, matters):
    """Which is why the padding id and the context length are part of a model's contract."""
    encoder, tokens = filled(SMALL[name].build()), texts()
    padded = tokens.clone()
    for row in padded:
        row[int(row.argmax()) + 1 :] = 5
    assert torch.equal(encoder(padded), encoder(tokens)) != matters
    assert torch.equal(encoder(tokens.int()), encoder(tokens))


def test_a_small_tower_trains_folds_and_exports(spec):
    torch.manual_seed(0)
    encoder, batch = spec.build(), inputs(spec)
    with torch.no_grad():
        new = encoder.eval()(batch)
    assert new.isfinite().all()
    assert 1e-4 < new.std() < 10, "initialisation neither explodes nor dies"
    target = noise(3, spec.embedding_dim, seed=5)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = (encoder.train()(batch) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in encoder.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    filled(encoder)
    folded = reparameterize(encoder)
    assert is_folded(folded)
    other = inputs(spec, seed=1)
    expected = encoder(other)
    torch.testing.assert_close(folded(other), expected, rtol=1e-4, atol=1e-4)
    sides = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(folded, (batch,), dynamic_shapes=sides).module()
    for size in (1, 3):
        torch.testing.assert_close(exported(other[:size]), expected[:size], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_folding_is_exact_and_embeddings_do_not_depend_on_the_batch(spec):
    encoder, batch = filled(spec.build()).double(), inputs(spec, dtype=torch.float64)
    expected = encoder(batch)
    torch.testing.assert_close(reparameterize(encoder)(batch), expected, rtol=1e-10, atol=1e-10)
    alone = torch.cat([encoder(batch[index : index + 1]) for index in range(len(batch))])
    torch.testing.assert_close(alone, expected, rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_the_dual_encoder_normalises_and_scales():
    spec = DualEncoderSpec(image=SMALL["mci"], text=SMALL["mct"])
    model = spec.build().eval()
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    images, tokens = inputs(SMALL["mci"]), texts()
    image, text, scale = model(images, tokens)
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(image, nn.functional.normalize(model.encode_image(images), dim=-1))
    torch.testing.assert_close(text, model.encode_text(tokens, normalize=True))
    assert scale == model.logit_scale.exp()
    model.logit_scale.fill_(math.log(250))
    assert model(images, tokens)[2] == pytest.approx(250)
    assert model.similarity_scale == 100
    assert model.spec == spec
