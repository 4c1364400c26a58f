"""One rule of the temperature, `min(exp(logit_scale), max_logit_scale)`, wherever a model is used."""

from __future__ import annotations

import json
import math

import attrs
import pytest
import torch
from PIL import Image

from mobileclip import ImageTextModel
from mobileclip.encoders import DualEncoderSpec, MCtSpec, TextTransformerSpec, ViTSpec, load_model, save_model
from mobileclip.export import ExportSpec, export_model, load_export
from mobileclip.inference import prepared
from mobileclip.reinforce import CheckpointTeacher
from mobileclip.tensor_files import read_tensors
from mobileclip.training import train
from tests.encoders.small import COCA
from tests.errors import fails
from tests.training.runs import Batches, new_model, training_spec

SPEC = DualEncoderSpec(image=ViTSpec(width=16, depth=1, num_heads=2), text=MCtSpec(width=16, depth=1, num_heads=2))
LABELS = ("a cat", "a dog", "two birds")
IMAGE = Image.effect_noise((64, 64), 90).convert("RGB")


def beyond(spec: DualEncoderSpec) -> torch.nn.Module:
    torch.manual_seed(0)
    model = spec.build().eval()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(1e6))
    return model


def probabilities(model: torch.nn.Module, scale: float) -> dict[str, float]:
    clip = ImageTextModel(model)
    cosines = clip.encode_image([IMAGE]) @ clip.encode_text(LABELS).T
    return dict(zip(LABELS, (scale * cosines)[0].softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("cap", [100.0, 40.0, 250.0])
def test_labels_files_teachers_and_exports_have_one_factor(cap, tmp_path):
    model = beyond(attrs.evolve(SPEC, max_logit_scale=cap))
    assert model.similarity_scale.item() == pytest.approx(cap)
    expected = probabilities(model, cap)
    assert ImageTextModel(model).classify(IMAGE, LABELS) == pytest.approx(expected, abs=1e-6)
    assert prepared(model).spec.max_logit_scale == cap
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    for loaded in (load_model(path), load_model(path, SPEC)):  # the file's cap is kept, whatever is asked for
        assert loaded.similarity_scale.item() == pytest.approx(cap)
    assert CheckpointTeacher(checkpoint=path).build().logit_scale == pytest.approx(cap, abs=0.01)
    if cap == 40:
        export_model(model, ExportSpec(target="torch", output=tmp_path / "export"), show_progress=False)
        assert json.loads((tmp_path / "export" / "mobileclip.json").read_text())["logit_scale"] == pytest.approx(40)
        served = load_export(tmp_path / "export", trust=True)
        assert ImageTextModel(served).classify(IMAGE, LABELS) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("cap", [100.0, 30.0])
@pytest.mark.parametrize("spec", [SPEC, COCA], ids=["dual", "coca"])
def test_a_scale_at_the_cap_comes_down_again(spec, cap):
    """What `forward` returns has a gradient, wherever the scale is."""
    model = attrs.evolve(spec, max_logit_scale=cap).build()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(cap) + 1e-3)
    size, length = spec.image.input.size, spec.text.input.context_length
    scale = model(torch.rand(1, 3, size, size), torch.zeros(1, length, dtype=torch.int64))[2]
    scale.backward()
    assert scale.item() == pytest.approx(cap * math.exp(1e-3), rel=1e-4)
    assert model.logit_scale.grad.item() == pytest.approx(scale.item(), rel=1e-4)
    assert model.similarity_scale.item() == pytest.approx(cap)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan"), float("inf"), "100"])
def test_a_cap_that_is_none_is_refused(cap):
    with fails(ValueError, "max_logit_scale"):
        attrs.evolve(SPEC, max_logit_scale=cap)


@pytest.mark.parametrize("cap", [50.0, 200.0])
def test_a_model_has_the_cap_that_it_was_trained_with(cap, tmp_path):
    model = new_model()
    model.max_logit_scale = cap
    with torch.no_grad():
        model.logit_scale.fill_(math.log(1e3))
    result = train(training_spec(3, peak=1e-6), model=model, batches=Batches(), output=tmp_path)
    assert model.similarity_scale.item() == pytest.approx(cap, rel=1e-4)
    save_model(model, tmp_path / "model.safetensors")
    for trained in (model, result.model, load_model(tmp_path / "model.safetensors")):
        assert trained.spec.max_logit_scale == cap
    # It keeps it where it is loaded to train otherwise.
    wanted = attrs.evolve(model.spec, image=attrs.evolve(model.spec.image, drop_path=0.1), max_logit_scale=100.0)
    loaded = load_model(tmp_path / "model.safetensors", wanted, fold=False)
    assert (loaded.spec.max_logit_scale, loaded.spec.image.drop_path) == (cap, 0.1)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_scale_with_a_dimension_or_without_is_loaded(shape, tmp_path):
    model = SPEC.build().eval()
    assert model.similarity_scale.item() == model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    state = {**model.state_dict(), "logit_scale": torch.full(shape, 3.0)}
    torch.save(state, tmp_path / "plain.pt")
    model.load_state_dict(state)
    for one in (model, load_model(tmp_path / "plain.pt", SPEC)):
        assert (one.logit_scale.shape, one.similarity_scale.shape) == ((1,), ())
        assert one.similarity_scale == torch.tensor(3.0).exp()


@pytest.mark.parametrize(("layout", "text"), [("mobileclip", SPEC.text), ("official", SPEC.text), ("open_clip", None)])
def test_files_hold_the_scale_as_the_release_and_open_clip_do(layout, text, tmp_path):
    image = attrs.evolve(SPEC.image, stem_padding=0, norm_eps=1e-6) if text is None else SPEC.image
    text = text or TextTransformerSpec(width=16, depth=1, num_heads=2)
    save_model(DualEncoderSpec(image=image, text=text).build(), tmp_path / "model.safetensors", layout=layout)
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    assert tensors["logit_scale"].shape == ()
