"""The fine-tuning recipe end to end, on drawn scenes and shapes, and what its steps do with data of every kind."""

import json
import os
import re
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import attrs
import pytest
import torch

from mobileclip import reparameterize
from mobileclip.data import ReinforcedPipeline, SkipReport, read_samples, write_shards
from mobileclip.datasets import ShardSource
from mobileclip.encoders import (
    AttentionSpec,
    DualEncoder,
    DualEncoderSpec,
    MCiSpec,
    StageSpec,
    TextTransformerSpec,
    load_model,
    save_model,
)
from mobileclip.evaluation import caption_recall
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.recipes.finetuning import evaluate_task, finetune_and_report as run, summary, table, write_report
from mobileclip.recipes.tiny import OUTLINES
from mobileclip.serialization import from_json
from mobileclip.training import read_metrics
from mobileclip.training.finetuning.run import TRAINED_ON, FinetuneSpec, Results, Score, Scores, refuse_other_data
from mobileclip.training.finetuning.tasks import open_task, read_index, split, write_training_data
from tests.encoders.small import randomised
from tests.errors import fails
from tests.recipes.running import run_named, shown
from tests.recipes.world import TEMPLATE, World, tiny_model, write_model, write_new_shapes, write_old_tasks
from tests.training.program import together
from tests.training.runs import free_port

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "tests" / "golden" / "augment" / "images"
SMALL_WORLD = World(num_scenes=64, num_tests=12, num_new=6, num_steps=1, batch_size=16)
IMAGE, TEXT = ImageInput(size=32), TextInput(context_length=24, vocab_size=16384)
MODEL = DualEncoderSpec(
    image=MCiSpec(stages=(StageSpec(dim=32, depth=1, mixer=AttentionSpec()),), embedding_dim=16, input=IMAGE),
    text=TextTransformerSpec(width=32, num_heads=2, depth=1, embedding_dim=16, input=TEXT),
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Where scenes, new shapes and old tasks are, and a model smaller than the one that learned scenes for a step."""
    folder = tmp_path_factory.mktemp("world")
    assert load_model(write_model(folder, SMALL_WORLD)).spec == tiny_model()
    torch.manual_seed(0)
    save_model(MODEL.build(), folder / "small.safetensors")
    write_new_shapes(folder, SMALL_WORLD)
    write_old_tasks(folder, SMALL_WORLD)
    return folder


def chosen(world, output):
    return FinetuneSpec(
        checkpoint=str(world / "small.safetensors"),
        data=str(world / "new-shapes"),
        retention_tasks=(str(world / "old-shapes"), str(world / "held-out-scenes")),
        templates=(TEMPLATE,),
        held_out=0.3,
        epochs=1,
        batch_size=8,
        learning_rate=1e-3,
        alphas=(0.5,),
        output=output,
    )


@pytest.fixture
def spec(world, tmp_path):
    return chosen(world, tmp_path / "output")


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory, one_thread):
    """A run of two epochs without old tasks, that nothing happens to, and what it finds."""
    spec = attrs.evolve(
        chosen(world, tmp_path_factory.mktemp("alone") / "output"), retention_tasks=(), alphas=(), epochs=2
    )
    return spec, run(spec)


def states_differ(one, other):
    return {name for name, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[name])}


def test_the_whole_path_and_a_second_run(spec, capsys, monkeypatch):
    results = run(spec)
    assert [row.alpha for row in results.rows] == [0.0, 0.5, 1.0]
    for row in results.rows:
        assert (row.new.metric, row.new.task) == ("top-1", "new-shapes")
        assert [score.metric for score in row.old] == ["top-1", "R@1"]
        assert row.old[1].num_images == 12
    assert results.before.new.num_images == 8 * 2
    original = load_model(spec.checkpoint, fold=False)
    finetuned = load_model(spec.output / "finetuned.safetensors", fold=False)
    between = load_model(spec.output / "interpolated.safetensors", fold=False)
    moved = states_differ(original, finetuned)
    assert moved
    assert not any("norm.running" in name or "num_batches" in name for name in moved)
    name = "image_encoder.head.project.weight"
    mean = (original.state_dict()[name] + finetuned.state_dict()[name]) / 2
    torch.testing.assert_close(between.state_dict()[name], mean)
    assert reparameterize(finetuned)
    text = (spec.output / "report.md").read_text()
    assert table(results.rows) in text
    assert (spec.output / "tradeoff.png").stat().st_size > 1000
    assert from_json((spec.output / "results.json").read_text(), Results) == results
    num_train = read_index(next((spec.output / "data").iterdir())).num_samples
    assert len(read_metrics(spec.output / "run" / "metrics.jsonl")) >= 1
    assert "| original " in capsys.readouterr().out

    for name in ("encode_image", "encode_text", "forward"):  # nothing is trained or tested again
        monkeypatch.setattr(DualEncoder, name, None)
    again = run(spec)
    assert again.rows == results.rows
    assert run(attrs.evolve(spec, device="cpu")).rows == results.rows, "a device is no part of a run's identity"
    with fails(ValueError):
        run(attrs.evolve(spec, epochs=2))
    assert num_train + results.before.new.num_images == 8 * 6


@pytest.mark.parametrize(
    ("choices", "moves", "stays"),
    [
        (
            {"freeze": ("text",), "rate_decay": 0.5, "rate_layers": "stage"},
            "image_encoder.stem",
            ("text_encoder.", "image_encoder.stem.0.branches.0.norm."),
        ),
        ({"freeze": ("image",), "batch_norm": "trained"}, "text_encoder.layers", "image_encoder."),
        pytest.param({"lora_rank": 2}, "logit_scale", "image_encoder.stem.", marks=pytest.mark.extra("lora")),
    ],
)
def test_choices_reach_the_weights(spec, choices, moves, stays):
    spec = attrs.evolve(spec, retention_tasks=(), alphas=(), **choices)
    run(spec)
    moved = states_differ(
        load_model(spec.checkpoint, fold=False), load_model(spec.output / "finetuned.safetensors", fold=False)
    )
    assert any(name.startswith(moves) for name in moved)
    assert not any(name.startswith(stays) for name in moved)


def test_captions_train_and_are_tested_by_retrieval(spec, world):
    spec = attrs.evolve(
        spec,
        data=str(world / "scenes"),
        test=str(world / "held-out-scenes"),
        retention_tasks=(),
        evaluate_every_steps=4,
    )
    results = run(spec)
    assert (results.after.new.metric, results.after.new.num_images) == ("R@1", 12)
    lines = read_metrics(spec.output / "run" / "metrics.jsonl")
    logged = [line["new_task_R@1"] for line in lines if "new_task_R@1" in line]
    assert len(logged) == 2
    assert logged[-1] == pytest.approx(results.after.new.value)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"learning_rate": 1e30}, id="step", marks=pytest.mark.slow),
        pytest.param({"checkpoint": "other.safetensors", "batch_size": 7}, id="share"),
    ],
)
def test_a_run_that_fails_before_its_first_checkpoint_leaves_the_folder_to_mended_choices(
    spec, alone, tmp_path, monkeypatch, wrong
):
    """A score of the model that it began with is not taken for the next one's either."""
    spec = attrs.evolve(spec, retention_tasks=(), alphas=())
    if "checkpoint" in wrong:
        wrong["checkpoint"] = str(tmp_path / wrong["checkpoint"])
        save_model(randomised(load_model(spec.checkpoint, fold=False).spec), wrong["checkpoint"])
        monkeypatch.setattr(ReinforcedPipeline, "stream", lambda *_: refuse())
    with pytest.raises((FloatingPointError, ValueError)):
        run(attrs.evolve(spec, **wrong))
    monkeypatch.undo()
    assert run(spec).before == alone[1].before


def refuse():
    raise ValueError("there is no batch")


def test_a_killed_run_gives_the_same_model(alone, tmp_path, monkeypatch):
    spec, _ = alone
    parts = attrs.evolve(spec, output=tmp_path / "parts")
    whole = ReinforcedPipeline.stream

    def stopping(self, position):
        yield from islice(whole(self, position), 6)
        raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(ReinforcedPipeline, "stream", stopping)
        with pytest.raises(InterruptedError):
            run(parts)
    run(parts)
    one, other = (load_model(each.output / "finetuned.safetensors", fold=False) for each in (spec, parts))
    assert not states_differ(one, other)


def test_scores_are_those_of_the_library(world):
    model = load_model(world / "pretrained.safetensors")
    task = open_task(str(world / "held-out-scenes"), "auto", (TEMPLATE,))
    score = evaluate_task(model, task, (TEMPLATE,))
    from mobileclip.data import ImageTransform, Tokenizer, decode_image

    samples = list(read_samples(str(world / "held-out-scenes" / "00000000.tar")))
    transform = ImageTransform(model.spec.image.input)
    images = torch.stack([transform(decode_image(sample.image)) for sample in samples])
    tokens = Tokenizer(model.spec.text.input)([caption for sample in samples for caption in sample.captions])
    with torch.inference_mode():
        counts = [len(sample.captions) for sample in samples]
        found = caption_recall(model.encode_image(images), model.encode_text(tokens), counts)
    assert score.value == pytest.approx(50 * (found.image_to_text.at1 + found.text_to_image.at1))


def test_pictures_that_cannot_be_decoded_are_left_out_of_tests(world, tmp_path):
    shutil.copytree(world / "new-shapes", tmp_path / "shapes")
    for broken in list((tmp_path / "shapes" / "star").iterdir())[:2]:
        broken.write_bytes(broken.read_bytes()[:100])
    model = load_model(world / "pretrained.safetensors")
    score = evaluate_task(model, open_task(str(tmp_path / "shapes"), "auto", (TEMPLATE,)), (TEMPLATE,))
    assert (score.num_images, score.num_skipped) == (8 * 6 - 2, 2)
    assert "| 46 (2 skipped) |" in table((Scores(alpha=0.0, new=score, old=()),))


def test_data_of_every_kind_is_recognised(world, tmp_path):
    assert open_task(str(world / "new-shapes"), "auto", ("{}",)).kind == "classes"
    assert open_task(str(world / "held-out-scenes"), "auto", ("{}",)).kind == "captions"
    captioned = tmp_path / "captioned" / "below"
    captioned.mkdir(parents=True)
    shutil.copyfile(IMAGES / "chelsea.png", captioned / "cat.png")
    (captioned / "cat.txt").write_text("a cat")
    assert open_task(str(tmp_path / "captioned"), "auto", ("{}",)).kind == "captions"
    assert open_task(str(tmp_path / "captioned"), "classes", ("{}",)).kind == "classes"
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"image": str(captioned / "cat.png"), "caption": "a cat"}) + "\n")
    assert open_task(str(tmp_path / "pairs.jsonl"), "auto", ("{}",)).kind == "captions"
    labelled = list(open_task(str(world / "new-shapes"), "auto", ("{}",)).samples(SkipReport()))
    write_shards(tmp_path / "labelled", labelled)
    task = open_task(str(tmp_path / "labelled"), "auto", ("{}",))
    assert (task.kind, type(task.source)) == ("classes", ShardSource)
    with fails(ValueError):
        open_task(str(world / "held-out-scenes"), "classes", ("{}",))


def test_the_parts_are_disjoint_complete_and_do_not_change(world):
    task = open_task(str(world / "new-shapes"), "auto", ("{}",))
    parts = [{sample.key for sample in part.samples(SkipReport())} for part in split(task, 0.3)]
    assert parts[0].isdisjoint(parts[1])
    assert len(parts[0] | parts[1]) == 8 * 6
    assert Counter(key.partition("/")[0] for key in parts[1]) == dict.fromkeys(OUTLINES, 2)
    scenes = open_task(str(world / "scenes"), "auto", ("{}",))
    parts_of_scenes = [{sample.key for sample in part.samples(SkipReport())} for part in split(scenes, 0.3)]
    assert parts_of_scenes[0].isdisjoint(parts_of_scenes[1])
    assert len(parts_of_scenes[0] | parts_of_scenes[1]) == 64
    assert 0.15 < len(parts_of_scenes[1]) / 64 < 0.45
    assert parts == [{sample.key for sample in part.samples(SkipReport())} for part in split(task, 0.3)]
    assert split(task, 0.3)[0].fingerprint != split(task, 0.2)[0].fingerprint


def test_training_data_has_the_labels_of_its_samples_and_resumes(world, tmp_path):
    train, _ = split(open_task(str(world / "new-shapes"), "auto", ("a {}",)), 0.3)
    data = write_training_data(train, tmp_path / "whole")
    samples = list(read_samples(data.shards))
    assert data.num_samples == len(samples) == len(data.labels)
    assert data.class_names == tuple(sorted(path.name for path in (world / "new-shapes").iterdir()))
    for sample in samples:
        assert sample.captions == (f"a {data.class_names[data.labels[sample.key]]}",)
    (tmp_path / "whole" / "index.json").unlink()
    marks = [Path(shard).stat().st_mtime_ns for shard in data.shards]
    assert write_training_data(train, tmp_path / "whole") == data
    assert [Path(shard).stat().st_mtime_ns for shard in data.shards] == marks


def test_labels_that_change_behind_size_and_time_are_other_data(world, tmp_path):
    """Whoever puts the time back, or a power loss, hides a change from a look at the folder."""
    labelled = list(open_task(str(world / "new-shapes"), "auto", ("{}",)).samples(SkipReport()))[:6]
    swapped = [
        attrs.evolve(sample, metadata={"label": one.metadata["label"]})
        for sample, one in zip(labelled, reversed(labelled), strict=True)
    ]

    def written(samples):
        write_shards(tmp_path / "data", samples)
        os.utime(tmp_path / "data" / "00000000.tar", (1e9, 1e9))
        return open_task(str(tmp_path / "data"), "auto", ("{}",)), (tmp_path / "data" / "00000000.tar").stat()

    task, status = written([attrs.evolve(sample, metadata={"label": sample.metadata["label"]}) for sample in labelled])
    before = task.fingerprint
    os.utime(tmp_path / "data" / "00000000.tar", (2e9, 2e9))
    assert task.fingerprint == before, "a time alone changes nothing"
    spec = FinetuneSpec(output=tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / TRAINED_ON).write_text(before)
    refuse_other_data(spec, task)
    task, changed = written(swapped)
    assert (changed.st_size, changed.st_mtime) == (status.st_size, status.st_mtime)
    assert task.fingerprint != before
    with fails(ValueError):
        refuse_other_data(spec, task)


def test_keys_that_come_twice_with_labels_are_refused(world, tmp_path):
    labelled = list(open_task(str(world / "new-shapes"), "auto", ("{}",)).samples(SkipReport()))[:3]
    for name in ("one", "two"):
        write_shards(tmp_path / "shards" / name, labelled)
        (tmp_path / "shards" / name / "00000000.tar").rename(tmp_path / "shards" / f"{name}.tar")
    task = open_task(str(tmp_path / "shards" / "{one,two}.tar"), "auto", ("{}",))
    with fails(ValueError):
        write_training_data(task, tmp_path / "data")


@pytest.mark.parametrize(
    ("checkpoint", "flags", "named"),
    [
        ("folded", (), "folded.safetensors"),
        ("tower", (), "tower.safetensors"),
        ("whole", ("--batch-size=64",), "64"),
        ("whole", ("--batch-size=8", "--batch-norm", "synchronised"), ""),
    ],
    ids=["folded", "tower", "batch", "norms"],
)
def test_mistakes_end_with_one_line(spec, tmp_path, checkpoint, flags, named):
    path = tmp_path / f"{checkpoint}.safetensors"
    whole = load_model(spec.checkpoint, fold=checkpoint == "folded")
    save_model(whole.image_encoder if checkpoint == "tower" else whole, path)
    common = ("--checkpoint", path, "--data", spec.data, "--output", tmp_path / "x", "--templates", TEMPLATE)
    with fails(SystemExit, named):
        run_named("finetune", *common, *flags)
    assert not (tmp_path / "x" / "spec.json").exists()


def test_what_is_missing_or_out_of_range_is_named():
    with fails(SystemExit, "--model"):
        run_named("finetune")
    with fails(ValueError, "alphas"):
        FinetuneSpec(alphas=(2.0,))


def test_lists_are_flags(capsys):
    given = ["--retention-tasks", "a", "--retention-tasks", "b.jsonl", "--freeze", "text", "--lora-rank", "8"]
    chosen = from_json(shown(capsys, "finetune", *given, "--alphas", "0.3", "0.6"), FinetuneSpec)
    assert (chosen.retention_tasks, chosen.freeze, chosen.alphas) == (("a", "b.jsonl"), ("text",), (0.0, 0.3, 0.6, 1.0))
    assert chosen.finetuning.lora.rank == 8


def test_the_report_says_how_sure_a_change_is(tmp_path):
    """On 26 pictures, two more right may be chance; on 2,600, two hundred are not."""

    def results(factor):
        hits = {0.0: [1.0] * 14 + [0.0] * 12, 1.0: [1.0] * 13 + [0.0] + [1.0] * 3 + [0.0] * 9}
        rows = tuple(
            Scores(
                alpha=alpha,
                new=Score(
                    task="birds", metric="top-1", value=100 * sum(own) / 26, num_images=26 * factor,
                    hits=tuple(own * factor),
                ),
                old=(),
            )
            for alpha, own in hits.items()
        )  # fmt: skip
        return Results(rows=rows, seconds=1.0)

    few, many = results(1), results(100)
    assert "53.8 (35.5 to 71.2)" in table(few.rows)
    assert "from 53.8 to 61.5 (+7.7 points; with 95 % confidence" in summary(few)
    low, high = (float(one) for one in re.search(r"confidence (\S+) to ([^)]+)\)", summary(few)).groups())
    assert low < 0 < 200 / 26 < high
    low, high = (float(one) for one in re.search(r"confidence (\S+) to ([^)]+)\)", summary(many)).groups())
    assert 0 < low < 200 / 26 < high
    write_report(tmp_path, few)
    assert summary(few) in (tmp_path / "report.md").read_text()
    assert from_json((tmp_path / "results.json").read_text(), Results) == few


@pytest.mark.slow
def test_tiny_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_named("finetune", "--tiny", "--device", "cpu")
    results = from_json(Path("outputs/finetune-tiny/results.json").read_text(), Results)
    assert [row.alpha for row in results.rows] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert results.after.new.value > results.before.new.value + 20
    assert results.after.old[0].num_images == 48


def test_a_process_whose_others_do_not_come_waits_for_them_no_longer_than_it_may(spec, monkeypatch):
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with fails(TimeoutError, "1", "2"):
        run(attrs.evolve(spec, collective_seconds=0.2))
    assert not (spec.output / "data").exists()


@pytest.mark.slow
def test_two_processes_train_one_model(spec, tmp_path):
    """Both processes prepare, train and stop; the first one writes."""
    arguments = ["--checkpoint", spec.checkpoint, "--data", spec.data, "--held-out", "0.3", "--epochs", "1"]
    arguments += ["--batch-size", "8", "--alphas", "0.5", "--output", str(tmp_path / "two")]
    # Shards are dealt out to processes, so there must be as many.
    labelled = list(open_task(spec.data, "auto", (TEMPLATE,)).samples(SkipReport()))
    write_shards(tmp_path / "shards", labelled, samples_per_shard=12)
    arguments[3] = str(tmp_path / "shards")
    together("recipes.finetune", *arguments)
    assert load_model(tmp_path / "two" / "finetuned.safetensors").spec == MODEL
