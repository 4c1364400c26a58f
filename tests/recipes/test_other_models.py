"""The recipes of classifiers and captioners: published sizes, and small runs on drawings and on a person's own data."""

import json
import math
from pathlib import Path

import attrs
import pytest
import torch

from mobileclip.data import read_samples, write_shards
from mobileclip.encoders import ClassifierSpec, load_model, save_model
from mobileclip.encoders.checkpoints import skeleton
from mobileclip.recipes import coca_vit_l14
from mobileclip.recipes.tiny import SHAPES, scene_samples
from mobileclip.serialization import to_json
from mobileclip.training import read_metrics
from recipes import train_imagenet_mci as recipe
from tests.data.made_samples import encoded, write_raw
from tests.recipes.running import run_named

SMALL = ["--data.image.size", "64", "--data.augmentation.size", "64"]
MCI0 = "train_imagenet_mci mci0"


def test_classifiers_and_the_captioner_have_the_published_number_of_parameters():
    """Table 11 counts the pooled features' linear layer in, and no projection in front; open_clip profiles its CoCa."""
    models = {row: (recipe.ROWS[row].model, "folded") for row in ("mci0", "mci1", "mci2")}
    models["coca"] = coca_vit_l14(), "training"
    millions = {name: sum(one.numel() for one in skeleton(*model).parameters()) / 1e6 for name, model in models.items()}
    assert millions == pytest.approx({"mci0": 11.8, "mci1": 21.9, "mci2": 36.3, "coca": 638.45}, abs=0.05)


def test_a_tiny_run_on_drawn_shapes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run, image = recipe.ROWS["mci0"], recipe.ROWS["mci0"].model.image
    stages = tuple(attrs.evolve(stage, dim=stage.dim // 8) for stage in image.stages)
    image = attrs.evolve(image, stages=stages, embedding_dim=image.embedding_dim // 8)
    (tmp_path / "narrow.json").write_text(to_json(attrs.evolve(run, model=attrs.evolve(run.model, image=image))))
    run_named(MCI0, "narrow.json", "--tiny", *SMALL)
    assert "load_model" in capsys.readouterr().out
    whole = tmp_path / "outputs" / "train_imagenet_mci-mci0-tiny"
    assert load_model(whole / "model.safetensors").spec.class_names == tuple(sorted(SHAPES))
    losses = [line["loss"] for line in read_metrics(whole / "metrics.jsonl") if "loss" in line]
    assert list(map(math.isfinite, losses)) == [True, True]
    assert (whole / "curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_on_shards_of_one_s_own_from_a_model_of_one_s_own(tmp_path, monkeypatch):
    """Numbers in `.cls` are called as `classnames.txt` says; with weights to start from, the model is whole."""
    monkeypatch.chdir(tmp_path)
    members = {f"{number:02d}": {"png": encoded(20, 20, number), "cls": b"%d" % (number % 3)} for number in range(24)}
    write_raw(tmp_path / "0.tar", members)
    (tmp_path / "classnames.txt").write_text("ant\nbee\ncat")
    image = recipe.ROWS["mci0"].model.image
    image = attrs.evolve(image, input=attrs.evolve(image.input, size=64), drop_path=0.0)
    start = ClassifierSpec(image=image, num_classes=7).build().eval()
    save_model(start, tmp_path / "start.safetensors")
    flags = ["--tiny", *SMALL, "--data", "0.tar", "--validation", "0.tar", "--initial-weights", "start.safetensors"]
    rates = "--training.schedule.peak 1e-9 --training.schedule.final 1e-9"
    run_named(MCI0, *flags, "--output", "out", *rates.split())
    model = load_model("out/model.safetensors", fold=False)
    assert model.spec.class_names == ("ant", "bee", "cat")
    assert model.spec.image.drop_path == 0.1
    for name, parameter in model.image_encoder.named_parameters():
        torch.testing.assert_close(parameter, start.image_encoder.get_parameter(name), rtol=0, atol=1e-6)
    assert any(name.endswith("acc1") for line in read_metrics(tmp_path / "out" / "metrics.jsonl") for name in line)


@pytest.mark.slow
def test_a_run_on_a_table_is_resumed_to_the_bit_and_writes_captions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    for sample in scene_samples(16, seed=3):
        Path(f"{sample.key}.{sample.image_extension}").write_bytes(sample.image)
        lines.append({"image": f"{sample.key}.{sample.image_extension}", "captions": list(sample.captions)})
    Path("captions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_shards("held_out", scene_samples(4, seed=5))
    flags = "--tiny --quiet --training.checkpoint-every-steps 1 --data captions.jsonl -o whole"
    run_named("finetune_coca context_77", *flags.split())
    # The choices of a run, on the table itself, of which shards are made.
    choices = json.loads(Path("whole/run.json").read_text())
    choices["data"]["shards"] = ["captions.jsonl"]
    Path("again.json").write_text(json.dumps(choices))

    def state(output):
        run_named("finetune_coca", *f"again.json -o {output} --validation held_out/00000000.tar --quiet".split())
        return load_model(f"{output}/model.safetensors", fold=False).state_dict()

    one, _ = state("one"), state("two")
    last = read_metrics("one/metrics.jsonl")[-1]
    assert 0 < last["validation_nats_per_id"] < 12
    assert 0 <= last["validation_ids_right"] <= 1
    assert len(list(read_samples(sorted(map(str, Path("one/data").glob("*/*.tar")))))) == 16
    (newest,) = Path("two/checkpoints").glob("step-*2.safetensors")
    for path in (newest, Path("two/model.safetensors")):
        path.unlink()
    two = state("two")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    flags = "--tiny --step captions --captioner-weights one/model.safetensors -o written --quiet"
    run_named("reinforce_datacompdr12m", *flags.split())
    captions = [one.syn_captions["syn_text"] for one in read_samples(sorted(map(str, Path("written").glob("*.tar"))))]
    assert captions
    assert all(len(several) == 5 and all(several) for several in captions)
