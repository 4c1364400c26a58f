"""How a model encodes: the embeddings of its towers, sooner, and nothing left behind in the model."""

import threading

import attrs
import numpy as np
import pytest
import torch

from mobileclip import optimize
from mobileclip.data import Tokenizer
from mobileclip.encoders import TextTransformerSpec
from mobileclip.evaluation import Session
from mobileclip.inference.image_text_model import ImageTextModel
from mobileclip.reparam import is_folded
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT, randomised
from tests.errors import fails
from tests.evaluation.models import COLOURS, ColourModel, image_of

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


@pytest.mark.parametrize("spec", [SMALL, SMALL_MCT, SMALL_VIT, CAUSAL], ids=["base", "mct", "vit", "causal"])
@pytest.mark.parametrize(("batch_size", "num_threads"), [(1, 1), (3, 2), (64, 1), (64, 2)])
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
    clip = ImageTextModel(spread(SMALL))
    assert isinstance(SMALL.text, TextTransformerSpec)
    seen = []
    first = clip.model.text_encoder.layers[0]
    first.register_forward_pre_hook(lambda _, arguments: seen.append(tuple(arguments[0].shape[:2])))
    clip.encode_text(["a", "b", "c"], batch_size=2)
    assert {length for _, length in seen} == {12}
    assert sum(count for count, _ in seen) == 3


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


def test_a_session_encodes_a_text_once():
    model, asked = ColourModel().eval(), []
    model.text_encoder.register_forward_pre_hook(lambda _, arguments: asked.append(len(arguments[0])))
    clip = ImageTextModel(model)
    session = Session(clip, batch_size=2, show_progress=False)
    texts = ["red", "green", "red", "blue", "green", "red"]
    embeddings = session.encode_texts(texts)
    assert sum(asked) == 3
    table = dict(zip(COLOURS, model.text_encoder.table.tolist(), strict=True))
    assert embeddings.tolist() == [table[text] for text in texts]
    assert session.encode_texts(["blue"]).tolist() == [table["blue"]]
    assert sum(asked) == 3
    assert clip.encode_image([image_of("red"), image_of("blue")]).argmax(1).tolist() == [0, 2]
    with fails(ValueError):
        session.encode_texts([])


def test_what_is_optimized_already_is_taken_as_it_is():
    model = randomised(CAUSAL)
    fast = optimize(model, compiled=False, rounds=1)
    clip, pixels, sizes = ImageTextModel.of(fast), pixels_of(model, 9), []
    assert clip.model is fast
    fast.image_encoder.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    with torch.inference_mode():
        expected = model.encode_image(clip.transform.normalize(pixels)), model.encode_text(clip.tokenizer(TEXTS))
    torch.testing.assert_close(clip.encode_pixels(pixels, normalize=False), expected[0], rtol=1e-4, atol=1e-4)
    assert sizes == [9]
    found = clip.encode_text(TEXTS, normalize=False, batch_size=3)
    torch.testing.assert_close(found, expected[1], rtol=1e-4, atol=1e-4)
