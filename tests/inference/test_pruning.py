"""Vocabularies without what texts never use: the same embeddings, and something for every other text."""

from functools import partial

import pytest
import torch

from mobileclip.data import Tokenizer, read_text_input, train_tokenizer
from mobileclip.encoders import MCtSpec, TextTransformerSpec, load_model, save_model
from mobileclip.inference import prune_vocabulary
from mobileclip.inputs import TextInput
from mobileclip.reparam import reparameterize
from tests.data.tokenizer_files import KINDS, SENTENCES, TEXTS
from tests.encoders.small import randomised
from tests.errors import fails

USED, OTHERS = SENTENCES[:4], [*TEXTS, "Ελληνικά", "\N{GRINNING FACE}\N{SNOWMAN}", "x" * 30]


def trained(kind):
    return lambda: train_tokenizer(SENTENCES * 3, vocab_size=400, kind=kind)


CONTENTS = {
    **{name: partial(lambda made: made().to_str(), made) for name, made in KINDS.items()},
    "bpe": trained("bpe"),
    "unigram": trained("unigram"),
    "clip": lambda: None,
}
CLIP = TextInput(context_length=20, vocab_size=2000)


@pytest.fixture(scope="module")
def contracts(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("tokenizers"), {"clip": CLIP}
    for name, make in CONTENTS.items():
        if name != "clip":
            (folder / f"{name}.json").write_text(make(), encoding="utf-8")
            found[name] = read_text_input(folder / f"{name}.json", context_length=20)
    return folder, found


def embeddings(tower, texts):
    with torch.inference_mode():
        return tower(Tokenizer(tower.spec.input)(texts))


@pytest.mark.parametrize("kind", CONTENTS)
def test_embeddings_of_the_texts_are_the_same_to_the_bit(kind, contracts):
    folder, known = contracts
    tower = randomised(TextTransformerSpec(width=16, num_heads=2, depth=1, embedding_dim=8, input=known[kind]))
    before = embeddings(tower, OTHERS)
    pruned = prune_vocabulary(USED, tower)
    assert 0 < len(pruned.ids) < tower.spec.input.vocab_size
    assert pruned.num_other == 0
    assert torch.equal(embeddings(pruned.tower, USED), embeddings(tower, USED))
    assert embeddings(pruned.tower, OTHERS).isfinite().all()
    assert torch.equal(embeddings(tower, OTHERS), before)  # the tower stays as it was
    again = prune_vocabulary(USED, pruned.tower)
    assert len(again.ids) == len(pruned.ids)
    save_model(pruned.tower, folder / f"{kind}.safetensors")
    loaded = load_model(folder / f"{kind}.safetensors", fold=False)
    assert torch.equal(embeddings(loaded, USED), embeddings(tower, USED))


@pytest.mark.parametrize("kind", ["gpt", "bpe", "clip"])
def test_bytes_stay_so_that_other_texts_come_back(kind, contracts):
    tower = TextTransformerSpec(width=16, num_heads=2, depth=0, embedding_dim=8, input=contracts[1][kind]).build()
    tokenizer = Tokenizer(prune_vocabulary(["a"], tower).tower.spec.input)
    for text in ("zebra", "ελληνικά", "\N{GRINNING FACE}"):
        assert tokenizer.decode(tokenizer.encode(text)).strip() == text


def test_a_folded_tower_and_a_mean(contracts):
    spec = MCtSpec(width=16, num_heads=2, depth=1, embedding_dim=8, pool="mean", input=contracts[1]["bert"])
    folded = reparameterize(randomised(spec))
    pruned = prune_vocabulary(iter(USED), folded)
    assert torch.equal(embeddings(pruned.tower, USED), embeddings(folded, USED))


def test_texts_that_are_repaired_are_counted():
    tower = TextTransformerSpec(width=16, num_heads=2, depth=0, embedding_dim=8, input=CLIP).build()
    assert prune_vocabulary(["a cat", "schÃ¶n", "&amp;lt;"], tower).num_other == 2


def test_what_cannot_be_pruned_is_named():
    tower = TextTransformerSpec(width=16, num_heads=2, depth=0, embedding_dim=8, input=CLIP).build()
    with fails(ValueError):
        prune_vocabulary([], tower)
    with fails(ValueError, "Linear"):
        prune_vocabulary(["a"], torch.nn.Linear(2, 2))
    with fails(ValueError, "2000"):
        tower.with_vocabulary(CLIP, [1, 2, 3])
