import json
import math
import resource
import shutil
import signal

import attrs
import pytest
import torch

from mobileclip.data import RangeAugmentSpec, ReinforcedBatch, ReinforcementCard, TeacherEntry
from mobileclip.inputs import ImageInput
from mobileclip.losses import SigmoidLossSpec
from mobileclip.storage import exclusive
from mobileclip.tensor_files import CheckpointError
from mobileclip.training import Memory, SelectionSpec, read_metrics, train
from mobileclip.training.checkpoint import CheckpointFolder, StateFile, read_state
from tests.errors import fails
from tests.training import runs
from tests.training.runs import batch_of, kill, last_checkpoint, logged, new_model, trained, training_spec


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory, one_thread):
    """The output of a run that was killed behind its second checkpoint."""
    output = tmp_path_factory.mktemp("killed")
    kill(output, step=7)
    return output


@pytest.fixture
def killed(killed_once, tmp_path):
    """A copy of it."""
    return shutil.copytree(killed_once, tmp_path, dirs_exist_ok=True)


def test_a_loss_with_other_teachers_or_scales_than_the_data_is_refused(tmp_path):
    entries = [
        TeacherEntry(name=f"{dim}", weights_sha256="", dim=dim, logit_scale=scale, image=ImageInput(size=16))
        for dim, scale in ((6, 20.0), (5, 40.0))
    ]
    card, other = (ReinforcementCard(teachers=tuple(many), layout="npz") for many in (entries, entries[::-1]))
    for wrong, words in ((other, ("(5, 6)", "(40.0, 20.0)")), (card, ("(20.0, 30.0)", "(20.0, 40.0)"))):
        with fails(ValueError, *words):
            trained(tmp_path, card=wrong)
    assert not list(tmp_path.iterdir())
    # Without distillation, it does not matter who the teachers were.
    trained(tmp_path / "a", training_spec(3, reinforced=False), card=other)
    spec = training_spec(3)
    trained(tmp_path / "b", attrs.evolve(spec, loss=attrs.evolve(spec.loss, tuned_scales=True)), card=card)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_loss_falls(tmp_path, precision):
    spec = training_spec(16, precision=precision, peak=1e-2)
    result = trained(tmp_path, spec)
    metrics = logged(tmp_path)
    assert [line["step"] for line in metrics] == list(range(16))
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
    assert (result.num_steps, result.model.training) == (16, False)
    for line in metrics:
        assert line["loss"] == pytest.approx(line["contrastive"] + line["distillation"], rel=1e-5)
        assert line["learning_rate"] == spec.schedule.learning_rate(int(line["step"]))


# What draws random numbers while it trains, and what has parameters beside the student's, comes first.
JOBS = {
    "random": {"range_augment": RangeAugmentSpec(), "loss": SigmoidLossSpec(), "memory": Memory(micro_batch=4)},
    "float16": {"precision": "float16"},
    "selection": {"selection": SelectionSpec(share=0.5, num_chunks=2)},
}


@pytest.mark.parametrize("changes", JOBS.values(), ids=JOBS)
def test_a_killed_run_resumes_to_the_bit(tmp_path, changes):
    runs.assert_resumes_to_the_bit(training_spec(8, **changes), tmp_path)


def test_a_finished_run_is_not_repeated_and_gives_its_model(tmp_path, monkeypatch):
    spec, looked = training_spec(3), []
    first, again = trained(tmp_path, spec), trained(tmp_path, spec, stop=0)
    assert again.num_steps == 0
    torch.testing.assert_close(again.model.state_dict(), first.model.state_dict(), rtol=0, atol=0)
    assert len(logged(tmp_path)) == 3
    with fails(ValueError):
        trained(tmp_path, training_spec(3, peak=1e-3))

    def every(self):
        with fails(ValueError), exclusive(tmp_path):
            pass
        looked.append(self.path)
        return []

    # What is resumed from is looked for when no other run writes.
    monkeypatch.setattr(CheckpointFolder, "all", every)
    trained(tmp_path, spec)
    assert looked


def test_a_folder_that_another_run_writes_to_is_refused(tmp_path):
    with exclusive(tmp_path), fails(ValueError):
        trained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert trained(tmp_path, training_spec(3)).num_steps == 3
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "checkpoints", "metrics.jsonl"}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(tmp_path):
    def spoiled(step):
        batch = batch_of(step)
        if step == 4:
            batch.teacher_image[3, 0] = torch.nan
        return batch

    model = new_model()
    with fails(FloatingPointError, "loss", "nan", "4", "4-0', '4-1", "step-00000003"):
        trained(tmp_path, model=model, make=spoiled)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    report = json.loads((tmp_path / "diverged.json").read_text())
    expected = {"keys": [f"4-{index}" for index in range(8)], "checkpoint": str(last_checkpoint(tmp_path)), "step": 4}
    assert report.items() >= expected.items()
    # The last good state goes on, on other batches.
    assert trained(tmp_path).num_steps == 5


def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path):
    model = new_model()
    model.text_encoder.position.register_hook(lambda gradient: gradient * torch.inf)
    with fails(FloatingPointError, "gradient norm", "step 0", "beg"):
        trained(tmp_path, model=model)


def test_the_logit_scale_has_a_floor_where_it_is_asked_for(tmp_path):
    for floor, least in ((1.0, 1.0), (None, 0.5)):
        model = new_model()
        model.logit_scale.data.fill_(math.log(0.5))
        trained(tmp_path / str(floor), training_spec(3, peak=1e-6, ema_decay=None, min_logit_scale=floor), model=model)
        assert model.logit_scale.exp().item() == pytest.approx(least, rel=1e-3)
    with fails(ValueError, "min_logit_scale"):
        trained(tmp_path / "high", training_spec(3, min_logit_scale=200.0))


def test_the_first_step_equals_the_same_step_by_hand(tmp_path):
    spec, model = training_spec(3, max_gradient_norm=0.1, ema_decay=None), new_model()
    kill(tmp_path, spec, step=1, model=model)

    by_hand, batch = new_model().train(), batch_of(0)
    image = by_hand.encode_image(runs.image_of(batch), normalize=True)
    text = by_hand.encode_text(torch.cat([batch.text, batch.syn_text]), normalize=True)
    taught = {name: getattr(batch, name) for name in ("teacher_image", "teacher_text", "teacher_syn_text")}
    terms = spec.loss.build()(
        image=image, text=text[:8], syn_text=text[8:], logit_scale=by_hand.logit_scale.exp(), **taught
    )
    terms.total.backward()
    norm = torch.cat([p.grad.flatten() for p in by_hand.parameters()]).norm().item()
    assert norm > 0.1
    line = logged(tmp_path)[0]
    assert line["loss"] == pytest.approx(terms.total.item(), rel=1e-6)
    assert line["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    clipped = by_hand.logit_scale.grad * 0.1 / norm
    expected = by_hand.logit_scale - spec.schedule.learning_rate(0) * clipped / (clipped.abs() + 1e-8)
    torch.testing.assert_close(model.logit_scale.detach(), expected.detach())


def test_batches_that_do_not_fit_are_named(tmp_path):
    def without_teachers(step):
        batch = batch_of(step)
        return ReinforcedBatch(keys=batch.keys, image=batch.image, text=batch.text)

    with fails(ValueError, "2", "8"):
        train(training_spec(8), model=new_model(), batches=runs.Batches(stop=2), output=tmp_path)
    with fails(ValueError, "ReinforcedLossSpec"):
        trained(tmp_path / "other", make=without_teachers)
    with fails(ValueError):
        trained(tmp_path / "last", training_spec(3, channels_last=True), make=without_teachers)
    trained(tmp_path / "plain", training_spec(3, reinforced=False), make=without_teachers)
    assert all(
        line["loss"] == line["contrastive"] and "distillation" not in line for line in logged(tmp_path / "plain")
    )


def test_what_is_only_written_may_change_between_resumptions_and_the_newest_are_kept(tmp_path):
    kill(tmp_path, step=5)
    spec = training_spec(8, checkpoint_every_steps=1, log_every_steps=2, keep_checkpoints=2)
    assert trained(tmp_path, spec).num_steps == 5
    assert [line["step"] for line in logged(tmp_path)] == [0, 1, 2, 3, 5, 7]
    found = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert found == {f"step-0000000{step}.safetensors" for step in (7, 8)}


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]]
)
def test_the_checkpoint_before_a_damaged_one_is_gone_on_from(killed, caplog, damage):
    """Cut short, or with another bit in a number, which nothing else would find."""
    path = last_checkpoint(killed)
    path.write_bytes(damage(path.read_bytes()))
    assert trained(killed).num_steps == 5
    assert "step-00000006.safetensors is damaged" in caplog.text
    assert path.with_suffix(".unreadable").exists()
    assert len(logged(killed)) == 8


def test_without_a_readable_checkpoint_nothing_is_begun_anew(killed):
    for path in (killed / "checkpoints").iterdir():
        path.write_bytes(b"")
    with fails(ValueError, "2"):
        trained(killed)
    assert len(logged(killed)) == 7


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    class Filling(runs.Batches):
        def position(self, num_batches):
            if num_batches == 6:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            return super().position(num_batches)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with fails(OSError):
            train(training_spec(8), model=new_model(), batches=Filling(), output=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003.safetensors"]
    assert trained(tmp_path).num_steps == 5


def test_evaluation_is_called_on_the_average_and_logged(tmp_path):
    seen = []

    def evaluate(model, done):
        assert not model.training
        seen.append((done, model.logit_scale.item()))
        return {"recall": done / 10}

    model = new_model()
    result = trained(tmp_path, training_spec(7, evaluate_every_steps=3), model=model, evaluate=evaluate)
    assert [done for done, _ in seen] == [3, 6, 7]
    assert seen[-1][1] == result.model.logit_scale.item() != model.logit_scale.item()
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
    trained(tmp_path, spec, model=model, make=make, evaluate=lambda *_: {})
    assert modes == {"image_encoder": [True] * 4, "text_encoder": [False] * 4}


MOMENTS = "optimizer/model.text_encoder.token_embedding.weight/exp_avg"
WRONG = [
    ("step", "five", (CheckpointError,)),
    ("step", "9" * 400, (CheckpointError,)),
    ("position", "[" * 100_000, (ValueError,)),
    ("position", '{"first_batch": "2"}', (ValueError,)),
    ("position", "[3]", (CheckpointError, "StreamPosition")),
    ("spec", "{}", (CheckpointError, "required key")),
    ("spec", None, (CheckpointError, "spec")),
    (MOMENTS, lambda tensor: tensor[:1].contiguous(), (ValueError,)),
    (MOMENTS, torch.Tensor.long, (ValueError,)),
    (MOMENTS, lambda tensor: tensor * torch.nan, (ValueError,)),
    ("random/cpu/0", torch.Tensor.float, (ValueError,)),
]


@pytest.mark.parametrize(("name", "value", "error"), WRONG)
def test_a_state_that_holds_something_else_is_refused(name, value, error, killed):
    """Metadata with another value or none, and tensors that are changed."""
    path = last_checkpoint(killed)
    state = read_state(path)
    tensors, metadata = dict(state.tensors), dict(state.metadata)
    if name in tensors:
        tensors[name] = value(tensors[name])
    else:
        metadata = {key: text for key, text in {**metadata, name: value}.items() if text is not None}
    StateFile(tensors=tensors, metadata=metadata).write(path)
    with fails(*error):
        trained(killed)
