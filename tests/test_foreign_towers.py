"""Towers that somebody else wrote have the standing of ours, from JSON to another runtime."""

import json
import math

import attrs
import pytest
import torch

import mobileclip
from mobileclip import reparameterize
from mobileclip.cli import main
from mobileclip.encoders import DualEncoderSpec, MCiSpec, StageSpec, load_model, save_model
from mobileclip.evaluation import Session, evaluate_benchmark, open_benchmark
from mobileclip.export import ExportSpec, bundled_samples, export_model, read_contract, targets, verify_export
from mobileclip.export.export import contract_of, tower_export
from mobileclip.inference import prepared
from mobileclip.inference.catalogue import describe
from mobileclip.serialization import from_json, to_json
from mobileclip.training import read_metrics, train
from tests.encoders.small import SMALL, embeddings, inputs
from tests.errors import fails
from tests.foreign_towers import FOREIGN, IMAGE, TEXT, NarrowSpec, registered
from tests.training.runs import Batches, training_spec

TEXTS = ["a cat", "two dogs on a beach", ""]


@pytest.fixture(scope="module", autouse=True)
def _registered():
    with registered():
        yield


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FOREIGN.build().eval()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("foreign") / "foreign.safetensors"
    save_model(model, path)
    return path


def test_json_and_checkpoints(model, file):
    assert from_json(to_json(FOREIGN), DualEncoderSpec) == FOREIGN
    torch.testing.assert_close(embeddings(load_model(file)), embeddings(model))
    _, tokens = inputs(FOREIGN)
    torch.testing.assert_close(load_model(file, tower="text")(tokens), model.encode_text(tokens))
    shorter = load_model(file, context_length=8, image_size=96)
    assert (shorter.spec.text.input.context_length, shorter.spec.image.input.size) == (8, 96)
    for layout in ("official", "open_clip"):
        with fails(ValueError, layout, "TimmSpec"):
            save_model(model, file.with_name("theirs.pt"), layout=layout)


@pytest.mark.parametrize("mixed", [FOREIGN, attrs.evolve(SMALL, text=TEXT), attrs.evolve(SMALL, image=IMAGE)])
def test_every_form_gives_the_same_embeddings(mixed):
    plain = mixed.build().eval()
    expected = embeddings(plain)
    fast = mobileclip.optimize(plain, compiled=False, rounds=1, show_progress=False)
    for form in (reparameterize(plain), prepared(plain), fast):
        torch.testing.assert_close(embeddings(form), expected, rtol=1e-4, atol=1e-5)
    assert (fast.report.image.tower, fast.report.text.tower) == ("image", "text")


def test_images_and_texts_of_people_and_zero_shot_evaluation(model, file, tmp_path, capsys):
    clip, images = mobileclip.load(file), bundled_samples().images[:6]
    with torch.no_grad():
        expected = model.encode_text(clip.tokenizer(TEXTS), normalize=True)
    torch.testing.assert_close(clip.encode_text(TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert sum(clip.classify(images[0], TEXTS[:2]).values()) == pytest.approx(1)
    folder, right = tmp_path / "classes", 0
    for number, image in enumerate(images):
        name = ("cat", "dog")[number % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{number}.jpg").write_bytes(image)
        right += next(iter(clip.classify(image, ["a photo of a cat", "a photo of a dog"]))).endswith(name)
    result = evaluate_benchmark(Session(clip, show_progress=False), open_benchmark(str(folder)))
    assert result.metrics["acc1"] == pytest.approx(right / 6)
    main(["eval", str(file), str(folder), "--output", str(tmp_path / "results"), "--device", "cpu"])
    assert "classes" in capsys.readouterr().out


def test_training(tmp_path):
    inputs = {"image": attrs.evolve(IMAGE.input, size=16)}
    inputs["text"] = attrs.evolve(TEXT.input, context_length=6, vocab_size=40)
    towers = {name: attrs.evolve(getattr(FOREIGN, name), input=one) for name, one in inputs.items()}
    student = attrs.evolve(FOREIGN, **towers).build()
    before = {name: tensor.clone() for name, tensor in student.named_parameters()}
    train(training_spec(3), model=student, batches=Batches(), output=tmp_path)
    assert not [name for name, tensor in student.named_parameters() if tensor.equal(before[name])]
    assert all(math.isfinite(line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl"))


@pytest.mark.parametrize("target", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exports(file, tmp_path, target):
    """The backbone's activations work in place, which files of torch.export may not hold."""
    spec = ExportSpec(output=tmp_path / "out", target=target, features=(1, 3))
    folder = export_model(file, spec, show_progress=False)
    assert verify_export(folder).passed
    image, text = read_contract(folder).towers
    assert [one.shape for one in image.features] == [(1, 32, 16, 16), (1, 192, 4, 4)]
    assert text.input_shape == (1, 12)
    spec = json.loads((folder / "mobileclip.json").read_text())["spec"]
    assert (spec["image"]["kind"], spec["text"]["kind"]) == ("test_timm", "test_words")


def test_a_spec_below_one_of_ours_is_named_by_its_own_kind(tmp_path):
    """In a file, in what describes it, and in an export."""
    tower = NarrowSpec(stages=(StageSpec(dim=8, depth=1),), embedding_dim=12, input=IMAGE.input).build().eval()
    assert isinstance(tower.spec, MCiSpec)
    save_model(tower, tmp_path / "narrow.safetensors")
    assert load_model(tmp_path / "narrow.safetensors").spec == tower.spec
    assert describe(str(tmp_path / "narrow.safetensors"))["spec"]["kind"] == "test_narrow"
    spec = ExportSpec(output=tmp_path / "out", target="torch", tower="image")
    export = tower_export("image", tower, spec, targets["torch"], calibration=bundled_samples())
    assert contract_of(tower, (export,), targets["torch"]).spec["kind"] == "test_narrow"
