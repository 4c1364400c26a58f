"""The captioners' recipes: their published choices, and a small run on a person's own table that writes captions."""

import json

import attrs
import pytest
import torch

from mobileclip.data import read_samples, write_shards
from mobileclip.encoders.checkpoints import load_model, skeleton
from mobileclip.recipes import coca_vit_l14
from mobileclip.recipes.tiny import scene_samples
from mobileclip.training import read_metrics
from tests.errors import fails
from tests.recipes.running import run_named, shown_run

CONTEXTS = (77, 128, 256)


def test_the_published_captioner_has_open_clips_number_of_parameters():
    """open_clip profiles coca_ViT-L-14 with 638.45 million."""
    count = sum(parameter.numel() for parameter in skeleton(coca_vit_l14(), "training").parameters())
    assert count / 1e6 == pytest.approx(638.45, abs=0.01)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pictures in files, and a table of their captions."""
    folder = tmp_path_factory.mktemp("table")
    lines = []
    for sample in scene_samples(16, seed=3):
        name = f"{sample.key}.{sample.image_extension}"
        (folder / name).write_bytes(sample.image)
        lines.append({"image": name, "captions": list(sample.captions)})
    (folder / "captions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_shards(folder / "held_out", scene_samples(4, seed=5), samples_per_shard=4)
    return folder


@pytest.mark.slow
def test_a_run_on_a_table_is_resumed_to_the_bit_and_writes_captions(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--tiny", "--quiet", "--training.checkpoint-every-steps", "1"]
    run_named("finetune_coca context_77", *flags, "--data", table / "captions.jsonl", "-o", "whole")
    # Of a run, its own choices, on the table itself, of which shards are made.
    run = shown_run_of(tmp_path / "whole", table)
    held_out = table / "held_out" / "00000000.tar"
    for output in ("one", "two"):
        run_named("finetune_coca", run, "-o", output, "--validation", held_out, "--quiet")
    last = read_metrics(tmp_path / "one" / "metrics.jsonl")[-1]
    assert 0 < last["validation_nats_per_id"] < 12
    assert 0 <= last["validation_ids_right"] <= 1
    assert len(list(read_samples([str(one) for one in (tmp_path / "one" / "data").glob("*/*.tar")]))) == 16
    (newest,) = sorted((tmp_path / "two" / "checkpoints").glob("step-*2.safetensors"))
    newest.unlink()
    (tmp_path / "two" / "model.safetensors").unlink()
    run_named("finetune_coca", run, "-o", "two", "--validation", held_out, "--quiet")
    states = [load_model(tmp_path / one / "model.safetensors", fold=False).state_dict() for one in ("one", "two")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    weights = ("--captioner-weights", tmp_path / "one" / "model.safetensors")
    run_named("reinforce_datacompdr12m", "--tiny", "--step", "captions", *weights, "-o", "written", "--quiet")
    samples = list(read_samples(sorted(map(str, (tmp_path / "written").glob("*.tar")))))
    assert samples
    assert all(len(one.syn_captions["syn_text"]) == 5 and all(one.syn_captions["syn_text"]) for one in samples)


def shown_run_of(folder, table):
    """Return a file with the choices of a run, on the table itself."""
    choices = json.loads((folder / "run.json").read_text())
    choices["data"]["shards"] = [str(table / "captions.jsonl")]
    path = folder / "again.json"
    path.write_text(json.dumps(choices))
    return path


def test_choices_are_flags(capsys):
    run = shown_run(
        capsys, "train_coca context_128", "--data", "a.tar", "--steps", "50", "--training.loss.caption-weight", "3"
    )
    assert (run.training.loss.caption_weight, run.training.total_steps, run.data.shards) == (3.0, 50, ("a.tar",))
    other = attrs.evolve(run.data.text, context_length=40)
    assert shown_run(capsys, "train_coca context_77", "--data.text.context-length", "40").model.text.input == other
    with fails(SystemExit, "--data"):
        run_named("train_coca context_77")
