"""A model whose texts another tokenizer makes, from training to export: one file of weights is all that goes along."""

import json
import shutil

import attrs
import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from safetensors import safe_open

import mobileclip
from mobileclip.data import ReinforcedPipelineSpec, Tokenizer, read_text_input, write_shards
from mobileclip.encoders import DualEncoderSpec, TextTransformerSpec, load_model, save_model
from mobileclip.encoders.checkpoints import read_checkpoint
from mobileclip.export import ExportSpec, export_model, verify_export
from mobileclip.losses import ContrastiveLossSpec
from mobileclip.reinforce import CheckpointTeacher
from mobileclip.serialization import from_json, to_json
from mobileclip.tensor_files import CheckpointError
from mobileclip.training import CosineSchedule, RunSpec, TrainingSpec, run
from tests.build.commands import worked
from tests.data.made_samples import make_sample
from tests.data.tokenizer_files import KINDS, TEXTS
from tests.errors import fails
from tests.export.models import VIT, few_samples, seeing

ALL = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def contracts(tmp_path_factory):
    """The text contract of every kind; the files are gone."""
    folder = tmp_path_factory.mktemp("files")
    read = {}
    for name, kind in KINDS.items():
        kind().save(str(folder / f"{name}.json"))
        read[name] = read_text_input(folder / f"{name}.json", context_length=12)
    shutil.rmtree(folder)
    return read


def model_spec(contract, *, causal=False):
    text = TextTransformerSpec(width=16, num_heads=2, depth=2, embedding_dim=12, causal=causal, input=contract)
    return DualEncoderSpec(image=VIT, text=text)


@pytest.fixture(scope="module")
def files(contracts, tmp_path_factory):
    """A file of weights for every kind, that of T5's with a causal tower."""
    folder = tmp_path_factory.mktemp("weights")
    for kind, contract in contracts.items():
        save_model(seeing(model_spec(contract, causal=kind == "t5")), folder / f"{kind}.safetensors")
    return {kind: folder / f"{kind}.safetensors" for kind in contracts}


@ALL
def test_a_checkpoint_alone_makes_the_same_ids_and_embeddings(contracts, files, kind):
    clip = mobileclip.load(files[kind])
    tower = seeing(model_spec(contracts[kind], causal=kind == "t5")).text_encoder
    ids = Tokenizer(contracts[kind])(TEXTS)
    assert torch.equal(clip.tokenizer(TEXTS), ids)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(tower(ids), dim=-1)
        torch.testing.assert_close(clip.encode_text(TEXTS), expected)
        # The embedding is that of a tower when all other places than the end are hidden from its last norm.
        tower = seeing(model_spec(contracts[kind])).text_encoder
        ends = torch.tensor([row.index(contracts[kind].end_id) for row in ids.tolist()])
        features = tower.layers(tower.token_embedding(ids) + tower.position)[torch.arange(len(ids)), ends]
        torch.testing.assert_close(tower(ids), tower.project(tower.norm(features)))
    assert len(clip.encode_text(TEXTS[:5]).unique(dim=0)) == 5


def test_weights_converted_twice_keep_their_tokenizer(contracts, files, tmp_path):
    for name in ("first", "second"):
        save_model(load_model(files["bert"]), tmp_path / f"{name}.safetensors")
    with safe_open(tmp_path / "second.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert contracts["bert"].tokenizer.content not in metadata["mobileclip.spec"]
    assert len(metadata["mobileclip.tokenizer"]) < len(contracts["bert"].tokenizer.content)
    stored = read_checkpoint(tmp_path / "second.safetensors").spec
    assert stored.text.input.tokenizer.content == contracts["bert"].tokenizer.content


def test_a_text_tower_alone_has_its_tokenizer_and_an_image_tower_alone_none(contracts, files, tmp_path):
    for tower in ("text", "image"):
        save_model(load_model(files["gpt"], tower=tower), tmp_path / f"{tower}.safetensors")
    again = load_model(tmp_path / "text.safetensors")
    assert Tokenizer(again.spec.input)(TEXTS).tolist() == Tokenizer(contracts["gpt"])(TEXTS).tolist()
    with safe_open(tmp_path / "image.safetensors", framework="pt") as file:
        assert "mobileclip.tokenizer" not in file.metadata()


def test_a_model_is_not_saved_where_its_tokenizer_would_be_lost(contracts, files, tmp_path):
    for layout in ("official", "open_clip"):
        with fails(ValueError):
            save_model(load_model(files["bert"]), tmp_path / "m.pt", layout=layout)
    named = from_json(to_json(model_spec(contracts["bert"])), DualEncoderSpec)
    with fails(CheckpointError):
        save_model(named.build(), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
    # The spec that is asked for need not hold the text.
    assert load_model(files["bert"], named).spec.text.input.tokenizer.content is not None
    with fails(CheckpointError):
        load_model(files["bert"], model_spec(contracts["gpt"]))


@pytest.fixture(scope="module")
def trained(contracts, tmp_path_factory):
    """A run of a few steps, read from its JSON, whose data has the text of the tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    write_shards(folder / "data", [make_sample(index) for index in range(12)], samples_per_shard=6)
    shards = str(folder / "data" / "{00000000..00000001}.tar")
    data = ReinforcedPipelineSpec(shards=shards, batch_size=6, image=VIT.input, text=contracts["t5"], reinforced=False)
    schedule = CosineSchedule(peak=1e-3, warmup_steps=1, total_steps=4)
    training = TrainingSpec(loss=ContrastiveLossSpec(), schedule=schedule)
    spec = RunSpec(model=model_spec(contracts["t5"]), data=data, training=training)
    named = attrs.evolve(from_json(to_json(spec), RunSpec), data=spec.data)
    seen = []
    path = run(named, folder / "out", evaluate=lambda model: seen.append(model) or (lambda *_: {}), device="cpu")
    assert Tokenizer(seen[0].text.input)("a cat").shape == (1, 12)
    return path


def test_a_trained_model_has_the_tokenizer_of_its_data(contracts, trained):
    assert mobileclip.load(trained).tokenizer(TEXTS).tolist() == Tokenizer(contracts["t5"])(TEXTS).tolist()
    tokenizer = json.loads((trained.parent / "run.json").read_text())["data"]["text"]["tokenizer"]
    assert (tokenizer["sha256"], "content" in tokenizer) == (contracts["t5"].tokenizer.sha256, False)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_hold_its_ids(contracts, tmp_path, num_workers):
    samples = [make_sample(index) for index in range(4)]
    shards = list(map(str, write_shards(tmp_path, samples, samples_per_shard=4)))
    choices = {"shards": shards, "batch_size": 4, "image": VIT.input, "shuffle": False, "num_workers": num_workers}
    batch = next(iter(ReinforcedPipelineSpec(**choices, text=contracts["gpt"]).build()))
    captions = [text for sample in samples for text in sample.captions]
    assert {*map(tuple, batch.text.tolist())} <= {*map(tuple, Tokenizer(contracts["gpt"])(captions).tolist())}


def test_commands(capsys, trained, tmp_path):
    picture = "tests/golden/augment/images/chelsea.png"
    out = worked(capsys, "classify", picture, "a cat", "a dog", "-m", trained, "--json")
    assert set(json.loads(out)) == {"a cat", "a dog"}
    (tmp_path / "captions.txt").write_text("a cat\na dog\n", encoding="utf-8")
    worked(capsys, "embed", "--texts", tmp_path / "captions.txt", "-o", tmp_path / "e.npz", "-m", trained)
    with np.load(tmp_path / "e.npz", allow_pickle=False) as file:
        expected = mobileclip.load(trained).encode_text(["a cat", "a dog"]).numpy()
        np.testing.assert_allclose(file["text_embedding"], expected, atol=1e-6)
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.effect_noise((70, 70), 40).convert("RGB").save(tmp_path / "classes" / name / "a.png")
    worked(capsys, "eval", trained, tmp_path / "classes", "--output", tmp_path / "results")
    assert json.loads(worked(capsys, "info", trained))["input"]["text"]["tokenizer"]["end_id"] == 1


def test_a_teacher_has_its_tokenizer(contracts, files):
    teacher = CheckpointTeacher(checkpoint=files["bert"]).build()
    assert teacher.clip.tokenizer(TEXTS).tolist() == Tokenizer(contracts["bert"])(TEXTS).tolist()
    assert teacher.encode_texts(["a cat", "two dogs"]).shape == (2, 12)


@pytest.mark.parametrize(("kind", "target"), [("bert", "torch"), pytest.param("t5", "onnx", marks=pytest.mark.slow)])
def test_an_export_has_a_tokenizer_of_the_same_ids(contracts, files, tmp_path, kind, target):
    spec = ExportSpec(output=tmp_path / "out", target=target)
    export_model(files[kind], spec, samples=few_samples(), show_progress=False)
    whole = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert [whole.encode(text).ids for text in TEXTS] == Tokenizer(contracts[kind])(TEXTS).tolist()
    text = json.loads((tmp_path / "out" / "mobileclip.json").read_text(encoding="utf-8"))["text"]
    assert (text["start_id"], text["end_id"]) == (contracts[kind].start_id, contracts[kind].end_id)
    assert text["input"]["tokenizer"]["sha256"] == contracts[kind].tokenizer.sha256
    assert verify_export(tmp_path / "out", show_progress=False).passed
