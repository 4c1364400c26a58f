"""The research release's entry points: its users change an import and nothing else."""

import inspect

import torch
from PIL import Image

import mobileclip
from mobileclip.reparam import is_folded
from tests.errors import fails
from tests.golden.checkpoints import golden, golden_images, golden_texts, relative_error

PHOTO = "tests/golden/augment/images/chelsea.png"


def test_signatures_are_the_releases():
    """What is new comes by name alone, and changes nothing where it is left out."""
    model, needed = {"pretrained": None, "reparameterize": True, "device": "cpu"}, inspect.Parameter.empty
    for function, theirs, new in (
        (mobileclip.create_model_and_transforms, model, {"image_size": None, "context_length": None}),
        (mobileclip.get_tokenizer, {}, {"context_length": None}),
    ):
        found = inspect.signature(function).parameters
        assert {name: one.default for name, one in found.items()} == {"model_name": needed, **theirs, **new}
        assert {name for name, one in found.items() if one.kind is inspect.Parameter.KEYWORD_ONLY} == {*new}


@torch.inference_mode()
def test_the_releases_example_runs(s0_file):
    model, _, preprocess = mobileclip.create_model_and_transforms("mobileclip_s0", pretrained=str(s0_file))
    tokenizer = mobileclip.get_tokenizer("mobileclip_s0")
    image = preprocess(Image.open(PHOTO).convert("RGB")).unsqueeze(0)
    text = tokenizer(["a diagram", "a dog", "a cat"])
    image_features = model.encode_image(image)
    text_features = model.encode_text(text)
    image_features /= image_features.norm(dim=-1, keepdim=True)
    text_features /= text_features.norm(dim=-1, keepdim=True)
    text_probs = (100.0 * image_features @ text_features.T).softmax(dim=-1)
    assert text_probs.shape == (1, 3)
    embeddings = model(image, text)
    torch.testing.assert_close(embeddings[0], image_features)
    torch.testing.assert_close(embeddings[1], text_features)

    outputs = golden("apple_mobileclip_s0").outputs()
    assert is_folded(model)
    assert relative_error(model.encode_image(golden_images(256)), outputs["image_embedding"]) < 2e-5
    assert relative_error(model.encode_text(tokenizer(golden_texts()[:5])), outputs["text_embedding"]) < 2e-5


def test_without_weights_a_fresh_model():
    model, nothing, _ = mobileclip.create_model_and_transforms("mobileclip_s0", reparameterize=False)
    assert nothing is None
    assert not model.training
    assert not is_folded(model)


def test_names():
    with fails(ValueError, "did you mean"):
        mobileclip.create_model_and_transforms("mobileclip_so")
    with fails(ValueError):
        mobileclip.get_tokenizer("mci0")
