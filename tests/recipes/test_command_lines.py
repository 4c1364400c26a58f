"""What the recipes' command lines share: runs as JSON, there and back, and a tiny run on a person's own data."""

import json
import shutil
import subprocess
import sys
from functools import partial, reduce
from operator import getitem
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mobileclip.cli import main
from mobileclip.data import SkipReport, crop_augmentation, read_samples, write_shard, write_shards
from mobileclip.datasets import RowOptions, as_source
from mobileclip.losses import ContrastiveLossSpec
from mobileclip.recipes import captions_on, measured_on, mobileclip_run, read_choices, run_recipe, with_data, with_loss
from mobileclip.recipes.tiny import NUM_SAMPLES, first_samples, scene_samples, shrink
from mobileclip.serialization import from_json
from mobileclip.training import RunSpec, read_metrics
from mobileclip.training.finetuning.run import FinetuneSpec
from mobileclip.training.finetuning.tasks import open_task
from tests.data.made_samples import encoded, make_sample
from tests.encoders.small import COCA, SMALL
from tests.errors import fails
from tests.evaluation.test_own_data import outside
from tests.recipes.choices import REINFORCING, ROWS, TRAINING, WITH_ROWS, runs_of
from tests.recipes.running import run_named, shown, shown_run

ROOT = Path(__file__).parents[2]


def assert_comes_back(capsys, tmp_path, name, *arguments):
    """The choices of a command line are those of the file that they were written to, to the letter."""
    first = shown(capsys, name, *arguments)
    file = tmp_path / "run.json"
    file.write_text(first)
    name, *_ = name.split()
    assert shown(capsys, name, file) == first
    return first


FIRST_ROWS = {name: next(iter(runs_of(name))).split()[1] for name in WITH_ROWS}


@pytest.mark.parametrize("name", [*TRAINING, f"{ROWS} one_teacher", f"{ROWS} plain"])
def test_a_training_comes_back(name, capsys, tmp_path):
    row = f"{name} {FIRST_ROWS[name]}" if name in FIRST_ROWS else name
    changes = ["--data", "s3://user:password@bucket/{0..3}.tar", "é.tar", "--data.seed", "3"]
    text = assert_comes_back(capsys, tmp_path, row, *changes, "--training.schedule.peak", "0.1")
    assert json.loads(text)["data"]["shards"] == changes[1:3]
    assert from_json(text, RunSpec).training.schedule.peak == 0.1
    changed = shown_run(capsys, name.partition(" ")[0], tmp_path / "run.json", "--data.batch-size", "4096")
    assert (changed.data.seed, changed.data.batch_size) == (3, 4096)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((one, "--data some/{0..3}.tar --seed 5 --step embeddings") for one in REINFORCING),
        ("finetune", "--data birds/ --freeze text --alphas 0.3"),
        ("evaluate", "--datasets d --datasets e --device cpu"),
        ("distil_text", "-m icons --data de=a.txt --shares de=2,en=1 --depth 0 --columns.text name"),
    ],
)
def test_other_runs_come_back(name, arguments, capsys, tmp_path):
    assert_comes_back(capsys, tmp_path, name, *arguments.split())


FLAGS = (
    *("--no-inside", "--schemes", "https", "--schemes", "s3", "--hosts", "127.0.0.1"),
    *("--url-column", "URL", "--caption-columns", "title", "--caption-columns", "alt"),
    *("--uid-column", "id", "--header", "URL", "--header", "title"),
)
NAMED = {
    "inside": False, "schemes": ["https", "s3"], "hosts": ["127.0.0.1"],
    "url_column": "URL", "caption_columns": ["title", "alt"], "uid_column": "id", "header": ["URL", "title"],
    "path_column": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "place"),
    [
        ("finetune", ["--data", "list.csv"], ["rows"]),
        ("evaluate", ["--datasets", "list.csv"], ["rows"]),
        ("reinforce_dfndr2b", ["--data", "list.csv"], ["source", "options"]),
    ],
)
def test_what_lists_may_name_and_columns_are_told_in_the_same_words(name, data, place, capsys, tmp_path):
    text = assert_comes_back(capsys, tmp_path, name, *data, *FLAGS)
    assert reduce(getitem, place, json.loads(text)).items() >= NAMED.items()


def test_a_list_that_is_trusted_has_pictures_elsewhere(tmp_path):
    path = outside(tmp_path)
    for refusing in (
        lambda: shrink(FinetuneSpec(data=path, output=tmp_path / "out")),
        lambda: measured_on((), (path,), RowOptions(), SMALL),
    ):
        with fails(ValueError, "6 refused_address", "(--no-inside)"):
            refusing()
    trusting = RowOptions(inside=False)
    assert len(list(open_task(path, "auto", ("{}",), trusting).samples(SkipReport()))) == 6
    assert callable(measured_on((), (path,), trusting, SMALL))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The same pairs as shards, a pattern, a folder of shards, JSON lines, a table and a folder of pictures."""
    folder = tmp_path_factory.mktemp("pairs")
    write_shards(folder / "shards", scene_samples(8, seed=5), samples_per_shard=4)
    (folder / "pictures").mkdir()
    rows = []
    for sample in scene_samples(8, seed=5):
        name = f"{sample.key}.{sample.image_extension}"
        (folder / "pictures" / name).write_bytes(sample.image)
        (folder / "pictures" / f"{sample.key}.txt").write_text(sample.captions[0])
        rows.append((f"pictures/{name}", sample.captions[0]))
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps({'image': one, 'caption': it})}\n" for one, it in rows))
    (folder / "pairs.csv").write_text("image,caption\n" + "".join(f'{one},"{it}"\n' for one, it in rows))
    return folder


FORMS = [
    ("shards/00000000.tar", "shards/00000001.tar"),
    ("shards/{00000000..00000001}.tar",),
    ("shards",),
    ("pairs.jsonl",),
    ("pairs.csv",),
    ("pictures",),
]


def test_held_out_pairs_are_measured_in_every_form(pairs, monkeypatch):
    monkeypatch.chdir(pairs)
    torch.manual_seed(0)
    student, captioner = SMALL.build().eval(), COCA.build().eval()
    for measure, model, spec in ((partial(measured_on, benchmarks=()), student, SMALL), (captions_on, captioner, COCA)):
        found = [measure(form, rows=RowOptions(), model=spec)(model, 0) for form in FORMS]
        assert len({tuple(one.items()) for one in found}) == 1
        with fails(FileNotFoundError, "nowhere.csv"):
            measure(("nowhere.csv",), rows=RowOptions(), model=spec)


@pytest.mark.parametrize("form", FORMS)
def test_plain_pairs_in_every_form_are_trained_on(form, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(pairs)
    data = {"reinforced": False, "captions": "real", "augmentation": crop_augmentation(64), "num_workers": 0}

    run = with_loss(mobileclip_run(SMALL, batch_size=8, total_steps=2, warmup_steps=1), ContrastiveLossSpec())
    output = tmp_path / "out"
    held_out = [word for one in form for word in ("--validation", one)]
    arguments = ["--data", *form, *held_out, "--evaluate", form[0], "--output", str(output), "--quiet"]
    run_recipe(with_data(run, **data), arguments, name="own")
    metrics = set().union(*read_metrics(output / "metrics.jsonl"))
    assert "validation_text_to_image_recall_at_1" in metrics
    assert any("/mean_recall@1" in name for name in metrics)


@pytest.mark.parametrize(
    ("file", "content"),
    [("missing.json", None), ("broken.json", b"{"), ("other.json", b"{}"), ("bytes.json", b"\xff\xfe")],
)
def test_what_is_no_run_is_named(file, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(file).write_bytes(content)
    with fails(SystemExit, file):
        run_named("train_s2", file)
    with fails(ValueError, file):
        read_choices(Path(file), RunSpec)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train_s2", ["--training.schedule.total_steps=1"]),
        ("train_b_lt", ["--training.schedule.total-steps", "50"]),
        ("train_s2", ["--training.schedule.peak", "1e-9"]),
        ("train_s2", ["--data.image.size", "128"]),
        ("train_vit_b16_12m ensemble", ["--data.text.context-length", "32"]),
        ("train_s2", ["--training.loss.teacher-dims", "512"]),
        ("train_s2", ["--training.loss.distill-weight", "0"]),
        ("train_b", ["--training.memory.micro-batch", "1000000"]),
        ("train_b", ["--data.batch-size", "2"]),
    ],
)
def test_a_flag_alone_is_not_refused_for_another_ones_default(name, arguments, capsys):
    found = shown_run(capsys, name, *arguments)
    flag, _, value = arguments[0].partition("=")
    for part in flag.lstrip("-").replace("-", "_").split("."):
        found = getattr(found, part)
    (found,) = found if isinstance(found, tuple) else [found]
    assert float(found) == float(value or arguments[1])


def test_a_field_follows_others_unless_it_is_chosen(capsys):
    def loss(*flags):
        return shown_run(capsys, "train_s2", *flags).training.loss

    assert loss("--training.loss.teacher-dims", "512").teacher_logit_scales == (100.0,)
    two = ("--training.loss.teacher-dims", "512", "768", "--training.loss.teacher-logit-scales", "50", "60")
    assert loss(*two).teacher_logit_scales == (50.0, 60.0)
    # As much as it was, and chosen all the same.
    chosen = ("--training.loss.teacher-dims", "512", "512", "--training.loss.teacher-logit-scales", "100", "100")
    assert loss(*chosen).teacher_logit_scales == (100.0, 100.0)
    assert shown_run(capsys, "train_s2", "--learning-rate", "1e-9").training.schedule.final == 1e-9


def test_a_share_of_a_run_is_a_share_of_any_length(capsys):
    flags = ["--training.schedule.total-steps", "5000", "--training.schedule.warmup-steps", "3000"]
    assert shown_run(capsys, "train_s2", *flags).training.schedule.warmup_steps == 3000
    short = shown_run(capsys, "train_s2", *flags[:2]).training.schedule
    assert short.learning_rate(49) == short.peak > short.learning_rate(48)
    with pytest.raises(SystemExit):
        run_named("train_s2", "--show", "--training.schedule.total-steps", "many")
    assert "many" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "near"), [("--step", "--steps"), ("--ouptut", "--output"), ("--data.sed", "--data.seed"), ("--zzz", "")]
)
def test_an_unknown_flag_names_the_nearest(flag, near, capsys):
    with pytest.raises(SystemExit) as ended:
        run_named("train_s2", flag, "1", "--show")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert flag in said
    assert near in said


def test_several_values_stand_behind_data_alone_and_repeated_flags_append(capsys):
    assert shown_run(capsys, "train_s2", "--data", "a", "b", "--data", "c").data.shards == ("a", "b", "c")
    text = shown(capsys, "evaluate", "--datasets", "a", "--datasets", "b")
    assert json.loads(text)["datasets"] == ["a", "b"]
    with pytest.raises(SystemExit):
        run_named("finetune", "--retention-tasks", "a", "b", "--show")


@pytest.mark.parametrize(
    ("recipe", "arguments"),
    [
        ("train_s2", ["--data", "nowhere/0.tar"]),
        ("train_vit_b16_12m plain", ["--data", "nowhere/{0..3}.tar"]),
        ("train_imagenet_mci mci0", ["--data", "nowhere/0.tar"]),
        ("reinforce_dfndr2b", ["--data", "nowhere/"]),
        ("finetune", ["--data", "nowhere/"]),
        ("finetune", ["--retention-tasks", "nowhere/", "--model", "x.pt"]),
        ("evaluate", ["--datasets", "nowhere/"]),
        ("evaluate", ["--data", "nowhere/"]),
    ],
)
def test_a_tiny_run_on_data_that_is_not_there_fails(recipe, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with fails(SystemExit, "error: ", "nowhere"):
        run_named(recipe, "--tiny", *arguments)


def test_first_samples_are_few_and_of_several_classes(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(20):
            (tmp_path / "data" / name / f"{index}.jpg").write_bytes(encoded(8, 8, index))
    place = first_samples(as_source(tmp_path / "data"), tmp_path / "few", "insects")
    samples = list(read_samples(sorted(Path(place).glob("*.tar"))))
    labels = [sample.metadata["label"] for sample in samples]
    assert sorted(set(labels)) == ["ant", "bee", "cat"]
    assert all(labels.count(name) == NUM_SAMPLES // 6 for name in set(labels))
    assert Path(place).name == "insects"
    before = {path: path.stat().st_mtime_ns for path in Path(place).iterdir()}
    assert first_samples(as_source(tmp_path / "data"), tmp_path / "few", "insects") == place
    assert {path: path.stat().st_mtime_ns for path in Path(place).iterdir()} == before


def test_an_output_that_cannot_be_written_is_named_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shard = write_shard(tmp_path / "0.tar", [make_sample(index) for index in range(4)])
    (tmp_path / "file").write_text("")
    arguments = ["--tiny", "--data", shard, "--output", tmp_path / "file" / "output", "--device", "cpu"]
    with fails(SystemExit, "file/output"):
        run_named("train_s2", *arguments)


BROKEN = """
import os, sys
from mobileclip.recipes import reported, started
with reported("x", None):
    print("begun", flush=True)
    sys.stdin.readline()
    {}
"""


@pytest.mark.parametrize(
    ("breaks", "statuses", "said"),
    [
        ("print('x' * 100_000, flush=True)", (0, 120), ""),  # 120: Python's own last words find no reader
        ("started(dict, 'x', 'a program', ['--help']).__enter__()", (0, 120), ""),
        ("pipe = os.pipe(); os.close(pipe[0]); os.write(pipe[1], b'x')", (1,), "error: [Errno 32] Broken pipe\n"),
    ],
    ids=["standard output", "help", "another pipe"],
)
def test_only_a_reader_of_standard_output_that_has_gone_ends_a_command_in_silence(breaks, statuses, said):
    command = [sys.executable, "-c", BROKEN.format(breaks)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "begun\n"
        if not said:
            process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        errors = process.stderr.read()
        assert process.wait(60) in statuses
        assert errors == said


OWN = '''"""Train a small model of one's own."""
from mobileclip.encoders import DualEncoderSpec, TextTransformerSpec, ViTSpec
from mobileclip.inputs import ImageInput, TextInput
from mobileclip.recipes import mobileclip_run, run_recipe
from mobileclip.training import RunSpec

SIZE = {"width": 32, "depth": 1, "num_heads": 2, "embedding_dim": 32}
MODEL = DualEncoderSpec(
    image=ViTSpec(**SIZE, patch_size=16, input=ImageInput(size=64)),
    text=TextTransformerSpec(**SIZE, input=TextInput(context_length=16)),
)
RUN: RunSpec = mobileclip_run(MODEL, batch_size=8)

if __name__ == "__main__":
    run_recipe(RUN)
'''


def test_a_recipe_of_ones_own_is_run_resumed_and_changed_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sum(map(bool, OWN.splitlines())) <= 15
    Path("mine.py").write_text(OWN)
    command = ["train", "mine.py", "--tiny", "--device", "cpu", "--quiet", "--training.checkpoint-every-steps", "1"]
    main([*command, "-o", "run"])
    model = load_file("run/model.safetensors")
    *_, newest = sorted(Path("run/checkpoints").iterdir())
    shutil.rmtree(newest) if newest.is_dir() else newest.unlink()
    Path("run/model.safetensors").unlink()
    main([*command, "-o", "run"])
    again = load_file("run/model.safetensors")
    assert again.keys() == model.keys()
    assert all(torch.equal(tensor, model[name]) for name, tensor in again.items())
    main([*command, "-o", "other", "--learning-rate", "0.01"])
    others = load_file("other/model.safetensors")
    assert not all(torch.equal(tensor, model[name]) for name, tensor in others.items())
    changed = from_json(Path("other/run.json").read_text(), RunSpec)
    assert changed.training.schedule.peak == 0.01
    capsys.readouterr()
    main(["train", "mine.py", "other/run.json", "--show"])
    assert from_json(capsys.readouterr().out, RunSpec) == changed
