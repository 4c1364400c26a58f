"""Fine-tuning a model whose texts another tokenizer makes."""

import attrs
import pytest
import torch

from mobileclip.data import Tokenizer, read_text_input
from mobileclip.encoders import DualEncoderSpec, MCtSpec, load_model, save_model
from mobileclip.recipes.finetuning import finetune_and_report
from tests.data.tokenizer_files import KINDS
from tests.export.models import VIT, seeing
from tests.recipes.test_finetune import SMALL_WORLD, chosen
from tests.recipes.world import TEMPLATE, write_new_shapes


@pytest.mark.parametrize("kind", KINDS)
def test_its_captions_become_the_ids_of_its_own_tokenizer(kind, tmp_path):
    """Rows of the table move for these ids alone, and the result has the tokenizer again."""
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    contract = read_text_input(tmp_path / "tokenizer.json", context_length=12)
    (tmp_path / "tokenizer.json").unlink()
    text = MCtSpec(width=16, num_heads=2, depth=1, embedding_dim=12, input=contract)
    model = seeing(DualEncoderSpec(image=VIT, text=text))
    save_model(model, tmp_path / "small.safetensors")
    write_new_shapes(tmp_path, SMALL_WORLD)
    spec = attrs.evolve(chosen(tmp_path, tmp_path / "output"), retention_tasks=(), weight_decay=0.0, alphas=(1.0,))
    before, after = finetune_and_report(spec).rows
    assert before.new.num_images == after.new.num_images > 0
    finetuned = load_model(tmp_path / "output" / "finetuned.safetensors", fold=False)
    assert finetuned.spec.text.input == contract
    captions = [TEMPLATE.format(folder.name) for folder in (tmp_path / "new-shapes").iterdir()]
    assert Tokenizer(finetuned.spec.text.input)(captions).tolist() == Tokenizer(contract)(captions).tolist()
    old, new = (one.text_encoder.token_embedding.weight for one in (model, finetuned))
    moved = set(torch.nonzero((old != new).any(dim=1)).flatten().tolist())
    assert moved == set(Tokenizer(contract)(captions).flatten().tolist())
