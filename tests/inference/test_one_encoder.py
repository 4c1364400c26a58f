"""How a model encodes: the embeddings of its towers, sooner, and nothing left behind in the model."""

import threading

import attrs
import numpy as np
import pytest
import torch

from mobileclip.data import Tokenizer
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.reparam import is_folded
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT, randomised
from tests.errors import fails

CAUSAL = attrs.evolve(SMALL, text=attrs.evolve(SMALL.text, causal=True))

# Few ids leave many bytes to a word: texts of one to ten words, short and cut ones among them.
TEXTS = ["", "a", "dog", "a dog", "a cat on the grass", "ein Käfer", "many many many many words", "a dog", "b", "c"]


def spread(spec):
    """The model with token embeddings as large as its positions', so that texts differ."""
    model = randomised(spec)
    with torch.no_grad():
        model.text_encoder.token_embedding.weight.mul_(20)
    return model


def pixels_of(model, count):
    size = model.spec.image.input.size
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("spec", "batch_size", "num_threads"),
    [(SMALL, 1, 1), (SMALL_MCT, 3, 2), (SMALL_VIT, 64, 2), (CAUSAL, 3, 1), (CAUSAL, 64, 2)],
    ids=["base", "mct", "vit", "causal", "causal in one batch"],
)
def test_the_embeddings_are_those_of_the_model(spec, batch_size, num_threads):
    model = spread(spec)
    clip, pixels = ImageTextModel.of(model), pixels_of(model, 19)
    clip.num_threads = num_threads
    with torch.inference_mode():
        expected_images = model.encode_image(clip.transform.normalize(pixels))
        expected_texts = model.encode_text(Tokenizer(spec.text.input)(TEXTS))
    images = torch.cat([clip.encode_pixels(part, normalize=False) for part in pixels.split(batch_size)])
    torch.testing.assert_close(images, expected_images, rtol=1e-4, atol=1e-4)
    texts = clip.encode_text(TEXTS, normalize=False, batch_size=batch_size)
    torch.testing.assert_close(texts, expected_texts, rtol=1e-4, atol=1e-4)
    assert len(expected_texts.unique(dim=0)) == len(set(TEXTS))


def test_a_model_in_training_is_folded_as_a_copy_and_half_precision_comes_out_in_single():
    half = ImageTextModel(randomised(SMALL).bfloat16())
    assert half.encode_pixels(pixels_of(half.model, 9)).dtype == half.encode_text(["red"]).dtype == torch.float32
    model = randomised(SMALL)
    model.image_encoder.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    clip = ImageTextModel.of(model)
    assert is_folded(clip.model)
    clip.encode_pixels(pixels_of(model, 2))
    assert not is_folded(model)
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_towers_that_see_the_padding_get_all_of_it():
    clip, seen = ImageTextModel(spread(SMALL)), []
    first = clip.model.text_encoder.layers[0]
    first.register_forward_pre_hook(lambda _, arguments: seen.append(tuple(arguments[0].shape[:2])))
    clip.encode_text(["a", "b", "c"], batch_size=2)
    assert sorted(seen) == [(1, 12), (2, 12)]


def test_threads_encode_side_by_side_and_torch_gets_its_own_back():
    clip = ImageTextModel(randomised(SMALL), num_threads=3)
    pixels, before = pixels_of(clip.model, 23), torch.get_num_threads()
    names = set()

    def remember(_, arguments):
        names.add(threading.current_thread().name)
        assert torch.get_num_threads() == 1
        assert len(arguments[0]) <= 4

    handle = clip.model.image_encoder.register_forward_pre_hook(remember)
    together = clip.encode_pixels(pixels)
    handle.remove()
    alone = torch.cat([clip.encode_pixels(one[None]) for one in pixels])
    assert len(names) > 1
    assert threading.current_thread().name not in names
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    with fails(ValueError):
        clip.encode_pixels(pixels[:, :8])
    assert torch.get_num_threads() == before
