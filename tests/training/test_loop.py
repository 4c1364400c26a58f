from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import attrs
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from mobileclip.data import ReinforcedBatch, ReinforcementCard, TeacherEntry
from mobileclip.inputs import ImageInput
from mobileclip.training import read_metrics, train
from tests.training.runs import batch_of, batches, new_model, training_spec

ROOT = Path(__file__).parents[2]


class KilledError(Exception):
    pass


def killed_at(step: int):
    def source(first: int):
        yield from islice(batches(first), step - first)
        raise KilledError

    return source


def without_times(metrics):
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in metrics]


def test_a_loss_with_other_teachers_than_the_data_is_refused(tmp_path):
    entries = [
        TeacherEntry(name=f"{dim}", weights_sha256="", dim=dim, logit_scale=scale, image=ImageInput(size=16))
        for dim, scale in ((6, 20.0), (5, 40.0))
    ]
    card = ReinforcementCard(teachers=entries, layout="npz")
    with pytest.raises(ValueError, match=r"give the loss teacher_logit_scales=\(20\.0, 40\.0\)"):
        train(training_spec(3), model=new_model(), batches=batches, output=tmp_path, card=card)
    assert not list(tmp_path.iterdir())
    # Without distillation, it does not matter who the teachers were.
    train(training_spec(3, reinforced=False), model=new_model(), batches=batches, output=tmp_path, card=card)


@pytest.mark.parametrize("reinforced", [True, False])
def test_the_loss_falls(tmp_path, reinforced):
    spec = training_spec(60, reinforced=reinforced, peak=5e-3)
    result = train(spec, model=new_model(), batches=batches, output=tmp_path)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(60))
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert not result.model.training
    assert result.num_steps == 60
    for line in metrics:
        assert line["loss"] == pytest.approx(line["contrastive"] + line["distillation"], rel=1e-5)
        assert line["learning_rate"] == spec.schedule.learning_rate(int(line["step"]))
    assert all(line["distillation"] > 0 for line in metrics) == reinforced


def test_a_killed_run_resumes_to_the_bit(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    spec = training_spec(8)
    reference = train(spec, model=new_model(), batches=batches, output=whole)
    for step in (2, 5, 7):
        with pytest.raises(KilledError):
            train(spec, model=new_model(), batches=killed_at(step), output=parts)
    resumed = train(spec, model=new_model(), batches=batches, output=parts)
    assert resumed.num_steps == 2
    assert without_times(read_metrics(parts / "metrics.jsonl")) == without_times(read_metrics(whole / "metrics.jsonl"))
    expected = load_file(whole / "checkpoint.safetensors")
    found = load_file(parts / "checkpoint.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for name, value in reference.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.slow
def test_a_run_killed_by_the_system_resumes_to_the_bit(tmp_path):
    program = (
        "import sys\nfrom pathlib import Path\nimport torch\ntorch.set_num_threads(1)\n"
        "from mobileclip.training import train\n"
        "from tests.training.runs import batches, new_model, training_spec\n"
        "train(training_spec(60), model=new_model(), batches=batches, output=Path(sys.argv[1]))\n"
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(killed)], cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}
    )
    while not (killed / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    train(training_spec(60), model=new_model(), batches=batches, output=killed)
    train(training_spec(60), model=new_model(), batches=batches, output=whole)
    assert without_times(read_metrics(killed / "metrics.jsonl")) == without_times(read_metrics(whole / "metrics.jsonl"))


def test_a_finished_run_is_not_repeated_and_gives_its_model(tmp_path):
    spec = training_spec(3)
    first = train(spec, model=new_model(), batches=batches, output=tmp_path)
    again = train(spec, model=new_model(), batches=killed_at(0), output=tmp_path)
    assert again.num_steps == 0
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


def test_another_run_s_folder_is_refused(tmp_path):
    train(training_spec(3), model=new_model(), batches=batches, output=tmp_path)
    with pytest.raises(ValueError, match="written by a run with another training spec; choose another output folder"):
        train(training_spec(3, peak=1e-3), model=new_model(), batches=batches, output=tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tmp_path):
    def source(first: int):
        for step in range(first, 9):
            batch = batch_of(step)
            if step == 2:
                batch.image[3, 0, 0, 0] = torch.nan
            yield batch

    model = new_model()
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 2; the batch's keys are \['2-0', '2-1'"):
        train(training_spec(8), model=model, batches=source, output=tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_logit_scale_is_capped(tmp_path):
    model = new_model()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(99.99))
    spec = training_spec(4, peak=1.0, ema_decay=None)
    train(attrs.evolve(spec, max_logit_scale=50.0), model=model, batches=batches, output=tmp_path)
    scales = [line["logit_scale"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert scales[0] == pytest.approx(50.0, rel=1e-5)
    assert max(scales) <= 50.0 * (1 + 1e-5)


def test_the_first_step_equals_the_same_step_by_hand(tmp_path):
    spec = training_spec(1 + 2, max_gradient_norm=0.1, ema_decay=None)
    model = new_model()
    with pytest.raises(KilledError):
        train(spec, model=model, batches=killed_at(1), output=tmp_path)

    by_hand, batch = new_model().train(), batch_of(0)
    image = by_hand.encode_image(batch.image, normalize=True)
    text = by_hand.encode_text(torch.cat([batch.text, batch.syn_text]), normalize=True)
    terms = spec.loss.build()(
        image=image, text=text[:8], syn_text=text[8:], logit_scale=by_hand.logit_scale.exp(),
        teacher_image=batch.teacher_image, teacher_text=batch.teacher_text, teacher_syn_text=batch.teacher_syn_text,
    )  # fmt: skip
    terms.total.backward()
    gradient = torch.cat([p.grad.flatten() for p in by_hand.parameters()])
    assert gradient.norm() > 0.1
    line = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert line["loss"] == pytest.approx(terms.total.item(), rel=1e-6)
    assert line["gradient_norm"] == pytest.approx(gradient.norm().item(), rel=1e-5)
    clipped = by_hand.logit_scale.grad * 0.1 / gradient.norm()
    rate = spec.schedule.learning_rate(0)
    expected = by_hand.logit_scale - rate * clipped / (clipped.abs() + 1e-8)
    torch.testing.assert_close(model.logit_scale.detach(), expected.detach())


def test_bfloat16_trains(tmp_path):
    train(training_spec(30, peak=5e-3, precision="bfloat16"), model=new_model(), batches=batches, output=tmp_path)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]


def test_batches_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match="the batches ended at step 2 of 8; let them go round"):
        train(training_spec(8), model=new_model(), batches=lambda first: islice(batches(first), 2), output=tmp_path)

    def plain(first: int):
        for batch in batches(first):
            yield ReinforcedBatch(keys=batch.keys, image=batch.image, text=batch.text)

    with pytest.raises(ValueError, match="ReinforcedLossSpec needs teachers' embeddings, but the batches hold"):
        train(training_spec(8), model=new_model(), batches=plain, output=tmp_path / "other")
    train(training_spec(3, reinforced=False), model=new_model(), batches=plain, output=tmp_path / "plain")
    with pytest.raises(ValueError, match="channels_last is for GPUs"):
        train(training_spec(3, channels_last=True), model=new_model(), batches=plain, output=tmp_path / "last")


@pytest.mark.gpu
def test_a_gpu_trains_in_channels_last_and_bfloat16(tmp_path):
    spec = training_spec(60, peak=5e-3, channels_last=True, precision="bfloat16")
    train(spec, model=new_model(), batches=batches, output=tmp_path, device="cuda")
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics[-1]["loss"] < 0.6 * metrics[0]["loss"]


def test_progress_says_how_far_how_fast_and_how_long(tmp_path):
    stream = io.StringIO()
    console = Console(file=stream, width=200)
    train(training_spec(3), model=new_model(), batches=batches, output=tmp_path, title="reinforced", console=console)
    last = stream.getvalue().strip().splitlines()[-1]
    assert last.startswith("reinforced: 3/3, loss ")
    assert "samples/s, 0:00 left" in last
