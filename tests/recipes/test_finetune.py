"""The fine-tuning recipe end to end, on drawn scenes and shapes, and what its steps do with data of every kind."""

import os
import re
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from unittest.mock import Mock

import attrs
import numpy as np
import pytest
import torch

from mobileclip import ImageTextModel, reparameterize
from mobileclip.data import ReinforcedPipeline, SkipReport, Tokenizer, read_samples, read_text_input, write_shards
from mobileclip.encoders import ClassifierSpec, DualEncoder, load_backbone, load_model, save_model
from mobileclip.evaluation import evaluate_classifier, rank_captions
from mobileclip.recipes import mobileclip_run, run_recipe
from mobileclip.recipes.finetuning import evaluate_task, finetune_and_report as run, summary, table, write_report
from mobileclip.recipes.tiny import OUTLINES, SHAPES, draw_shape, jpeg, scene_samples
from mobileclip.serialization import from_json
from mobileclip.training import read_metrics
from mobileclip.training.finetuning.run import TRAINED_ON, FinetuneSpec, Results, Score, Scores, refuse_other_data
from mobileclip.training.finetuning.tasks import open_task, read_index, split, write_training_data
from tests.data.tokenizer_files import KINDS
from tests.encoders.small import SMALL, randomised
from tests.errors import fails, told
from tests.evaluation.scene_models import small_spec
from tests.export.models import MCT, TRANSFORMERS, seeing
from tests.recipes.running import run_named
from tests.training.program import together
from tests.training.runs import free_port

PAGE = Path(__file__).parents[2] / "docs" / "finetuning.md"
TEMPLATE = "a drawing of a {}"
STAGES = {"freeze": ("text",), "rate_decay": 0.5, "rate_layers": "stage"}

pytestmark = pytest.mark.usefixtures("one_thread")


def scenes(count, seed):
    """Return scenes with all that can be said of them as captions."""
    drawn = ((one, one.syn_captions["syn_text"]) for one in scene_samples(count, seed, size=(120, 90)))
    return [attrs.evolve(one, captions=(*one.captions, *more), syn_captions={}) for one, more in drawn]


def write_shapes(folder, shapes, count, seed):
    """Write a folder of pictures for every shape."""
    rng = np.random.default_rng(seed)
    for shape in shapes:
        (folder / shape).mkdir(parents=True)
        for index in range(count):
            (folder / shape / f"{index:04d}.jpg").write_bytes(jpeg(draw_shape(shape, rng, 120, 90)))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Where scenes, new shapes and old tasks are, and a small model."""
    folder = tmp_path_factory.mktemp("world")
    save_model(SMALL.build(), folder / "small.safetensors")
    write_shards(folder / "scenes", scenes(64, seed=0))
    write_shards(folder / "held-out", scenes(12, seed=1))
    write_shapes(folder / "new-shapes", OUTLINES, 6, seed=2)
    write_shapes(folder / "old-shapes", SHAPES, 3, seed=3)
    return folder


def chosen(world, output):
    checkpoint, data, *old = (
        str(world / name) for name in ("small.safetensors", "new-shapes", "old-shapes", "held-out")
    )
    places = {"checkpoint": checkpoint, "data": data, "retention_tasks": tuple(old), "output": output}
    small = {"held_out": 0.3, "epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "alphas": (0.5,)}
    return FinetuneSpec(templates=(TEMPLATE,), **places, **small)


@pytest.fixture
def spec(world, tmp_path):
    return chosen(world, tmp_path / "output")


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory, one_thread):
    """A run of two epochs without old tasks, that nothing happens to, and what it finds."""
    spec = chosen(world, tmp_path_factory.mktemp("alone") / "output")
    spec = attrs.evolve(spec, retention_tasks=(), alphas=(), epochs=2)
    return spec, run(spec)


def trained(spec, name="finetuned"):
    return load_model(spec.output / f"{name}.safetensors", fold=False)


def states_differ(one, other):
    return {name for name, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[name])}


def opened(path, kind="auto", template="{}"):
    return open_task(str(path), kind, (template,))


def samples_of(task):
    return list(task.samples(SkipReport()))


def test_the_whole_path_and_a_second_run(spec, capsys, monkeypatch):
    results = run(spec)
    assert [row.alpha for row in results.rows] == [0.0, 0.5, 1.0]
    for row in results.rows:
        assert (row.new.metric, row.new.task, row.new.num_images) == ("top-1", "new-shapes", 8 * 2)
        assert [score.metric for score in row.old] == ["top-1", "R@1"]
        assert row.old[1].num_images == 12
    original, finetuned = load_model(spec.checkpoint, fold=False), trained(spec)
    moved = states_differ(original, finetuned)
    assert moved
    assert not any("norm.running" in name or "num_batches" in name for name in moved)
    weights = [one.image_encoder.head.project.weight for one in (original, finetuned, trained(spec, "interpolated"))]
    torch.testing.assert_close(weights[2], (weights[0] + weights[1]) / 2)
    assert reparameterize(finetuned)
    assert table(results.rows) in (spec.output / "report.md").read_text()
    assert (spec.output / "tradeoff.png").stat().st_size > 1000
    assert from_json((spec.output / "results.json").read_text(), Results) == results
    assert read_index(next((spec.output / "data").iterdir())).num_samples == 8 * 4
    assert read_metrics(spec.output / "run" / "metrics.jsonl")
    assert "| original " in capsys.readouterr().out

    for name in ("encode_image", "encode_text", "forward"):  # nothing is trained or tested again
        monkeypatch.setattr(DualEncoder, name, None)
    assert run(spec).rows == results.rows
    run_recipe(attrs.evolve(spec, device="cpu"), [])  # a device is no part of a run's identity
    told(capsys.readouterr().out, table(results.rows), str(spec.output))
    with fails(ValueError):
        run(attrs.evolve(spec, epochs=2))


@pytest.mark.parametrize(
    ("choices", "moves", "stays"),
    [
        (STAGES, "image_encoder.stem", ("text_encoder.", "image_encoder.stem.0.branches.0.norm.")),
        ({"freeze": ("image",), "batch_norm": "trained"}, "text_encoder.layers", "image_encoder."),
        pytest.param({"lora_rank": 2}, "logit_scale", "image_encoder.stem.", marks=pytest.mark.extra("lora")),
    ],
)
def test_choices_reach_the_weights(spec, choices, moves, stays):
    spec = attrs.evolve(spec, retention_tasks=(), alphas=(), **choices)
    run(spec)
    moved = states_differ(load_model(spec.checkpoint, fold=False), trained(spec))
    assert any(name.startswith(moves) for name in moved)
    assert not any(name.startswith(stays) for name in moved)


def test_captions_train_and_are_tested_by_retrieval(spec, world):
    data, test = str(world / "scenes"), str(world / "held-out")
    results = run(attrs.evolve(spec, data=data, test=test, retention_tasks=(), evaluate_every_steps=4))
    assert (results.after.new.metric, results.after.new.num_images) == ("R@1", 12)
    lines = read_metrics(spec.output / "run" / "metrics.jsonl")
    logged = [line["new_task_R@1"] for line in lines if "new_task_R@1" in line]
    assert len(logged) == 2
    assert logged[-1] == pytest.approx(results.after.new.value)


@pytest.mark.parametrize("fails_at", [pytest.param("step", marks=pytest.mark.slow), "share"])
def test_a_run_that_fails_before_its_first_checkpoint_can_be_mended(spec, alone, tmp_path, monkeypatch, fails_at):
    """A score of the model that it began with is not taken for the next one's either."""
    spec = attrs.evolve(spec, retention_tasks=(), alphas=())
    wrong = attrs.evolve(spec, learning_rate=1e30)
    if fails_at == "share":
        wrong = attrs.evolve(spec, checkpoint=str(tmp_path / "other.safetensors"), batch_size=7)
        save_model(randomised(SMALL), wrong.checkpoint)
        monkeypatch.setattr(ReinforcedPipeline, "stream", Mock(side_effect=ValueError("there is no batch")))
    with fails((FloatingPointError, ValueError)):
        run(wrong)
    monkeypatch.undo()
    assert run(spec).before == alone[1].before


def test_a_killed_run_gives_the_same_model(alone, tmp_path, monkeypatch):
    spec, _ = alone
    parts = attrs.evolve(spec, output=tmp_path / "parts")
    whole = ReinforcedPipeline.stream

    def stopping(self, position):
        yield from islice(whole(self, position), 6)
        raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(ReinforcedPipeline, "stream", stopping)
        with fails(InterruptedError):
            run(parts)
    run(parts)
    assert not states_differ(trained(spec), trained(parts))


def test_scores_are_those_of_the_library_and_pictures_that_cannot_be_decoded_are_left_out(world, tmp_path):
    model = load_model(world / "small.safetensors")
    score = evaluate_task(model, opened(world / "held-out"), (TEMPLATE,))
    samples = list(read_samples(str(world / "held-out" / "00000000.tar")))
    clip = ImageTextModel(model)
    images = clip.encode_image([sample.image for sample in samples])
    texts = clip.encode_text([caption for sample in samples for caption in sample.captions])
    found = rank_captions(images, texts, [len(sample.captions) for sample in samples]).recall
    assert score.value == pytest.approx(50 * (found.image_to_text.at1 + found.text_to_image.at1))

    shutil.copytree(world / "new-shapes", tmp_path / "shapes")
    for broken in list((tmp_path / "shapes" / "star").iterdir())[:2]:
        broken.write_bytes(broken.read_bytes()[:100])
    score = evaluate_task(model, opened(tmp_path / "shapes"), (TEMPLATE,))
    assert (score.num_images, score.num_skipped) == (8 * 6 - 2, 2)
    assert "| 46 (2 skipped) |" in table((Scores(alpha=0.0, new=score, old=()),))


def test_the_parts_are_disjoint_complete_and_do_not_change(world):
    for name, count, least, most in (("new-shapes", 8 * 6, 16, 16), ("scenes", 64, 10, 28)):
        task = opened(world / name)
        train, test = parts = [{sample.key for sample in samples_of(part)} for part in split(task, 0.3)]
        assert (len(train | test), len(train & test)) == (count, 0)
        assert least <= len(test) <= most
        assert parts == [{sample.key for sample in samples_of(part)} for part in split(task, 0.3)]
        assert split(task, 0.3)[0].fingerprint != split(task, 0.2)[0].fingerprint
    held_out = split(opened(world / "new-shapes"), 0.3)[1]
    assert Counter(sample.key.partition("/")[0] for sample in samples_of(held_out)) == dict.fromkeys(OUTLINES, 2)


def test_training_data_has_the_labels_of_its_samples_and_resumes(world, tmp_path):
    train, _ = split(opened(world / "new-shapes", template="a {}"), 0.3)
    data = write_training_data(train, tmp_path)
    samples = list(read_samples(data.shards))
    assert data.num_samples == len(samples) == len(data.labels)
    assert data.class_names == tuple(sorted(OUTLINES))
    assert all(one.captions == (f"a {data.class_names[data.labels[one.key]]}",) for one in samples)
    (tmp_path / "index.json").unlink()
    marks = [Path(shard).stat().st_mtime_ns for shard in data.shards]
    assert write_training_data(train, tmp_path) == data
    assert [Path(shard).stat().st_mtime_ns for shard in data.shards] == marks


def test_labels_that_change_behind_size_and_time_are_other_data(world, tmp_path):
    """Whoever puts the time back, or a power loss, hides a change from a look at the folder."""
    labelled, shard = samples_of(opened(world / "new-shapes"))[:6], tmp_path / "00000000.tar"

    def written(labels):
        rows = zip(labelled, labels, strict=True)
        write_shards(tmp_path, [attrs.evolve(one, metadata={"label": label}) for one, label in rows])
        os.utime(shard, (1e9, 1e9))
        return opened(tmp_path), (shard.stat().st_size, shard.stat().st_mtime)

    labels = [one.metadata["label"] for one in labelled[:3]] + [labelled[0].metadata["label"][::-1]] * 3
    task, status = written(labels)
    before = task.fingerprint
    os.utime(shard, (2e9, 2e9))
    assert task.fingerprint == before, "a time alone changes nothing"
    spec = FinetuneSpec(output=tmp_path)
    (tmp_path / TRAINED_ON).write_text(before)
    refuse_other_data(spec, task)
    task, changed = written(labels[::-1])
    assert (changed, task.fingerprint == before) == (status, False)
    with fails(ValueError):
        refuse_other_data(spec, task)


def test_keys_that_come_twice_with_labels_are_refused(world, tmp_path):
    write_shards(tmp_path / "shards", samples_of(opened(world / "new-shapes"))[:3])
    shutil.copy(tmp_path / "shards" / "00000000.tar", tmp_path / "shards" / "00000001.tar")
    with fails(ValueError):
        write_training_data(opened(tmp_path / "shards"), tmp_path / "data")


@pytest.mark.parametrize(
    ("checkpoint", "flags", "named"),
    [
        ("folded", (), "folded.safetensors"),
        ("tower", (), "tower.safetensors"),
        ("whole", ("--batch-size=64",), "64"),
        ("whole", ("--batch-size=8", "--batch-norm", "synchronised"), ""),
    ],
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


def test_the_report_says_how_sure_a_change_is(tmp_path):
    """On 26 pictures, two more right may be chance; on 2,600, two hundred are not."""

    def results(factor):
        def scores(alpha, hits):
            found = {"value": 100 * sum(hits) / 26, "num_images": 26 * factor, "hits": tuple(hits * factor)}
            return Scores(alpha=alpha, new=Score(task="birds", metric="top-1", **found), old=())

        before, after = [1.0] * 14 + [0.0] * 12, [1.0] * 13 + [0.0] + [1.0] * 3 + [0.0] * 9
        return Results(rows=(scores(0.0, before), scores(1.0, after)), seconds=1.0)

    few, many = results(1), results(100)
    assert "53.8 (35.5 to 71.2)" in table(few.rows)
    assert "from 53.8 to 61.5 (+7.7 points; with 95 % confidence" in summary(few)
    for found, is_chance in ((few, True), (many, False)):
        low, high = map(float, re.search(r"confidence (\S+) to ([^)]+)\)", summary(found)).groups())
        assert low < 200 / 26 < high
        assert (low < 0) == is_chance
    write_report(tmp_path, few)
    assert summary(few) in (tmp_path / "report.md").read_text()
    assert from_json((tmp_path / "results.json").read_text(), Results) == few


@pytest.mark.parametrize("kind", KINDS)
def test_captions_become_the_ids_of_the_models_own_tokenizer(kind, tmp_path):
    """Rows of the table move for these ids alone, and the result has the tokenizer again."""
    KINDS[kind]().save(str(tmp_path / "tokenizer.json"))
    contract = read_text_input(tmp_path / "tokenizer.json", context_length=12)
    (tmp_path / "tokenizer.json").unlink()
    model = seeing(attrs.evolve(TRANSFORMERS, text=attrs.evolve(MCT, input=contract)))
    save_model(model, tmp_path / "small.safetensors")
    write_shapes(tmp_path / "new-shapes", OUTLINES, 6, seed=2)
    spec = attrs.evolve(chosen(tmp_path, tmp_path / "output"), retention_tasks=(), weight_decay=0.0, alphas=(1.0,))
    before, after = run(spec).rows
    assert before.new.num_images == after.new.num_images > 0
    finetuned = trained(spec)
    assert finetuned.spec.text.input == contract
    captions = [TEMPLATE.format(name) for name in OUTLINES]
    old, new = (one.text_encoder.token_embedding.weight for one in (model, finetuned))
    moved = set(torch.nonzero((old != new).any(dim=1)).flatten().tolist())
    assert moved == set(Tokenizer(contract)(captions).flatten().tolist())


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
    # Shards are dealt out to processes, so there must be as many.
    write_shards(tmp_path / "shards", samples_of(opened(spec.data, template=TEMPLATE)), samples_per_shard=12)
    flags = "--held-out 0.3 --epochs 1 --batch-size 8 --alphas 0.5".split()
    places = ("--checkpoint", spec.checkpoint, "--data", str(tmp_path / "shards"), "--output", str(spec.output))
    together("recipes.finetune", *places, *flags)
    assert load_model(spec.output / "finetuned.safetensors").spec == SMALL


@pytest.mark.slow
def test_accuracy_of_the_classifier_on_the_page_rises(tmp_path, monkeypatch):
    """The example of docs/finetuning.md, run as it is written, from a model that learned scenes for a hundred steps."""
    monkeypatch.chdir(tmp_path)
    write_shards("scenes", scenes(500, seed=0))
    clip = mobileclip_run(small_spec(), batch_size=32, total_steps=100, warmup_steps=20)
    run_recipe(clip, "--plain --data scenes -o pretraining --learning-rate 3e-3 -j 0 --quiet".split(), name="scenes")
    Path("pretraining/model.safetensors").rename("clip.safetensors")

    for part, count, seed in (("train", 24, 4), ("val", 20, 5)):
        write_shapes(Path("shapes") / part, SHAPES, count, seed=seed)
    section = PAGE.read_text(encoding="utf-8").partition("\n## Train a classifier\n")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    result = {}
    exec(code, result)
    names = tuple(sorted(SHAPES))
    tower = load_model("clip.safetensors", tower="image", fold=False).spec
    untrained = ClassifierSpec(image=tower.without_projection(), num_classes=len(names), class_names=names).build()
    load_backbone(untrained, "clip.safetensors")
    before = evaluate_classifier(untrained.eval(), "shapes/val").result.top1
    assert before < 0.35
    assert result["accuracy"] > before + 0.2
    losses = [line["loss"] for line in read_metrics(Path("outputs/shapes/metrics.jsonl"))]
    assert losses[-1] < losses[0]
    assert result["backbone"](torch.rand(1, 3, 64, 64)).shape == (1, tower.without_projection().embedding_dim)
