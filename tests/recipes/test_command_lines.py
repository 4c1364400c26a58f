"""What the recipes' command lines share: help, runs as JSON, there and back, and a run on a person's own data."""

import json
import re
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mobileclip.cli import main
from mobileclip.data import SkipReport, read_samples, write_shard, write_shards
from mobileclip.datasets import RowOptions, as_source
from mobileclip.encoders.checkpoints import PRETRAINED
from mobileclip.recipes import (
    captions_on,
    mobileclip_run,
    read_choices,
    recipe_files,
    run_recipe,
    shorts,
    validation_hook,
)
from mobileclip.recipes.tiny import NUM_SAMPLES, first_samples, scene_samples, shrink
from mobileclip.serialization import from_json
from mobileclip.training import RunSpec, read_metrics
from mobileclip.training.finetuning.run import FinetuneSpec
from mobileclip.training.finetuning.tasks import open_task
from tests.cli.test_table import WITHOUT_TORCH
from tests.data.made_samples import encoded, make_sample
from tests.encoders.small import COCA, SMALL
from tests.errors import fails, told
from tests.evaluation.test_own_data import outside
from tests.recipes.choices import REINFORCING, ROWS, TRAINING, leaves, runs_of
from tests.recipes.running import run_named, shown, shown_run

ROOT = Path(__file__).parents[2]
TRAINED = "--data s3://user:password@bucket/{0..3}.tar é.tar --data.seed 3 --training.schedule.peak 0.1"
IN_TRAINED = {"data.shards": TRAINED.split()[1:3], "data.seed": 3, "training.schedule.peak": 0.1}
LISTED = (
    "--no-inside --schemes https --schemes s3 --hosts 127.0.0.1 --url-column URL --caption-columns title "
    "--caption-columns alt --uid-column id --header URL --header title"
)
IN_LIST = {
    "inside": False, "schemes": ["https", "s3"], "hosts": ["127.0.0.1"], "path_column": None, "url_column": "URL",
    "caption_columns": ["title", "alt"], "uid_column": "id", "header": ["URL", "title"],
}  # fmt: skip
FIRST_ROWS = [next(iter(runs_of(name))) for name in TRAINING]
MCI0, LOSS, SCHEDULE = "train_imagenet_mci mci0", "training.loss", "training.schedule"
SCALES = f"{LOSS}.teacher_logit_scales"
KINDS = ("RunSpec", "ReinforcementSpec", "FinetuneSpec", "EvaluationSpec", "DistilSpec")
ONE_OF_EACH = dict(zip(KINDS, "train_s2 reinforce_datacompdr12m finetune evaluate distil_text".split(), strict=True))
SHORT = "--steps 50 --batch-size=64 --micro-batch 8 --recompute --learning-rate 0.1 -j 3 --precision float32"
FULL = (
    "--training.schedule.total-steps 50 --data.batch-size 64 --training.memory.micro-batch 8 "
    "--training.memory.recompute --training.schedule.peak 0.1 --data.num-workers 3 --training.precision float32"
)


@pytest.mark.parametrize(
    ("line", "chosen"),
    [
        *((f"{name} {TRAINED}", IN_TRAINED) for name in [*FIRST_ROWS, f"{ROWS} one_teacher", f"{ROWS} plain"]),
        *((f"{one} --data some/{{0..3}}.tar --seed 5 --step embeddings", {"seed": 5}) for one in REINFORCING),
        ("finetune --freeze text --retention-tasks a --retention-tasks b", {"retention_tasks": ["a", "b"]}),
        ("finetune --lora-rank 8 --alphas 0.3 0.6", {"alphas": [0, 0.3, 0.6, 1]}),
        ("evaluate --datasets d --datasets e --device cpu", {"datasets": ["d", "e"]}),
        ("distil_text -m icons --data de=a.txt --shares de=2,en=1 --depth 0 --columns.text name", {"depth": 0}),
        (f"{MCI0} --data a.tar --{LOSS}.label-smoothing 0.2", {f"{LOSS}.label_smoothing": 0.2}),
        (f"{MCI0} --data.num-classes 10", {"model.num_classes": 10, "data.num_classes": 10}),
        (f"{MCI0} --data.image.size 64", dict.fromkeys(("model.image.input.size", "data.augmentation.size"), 64)),
        (f"train_coca context_128 --data a.tar --{LOSS}.caption-weight 3", {f"{LOSS}.caption_weight": 3}),
        ("train_coca context_77 --data.text.context-length 40", {"model.text.input.context_length": 40}),
        # What lists may name, and columns, are told in the same words.
        (f"finetune --data list.csv {LISTED}", leaves(IN_LIST, "rows")),
        (f"evaluate --datasets list.csv {LISTED}", leaves(IN_LIST, "rows")),
        (f"reinforce_dfndr2b --data list.csv {LISTED}", leaves(IN_LIST, "source.options")),
        # A flag alone is not refused for another one's default.
        (f"train_s2 --{SCHEDULE}.total_steps=1", {f"{SCHEDULE}.total_steps": 1}),
        (f"train_b_lt --{SCHEDULE}.total-steps 50", {f"{SCHEDULE}.total_steps": 50}),
        (f"train_s2 --{SCHEDULE}.peak 1e-9", {f"{SCHEDULE}.peak": 1e-9, f"{SCHEDULE}.final": 1e-9}),
        ("train_s2 --data.image.size 128", {"data.image.size": 128}),
        (f"{ROWS} ensemble --data.text.context-length 32", {"data.text.context_length": 32}),
        (f"train_s2 --{LOSS}.distill-weight 0", {f"{LOSS}.distill_weight": 0}),
        ("train_b --training.memory.micro-batch 1000000", {"training.memory.micro_batch": 1_000_000}),
        ("train_b --data.batch-size 2", {"data.batch_size": 2}),
        # A field follows others unless it is chosen, if only as it was.
        (f"train_s2 --{LOSS}.teacher-dims 512", {f"{LOSS}.teacher_dims": [512], SCALES: [100]}),
        (f"train_s2 --{LOSS}.teacher-dims 512 768 --{LOSS}.teacher-logit-scales 50 60", {SCALES: [50, 60]}),
        (f"train_s2 --{LOSS}.teacher-dims 512 512 --{LOSS}.teacher-logit-scales 100 100", {SCALES: [100, 100]}),
        (f"train_s2 --{SCHEDULE}.total-steps 5000 --{SCHEDULE}.warmup-steps 3000", {f"{SCHEDULE}.warmup_steps": 3000}),
        ("train_s2 --data a b --data c", {"data.shards": ["a", "b", "c"]}),
        # A small run writes where it is told, and otherwise beside the whole one.
        *((f"{name} --tiny -o here", {"output": "here"}) for name in ("reinforce_dfndr2b", "distil_text", "evaluate")),
        ("finetune --tiny -o here", {"output": "here"}),
        ("finetune --tiny", {"output": "outputs/finetune-tiny"}),
    ],
)
def test_choices_are_those_of_the_flags_and_come_back_from_their_file(line, chosen, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *arguments = line.split()
    first = shown(capsys, name, *arguments)
    assert leaves(json.loads(first)).items() >= chosen.items()
    (tmp_path / "run.json").write_text(first)
    assert shown(capsys, name, tmp_path / "run.json") == first


def test_flags_change_a_file_and_a_share_of_a_run_is_a_share_of_any_length(capsys, tmp_path):
    (tmp_path / "run.json").write_text(shown(capsys, "train_s2", "--steps", "5000", "--data.seed", "3"))
    changed = shown_run(capsys, "train_s2", tmp_path / "run.json", "--data.batch-size", "4096")
    assert (changed.data.seed, changed.data.batch_size) == (3, 4096)
    schedule = changed.training.schedule
    assert schedule.learning_rate(49) == schedule.peak > schedule.learning_rate(48)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("train_s2 --step 1", ("--step", "--steps")),
        ("train_s2 --ouptut 1", ("--ouptut", "--output")),
        ("train_s2 --data.sed 1", ("--data.sed", "--data.seed")),
        ("train_s2 --zzz 1", ("--zzz",)),
        ("train_s2 --training.schedule.total-steps many", ("many",)),
        ("finetune --retention-tasks a b", ("b",)),
    ],
)
def test_what_is_no_flag_or_no_value_is_named(line, named, capsys):
    with fails(SystemExit, "2"):
        run_named(*line.split(), "--show")
    told(capsys.readouterr().err, *named)


def helped(capsys, name, flag):
    with suppress(SystemExit):
        run_named(name, flag)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", recipe_files())
def test_the_short_help_names_the_rows_and_says_how_to_see_all(name, capsys):
    rows = [f"  {row} " for one in runs_of(name) if (row := one.partition(" ")[2])]
    told(helped(capsys, name, "--help"), f"`{name} --help-all` lists all flags", *rows)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_what_the_short_help_shows_is_taken_and_is_in_the_full_help(kind, capsys):
    full = set(re.findall(r"(?<!\S)--?[a-z][\w.-]*", helped(capsys, ONE_OF_EACH[kind], "--help-all")))
    assert {name for flag in shorts(kind) for name in flag.names} <= full


@pytest.mark.parametrize(
    ("name", "short", "full"),
    [
        ("train_s2", f"--quiet --data a.tar b.tar {SHORT}", f"--data a.tar --data b.tar {FULL}"),
        ("train_imagenet_mci mci1", "--steps 4000 --quiet", "--training.schedule.total-steps 4000"),
        ("finetune", "-m a.pt -o out -j 2 --quiet", "--model a.pt --output out --num-workers 2"),
        ("finetune", "-m mobileclip_s2", f"--checkpoint {PRETRAINED['mobileclip_s2']}"),
        ("distil_text", "-m a.pt -o out --steps 9", "--model a.pt --output out --training.schedule.total-steps 9"),
        ("evaluate", "a.pt -o out -j 2 --quiet", "a.pt --output out --num-threads 2"),
    ],
)
def test_short_names_choose_the_same(name, short, full, capsys):
    assert shown(capsys, name, *short.split()) == shown(capsys, name, *full.split()) != shown(capsys, name)


def test_the_short_help_does_without_torch():
    lines = "train s2", "train vit_b16_12m", "train distil_text", "reinforce dfndr2b", "finetune"
    command = [sys.executable, "-c", WITHOUT_TORCH, *(f"{line} --help" for line in lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told(done.stdout, *(f"usage: mobileclip {line} " for line in lines))


@pytest.mark.parametrize(("arguments", "named"), [([], "ensemble"), (["--tiny"], "plain"), (["ensembl"], "'ensembl'")])
def test_a_recipe_of_several_runs_says_which_there_are(arguments, named):
    with fails(SystemExit, named):
        run_named(ROWS, *arguments)


def test_a_list_that_is_trusted_has_pictures_elsewhere(tmp_path):
    path = outside(tmp_path)
    trusting = RowOptions(inside=False)
    for refusing in (lambda: shrink(FinetuneSpec(data=path)), lambda: validation_hook((), (path,), RowOptions())):
        with fails(ValueError, "6 refused_address", "(--no-inside)"):
            refusing()
    assert len(list(open_task(path, "auto", ("{}",), trusting).samples(SkipReport()))) == 6
    assert callable(validation_hook((), (path,), trusting))


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """The same pairs as shards, a pattern, a folder of shards, JSON lines, a table and a folder of pictures."""
    monkeypatch.chdir(tmp_path)
    samples = list(scene_samples(8, seed=5))
    write_shards("shards", samples, samples_per_shard=4)
    Path("pictures").mkdir()
    rows = [(f"pictures/{one.key}.{one.image_extension}", one.captions[0]) for one in samples]
    for sample, (name, caption) in zip(samples, rows, strict=True):
        Path(name).write_bytes(sample.image)
        Path(name).with_suffix(".txt").write_text(caption)
    Path("pairs.jsonl").write_text("".join(f"{json.dumps({'image': name, 'caption': it})}\n" for name, it in rows))
    Path("pairs.csv").write_text("image,caption\n" + "".join(f'{name},"{it}"\n' for name, it in rows))


SHARDS = ("shards/00000000.tar", "shards/00000001.tar")
FORMS = [SHARDS, ("shards/{00000000..00000001}.tar",), ("shards",), ("pairs.jsonl",), ("pairs.csv",), ("pictures",)]


@pytest.mark.usefixtures("pairs")
def test_held_out_pairs_are_measured_in_every_form():
    student, captioner = SMALL.build().eval(), COCA.build().eval()
    hooks = {partial(validation_hook, benchmarks=()): student, partial(captions_on, model=COCA): captioner}
    for measure, model in hooks.items():
        found = [measure(form, rows=RowOptions())(model, 0) for form in FORMS]
        assert len({tuple(one.items()) for one in found}) == 1
        with fails(FileNotFoundError, "nowhere.csv"):
            measure(("nowhere.csv",), rows=RowOptions())


@pytest.mark.usefixtures("pairs")
# The forms are read one by one in the test above.
@pytest.mark.parametrize("form", [FORMS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in FORMS[1:])])
def test_plain_pairs_in_every_form_are_trained_on(form):
    run = mobileclip_run(SMALL, batch_size=8, total_steps=2, warmup_steps=1)
    held_out = [word for one in form for word in ("--validation", one)]
    arguments = ["--plain", "--data", *form, *held_out, "--evaluate", form[0], "-j", "0", "-o", "out", "--quiet"]
    run_recipe(run, arguments, name="own")
    metrics = set().union(*read_metrics("out/metrics.jsonl"))
    assert "validation_text_to_image_recall_at_1" in metrics
    assert any("/mean_recall@1" in name for name in metrics)


@pytest.mark.parametrize("content", [None, b"{", b"{}", b"\xff\xfe"])
def test_what_is_no_run_is_named(content, tmp_path):
    file = tmp_path / "other.json"
    if content is not None:
        file.write_bytes(content)
    with fails(SystemExit, str(file)):
        run_named("train_s2", file)
    with fails(ValueError, str(file)):
        read_choices(file, RunSpec)


@pytest.mark.parametrize(
    "line",
    [
        "train_s2 --data nowhere/0.tar",
        f"{ROWS} plain --data nowhere/{{0..3}}.tar",
        "train_imagenet_mci mci0 --data nowhere/0.tar",
        "reinforce_dfndr2b --data nowhere/",
        "finetune --data nowhere/",
        "finetune --retention-tasks nowhere/ --model x.pt",
        "evaluate --datasets nowhere/",
        "evaluate --data nowhere/",
        "train_s2 --data 0.tar --output nowhere/output --device cpu",
    ],
)
def test_a_tiny_run_names_data_that_is_not_there_and_an_output_that_cannot_be_written(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "0.tar --output" in line:
        write_shard("0.tar", [make_sample(index) for index in range(4)])
        Path("nowhere").touch()
    with fails(SystemExit, "error: ", "nowhere"):
        run_named(*line.split(), "--tiny")


def test_first_samples_are_few_and_of_several_classes(tmp_path):
    for name in ("ant", "bee", "cat"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(20):
            (tmp_path / "data" / name / f"{index}.jpg").write_bytes(encoded(8, 8, index))
    place = first_samples(as_source(tmp_path / "data"), tmp_path / "few", "insects")
    labels = [sample.metadata["label"] for sample in read_samples(sorted(Path(place).glob("*.tar")))]
    assert {name: labels.count(name) for name in labels} == dict.fromkeys(("ant", "bee", "cat"), NUM_SAMPLES // 6)
    assert Path(place).name == "insects"
    before = {path: path.stat().st_mtime_ns for path in Path(place).iterdir()}
    assert first_samples(as_source(tmp_path / "data"), tmp_path / "few", "insects") == place
    assert {path: path.stat().st_mtime_ns for path in Path(place).iterdir()} == before


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
        assert process.stderr.read() == said
        assert process.wait(60) in statuses


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

    def trained(output, *flags):
        command = "train mine.py --tiny --device cpu --quiet --training.checkpoint-every-steps 1 -o".split()
        main([*command, output, *flags])
        return {name: tensor.tolist() for name, tensor in load_file(f"{output}/model.safetensors").items()}

    model = trained("run")
    max(Path("run/checkpoints").iterdir()).unlink()
    Path("run/model.safetensors").unlink()
    assert trained("run") == model != trained("other", "--learning-rate", "0.01")
    changed = from_json(Path("other/run.json").read_text(), RunSpec)
    assert changed.training.schedule.peak == 0.01
    capsys.readouterr()
    main(["train", "mine.py", "other/run.json", "--show"])
    assert from_json(capsys.readouterr().out, RunSpec) == changed
