"""Fine-tuning a model whose texts another tokenizer makes."""

import pytest
import torch

from mobileclip.data import Tokenizer, read_text_input
from mobileclip.encoders import DualEncoderSpec, MCtSpec, load_model, save_model
from mobileclip.recipes.finetuning import finetune_and_report
from mobileclip.training.finetuning.run import FinetuneSpec
from tests.data.tokenizer_files import KINDS
from tests.export.models import VIT, seeing
from tests.recipes.world import TEMPLATE, World, write_new_shapes

WORLD = World(num_scenes=8, num_tests=4, num_new=6, num_steps=1, batch_size=8)


@pytest.mark.parametrize("kind", KINDS)
def test_its_captions_become_the_ids_of_its_own_tokenizer(kind, tmp_path):
    """Rows of the table move for these ids alone, and the result has the tokenizer again."""
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    contract = read_text_input(tmp_path / "tokenizer.json", context_length=12)
    (tmp_path / "tokenizer.json").unlink()
    text = MCtSpec(width=16, num_heads=2, depth=1, embedding_dim=12, input=contract)
    model = seeing(DualEncoderSpec(image=VIT, text=text))
    save_model(model, tmp_path / "model.safetensors")
    write_new_shapes(tmp_path, WORLD)
    spec = FinetuneSpec(
        checkpoint=str(tmp_path / "model.safetensors"),
        data=str(tmp_path / "new-shapes"),
        templates=(TEMPLATE,),
        held_out=0.3,
        epochs=1,
        batch_size=8,
        learning_rate=1e-3,
        weight_decay=0.0,
        alphas=(1.0,),
        output=tmp_path / "output",
        device="cpu",
    )
    before, after = finetune_and_report(spec).rows
    assert before.new.num_images == after.new.num_images > 0
    finetuned = load_model(tmp_path / "output" / "finetuned.safetensors", fold=False)
    assert finetuned.spec.text.input == contract
    captions = [TEMPLATE.format(folder.name) for folder in (tmp_path / "new-shapes").iterdir()]
    assert Tokenizer(finetuned.spec.text.input)(captions).tolist() == Tokenizer(contract)(captions).tolist()
    old, new = (one.text_encoder.token_embedding.weight for one in (model, finetuned))
    moved = set(torch.nonzero((old != new).any(dim=1)).flatten().tolist())
    assert moved == set(Tokenizer(contract)(captions).flatten().tolist())
