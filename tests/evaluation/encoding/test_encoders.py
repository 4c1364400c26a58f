"""The form that a model encodes in: the same embeddings, sooner, and nothing left behind in the model."""

import threading

import attrs
import pytest
import torch
from torch import nn

from mobileclip import optimize
from mobileclip.data import Tokenizer
from mobileclip.encoders import TextTransformerSpec
from mobileclip.evaluation import Session
from mobileclip.reparam import is_folded
from tests.encoders.small import SMALL, SMALL_MCT, SMALL_VIT, inputs, randomised
from tests.errors import fails
from tests.evaluation.models import ColourModel, image_of, tokenize

CAUSAL = attrs.evolve(SMALL, text=attrs.evolve(SMALL.text, causal=True))


def session_of(model, tokenizer=tokenize, **options):
    return Session(model, transform=None, tokenize=tokenizer, show_progress=False, **options)


# Few ids leave many bytes to a word: texts of one to ten words, short and cut ones among them.
TEXTS = ["", "a", "dog", "a dog", "a cat on the grass", "ein Käfer", "many many many many words", "a dog", "b", "c"]


def spread(spec):
    """The model with token embeddings as large as its positions', so that texts differ."""
    model = randomised(spec)
    with torch.no_grad():
        model.text_encoder.token_embedding.weight.mul_(20)
    return model


@pytest.mark.parametrize("spec", [SMALL, SMALL_MCT, SMALL_VIT, CAUSAL], ids=["base", "mct", "vit", "causal"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_embeddings_are_those_of_the_model(spec, batch_size):
    model, tokenizer = spread(spec), Tokenizer(spec.text.input)
    images, _ = inputs(spec, batch=19)
    with torch.inference_mode():
        expected_images, expected_texts = model.encode_image(images), model.encode_text(tokenizer(TEXTS))
    with session_of(model, tokenizer, batch_size=batch_size).encoding() as encoders:
        torch.testing.assert_close(encoders.encode_images(images), expected_images, rtol=1e-4, atol=1e-4)
        texts = encoders.encode_texts(TEXTS)
    torch.testing.assert_close(texts, expected_texts, rtol=1e-4, atol=1e-4)
    assert len(expected_texts.unique(dim=0)) == len(set(TEXTS))


def test_a_dual_encoder_is_folded_as_a_copy():
    model = randomised(SMALL)
    model.image_encoder.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with session_of(model).encoding() as encoders:
        assert is_folded(encoders.model)
        convs = [module for module in encoders.model.image_encoder.modules() if isinstance(module, nn.Conv2d)]
        dense = [conv.weight for conv in convs if conv.groups == 1]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in dense)
        encoders.encode_images(inputs(SMALL)[0])
    assert not is_folded(model)
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_towers_that_see_the_padding_get_all_of_it():
    model, tokenizer = spread(SMALL), Tokenizer(SMALL.text.input)
    assert isinstance(SMALL.text, TextTransformerSpec)
    seen = []
    with session_of(model, tokenizer, batch_size=2).encoding() as encoders:
        first = encoders.model.text_encoder.tower.layers[0]
        first.register_forward_pre_hook(lambda _, arguments: seen.append(tuple(arguments[0].shape[:2])))
        encoders.encode_texts(["a", "b", "c"])
    assert sorted(seen) == [(1, 12), (2, 12)]


def test_threads_encode_side_by_side_and_torch_gets_its_own_back():
    model, (images, _) = randomised(SMALL), inputs(SMALL, batch=23)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with session_of(model).encoding() as encoders:
            names = set()

            def remember(_, arguments):
                names.add(threading.current_thread().name)
                assert torch.get_num_threads() == 1
                assert len(arguments[0]) <= 4

            encoders.model.image_encoder.register_forward_pre_hook(remember)
            together = encoders.encode_images(images)
            alone = torch.cat([encoders.encode_images(image[None]) for image in images])
        assert threading.current_thread().name not in names
        assert torch.get_num_threads() == 3
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
        with session_of(model).encoding() as encoders, fails("encoders.images-shape-batch-preprocess"):
            encoders.encode_images(images[:, :, :8])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


class Counting(ColourModel):
    """Another's model, which counts the texts that it is asked for."""

    def __init__(self):
        super().__init__()
        self.num_texts = 0

    def encode_text(self, tokens, normalize=False):
        self.num_texts += len(tokens)
        return super().encode_text(tokens, normalize)


def test_equal_texts_are_encoded_once_and_other_models_as_they_are():
    model = Counting()
    texts = ["red", "green", "red", "blue", "green", "red"]
    with session_of(model).encoding() as encoders:
        assert encoders.model is model
        embeddings = encoders.encode_texts(texts)
        images = encoders.encode_images(torch.stack([image_of(name) for name in ("red", "blue")]))
    assert model.num_texts == 3
    assert embeddings.tolist() == [model.table[["red", "green", "blue"].index(text)].tolist() for text in texts]
    assert images.argmax(1).tolist() == [0, 2]
    assert all(module.training for module in model.modules())
    with session_of(model).encoding() as encoders, fails("evaluation.texts-embed"):
        encoders.encode_texts([])


def test_known_texts_are_not_encoded_again():
    model = Counting()
    session = session_of(model, batch_size=2)
    with session.encoding() as encoders:
        first = encoders.encode_texts(["red", "green", "red"])
    assert model.num_texts == 2
    with session.encoding() as encoders:
        second = encoders.encode_texts(["blue", "green"])
        assert encoders.encode_texts(["red"]).tolist() == first[:1].tolist()
    assert model.num_texts == 3
    assert second.tolist() == [model.table[2].tolist(), first[1].tolist()]
    with session_of(model).encoding() as encoders:
        encoders.encode_texts(["red"])
    assert model.num_texts == 4, "another session of the model starts anew"


def test_half_precision_comes_out_in_single():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def encode_image(self, images):
            return images.mean((2, 3)).bfloat16() * self.scale

        def encode_text(self, tokens):
            return tokens.bfloat16() * self.scale

    with session_of(Half()).encoding() as encoders:
        assert encoders.encode_images(torch.ones(9, 3, 2, 2)).tolist() == [[1.0] * 3] * 9
        assert encoders.encode_images(torch.ones(9, 3, 2, 2)).dtype == torch.float32
        assert encoders.encode_texts(["red"]).dtype == torch.float32


def test_what_is_optimized_already_is_taken_as_it_is():
    model, tokenizer, (images, _) = randomised(CAUSAL), Tokenizer(CAUSAL.text.input), inputs(CAUSAL, batch=9)
    fast = optimize(model, compiled=False, rounds=1)
    sizes = []
    fast.image_encoder.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    with torch.inference_mode():
        expected = model.encode_image(images), model.encode_text(tokenizer(TEXTS))
    with session_of(fast, tokenizer, batch_size=3).encoding() as encoders:
        assert encoders.model is fast
        torch.testing.assert_close(encoders.encode_images(images), expected[0], rtol=1e-4, atol=1e-4)
        texts = encoders.encode_texts(TEXTS)
    torch.testing.assert_close(texts, expected[1], rtol=1e-4, atol=1e-4)
    assert sizes == [9]
