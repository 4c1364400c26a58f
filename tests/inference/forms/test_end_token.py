"""Towers that are ready to encode: their own embeddings, in double precision, for less work."""

import attrs
import pytest
import torch

from mobileclip import reparameterize
from mobileclip.data import Tokenizer
from mobileclip.inference import by_length, prepared, prepared_tower
from mobileclip.inference.forms import DepthwiseConvs
from mobileclip.inputs import TokenizerFile
from tests.blocks.filling import noise
from tests.encoders.small import SMALL, SMALL_MCT, randomised

CAUSAL = attrs.evolve(SMALL, text=attrs.evolve(SMALL.text, causal=True))
# Few ids leave many bytes to a word: texts of one to ten words, short and cut ones among them.
TEXTS = ["", "a", "dog", "a dog", "a cat on the grass", "ein Käfer", "many many many many words", "b"]
SPECS = pytest.mark.parametrize("spec", [SMALL, SMALL_MCT, CAUSAL], ids=["base", "mct", "causal"])


def tower_of(spec):
    """The text tower in double precision, with token embeddings as large as its positions', so that texts differ."""
    tower = randomised(spec).text_encoder.double()
    with torch.no_grad():
        tower.token_embedding.weight.mul_(20)
    return tower


@SPECS
@pytest.mark.parametrize("folded", [False, True])
@torch.inference_mode()
def test_nothing_but_work_is_left_out(spec, folded):
    """Where rounding cannot hide a difference, for texts alone, some together and all together."""
    tower, tokens = tower_of(spec), Tokenizer(spec.text.input)(TEXTS)
    expected = tower(tokens)
    assert len(expected.unique(dim=0)) == len(TEXTS)
    tower = reparameterize(tower) if folded else tower
    for rows in ([0], [1, 2, 3], [4], list(range(len(TEXTS))), []):
        torch.testing.assert_close(prepared_tower(tower)(tokens[rows]), expected[rows], rtol=1e-12, atol=1e-12)


@SPECS
@torch.inference_mode()
def test_causal_texts_are_cut_and_the_last_layer_computes_one_token(spec):
    tower, tokens = tower_of(spec), Tokenizer(spec.text.input)(TEXTS)
    first, last = [], []
    tower.layers[0].register_forward_pre_hook(lambda _, arguments: first.append(arguments[0].shape[1]))
    wide = tower.layers[-1].ffn.fc1
    wide.register_forward_pre_hook(lambda _, arguments: last.append(arguments[0].numel() // spec.text.width))
    for rows in ([0], [1, 2, 3], list(range(len(TEXTS)))):
        prepared_tower(tower)(tokens[rows])
    ends = [row.tolist().index(spec.text.input.end_id) + 1 for row in tokens]
    full = spec.text.input.context_length
    assert ends[0] < max(ends[1:4]) < full
    assert first == ([ends[0], max(ends[1:4]), max(ends)] if spec.text.causal else [full] * 3)
    assert last == [1, 3, len(TEXTS)]


def test_order_of_length():
    end, own = (
        SMALL.text.input.end_id,
        attrs.evolve(SMALL.text.input, tokenizer=TokenizerFile(sha256="0" * 64, end_id=3)),
    )
    tokens = torch.tensor([[1, 2, 3, end], [1, end, 0, 0], [1, 2, end, 0], [5, end, 0, 0]])
    assert by_length(tokens, SMALL.text.input).tolist() == [1, 3, 2, 0]
    tokens = torch.tensor([[2, 9, 9, 3], [2, 3, 0, 0], [2, 500, 3, 0], [5, 3, 0, 0]])
    assert by_length(tokens, own).tolist() == [1, 3, 2, 0], "by an end token that is not the highest id"


@torch.inference_mode()
def test_texts_are_cut_behind_an_end_token_that_is_not_the_highest_id():
    contract = attrs.evolve(CAUSAL.text.input, tokenizer=TokenizerFile(sha256="0" * 64, end_id=3))
    own = attrs.evolve(CAUSAL, text=attrs.evolve(CAUSAL.text, input=contract))
    tokens = torch.tensor([[9, 8, 3, *[0] * 9], [7, 6, 5, 599, 3, *[0] * 7]])
    tower = tower_of(own)
    torch.testing.assert_close(prepared_tower(tower)(tokens), tower(tokens), rtol=1e-12, atol=1e-12)
    # The features at the end token, not at the highest id.
    by_hand = tower.project(tower.norm(tower.layers(tower.token_embedding(tokens) + tower.position)))
    torch.testing.assert_close(tower(tokens), by_hand[[0, 1], [2, 4]], rtol=1e-12, atol=1e-12)


@torch.inference_mode()
@pytest.mark.parametrize("folded", [False, True])
def test_a_whole_model_is_prepared_and_shares_its_weights(folded):
    model = randomised(CAUSAL).double()
    model = reparameterize(model) if folded else model
    images = noise(3, 3, CAUSAL.image.input.size, CAUSAL.image.input.size, dtype=torch.float64)
    tokens = Tokenizer(CAUSAL.text.input)(TEXTS)
    ready = prepared(model)
    assert ready.spec == model.spec
    assert any(isinstance(module, DepthwiseConvs) for module in ready.modules())
    for scale in (1.0, 1.25):
        for parameter in model.parameters():
            parameter.mul_(scale)
        torch.testing.assert_close(ready(images, tokens), model(images, tokens), rtol=1e-11, atol=1e-11)
    twice = prepared(ready)
    assert twice.image_encoder is ready.image_encoder
    assert twice.text_encoder is ready.text_encoder


@torch.inference_mode()
def test_images_have_their_channels_innermost():
    tower, seen = reparameterize(randomised(SMALL.image)), []
    tower.stem[0].conv.register_forward_pre_hook(lambda _, taken: seen.append(taken[0].stride(1)))
    prepared_tower(tower)(noise(2, 3, 64, 64))
    assert seen == [1]
