import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from mobileclip import blocks, build_model
from mobileclip.blocks import BlockSequence, RepMixerBlock, recompute, recomputed
from mobileclip.encoders import CoCaSpec, TextTransformerSpec, ViTSpec
from mobileclip.inputs import ImageInput
from tests.errors import fails
from tests.training.runs import kept_by

MAPS, TOKENS = (4, 32, 8, 8), (4, 9, 32)
SEQUENCES = {
    "repmixer": (lambda: [RepMixerBlock(32, hidden_dim=48) for _ in range(3)], MAPS),
    "attention": (lambda: [blocks.AttentionBlock(32, head_dim=16, hidden_dim=48) for _ in range(2)], MAPS),
    "text": (
        lambda: [blocks.TextRepMixerBlock(32, kernel_size=3), blocks.TransformerLayer(32, num_heads=2)],
        TOKENS,
    ),
}


def bytes_kept(module, call):
    """Return how much a forward pass of a module leaves for the backward pass, parameters aside."""
    own = {parameter.data_ptr() for parameter in module.parameters()}
    return sum(one.untyped_storage().nbytes() for one in kept_by(call) if one.data_ptr() not in own)


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_and_running_statistics_are_those_of_keeping_everything(name, training):
    make, shape = SEQUENCES[name]
    keeping = BlockSequence(*make()).double().train(training)
    again = copy.deepcopy(keeping)
    assert recompute(again).recomputes
    x, results = torch.randn(*shape, dtype=torch.float64), []
    for module in (keeping, again):
        own = x.clone().requires_grad_()
        for _ in range(2):
            module(own).square().sum().backward()
        results.append((own.grad, {n: p.grad for n, p in module.named_parameters()}, module.state_dict()))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_the_input_of_every_block_is_kept_and_nothing_else():
    keeping = BlockSequence(*(RepMixerBlock(32, hidden_dim=96) for _ in range(3))).train()
    again, x = recompute(copy.deepcopy(keeping)), torch.randn(8, 32, 16, 16, requires_grad=True)
    assert sum(bytes_kept(block, lambda block=block: block(x)) for block in keeping) > 5 * 3 * x.nbytes
    assert bytes_kept(again, lambda: again(x)) == 3 * x.nbytes


def test_without_gradients_nothing_is_wrapped():
    block = RepMixerBlock(32, hidden_dim=48).eval()
    with torch.no_grad():
        x = torch.randn(*MAPS)
        torch.testing.assert_close(recomputed(block, block, x), block(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mci0", "mci3", "vit_b16", "text_base", "text_mct"])
def test_every_encoder_has_sequences_to_recompute(name):
    with torch.device("meta"):
        encoder = build_model(name)
    sequences = [module for module in recompute(encoder).modules() if isinstance(module, BlockSequence)]
    assert sum(map(len, sequences)) >= 6
    assert all(sequence.recomputes for sequence in sequences)


def test_a_model_without_repeated_blocks_is_refused():
    with fails(ValueError, "Linear"):
        recompute(nn.Linear(2, 2))


def kept_and_gradients(model, way, given):
    """Return the bytes that a forward pass keeps, parameters aside, and the gradients of all that it gives."""
    found = []
    kept = bytes_kept(model, lambda: found.extend(one for one in tree_leaves(way(given)) if one.is_floating_point()))
    model.zero_grad()
    sum(one.square().sum() for one in found).backward()
    return kept, [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_every_way_through_a_vit_and_a_captioner_keeps_less():
    size = {"width": 32, "depth": 4, "num_heads": 2, "embedding_dim": 32}
    image, text = ViTSpec(**size, input=ImageInput(size=64)), TextTransformerSpec(**size, causal=True)
    encoder = image.build().train()
    captioner = CoCaSpec(image=image, text=text, decoder_depth=4, num_queries=9).build().train()
    images, ids = torch.rand(2, 3, 64, 64), torch.randint(1, 1000, (2, 20))
    for model, ways in (
        (encoder, [encoder.features, encoder.layer_tokens, encoder.embedding_and_features]),
        (captioner.text_encoder, [lambda _: captioner.text_encoder(ids)]),
        (captioner, [lambda given: captioner(given, ids)]),
    ):
        for way in ways:
            kept, wanted = kept_and_gradients(model, way, images)
            recompute(model)
            again, gradients = kept_and_gradients(model, way, images)
            recompute(model, False)
            assert again < 0.7 * kept
            torch.testing.assert_close(gradients, wanted)


def test_a_sequence_of_ones_own_stays_what_it_is():
    class Doubled(BlockSequence):
        def forward(self, x):
            return 2 * super().forward(x)

    sequence = recompute(Doubled(RepMixerBlock(8, hidden_dim=8)).eval())
    assert type(sequence) is Doubled
    x = torch.rand(1, 8, 4, 4)
    torch.testing.assert_close(sequence(x), 2 * sequence[0](x))
