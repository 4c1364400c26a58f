from __future__ import annotations

import json
import math
import resource
import shutil
import signal
from pathlib import Path

import attrs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mobileclip.data import RangeAugmentSpec, ReinforcedBatch, ReinforcementCard, TeacherEntry
from mobileclip.inputs import ImageInput
from mobileclip.losses import SigmoidLossSpec
from mobileclip.storage import exclusive
from mobileclip.tensor_files import CheckpointError
from mobileclip.training import Memory, SelectionSpec, read_metrics, train
from mobileclip.training.checkpoint import DIGEST, CheckpointFolder, digest
from tests.errors import fails
from tests.training.runs import (
    Batches,
    KilledError,
    assert_resumes_to_the_bit,
    batch_of,
    image_of,
    last_checkpoint,
    new_model,
    training_spec,
)

ROOT = Path(__file__).parents[2]


def killed_at(step: int) -> Batches:
    return Batches(stop=step, killed=True)


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory, one_thread):
    """The output of a run that was killed behind its second checkpoint."""
    output = tmp_path_factory.mktemp("killed")
    with pytest.raises(KilledError):
        train(training_spec(8), model=new_model(), batches=killed_at(7), output=output)
    return output


@pytest.fixture
def killed(killed_once, tmp_path):
    """A copy of it."""
    return shutil.copytree(killed_once, tmp_path, dirs_exist_ok=True)


def newest_state(output):
    """Return the path, the tensors and the metadata of a run's last checkpoint."""
    path = last_checkpoint(output)
    with safe_open(path, framework="pt") as file:
        return path, load_file(path), file.metadata()


def test_a_loss_with_other_teachers_or_scales_than_the_data_is_refused(tmp_path):
    entries = [
        TeacherEntry(name=f"{dim}", weights_sha256="", dim=dim, logit_scale=scale, image=ImageInput(size=16))
        for dim, scale in ((6, 20.0), (5, 40.0))
    ]
    card, other = (ReinforcementCard(teachers=tuple(many), layout="npz") for many in (entries, entries[::-1]))
    for wrong, words in ((other, ("(5, 6)", "(40.0, 20.0)")), (card, ("(20.0, 30.0)", "(20.0, 40.0)"))):
        with fails(ValueError, *words):
            train(training_spec(3), model=new_model(), batches=Batches(), output=tmp_path, card=wrong)
    assert not list(tmp_path.iterdir())
    # Without distillation, it does not matter who the teachers were.
    train(training_spec(3, reinforced=False), model=new_model(), batches=Batches(), output=tmp_path / "a", card=other)
    spec = training_spec(3)
    tuned = attrs.evolve(spec, loss=attrs.evolve(spec.loss, tuned_scales=True))
    train(tuned, model=new_model(), batches=Batches(), output=tmp_path / "b", card=card)


@pytest.mark.parametrize(
    ("reinforced", "precision"),
    [(True, "float32"), (True, "bfloat16"), pytest.param(False, "float32", marks=pytest.mark.slow)],
)
def test_the_loss_falls(tmp_path, reinforced, precision):
    spec = training_spec(16, reinforced=reinforced, precision=precision, peak=1e-2)
    result = train(spec, model=new_model(), batches=Batches(), output=tmp_path)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(16))
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
    assert not result.model.training
    assert result.num_steps == 16
    for line in metrics:
        assert line["loss"] == pytest.approx(line["contrastive"] + line.get("distillation", 0), rel=1e-5)
        assert line["learning_rate"] == spec.schedule.learning_rate(int(line["step"]))
    assert all(("distillation" in line) == reinforced for line in metrics)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        # What draws random numbers while it trains, and what has parameters beside the student's.
        {"range_augment": RangeAugmentSpec(), "loss": SigmoidLossSpec(), "memory": Memory(micro_batch=4)},
        {"precision": "float16"},
        {"selection": SelectionSpec(share=0.5, num_chunks=2)},
    ],
    ids=["plain", "random", "float16", "selection"],
)
def test_a_killed_run_resumes_to_the_bit(tmp_path, changes):
    assert_resumes_to_the_bit(training_spec(8, **changes), new_model, tmp_path)


def test_a_finished_run_is_not_repeated_and_gives_its_model(tmp_path):
    spec = training_spec(3)
    first = train(spec, model=new_model(), batches=Batches(), output=tmp_path)
    again = train(spec, model=new_model(), batches=killed_at(0), output=tmp_path)
    assert again.num_steps == 0
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    with fails(ValueError):
        train(training_spec(3, peak=1e-3), model=new_model(), batches=Batches(), output=tmp_path)


def test_a_folder_that_another_run_writes_to_is_refused(tmp_path):
    with exclusive(tmp_path), fails(ValueError):
        train(training_spec(3), model=new_model(), batches=Batches(), output=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert train(training_spec(3), model=new_model(), batches=Batches(), output=tmp_path).num_steps == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoints", "metrics.jsonl"]


def test_what_is_resumed_from_is_looked_for_when_no_other_run_writes(tmp_path, monkeypatch):
    train(training_spec(3), model=new_model(), batches=Batches(), output=tmp_path)
    looked = []

    def every(self):
        with fails(ValueError), exclusive(tmp_path):
            pass
        looked.append(self.path)
        return []

    monkeypatch.setattr(CheckpointFolder, "all", every)
    train(training_spec(3), model=new_model(), batches=Batches(), output=tmp_path)
    assert looked


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tmp_path):
    def spoiled(step: int):
        batch = batch_of(step)
        if step == 4:
            batch.teacher_image[3, 0] = torch.nan
        return batch

    model = new_model()
    with fails(FloatingPointError, "loss", "nan", "4", "4-0', '4-1", "step-00000003"):
        train(training_spec(8), model=model, batches=Batches(make=spoiled), output=tmp_path)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    report = json.loads((tmp_path / "diverged.json").read_text())
    assert report["keys"] == [f"4-{index}" for index in range(8)]
    assert report["checkpoint"] == str(last_checkpoint(tmp_path))
    assert report["step"] == 4
    # The last good state goes on, on other batches.
    resumed = train(training_spec(8), model=new_model(), batches=Batches(), output=tmp_path)
    assert resumed.num_steps == 5


def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path):
    model = new_model()
    model.text_encoder.position.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(
        FloatingPointError, match=r"the gradient norm is (nan|inf) at step 0.*The last good state is the beg"
    ):
        train(training_spec(8), model=model, batches=Batches(), output=tmp_path)


def test_the_logit_scale_has_a_floor_where_it_is_asked_for(tmp_path):
    for floor, least in ((1.0, 1.0), (None, 0.5)):
        model = new_model()
        with torch.no_grad():
            model.logit_scale.fill_(math.log(0.5))
        spec = training_spec(3, peak=1e-6, ema_decay=None, min_logit_scale=floor)
        train(spec, model=model, batches=Batches(), output=tmp_path / str(floor))
        assert model.logit_scale.exp().item() == pytest.approx(least, rel=1e-3)
    with pytest.raises(ValueError, match="min_logit_scale"):
        train(training_spec(3, min_logit_scale=200.0), model=new_model(), batches=Batches(), output=tmp_path / "high")


def test_the_first_step_equals_the_same_step_by_hand(tmp_path):
    spec = training_spec(1 + 2, max_gradient_norm=0.1, ema_decay=None)
    model = new_model()
    with pytest.raises(KilledError):
        train(spec, model=model, batches=killed_at(1), output=tmp_path)

    by_hand, batch = new_model().train(), batch_of(0)
    image = by_hand.encode_image(image_of(batch), normalize=True)
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


def test_batches_that_do_not_fit_are_named(tmp_path):
    with fails(ValueError, "2", "8"):
        train(training_spec(8), model=new_model(), batches=Batches(stop=2), output=tmp_path)

    def without_teachers(step: int) -> ReinforcedBatch:
        batch = batch_of(step)
        return ReinforcedBatch(keys=batch.keys, image=batch.image, text=batch.text)

    plain = Batches(make=without_teachers)
    with fails(ValueError, "ReinforcedLossSpec"):
        train(training_spec(8), model=new_model(), batches=plain, output=tmp_path / "other")
    train(training_spec(3, reinforced=False), model=new_model(), batches=plain, output=tmp_path / "plain")
    with fails(ValueError):
        train(training_spec(3, channels_last=True), model=new_model(), batches=plain, output=tmp_path / "last")


def test_the_newest_checkpoints_are_kept(tmp_path):
    spec = training_spec(8, checkpoint_every_steps=2, keep_checkpoints=3)
    folder = tmp_path / "checkpoints"
    train(spec, model=new_model(), batches=Batches(), output=tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [f"step-0000000{step}.safetensors" for step in (4, 6, 8)]


def test_what_is_only_written_may_change_between_resumptions(tmp_path):
    with pytest.raises(KilledError):
        train(training_spec(8), model=new_model(), batches=killed_at(5), output=tmp_path)
    spec = training_spec(8, checkpoint_every_steps=1, log_every_steps=2, keep_checkpoints=1)
    assert train(spec, model=new_model(), batches=Batches(), output=tmp_path).num_steps == 5
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 5, 7]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]]
)
def test_the_checkpoint_before_a_damaged_one_is_gone_on_from(killed, caplog, damage):
    """Cut short, or with another bit in a number, which nothing else would find."""
    path = last_checkpoint(killed)
    path.write_bytes(damage(path.read_bytes()))
    assert train(training_spec(8), model=new_model(), batches=Batches(), output=killed).num_steps == 5
    assert "step-00000006.safetensors is damaged" in caplog.text
    assert path.with_suffix(".unreadable").exists()
    assert len(read_metrics(killed / "metrics.jsonl")) == 8


def test_without_a_readable_checkpoint_nothing_is_begun_anew(killed):
    for path in (killed / "checkpoints").iterdir():
        path.write_bytes(b"")
    with fails(ValueError, "2"):
        train(training_spec(8), model=new_model(), batches=Batches(), output=killed)
    assert len(read_metrics(killed / "metrics.jsonl")) == 7


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    class Filling(Batches):
        def position(self, num_batches):
            if num_batches == 6:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
            return super().position(num_batches)

    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with fails(OSError):
            train(training_spec(8), model=new_model(), batches=Filling(), output=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003.safetensors"]
    assert train(training_spec(8), model=new_model(), batches=Batches(), output=tmp_path).num_steps == 5


def test_evaluation_is_called_on_the_average_and_logged(tmp_path):
    seen = []

    def evaluate(model, done):
        assert not model.training
        seen.append((done, model.logit_scale.item()))
        return {"recall": done / 10}

    model = new_model()
    spec = training_spec(7, evaluate_every_steps=3)
    result = train(spec, model=model, batches=Batches(), output=tmp_path, evaluate=evaluate)
    assert [done for done, _ in seen] == [3, 6, 7]
    assert seen[-1][1] == result.model.logit_scale.item()
    assert seen[-1][1] != model.logit_scale.item()
    recalls = [(line["step"], line["recall"]) for line in read_metrics(tmp_path / "metrics.jsonl") if "recall" in line]
    assert recalls == [(2, 0.3), (5, 0.6), (6, 0.7)]


def test_evaluating_without_an_average_leaves_training_mode_as_it_was(tmp_path):
    """Of every part: the text tower is in evaluation mode from the first batch on."""
    modes = {"image_encoder": [], "text_encoder": []}
    model = new_model()
    for name, seen in modes.items():
        model.get_submodule(name).register_forward_hook(lambda part, *_, seen=seen: seen.append(part.training))

    def make(step):
        if step == 0:
            model.text_encoder.eval()
        return batch_of(step)

    spec = training_spec(4, evaluate_every_steps=1, ema_decay=None)
    train(spec, model=model, batches=Batches(make=make), output=tmp_path, evaluate=lambda *_: {})
    assert modes == {"image_encoder": [True] * 4, "text_encoder": [False] * 4}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("step", "five", (CheckpointError,)),
        ("step", "9" * 400, (CheckpointError,)),
        ("position", "[" * 100_000, (ValueError,)),
        ("position", '{"first_batch": "2"}', (ValueError,)),
        ("position", "[3]", (CheckpointError, "StreamPosition")),
        ("spec", "{}", (CheckpointError, "required key")),
        ("spec", None, (CheckpointError, "spec")),
    ],
)
def test_a_state_that_says_something_else_is_refused(name, value, error, killed):
    path, tensors, metadata = newest_state(killed)
    changed = {key: text for key, text in {**metadata, name: value}.items() if text is not None}
    save_file(tensors, path, changed)
    with fails(*error):
        train(training_spec(8), model=new_model(), batches=Batches(), output=killed)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("optimizer/", lambda tensor: tensor[:1].contiguous()),
        ("optimizer/", torch.Tensor.long),
        ("random/cpu/0", torch.Tensor.float),
        ("optimizer/", lambda tensor: tensor * torch.nan),
    ],
    ids=["shape", "type", "random", "nan"],
)
def test_a_state_of_other_numbers_is_refused(part, change, killed):
    path, tensors, metadata = newest_state(killed)
    name = next(name for name in tensors if name.startswith(part) and (tensors[name].ndim > 1 or "random" in name))
    tensors[name] = change(tensors[name])
    save_file(tensors, path, {**metadata, DIGEST: digest(tensors)})
    with fails(ValueError):
        train(training_spec(8), model=new_model(), batches=Batches(), output=killed)
