"""Every published layout, filled with random numbers, against the outputs of the public code, unfolded and folded."""

import pytest
import torch
from torch import nn

from mobileclip import reparameterize
from mobileclip.encoders import load_model
from mobileclip.reparam import LayerScale, is_folded
from tests.golden.checkpoints import GOLDEN_MODELS, golden, golden_images, golden_tokens, relative_error

# Every kind of tower; open_clip itself gives what a small file of its layout gives, in `test_checkpoints`.
BY_DEFAULT = {"apple_mobileclip_s0", "apple_mobileclip_b"}
TEXTS = golden_tokens()[:5]


# Others use these files too.
WRITTEN_ONCE = {"apple_mobileclip_s0": "s0_file", "openclip_MobileCLIP2-S0": "clip2_s0_file"}


@pytest.fixture
def weights(request):
    """What gives a checkpoint with the golden weights, as a file of the public code's kind or as its tensors."""

    def give(model):
        return request.getfixturevalue(WRITTEN_ONCE[model.file]) if model.file in WRITTEN_ONCE else model.state()

    return give


@pytest.fixture(
    params=[
        pytest.param(model, id=model.file, marks=[pytest.mark.slow] * (model.file not in BY_DEFAULT))
        for model in GOLDEN_MODELS
    ]
)
def parity(request, weights):
    return load_model(weights(request.param), request.param.name, fold=False), request.param.outputs()


@torch.inference_mode()
def test_embeddings_equal_the_public_codes(parity):
    """One of the two images by each form."""
    model, outputs = parity
    images = golden_images(model.spec.image.input.size)
    assert relative_error(model.encode_image(images[:1]), outputs["image_embedding"][:1]) < 1e-5
    assert relative_error(model.encode_text(TEXTS), outputs["text_embedding"]) < 1e-5
    assert model.logit_scale.exp().item() == pytest.approx(float(outputs["logit_scale"]), rel=1e-6)

    folded = reparameterize(model, inplace=True)
    assert is_folded(folded)
    assert not any(isinstance(module, (nn.BatchNorm2d, LayerScale)) for module in folded.modules())
    assert relative_error(folded.encode_image(images[1:]), outputs["image_embedding"][1:]) < 2e-5
    assert relative_error(folded.encode_text(TEXTS[:2]), outputs["text_embedding"][:2]) < 2e-5


@pytest.mark.parametrize("name", ["s0", *(pytest.param(name, marks=pytest.mark.slow) for name in ("s1", "s2"))])
@torch.inference_mode()
def test_every_stage_has_the_public_codes_statistics(name, weights):
    """Where a difference starts: after the stem, and after each entry of the release's `network`."""
    model = golden(f"apple_mobileclip_{name}")
    encoder = load_model(weights(model), f"mobileclip_{name}", tower="image", fold=False)
    outputs = model.outputs()
    features = encoder.stem(golden_images(256)[:1])
    assert relative_error(features.mean((2, 3)), outputs["stem_mean"][:1]) < 1e-5
    parts = [part for stage in encoder.stages for part in stage]
    for index, part in enumerate(parts):
        features = part(features)
        assert relative_error(features.mean((2, 3)), outputs[f"network_{index}_mean"][:1]) < 1e-5
        assert relative_error(features.std((2, 3)), outputs[f"network_{index}_std"][:1]) < 1e-5
    assert f"network_{len(parts)}_mean" not in outputs


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.bfloat16, 5e-2), pytest.param(torch.float16, 8e-3, marks=pytest.mark.slow)]
)
@torch.inference_mode()
def test_half_precision_runs_end_to_end(dtype, bound, s0_file):
    outputs = golden("apple_mobileclip_s0").outputs()
    model = load_model(s0_file, dtype=dtype)
    image = model.encode_image(golden_images(256)[:1].to(dtype))
    text = model.encode_text(TEXTS[:2])
    assert image.dtype == text.dtype == dtype
    assert relative_error(image, outputs["image_embedding"][:1]) < bound
    assert relative_error(text, outputs["text_embedding"][:2]) < bound
